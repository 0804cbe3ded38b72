"""The work behind the routes: the current index, bounded thread pools, batches of texts, and the state that
the routes share."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from dcdctl.core.errors import DcdError
from dcdctl.core.search import INDEX_FILE, Condition, FolderIndex, ImageIndex, IndexSearcher, SearchAnswer
from dcdctl.core.serve import logs
from dcdctl.core.serve.metrics import Metrics, Shared
from dcdctl.core.serve.service_config import ServiceConfig
from dcdctl.core.stores import UnavailableError

T = TypeVar("T")
Stamp = tuple[int, int, int]
OVERDUE = "waited too long"
READY_S = 2.0
"""How long /health waits for a store; balancers and containers wait for some seconds."""


class LiveSearcher:
    """A searcher that opens an index on disk again when it has changed, so that removed images are not served.
    Thread-safe."""

    def __init__(self, searcher: IndexSearcher) -> None:
        self._stamp: Stamp | None = None
        self._lock = threading.Lock()
        self.swap(searcher)

    def now(self) -> IndexSearcher:
        """The searcher of the index on disk; of the last usable index while it is being changed or is damaged."""
        if (stamp := self._read_stamp()) not in (None, self._stamp):
            with self._lock:
                # Another thread may have opened it while this one waited for the lock.
                if stamp != self._stamp:
                    # The stamp is kept for an unusable index too, so that its error is logged once.
                    self._searcher, self._stamp = self._reopened(), stamp
        return self._searcher

    def swap(self, searcher: IndexSearcher) -> None:
        """Answer from another searcher from now on; searches in progress end with the one that they have."""
        with self._lock:
            # A store is searched as it is now, and is never opened again.
            self._path = searcher.index.folder / INDEX_FILE if isinstance(searcher.index, FolderIndex) else None
            self._searcher = searcher
            # The index may have changed on disk since it was opened, so it is opened again at first.
            self._stamp = None

    def _read_stamp(self) -> Stamp | None:
        if self._path is None:
            return None
        try:
            status = self._path.stat()
        except OSError:
            return None
        # index.json is replaced by renaming: the inode differs even within one tick of the clock.
        return (status.st_mtime_ns, status.st_ino, status.st_size)

    def _reopened(self) -> IndexSearcher:
        try:
            index = FolderIndex.open(Path(self._searcher.index.location))
            index.expect(self._searcher.index.fingerprint)
            index.check()
        except DcdError as error:
            logs.SERVICE.error(
                "the index has changed, but cannot be used; the service continues with the previous one: %s", error
            )
            return self._searcher
        return replace(self._searcher, index=index)


class BusyError(Exception):
    """The queue is full, or a call has waited too long; the argument is the reason in the metrics."""


class Workers:
    """A thread pool with a bounded queue, used from one event loop."""

    def __init__(self, name: str, *, threads: int, max_waiting: int, max_wait_s: float, metrics: Metrics) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self.num_slots, self._max_wait_s = threads + max_waiting, max_wait_s
        self._num_used = 0
        self._gauge = metrics.under_way.labels(name)

    async def run(self, work: Callable[[], T]) -> T:
        """The result of a call; BusyError if the queue is full, or if the call has waited too long when its turn
        comes."""
        queued = time.monotonic()

        def in_time() -> T:
            if self.is_overdue(queued):
                raise BusyError(OVERDUE)
            return work()

        with self.slot():
            return await self.start(in_time)

    @contextmanager
    def slot(self, count: int = 1) -> Iterator[None]:
        """Slots for calls that wait or run; BusyError if so many are not free."""
        if self._num_used + count > self.num_slots:
            raise BusyError("queue full")
        self._count(count)
        try:
            yield
        finally:
            self._count(-count)

    def start(self, work: Callable[[], T]) -> asyncio.Future[T]:
        """Run a call in the pool."""
        return asyncio.get_running_loop().run_in_executor(self._pool, work)

    def is_overdue(self, queued: float) -> bool:
        """Whether a call queued at this time of the monotonic clock has waited too long."""
        return time.monotonic() - queued > self._max_wait_s

    def close(self) -> None:
        """Cancel waiting calls and wait for running ones."""
        self._pool.shutdown(cancel_futures=True)

    def _count(self, change: int) -> None:
        self._num_used += change
        self._gauge.set(self._num_used)


# Compared by identity, because two clients may ask the same text.
@dataclass(frozen=True, eq=False)
class WaitingText:
    """A text that waits for its answer."""

    text: str
    k: int
    where: Condition | None
    hybrid: bool
    answer: Future[SearchAnswer] = field(default_factory=Future)
    queued: float = field(default_factory=time.monotonic)

    @property
    def group(self) -> tuple[object, ...]:
        """Equal for texts that may be answered together. A hybrid search of more images fuses more ranks, so its first
        hits may differ."""
        return self.where, self.hybrid, self.k if self.hybrid else None


@dataclass
class TextBatcher:
    """Answers texts that arrive while the model is busy together, as soon as a thread is free. No text waits for others
    to arrive."""

    searcher: LiveSearcher
    workers: Workers
    config: ServiceConfig
    metrics: Metrics

    def __post_init__(self) -> None:
        # A re-ranker processes each text by itself, so the first text would wait for the last.
        self._max_size = 1 if self.searcher.now().reranker is not None else self.config.max_batch
        self._open: list[WaitingText] = []
        """The batch that further texts may join until it starts or is full; empty if there is none."""
        # Texts join in the event loop, and a batch starts in a thread.
        self._lock = threading.Lock()

    async def answer(self, text: WaitingText) -> SearchAnswer:
        """The images nearest to a text. BusyError like `Workers.run`, and the errors of the searcher."""
        (answer,) = await self.answer_all([text])
        if isinstance(answer, BaseException):
            raise answer
        return answer

    async def answer_all(self, waiting: Sequence[WaitingText]) -> list[SearchAnswer | BaseException]:
        """For each text the answer, or the error of the searcher.

        Texts of the same condition are computed together, those of hybrid searches of the same k. BusyError like
        `Workers.run`.
        """
        with self.workers.slot(len(waiting)):
            opened = []
            groups = list(dict.fromkeys(text.group for text in waiting))
            for text in sorted(waiting, key=lambda text: groups.index(text.group)):
                with self._lock:
                    if 0 < len(self._open) < self._max_size and text.group == self._open[0].group:
                        self._open.append(text)
                    else:
                        self._open = [text]
                        opened.append(self._open)
            # Filled before they start; later texts of other requests may join the last one.
            for batch in opened:
                self.workers.start(partial(self._answer_batch, batch))
            # With the errors: one of them must not leave the other answers without a reader.
            answers = await asyncio.gather(
                *(asyncio.wrap_future(text.answer) for text in waiting), return_exceptions=True
            )
        for answer in answers:
            if isinstance(answer, BusyError):
                raise answer
        return answers

    def _answer_batch(self, batch: list[WaitingText]) -> None:
        with self._lock:
            # No further text can join it.
            if self._open is batch:
                self._open = []
        # Cancelled texts are left out; from here on a future cannot be cancelled.
        texts = [text for text in batch if text.answer.set_running_or_notify_cancel()]
        overdue = [text for text in texts if self.workers.is_overdue(text.queued)]
        for text in overdue:
            text.answer.set_exception(BusyError(OVERDUE))
        self._answer([text for text in texts if text not in overdue])

    def _answer(self, texts: Sequence[WaitingText]) -> None:
        if not texts:
            return
        try:
            first, k = texts[0], max(text.k for text in texts)
            answers = self.searcher.now().by_texts([text.text for text in texts], k, first.where, hybrid=first.hybrid)
        except Exception as error:  # any error is raised in the request of its text
            if len(texts) == 1 or isinstance(error, UnavailableError):
                for text in texts:
                    text.answer.set_exception(error)
                return
            # One text cannot be answered; the others can.
            for text in texts:
                self._answer([text])
            return
        for text, answer in zip(texts, answers, strict=True):
            self.metrics.searched(answer)
            text.answer.set_result(replace(answer, hits=answer.hits[: text.k]))


class ServiceState:
    """The state that the routes share."""

    def __init__(self, searcher: IndexSearcher | LiveSearcher, config: ServiceConfig, shared: Shared | None) -> None:
        self.searcher = searcher if isinstance(searcher, LiveSearcher) else LiveSearcher(searcher)
        self.config = config
        self.metrics = Metrics(shared)
        self.searching = Workers(
            "search",
            threads=config.search_workers,
            max_waiting=config.max_waiting,
            max_wait_s=config.max_wait_s,
            metrics=self.metrics,
        )
        self.reading = Workers(
            "image",
            threads=config.image_workers,
            max_waiting=config.max_waiting_images,
            max_wait_s=config.max_wait_s,
            metrics=self.metrics,
        )
        self.texts = TextBatcher(self.searcher, self.searching, config, self.metrics)
        self.is_stopping = threading.Event()
        """Set while it answers its last requests."""
        self._asked: asyncio.Task[bool] | None = None

    @property
    def index(self) -> ImageIndex:
        """The index that is searched now."""
        return self.searcher.now().index

    async def is_ready(self) -> bool:
        """Whether the index answers within `READY_S`; one call at a time: a silent store holds each for long."""
        if self._asked is None or self._asked.done():
            self._asked = asyncio.create_task(asyncio.to_thread(self.index.is_ready))
        done, _ = await asyncio.wait([self._asked], timeout=READY_S)
        return any(task.result() for task in done)
