"""The gradient of a batch's loss, computed in any number of micro-batches and processes (GradCache).

The loss is one function of all outputs of a batch: each query's weight depends on the other queries, and each is a
negative of the others. So the outputs of each micro-batch are computed without a graph, the loss is computed once from
all of them, and its gradient with respect to the outputs is backpropagated through each micro-batch, computed again
with a graph (Gao et al. 2021, arXiv 2101.06983). Several processes compute some micro-batches each, gather their
outputs, compute the same loss, and sum their gradients.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dcdctl.core import devices, distributed
from dcdctl.core.engines import ON_CPU, Compute
from dcdctl.core.errors import ConfigError
from dcdctl.core.training.batches.batch import UNSPLIT, Batch, MicroBatch, MicroBatchPlan
from dcdctl.core.training.objective import PairObjective

Objective = Callable[[Any, Any], dict[str, Tensor]]
"""Model and batch to the weighted terms of the loss; their sum is minimized. Only a `PairObjective` has the two halves
that micro-batches need."""


UNSCALED = torch.amp.GradScaler("cpu", enabled=False)


@dataclass(frozen=True, kw_only=True)
class Step:
    """A step of a training, and how its gradient is computed."""

    number: int
    seed: int
    compute: Compute = ON_CPU
    micro_batch_plan: MicroBatchPlan = UNSPLIT
    scaler: torch.amp.GradScaler = UNSCALED

    def seed_dropout(self, micro_batch: int | None = None) -> None:
        """Seed dropout by seed, step and number of the micro-batch alone: the same in every process, and when it is
        computed again."""
        # Factors above any number of steps and of micro-batches keep all seeds distinct.
        number = self.seed * 1_000_003 + self.number
        # torch.manual_seed records its caller for every kind of accelerator that is not in use, which takes half a
        # millisecond.
        set_seed = torch.manual_seed if torch.accelerator.is_available() else torch.default_generator.manual_seed
        set_seed(number if micro_batch is None else (number * 65_537 + micro_batch + 1) % 2**63)


def backward(model: nn.Module, objective: Objective, batch: Any, step: Step) -> dict[str, float]:
    """Add the gradient of a batch's loss, times the scale of the scaler, to the parameters; the loss and its terms by
    name.

    The losses of a mixed batch are added. ConfigError if the loss is not finite; the weights are then unchanged.
    """
    if not isinstance(objective, PairObjective):
        return _backward_whole(model, objective, batch, step)
    values: dict[str, float] = {}
    for prefix, part, of_part in objective.parts(batch):
        backward_part = _backward_in_micro_batches if step.micro_batch_plan.count > 1 else _backward_whole
        terms = backward_part(model, part, of_part, step)
        loss = values.get("loss", 0.0) + terms.pop("loss")
        values |= {"loss": loss, **{f"{prefix}{name}": value for name, value in terms.items()}}
    if step.micro_batch_plan.count > 1:
        # A sum, not the mean of DistributedDataParallel: the loss already covers the whole batch.
        distributed.sum_gradients(model.parameters())
    return values


def _backward_whole(model: nn.Module, objective: Objective, batch: Any, step: Step) -> dict[str, float]:
    step.seed_dropout()
    batch = batch.to(step.compute.device)
    with step.compute.forward_pass():
        terms = objective(model, batch)
    loss, read_values = _loss_of(terms)
    step.scaler.scale(loss).backward()
    return _finite(read_values(), step.number)


def _backward_in_micro_batches(model: Any, objective: PairObjective, batch: Batch, step: Step) -> dict[str, float]:
    *earlier, last = zip(step.micro_batch_plan.local, batch.micro_batches, strict=True)

    def outputs(number: int, micro_batch: MicroBatch) -> tuple[Tensor, ...]:
        step.seed_dropout(number)
        with step.compute.forward_pass():
            return model.outputs(micro_batch.to(step.compute.device))

    with torch.no_grad():
        earlier_outputs = [outputs(*numbered) for numbered in earlier]
    # The last micro-batch keeps its graph, so that it is computed only once.
    last_outputs = outputs(*last)
    leaves = _gather_outputs([*earlier_outputs, last_outputs], batch.micro_batches)
    batch_on_device = batch.to(step.compute.device)
    with step.compute.forward_pass():
        terms = objective.loss(model, leaves, batch_on_device)
    loss, read_values = _loss_of(terms)
    # Parameters that the loss itself reads, such as the logit scale, get their gradient from one process.
    step.scaler.scale(loss).backward(inputs=None if distributed.is_main() else leaves)
    _backprop_micro_batch(last_outputs, leaves, last[1].row_ranges)
    del last_outputs
    for number, micro_batch in earlier:
        _backprop_micro_batch(outputs(number, micro_batch), leaves, micro_batch.row_ranges)
    return _finite(read_values(), step.number)


def _gather_outputs(local: Sequence[tuple[Tensor, ...]], micro_batches: Sequence[MicroBatch]) -> list[Tensor]:
    """The outputs of all micro-batches of all processes, row by row, as leaves that accumulate a gradient."""
    leaves = []
    for number, first in enumerate(local[0]):
        # Late interaction has two outputs of each side.
        side = number % len(micro_batches[0].totals)
        rows = first.new_zeros(micro_batches[0].totals[side], *first.shape[1:])
        for micro_batch, outputs in zip(micro_batches, local, strict=True):
            row_range = micro_batch.row_ranges[side]
            # Detached: the gradient of the loss stops at the leaves, and each micro-batch propagates its share later.
            rows[row_range.start : row_range.stop] = outputs[number].detach()[: len(row_range)]
        # Rows of other processes are zeros here, so the sum over processes holds every row once.
        leaves.append(distributed.all_sum(rows).requires_grad_())
    return leaves


def _backprop_micro_batch(outputs: Sequence[Tensor], leaves: Sequence[Tensor], row_ranges: Sequence[range]) -> None:
    """Add a micro-batch's share of the gradient to the parameters."""
    differentiable, gradients = [], []
    for number, (output, leaf) in enumerate(zip(outputs, leaves, strict=True)):
        # Late interaction has two outputs of each side.
        row_range = row_ranges[number % len(row_ranges)]
        if leaf.grad is not None and output.requires_grad:
            differentiable.append(output[: len(row_range)])
            gradients.append(leaf.grad[row_range.start : row_range.stop])
    torch.autograd.backward(differentiable, gradients)


def _loss_of(terms: dict[str, Tensor]) -> tuple[Tensor, Callable[[], dict[str, float]]]:
    """The loss, and a function that reads its value and those of its terms, to be called after the backward pass.

    A GPU computes the backward pass while the program waits for these numbers; read before it, they would leave the GPU
    without work.
    """
    loss = torch.stack(list(terms.values())).sum()
    read = devices.read_later(torch.stack([loss, *terms.values()]))

    def read_values() -> dict[str, float]:
        return dict(zip(["loss", *terms], read(), strict=True))

    return loss, read_values


def _finite(values: dict[str, float], step: int) -> dict[str, float]:
    """The values themselves; ConfigError if the loss is not finite, and the gradient is not to be used."""
    if not math.isfinite(values["loss"]):
        listed = ", ".join(f"{name} {value}" for name, value in values.items() if name != "loss")
        raise ConfigError(
            f"the loss of step {step} is {values['loss']} ({listed})",
            hint="try a lower optimizer.lr or set optimizer.max_grad_norm",
        )
    return values
