"""LoRA adapters (Hu et al., ICLR 2022) in the towers of a dual encoder, by PEFT: W + (alpha / r) B A, where A and B are
trained in place of W."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import nn

from dcdctl.core.errors import ModelError, require_extra
from dcdctl.core.models.model import seeded
from dcdctl.core.models.networks.towers import Tower, TrainedParts

if TYPE_CHECKING:  # an extra
    import peft


def require_peft() -> None:
    """MissingError if the package of the extra is not installed."""
    require_extra("peft", "peft", needed_by="model.trained lora", or_else="set model.trained to last-layers")


def add_adapters(network: nn.Module, towers: Sequence[Tower], parts: TrainedParts) -> peft.LoraModel:
    """Put LoRA adapters into a network (the first part of the towers' names), in place; returns PEFT's view of it,
    which merges them.

    The outputs do not change, because B is 0. ModelError for a tower whose layers hold no linear layers.
    """
    require_peft()
    import peft

    targets = [name for tower in towers for name in linear_layers(tower)]
    config = peft.LoraConfig(r=parts.rank, lora_alpha=parts.alpha, target_modules=targets, lora_dropout=0.0)
    with seeded(parts.seed):
        return peft.LoraModel(network, config, "default")


def linear_layers(tower: Tower) -> list[str]:
    """Dotted names in the network of the linear layers of a tower's layers."""
    prefix, layers = tower.layers
    _, _, path = prefix.partition(".")
    # No subclasses: nn.MultiheadAttention reads the weight of its output projection and never calls it, so an adapter
    # would have no effect there.
    names = [f"{path}.{name}" for name, module in layers.named_modules() if type(module) is nn.Linear]
    if not names:
        problem = (
            f"the layers of the {tower.side} encoder ({tower.module.config.model_type}) hold no linear layers "
            "for LoRA adapters"
        )
        raise ModelError(problem, hint="set model.trained to last-layers")
    return names
