"""Tiny random folders of CLIP-like models and of encoders alone, saved by transformers, as `model.vision` and
`model.text` name them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModel

from dcdctl.core.models.preprocess import square_image_processor

SIDE = 32
_SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
_VISION = {**_SMALL, "image_size": SIDE, "patch_size": 8}
_ROWS = 90
_TEXT = {
    **_SMALL,
    "vocab_size": _ROWS,
    "max_position_embeddings": 32,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "pad_token_id": 0,
}
_WIDE = {"hidden_size": 64, "num_hidden_layers": 1}
_SIGLIP_TEXT = {**_TEXT, "projection_size": 16}
_EFFICIENT = {"image_size": SIDE, "width_coefficient": 0.1, "depth_coefficient": 0.1, "hidden_dim": 16}
_PATCHES = {**_SMALL, "patch_size": 8, "num_patches": 16}
_T5 = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0}

BOTH: dict[str, tuple[str, dict[str, Any]]] = {
    "clip": ("CLIPConfig", {"vision_config": _VISION, "text_config": _TEXT, "projection_dim": 8}),
    "siglip": ("SiglipConfig", {"vision_config": _VISION, "text_config": _SIGLIP_TEXT}),
    "siglip2": ("Siglip2Config", {"vision_config": _PATCHES, "text_config": _SIGLIP_TEXT}),
    "metaclip_2": ("MetaClip2Config", {"vision_config": _VISION, "text_config": _TEXT, "projection_dim": 8}),
    "chinese_clip": ("ChineseCLIPConfig", {"vision_config": _VISION, "text_config": _TEXT, "projection_dim": 8}),
    "align": ("AlignConfig", {"vision_config": _EFFICIENT, "text_config": _TEXT, "projection_dim": 16}),
    "blip": (
        "BlipConfig",
        {"vision_config": _VISION, "text_config": {**_TEXT, "encoder_hidden_size": 16}, "projection_dim": 8},
    ),
    "bridgetower": (
        "BridgeTowerConfig",
        {"vision_config": {**_VISION, **_WIDE}, "text_config": {**_TEXT, **_WIDE}, "hidden_size": 64},
    ),
}
"""Models of two sides: name, configuration class and settings."""
VISION: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("ViTConfig", _VISION),
    "dinov2": ("Dinov2Config", _VISION),
    "convnext": ("ConvNextConfig", {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "image_size": SIDE}),
    "clip_vision_model": ("CLIPVisionConfig", _VISION),
    "siglip_vision_model": ("SiglipVisionConfig", _VISION),
}
TEXT: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertConfig", _TEXT),
    "roberta": ("RobertaConfig", _TEXT),
    "distilbert": ("DistilBertConfig", {"dim": 16, "hidden_dim": 16, "n_layers": 1, "n_heads": 2, "vocab_size": _ROWS}),
    "clip_text_model": ("CLIPTextConfig", _TEXT),
    "siglip_text_model": ("SiglipTextConfig", _SIGLIP_TEXT),
    "t5": ("T5Config", {**_T5, "vocab_size": _ROWS}),
    "t5 encoder": ("T5Config", {**_T5, "vocab_size": _ROWS}),
}
_CLASSES = {"siglip_text_model": "SiglipTextModel", "t5 encoder": "T5EncoderModel"}


def save_all(tokenizer: Any, root: Path) -> None:
    """A folder of each name, with weights, this tokenizer and an image processor."""
    for name, (config_class, settings) in {**BOTH, **VISION, **TEXT}.items():
        folder, config = root / name, getattr(transformers, config_class)(**settings)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            model = getattr(transformers, _CLASSES[name])(config) if name in _CLASSES else AutoModel.from_config(config)
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        square_image_processor(SIDE).save_pretrained(folder)
