"""The processor and the memory of this process: what a command needs of them that never imports torch."""

from __future__ import annotations

import ctypes
import os
import sys

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -2, -3, -4
"""Options of mallopt, from glibc's malloc.h."""
_RETURNS = False
"""Whether this process returns freed memory to the system."""


def num_cores() -> int:
    """The number of CPU cores that this process may use."""
    # os.cpu_count counts all cores of the machine, also those that taskset or a container withholds.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def num_threads(count: int | None = None) -> int:
    """The number of CPU threads to compute with: `count`, or what OMP_NUM_THREADS says, or one for each core. As torch
    does it."""
    if count is not None:
        return count
    named = os.environ.get("OMP_NUM_THREADS", "")
    return int(named) if named.isdecimal() and int(named) else num_cores()


def keep_freed_memory() -> None:
    """Make glibc keep large blocks of memory that are freed; does nothing with another C library.

    By default glibc returns each block to the system, which hands it out again page by page. That took a third to a
    half of the time of a training step. Does nothing after `return_freed_memory` either, because a service first
    decides for all that it loads later.
    """
    if _RETURNS:
        return
    # No block through mmap, which would be unmapped when freed; no trimming of the heap (largest int), which grows by
    # 64 MiB at a time.
    _set_malloc((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 2**26))


def return_freed_memory() -> None:
    """Make glibc return large blocks of memory that are freed; does nothing with another C library.

    By default its threshold rises to the size of freed blocks, up to 32 MiB, and the memory of one decoded image is
    kept for good.
    """
    global _RETURNS
    _RETURNS = True
    # Pillow decodes into blocks of 16 MiB.
    _set_malloc((M_MMAP_THRESHOLD, 2**22))


def _set_malloc(*options: tuple[int, int]) -> None:
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        for option, value in options:
            mallopt(option, value)
