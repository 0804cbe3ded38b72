"""Several processes that train one model: rank, barrier, sums over all processes, and what the main one does for all.

`torchrun` and `accelerate launch` set RANK, WORLD_SIZE and LOCAL_RANK; without them there is one process. The processes
share a folder and sum their gradients.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed
from torch import Tensor, nn

from dcdctl.core import devices, files
from dcdctl.core.errors import ConfigError, DcdError

T = TypeVar("T")
TIMEOUT = timedelta(days=7)
"""How long a process waits for the others: one of them may have hours of work left."""
BUCKET_SIZE = 25_000_000
"""Numbers per all-reduce of gradients: few calls, and a bounded copy of the gradients."""


def rank() -> int:
    """The index of this process, from 0."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """The number of processes."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this is the process that prints, and that does what must be done only once."""
    return rank() == 0


def barrier(*, has_failed: bool = False) -> None:
    """Wait until all processes are here; DcdError in the others if one has failed."""
    if world_size() > 1:
        _connect()
        # A sum on the CPU: a process may wait for hours, and would keep its GPU busy with NCCL.
        failures = torch.tensor([float(has_failed)])
        torch.distributed.all_reduce(failures)
        if failures.item() and not has_failed:
            raise DcdError("this process stops because another one failed")


@contextmanager
def main_first() -> Iterator[None]:
    """Run the block in the main process first, then in the others, which find what it wrote.

    If the block fails in the main process, the others end with a DcdError.
    """
    if not is_main():
        barrier()
    try:
        yield
    except Exception:
        if is_main():
            barrier(has_failed=True)
        raise
    if is_main():
        barrier()


def in_main(make: Callable[[], T]) -> T:
    """What `make` returns in the main process, in all processes: only the main one calls it, and the others get a copy,
    which is pickled. If it fails there, the others end with a DcdError."""
    if world_size() == 1:
        return make()
    made: list[Any] = [None]
    with main_first():
        if is_main():
            made = [make()]
    torch.distributed.broadcast_object_list(made, device=devices.CPU)
    found: T = made[0]
    return found


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Lock a folder for the processes of this run; StaleError in the main process, and DcdError in the others, if
    another run has it."""
    with ExitStack() as held:
        # The main process first: it decides whether the folder is this run's, and no other process takes a part of it
        # before.
        with main_first():
            held.enter_context(files.lock(folder, rank()))
        yield


def all_sum(tensor: Tensor) -> Tensor:
    """The sum of a tensor over all processes, bitwise equal in each; the tensor itself if there is one process."""
    if world_size() == 1:
        return tensor
    _connect()
    is_supported = tensor.device.type in ("cpu", "cuda")  # neither gloo nor NCCL reduces tensors on mps
    # A copy, because all_reduce works in place.
    summed = tensor.detach().clone() if is_supported else tensor.detach().cpu()
    torch.distributed.all_reduce(summed)
    return summed.to(tensor.device)


def check_equal(number: int, name: str) -> None:
    """ConfigError if a number, called `name` in the message, differs between the processes."""
    # Each process fills its own place and leaves zeros elsewhere, so the sum holds the number of every process.
    by_rank = torch.zeros(world_size(), dtype=torch.int64)
    by_rank[rank()] = number
    numbers = all_sum(by_rank).tolist()
    if len(set(numbers)) > 1:
        raise ConfigError(f"the processes differ in {name}: {numbers}", hint="give all of them one folder that all see")


@torch.no_grad()
def broadcast(tensor: Tensor) -> None:
    """Fill a floating-point tensor, of equal shape in all processes, with the numbers of the main process."""
    if world_size() > 1:
        # A sum to which the others add zeros, so that one collective serves all purposes.
        tensor.copy_(all_sum(tensor if is_main() else torch.zeros_like(tensor)))


def broadcast_weights(module: nn.Module) -> None:
    """Copy the parameters and floating-point buffers of the main process to all others."""
    for tensor in [*module.parameters(), *module.buffers()]:
        if tensor.is_floating_point():
            broadcast(tensor)


@torch.no_grad()
def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace every gradient by its sum over all processes; a gradient that no process has stays None."""
    if world_size() == 1:
        return
    for bucket in _buckets([parameter for parameter in parameters if parameter.requires_grad]):
        # A parameter may have a gradient in some processes only. All take part in the same all-reduce, with zeros for
        # what is missing.
        has_gradient = torch.tensor(
            [float(parameter.grad is not None) for parameter in bucket], device=bucket[0].device
        )
        flat = []
        for parameter in bucket:
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            flat.append(gradient.flatten().float())
        summed = all_sum(torch.cat([has_gradient, *flat]))
        pieces = summed[len(bucket) :].split([parameter.numel() for parameter in bucket])
        for parameter, num_owners, piece in zip(bucket, summed[: len(bucket)].tolist(), pieces, strict=True):
            # A copy, because a view would keep the whole bucket in memory.
            parameter.grad = piece.view_as(parameter).to(parameter.dtype, copy=True) if num_owners else None


def _buckets(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """The parameters in order, in groups of at most BUCKET_SIZE numbers; a larger parameter has its own group."""
    bucket: list[nn.Parameter] = []
    for parameter in parameters:
        if bucket and sum(member.numel() for member in bucket) + parameter.numel() > BUCKET_SIZE:
            yield bucket
            bucket = []
        bucket.append(parameter)
    if bucket:
        yield bucket


def _connect() -> None:
    """Join the process group, once: gloo for tensors on a CPU, NCCL for tensors on a GPU."""
    if torch.distributed.is_initialized():
        return
    has_gpus = torch.cuda.is_available() and torch.distributed.is_nccl_available()
    if has_gpus:
        torch.cuda.set_device(devices.own_gpu())
    torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if has_gpus else "gloo", timeout=TIMEOUT)
    atexit.register(disconnect)


def disconnect() -> None:
    """Leave the process group, if this process is in one."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
