"""A vector for each image and each caption of a corpus, from a model that gives some: what makes candidates near.

Shape letters: I images, T texts, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from transformers import AutoConfig, AutoModel

from dcdctl.core import models
from dcdctl.core.data import Corpus
from dcdctl.core.errors import ModelError
from dcdctl.core.models import DualEncoder, Preprocess, hub_errors, load_image_processor, load_tokenizer, num_text_positions
from dcdctl.core.progress import Track, silent
from dcdctl.core.scoring.features import Features, Source

BATCH = 64
MAX_TEXT_LEN = 64
OURS = ("vision-text-dual-encoder",)


@dataclass(frozen=True)
class Vectors:
    """Unit vectors of a corpus."""

    images_ID: Tensor
    texts_TD: Tensor


@dataclass(frozen=True)
class Embedder:
    """What gives vectors of some length: of captions, and of pictures unless it only reads text."""

    texts: Callable[[Sequence[str]], Tensor]
    images: Callable[[Sequence[Image.Image]], Tensor] | None


def load_embedder(ref: str, device: torch.device) -> Embedder:
    """The embedder of a run folder, a folder or a Hub id: our dual encoders, CLIP-like models, and text encoders, whose caption vector
    is the mean over its tokens. ModelError for anything else."""
    if (Path(ref) / "run.json").exists():
        return of_dual(models.load_dual(ref), device)
    with hub_errors(ref, hint="candidates.model wants a run of a dual encoder, a CLIP-like model or a text encoder"):
        config = AutoConfig.from_pretrained(ref)
        if config.model_type in OURS:
            return of_dual(models.load_dual(ref), device)
        network = AutoModel.from_pretrained(ref, dtype=torch.float32).to(device).eval()
    # SigLIP 2 of variable resolution wants more of a picture than its pixels.
    is_pair = hasattr(network, "get_image_features") and hasattr(network, "get_text_features") and config.model_type != "siglip2"
    if is_pair:
        preprocess = _preprocess(ref, load_image_processor(ref), config.text_config)
        read = _full_length if config.model_type == "siglip" else _inputs
        return Embedder(
            lambda texts: _pooled(network.get_text_features(**read(preprocess, texts, device))),
            lambda pictures: _pooled(network.get_image_features(pixel_values=preprocess.images(pictures).pixel_values.to(device))),
        )
    if hasattr(network, "get_image_features") or network.main_input_name != "input_ids" or config.is_encoder_decoder:
        found = f"{ref} is a {config.model_type} model, whose vectors are not known here"
        raise ModelError(found, hint="name a run of a dual encoder, a CLIP-like or a text model")
    preprocess = _preprocess(ref, None, config)
    return Embedder(lambda texts: _mean(network, _inputs(preprocess, texts, device)), None)


def of_dual(model: DualEncoder, device: torch.device) -> Embedder:
    """The embedder of a dual encoder at hand."""
    model.to(device).eval()
    return Embedder(
        lambda texts: model.embed_texts(model.preprocess.texts(texts).to(device)),
        lambda pictures: model.embed_images(model.preprocess.images(pictures).to(device)),
    )


@torch.inference_mode()
def embed_corpus(embedder: Embedder, corpus: Corpus, track: Track = silent) -> Vectors:
    """The vectors of a corpus; of a text encoder, an image's is the mean over those of its captions."""
    order = sorted(range(corpus.num_captions), key=lambda text: len(corpus.captions[text]))
    with track("embed captions", total=corpus.num_captions, unit="captions") as advance:
        parts = []
        for start in range(0, len(order), BATCH):
            chunk = order[start : start + BATCH]
            parts.append(functional.normalize(embedder.texts([corpus.captions[text] for text in chunk]).float(), dim=-1))
            advance(len(chunk))
    sorted_TD = torch.cat(parts)
    texts_TD = torch.empty_like(sorted_TD).index_copy_(0, torch.tensor(order, device=sorted_TD.device), sorted_TD)
    if embedder.images is None:
        owner_T = torch.from_numpy(corpus.caption_image).to(texts_TD.device)
        sums_ID = texts_TD.new_zeros(corpus.num_images, texts_TD.shape[1]).index_add_(0, owner_T, texts_TD)
        return Vectors(functional.normalize(sums_ID, dim=-1), texts_TD)
    with track("embed images", total=corpus.num_images, unit="images") as advance:
        parts = []
        for start in range(0, corpus.num_images, BATCH):
            images = range(corpus.num_images)[start : start + BATCH]
            parts.append(functional.normalize(embedder.images(corpus.images(images)).float(), dim=-1))
            advance(len(images))
    return Vectors(torch.cat(parts), texts_TD)


