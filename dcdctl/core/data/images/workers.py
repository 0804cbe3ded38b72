"""Worker processes that read and check image files, in order, with a limit on how far they read ahead."""

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

from dcdctl.core.data.images.archives import ImageFile, RowError
from dcdctl.core.data.images.decode import CheckedImage, ImageError, check_image
from dcdctl.core.errors import InputError

CHUNK_IMAGES = 8
CHUNKS_PER_WORKER = 3
"""Chunks read ahead per worker: enough to keep it busy, few enough that large photos do not fill the memory."""


@dataclass(frozen=True, kw_only=True)
class UnusableImage:
    """Why an image cannot be used."""

    reason: str


CheckResult = CheckedImage | UnusableImage
CheckImages = Callable[[Iterable[ImageFile]], Iterator[CheckResult]]


@contextmanager
def image_pool(workers: int, image_size_px: int | None) -> Iterator[CheckImages]:
    """A function that reads and checks image files and yields the results in order. One worker means this process itself."""
    if workers == 1:
        yield lambda files: (_check(file, image_size_px) for file in files)
        return
    # Not fork, because a copy of a process with threads may hang. The fork server starts clean processes, and fast.
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_parent)
    try:
        yield lambda files: _check_ahead(pool, files, image_size_px, num_chunks=CHUNKS_PER_WORKER * workers)
    except BrokenProcessPool as error:
        raise InputError("a worker process died, perhaps because memory ran out", hint="try again with --workers 1") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _check_ahead(
    pool: ProcessPoolExecutor, files: Iterable[ImageFile], image_size_px: int | None, *, num_chunks: int
) -> Iterator[CheckResult]:
    pending: deque[Future[list[CheckResult]]] = deque()
    remaining = iter(files)
    while True:
        while len(pending) < num_chunks and (chunk := list(itertools.islice(remaining, CHUNK_IMAGES))):
            pending.append(pool.submit(_check_chunk, chunk, image_size_px))
        if not pending:
            return
        yield from pending.popleft().result()


def _check_chunk(files: Sequence[ImageFile], image_size_px: int | None) -> list[CheckResult]:
    return [_check(file, image_size_px) for file in files]


def _check(file: ImageFile, image_size_px: int | None) -> CheckResult:
    try:
        return check_image(file.read(), image_size_px)
    except (RowError, ImageError) as error:
        return UnusableImage(reason=str(error))


def _end_with_parent() -> None:
    """Leave interrupts to the parent process, and end when it is killed: a worker would otherwise wait for work forever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_exit_after, args=(parent.sentinel,), daemon=True).start()


def _exit_after(sentinel: int) -> None:
    connection.wait([sentinel])
    # Not sys.exit, which would end only this thread.
    os._exit(1)
