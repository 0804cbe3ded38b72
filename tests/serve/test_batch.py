"""Many texts in one request."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import httpx2
import served
from made_index import update

from dcdctl.core.errors import StaleError
from dcdctl.core.search import FolderIndex, IndexSearcher
from dcdctl.core.serve import ServiceConfig, app

CONFIG = ServiceConfig(default_k=4, max_k=9, max_text_chars=20, max_queries=5, max_waiting=5)


def rows(answer: dict[str, Any]) -> list[int]:
    return [one["row"] for one in answer["results"]]


def test_a_batch_has_the_answers_of_its_texts_in_their_order_encoded_together(searcher):
    held = served.HeldSearcher.of(searcher)
    held.may_end.set()
    queries = [{"text": "two dogs", "k": 7}, {"text": "a red bus"}, {"text": "a man", "k": 1}]
    client = served.client_of(held, CONFIG)
    answers = client.post("/search", json={"queries": queries}).json()["answers"]
    assert held.batches == [["two dogs", "a red bus", "a man"]]
    for query, answer in zip(queries, answers, strict=True):
        alone = client.get("/search", params=query).json()
        assert rows(answer) == rows(alone)
        assert len(rows(answer)) == query.get("k", 4)
        assert (answer["weak"], answer["bars"]) == (alone["weak"], alone["bars"])


def test_a_wrong_query_has_its_error_in_its_place_and_the_others_their_answers(searcher):
    queries = [
        {"text": "two dogs"},
        {"text": " "},
        {"text": "a", "k": 10},
        {"text": 21 * "x", "limit": 3},
        {"text": "a red bus"},
    ]
    response = served.client_of(searcher, CONFIG).post("/search", json={"queries": queries})
    answers = response.json()["answers"]
    assert response.status_code == 200
    assert rows(answers[0]) == [hit.row for hit in searcher.by_text("two dogs", 4).hits]
    assert "the query is empty" in answers[1]["error"]
    assert answers[2] == {"error": "k: Input should be less than or equal to 9"}
    assert answers[3] == {
        "error": "text: String should have at most 20 characters; limit: Extra inputs are not permitted"
    }
    assert rows(answers[4]) == [hit.row for hit in searcher.by_text("a red bus", 4).hits]
    only_wrong = served.client_of(searcher, CONFIG).post(
        "/search", json={"queries": ["a", {"k": 1}, {"text": "a", "k": True}]}
    )
    errors = [one["error"] for one in only_wrong.json()["answers"]]
    assert [error.partition(":")[0] for error in errors] == ["query", "text", "k"]


def test_texts_of_a_batch_may_be_searched_by_words(tmp_path):
    folder = served.make(tmp_path / "all").index
    update(folder, sets=("keywords=true",))
    searcher = IndexSearcher.for_index(FolderIndex.open(folder), device=served.CPU)
    client = served.client_of(searcher, CONFIG)
    queries = [
        {"text": "photo", "k": 3, "hybrid": True},
        {"text": "photo", "k": 3},
    ]
    answers = client.post("/search", json={"queries": queries}).json()["answers"]
    assert rows(answers[0]) == rows(client.get("/search", params=queries[0]).json()) != rows(answers[1])
    assert rows(answers[1]) == rows(client.get("/search", params=queries[1]).json())


def test_a_batch_is_never_larger_than_the_queue(searcher):
    response = served.client_of(searcher, replace(CONFIG, max_waiting=1)).post(
        "/search", json={"queries": 3 * [{"text": "a"}]}
    )
    assert "1 to 2 queries, got 3" in response.json()["error"]


def test_a_failure_of_the_service_fails_the_batch(searcher, monkeypatch, logged):
    def fail(*_: object, **__: object) -> None:
        raise StaleError("/secret/folder is another")

    monkeypatch.setattr(IndexSearcher, "by_texts", fail)
    response = served.client_of(searcher, CONFIG).post("/search", json={"queries": [{"text": "a"}, {"text": "b"}]})
    assert (response.status_code, response.json()) == (500, {"error": "the search failed; the service's log says why"})
    assert "/secret/folder" in logged.text


def test_each_text_of_a_batch_takes_a_place_in_the_queue(searcher):
    held = served.HeldSearcher.of(searcher)

    async def work(client: httpx2.AsyncClient) -> list[httpx2.Response]:
        first = asyncio.create_task(client.post("/search", json={"queries": 4 * [{"text": "a"}]}))
        await asyncio.to_thread(held.begun.wait)
        # Six places, four of them taken.
        refused = await client.post("/search", json={"queries": 3 * [{"text": "b"}]})
        second = asyncio.create_task(client.post("/search", json={"queries": 2 * [{"text": "c"}]}))
        await asyncio.sleep(0)
        while 'dcdctl_under_way{work="search"} 6.0' not in (await client.get("/metrics")).text:
            await asyncio.sleep(0)
        held.may_end.set()
        return [refused, await first, await second]

    refused, first, second = served.asking(app.build(held, CONFIG), work)
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert "queue full" in refused.json()["error"]
    assert [len(one.json()["answers"]) for one in (first, second)] == [4, 2]
    assert held.batches == [["a"] * 4, ["c"] * 2]
