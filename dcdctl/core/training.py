"""The one training loop: for teachers and students, fusion and dual.

`train` knows nothing of losses or models: it asks a data set for the batch of a step and an objective for the parts of its loss.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from dcdctl.core import runs
from dcdctl.core.errors import ConfigError
from dcdctl.core.progress import Track, silent
from dcdctl.core.recipe import OptimizerConfig
from dcdctl.core.runs import Run

LOG_EVERY = 10
Objective = Callable[[Any, Any], dict[str, Tensor]]
"""Model and batch to the weighted parts of the loss; their sum is minimised."""


class OnDevice(Protocol):
    """A batch that can be moved."""

    def to(self, device: torch.device) -> OnDevice: ...


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """Where and how to run; nothing here is meant to change a number beyond rounding."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    precision: str = "float32"
    workers: int = 0
    """Processes that read and decode batches ahead; 0 does it in this one."""
    features: Path | None = None
    """Where the outputs of frozen encoders are kept, and read from; they are encoded in every step where it is not set."""


def train(
    run: Run,
    model: nn.Module,
    steps: Dataset[Any],
    objective: Objective,
    config: OptimizerConfig,
    *,
    num_steps: int,
    seed: int,
    until: int | None = None,
    options: TrainingOptions = TrainingOptions(),
    track: Track = silent,
) -> None:
    """Train a model in place for `num_steps`, from the run's newest checkpoint on, and log and keep checkpoints in its folder.

    With `until` it stops before that step, with a checkpoint, to be gone on with: by other batches, for instance.
    """
    model.to(options.device).train()
    optimizer = make_optimizer(model, config)
    scaler = torch.amp.GradScaler(options.device.type, enabled=options.precision == "float16")
    first = runs.load_checkpoint(run, model, optimizer, scaler)
    stop = num_steps if until is None else until
    loader = DataLoader(steps, batch_size=None, sampler=range(first, stop), num_workers=options.workers)
    with closing(runs.Log(run, first)) as log, track("train", total=num_steps, unit="steps") as advance:
        advance(first)
        for step, batch in enumerate(loader, start=first):
            started = time.perf_counter()
            # Dropout depends on the seed and the step alone.
            torch.manual_seed(seed * 1_000_003 + step)
            rate = config.lr * learning_rate_factor(step, num_steps, config)
            with torch.autocast(options.device.type, getattr(torch, options.precision), enabled=options.precision != "float32"):
                parts = objective(model, batch.to(options.device))
            loss = _descend(model, parts, optimizer, scaler, rate, config.max_grad_norm, step)
            if step % LOG_EVERY == 0 or step == num_steps - 1:
                values = {name: part.item() for name, part in parts.items()}
                log.write(step, {"loss": loss, **values, "lr": rate, "seconds": time.perf_counter() - started})
            if ((step + 1) % config.save_every == 0 or step + 1 == until) and step + 1 < num_steps:
                runs.save_checkpoint(run, step + 1, model, optimizer, scaler)
            advance(1)
    model.eval()


def _descend(
    model: nn.Module,
    parts: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    rate: float,
    max_grad_norm: float | None,
    step: int,
) -> float:
    """Move the weights against the gradient of the loss; the loss. ConfigError if it is not finite, with the weights as they were."""
    total = torch.stack(list(parts.values())).sum()
    loss = total.item()
    if not math.isfinite(loss):
        bad = ", ".join(f"{name} {part.item()}" for name, part in parts.items())
        raise ConfigError(f"the loss of step {step} is {loss} ({bad})", hint="try a lower optimizer.lr or set optimizer.max_grad_norm")
    set_rates(optimizer, rate)
    optimizer.zero_grad(set_to_none=True)
    scaler.scale(total).backward()
    if max_grad_norm is not None:
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
    scaler.step(optimizer)
    scaler.update()
    return loss


def learning_rate_factor(step: int, num_steps: int, config: OptimizerConfig) -> float:
    """Share of the full rate at a step counted from 0: linear from 0, then linear or cosine to 0. (FACTS: s/W, then (N-s)/(N-W).)"""
    warmup = int(config.warmup_share * num_steps)
    if step < warmup:
        return step / warmup
    left = (num_steps - step) / max(1, num_steps - warmup)
    return left if config.schedule == "linear" else 0.5 * (1 - math.cos(math.pi * left))


def make_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; no weight decay on biases, LayerNorms and other vectors.

    Each group carries `lr_factor`, what the learning rate of a step is multiplied by, and `decay`; `set_rates` makes them those of a step.
    ConfigError for a part that no parameter is in.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    used = set()
    for name, parameter in model.named_parameters():
        parts = [part for part in config.lr_factors if part in name.split(".")]
        used.update(parts)
        if parameter.requires_grad:
            factor = config.lr_factors[parts[0]] if parts else 1.0
            groups.setdefault((factor, config.weight_decay if parameter.ndim > 1 else 0.0), []).append(parameter)
    if unused := config.lr_factors.keys() - used:
        raise ConfigError(
            f"optimizer.lr_factors.{min(unused)} is no part of the model", hint="its parts are in the names of its parameters"
        )
    options = [{"params": found, "decay": decay, "lr_factor": factor} for (factor, decay), found in groups.items()]
    beta_1, beta_2 = config.betas
    return torch.optim.AdamW(options, lr=config.lr, betas=(beta_1, beta_2), weight_decay=0.0, fused=True)


def set_rates(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give the groups of `make_optimizer` the learning rates and weight decays of a step.

    The released AdamW decays a weight after the update, p <- (1 - a w) (p - a u), torch's before it, p <- (1 - a w) p - a u. With the rate
    a (1 - a w) and the decay w / (1 - a w) torch's is the released one.
    """
    for group in optimizer.param_groups:
        group_rate = rate * group["lr_factor"]
        kept = 1 - group_rate * group["decay"]
        group.update(lr=group_rate * kept, weight_decay=group["decay"] / kept)
