"""The one training loop: for teachers and students, fusion and dual.

`train` knows nothing of losses or models: it asks a data set for the batch of a step, `gradients` for the gradient of an objective, and
whoever is interested is told what came of it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from dcdctl.core import distributed
from dcdctl.core.devices import ON_CPU, Compute
from dcdctl.core.errors import ConfigError
from dcdctl.core.progress import Watch, silent, watched_by
from dcdctl.core.training import grad_cache, loggers, runs
from dcdctl.core.training.batch import Slicing
from dcdctl.core.training.grad_cache import Computing, Moment, Objective, SlicedObjective
from dcdctl.core.training.loggers import WandbLog
from dcdctl.core.training.recipe import OptimizerConfig
from dcdctl.core.training.runs import Run
from dcdctl.core.training.validation import Validation

LOG_EVERY = 10


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """Where and how to run; nothing here is meant to change a number beyond rounding."""

    compute: Compute = ON_CPU
    slices: int = 1
    """Parts in which a process computes its share of a batch, one after the other, for less memory. Dropout is drawn for each of them."""
    checkpoint_activations: bool = False
    """Keep what goes into a layer, and compute the rest again for the gradient: less memory, more time."""
    wandb: str | None = None
    """Project at Weights & Biases that is told what is logged."""

    @property
    def slicing(self) -> Slicing:
        """All slices of a batch, and those of this process."""
        first = distributed.rank() * self.slices
        return Slicing(distributed.world_size() * self.slices, range(first, first + self.slices))


UNWATCHED = watched_by(silent)


def train(
    run: Run,
    model: nn.Module,
    steps: Dataset[Any],
    objective: Objective | SlicedObjective,
    config: OptimizerConfig,
    *,
    num_steps: int,
    seed: int,
    until: int | None = None,
    options: TrainingOptions = TrainingOptions(),
    validation: Validation | None = None,
    watch: Watch = UNWATCHED,
) -> None:
    """Train a model in place for `num_steps`, from the run's newest checkpoint on, and log and keep checkpoints in its folder.

    With `until` it stops before that step, with a checkpoint, to be gone on with: by other batches, for instance. Of several processes
    one logs and keeps; all have the trained model.
    """
    compute = options.compute
    model.to(compute.device).train()
    _check_slices(model, objective, options)
    optimizer = make_optimizer(model, config)
    scaler = torch.amp.GradScaler(compute.device.type, enabled=compute.precision == "float16")
    how = Computing(compute=compute, scaler=scaler, slicing=options.slicing)
    first = runs.load_checkpoint(run, model, optimizer, scaler)
    distributed.check_equal(first, "the step they go on from")
    distributed.send_weights(model)
    sampler = range(first, num_steps if until is None else until)
    is_cuda = compute.device.type == "cuda"
    loader = DataLoader(steps, batch_size=None, sampler=sampler, num_workers=compute.workers, pin_memory=is_cuda)
    with _logs(run, first, options) as log, watch(total=num_steps, done=first) as tell:
        for step, batch in enumerate(loader, start=first):
            started = time.perf_counter()
            rate = config.lr * learning_rate_factor(step, num_steps, config)
            optimizer.zero_grad(set_to_none=True)
            moment = Moment(step=step, num_steps=num_steps, seed=seed)
            values = {**grad_cache.backward(model, objective, batch, moment, how), "lr": rate}
            _descend(model, optimizer, scaler, rate, config.max_grad_norm)
            values["seconds"] = time.perf_counter() - started
            done = step + 1
            if validation is not None and validation.is_due(done, num_steps):
                values |= validation.measure(model, done)
                model.train()
            if step % LOG_EVERY == 0 or done == num_steps or "val_rsum" in values:
                log(step, values)
            if (done % config.save_every == 0 or done == until) and done < num_steps and distributed.is_main():
                runs.save_checkpoint(run, done, model, optimizer, scaler)
            tell(done, values)
    model.eval()


def _check_slices(model: nn.Module, objective: Objective | SlicedObjective, options: TrainingOptions) -> None:
    """ConfigError where slices would not be equal to the whole."""
    if options.slicing.count == 1:
        return
    hint = "leave --accumulate out and start one process"
    if not isinstance(objective, SlicedObjective):
        raise ConfigError("this training computes a batch as a whole", hint=hint)
    norms = [name for name, module in model.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training]
    if norms:
        raise ConfigError(f"{norms[0]} is a BatchNorm: its output would depend on how a batch is sliced", hint=hint)


@contextmanager
def _logs(run: Run, first_step: int, options: TrainingOptions) -> Iterator[loggers.Write]:
    """Writes what is logged to all who keep it; in one of several processes."""
    with ExitStack() as stack:
        kept: list[loggers.Log | WandbLog] = []
        if distributed.is_main():
            kept.append(stack.enter_context(closing(loggers.Log(run, first_step))))
            if options.wandb is not None:
                kept.append(stack.enter_context(closing(WandbLog(run, options.wandb))))

        def write(step: int, values: Mapping[str, float]) -> None:
            for log in kept:
                log.write(step, values)

        yield write


def _descend(
    model: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, rate: float, max_grad_norm: float | None
) -> None:
    """Move the weights against their gradient, cut to a norm where one is set."""
    set_rates(optimizer, rate)
    if max_grad_norm is not None:
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
    scaler.step(optimizer)
    scaler.update()


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
