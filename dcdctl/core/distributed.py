"""Several processes at one job: who this one is, waiting for the others, and sums over all.

Started by `torchrun` or `accelerate launch`, which set RANK, WORLD_SIZE and LOCAL_RANK; alone otherwise. Processes that score share nothing
but a folder; those that train share a folder and their sums.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import torch.distributed
from torch import Tensor, nn

from dcdctl.core.errors import ConfigError, DcdError

PATIENCE = timedelta(days=7)
"""How long a process waits for the others: one may have hours more to do."""
BUCKET_SIZE = 25_000_000
"""Numbers that are summed over the processes at a time."""


def rank() -> int:
    """Which of the processes this is, from 0."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """How many processes there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this process speaks, and does what is done once."""
    return rank() == 0


def dealt(count: int) -> range:
    """The numbers below `count` that are this process's work: every `world_size`-th."""
    return range(rank(), count, world_size())


def wait(*, has_failed: bool = False) -> None:
    """Until all processes are here; DcdError in the others if one has failed."""
    if world_size() > 1:
        _join()
        # A sum on the CPU: a process may wait for hours without keeping its GPU busy.
        failures = torch.tensor([float(has_failed)])
        torch.distributed.all_reduce(failures)
        if failures.item() and not has_failed:
            raise DcdError("another process has stopped, and so does this one")


@contextmanager
def main_first() -> Iterator[None]:
    """The block is run by the main process, and by the others when it is through: what it wrote is there then.

    Where it fails in the main process, the others end with a DcdError.
    """
    if not is_main():
        wait()
    try:
        yield
    except Exception:
        if is_main():
            wait(has_failed=True)
        raise
    if is_main():
        wait()


def total(tensor: Tensor) -> Tensor:
    """The sum of a tensor over all processes, the same bits in each; the tensor itself where there is one process."""
    if world_size() == 1:
        return tensor
    _join()
    is_reachable = tensor.device.type in ("cpu", "cuda")
    summed = tensor.detach().clone() if is_reachable else tensor.detach().cpu()
    torch.distributed.all_reduce(summed)
    return summed.to(tensor.device)


def check_equal(number: int, what: str) -> None:
    """ConfigError if the processes do not agree on a number."""
    mine = torch.zeros(world_size(), dtype=torch.int64)
    mine[rank()] = number
    found = total(mine).tolist()
    if len(set(found)) > 1:
        raise ConfigError(f"the processes differ in {what}: {found}", hint="give all of them one folder that all see")


@torch.no_grad()
def send_weights(module: nn.Module) -> None:
    """Give every process the main one's parameters and statistics."""
    if world_size() > 1:
        for tensor in [*module.parameters(), *module.buffers()]:
            if tensor.is_floating_point():
                tensor.copy_(total(tensor if is_main() else torch.zeros_like(tensor)))


@torch.no_grad()
def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Put the sum over all processes into every gradient; one that no process has stays None."""
    if world_size() == 1:
        return
    for bucket in _buckets([parameter for parameter in parameters if parameter.requires_grad]):
        is_there = torch.tensor([float(parameter.grad is not None) for parameter in bucket], device=bucket[0].device)
        flat = [torch.zeros_like(one).flatten() if one.grad is None else one.grad.flatten() for one in bucket]
        summed = total(torch.cat([is_there, *(gradient.float() for gradient in flat)]))
        pieces = summed[len(bucket) :].split([parameter.numel() for parameter in bucket])
        for parameter, count, piece in zip(bucket, summed[: len(bucket)].tolist(), pieces, strict=True):
            parameter.grad = piece.view_as(parameter).to(parameter.dtype, copy=True) if count else None


def _buckets(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    bucket: list[nn.Parameter] = []
    for parameter in parameters:
        if bucket and sum(one.numel() for one in bucket) + parameter.numel() > BUCKET_SIZE:
            yield bucket
            bucket = []
        bucket.append(parameter)
    if bucket:
        yield bucket


def _join() -> None:
    """Connect to the others, once: by gloo for what is on a CPU, by NCCL for what is on a GPU."""
    if torch.distributed.is_initialized():
        return
    has_gpus = torch.cuda.is_available() and torch.distributed.is_nccl_available()
    if has_gpus:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if has_gpus else "gloo", timeout=PATIENCE)
    atexit.register(leave)


def leave() -> None:
    """End the connection to the others, if there is one."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
