"""The gradient of a batch's loss, in however many slices and processes it is computed.

The loss is one function of all outputs of a batch: each query's weight depends on the others, and each is a negative of the others. So the
outputs are computed slice by slice without a graph, the loss is taken once, and its gradient with respect to the outputs is pulled back
through each slice, computed again with a graph (Gao et al. 2021, arXiv 2101.06983). Several processes compute some slices each, put their
outputs together, take the same loss, and add up their gradients.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from dcdctl.core import distributed
from dcdctl.core.devices import Compute
from dcdctl.core.errors import ConfigError
from dcdctl.core.models import Pairs
from dcdctl.core.training.batch import Batch, Place, Slice, Slicing

Objective = Callable[[Any, Any], dict[str, Tensor]]
"""Model and batch to the weighted parts of the loss; their sum is minimised."""


@runtime_checkable
class SlicedObjective(Protocol):
    """An objective in two halves: what a model makes of each slice, and the loss of all that."""

    def outputs(self, model: Any, pairs: Pairs) -> tuple[Tensor, ...]:
        """float32 tensors, as many as a slice has places, with a row for each of what stands there."""
        ...

    def loss(self, model: Any, outputs: Sequence[Tensor], batch: Batch, progress: float) -> dict[str, Tensor]:
        """The weighted parts of the loss; `progress` is the share of the training that is done."""
        ...


@dataclass(frozen=True, kw_only=True)
class Moment:
    """A step of a training."""

    step: int
    num_steps: int
    seed: int

    @property
    def progress(self) -> float:
        """The share of the training that is done, from 0 up to but not 1."""
        return self.step / self.num_steps

    def seed_dropout(self, part: int | None = None) -> None:
        """Dropout depends on the seed, the step and the number of the slice alone, not on who computes it, or for which time."""
        number = self.seed * 1_000_003 + self.step
        # For every kind of accelerator that is not in use, torch.manual_seed writes down who has called it: half a millisecond.
        set_seed = torch.manual_seed if torch.accelerator.is_available() else torch.default_generator.manual_seed
        set_seed(number if part is None else (number * 65_537 + part + 1) % 2**63)


@dataclass(frozen=True, kw_only=True)
class Computing:
    """Where and in which parts a gradient is computed."""

    compute: Compute
    scaler: torch.amp.GradScaler
    slicing: Slicing


def backward(model: nn.Module, objective: Objective | SlicedObjective, batch: Any, moment: Moment, how: Computing) -> dict[str, float]:
    """Give the parameters the gradient of a batch's loss, times the scale of `how.scaler`; the loss and its parts by name.

    ConfigError if the loss is not finite, with the weights as they were.
    """
    if how.slicing.count > 1:
        assert isinstance(objective, SlicedObjective)
        return _backward_in_slices(model, objective, batch, moment, how)
    moment.seed_dropout()
    whole = batch.to(how.compute.device)
    with how.compute.autocast():
        if isinstance(objective, SlicedObjective):
            parts = objective.loss(model, objective.outputs(model, whole), whole, moment.progress)
        else:
            parts = objective(model, whole)
    loss, values = _checked(parts, moment.step)
    how.scaler.scale(loss).backward()
    return values


def _backward_in_slices(model: nn.Module, objective: SlicedObjective, batch: Batch, moment: Moment, how: Computing) -> dict[str, float]:
    numbered = list(zip(how.slicing.own, batch.slices, strict=True))

    def outputs(number: int, part: Slice) -> tuple[Tensor, ...]:
        moment.seed_dropout(number)
        with how.compute.autocast():
            return objective.outputs(model, part.to(how.compute.device))

    with torch.no_grad():
        early = [outputs(*one) for one in numbered[:-1]]
    # The last slice keeps its graph and is computed once.
    last = outputs(*numbered[-1])
    leaves = _gathered([*early, last], batch.slices)
    whole = batch.to(how.compute.device)
    with how.compute.autocast():
        parts = objective.loss(model, leaves, whole, moment.progress)
    loss, values = _checked(parts, moment.step)
    # Parameters that the loss itself reads, such as the logits' scale, have their gradient from one process.
    how.scaler.scale(loss).backward(inputs=None if distributed.is_main() else leaves)
    _pull_back(last, leaves, batch.slices[-1].places)
    del last
    for number, part in numbered[:-1]:
        _pull_back(outputs(number, part), leaves, part.places)
    distributed.sum_gradients(model.parameters())
    return values


def _gathered(own: Sequence[tuple[Tensor, ...]], slices: Sequence[Slice]) -> list[Tensor]:
    """The outputs of all slices of all processes, row by row, as leaves that take a gradient."""
    leaves = []
    for number, parts in enumerate(zip(*own, strict=True)):
        places = [part.places[number] for part in slices]
        rows = parts[0].new_zeros(places[0].total, *parts[0].shape[1:])
        for place, output in zip(places, parts, strict=True):
            rows[place.start : place.stop] = output.detach()[: place.stop - place.start]
        leaves.append(distributed.total(rows).requires_grad_())
    return leaves


def _pull_back(outputs: Sequence[Tensor], leaves: Sequence[Tensor], places: Sequence[Place]) -> None:
    """Add a slice's share of the gradient to the parameters."""
    reached = [
        (output[: place.stop - place.start], leaf.grad[place.start : place.stop])
        for output, leaf, place in zip(outputs, leaves, places, strict=True)
        if leaf.grad is not None and output.requires_grad
    ]
    torch.autograd.backward([output for output, _ in reached], [gradient for _, gradient in reached])


def _checked(parts: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, float]]:
    """The loss, and it and its parts as numbers; ConfigError if it is not finite."""
    loss = torch.stack(list(parts.values())).sum()
    # One wait for the device, not one a number.
    values = dict(zip(["loss", *parts], torch.stack([loss, *parts.values()]).tolist(), strict=True))
    if not math.isfinite(values["loss"]):
        bad = ", ".join(f"{name} {values[name]}" for name in parts)
        hint = "try a lower optimizer.lr or set optimizer.max_grad_norm"
        raise ConfigError(f"the loss of step {step} is {values['loss']} ({bad})", hint=hint)
    return loss, values
