"""Reads and checks pictures in worker processes: in order, and no further ahead than memory should allow."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import connection

from dcdctl.core.data.image_archives import ImageFile, RowError
from dcdctl.core.data.images import CheckedImage, ImageError, check
from dcdctl.core.errors import InputError

CHUNK_IMAGES = 8
CHUNKS_IN_FLIGHT = 3
"""For each worker: enough to keep it busy, few enough that large photos do not fill the memory."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why a picture cannot be used."""

    reason: str


Result = CheckedImage | Failure
ReadImages = Callable[[Iterable[ImageFile]], Iterator[Result]]


@contextmanager
def image_pool(workers: int, image_size_px: int | None) -> Iterator[ReadImages]:
    """A function that gives the result of each picture, in order; one worker is this process itself."""
    if workers == 1:
        yield lambda pictures: (_read(picture, image_size_px) for picture in pictures)
        return
    # Not fork: a copy of a process with threads in it may hang. The fork server starts clean ones, and fast.
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_parent)
    try:
        yield lambda pictures: _read_ahead(pool, pictures, image_size_px, num_chunks=CHUNKS_IN_FLIGHT * workers)
    except BrokenProcessPool as error:
        raise InputError("a worker process died, perhaps for want of memory", hint="try again with --workers 1") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _read_ahead(
    pool: ProcessPoolExecutor, pictures: Iterable[ImageFile], image_size_px: int | None, *, num_chunks: int
) -> Iterator[Result]:
    waiting: deque[Future[list[Result]]] = deque()
    remaining = iter(pictures)
    while True:
        while len(waiting) < num_chunks and (chunk := list(itertools.islice(remaining, CHUNK_IMAGES))):
            waiting.append(pool.submit(_read_chunk, chunk, image_size_px))
        if not waiting:
            return
        yield from waiting.popleft().result()


def _read_chunk(pictures: Sequence[ImageFile], image_size_px: int | None) -> list[Result]:
    return [_read(picture, image_size_px) for picture in pictures]


def _read(picture: ImageFile, image_size_px: int | None) -> Result:
    try:
        return check(picture.read(), image_size_px)
    except (RowError, ImageError) as error:
        return Failure(reason=str(error))


def _end_with_parent() -> None:
    """Let a worker leave interrupts to its parent, and end when the parent is killed: it would wait for work for ever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_exit_after, args=(parent.sentinel,), daemon=True).start()


def _exit_after(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(1)
