"""Work that threads do ahead of its use, with results in order."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
K = TypeVar("K")


def read_in_threads(
    read: Callable[[K], T], keys: Iterable[K], readers: int, *, ahead: int | None = None
) -> Generator[T, None, None]:
    """`read(key)` of each key, in order, at most `ahead` (by default `readers` + 1) of them ahead; without readers,
    each when it is needed.

    Pillow decodes without Python's lock, so threads decode at the same time. Unlike processes they start at once, copy
    nothing, and end with the program. An error is raised where its key stands in the order, as it would be without
    readers.
    """
    if not readers:
        yield from map(read, keys)
        return
    remaining, coming = iter(keys), deque[Future[T]]()
    num_coming = readers + 1 if ahead is None else ahead
    pool = ThreadPoolExecutor(readers, "reader")
    try:
        while True:
            while len(coming) < num_coming and (key := list(itertools.islice(remaining, 1))):
                coming.append(pool.submit(read, key[0]))
            if not coming:
                return
            yield coming.popleft().result()
    finally:
        # Also when the consumer fails or is interrupted: what was not begun is dropped.
        pool.shutdown(cancel_futures=True)
