"""Several processes that work on one job: rank, barrier, sums over all processes, and the parts of an artifact that
each process writes.

`torchrun` and `accelerate launch` set RANK, WORLD_SIZE and LOCAL_RANK; without them there is one process. Processes
that score share a folder. Processes that train share a folder and sum their gradients.
"""

from __future__ import annotations

import atexit
import os
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed
from torch import Tensor, nn

from dcdctl.core import artifacts, devices, locks
from dcdctl.core.artifacts import Build, Document
from dcdctl.core.errors import ConfigError, DcdError

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


def local_indices(count: int) -> range:
    """The indices below `count` that this process works on: rank, rank + world_size, ..."""
    return range(rank(), count, world_size())


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


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Lock a folder for the processes of this run; StaleError in the main process, and DcdError in the others, if
    another run has it."""
    with ExitStack() as held:
        # The main process first: it decides whether the folder is this run's, and no other process takes a part of it
        # before.
        with main_first():
            held.enter_context(locks.lock(folder, rank()))
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


DocumentOf = Callable[[dict[str, Document]], Mapping[str, Any]]
"""The content of a seal, from the files that it lists."""
FactsOf = Callable[[str], Mapping[str, Any]]
"""What a seal says of a part besides its size and its SHA-256."""


@dataclass(frozen=True)
class Parts:
    """The parts of an artifact: pairs of a teacher cache, texts with vectors, stored features, vectors of an index.

    The build's plan comes first (`Build.begin`). Each process then writes the missing parts of its share, so a killed
    job resumes with what is missing; parts may be taken from a finished artifact that this one extends; and the seal,
    with size and SHA-256 of each part, is written once, when the parts of all processes are there. A reader compares
    them (`Kind.checked`).
    """

    build: Build
    names: Sequence[str]
    """The files, one per part."""

    def missing(self) -> list[int]:
        """The parts that are not written, or were damaged since a killed run wrote them; none of a sealed artifact that
        is made once. An index, which keeps no plan, is sealed again after each change."""
        if self.build.is_sealed and self.build.kind.keeps_plan:
            return []
        return [number for number, name in enumerate(self.names) if not self.build.is_written(name)]

    def share(self) -> list[int]:
        """The missing parts that this process writes."""
        # A share of all parts: processes look at different times, so their lists of missing parts may differ.
        mine = set(local_indices(len(self.names)))
        return [number for number in self.missing() if number in mine]

    def take(self, number: int, finished: Path) -> None:
        """A part that is a file of a finished artifact: as a hard link, which takes no space, or as a copy."""
        with self.build.write(self.names[number]) as partial:
            partial.unlink(missing_ok=True)
            try:
                os.link(finished, partial)
            except OSError:  # a file system without hard links
                shutil.copyfile(finished, partial)

    def seal(self, document_of: DocumentOf, *, further: Collection[str] = (), facts_of: FactsOf | None = None) -> None:
        """Write the seal once, by the main process, when the parts of all processes are there (`seal_alone`)."""
        barrier()
        with main_first():
            if is_main():
                self.seal_alone(document_of, further=further, facts_of=facts_of)

    def seal_alone(
        self, document_of: DocumentOf, *, further: Collection[str] = (), facts_of: FactsOf | None = None
    ) -> None:
        """Write the seal: what `document_of` makes of the listed files, the `further` ones and the parts, each with its
        size, its SHA-256 and `facts_of` the part."""
        names = [*further, *self.names]
        if self.build.is_sealed:
            # A run that was killed after sealing may have left files of the build.
            self.build.clean(names)
            return
        listed = artifacts.list_files(self.build.folder, further)
        for name in self.names:
            facts = {} if facts_of is None else facts_of(name)
            listed[name] = artifacts.seal_of(self.build.written(name), **facts)
        self.build.seal(document_of(listed), names)
