"""A tiny model of each family as its own library saves it, and the logits that this library computes from the same
folder.

tests/cli/test_every_family.py runs every command on each; the table of docs/models.md is made from the same list.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from byte_level import byte_level_bpe
from duals import DUALS, save_dual, save_sentence_transformer
from encoders import make_pair
from families import FAMILIES, frozen_dual, with_noise
from open_clips import save_open_clip
from paths import FIXTURES
from PIL import Image
from plain_scores import plain_score
from tiny import make_teacher
from torch import Tensor
from torch.nn import functional
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoTokenizer,
    Blip2ForImageTextRetrieval,
    BlipForImageTextRetrieval,
    BridgeTowerForImageAndTextRetrieval,
    ViltForImageAndTextRetrieval,
)
from vlm import save_colqwen2, save_multi_vector, save_reranker

from dcdctl.core import models

Logits = Callable[[str, Sequence[Image.Image], list[str]], Tensor]
"""The logits of a reference for all pairs of images and captions, I x T, without dcdctl's way of scoring many pairs."""


@dataclass(frozen=True)
class OwnVectors:
    """What a library computes with a dual encoder."""

    images_ID: Tensor
    texts_TD: Tensor
    scale: float | Tensor = 1.0
    bias: float | Tensor = 0.0

    @property
    def logits_IT(self) -> Tensor:
        return self.scale * self.images_ID @ self.texts_TD.T + self.bias


Vectors = Callable[[str, Sequence[Image.Image], list[str]], OwnVectors]
FORWARD, PREDICT, PLAIN = (
    "transformers' own forward pass",
    "`CrossEncoder.predict`",
    "its own plain forward pass, pair by pair",
)
OWN_MODULE = "scorer_of_a_user"
OWN_SOURCE = """
import numpy as np

def score(images, texts):
    return [float(np.asarray(image)[:16].mean()) * (len(text) % 7 + 1) / 50 for image, text in zip(images, texts)]
"""


@dataclass(frozen=True)
class Origin:
    """Where a model of a family comes from."""

    model_type: str
    """As in `family_table.FAMILIES`; the form of the reference where that is no folder of a family."""
    kind: str
    saved_by: str
    save: Callable[[list[str], Path], str]
    """Writes a tiny model with a tokenizer for the captions into a folder, and returns its reference."""
    logits: Logits | None
    """None for a dual encoder, which has `vectors`."""
    equal_to: str
    """What `logits` or `vectors` calls, for the table of docs/models.md."""
    recipe: str = ""
    """The recipe of dcdctl for a student of fewer layers; empty if there is none."""
    layers: tuple[int, ...] = (0, 2)
    """The layers of that student."""
    settings: Callable[[list[str], Path], list[str]] | None = None
    """official .ckpt: the settings that `dcdctl convert` requires; the other commands read the converted folder."""
    vectors: Vectors | None = None
    """The vectors of a dual encoder."""
    has_dropout: bool = False
    """Whether the configuration of a dual encoder has dropout, which a training leaves on."""


def _spread(name: str, captions: list[str]) -> Any:
    """A model of families.py whose logits spread over several units, so that rounding does not change their order."""
    model = with_noise(FAMILIES[name](captions, Path()))
    if model.kind == "fusion":
        with torch.no_grad():
            model.network.get_submodule(model.head).weight.mul_(4)
    return model


def _save_parts(make: Callable[[list[str]], Any], captions: list[str], folder: Path) -> str:
    """What transformers writes, without the files of dcdctl."""
    model = make(captions)
    for part in (model.network, model.preprocess.image_processor, model.preprocess.tokenizer):
        part.save_pretrained(folder)
    return str(folder)


def _save_own(make: Callable[[list[str], Path], Any], captions: list[str], folder: Path) -> str:
    models.save(with_noise(make(captions, folder / "parts")), folder / "model")
    return str(folder / "model")


def _save_source(captions: list[str], folder: Path) -> str:
    folder.mkdir()
    (folder / f"{OWN_MODULE}.py").write_text(OWN_SOURCE)
    return f"{OWN_MODULE}:score"


