"""What fits into memory, by a trial of the first step: how many micro-batches, and whether bfloat16 is faster.

It computes the gradient of the first batch and discards it, so it changes no number of the training.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import nn

from dcdctl.core import devices, distributed, memory
from dcdctl.core.errors import InputError, is_out_of_memory
from dcdctl.core.progress import Say
from dcdctl.core.training import grad_cache
from dcdctl.core.training.batches.batch import Batch, MicroBatchPlan
from dcdctl.core.training.grad_cache import MicroBatchObjective, StepCompute, StepInfo
from dcdctl.core.training.loop import TrainingOptions
from dcdctl.core.training.runs import Run

TIMED_STEPS = 3
"""Steps whose mean time decides between precisions; the one before them warms up."""
STATES_PER_PARAMETER = 2
"""Numbers that AdamW keeps for a parameter from its first update on."""


@dataclass(frozen=True)
class Trial:
    """The first step of a training."""

    model: nn.Module
    first_batch: Callable[[MicroBatchPlan], Batch]
    batch_size: int
    objective: MicroBatchObjective
    info: StepInfo
    precisions: Sequence[str] = ("float32",)


def recorded(run: Run, options: TrainingOptions) -> TrainingOptions:
    """The options with what the trial of an earlier start of this run chose; unchanged for a new run."""
    if options.is_settled or not (run.folder / "run.json").exists():
        return options
    facts = run.facts()
    if options.tries_precision and (precision := facts["inputs"].get("precision")) is not None:
        options = replace(options, compute=replace(options.compute, precision=precision))
    if options.tries_micro_batches:
        options = replace(options, micro_batches=facts.get("micro_batches", 1))
    return options.settled()


def settle(options: TrainingOptions, trial: Trial, say: Say) -> TrainingOptions:
    """The options with a number of micro-batches that fits into memory, and the faster precision, where these are to be
    tried.

    `say` gets a line for each choice that differs from the default. InputError if not even one row fits. Several
    processes are not tried: one that runs out of memory would leave the others waiting.
    """
    if options.is_settled:
        return options
    if distributed.world_size() > 1:
        if options.compute.device.type != "cpu":
            say(
                "--accumulate auto and --precision auto try nothing in several processes: set them, or a batch is "
                "split by processes only"
            )
        return options.settled()
    trial.model.to(options.compute.device).train()
    tried = [
        _fit(replace(options, compute=replace(options.compute, precision=precision)), trial)
        for precision in trial.precisions
    ]
    fitting = [each for each in tried if isinstance(each, TrainingOptions)]
    if not fitting:
        raise next(each for each in tried if isinstance(each, InputError))
    seconds = [_seconds(each, trial) for each in fitting] if len(fitting) > 1 else [0.0]
    found = fitting[seconds.index(min(seconds))]
    if found.compute.precision != options.compute.precision:
        measured = ", ".join(
            f"{each.compute.precision} {time_s:.3f} s per step" for each, time_s in zip(fitting, seconds, strict=True)
        )
        say(f"--precision auto is {found.compute.precision}" + (f": {measured}" if len(fitting) > 1 else ""))
    if found.micro_batches > options.micro_batches:
        say(
            f"--accumulate auto is {found.micro_batches}: a batch of {trial.batch_size} does not fit into "
            "memory in fewer parts"
        )
    return found.settled()


def precisions(options: TrainingOptions) -> tuple[str, ...]:
    """The precisions to try: that of the options, and bfloat16 on a GPU that computes in it."""
    is_gpu = options.compute.device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return (options.compute.precision, *(["bfloat16"] if options.tries_precision and is_gpu else []))


def _fit(options: TrainingOptions, trial: Trial) -> TrainingOptions | InputError:
    """The options with the smallest number of micro-batches, doubled from that of the options, that fits; what to raise
    if none does."""
    size = trial.batch_size
    while (error := _out_of_memory(options, trial)) is not None:
        if not options.tries_micro_batches or options.micro_batches >= size or not _may_split(trial.model):
            return error
        options = replace(options, micro_batches=min(2 * options.micro_batches, size))
    return options


def _may_split(model: nn.Module) -> bool:
    """Whether micro-batches give the loss of the batch: not with a BatchNorm that is trained."""
    return not any(
        isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training for module in model.modules()
    )


def _out_of_memory(options: TrainingOptions, trial: Trial) -> InputError | None:
    """What to raise if the step does not fit into memory; None if it fits."""
    found = None
    try:
        _compute_beside_states(options, trial)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        found = memory_error(options, trial.batch_size)
    # After the block, which keeps the tensors of the failed step alive through the traceback.
    trial.model.zero_grad(set_to_none=True)
    memory.free_cached_memory()
    return found


def _compute_beside_states(options: TrainingOptions, trial: Trial) -> None:
    """`_compute` with the memory taken that the optimizer takes in the first update and keeps."""
    trained = [parameter for parameter in trial.model.parameters() if parameter.requires_grad]
    states = [torch.empty_like(parameter) for parameter in trained for _ in range(STATES_PER_PARAMETER)]
    _compute(options, trial)
    del states


def _compute(options: TrainingOptions, trial: Trial) -> None:
    """Add the gradient of the first batch to the parameters."""
    plan, device = options.micro_batch_plan, options.compute.device
    compute = StepCompute(
        compute=options.compute, scaler=torch.amp.GradScaler(device.type, enabled=False), micro_batch_plan=plan
    )
    grad_cache.backward(trial.model, trial.objective, trial.first_batch(plan), trial.info, compute)


def _seconds(options: TrainingOptions, trial: Trial) -> float:
    """Mean time of the step, which has been computed before."""
    device = options.compute.device
    times: list[float] = []
    for _ in range(TIMED_STEPS):
        devices.synchronize(device)
        started = time.perf_counter()
        _compute(options, trial)
        devices.synchronize(device)
        times.append(time.perf_counter() - started)
        trial.model.zero_grad(set_to_none=True)
    return sum(times) / len(times)


def memory_error(options: TrainingOptions, batch_size: int) -> InputError:
    """What to raise where a training runs out of memory, with the settings that need less."""
    where = "there is" if options.compute.device.type == "cpu" else "the GPU has"
    count = options.micro_batches
    found = f"{where} too little memory for this training with {count} micro-batch{'es' if count > 1 else ''} per batch"
    # All rows are computed one by one where there are as many micro-batches as rows.
    ways = [f"--accumulate {min(2 * count, batch_size)}"] if count < batch_size else []
    ways += ["--precision bf16"] if options.compute.precision == "float32" else []
    ways += [] if options.checkpoint_activations else ["--checkpoint-activations"]
    return InputError(found, hint=f"try {', '.join(ways)}, or a smaller batch.size")


@contextmanager
def memory_errors(options: TrainingOptions, batch_size: int) -> Iterator[None]:
    """Raise `memory_error` where the block runs out of memory."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise memory_error(options, batch_size) from error
