"""Qdrant without a server: the in-memory mode of its client, behind the URLs `qdrant://memory-NAME/COLLECTION`."""

from __future__ import annotations

from functools import cache
from typing import Any

from qdrant_client import QdrantClient


class MemoryClient(QdrantClient):
    """One server's collections. What the in-memory mode warns of, because it compares all vectors, is left out."""

    def __init__(self) -> None:
        super().__init__(location=":memory:")

    def create_payload_index(self, *arguments: Any, **options: Any) -> None:
        pass

    def query_batch_points(self, collection: str, requests: Any) -> Any:
        return super().query_batch_points(
            collection, [request.model_copy(update={"params": None}) for request in requests]
        )

    def close(self, *arguments: Any, **options: Any) -> None:
        """Nothing: a server keeps its collections when a client leaves."""


@cache
def client_of(url: str) -> MemoryClient:
    return MemoryClient()
