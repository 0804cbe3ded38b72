"""Batch sizes that fit into memory: halved where it runs out, and grown into the free memory of a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from dcdctl.core.errors import is_out_of_memory

T = TypeVar("T")
MOST_GROWTH = 8
"""Most times that a batch size which the user did not set grows: beyond that a GPU gains little."""
ROOM_FOR_DOUBLE = 3
"""Free memory, in times what a batch took, from which the next one has twice the size: later captions are longer."""


class GpuMemory:
    """The memory of a CUDA device, as a batch size grows into it.

    Its numbers come from the CPU, so they wait for no work of the GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self._before = device, 0

    def begin(self) -> None:
        """Start to watch what a batch takes."""
        torch.cuda.reset_peak_memory_stats(self.device)
        self._before = torch.cuda.memory_allocated(self.device)

    def taken(self) -> int:
        """The most bytes that were taken at once since `begin`."""
        return torch.cuda.max_memory_allocated(self.device) - self._before

    def free(self) -> int:
        """Bytes that are free now; torch gives what it keeps for itself to the next batch."""
        kept = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        return torch.cuda.mem_get_info(self.device)[0] + kept


@dataclass
class Fitting:
    """The batch size of a kind of work, kept from one call to the next: what did not fit into memory once is not tried
    again.

    With `memory` it also doubles, up to `MOST_GROWTH` times the size that was asked for, while a batch leaves room for
    the double.
    """

    memory: GpuMemory | None = None
    most: int | None = None
    """Half of the batch that did not fit."""
    grown: int = 0

    def size(self, asked: int) -> int:
        """The size of the next batch."""
        larger = max(asked, self.grown)
        return larger if self.most is None else min(larger, self.most)

    def end(self, count: int, asked: int) -> None:
        """Note that a batch of this size fitted."""
        if self.memory is None or self.most is not None or not self.size(asked) <= count < MOST_GROWTH * asked:
            return
        if ROOM_FOR_DOUBLE * self.memory.taken() <= self.memory.free():
            self.grown = 2 * count


def in_fitting_parts(
    items: Any, size: int, work: Callable[[Any], T], fitting: Fitting | None = None
) -> Iterator[tuple[Any, T]]:
    """The items (a sequence, an array, a tensor or a batch) in parts of at most `size`, in order, each with the result
    of the work; `fitting` is kept for the next call.

    Where memory runs out, the size is halved for this part and all that follow. The error of a single item is raised.
    """
    fitting = Fitting() if fitting is None else fitting
    start = 0
    while start < len(items):
        part = items[start : start + fitting.size(size)]
        if fitting.memory is not None:
            fitting.memory.begin()
        try:
            result = work(part)
        except (RuntimeError, MemoryError) as error:
            # A single item cannot be halved.
            if not is_out_of_memory(error) or len(part) == 1:
                raise
            # Half, since the memory of a batch grows with its size.
            fitting.most = len(part) // 2
        else:
            fitting.end(len(part), size)
            yield part, result
            start += len(part)
            continue
        # After the block, which keeps the tensors of the failed part alive through the traceback.
        free_cached_memory()


def free_cached_memory() -> None:
    """Return the memory that torch keeps of a GPU: blocks of one size do not serve another."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
