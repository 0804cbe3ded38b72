"""Whether an exported folder gives what the model gives: compared on pictures and captions, before anyone is told that it is there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from dcdctl.core.data import Corpus, describe_scenes, draw_scene, read_corpus_json
from dcdctl.core.errors import CorpusError, ModelError
from dcdctl.core.models import DualEncoder

NUM_SAMPLES = 32
LOWEST_COSINE = {"fp32": 0.9999, "int8": 0.98}
"""Of an exported model's vector with the model's own, for every picture and caption."""
LARGEST_DIFFERENCE = 1e-3
"""Of an exported scorer's logit from the scorer's own."""


@dataclass(frozen=True)
class Samples:
    """Pictures and as many captions, one of each picture's own."""

    pictures: list[Image.Image]
    captions: list[str]
    source: str
    """Where they come from, in words."""


@dataclass(frozen=True)
class Vectors:
    """Of the pictures and of the captions of samples."""

    images_ID: Tensor
    texts_TD: Tensor


@dataclass(frozen=True)
class Check:
    """How near what was exported comes to the model."""

    what: str
    """fp32 or int8."""
    lowest_cosine: float | None = None
    """Of vectors."""
    largest_difference: float | None = None
    """Of logits."""


def samples_of(data: Path | None, split: str | None = None, num: int = NUM_SAMPLES) -> Samples:
    """The first images of a split (the last where there is none of that name) with their first captions; without `data`, scenes."""
    if data is None:
        described = list(islice(describe_scenes(0, "test", 1), num))
        pictures = [draw_scene(one.scene) for one in described]
        return Samples(pictures, [one.statements[0].text for one in described], f"{num} pictures of the built-in corpus")
    index = read_corpus_json(data)
    names = list(index["splits"])
    corpus = Corpus.open(data, split if split is not None and split in names else names[-1])
    count = min(num, corpus.num_images)
    if not count:
        raise CorpusError(f"{data} has no image in {corpus.split}", hint="name another corpus with --data")
    captions = [corpus.captions[corpus.captions_of(image)[0]] for image in range(count)]
    return Samples(corpus.images(range(count)), captions, f"{count} images of {index['name']}, split {corpus.split}")


def vectors_of(model: DualEncoder, samples: Samples) -> Vectors:
    """The vectors of samples by the model itself."""
    device = next(iter(model.parameters())).device
    with torch.no_grad():
        images = model.embed_images(model.preprocess.images(samples.pictures).to(device))
        texts = model.embed_texts(model.preprocess.texts(samples.captions).to(device))
    return Vectors(images.cpu(), texts.cpu())


def compare_vectors(what: str, found: Vectors, wanted: Vectors, *, hint: str) -> Check:
    """The lowest cosine of a found vector with the wanted one; ModelError where it is below what is asked of `what`."""
    pairs = ((found.images_ID, wanted.images_ID), (found.texts_TD, wanted.texts_TD))
    # One minimum over all: Python's would pass over a nan.
    lowest = float(torch.cat([functional.cosine_similarity(ours.float(), theirs.float()) for ours, theirs in pairs]).min())
    if not lowest >= LOWEST_COSINE[what]:
        found_words = f"the exported {what} model's vectors have a cosine of {lowest:.5f} with the model's own"
        raise ModelError(f"{found_words}, at least {LOWEST_COSINE[what]} is wanted", hint=hint)
    return Check(what, lowest_cosine=lowest)


def compare_logits(found: Tensor, wanted: Tensor, *, hint: str) -> Check:
    """The largest difference of a found logit from the wanted one; ModelError where it is more than rounding."""
    difference = float((found - wanted).abs().max())
    if not difference <= LARGEST_DIFFERENCE:
        found_words = f"the exported model's scores differ from the model's own by {difference:.1e}"
        raise ModelError(f"{found_words}, at most {LARGEST_DIFFERENCE:.0e} is wanted", hint=hint)
    return Check("fp32", largest_difference=difference)


def checks_in_words(checks: Sequence[Check]) -> str:
    """What was found, in a few words.

    >>> checks_in_words([Check("fp32", lowest_cosine=1.0), Check("int8", lowest_cosine=0.99512)])
    'fp32 cosine at least 1.00000, int8 cosine at least 0.99512'
    """
    return ", ".join(
        f"{one.what} cosine at least {one.lowest_cosine:.5f}"
        if one.lowest_cosine is not None
        else f"{one.what} scores at most {one.largest_difference:.1e} apart"
        for one in checks
    )
