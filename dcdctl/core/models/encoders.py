"""Pretrained encoders of transformers and timm as what the fusion reads: a sequence of tokens, the one that stands for the whole first.

Shape letters: I images, V tokens, D width, C channels, h and w places of a feature map.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, TimmWrapperImageProcessor

from dcdctl.core.errors import ModelError
from dcdctl.core.models.checkpoint import check_complete
from dcdctl.core.models.preprocess import load_image_processor, reaching

TIMM = "timm_wrapper"
"""transformers' name for models of timm."""


def load_vision(ref: str) -> nn.Module:
    """The pretrained vision encoder of a folder or Hub id: a backbone, or the vision side of a CLIP-like model."""
    return _load(ref, "vision_config", "pixel_values")


def load_text(ref: str) -> nn.Module:
    """The pretrained text encoder of a folder or Hub id, or the text side of a CLIP-like model."""
    return _load(ref, "text_config", "input_ids")


def _load(ref: str, side: str, wanted: str) -> nn.Module:
    with reaching(ref, hint="name a folder or Hub id of an encoder of transformers or timm"), needing_timm(ref):
        config = AutoConfig.from_pretrained(ref)
        encoder, report = AutoModel.from_pretrained(
            ref, config=getattr(config, side, config), dtype=torch.float32, output_loading_info=True
        )
    check_complete(ref, (name for name in report["missing_keys"] if not name.startswith("pooler.")), "its encoder")
    if encoder.main_input_name != wanted:
        raise ModelError(
            f"{ref} is a {encoder.config.model_type} model and reads {encoder.main_input_name}, wanted one that reads {wanted}"
        )
    loaded: nn.Module = encoder
    return loaded


def load_processor(ref: str, config: Any) -> Any:
    """The image processor of a vision encoder's folder or Hub id; that of a timm model follows from its configuration."""
    if config.model_type != TIMM:
        return load_image_processor(ref)
    with needing_timm(ref):
        return TimmWrapperImageProcessor(pretrained_cfg=config.pretrained_cfg, architecture=config.architecture)


@contextmanager
def needing_timm(what: object) -> Iterator[None]:
    """Turn a missing package into a ModelError that says how it is installed."""
    try:
        yield
    except ImportError as error:
        raise ModelError(f"{what} is a timm model, and timm is not installed", hint="pip install 'dcdctl[timm]'") from error


def drop_pooler(encoder: nn.Module) -> None:
    """Take away a pooler with parameters, which would never have a gradient: only tokens are read."""
    pooler = getattr(encoder, "pooler", None)
    if isinstance(pooler, nn.Module) and any(True for _ in pooler.parameters()):
        encoder.register_module("pooler", None)


def vision_tokens(encoder: Any, pixel_values: Tensor, width: int) -> Tensor:
    """What an encoder makes of images, I x V x D."""
    states = encoder(pixel_values=pixel_values).last_hidden_state
    if encoder.config.model_type == "clip_vision_model":
        # transformers normalizes the class token alone, METER all.
        states = encoder.post_layernorm(states)
    return to_tokens(states, width)


def to_tokens(states: Tensor, width: int) -> Tensor:
    """Tokens as they are; of a feature map, I x C x h x w or I x h x w x C, its places, and before them their mean.

    A square number of tokens is a map as well: encoders with a class token have one more.
    """
    if states.ndim == 4:
        states = states.flatten(2).transpose(1, 2) if states.shape[1] == width else states.flatten(1, 2)
    if math.isqrt(states.shape[1]) ** 2 == states.shape[1]:
        return torch.cat([states.mean(dim=1, keepdim=True), states], dim=1)
    return states


def image_width(encoder: Any) -> int:
    """Width of a vision encoder's tokens, or number of channels of its feature map."""
    config = encoder.config
    if config.model_type == TIMM:
        return int(encoder.timm_model.num_features)
    for name in ("hidden_size", "num_features"):
        width = getattr(config, name, None)
        if width is not None:
            return int(width)
    sizes = getattr(config, "hidden_sizes", None)
    if not sizes:
        raise ModelError(f"a {config.model_type} vision encoder does not say how wide its features are")
    return int(sizes[-1])
