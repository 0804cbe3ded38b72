"""A service of a store whose server stops and starts again."""

from __future__ import annotations

from contextlib import ExitStack

import httpx2
import postgres
import pytest
import served
from processes import TIMEOUT_S

from dcdctl.core.search import FolderIndex, IndexSearcher
from dcdctl.core.serve import ServiceConfig, app
from dcdctl.core.stores import open_index, open_store, upload_index

CONFIG = ServiceConfig(retry_after_s=7)


def test_while_its_store_is_down_a_service_says_so_and_recovers_with_it(tmp_path):
    if reason := postgres.missing():
        pytest.skip(reason)
    made = served.make(tmp_path / "made")
    with postgres.cluster() as folder, ExitStack() as server:
        url = f"{server.enter_context(postgres.running(folder))}&table=served"
        store = open_store(url)
        upload_index(FolderIndex.open(made.index), store)
        store.close()
        index = open_index(url)
        service = app.build(IndexSearcher.for_index(index, device=served.CPU), CONFIG)
        with served.serving(service) as address, httpx2.Client(base_url=address, timeout=TIMEOUT_S) as client:
            expected = client.get("/search", params={"text": "two dogs", "k": 3}).json()["results"]
            assert len(expected) == 3
            assert client.get("/health").json()["status"] == "ok"
            server.close()
            health = client.get("/health")
            assert (health.status_code, health.json()["status"]) == (503, "store unavailable")
            for answer in (
                client.get("/search", params={"text": "two dogs"}),
                client.get("/search", params={"row": 1}),
                client.post("/search", json={"queries": [{"text": text} for text in served.CAPTIONS]}),
                client.get("/image/1"),
            ):
                assert (answer.status_code, answer.headers["Retry-After"]) == (503, "7")
                assert answer.json() == {"error": "the service is busy (the store does not answer); ask again in 7 s"}
            assert client.get("/live").status_code == 200
            server.enter_context(postgres.running(folder))
            assert client.get("/health").status_code == 200
            assert client.get("/search", params={"text": "two dogs", "k": 3}).json()["results"] == expected
        index.store.close()
