"""The two towers of a dual encoder: the parts that a training changes, how deep a parameter lies, and layers that are
left out.

A tower is an image or a text encoder: embeddings, then layers, then final norms or a head. Its projection maps the
pooled output to the joint space.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from dcdctl.core.errors import ModelError

if TYPE_CHECKING:  # transformers takes seconds
    from transformers import PreTrainedConfig

ParameterName = str


@dataclass(frozen=True, kw_only=True)
class TrainedParts:
    """The parts of a dual encoder that a training changes; the logit scale and bias always belong to them."""

    which: Literal["all", "last-layers", "projections", "lora"] = "all"
    """last-layers: the last `num_layers` of each tower, with what follows them. projections: only these. lora: low-rank
    adapters of all linear layers of both towers, and the projections."""
    num_layers: int = 0
    rank: int = 8
    """lora: inner dimension r of an adapter."""
    alpha: int = 16
    """lora: an adapter adds alpha / r times B A to a weight."""
    seed: int = 0
    """lora: seed of the first weights of A; B starts at 0."""


@dataclass(frozen=True)
class Tower:
    """An encoder in a model."""

    side: Literal["image", "text"]
    name: str
    """Dotted name of the encoder in the model."""
    module: Any
    projection: str = ""
    """Dotted name of the projection in the model, a module or a parameter, if it lies inside the encoder (SigLIP's
    texts)."""
    layers_name: str = ""
    """Dotted name of the layers in the encoder; empty for its outermost ModuleList."""

    @property
    def layers(self) -> tuple[str, nn.ModuleList | nn.Sequential]:
        """The dotted name in the model, and the layers, first to last; ModelError for an encoder without a list of
        layers."""
        if self.layers_name:
            return f"{self.name}.{self.layers_name}", self.module.get_submodule(self.layers_name)
        # The outermost list: layers may hold lists of their own.
        for name, module in self.module.named_modules():
            if isinstance(module, nn.ModuleList) and len(module):
                return f"{self.name}.{name}", module
        raise ModelError(
            f"the {self.side} encoder ({self.module.config.model_type}) has no list of layers",
            hint="set model.trained to all",
        )

    def contains(self, parameter: ParameterName) -> bool:
        """Whether a parameter belongs to the encoder, and not to a projection."""
        if self.projection and f"{parameter}.".startswith(f"{self.projection}."):
            return False
        # By its parameters and not by its name: the texts of a CLIP of open_clip have no module of their own.
        return parameter in self._parameters

    @cached_property
    def _parameters(self) -> frozenset[ParameterName]:
        return frozenset(name for name, _ in self.module.named_parameters(prefix=self.name))

    def depth_of(self, parameter: ParameterName) -> int:
        """Distance of one of its parameters from the top: 0 behind the layers, 1 in the last layer, N + 1 before the N
        layers."""
        prefix, layers = self.layers
        if parameter.startswith(f"{prefix}."):
            return len(layers) - int(parameter.removeprefix(f"{prefix}.").partition(".")[0])
        # Modules are registered in the order in which they compute: embeddings, layers, final norms.
        for name, _ in self.module.named_parameters(prefix=self.name):
            if name == parameter:
                return len(layers) + 1
            if name.startswith(f"{prefix}."):
                break
        return 0


def depth_of(towers: Sequence[Tower], parameter: ParameterName) -> int:
    """Distance of a parameter from the top of its tower; 0 for projections, logit scale and calibration."""
    return next((tower.depth_of(parameter) for tower in towers if tower.contains(parameter)), 0)


def freeze_others(model: nn.Module, towers: Sequence[Tower], parts: TrainedParts) -> None:
    """Let only these parts of a model be trained. ModelError if a tower has fewer layers than `parts` names."""
    if parts.which == "last-layers":
        for tower in towers:
            if parts.num_layers > (num_layers := len(tower.layers[1])):
                raise ModelError(
                    f"model.trained_layers is {parts.num_layers}, and the {tower.side} encoder has {num_layers} layers"
                )
    for name, parameter in model.named_parameters():
        is_trained = parts.which == "all" or not any(tower.contains(name) for tower in towers)
        if parts.which == "last-layers":
            is_trained = depth_of(towers, name) <= parts.num_layers
        # PEFT names the two factors of an adapter lora_A and lora_B.
        parameter.requires_grad_(is_trained or (parts.which == "lora" and ".lora_" in name))


def set_depthwise_in_float32(network: nn.Module) -> None:
    """Let a CPU compute the training of depthwise convolutions in float32, also under autocast.

    No fast kernel computes the gradients of 5 x 5 filters in bfloat16: they take 5 to 20 times as long as those in
    float32.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and 1 < module.groups == module.in_channels and module.weight.requires_grad:
            # Not a subclass: some of timm's convolutions are one already.
            module.forward = partial(_training_in_float32, type(module).forward, module)  # type: ignore[method-assign]


def _training_in_float32(forward: Callable[[nn.Conv2d, Tensor], Tensor], module: nn.Conv2d, images: Tensor) -> Tensor:
    if images.device.type != "cpu" or not torch.is_grad_enabled():
        return forward(module, images)
    with torch.autocast("cpu", enabled=False):
        return forward(module, images.float())


def restore_eval_mode(network: nn.Module) -> None:
    """Undo `Module.train` where it would change outputs that may be stored.

    Modules whose parameters are all frozen apply no dropout. BatchNorms keep their trained statistics also where they
    are trained: those of a batch would depend on the size of a micro-batch.
    """
    for module in network.modules():
        trained = [parameter.requires_grad for parameter in module.parameters()]
        # The common base of all BatchNorm classes, SyncBatchNorm included; torch has no public name for it.
        if isinstance(module, nn.modules.batchnorm._BatchNorm) or (trained and not any(trained)):
            module.eval()


def keep_layers(tower: Tower, kept: Sequence[int], config: PreTrainedConfig) -> None:
    """Remove all other layers of a tower, and give their number to its configurations; `config` is the one that is
    saved.

    ModelError for layers that the tower lacks, and for one whose layers differ in their form.
    """
    prefix, layers = tower.layers
    configs = [config, *(module.config for module in tower.module.modules() if hasattr(module, "config"))]
    field = "model.vision_layers" if tower.side == "image" else "model.text_layers"
    # Swin and similar encoders have stages of several depths, EfficientNet blocks of several forms.
    has_stages = hasattr(config, "depths") or hasattr(config, "num_block_repeats")
    if has_stages or getattr(config, "num_hidden_layers", None) != len(layers):
        problem = (
            f"{field} chooses layers, and those of the {tower.side} encoder ({tower.module.config.model_type}) "
            "differ in their form"
        )
        raise ModelError(problem, hint=f"leave {field} out")
    if kept and not 0 <= kept[0] <= kept[-1] < len(layers):
        raise ModelError(f"{field} is {list(kept)}, and the {tower.side} encoder has layers 0 to {len(layers) - 1}")
    parent, _, name = prefix.removeprefix(f"{tower.name}.").rpartition(".")
    setattr(tower.module.get_submodule(parent), name, nn.ModuleList(layers[index] for index in kept))
    for each in configs:
        each.num_hidden_layers = len(kept)
