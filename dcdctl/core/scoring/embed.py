"""Embeddings of a corpus: a vector for each image and each caption.

Evaluation embeds with the dual encoder it evaluates; hard-negative mining with a run of a dual encoder, a CLIP-like
model or a text encoder. An index embeds images that it reads itself, batch by batch.

Shape letters: I images, T texts, D width of a vector.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoModel

from dcdctl.core import models
from dcdctl.core.data import Corpus
from dcdctl.core.engines import Compute
from dcdctl.core.errors import ModelError
from dcdctl.core.memory import Fitting, in_fitting_parts
from dcdctl.core.models import (
    DualEncoder,
    ImageBatch,
    Preprocess,
    Preprocessor,
    States,
    TextBatch,
    hub_errors,
    load_tokenizer,
    num_text_positions,
)
from dcdctl.core.progress import Advance, Track, silent
from dcdctl.core.scoring.batches import Side, encoded_batches
from dcdctl.core.scoring.features import Features
from dcdctl.core.scoring.sources import CorpusSource, Source

DEFAULT_BATCH_SIZE = 256
"""Captions per forward pass, and images on a GPU, unless the user sets a batch size."""
BATCH_SIZE = 64
"""Images per forward pass on a CPU, which 256 do not make faster: they take 5 GB more at 288 px. Images or captions of
a miner's model; not an option there: mined candidates could depend on its rounding."""
MAX_TEXT_LEN = 64
"""Tokens of a caption that a text encoder reads; fewer if the model has fewer positions."""

Images = ImageBatch | States
"""Pixels, or stored features of frozen encoders."""
Texts = TextBatch | States
B = TypeVar("B", Images, Texts)


@dataclass(frozen=True)
class Vectors:
    """Vectors of images and of captions."""

    images_ID: Tensor
    texts_TD: Tensor


@dataclass(frozen=True, kw_only=True)
class Embedder:
    """A model that embeds batches of captions and, unless it is a text encoder, of images. Its vectors may have any
    length."""

    preprocess: Preprocessor
    network: nn.Module
    """What the two functions run."""
    texts: Callable[[Texts], Tensor]
    images: Callable[[Images], Tensor] | None
    """None for a text encoder."""
    device: torch.device
    logit_scale: float | None = None
    """The logit of two vectors is this times their cosine; None for a text encoder."""


def embed_batch(
    embed: Callable[[B], Tensor], batch: B, compute: Compute, fitting: Fitting | None = None, *, size: int | None = None
) -> Tensor:
    """Float32 vectors of one batch, on the device, at most `size` at a time; a batch that does not fit into memory is
    halved, as are later ones of its `fitting`."""

    def work(part: B) -> Tensor:
        with compute.forward_pass():
            return embed(part.to(compute.device, non_blocking=True)).float()

    return torch.cat([vectors for _, vectors in in_fitting_parts(batch, size or len(batch), work, fitting)])


@dataclass(frozen=True)
class _VectorEncoder:
    """An embedder, and whether its vectors get unit length."""

    embedder: Embedder
    side: Side
    normalize: bool

    @property
    def preprocess(self) -> Preprocessor:
        return self.embedder.preprocess

    def placed(self, compute: Compute) -> Callable[[Any], Tensor]:
        """The vectors of a batch, on the device of the embedder; a batch that does not fit into memory is halved."""
        self.embedder.network.to(compute.device)
        embed: Any = self.embedder.images if self.side == "images" else self.embedder.texts
        fitting = Fitting()

        def encode(batch: Any) -> Tensor:
            vectors = embed_batch(embed, batch, compute, fitting)
            return (functional.normalize(vectors, dim=-1) if self.normalize else vectors).to(self.embedder.device)

        return encode


@torch.inference_mode()
def embed_all(
    embedder: Embedder,
    source: Source,
    compute: Compute,
    *,
    normalize: bool = True,
    by_length: bool = True,
    track: Track = silent,
) -> Vectors:
    """The vectors of all images and captions of a source, in float32; for a text encoder, an image's is the mean over
    its captions.

    Captions of similar length share a batch if `by_length` is set, so that little of it is padding.
    """
    corpus = source.corpus
    if embedder.images is None and corpus.is_pool:
        raise ModelError(
            "a text encoder represents an image by its captions, and the images of a pool have none",
            hint="name a dual encoder with candidates.model",
        )
    order: Sequence[int] = range(corpus.num_captions)
    if by_length:
        order = sorted(order, key=lambda text: len(corpus.captions[text]))
    with track("embed captions", total=corpus.num_captions, unit="captions") as advance:
        batches = _batches(order, compute)
        texts_TD = _embedded(_VectorEncoder(embedder, "captions", normalize), source, batches, compute, advance)
    if embedder.images is None:
        image_T = torch.from_numpy(corpus.caption_image).to(texts_TD.device)
        # The sum has the direction of the mean, and its length is normalized.
        sums_ID = texts_TD.new_zeros(corpus.num_images, texts_TD.shape[1]).index_add_(0, image_T, texts_TD)
        return Vectors(functional.normalize(sums_ID, dim=-1), texts_TD)
    with track("embed images", total=corpus.num_images, unit="images") as advance:
        size = DEFAULT_BATCH_SIZE if compute.device.type == "cuda" else BATCH_SIZE
        batches = _batches(range(corpus.num_images), compute, size)
        images_ID = _embedded(_VectorEncoder(embedder, "images", normalize), source, batches, compute, advance)
    return Vectors(images_ID, texts_TD)