def _inputs(
    ref: str, images: Sequence[Image.Image], texts: list[str], **padding: Any
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    pixels = AutoImageProcessor.from_pretrained(ref, backend="pil")(images=list(images), return_tensors="pt")
    words = AutoTokenizer.from_pretrained(ref)(texts, return_tensors="pt", **(padding or {"padding": True}))
    return dict(pixels), dict(words)


@torch.no_grad()
def _pair_logits(
    network_class: Any, field: str, options: dict[str, bool], ref: str, images: Sequence[Image.Image], texts: list[str]
) -> Tensor:
    """By a network of transformers that scores pairs: the row of a match minus that of no match, or its only row."""
    network = network_class.from_pretrained(ref).eval()
    if network_class is ViltForImageAndTextRetrieval:
        # The layers of the official code have two constants, a configuration of transformers has one.
        network.vilt.embeddings.text_embeddings.LayerNorm.eps = 1e-12
    pixels, words = _inputs(ref, images, texts)
    logits = []
    for image in range(len(images)):
        repeated = {
            name: value[image : image + 1].expand(len(texts), *value.shape[1:]) for name, value in pixels.items()
        }
        rows = getattr(network(**repeated, **words, **options), field)
        logits.append(rows[:, 1] - rows[:, 0] if rows.shape[1] == 2 else rows[:, 0])
    return torch.stack(logits)


@torch.no_grad()
def _features(ref: str, images: Sequence[Image.Image], texts: list[str]) -> OwnVectors:
    """By the features of a dual encoder of transformers."""
    network = AutoModel.from_pretrained(ref).eval()
    is_siglip = network.config.model_type.startswith("siglip")
    # SigLIP was trained on captions of full length, without a mask.
    padding = {
        "padding": "max_length",
        "max_length": network.config.text_config.max_position_embeddings,
        "truncation": True,
    }
    pixels, words = _inputs(ref, images, texts, **(padding if is_siglip else {}))
    if is_siglip:
        del words["attention_mask"]
    images_ID = functional.normalize(network.get_image_features(**pixels).pooler_output, dim=-1)
    texts_TD = functional.normalize(network.get_text_features(**words).pooler_output, dim=-1)
    scale = 1 / network.temperature if hasattr(network, "temperature") else network.logit_scale.exp()
    return OwnVectors(images_ID, texts_TD, scale.detach(), getattr(network, "logit_bias", torch.zeros(())).detach())


@torch.no_grad()
def _open_clip_vectors(ref: str, images: Sequence[Image.Image], texts: list[str]) -> OwnVectors:
    """By the vectors of open_clip."""
    network, transform = open_clip.create_model_from_pretrained(f"local-dir:{ref}")
    network.eval()  # its BatchNorms
    images_ID = network.encode_image(torch.stack([transform(image) for image in images]), normalize=True)
    texts_TD = network.encode_text(open_clip.get_tokenizer(f"local-dir:{ref}")(texts), normalize=True)
    bias = 0.0 if network.logit_bias is None else network.logit_bias.detach()
    return OwnVectors(images_ID, texts_TD, network.logit_scale.exp(), bias)


def _encoded(ref: str, images: Sequence[Image.Image], texts: list[str]) -> OwnVectors:
    from sentence_transformers import SentenceTransformer

    encoder = SentenceTransformer(ref, device="cpu")
    vectors = encoder.encode_document(list(images)), encoder.encode_query(texts)
    return OwnVectors(*(functional.normalize(torch.from_numpy(each), dim=-1) for each in vectors))


def _predicted(ref: str, images: Sequence[Image.Image], texts: list[str]) -> Tensor:
    from sentence_transformers import CrossEncoder

    pairs = [(image, text) for image in images for text in texts]
    options = {"activation_fn": torch.nn.Identity(), "convert_to_tensor": True, "show_progress_bar": False}
    return CrossEncoder(ref, device="cpu").predict(pairs, **options).view(len(images), len(texts))


@torch.no_grad()
def _plain_logits(ref: str, images: Sequence[Image.Image], texts: list[str]) -> Tensor:
    """By the plain forward pass of a model of dcdctl's own format; tests/models compares that with the official
    code."""
    model = models.load_scorer(ref)
    pixels, words = model.preprocess.images(images), model.preprocess.texts(texts)
    rows = []
    for image in torch.arange(len(images))[:, None].expand(-1, len(texts)):
        area = None if pixels.pixel_mask is None else pixels.pixel_mask[image]
        rows.append(plain_score(model, pixels.pixel_values[image], words.input_ids, words.attention_mask, area))
    return torch.stack(rows)


@torch.no_grad()
def _plain_vectors(ref: str, images: Sequence[Image.Image], texts: list[str]) -> OwnVectors:
    """By a dual encoder of dcdctl's own format."""
    model = models.load_dual(ref)
    vectors = model.embed_images(model.preprocess.images(images)), model.embed_texts(model.preprocess.texts(texts))
    return OwnVectors(*vectors, model.logit_scale)


def _token_logits(ref: str, images: Sequence[Image.Image], texts: list[str]) -> Tensor:
    from sentence_transformers import MultiVectorEncoder

    encoder = MultiVectorEncoder(ref, device="cpu")
    return encoder.similarity(encoder.encode_query(texts), encoder.encode_document(list(images))).T


def _source_logits(ref: str, images: Sequence[Image.Image], texts: list[str]) -> Tensor:
    """The formula of the source, once more."""
    means = np.array([np.asarray(image)[:16].mean() for image in images])
    return torch.tensor(means[:, None] * (np.array([len(text) for text in texts]) % 7 + 1) / 50)


def _matching(
    make: Callable[[list[str]], Any], network_class: Any, field: str, recipe: str = "", **options: bool
) -> Origin:
    model_type, logits = network_class.config_class.model_type, partial(_pair_logits, network_class, field, options)
    return Origin(model_type, "fusion", "transformers", partial(_save_parts, make), logits, FORWARD, recipe)


def _official(fixture: str, kind: str, recipe: str, settings: Sequence[str] = ()) -> Origin:
    def tokenizer(captions: list[str], folder: Path) -> list[str]:
        byte_level_bpe(captions, 60).save_pretrained(folder / "bpe")
        return [word for each in (f"tokenizer={folder / 'bpe'}", *settings) for word in ("--model-set", each)]

    def save(captions: list[str], folder: Path) -> str:
        return str(FIXTURES / fixture)

    return Origin(
        kind, "fusion", "the official code", save, _plain_logits, PLAIN, recipe, layers=(1,), settings=tokenizer
    )


def _clip_kind(kind: str, model_type: str) -> Origin:
    def save(captions: list[str], folder: Path) -> str:
        return str(save_dual(kind, captions, folder, num_layers=1))

    return _dual(model_type, "transformers", save, _features, FORWARD)


def _dual(
    model_type: str, saved_by: str, save: Callable[[list[str], Path], str], vectors: Vectors, equal_to: str
) -> Origin:
    has_dropout = model_type in WITH_DROPOUT
    return Origin(model_type, "dual", saved_by, save, None, equal_to, vectors=vectors, has_dropout=has_dropout)


def _frozen(captions: list[str], folder: Path) -> Any:
    return frozen_dual(captions, folder, "map")


def _save_cross_encoder(captions: list[str], folder: Path) -> str:
    return str(save_reranker(folder, captions))


def _save_open_clip(captions: list[str], folder: Path) -> str:
    return str(save_open_clip("open_clip SigLIP", captions, folder, num_layers=1))


def _save_sentences(captions: list[str], folder: Path) -> str:
    return str(save_sentence_transformer(captions, folder, with_dense=True))


WITH_DROPOUT = ("vision-text-dual-encoder", "dcdctl-encoder-dual", "chinese_clip", "align")
DUAL_TYPES = ("clip", "metaclip_2", "siglip", "siglip2", "chinese_clip", "align")
ORIGINS: dict[str, Origin] = {
    "ViLT": _matching(make_teacher, ViltForImageAndTextRetrieval, "logits", "vilt-flickr30k"),
    "BLIP": _matching(partial(_spread, "BLIP"), BlipForImageTextRetrieval, "itm_score", "blip-itm", use_itm_head=True),
    "BLIP-2": _matching(
        partial(_spread, "BLIP-2"), Blip2ForImageTextRetrieval, "logits_per_image", use_image_text_matching_head=True
    ),
    "BridgeTower": _matching(
        partial(_spread, "BridgeTower"), BridgeTowerForImageAndTextRetrieval, "logits", "bridgetower"
    ),
    "co-attention": Origin(
        "dcdctl-co-attention", "fusion", "dcdctl", partial(_save_own, make_pair), _plain_logits, PLAIN
    ),
    "METER .ckpt": _official("meter_tiny_a.ckpt", "METER .ckpt", "meter-flickr30k", ["text.num_attention_heads=3"]),
    "ViLT .ckpt": _official("vilt_tiny_a.ckpt", "ViLT .ckpt", "vilt-flickr30k"),
    "CrossEncoder": Origin("CrossEncoder", "fusion", "sentence-transformers", _save_cross_encoder, _predicted, PREDICT),
    "late": Origin(
        "dcdctl-late", "late", "dcdctl", partial(_save_own, lambda *made: FAMILIES["late"](*made)), _plain_logits, PLAIN
    ),
    **{
        name: Origin(name, "late", saved_by, save, _token_logits, "`MultiVectorEncoder.similarity`")
        for name, saved_by, save in (
            ("colqwen2", "transformers", lambda captions, folder: str(save_colqwen2(folder, captions))),
            (
                "MultiVectorEncoder",
                "sentence-transformers",
                lambda captions, folder: str(save_multi_vector(folder, captions)),
            ),
        )
    },
    "own scorer": Origin(
        "module:function", "fusion", "its author", _save_source, _source_logits, "the function's numbers"
    ),
    "dual": _dual(
        "vision-text-dual-encoder", "transformers", partial(_save_parts, partial(_spread, "dual")), _features, FORWARD
    ),
    "frozen dual": _dual("dcdctl-encoder-dual", "dcdctl", partial(_save_own, _frozen), _plain_vectors, PLAIN),
    **{kind: _clip_kind(kind, model_type) for kind, model_type in zip(DUALS, DUAL_TYPES, strict=True)},
    "open_clip": _dual("open_clip", "open_clip", _save_open_clip, _open_clip_vectors, "open_clip's own vectors"),
    "SentenceTransformer": _dual(
        "SentenceTransformer",
        "sentence-transformers",
        _save_sentences,
        _encoded,
        "`encode_document` and `encode_query`",
    ),
}
"""By name; tests/cli/test_every_family.py runs each."""
