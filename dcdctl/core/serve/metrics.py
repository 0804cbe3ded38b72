"""The metrics of the service for Prometheus, by the official client.

Each service has its own registry, so that a process may run several. The processes of one service share their numbers
through files (`Shared`), so that each of them answers with the sums.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
    values,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4 as CONTENT_TYPE
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

if TYPE_CHECKING:
    from dcdctl.core.search import SearchAnswer

__all__ = ["CONTENT_TYPE", "Metrics", "Shared"]
# From a search in a small index to the time limit of a request, 1, 2.5, 5 in each decade.
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True)
class Shared:
    """The files in which the processes of a service keep their metrics, and the number of this process, from 1."""

    folder: Path
    number: int

    def join(self) -> None:
        """Keep the metrics of this process there from now on; called before any metric is made, once per process."""
        # The number names the files, not the process id: a process that is started again continues the counters of the
        # one that ended.
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(self.folder)
        values.ValueClass = values.MultiProcessValue(lambda: self.number)

    def leave(self) -> None:
        """Remove what counts only while the process lives; called when it has ended, by its parent."""
        mark_process_dead(self.number, str(self.folder))


class Metrics:
    """The metrics of one service; safe to use from any thread."""

    def __init__(self, shared: Shared | None = None) -> None:
        """`shared` is for a service of several processes."""
        disable_created_metrics()  # creation times, which double the number of series
        registry = self._answered = CollectorRegistry()
        if shared is None:
            ProcessCollector(registry=registry)  # memory and CPU time
        else:
            self._answered = CollectorRegistry()
            MultiProcessCollector(self._answered, str(shared.folder))
        names: dict[str, Any] = {"registry": registry, "namespace": "dcdctl"}
        self._requests = Counter("requests", "Requests answered.", ["route", "method", "status"], **names)
        self._seconds = Histogram(
            "request_seconds", "Time until a request was answered completely.", ["route"], buckets=SECONDS, **names
        )
        self._stages = Histogram(
            "search_seconds", "Time of the stages of a search.", ["stage"], buckets=SECONDS, **names
        )
        self._rejected = Counter(
            "rejected", "Requests and connections refused because of a limit.", ["reason"], **names
        )
        # Of living processes only: a killed one leaves its last value behind.
        now: dict[str, Any] = {**names, "multiprocess_mode": "livesum"}
        self.in_flight = Gauge("requests_in_flight", "Requests in progress.", **now)
        self.connections = Gauge("connections", "Open connections.", **now)
        self.under_way = Gauge(
            "under_way", "Searches and image requests that have a thread or wait for one.", ["work"], **now
        )
        Gauge("processes", "Processes that answer requests.", **now).set(1)

    def answered(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count an answered request."""
        self._requests.labels(route, method, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def rejected(self, reason: str) -> None:
        """Count a request refused by a limit."""
        self._rejected.labels(reason).inc()

    def searched(self, answer: SearchAnswer) -> None:
        """Record the stages of a search."""
        stages = {"encode": answer.encode_seconds, "find": answer.find_seconds, "rerank": answer.rerank_seconds}
        for stage, seconds in stages.items():
            # Searches without a re-ranker would fill its histogram with zeros.
            if seconds or stage != "rerank":
                self._stages.labels(stage).observe(seconds)

    def text(self) -> bytes:
        """All metrics in the text format; of several processes the sums."""
        return generate_latest(self._answered)