def _embedded(
    encoder: _VectorEncoder, source: Source, batches: Sequence[Sequence[int]], compute: Compute, advance: Advance
) -> Tensor:
    """The vectors of all images or captions of a source, which are read in these batches."""
    vectors_ND: Tensor | None = None
    for batch, vectors in encoded_batches(encoder, source, encoder.side, batches, compute, advance):
        if vectors_ND is None:
            vectors_ND = vectors.new_empty(sum(map(len, batches)), vectors.shape[1])
        vectors_ND[torch.as_tensor(batch, device=vectors.device)] = vectors
    # A folder of images alone has no captions.
    return torch.empty(0, 0) if vectors_ND is None else vectors_ND


def _batches(indices: Sequence[int], compute: Compute, size: int = DEFAULT_BATCH_SIZE) -> list[Sequence[int]]:
    size = compute.batch_size or size
    return [indices[start : start + size] for start in range(0, len(indices), size)]


def embed_corpus(embedder: Embedder, corpus: Corpus, track: Track = silent, compute: Compute | None = None) -> Vectors:
    """The unit vectors of a corpus, for hard-negative mining and for a dual teacher; by the engine of `compute`, or on
    the device of the embedder."""
    compute = (compute or Compute(device=embedder.device)).plain(BATCH_SIZE)
    return embed_all(embedder, CorpusSource(corpus, embedder.preprocess), compute, track=track)


def embed_source(ref: str, source: Source, device: torch.device, track: Track = silent) -> Vectors:
    """The unit vectors of a source's corpus, by the model that a reference names; a run or a model that
    dcdctl saved reads the source's features if it can."""
    if _is_ours(ref):
        return embed_with_model(models.load_dual(ref), source, device, track)
    return embed_corpus(load_embedder(ref, device), source.corpus, track)


def embed_with_model(model: DualEncoder, source: Source, device: torch.device, track: Track = silent) -> Vectors:
    """The unit vectors of a source's corpus by a dual encoder; from the source's features if they come from the model's
    encoders."""
    embedder = dual_embedder(model, device)
    encoders = None if model.encoders is None else model.encoders.digest
    if not isinstance(source, Features) or source.plan["encoders"] != encoders:
        return embed_corpus(embedder, source.corpus, track)
    # A dual encoder reads one token of an image's features; and features are read fastest in the order in which they
    # are stored.
    source = replace(source, only_first=True)
    return embed_all(embedder, source, Compute(device=device, batch_size=BATCH_SIZE), by_length=False, track=track)


def dual_embedder(model: DualEncoder, device: torch.device) -> Embedder:
    """The embedder of a dual encoder, which is put on the device in eval mode."""
    model.to(device).eval()
    return Embedder(
        preprocess=model.preprocess,
        network=model,
        texts=model.embed_texts,
        images=model.embed_images,
        device=device,
        logit_scale=model.logit_scale.item(),
    )


def load_embedder(ref: str, device: torch.device) -> Embedder:
    """The embedder of a run folder, a model folder or a Hub id: a dual encoder, or a text encoder with its own pooling,
    the mean if it has none.

    ModelError for any other model.
    """
    if _is_ours(ref) or models.kind_of(ref) == "dual":
        return dual_embedder(models.load_dual(ref), device)
    with hub_errors(ref, hint="candidates.model requires a dual encoder or a text encoder"):
        source = models.hub_source(ref)
        # False in place of the default, with which transformers asks at a terminal whether to run code.
        config = AutoConfig.from_pretrained(**source, trust_remote_code=False)
        network = AutoModel.from_pretrained(
            **source, config=config, dtype=torch.float32, trust_remote_code=False
        ).eval()
    if hasattr(network, "get_image_features") or network.main_input_name != "input_ids" or config.is_encoder_decoder:
        raise ModelError(
            f"{ref} is a {config.model_type} model, whose vectors are not known here",
            hint="name a dual encoder, such as a CLIP, or a text model",
        )
    pooling = models.text_pooling(ref)
    models.check_finite(network.state_dict(), ref)
    network.to(device)
    preprocess = Preprocess(
        tokenizer=load_tokenizer(ref, "a model's folder needs its tokenizer"),
        image_processor=None,
        max_text_len=min(MAX_TEXT_LEN, num_text_positions(config)),
    )
    return Embedder(
        preprocess=preprocess,
        network=network,
        texts=partial(_pooled, network, pooling=pooling),
        images=None,
        device=device,
    )


def check_embedder(ref: str, *, takes_late: bool) -> None:
    """ModelError, before any weights are opened, if a run or a saved model has no vectors that propose candidates."""
    if _is_ours(ref):
        models.check_ref(ref, kind="searchable" if takes_late else "dual")


def is_late(ref: str) -> bool:
    """Whether a reference is a run or another model of late interaction, which has no vector per image."""
    return (models.check_ref(ref) if _is_ours(ref) else models.kind_of(ref)) == "late"


def _is_ours(ref: str) -> bool:
    """Whether a reference is a run, or a folder that `models.save` wrote, whose type transformers may not know."""
    return any((models.path_of(ref) / name).exists() for name in ("run.json", models.SETTINGS_FILE))


def _pooled(network: Any, batch: Texts, *, pooling: Literal["mean", "cls"]) -> Tensor:
    assert isinstance(batch, TextBatch)
    states_TLD: Tensor = network(input_ids=batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state
    return states_TLD[:, 0] if pooling == "cls" else models.masked_mean(states_TLD, batch.attention_mask)
