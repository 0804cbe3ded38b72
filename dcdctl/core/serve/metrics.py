"""The metrics of the service for Prometheus, by the official client.

The client also reports memory and CPU time of the process. Each service has its own registry, so that a process may run several.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, disable_created_metrics, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4 as CONTENT_TYPE

from dcdctl.core.search import Answer, ImageIndex

__all__ = ["CONTENT_TYPE", "Metrics"]
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """The metrics of one service; safe to use from any thread."""

    def __init__(self, index: Callable[[], ImageIndex]) -> None:
        """`index` returns the index that is searched now."""
        disable_created_metrics()  # creation times, which double the number of series
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        names: dict[str, Any] = {"registry": registry, "namespace": "dcdctl"}
        self._requests = Counter("requests", "Requests answered.", ["route", "method", "status"], **names)
        self._seconds = Histogram("request_seconds", "Time until a request was answered completely.", ["route"], buckets=SECONDS, **names)
        self._stages = Histogram("search_seconds", "Time of the stages of a search.", ["stage"], buckets=SECONDS, **names)
        self._batches = Histogram("text_batch_size", "Texts encoded together.", buckets=(1, 2, 4, 8, 16, 32, 64), **names)
        self.in_flight = Gauge("requests_in_flight", "Requests in progress.", **names)
        self.connections = Gauge("connections", "Open connections.", **names)
        self.under_way = Gauge("under_way", "Searches and image requests that have a thread or wait for one.", ["work"], **names)
        self._rejected = Counter("rejected", "Requests and connections refused because of a limit.", ["reason"], **names)
        Gauge("index_images", "Images that are searched.", **names).set_function(lambda: index().num_images)
        first = index()
        info = Gauge("index_info", "The model and the kind of the index.", ["model", "kind"], **names)
        info.labels(first.fingerprint[:12], first.kind).set(1)

    def answered(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count an answered request."""
        self._requests.labels(route, method, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def rejected(self, reason: str) -> None:
        """Count a request refused by a limit."""
        self._rejected.labels(reason).inc()

    def searched(self, answer: Answer, num_together: int = 1) -> None:
        """Record the stages of a search; `num_together` texts were encoded together."""
        stages = {"encode": answer.encode_seconds, "find": answer.find_seconds, "rerank": answer.rerank_seconds}
        for stage, seconds in stages.items():
            # Searches without a re-ranker would fill its histogram with zeros.
            if seconds or stage != "rerank":
                self._stages.labels(stage).observe(seconds)
        self._batches.observe(num_together)

    def text(self) -> bytes:
        """All metrics in the text format."""
        return generate_latest(self._registry)
