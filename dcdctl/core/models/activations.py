"""Training in less memory: of a layer only what goes in is kept, and the rest is computed again when its gradient is wanted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, TypeVarTuple

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from dcdctl.core.errors import ModelError

Ts = TypeVarTuple("Ts")
R = TypeVar("R")
ENCODERS = ("vision", "text", "vision_model", "text_model")
"""Where networks over encoders have them."""


def recomputed(module: nn.Module, run: Callable[[*Ts], R], *arguments: *Ts) -> R:
    """What `run` gives. Where `module.recomputes` is set and it is trained, the activations in between are not kept; dropout is the same
    in the second computation."""
    if getattr(module, "recomputes", False) and module.training and torch.is_grad_enabled():
        found: R = checkpoint(run, *arguments, use_reentrant=False)
        return found
    return run(*arguments)


def checkpoint_activations(model: Any) -> None:
    """Let a model's layers compute their activations again; ModelError where no part of it can.

    Fusion layers are ours and always can; encoders of transformers and timm where they say so.
    """
    network = model.network
    is_fusion = hasattr(model, "layers")
    sides = [side for side in (getattr(network, name, None) for name in ENCODERS) if isinstance(side, nn.Module)]
    can = [_enable(side) for side in sides if any(parameter.requires_grad for parameter in side.parameters())]
    network.recomputes = is_fusion
    if not is_fusion and not any(can):
        raise ModelError("the encoders of this model cannot compute activations again", hint="leave --checkpoint-activations out")


def _enable(encoder: Any) -> bool:
    """Whether an encoder computes its activations again from now on."""
    if not getattr(encoder, "supports_gradient_checkpointing", False):
        return False
    if hasattr(encoder, "activation_checkpointing_enable"):
        encoder.activation_checkpointing_enable({"use_reentrant": False})
    else:
        encoder.gradient_checkpointing_enable({"use_reentrant": False})  # its older name
    return True
