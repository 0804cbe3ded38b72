"""The one training loop: for teachers and students, fusion and dual.

`train` depends on no loss and no model: a data set gives the batch of a step, `grad_cache` the gradient of an
objective, and the step's numbers go to the logs and the watcher.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Iterable
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from dcdctl.core import distributed
from dcdctl.core.devices import read_ahead
from dcdctl.core.engines import ON_CPU, Compute
from dcdctl.core.errors import ConfigError, InputError
from dcdctl.core.progress import Watch, silent, step_bar
from dcdctl.core.training import checkpoints, grad_cache, loggers
from dcdctl.core.training.batches.batch import MicroBatchPlan
from dcdctl.core.training.batches.stream import StreamBatches
from dcdctl.core.training.grad_cache import Objective, Step
from dcdctl.core.training.objective import PairObjective
from dcdctl.core.training.recipe import OptimizerConfig
from dcdctl.core.training.runs import METRICS_FILE, RESTORE_METRICS, Run
from dcdctl.core.training.validation import Validation

LOG_EVERY = 10
"""Steps between lines of metrics.jsonl."""


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """Where and how to train. None of it changes a number beyond rounding, except the precision and dropout in
    micro-batches."""

    compute: Compute = ON_CPU
    micro_batches: int = 1
    """Micro-batches that each process splits its share of a batch into, to save memory. Each draws its own dropout."""
    tries_micro_batches: bool = False
    """Whether a trial of the first step may double `micro_batches` until a batch fits into memory (`memory.settle`)."""
    tries_precision: bool = False
    """Whether it may replace the precision by bfloat16, if a step is faster in it."""
    checkpoint_activations: bool = False
    """Store only the inputs of each layer and compute the layer again for the gradient: less memory, more time."""
    wandb: str | None = None
    """Weights & Biases project that also receives the logged numbers."""

    def __post_init__(self) -> None:
        if not isinstance(self.micro_batches, int) or self.micro_batches < 1:
            raise ConfigError(
                f"a batch cannot be split into {self.micro_batches} micro-batches",
                hint="expected a number of at least 1",
            )

    @property
    def is_settled(self) -> bool:
        """Whether there is nothing to try."""
        return not (self.tries_micro_batches or self.tries_precision)

    def settled(self) -> TrainingOptions:
        """These options with nothing left to try."""
        return replace(self, tries_micro_batches=False, tries_precision=False)

    @property
    def micro_batch_plan(self) -> MicroBatchPlan:
        """The number of micro-batches of a batch, and which ones this process computes."""
        first = distributed.rank() * self.micro_batches
        return MicroBatchPlan(distributed.world_size() * self.micro_batches, range(first, first + self.micro_batches))


def _check_log(run: Run, steps: Iterable[int]) -> None:
    """InputError if the log has lost the line of one of these steps, which were logged before the checkpoint. It may
    have been deleted as a whole, and then begins later."""
    logged = {line["step"] for line in run.metrics()}
    missing = [step for step in steps if step not in logged and step >= min(logged, default=0)]
    if missing and (run.folder / METRICS_FILE).exists():
        raise InputError(f"{run.folder / METRICS_FILE} has lost the line of step {missing[0]}", hint=RESTORE_METRICS)


EPS = 1e-8
"""Adam's eps in the released code."""
UNWATCHED = step_bar(silent)


def train(
    run: Run,
    learner: Learner,
    batches: Dataset[Any] | StreamBatches,
    validation: Validation | None = None,
    watch: Watch = UNWATCHED,
) -> None:
    """Train the learner's model to the end, resuming from the run's newest checkpoint, and write logs and checkpoints
    to its folder.

    If there are several processes, the main one writes logs and checkpoints; all of them have the trained model.
    """
    model, num_steps, options = learner.model, learner.num_steps, learner.options
    first = learner.resume(run)
    _check_log(run, [i for i in range(first) if i % LOG_EVERY == 0 or (validation and validation.is_due(i + 1))])
    # A stream reads itself: its batches follow from each other.
    read = batches.read if isinstance(batches, StreamBatches) else functools.partial(read_ahead, batches)
    ahead = read(
        range(first, num_steps), options.compute.workers or 0, pin_memory=options.compute.device.type == "cuda"
    )
    # A run that resumes has logged the recalls of its start.
    at_start: dict[str, float] = {}
    if first == 0 and validation is not None and validation.at_start:
        at_start = validation.measure(model, 0)
        # `measure` leaves the model in evaluation mode.
        model.train()
    with loggers.open_logs(run, first, options.wandb) as log, watch(total=num_steps, done=first) as on_step:
        for step, batch in enumerate(ahead, start=first):
            values = learner.step(batch, step)
            done = step + 1
            is_validated = False
            if validation is not None and (validation.is_due(done) or done == num_steps):
                is_validated = True
                values |= validation.measure(model, done)
                model.train()
            if step % LOG_EVERY == 0 or done == num_steps or is_validated:
                log(step, values if step else {**values, **at_start})
            if validation is not None and validation.is_over:
                on_step(done, values)
                break
            # Not after the last step: the model itself is saved next.
            if done % learner.config.save_every == 0 and done < num_steps and distributed.is_main():
                checkpoints.save_checkpoint(run, done, model, learner.optimizer, learner.scaler)
            on_step(done, values)
    model.eval()


