"""Tiny encoders of many families as model folders, and co-attention scorers over them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModel,
    BertConfig,
    CLIPConfig,
    CLIPImageProcessorPil,
    DistilBertConfig,
    ResNetConfig,
    SwinConfig,
    TimmWrapperConfig,
    ViTConfig,
)

from dcdctl.core import models
from dcdctl.core.models.preprocess import square_image_processor

SIDE = 32
_SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
_TIMM = {
    "input_size": [3, SIDE, SIDE],
    "crop_pct": 0.9,
    "interpolation": "bicubic",
    "mean": [0.4] * 3,
    "std": [0.3] * 3,
}
VISION: dict[str, Any] = {
    "tokens": ViTConfig(image_size=SIDE, patch_size=8, **_SMALL),
    "map": ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic"),
    "windows": SwinConfig(image_size=SIDE, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=4),
    "timm map": TimmWrapperConfig(architecture="test_resnet", num_labels=0, pretrained_cfg=_TIMM),
    "timm tokens": TimmWrapperConfig(
        architecture="test_vit", num_labels=0, model_args={"img_size": SIDE}, pretrained_cfg=_TIMM
    ),
    "clip": CLIPConfig(
        vision_config={**_SMALL, "image_size": SIDE, "patch_size": 8},
        text_config={**_SMALL, "vocab_size": 99, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1},
        projection_dim=8,
    ),
}
"""Encoders with and without a class token, with maps whose channels come first, and the vision side of a dual
encoder."""
TEXT: dict[str, Any] = {
    "bert": lambda size: BertConfig(vocab_size=size, max_position_embeddings=48, **_SMALL),
    "distilbert": lambda size: DistilBertConfig(
        vocab_size=size, max_position_embeddings=48, dim=16, hidden_dim=16, n_layers=1, n_heads=2
    ),
}


def save_vision(kind: str, folder: Path) -> str:
    """A vision encoder with random weights, and its image processor."""
    config = VISION[kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        AutoModel.from_config(config).save_pretrained(folder)
    if kind == "clip":
        CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}).save_pretrained(
            folder
        )
    elif not kind.startswith("timm"):
        square_image_processor(SIDE).save_pretrained(folder)
    else:
        (folder / "preprocessor_config.json").write_text('{"image_processor_type": "TimmWrapperImageProcessor"}')
    return str(folder)


def save_text(kind: str, captions: list[str], folder: Path) -> str:
    """A text encoder with random weights, and a tokenizer that has learned these captions."""
    tokenizer = models.word_piece(captions, 120)
    tokenizer.save_pretrained(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        AutoModel.from_config(TEXT[kind](len(tokenizer))).save_pretrained(folder)
    return str(folder)


def make_pair(
    captions: list[str], folder: Path, vision: str = "tokens", text: str = "bert", **size: Any
) -> models.CoAttentionScorer:
    """A scorer over two such encoders, its weights wide enough that scores differ."""
    refs = save_vision(vision, folder / "vision"), save_text(text, captions, folder / "text")
    scorer = models.new_coattention(
        *refs, models.FusionSize(**{"hidden_size": 24, "num_layers": 3, "num_heads": 3, **size})
    )
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in scorer.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
        scorer.network.rank_output.weight.mul_(10)
    return scorer
