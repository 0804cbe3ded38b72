"""The check of an exported folder: its vectors or logits are compared with the model's own, on images and captions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from dcdctl.core import models
from dcdctl.core.data import Corpus, describe_scenes, draw_scene, read_corpus_json
from dcdctl.core.errors import CorpusError, ModelError
from dcdctl.core.models import Searchable
from dcdctl.core.progress import counted
from dcdctl.core.scoring import Vectors

# Enough to meet images and captions of different sizes; the check should not take longer than the export.
NUM_SAMPLES = 32
LOWEST_COSINE = {"fp32": 0.9999, "int8": 0.98}
"""Minimum cosine between the vectors of the exported and the original model, for every image and caption. With int8
weights the captions of MiniLM-L6 reach 0.991; products that saturated gave 0.913."""
NOT_WRITTEN = "nothing was written"
LARGEST_DIFFERENCE = 1e-3
"""Maximum difference between the logits of the exported and the original model."""


@dataclass(frozen=True)
class Samples:
    """Images with one caption each."""

    images: list[Image.Image]
    captions: list[str]
    origin: str
    """In words."""

    @property
    def in_words(self) -> str:
        """What was compared, of an export that reads images."""
        return f"{counted(len(self.images), 'images')} of {self.origin}"

    @property
    def texts_in_words(self) -> str:
        """What was compared, of an export of texts alone."""
        return f"{counted(len(self.captions), 'texts')} of {self.origin}"


def embed_in_two_batches(
    samples: Samples, embed_images: Callable[[list[Image.Image]], Tensor], embed_texts: Callable[[list[str]], Tensor]
) -> Vectors:
    """The vectors of samples by a library: of the first image and the first caption alone, then of the others.

    A vector that depends on the other captions of its batch, by their padding, differs from the original model's.
    """
    # Two batches show a dependence that a single batch, with the same padding for all, would hide.
    images = list(embed_images(samples.images[:1]))
    texts = list(embed_texts(samples.captions[:1]))
    if len(samples.images) > 1:
        images += embed_images(samples.images[1:])
        texts += embed_texts(samples.captions[1:])
    # Token vectors are padded to the longest of their batch, and the two batches may differ.
    return Vectors(pad_sequence(images, batch_first=True), pad_sequence(texts, batch_first=True))


@dataclass(frozen=True)
class Check:
    """How close an exported model is to the original model."""

    precision: str
    """fp32 or int8."""
    lowest_cosine: float | None = None
    """Between vectors."""
    largest_difference: float | None = None
    """Between logits."""


def samples_of(data: Path | None, split: str | None) -> Samples:
    """The first images of a split with their first captions; for a pool, its first images and first texts.

    The last split is read if the corpus has none of that name. Without `data` the samples are scenes.
    """
    if data is None:
        described = list(islice(describe_scenes(0, "test", 1), NUM_SAMPLES))
        images = [draw_scene(description.scene) for description in described]
        captions = [description.statements[0].text for description in described]
        return Samples(images, captions, "the built-in corpus")
    document = read_corpus_json(data)
    names = list(document.splits)
    corpus = Corpus.open(data, split if split in names else names[-1])
    count = min(NUM_SAMPLES, corpus.num_images, corpus.num_captions)
    if not count:
        raise CorpusError(f"{data} has no image or no text in {corpus.split}", hint="name another corpus with --data")
    texts = list(range(count))
    if not corpus.is_pool:
        texts = [corpus.captions_of(image)[0] for image in range(count)]
    captions = [corpus.captions[text] for text in texts]
    return Samples(corpus.images(range(count)), captions, f"{document.name}, split {corpus.split}")


def vectors_of(model: Searchable, samples: Samples) -> Vectors:
    """The vectors of samples by the original model. Token vectors of a sample are concatenated to one vector."""
    device = next(iter(model.parameters())).device
    with torch.no_grad():
        images, *_ = models.tower_outputs(model, model.preprocess.images(samples.images).to(device))
        texts, *_ = models.tower_outputs(model, model.preprocess.texts(samples.captions).to(device))
    # The model may be on a GPU; the libraries read the export on the CPU.
    return Vectors(images.flatten(1).cpu(), texts.flatten(1).cpu())


def compare_vectors(precision: str, exported: Vectors, original: Vectors, *, hint: str) -> Check:
    """The lowest cosine between exported and original vectors; ModelError if it is too low for the precision."""
    of_images = functional.cosine_similarity(exported.images_ID.float(), original.images_ID.float())
    of_texts = functional.cosine_similarity(exported.texts_TD.float(), original.texts_TD.float())
    # torch's minimum, because Python's would ignore a NaN.
    lowest = float(torch.cat([of_images, of_texts]).min())
    # Not `<`, which would let a NaN pass.
    if not lowest >= LOWEST_COSINE[precision]:
        cosine = f"the vectors of the exported {precision} model have a cosine of {lowest:.5f} with those of the model"
        raise ModelError(f"{cosine}, it must be at least {LOWEST_COSINE[precision]}", hint=hint)
    return Check(precision, lowest_cosine=lowest)


def compare_logits(exported: Tensor, original: Tensor) -> Check:
    """The largest difference between exported and original logits; ModelError if it is more than rounding."""
    difference = float((exported - original).abs().max())
    # Not `>`, which would let a NaN pass.
    if not difference <= LARGEST_DIFFERENCE:
        message = f"the scores of the exported model differ from those of the model by {difference:.1e}"
        raise ModelError(f"{message}, at most {LARGEST_DIFFERENCE:.0e} is allowed", hint=NOT_WRITTEN)
    return Check("fp32", largest_difference=difference)


def checks_in_words(checks: Sequence[Check]) -> str:
    """The results of checks, in words.

    >>> checks_in_words([Check("fp32", lowest_cosine=1.0), Check("int8", lowest_cosine=0.99512)])
    'fp32 cosine at least 1.00000, int8 cosine at least 0.99512'
    """
    words = []
    for check in checks:
        if check.lowest_cosine is not None:
            words.append(f"{check.precision} cosine at least {check.lowest_cosine:.5f}")
        else:
            words.append(f"{check.precision} scores at most {check.largest_difference:.1e} apart")
    return ", ".join(words)
