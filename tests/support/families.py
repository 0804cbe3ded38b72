"""Tiny models of every family; a new family adds its builder to `FAMILIES`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from duals import DUALS, save_dual, save_sentence_transformer
from encoders import make_pair, save_text, save_vision
from matching import make_blip, make_blip2, make_bridgetower
from official import load_meter
from open_clips import save_open_clip
from vlm import save_multi_vector, save_reranker

from dcdctl.core import models


def refs(captions: list[str], folder: Path, vision: str) -> tuple[str, str]:
    return save_vision(vision, folder / "vision"), save_text("bert", captions, folder / "text")


def frozen_dual(captions: list[str], folder: Path, vision: str) -> models.FrozenDual:
    return models.new_frozen_dual(
        *refs(captions, folder, vision), models.ProjectionSize(projection_dim=8), max_text_len=12
    )


def with_bias(dual: models.DualEncoder) -> models.DualEncoder:
    dual.start_as_siglip()
    return dual


def from_backbones(captions: list[str], folder: Path, vision: str) -> models.DualEncoder:
    return models.dual_from_backbones(*refs(captions, folder, vision), projection_dim=8)


def with_cosine(captions: list[str], folder: Path, vision: str) -> models.CoAttentionScorer:
    dual = folder / "dual"
    models.save(frozen_dual(captions, folder, vision), dual)
    size = models.FusionSize(hidden_size=24, num_layers=1, num_heads=3)
    return models.new_coattention(
        str(folder / "vision"), str(folder / "text"), size, max_text_len=12, dual_init=str(dual)
    )


def saved_dual(kind: str, captions: list[str], folder: Path) -> models.DualEncoder:
    return models.load_dual(save_dual(kind, captions, folder / kind, num_layers=1))


def saved_open_clip(kind: str, captions: list[str], folder: Path) -> models.DualEncoder:
    return models.load_dual(save_open_clip(kind, captions, folder, num_layers=1))


def late(dual: models.DualEncoder, **options: Any) -> Any:
    model = models.new_late(dual, token_dim=6, **{"is_pooled": True, **options})
    with torch.no_grad():
        # A scale at which the cosine of whole vectors does not drown MaxSim.
        model.tokens.logit_scale.fill_(3.0)
    return model


def late_from(kind: str, captions: list[str], folder: Path) -> Any:
    # Positions where images have one size: a SigLIP 2 has grids of several.
    position_norm = 0.5 if kind in ("CLIP", "frozen dual") else 0.0
    return late(FAMILIES[kind](captions, folder), is_pooled=bool(position_norm), position_norm=position_norm)


DUAL_SIZE = models.DualSize(
    hidden_size=16,
    num_vision_layers=1,
    num_text_layers=1,
    num_attention_heads=2,
    intermediate_size=16,
    projection_dim=8,
)
FAMILIES: dict[str, Any] = {
    "vilt": lambda captions, folder: models.new_vilt(
        models.ViltSize(hidden_size=16, num_attention_heads=2, num_hidden_layers=3, intermediate_size=16),
        models.word_piece(captions, 120),
    ),
    "BLIP": lambda captions, folder: make_blip(captions),
    "BLIP-2": lambda captions, folder: make_blip2(captions),
    "BridgeTower": lambda captions, folder: make_bridgetower(captions, num_encoder_layers=3),
    "co-attention": make_pair,
    "co-attention over CLIP": lambda captions, folder: make_pair(captions, folder, "clip"),
    "dual": lambda captions, folder: models.new_dual(DUAL_SIZE, models.word_piece(captions, 120)),
    "dual of two encoders": lambda captions, folder: from_backbones(captions, folder, "tokens"),
    "dual from CLIP": lambda captions, folder: from_backbones(captions, folder, "clip"),
    "frozen dual": lambda captions, folder: frozen_dual(captions, folder, "map"),
    "frozen dual over CLIP": lambda captions, folder: frozen_dual(captions, folder, "clip"),
    **{kind: partial(saved_dual, kind) for kind in DUALS},
    "late": lambda captions, folder: late(FAMILIES["dual"](captions, folder)),
    **{kind: partial(saved_open_clip, kind) for kind in ("open_clip SigLIP", "open_clip with BERT")},
    **{
        f"late from {kind}": partial(late_from, kind)
        for kind in ("CLIP", "SigLIP 2", "ALIGN", "frozen dual", "open_clip with BERT")
    },
}
READ_ONLY: dict[str, Any] = {
    "CrossEncoder": lambda captions, folder: models.load(save_reranker(folder / "reranker", captions)),
    "SentenceTransformer": lambda captions, folder: models.load(
        save_sentence_transformer(captions, folder, with_dense=True)
    ),
    "MultiVectorEncoder": lambda captions, folder: models.load(save_multi_vector(folder / "vectors", captions)),
}
"""Families that are teachers and re-rankers only, by their name in `family_table.FAMILIES`: they are not trained."""
VARIANTS: dict[str, Any] = {
    **FAMILIES,
    "co-attention over timm": lambda captions, folder: make_pair(captions, folder, "timm map", "distilbert"),
    "co-attention with a cosine": lambda captions, folder: with_cosine(captions, folder, "map"),
    "dual with a bias": lambda captions, folder: with_bias(FAMILIES["dual"](captions, folder)),
    "frozen dual with a bias": lambda captions, folder: with_bias(frozen_dual(captions, folder, "map")),
    "frozen dual over timm": lambda captions, folder: frozen_dual(captions, folder, "timm tokens"),
    "METER": lambda captions, folder: load_meter("meter_tiny_a"),
}
"""All families, and what they treat differently: encoders of timm, added logits, METER's image transform and a
byte-level tokenizer."""


def with_noise(model: Any) -> Any:
    """The model in eval mode, with weights large enough that scores depend on the inputs."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith("calibration."):
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
        for module in model.modules():
            # transformers makes this row of a Chinese-CLIP 0 when it loads one; no real token reads it.
            if isinstance(module, torch.nn.Embedding) and module.padding_idx is not None:
                module.weight[module.padding_idx] = 0
    return model.eval()