def embed_source(ref: str, source: Source, device: torch.device, track: Track = silent) -> Vectors:
    """The vectors of a source's corpus from what a reference names; as `of_model` where that is a run."""
    if (Path(ref) / "run.json").exists():
        return embed_with_model(models.load_dual(ref), source, device, track)
    return embed_corpus(load_embedder(ref, device), source.corpus, track)


def embed_with_model(model: DualEncoder, source: Source, device: torch.device, track: Track = silent) -> Vectors:
    """The vectors of a source's corpus from a dual encoder at hand: without a look at the pictures where the source holds the outputs
    of its encoders."""
    if isinstance(source, Features) and model.encoders is not None and model.encoders.digest == source.plan["encoders"]:
        return _of_features(model, source, device, track)
    return embed_corpus(of_dual(model, device), source.corpus, track)


@torch.inference_mode()
def _of_features(model: DualEncoder, kept: Features, device: torch.device, track: Track) -> Vectors:
    model.to(device).eval()
    num_images, num_texts = kept.corpus.num_images, kept.corpus.num_captions
    with track("embed features", total=num_images + num_texts, unit="items") as advance:

        def all_of(count: int, vectors_of: Callable[[range], Tensor]) -> Tensor:
            parts = []
            for start in range(0, count, BATCH):
                chunk = range(count)[start : start + BATCH]
                parts.append(functional.normalize(vectors_of(chunk).float(), dim=-1))
                advance(len(chunk))
            return torch.cat(parts)

        images_ID = all_of(num_images, lambda chunk: model.embed_images(kept.images(chunk).to(device)))
        return Vectors(images_ID, all_of(num_texts, lambda chunk: model.embed_texts(kept.texts(chunk).to(device))))


def _preprocess(ref: str, image_processor: Any, text_config: Any) -> Preprocess:
    length = min(MAX_TEXT_LEN, num_text_positions(text_config))
    return Preprocess(
        tokenizer=load_tokenizer(ref, "a model's folder needs its tokenizer"), image_processor=image_processor, max_text_len=length
    )


def _inputs(preprocess: Preprocess, texts: Sequence[str], device: torch.device) -> dict[str, Tensor]:
    batch = preprocess.texts(texts).to(device)
    return {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}


def _full_length(preprocess: Preprocess, texts: Sequence[str], device: torch.device) -> dict[str, Tensor]:
    """All captions padded to the full length, without a mask: SigLIP's vector is that of the last place, whatever stands there."""
    length = preprocess.max_text_len
    found = preprocess.tokenizer(list(texts), padding="max_length", truncation=True, max_length=length, return_tensors="pt")
    return {"input_ids": found["input_ids"].to(device)}


def _pooled(found: Any) -> Tensor:
    """The vectors, which transformers wraps from its fifth version on."""
    vectors: Tensor = found if isinstance(found, Tensor) else found.pooler_output
    return vectors


def _mean(network: Any, inputs: dict[str, Tensor]) -> Tensor:
    mask_TL1 = inputs["attention_mask"][..., None]
    summed: Tensor = (network(**inputs).last_hidden_state * mask_TL1).sum(dim=1)
    return summed / mask_TL1.sum(dim=1)
