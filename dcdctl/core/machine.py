"""Cores, threads and memory of this process, without torch: light commands import this file."""

from __future__ import annotations

import ctypes
import itertools
import os
import resource
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from dcdctl.core.errors import ConfigError
from dcdctl.core.progress import byte_size

T = TypeVar("T")
K = TypeVar("K")

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -2, -3, -4
"""Options of mallopt, from glibc's malloc.h."""
_CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""The limit of a container, by versions 2 and 1 of Linux's control groups."""
_RETURNS = False
"""Whether this process returns freed memory to the system."""


def num_cores() -> int:
    """The number of CPU cores that this process may use."""
    # os.cpu_count counts all cores of the machine, also those that taskset or a container withholds.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def address_space() -> int | None:
    """The bytes of memory that this process may map (`ulimit -v`); None without a limit."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if limit == resource.RLIM_INFINITY else limit


def num_threads(num_processes: int = 1) -> int:
    """The number of CPU threads to compute with: what OMP_NUM_THREADS says, or one for each core. As torch does it.
    Several processes divide the cores, and each computes with as many threads."""
    named = os.environ.get("OMP_NUM_THREADS", "")
    return int(named) if named.isdecimal() and int(named) else max(1, num_cores() // num_processes)


def memory_bytes() -> int:
    """The memory that this process may use: that of the machine, or less where a container or `ulimit -v` limits it."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for path in _CGROUP_LIMITS:
        # The text is max without a limit.
        if path.is_file() and (text := path.read_text(encoding="ascii").strip()).isdecimal():
            limits.append(int(text))
    if (limit := address_space()) is not None:
        limits.append(limit)
    return min(limit for limit in limits if limit > 0)


def require_memory(num_bytes: float, what: str, hint: str) -> None:
    """ConfigError for what takes more memory than there is, before any of it is made."""
    there_is = memory_bytes()
    if num_bytes > there_is:
        raise ConfigError(
            f"{what} take at least {byte_size(num_bytes)}, and there are {byte_size(there_is)} of memory", hint=hint
        )


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
    # None is the C library that Python itself has loaded; musl has no mallopt.
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        for option, value in options:
            mallopt(option, value)


class Workers:
    """Threads that each do one thing at a time, and are left behind with a thing that does not end."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._process = seconds, os.getpid()
        self._idle: list[tuple[SimpleQueue[Any], SimpleQueue[Any]]] = []
        """The tasks of each idle thread, and what they gave."""
        self._is_stuck = False
        weakref.finalize(self, _end, self._idle)

    def do(self, work: Callable[[], T]) -> T:
        """What `work` gives; its errors are raised here. TimeoutError if it takes longer than `seconds`, and from then
        on, because a thread is busy for good."""
        if self._process != os.getpid():
            # A child made by fork has no threads of its parent.
            self._idle.clear()
            self._process, self._is_stuck = os.getpid(), False
        if self._is_stuck:
            raise TimeoutError
        try:
            tasks, done = self._idle.pop()
        except IndexError:
            tasks, done = SimpleQueue(), SimpleQueue()
            # A daemon: a program must end while the thread is at work.
            threading.Thread(target=_work, args=(tasks, done), daemon=True).start()
        tasks.put(work)
        try:
            result, error = done.get(timeout=self._seconds)
        except Empty:
            self._is_stuck = True
            raise TimeoutError from None
        self._idle.append((tasks, done))
        if error is not None:
            raise error
        found: T = result
        return found


def _work(tasks: SimpleQueue[Any], done: SimpleQueue[Any]) -> None:
    while (task := tasks.get()) is not None:
        outcome: tuple[Any, BaseException | None]
        try:
            outcome = task(), None
        # All: a panic of Rust is no Exception.
        except BaseException as error:
            outcome = None, error
        done.put(outcome)
        del task, outcome  # which hold what the caller has by now


def _end(idle: list[tuple[SimpleQueue[Any], SimpleQueue[Any]]]) -> None:
    while idle:
        idle.pop()[0].put(None)


class ReadAhead(Iterator[T]):
    """`read(key)` of each key, in order, while threads read the next ones (`read_in_threads`)."""

    def __init__(self, read: Callable[[K], T], keys: Iterable[K], readers: int, num_ahead: int) -> None:
        self._read, self._keys, self._num_ahead = read, iter(keys), num_ahead
        self._coming = deque[Future[T]]()
        self._pool = ThreadPoolExecutor(readers, "reader") if readers else None
        self._fill()

    def __next__(self) -> T:
        if self._pool is None:
            return self._read(next(self._keys))
        self._fill()
        if not self._coming:
            self.close()
            raise StopIteration
        return self._coming.popleft().result()

    def _fill(self) -> None:
        while (
            self._pool is not None
            and len(self._coming) < self._num_ahead
            and (key := list(itertools.islice(self._keys, 1)))
        ):
            self._coming.append(self._pool.submit(self._read, key[0]))

    def close(self) -> None:
        """End the threads, also when the consumer fails or is interrupted: what was not begun is dropped."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def __del__(self) -> None:
        self.close()


def read_in_threads(
    read: Callable[[K], T], keys: Iterable[K], readers: int, *, ahead: int | None = None
) -> ReadAhead[T]:
    """`read(key)` of each key, in order, at most `ahead` (by default `readers` + 1) of them ahead; the threads begin at
    once. Without readers, each is read when it is needed.

    Pillow decodes without Python's lock, so threads decode at the same time. Unlike processes they start at once, copy
    nothing, and end with the program. An error is raised where its key stands in the order, as it would be without
    readers.
    """
    return ReadAhead(read, keys, readers, readers + 1 if ahead is None else ahead)
