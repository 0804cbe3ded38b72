"""The index that a service answers from, as it is now."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

from dcdctl.core.errors import DcdError
from dcdctl.core.search import INDEX_FILE, Answer, Index, Searcher
from dcdctl.core.serve.config import ServiceConfig
from dcdctl.core.serve.metrics import Metrics

Stamp = tuple[int, int, int]


class LiveSearcher:
    """A searcher whose index is opened anew when it has changed on disk, so that what was removed is not served on. For any thread."""

    def __init__(self, searcher: Searcher) -> None:
        self._path = searcher.index.folder / INDEX_FILE
        self._searcher = searcher
        # The index may have changed since it was opened: at first it is not known to be what is on disk.
        self._stamp: Stamp | None = None
        self._lock = threading.Lock()

    def now(self) -> Searcher:
        """The searcher of the index as it is on disk; while that is being changed, or cannot be used, of the index as it was."""
        if (stamp := self._found()) not in (None, self._stamp):
            with self._lock:
                if stamp != self._stamp:
                    self._searcher, self._stamp = self._opened(), stamp
        return self._searcher

    def _found(self) -> Stamp | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return (found.st_mtime_ns, found.st_ino, found.st_size)

    def _opened(self) -> Searcher:
        try:
            index = Index.open(self._path.parent)
            index.expect(self._searcher.index.fingerprint)
            index.check()
        except DcdError as error:
            logging.getLogger("dcdctl").error("the index has changed, and the service answers from what it was: %s", error)
            return self._searcher
        return replace(self._searcher, index=index)


T = TypeVar("T")
LATE = "waited too long"


class BusyError(Exception):
    """There is more work than can wait; the argument is why, as the metrics count it."""


class Workers:
    """Threads, and a bounded number of calls that they work for or that wait for them. Called from one event loop."""

    def __init__(self, name: str, threads: int, max_waiting: int, max_wait_s: float, metrics: Metrics) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._max_under_way, self._max_wait_s = threads + max_waiting, max_wait_s
        self._num_under_way = 0
        self._gauge = metrics.under_way.labels(name)

    async def run(self, work: Callable[[], T]) -> T:
        """What it returns or raises; BusyError where too many calls wait already, or where its turn comes too late."""
        asked = time.monotonic()

        def in_time() -> T:
            if self.is_late(asked):
                raise BusyError(LATE)
            return work()

        with self.place():
            return await self.start(in_time)

    @contextmanager
    def place(self) -> Iterator[None]:
        """One of the places of those who wait or are worked for; BusyError where none is free."""
        if self._num_under_way >= self._max_under_way:
            raise BusyError("queue full")
        self._count(1)
        try:
            yield
        finally:
            self._count(-1)

    def start(self, work: Callable[[], T]) -> asyncio.Future[T]:
        """Have it done in its turn."""
        return asyncio.get_running_loop().run_in_executor(self._pool, work)

    def is_late(self, asked: float) -> bool:
        """Whether what was asked for at that time of the monotonic clock has waited too long to be begun."""
        return time.monotonic() - asked > self._max_wait_s

    def close(self) -> None:
        """Begin nothing more, and wait for what has begun."""
        self._pool.shutdown(cancel_futures=True)

    def _count(self, change: int) -> None:
        self._num_under_way += change
        self._gauge.set(self._num_under_way)


@dataclass(frozen=True, eq=False)
class _Query:
    text: str
    k: int
    answer: Future[Answer] = field(default_factory=Future)
    asked: float = field(default_factory=time.monotonic)


class _Batch:
    """Texts that will be answered in one turn; others join until it begins, or is full."""

    def __init__(self, most: int) -> None:
        self._queries: list[_Query] = []
        self._most, self._has_begun = most, False
        self._lock = threading.Lock()

    def joined_by(self, query: _Query) -> bool:
        """Whether there was still room."""
        with self._lock:
            if self._has_begun or len(self._queries) >= self._most:
                return False
            self._queries.append(query)
            return True

    def begin(self) -> list[_Query]:
        """All that have joined; nobody does from now on."""
        with self._lock:
            self._has_begun = True
            return self._queries


class Texts:
    """Texts that come while the model is busy are answered together once a thread is free; none waits for others to come."""

    def __init__(self, searcher: LiveSearcher, workers: Workers, config: ServiceConfig, metrics: Metrics) -> None:
        self._searcher, self._workers, self._metrics = searcher, workers, metrics
        # A second model takes each text by itself, and the first would wait for the last.
        self._most = 1 if searcher.now().reranker is not None else config.max_batch
        self._open = _Batch(0)

    async def answer(self, text: str, k: int) -> Answer:
        """The k pictures nearest to a text. BusyError as `Workers.run` raises it, and what the searcher raises."""
        with self._workers.place():
            query = _Query(text, k)
            if not self._open.joined_by(query):
                self._open = _Batch(self._most)
                self._open.joined_by(query)
                self._workers.start(partial(self._answer_batch, self._open))
            return await asyncio.wrap_future(query.answer)

    def _answer_batch(self, batch: _Batch) -> None:
        # Who gave up meanwhile is left out; from here on a future cannot be cancelled, and takes its answer.
        queries = [query for query in batch.begin() if query.answer.set_running_or_notify_cancel()]
        late = [query for query in queries if self._workers.is_late(query.asked)]
        for query in late:
            query.answer.set_exception(BusyError(LATE))
        self._answer([query for query in queries if query not in late])

    def _answer(self, queries: Sequence[_Query]) -> None:
        if not queries:
            return
        try:
            answers = self._searcher.now().by_texts([query.text for query in queries], max(query.k for query in queries))
        except Exception as error:  # whatever it is, it is raised where the text was asked for
            if len(queries) == 1:
                queries[0].answer.set_exception(error)
                return
            # One of them cannot be answered, which the others need not know.
            for query in queries:
                self._answer([query])
            return
        for query, answer in zip(queries, answers, strict=True):
            self._metrics.searched(answer, len(queries))
            query.answer.set_result(replace(answer, hits=answer.hits[: query.k]))
