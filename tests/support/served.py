"""An index to be served, and a server for it on 127.0.0.1."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pyarrow as pa
import torch
from made_index import build, update
from PIL import Image
from processes import TIMEOUT_S
from starlette.testclient import TestClient
from starlette.types import ASGIApp
from tiny import make_models

from dcdctl.core import models
from dcdctl.core.search import Condition, FolderIndex, IndexConfig, IndexSearcher, SearchAnswer
from dcdctl.core.serve import ServiceConfig, app
from dcdctl.core.serve import listener as sockets
from dcdctl.core.serve.middleware import LimitsMiddleware

CPU = torch.device("cpu")
CAPTIONS = ["a red bus", "two dogs in the snow", "a man on a horse"]
NAMES = [
    "<img src=x onerror=alert(1)>.png",
    "a & b \"c\" 'd'.jpg",
    "犬 \u202eslow.png",
    "photo.jpg",
    *(f"{i:02}.png" for i in range(8)),
]
"""Names of the image files, in no particular order."""
LARGE, WIDE = "photo.jpg", (900, 300)
"""The only large image; its EXIF orientation turns it by 90 degrees."""


@dataclass(frozen=True)
class Made:
    """A dual encoder, a folder of images, and their index."""

    run: Path
    photos: Path
    index: Path

    @property
    def searcher(self) -> IndexSearcher:
        return IndexSearcher.for_index(FolderIndex.open(self.index), device=CPU)

    def with_columns(self, **columns: Sequence[object]) -> Made:
        """The same with these columns, whose values are in the order of `NAMES`."""
        table = pa.table({"image": NAMES, **columns})
        update(self.index, metadata=table)
        return self

    def row(self, name: str) -> int:
        index = FolderIndex.open(self.index)
        return [index.name(row) for row in range(index.num_rows)].index(name)


def make(folder: Path, captions: Sequence[str] = CAPTIONS) -> Made:
    """All of it, tiny, in a new folder; the words of the captions are those that the model knows."""
    made = Made(folder / "run", folder / "photos", folder / "index")
    made.photos.mkdir(parents=True)
    rng, exif = np.random.default_rng(0), Image.Exif()
    for name in NAMES:
        Image.fromarray(rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(made.photos / name)
    exif[274], exif[305] = 6, "secret"
    Image.new("RGB", WIDE, "red").save(made.photos / LARGE, exif=exif)
    models.save(make_models(captions)[1], made.run)
    # Without the columns of EXIF data: the tests set columns of their own.
    build(made.run, made.photos, made.index, IndexConfig(exif="none"))
    return made


@dataclass(frozen=True)
class HeldSearcher(IndexSearcher):
    """A searcher that answers only after `may_end` is set, like a slow model."""

    begun: threading.Event = field(default_factory=threading.Event)
    may_end: threading.Event = field(default_factory=threading.Event)
    batches: list[list[str]] = field(default_factory=list)

    @staticmethod
    def of(searcher: IndexSearcher) -> HeldSearcher:
        return HeldSearcher(searcher.index, searcher.texts, searcher.encoder)

    def by_texts(
        self, texts: list[str], k: int = 10, where: Condition | None = None, **options: object
    ) -> list[SearchAnswer]:
        self.batches.append(list(texts))
        self.begun.set()
        self.may_end.wait()
        return super().by_texts(texts, k, where, **options)


def asking(service: ASGIApp, work: Callable[[httpx2.AsyncClient], Awaitable[Any]]) -> Any:
    """The result of the work, which gets a client for the app."""

    async def run() -> Any:
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(service), base_url="http://localhost") as client:
            return await asyncio.wait_for(work(client), timeout=TIMEOUT_S)

    return asyncio.run(run())


def client_of(searcher: IndexSearcher, config: ServiceConfig, **options: Any) -> TestClient:
    """A client for the app of a searcher, without a network."""
    service = app.build(searcher, config, **options)
    return TestClient(service, base_url="http://localhost", raise_server_exceptions=False)


@contextmanager
def serving(service: LimitsMiddleware, config: ServiceConfig | None = None) -> Iterator[str]:
    """The URL of a real server, without a slash at its end."""
    with sockets.bound("127.0.0.1", 0) as listener:
        listener.listen()
        server = sockets.http_server(service, config or ServiceConfig())
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield sockets.url_of(listener).rstrip("/")
        finally:
            server.should_exit = True
            thread.join()
