"""What fits into memory, by a trial of the first step: how many micro-batches, and whether bfloat16 is faster.

It computes the gradient of the first batch and discards it, so it changes no number of the training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from dcdctl.core import devices, distributed, machine, memory
from dcdctl.core.errors import InputError, is_out_of_memory
from dcdctl.core.progress import Say
from dcdctl.core.training import grad_cache
from dcdctl.core.training.grad_cache import Step
from dcdctl.core.training.loop import TrainingOptions
from dcdctl.core.training.recipe import ModelConfig
from dcdctl.core.training.training_data import Prepared

TIMED_STEPS = 3
"""Steps whose mean time decides between precisions; the one before them warms up."""
STATES_PER_PARAMETER = 2
"""Numbers that AdamW keeps for a parameter from its first update on."""


BYTES_PER_NUMBER = 4
"""Weights, gradients and the numbers of AdamW are float32."""


def check_weights(config: ModelConfig, device: torch.device) -> None:
    """ConfigError for a new model whose training does not fit into memory, before it is made."""
    # A GPU gets the weights alone from the memory of the machine.
    numbers = 2 + STATES_PER_PARAMETER if device.type == "cpu" else 1
    machine.require_memory(
        BYTES_PER_NUMBER * numbers * config.num_weights,
        "the weights of this model and what trains them",
        "set model.hidden_size, the numbers of layers or model.max_text_len lower",
    )


Trial = Callable[[TrainingOptions], None]
"""Adds the gradient of the first batch to the parameters, computed with these options."""


def recorded(options: TrainingOptions, facts: Mapping[str, Any] | None) -> TrainingOptions:
    """The options with what the trial of an earlier start of the run chose (run.json); unchanged for a new run."""
    if options.is_settled or facts is None:
        return options
    if options.tries_precision and (precision := facts["inputs"].get("precision")) is not None:
        options = replace(options, compute=replace(options.compute, precision=precision))
    if options.tries_micro_batches:
        options = replace(options, micro_batches=facts.get("micro_batches", 1))
    return options.settled()


def try_first_step(prepared: Prepared, model: nn.Module, options: TrainingOptions, say: Say) -> TrainingOptions:
    """The options with a number of micro-batches that fits into memory, and the faster precision (`settle`), by the
    gradient of the first batch of a training."""

    def trial(options: TrainingOptions) -> None:
        plan = options.micro_batch_plan
        step = Step(number=0, seed=prepared.recipe.seed, compute=options.compute, micro_batch_plan=plan)
        grad_cache.backward(model, prepared.objective, prepared.make_batches(plan, None)[0], step)

    return settle(options, model, prepared.recipe.batch.size, trial, say)


def settle(options: TrainingOptions, model: nn.Module, batch_size: int, trial: Trial, say: Say) -> TrainingOptions:
    """The options with a number of micro-batches that fits into memory, and the faster precision, where the options ask
    for a trial of the first step.

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
    model.to(options.compute.device).train()
    tried = []
    for precision in precisions(options):
        in_precision = replace(options, compute=replace(options.compute, precision=precision))
        tried.append(_fit_or_error(in_precision, model, batch_size, trial))
    # bfloat16 may fit where float32 does not.
    fitting = [each for each in tried if isinstance(each, TrainingOptions)]
    if not fitting:
        raise next(each for each in tried if isinstance(each, InputError))
    # Nothing is timed where there is no choice.
    seconds = [_seconds(each, model, trial) for each in fitting] if len(fitting) > 1 else [0.0]
    fastest = fitting[seconds.index(min(seconds))]
    if fastest.compute.precision != options.compute.precision:
        say(f"--precision auto is {fastest.compute.precision}")
    if fastest.micro_batches > options.micro_batches:
        say(
            f"--accumulate auto is {fastest.micro_batches}: a batch of {batch_size} does not fit into "
            "memory in fewer parts"
        )
    return fastest.settled()


def precisions(options: TrainingOptions) -> tuple[str, ...]:
    """The precisions to try: the options' own, and bfloat16 on a GPU that computes in it."""
    # A GPU that only emulates bfloat16 gains no time by it, nor do many CPUs (docs/evidence/performance.md).
    is_gpu = options.compute.device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    if options.tries_precision and is_gpu:
        return options.compute.precision, "bfloat16"
    return (options.compute.precision,)


def _fit_or_error(
    options: TrainingOptions, model: nn.Module, batch_size: int, trial: Trial
) -> TrainingOptions | InputError:
    """The options with the smallest number of micro-batches, doubled from that of the options, that fits; what to raise
    if none does."""
    while not _fits(options, model, trial):
        if not options.tries_micro_batches or options.micro_batches >= batch_size:
            return memory_error(options, batch_size)
        options = replace(options, micro_batches=min(2 * options.micro_batches, batch_size))
    return options


def _fits(options: TrainingOptions, model: nn.Module, trial: Trial) -> bool:
    """Whether a step fits into memory, beside what the optimizer takes in the first update and keeps."""
    fits = True
    states: list[torch.Tensor] = []
    try:
        # A first step that fits without them may be followed by a second one that does not.
        for parameter in model.parameters():
            if parameter.requires_grad:
                states += (torch.empty_like(parameter) for _ in range(STATES_PER_PARAMETER))
        trial(options)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        fits = False
    # After the block, which keeps the tensors of the failed step alive through the traceback.
    del states
    model.zero_grad(set_to_none=True)
    memory.free_cached_memory()
    return fits


def _seconds(options: TrainingOptions, model: nn.Module, trial: Trial) -> float:
    """Mean time of the step, which has been computed before."""
    times = []
    for _ in range(TIMED_STEPS):
        times.append(devices.timed(lambda: trial(options), options.compute.device)[0])
        model.zero_grad(set_to_none=True)
    return sum(times) / len(times)


def memory_error(options: TrainingOptions, batch_size: int) -> InputError:
    """What to raise where a training runs out of memory, with the settings that need less."""
    where = "there is" if options.compute.device.type == "cpu" else "the GPU has"
    count = options.micro_batches
    parts = "1 micro-batch" if count == 1 else f"{count} micro-batches"
    message = f"{where} too little memory for this training with {parts} per batch"
    # All rows are computed one by one where there are as many micro-batches as rows.
    ways = [f"--accumulate {min(2 * count, batch_size)}"] if count < batch_size else []
    ways += ["--precision bf16"] if options.compute.precision == "float32" else []
    ways += [] if options.checkpoint_activations else ["--checkpoint-activations"]
    return InputError(message, hint=f"try {', '.join(ways)}, or a smaller batch.size")


@contextmanager
def memory_errors(options: TrainingOptions, batch_size: int) -> Iterator[None]:
    """Raise `memory_error` where the block runs out of memory."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise memory_error(options, batch_size) from error
