"""Threads that do what would hold up the event loop, with a bounded number of calls that wait for them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

from dcdctl.core.search import Answer
from dcdctl.core.service_config import ServiceConfig
from dcdctl.core.service_index import LiveSearcher
from dcdctl.core.service_metrics import Metrics

T = TypeVar("T")


class BusyError(Exception):
    """There is more work than can wait; the argument is why, as the metrics count it."""


class Workers:
    """Threads, and the calls that wait for them. Called from one event loop."""

    def __init__(self, name: str, threads: int, max_waiting: int, max_wait_s: float, metrics: Metrics) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._threads, self._max_under_way, self._max_wait_s = threads, threads + max_waiting, max_wait_s
        self._under_way = 0
        self._waiting = metrics.waiting.labels(name)

    def submit(self, work: Callable[[], T]) -> asyncio.Future[T]:
        """Have it done in its turn; BusyError where too many calls wait already."""
        self.check_room()
        self._count(1)
        future = asyncio.get_running_loop().run_in_executor(self._pool, work)
        future.add_done_callback(lambda _: self._count(-1))
        return future

    def check_room(self) -> None:
        """BusyError where too many calls wait."""
        if self._under_way >= self._max_under_way:
            raise BusyError("queue full")

    async def run(self, work: Callable[[], T]) -> T:
        """What it returns or raises; BusyError where too many calls wait already, or where its turn comes too late."""
        return await self.submit(partial(self._in_time, work, time.monotonic()))

    def is_late(self, asked: float) -> bool:
        """Whether something asked for at that time of the monotonic clock has waited too long to be begun."""
        return time.monotonic() - asked > self._max_wait_s

    def close(self) -> None:
        """Begin nothing more, and wait for what has begun."""
        self._pool.shutdown(cancel_futures=True)

    def _in_time(self, work: Callable[[], T], asked: float) -> T:
        if self.is_late(asked):
            raise BusyError("waited too long")
        return work()

    def _count(self, change: int) -> None:
        self._under_way += change
        self._waiting.set(max(0, self._under_way - self._threads))


@dataclass(frozen=True, eq=False)
class _Query:
    text: str
    k: int
    answer: Future[Answer] = field(default_factory=Future)
    asked: float = field(default_factory=time.monotonic)


class Texts:
    """Texts that have come while the model was busy are answered together once a thread is free; none waits for others to come."""

    def __init__(self, searcher: LiveSearcher, workers: Workers, config: ServiceConfig, metrics: Metrics) -> None:
        self._searcher, self._workers, self._metrics = searcher, workers, metrics
        self._queries: deque[_Query] = deque()
        # A second model takes each text by itself, and the first would wait for the last.
        self._most = 1 if searcher.now().reranker is not None else config.max_batch

    async def answer(self, text: str, k: int) -> Answer:
        """The k pictures nearest to a text. BusyError as `Workers` raises it; what the searcher raises."""
        self._workers.check_room()
        query = _Query(text, k)
        self._queries.append(query)
        # Every text has a turn, in which all that wait then are answered; a turn that finds none left costs nothing.
        self._workers.submit(self._answer_waiting)
        return await asyncio.wrap_future(query.answer)

    def _answer_waiting(self) -> None:
        queries = self._take()
        late = [query for query in queries if self._workers.is_late(query.asked)]
        for query in late:
            query.answer.set_exception(BusyError("waited too long"))
        self._answer([query for query in queries if query not in late])

    def _take(self) -> list[_Query]:
        """The first of those that wait."""
        queries: list[_Query] = []
        with contextlib.suppress(IndexError):
            while len(queries) < self._most:
                queries.append(self._queries.popleft())
        return queries

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
