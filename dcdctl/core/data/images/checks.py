"""The image files of shards, checked as tasks of an engine, and given back in order."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

from dcdctl.core.data.images.archives import ImageFile, PackedImageFile, RowError
from dcdctl.core.data.images.decode import CheckedImage, check_image
from dcdctl.core.data.images.formats import ImageError
from dcdctl.core.engines import Engine, Task
from dcdctl.core.errors import DcdError
from dcdctl.core.progress import Advance

AHEAD_PER_WORKER = 8
"""Images read ahead per thread: enough to keep it busy while a shard is written, few enough that large photos do not
fill the memory."""
SENT_TOGETHER = 16
"""Images of a task that is sent to another machine, at least: 2 MB of those of the web, 64 MB of photos."""
MOST_KEPT_BYTES = 512 << 20
"""Bytes of files that were sent and wait to be written."""
AnyFile = ImageFile | PackedImageFile
Checked = CheckedImage | RowError | ImageError
"""An image that can be used, or why it cannot."""


@dataclass(frozen=True)
class Unchanged:
    """An image that stays the file that was sent, without the bytes."""

    image: CheckedImage
    sha256: bytes
    """Of the bytes."""


def check_file(file: AnyFile, image_size_px: int | None) -> Checked:
    """The image in a file, shrunk if its shorter side is longer; or why it cannot be used."""
    try:
        return check_image(file.read(), image_size_px)
    except (RowError, ImageError) as error:
        # The frames of a traceback would keep the bytes.
        return error.with_traceback(None)


class CheckWorker:
    """Checks image files in threads, which continue with the next task while one is written; a single thread checks
    them when they are needed."""

    def __init__(self, image_size_px: int | None, threads: int) -> None:
        # Not the method of an object: the traceback of an error would keep it, and with it the threads.
        self._check = partial(_check_sent, image_size_px=image_size_px)
        self._pool = ThreadPoolExecutor(threads, "reader") if threads > 1 else None

    def start(self, files: Sequence[AnyFile]) -> Callable[[Advance], list[Checked | Unchanged]]:
        """Begin to read and check files, and return what waits for the results."""
        if self._pool is None:
            return partial(_finish, map(self._check, files))
        checking = [self._pool.submit(self._check, file) for file in files]
        return partial(_finish, (future.result() for future in checking))

    def __del__(self) -> None:
        # Also when another task fails: what was not begun is dropped.
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


def _check_sent(file: AnyFile, image_size_px: int | None) -> Checked | Unchanged:
    checked = check_file(file, image_size_px)
    if isinstance(file, PackedImageFile) and isinstance(checked, CheckedImage) and checked.data == file.content:
        return Unchanged(replace(checked, data=b""), hashlib.sha256(checked.data).digest())
    return checked


def _finish(checking: Iterator[Checked | Unchanged], advance: Advance) -> list[Checked | Unchanged]:
    results = []
    for result in checking:
        results.append(result)
        advance(1)
    return results


@dataclass(frozen=True)
class ShardFiles:
    """The image files of a shard."""

    number: int
    name: str
    files: Sequence[ImageFile]


class ImageChecks:
    """The image files of shards, which an engine checks some tasks ahead.

    An engine may leave out a task that fails again and again: the error is that of its shard, and of `end`.
    """

    def __init__(
        self,
        engine: Engine,
        shards: Iterable[ShardFiles],
        *,
        image_size_px: int | None,
        threads: int,
        advance: Advance,
    ) -> None:
        self.error: DcdError | None = None
        """What ended the results of the engine."""
        self._image_size_px = image_size_px
        # Two tasks are begun at a time.
        self._task_size = max(SENT_TOGETHER if engine.sends_tasks else 1, AHEAD_PER_WORKER * threads // 2)
        self._kept: dict[tuple[int, int], Sequence[AnyFile]] = {}
        """Files that were sent, as far as there is room; the others are read again."""
        self._num_kept_bytes = 0
        self._waiting: dict[tuple[int, int], list[Checked | Unchanged]] = {}
        """Results that came before those of earlier tasks."""
        tasks = (task for shard in shards for task in self._tasks(shard))
        self._coming = _results(engine, tasks, partial(CheckWorker, image_size_px, threads), advance)

    def of(self, shard: ShardFiles) -> Iterator[Checked]:
        """What each file of a shard is, in order. DcdError if the engine left out one of its tasks."""
        for part, files in enumerate(self._parts(shard)):
            results = self._take(shard.number, part)
            sent = self._forget((shard.number, part))
            for file, result in zip(sent or files, results, strict=True):
                yield self._with_bytes(file, result)

    def end(self) -> None:
        """Raise the error that a shard could not be finished for, or that ended the list of shards."""
        if self.error is None:
            next(self._coming, None)
        else:
            raise self.error

    def close(self) -> None:
        """End what the engine still does."""
        self._coming.close()

    def _parts(self, shard: ShardFiles) -> list[Sequence[ImageFile]]:
        starts = range(0, len(shard.files), self._task_size)
        return [shard.files[start : start + self._task_size] for start in starts]

    def _tasks(self, shard: ShardFiles) -> Iterator[Task[Sequence[AnyFile]]]:
        parts = self._parts(shard)
        for part, files in enumerate(parts):
            yield Task(
                shard.number,
                f"images {part * self._task_size + 1:,} to {part * self._task_size + len(files):,} of {shard.name}",
                inputs=partial(tuple, files),
                packed=partial(self._pack, (shard.number, part), files),
                part=part,
                num_parts=len(parts),
            )

    def _pack(self, key: tuple[int, int], files: Sequence[ImageFile]) -> Sequence[AnyFile]:
        self._forget(key)  # of a task that is sent again
        packed: list[AnyFile] = [PackedImageFile.of(file) if file.is_here else file for file in files]
        num_bytes = _num_bytes(packed)
        if self._num_kept_bytes + num_bytes <= MOST_KEPT_BYTES:
            self._kept[key] = packed
            self._num_kept_bytes += num_bytes
        return packed

    def _forget(self, key: tuple[int, int]) -> Sequence[AnyFile] | None:
        kept = self._kept.pop(key, None)
        if kept is not None:
            self._num_kept_bytes -= _num_bytes(kept)
        return kept

    def _take(self, shard: int, part: int) -> list[Checked | Unchanged]:
        while (shard, part) not in self._waiting:
            if self.error is not None:
                raise self.error
            try:
                task, results = next(self._coming)
            except DcdError as error:
                self.error = error
            else:
                self._waiting[task.shard, task.part] = results
        return self._waiting.pop((shard, part))

    def _with_bytes(self, file: AnyFile, result: Checked | Unchanged) -> Checked:
        if not isinstance(result, Unchanged):
            return result
        try:
            data = file.read()
        except RowError as error:
            return error.with_traceback(None)
        if hashlib.sha256(data).digest() != result.sha256:  # the file has changed since it was sent
            return check_file(file, self._image_size_px)
        return replace(result.image, data=data)


def _num_bytes(files: Sequence[AnyFile]) -> int:
    contents = [file.content for file in files if isinstance(file, PackedImageFile)]
    return sum(len(content) for content in contents if isinstance(content, bytes))


def _results(
    engine: Engine, tasks: Iterable[Task[Sequence[AnyFile]]], make_worker: Callable[[], CheckWorker], advance: Advance
) -> Generator[tuple[Task[Sequence[AnyFile]], list[Checked | Unchanged]], None, None]:
    yield from engine.map(tasks, make_worker, advance)
