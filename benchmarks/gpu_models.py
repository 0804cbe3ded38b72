"""The models of benchmarks/gpu.py: random weights, of the sizes of the papers (`full`) or tiny (`toy`)."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPVisionConfig, RobertaConfig

from dcdctl.core import models
from dcdctl.core.models.families.coattention import CoAttentionNetwork
from dcdctl.core.models.preprocess import Preprocess, square_image_processor

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))
HEAD_FACTOR = 30
NO_DROPOUT = {"hidden_dropout_prob": 0.0}
"""The CPU and a GPU would draw other numbers."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """Sizes of the models and of the work."""

    width: int
    layers: int
    heads: int
    side_px: int
    patch_px: int
    fusion_layers: int
    token_dim: int
    images: int
    """Of the train split; the test split has half as many."""
    pairs: int
    """Pairs whose scores are compared."""
    batch: int
    steps: int
    lr: float
    """Of all students: the first steps must move the loss."""
    batch_sizes: tuple[int, ...]
    maxsim: str
    """Images x tokens x texts x tokens x numbers of a token."""
    queries: int
    vlm_pairs: tuple[int, int]
    """Images, and captions of each."""
    vlm: dict[str, Any]
    """Of `vlm.save_reranker`."""
    is_toy: bool = False


SIZES = {
    "toy": Size(
        width=16, layers=2, heads=2, side_px=32, patch_px=16, fusion_layers=2, token_dim=8,
        images=16, pairs=24, batch=4, steps=4, lr=1e-2, batch_sizes=(8,), maxsim="6x5x7x4x8", queries=4,
        vlm_pairs=(2, 3), vlm={}, is_toy=True,
    ),
    "full": Size(
        width=768, layers=12, heads=12, side_px=384, patch_px=32, fusion_layers=6, token_dim=128,
        images=512, pairs=512, batch=16, steps=60, lr=1e-4, batch_sizes=(64, 256, 1024, 4096),
        maxsim="500x196x500x32x128", queries=200, vlm_pairs=(4, 32),
        # The widths of Qwen3-VL-2B in 8 of its 28 and 24 layers; 256 tokens of an image.
        vlm={
            "text": {"hidden_size": 2048, "intermediate_size": 6144, "num_attention_heads": 16,
            "num_key_value_heads": 8, "num_hidden_layers": 8},
            "vision": {"hidden_size": 1024, "intermediate_size": 4096, "num_heads": 16, "depth": 8,
            "deepstack_visual_indexes": [0]},
            "head_dim": 128, "spread": 1.5, "pixels": (512 * 512, 1280 * 1024), "patch_size": 16, "vocab_size": 2000,
        },
    ),
}  # fmt: skip


def shape(size: Size) -> dict[str, Any]:
    """Of a transformer of transformers."""
    return {"hidden_size": size.width, "num_attention_heads": size.heads, "intermediate_size": 4 * size.width}


def make_vilt(folder: Path, captions: list[str], size: Size) -> None:
    """ViLT-B/32 at full size."""
    config = models.ViltSize(
        **shape(size),
        **NO_DROPOUT,
        num_hidden_layers=size.layers,
        image_size=size.side_px,
        patch_size=size.patch_px,
    )
    save_widened(models.new_vilt(config, models.word_piece(captions, 200)), folder)


def make_meter(folder: Path, captions: list[str], size: Size) -> None:
    """METER's fusion of 6 layers over a ViT-B/16 and a RoBERTa-base at full size."""
    tokenizer = models.word_piece(captions, 200)
    both = {**shape(size), "num_hidden_layers": size.layers}
    vision = CLIPVisionConfig(**both, image_size=size.side_px, patch_size=size.patch_px // 2)
    text = RobertaConfig(
        **both,
        **NO_DROPOUT,
        attention_probs_dropout_prob=0.0,
        vocab_size=len(tokenizer),
        max_position_embeddings=64,
        type_vocab_size=1,
    )
    fusion = models.FusionSize(hidden_size=size.width, num_layers=size.fusion_layers, num_heads=size.heads, dropout=0.0)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        network = CoAttentionNetwork.from_configs(vision, text, fusion)
    preprocess = Preprocess(tokenizer=tokenizer, image_processor=square_image_processor(size.side_px), max_text_len=40)
    save_widened(models.CoAttentionScorer(network, preprocess), folder)


def save_widened(scorer: Any, folder: Path) -> None:
    """Save a scorer whose scores spread over several units, as those of a trained one do."""
    with torch.no_grad():
        scorer.network.rank_output.weight.mul_(HEAD_FACTOR)
    models.save(scorer, folder)


def make_clip(folder: Path, captions: list[str], size: Size) -> None:
    """CLIP ViT-B/32 at full size."""
    tokenizer = models.word_piece(captions, 200)
    both = {**shape(size), "num_hidden_layers": size.layers}
    ends = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    vision = {**both, "image_size": size.side_px, "patch_size": size.patch_px}
    text = {**both, **ends, "vocab_size": len(tokenizer), "max_position_embeddings": 40}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        network = CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=size.width))
    square = {"size": {"shortest_edge": size.side_px}, "crop_size": {"height": size.side_px, "width": size.side_px}}
    for part in (network, tokenizer, CLIPImageProcessorPil(**square)):
        part.save_pretrained(folder)


def make_late(folder: Path, captions: list[str], size: Size) -> None:
    """Late interaction over the same CLIP."""
    make_clip(folder.with_name("late-clip"), captions, size)
    dual = models.load_dual(folder.with_name("late-clip"))
    models.save(models.new_late(dual, size.token_dim, is_pooled=False), folder)


def make_vlm(folder: Path, captions: list[str], size: Size) -> None:
    """A Qwen3-VL as a cross-encoder of sentence-transformers."""
    from vlm import save_reranker

    save_reranker(folder, captions, **size.vlm)


MAKERS: dict[str, Callable[[Path, list[str], Size], None]] = {
    "vilt": make_vilt,
    "meter": make_meter,
    "clip": make_clip,
    "late": make_late,
    "vlm": make_vlm,
}