@dataclass
class Learner:
    """A model in training, with its optimizer and its loss scale: what a step changes, and what a checkpoint holds."""

    model: nn.Module
    objective: Objective
    config: OptimizerConfig
    _: KW_ONLY
    num_steps: int
    seed: int
    options: TrainingOptions

    def __post_init__(self) -> None:
        compute = self.options.compute
        # Before the optimizer is made, which keeps the parameters that it is given.
        self.model.to(compute.device).train()
        _check_micro_batches(self.objective, self.options)
        self.optimizer = make_optimizer(self.model, self.config)
        # Only small float16 gradients underflow; bfloat16 has the exponents of float32.
        self.scaler = torch.amp.GradScaler(compute.device.type, enabled=compute.precision == "float16")

    def resume(self, run: Run) -> int:
        """The first step to compute, 0 if the run has no checkpoint to load; all processes then have the same
        weights."""
        first = checkpoints.load_checkpoint(run, self.model, self.optimizer, self.scaler)
        distributed.check_equal(first, "the step that they resume from")
        distributed.broadcast_weights(self.model)
        return first

    def step(self, batch: Any, number: int) -> dict[str, float]:
        """One update of the weights; the loss, its terms, the learning rate and the time by name."""
        started = time.perf_counter()
        rate = self.config.lr * learning_rate_factor(number, self.num_steps, self.config)
        self.optimizer.zero_grad(set_to_none=True)
        step = Step(
            number=number,
            seed=self.seed,
            compute=self.options.compute,
            micro_batch_plan=self.options.micro_batch_plan,
            scaler=self.scaler,
        )
        logged = self.objective.logged(batch) if isinstance(self.objective, PairObjective) else {}
        values = {**grad_cache.backward(self.model, self.objective, batch, step), **logged, "lr": rate}
        set_rates(self.optimizer, rate, self._next_update(number))
        if self.config.max_grad_norm is not None:
            # Before clipping: the recipe's norm is for gradients without the loss scale.
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        values["seconds"] = time.perf_counter() - started
        return values

    def _next_update(self, step: int) -> int:
        """Number of the update that a step makes, counted from 1 as the optimizer does it."""
        if not self.scaler.is_enabled():
            return step + 1
        # A scaler skips the steps whose gradient overflows, and only the optimizer counts without them. Its counter
        # lies on the device: reading it waits for the device, so it is read only where the number of the step is not
        # enough.
        return 1 + next((int(state["step"]) for state in self.optimizer.state.values()), 0)


def _check_micro_batches(objective: Objective, options: TrainingOptions) -> None:
    """ConfigError if the batches of an objective cannot be split, and the options split them."""
    if options.micro_batch_plan.count > 1 and not isinstance(objective, PairObjective):
        raise ConfigError(
            "this training cannot split a batch into micro-batches", hint="leave --accumulate out and start one process"
        )


def learning_rate_factor(step: int, num_steps: int, config: OptimizerConfig) -> float:
    """Share of the full learning rate at step s of N, counted from 0, with W warm-up steps.

    s/W, then (N-s)/(N-W) for `linear`, as in the released code, or half a cosine from 1 to 0 for `cosine`.
    """
    # Rounded down, and the first step has rate 0, as in the released code.
    warmup = int(config.warmup_share * num_steps)
    if step < warmup:
        return step / warmup
    remaining = (num_steps - step) / max(1, num_steps - warmup)
    return remaining if config.schedule == "linear" else 0.5 * (1 - math.cos(math.pi * remaining))


def make_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; no weight decay on biases, LayerNorms and other vectors.

    Each group carries `lr_factor`, a factor of the learning rate, and `decay`, from which `set_rates` sets the rates of
    a step. The factor is that of `lr_factors`. ConfigError if a part in `lr_factors` has no parameters.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    used_parts = set()
    for name, parameter in model.named_parameters():
        parts = [part for part in config.lr_factors if part in name.split(".")]
        used_parts.update(parts)
        if parameter.requires_grad:
            factor = config.lr_factors[parts[0]] if parts else 1.0
            groups.setdefault((factor, config.weight_decay if parameter.ndim > 1 else 0.0), []).append(parameter)
    if unused := config.lr_factors.keys() - used_parts:
        raise ConfigError(
            f"optimizer.lr_factors.{min(unused)} is no part of the model",
            hint="parts are components of dotted parameter names",
        )
    options = []
    for (factor, decay), parameters in groups.items():
        options.append({"params": parameters, "decay": decay, "lr_factor": factor})
    beta_1, beta_2 = config.betas
    # `set_rates` sets the decay and eps of every step.
    return torch.optim.AdamW(options, lr=config.lr, betas=(beta_1, beta_2), eps=EPS, weight_decay=0.0, fused=True)


def set_rates(optimizer: torch.optim.Optimizer, rate: float, update: int) -> None:
    """Set the learning rates, weight decays and eps of a step in the groups of `make_optimizer`; its update is counted
    from 1.

    With these values torch's AdamW computes the update of the released code, the AdamW of transformers 4.6, which
    differs in two places:

    - It decays a weight after the update, p <- (1 - a w) (p - a u); torch decays it before the update, p <- (1 - a w)
      p - a u. The rate a (1 - a w) and the decay w / (1 - a w) make them equal.
    - Its eps is added before the correction of the second moment's bias: u = (m / c_1) sqrt(c_2) / (sqrt(v) + eps),
      where c_i is 1 - beta_i^t at update t. torch adds it after: u = (m / c_1) / (sqrt(v / c_2) + eps). The eps of eps
      / sqrt(c_2) makes them equal.
    """
    for group in optimizer.param_groups:
        # From the constant and not from the group, which holds the eps of the step before, also after a resume.
        group["eps"] = EPS / math.sqrt(1 - group["betas"][1] ** update)
        group_rate = rate * group["lr_factor"]
        undecayed = 1 - group_rate * group["decay"]
        group.update(lr=group_rate * undecayed, weight_decay=group["decay"] / undecayed)
