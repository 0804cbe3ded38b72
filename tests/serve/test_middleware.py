"""Limits between clients: request bodies, time, and slots in the queue."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import httpx2
import pytest
import served
from starlette.types import ASGIApp

from dcdctl.core.serve import ServiceConfig
from dcdctl.core.serve import app as serve_app

CHUNK = 10_000
CONFIG = ServiceConfig(max_upload_bytes=5 * CHUNK, max_waiting=1, search_workers=1)


def sent(app: ASGIApp, chunks: AsyncIterator[bytes], **headers: str) -> tuple[int, int]:
    """The status of an upload, and the number of its chunks that were read."""
    num_taken = 0

    async def counted() -> AsyncIterator[bytes]:
        nonlocal num_taken
        async for chunk in chunks:
            num_taken += 1
            yield chunk

    async def work(client: httpx2.AsyncClient) -> int:
        told = {"Content-Type": "multipart/form-data; boundary=x", **headers}
        return (await client.post("/search", content=counted(), headers=told)).status_code

    return served.asking(app, work), num_taken


async def endless() -> AsyncIterator[bytes]:
    yield b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
    while True:
        yield bytes(CHUNK)


async def stuck() -> AsyncIterator[bytes]:
    yield b"--x\r\n"
    await asyncio.Event().wait()


@pytest.mark.parametrize(
    ("chunks", "headers", "expected", "reason"),
    [
        (endless, {}, (413, 6), "upload too large"),
        # Not even read.
        (endless, {"Content-Length": "100000000"}, (413, 0), "upload too large"),
        (stuck, {}, (408, 1), "upload too slow"),
    ],
    ids=["too large", "announced as too large", "stalled"],
)
def test_an_upload_is_refused_as_soon_as_it_breaks_a_limit_and_counted(searcher, chunks, headers, expected, reason):
    app = serve_app.build(searcher, replace(CONFIG, max_upload_s=0.01) if chunks is stuck else CONFIG)
    assert sent(app, chunks(), **headers) == expected

    async def metrics(client: httpx2.AsyncClient) -> str:
        return (await client.get("/metrics")).text

    assert f'dcdctl_rejected_total{{reason="{reason}"}} 1.0' in served.asking(app, metrics)


def test_a_request_that_ends_without_an_answer_counts_as_500(searcher, monkeypatch):
    app = serve_app.build(searcher, CONFIG)

    async def fail(*_: object) -> None:
        raise asyncio.CancelledError

    async def work(client: httpx2.AsyncClient) -> str:
        with monkeypatch.context() as patch:
            patch.setattr(app, "app", fail)
            with pytest.raises(asyncio.CancelledError):
                await client.get("/search?text=a+bus")
        return (await client.get("/metrics")).text

    assert 'dcdctl_requests_total{method="GET",route="other",status="500"} 1.0' in served.asking(app, work)


def test_a_full_queue_is_refused_at_once_and_health_still_answers(searcher):
    held = served.HeldSearcher.of(searcher)

    async def work(client: httpx2.AsyncClient) -> list[int]:
        asked = [asyncio.create_task(client.get(f"/search?text=a+bus&k={k}")) for k in (1, 2, 3)]
        done, waiting = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
        refused = [await one for one in done]
        assert [one.status_code for one in refused] == [503]
        assert refused[0].headers["retry-after"] == "1"
        assert "queue full" in refused[0].json()["error"]
        assert (await client.get("/health")).status_code == 200
        metrics = (await client.get("/metrics")).text
        assert 'dcdctl_rejected_total{reason="queue full"} 1.0' in metrics
        assert 'dcdctl_under_way{work="search"} 2.0' in metrics
        assert (await client.get("/image/0")).status_code == 200
        held.may_end.set()
        return [(await one).status_code for one in waiting]

    assert served.asking(serve_app.build(held, CONFIG), work) == [200, 200]


def test_waiting_texts_are_answered_together_with_the_answers_of_each_alone(searcher):
    held, texts = served.HeldSearcher.of(searcher), ["a red bus", "two dogs", " ", "a man", "a horse"]
    config = replace(CONFIG, max_waiting=10, max_batch=2)

    async def work(client: httpx2.AsyncClient) -> list[httpx2.Response]:
        def ask(k: int) -> asyncio.Task[httpx2.Response]:
            return asyncio.create_task(client.get("/search", params={"text": texts[k - 1], "k": k}))

        asked = [ask(1)]
        await asyncio.to_thread(held.begun.wait)
        asked += [ask(k) for k in range(2, 6)]
        # All requests are sent before the first may end: a request gets its slot without waiting.
        while 'dcdctl_under_way{work="search"} 5.0' not in (await client.get("/metrics")).text:
            await asyncio.sleep(0)
        held.may_end.set()
        return await asyncio.gather(*asked)

    answers = served.asking(serve_app.build(held, config), work)
    # The texts of a batch with an invalid text are searched again one by one.
    assert held.batches == [["a red bus"], ["two dogs", " "], ["two dogs"], [" "], ["a man", "a horse"]]
    assert [one.status_code for one in answers] == [200, 200, 400, 200, 200]
    for k, (text, answer) in enumerate(zip(texts, answers, strict=True), start=1):
        if text != " ":
            assert [one["row"] for one in answer.json()["results"]] == [
                hit.row for hit in searcher.by_text(text, k).hits
            ]


def test_only_texts_of_the_same_condition_are_answered_together(searcher):
    held = served.HeldSearcher.of(searcher)
    first, second = (f"image_id {sign} '{served.LARGE}'" for sign in ("=", "!="))

    async def work(client: httpx2.AsyncClient) -> list[list[str]]:
        asked = [asyncio.create_task(client.get("/search", params={"text": "a"}))]
        await asyncio.to_thread(held.begun.wait)
        params = [{"text": "b", "where": first}, {"text": "c", "where": second}, {"text": "d", "where": second}]
        for count, one in enumerate(params, start=2):
            asked.append(asyncio.create_task(client.get("/search", params=one)))
            # One after the other: which texts share a batch depends on their order.
            while f'dcdctl_under_way{{work="search"}} {count}.0' not in (await client.get("/metrics")).text:
                await asyncio.sleep(0)
        held.may_end.set()
        return [[hit["name"] for hit in (await one).json()["results"]] for one in asked]

    _, *names = served.asking(serve_app.build(held, replace(CONFIG, max_waiting=10)), work)
    assert held.batches == [["a"], ["b"], ["c", "d"]]
    assert [served.LARGE in found for found in names] == [True, False, False]
    assert names[0] == [served.LARGE]


def test_a_cancelled_text_does_not_affect_others_in_its_batch(searcher):
    held = served.HeldSearcher.of(searcher)

    async def work(client: httpx2.AsyncClient) -> list[int]:
        first, left, stays = (asyncio.create_task(client.get(f"/search?text={text}")) for text in ("a", "b", "c"))
        await asyncio.to_thread(held.begun.wait)
        while 'dcdctl_under_way{work="search"} 3.0' not in (await client.get("/metrics")).text:
            await asyncio.sleep(0)
        left.cancel()
        await asyncio.wait([left])
        held.may_end.set()
        return [(await one).status_code for one in (first, stays)]

    assert served.asking(serve_app.build(held, replace(CONFIG, max_waiting=10)), work) == [200, 200]
    assert held.batches == [["a"], ["c"]]


def test_requests_that_waited_too_long_are_not_started(searcher):
    app = serve_app.build(searcher, replace(CONFIG, max_wait_s=1e-9))

    async def work(client: httpx2.AsyncClient) -> list[httpx2.Response]:
        return [await client.get(address) for address in ("/search?text=a", "/search?row=0", "/image/0")]

    for answer in served.asking(app, work):
        assert answer.status_code == 503
        assert "waited too long" in answer.json()["error"]


def test_beyond_the_request_limit_only_health_and_metrics_answer(searcher):
    held = served.HeldSearcher.of(searcher)

    async def work(client: httpx2.AsyncClient) -> list[int]:
        first = asyncio.create_task(client.get("/search?text=a"))
        await asyncio.to_thread(held.begun.wait)
        statuses = [
            (await client.get(address)).status_code
            for address in ("/", "/image/0", "/search?text=b", "/health", "/metrics")
        ]
        held.may_end.set()
        return [*statuses, (await first).status_code]

    assert served.asking(serve_app.build(held, replace(CONFIG, max_requests=1)), work) == [503, 503, 503, 200, 200, 200]


def test_slow_uploads_leave_room_for_searches(searcher):
    """More of them than requests may be in progress."""

    async def work(client: httpx2.AsyncClient) -> list[int]:
        sent = {"Content-Type": "multipart/form-data; boundary=x"}
        uploads = [asyncio.create_task(client.post("/search", content=stuck(), headers=sent)) for _ in range(12)]
        refused, arriving = await asyncio.wait(uploads, return_when=asyncio.FIRST_COMPLETED)
        while len(refused) < 9:
            done, arriving = await asyncio.wait(arriving, return_when=asyncio.FIRST_COMPLETED)
            refused |= done
        assert {(await one).status_code for one in refused} == {503}
        assert "too many uploads" in (await next(iter(refused))).json()["error"]
        found = [(await client.get("/search?text=a+bus")).status_code for _ in range(3)]
        for one in arriving:
            one.cancel()
        await asyncio.wait(arriving)
        # Their places are free again.
        found.append((await client.post("/search", json={"queries": [{"text": "a bus"}]})).status_code)
        return found

    config = replace(CONFIG, max_requests=6, max_waiting=0)
    assert served.asking(serve_app.build(searcher, config), work) == [200] * 4
