"""The responses of the service, requested without a network."""

from __future__ import annotations

import io
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import served
from html_page import Page
from made_index import update
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient
from tiny import make_models

from dcdctl.core import artifacts, models
from dcdctl.core.data import Corpus
from dcdctl.core.errors import StaleError
from dcdctl.core.search import CombinedQuery, FolderIndex, IndexSearcher
from dcdctl.core.search.torch_models import Reranker
from dcdctl.core.serve import ServiceConfig, search_routes

MAX_UPLOAD, MAX_PIXELS = 100_000, 300_000
CONFIG = ServiceConfig(
    max_k=50, default_k=5, max_upload_bytes=MAX_UPLOAD, max_pixels=MAX_PIXELS, max_text_chars=40, thumbnail_px=100
)


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> served.Made:
    """Another index, whose images are damaged, each by one test."""
    return served.make(tmp_path_factory.mktemp("served") / "own")


@pytest.fixture(scope="module")
def own_client(own) -> TestClient:
    return served.client_of(own.searcher, CONFIG)


@pytest.fixture(scope="module")
def client(searcher) -> TestClient:
    return served.client_of(searcher, CONFIG)


def png(size: tuple[int, int] = (8, 8)) -> bytes:
    stream = io.BytesIO()
    Image.new("L", size).save(stream, "PNG")
    return stream.getvalue()


def upload(client: TestClient, data: bytes, name: str = "a.png"):
    return client.post("/search", files={"image": (name, data)})


def test_a_text_finds_what_the_searcher_finds(client, searcher):
    found = client.get("/search", params={"text": "two dogs", "k": 7}).json()
    hits = searcher.by_text("two dogs", 7).hits
    assert [(one["row"], one["name"], one["score"], one["reranked"]) for one in found["results"]] == [
        (hit.row, hit.name, pytest.approx(hit.score), None) for hit in hits
    ]
    assert len(hits) == 7


def test_an_image_of_the_index_and_the_same_file_uploaded_find_it_first(client, made):
    row = made.row(served.LARGE)
    by_row = client.get("/search", params={"row": row}).json()["results"]
    by_file = upload(client, (made.photos / served.LARGE).read_bytes()).json()["results"]
    assert by_row == by_file
    assert by_row[0]["row"] == row
    assert by_row[0]["score"] == pytest.approx(1, abs=1e-3)
    assert len(by_row) == CONFIG.default_k


def test_a_query_of_several_parts_is_that_of_the_searcher(client, made, searcher):
    file, row = made.photos / served.LARGE, made.row(served.LARGE)
    others = {"also": ["dogs", "snow"], "not": ["a man"]}
    for text, image in (("a red bus", None), (None, file), ("a red bus", file)):
        query = CombinedQuery(text, image, ("dogs", "snow"), ("a man",))
        hits = [(hit.row, pytest.approx(hit.score, abs=1e-5)) for hit in searcher.ask(query, 7).hits]
        params = {**others, "k": 7} | ({"text": text} if text else {})
        by_row = client.get("/search", params=params | ({"row": row} if image else {})).json()
        answers = [by_row]
        if image:
            answers.append(client.post("/search", files={"image": ("a.png", file.read_bytes())}, params=params).json())
        for answer in answers:
            assert [(one["row"], one["score"]) for one in answer["results"]] == hits
            assert (answer["bars"], answer["weak"]) == ([], False)


def test_an_index_that_gets_codes_while_it_is_served_has_the_same_answers(client, made, tmp_path):
    folder = shutil.copytree(made.index, tmp_path / "index")
    changing = served.client_of(IndexSearcher.for_index(FolderIndex.open(folder), device=served.CPU), CONFIG)
    assert changing.get("/health").json()["kind"] == "flat"
    update(folder, sets=("flat_up_to=0", "segment_rows=5"))
    assert changing.get("/health").json()["kind"] == "codes"
    for params in ({"text": "two dogs", "k": 7}, {"row": 4, "k": 12}):
        assert (
            changing.get("/search", params=params).json()["results"]
            == client.get("/search", params=params).json()["results"]
        )


@pytest.fixture(scope="module")
def worded(made, tmp_path_factory) -> IndexSearcher:
    """A searcher of the same index with the words of its file names."""
    folder = shutil.copytree(made.index, tmp_path_factory.mktemp("worded") / "index")
    update(folder, sets=("keywords=true",))
    return IndexSearcher.for_index(FolderIndex.open(folder), device=served.CPU)


def test_a_hybrid_search_is_that_of_the_searcher_and_never_a_weak_match(worded):
    client = served.client_of(worded, CONFIG)
    for text, hybrid in (("photo", True), ("photo", False), ("two dogs 05", True)):
        found = client.get("/search", params={"text": text, "k": 3, "hybrid": hybrid}).json()
        hits = worded.by_text(text, 3, hybrid=hybrid).hits
        assert [(one["row"], one["bm25"], one["fused"]) for one in found["results"]] == [
            (hit.row, hit.bm25, hit.fused) for hit in hits
        ]
        assert not (hybrid and found["weak"])
    alone = client.get("/search", params={"text": "photo", "hybrid": True}).json()["results"]
    assert alone[0]["name"] == served.LARGE
    assert 'id="hybrid"' in client.get("/").text


def test_a_hybrid_search_without_words_is_refused_in_its_place_of_a_batch(client):
    queries = [{"text": "a bus", "hybrid": True}, {"text": "a bus"}]
    refused, answered = client.post("/search", json={"queries": queries}).json()["answers"]
    assert "an index with words; add them with `dcdctl change INDEX" in refused["error"]
    assert len(answered["results"]) == CONFIG.default_k
    assert 'id="hybrid"' not in client.get("/").text


def test_a_thumbnail_is_small_upright_and_without_metadata(client, made):
    answer = client.get(f"/image/{made.row(served.LARGE)}")
    picture = Image.open(io.BytesIO(answer.content))
    assert (answer.headers["content-type"], picture.format, picture.size) == ("image/jpeg", "JPEG", (33, 100))
    assert not picture.getexif()
    assert b"secret" not in answer.content


def test_an_original_is_the_file_with_the_type_of_its_contents(own, own_client):
    answer = own_client.get(f"/image/{own.row(served.LARGE)}?size=original")
    assert answer.content == (own.photos / served.LARGE).read_bytes()
    assert (answer.headers["content-type"], answer.headers["x-content-type-options"]) == ("image/jpeg", "nosniff")
    assert "sandbox" in answer.headers["content-security-policy"]
    (own.photos / served.LARGE).write_bytes((own.photos / "06.png").read_bytes())
    assert own_client.get(f"/image/{own.row(served.LARGE)}?size=original").headers["content-type"] == "image/png"


@pytest.mark.parametrize("size", ["thumbnail", "original"])
def test_a_browser_keeps_an_image_for_minutes_and_then_loads_it_only_if_it_changed(own, own_client, size):
    address, photo = f"/image/{own.row('07.png')}?size={size}", own.photos / "07.png"
    before = photo.read_bytes()
    first = own_client.get(address)
    assert first.headers["cache-control"] == "private, max-age=300"
    known = {"If-None-Match": f'"other", W/{first.headers["etag"]}'}
    again = own_client.get(address, headers=known)
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", first.headers["etag"])
    assert again.headers["cache-control"] == first.headers["cache-control"]
    other = {"thumbnail": "original", "original": "thumbnail"}[size]
    assert own_client.get(address.replace(size, other), headers=known).status_code == 200
    photo.write_bytes(png())
    assert own_client.get(address, headers=known).status_code == 200
    photo.unlink()
    gone = own_client.get(address, headers=known)
    assert (gone.status_code, gone.headers["cache-control"]) == (404, "no-store")
    photo.write_bytes(before)


def test_thumbnails_of_another_size_are_other_images_for_a_browser(searcher):
    clients = [served.client_of(searcher, replace(CONFIG, thumbnail_px=size)) for size in (40, 80)]
    first, second = (client.get("/image/0").headers["etag"] for client in clients)
    assert first != second


def leads_out(photo: Path, secret: Path) -> None:
    secret.write_bytes(photo.read_bytes())
    photo.unlink()
    photo.symlink_to(secret)


SPOILED: dict[str, Callable[[Path, Path], object]] = {
    "gone": lambda photo, _: photo.unlink(),
    "a link out of the folder": leads_out,
    "a page now": lambda photo, _: photo.write_text("<script>alert(1)</script>"),
    "a picture cut short": lambda photo, _: photo.write_bytes(photo.read_bytes()[:60]),
}


@pytest.mark.parametrize("what", SPOILED)
def test_images_that_are_gone_or_damaged_are_not_served(own, own_client, tmp_path, what):
    name = f"{list(SPOILED).index(what):02}.png"
    client, row = own_client, own.row(name)
    assert client.get(f"/image/{row}").status_code == 200
    SPOILED[what](own.photos / name, tmp_path / "secret.png")
    for address in (
        f"/image/{row}",
        f"/search?row={row}",
        *([f"/image/{row}?size=original"] if what != "a picture cut short" else []),
    ):
        answer = client.get(address)
        assert answer.status_code == 404
        assert answer.json() == {"error": f"image {row} is not in this index, or not where it was"}


def test_images_removed_during_service_are_neither_found_nor_shown(made, tmp_path):
    folder = shutil.copytree(made.index, tmp_path / "index")
    row, client = (
        made.row("03.png"),
        served.client_of(IndexSearcher.for_index(FolderIndex.open(folder), device=served.CPU), CONFIG),
    )
    addresses = (f"/image/{row}", f"/image/{row}?size=original", f"/search?row={row}")
    assert [client.get(address).status_code for address in addresses] == [200] * 3
    update(folder, remove=("03.png",))
    assert [client.get(address).status_code for address in addresses] == [404] * 3
    found = [one["row"] for one in client.get("/search?text=a+bus&k=50").json()["results"]]
    assert len(found) == len(served.NAMES) - 1
    assert row not in found
    assert client.get("/health").json()["images"] == len(found)
    assert f"{len(found)} images." in client.get("/").text


@pytest.mark.parametrize("what", ["is being changed", "is of another model"])
def test_while_an_index_cannot_be_opened_the_service_answers_from_the_previous_one(made, tmp_path, logged, what):
    folder = shutil.copytree(made.index, tmp_path / "index")
    client = served.client_of(IndexSearcher.for_index(FolderIndex.open(folder), device=served.CPU), CONFIG)
    before = client.get("/search?text=a+bus").json()["results"]
    document = artifacts.read_document(folder / "index.json")
    (folder / "index.json").unlink()
    if what == "is of another model":
        artifacts.write_document(
            folder / "index.json", {**document, "model": {**document["model"], "fingerprint": 64 * "a"}}
        )
    assert client.get("/search?text=a+bus").json()["results"] == before
    assert ("the service continues with the previous one" in logged.text) == (what == "is of another model")


def test_on_loopback_only_loopback_names_are_accepted(searcher):
    def statuses(config: ServiceConfig, *, is_loopback: bool) -> list[int]:
        client = served.client_of(searcher, config, is_loopback=is_loopback)
        hosts = ("localhost:80", "127.0.0.1", "[::1]:8000", "evil.example", "search.example.org")
        return [client.get("/health", headers={"Host": host}).status_code for host in hosts]

    named = replace(CONFIG, allowed_hosts=("search.example.org",))
    assert statuses(CONFIG, is_loopback=True) == [200, 200, 200, 400, 400]
    assert statuses(named, is_loopback=True) == statuses(named, is_loopback=False) == [200, 200, 200, 400, 200]
    assert statuses(CONFIG, is_loopback=False) == [200] * 5


def test_other_sites_may_not_embed_or_read_responses(client):
    for address in ("/", "/search?text=a", "/image/0", "/nope", "/openapi.json"):
        answer = client.get(address, headers={"Origin": "https://evil.example"})
        assert not [name for name in answer.headers if name.startswith("access-control")]
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]


def test_the_page_of_an_index_of_whole_vectors_calls_its_scores_cosines(client):
    assert "Scores are cosines." in client.get("/").text


def test_the_pages_load_only_files_of_the_service(client):
    answer = client.get("/")
    page = Page(answer.text)
    assert page.all("style") == []
    assert [one for _, one in page.tags if any(name.startswith("on") or name == "style" for name in one)] == []
    needed = [one["href"] for one in page.all("link")] + [one["src"] for one in page.all("script")]
    assert len(needed) == len(page.all("link")) + len(page.all("script")) > 1
    assert {client.get(f"/{name}").status_code for name in needed} == {200}
    assert "http" not in re.sub(r'(xmlns|"\$URL).*', "", "".join(client.get(f"/{name}").text for name in needed))
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
    assert (policy["default-src"], policy["script-src"], policy["style-src"]) == ("'none'", "'self'", "'self'")


def samples(client: TestClient, name: str) -> dict[tuple[str, ...], float]:
    """The values of a metric by the values of its labels, in order of the label names."""
    families = text_string_to_metric_families(client.get("/metrics").text)
    found = [one for family in families for one in family.samples if one.name == name]
    return {tuple(value for _, value in sorted(one.labels.items())): one.value for one in found}


def test_metrics_count_requests_by_route_and_status(searcher):
    client = served.client_of(searcher, CONFIG)
    for address in (
        "/search?text=a+bus",
        "/search?text=a+dog",
        "/search?text=a&k=0",
        "/image/0",
        "/image/1",
        "/secret/path",
    ):
        client.get(address)
    assert samples(client, "dcdctl_requests_total") == {
        ("GET", "/search", "200"): 2,
        ("GET", "/search", "422"): 1,
        ("GET", "/image/{row}", "200"): 2,
        ("GET", "other", "404"): 1,
    }
    assert samples(client, "dcdctl_request_seconds_count")["/search",] == 3
    assert samples(client, "dcdctl_search_seconds_count") == {("encode",): 2, ("find",): 2}
    assert samples(client, "dcdctl_requests_in_flight") == {(): 1}
    assert samples(client, "process_resident_memory_bytes")[()] > 2**20


@pytest.mark.parametrize(
    "error", [ZeroDivisionError("/secret/folder"), StaleError("/secret/folder is another", hint="index it again")]
)
def test_errors_that_users_cannot_fix_are_reported_without_details(searcher, monkeypatch, error, logged):
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(IndexSearcher, "by_texts", fail)
    client = served.client_of(searcher, CONFIG)
    answer = client.get("/search?text=a")
    assert (answer.status_code, answer.json()) == (500, {"error": "the search failed; the service's log says why"})
    assert "/secret/folder" in logged.text
    assert samples(client, "dcdctl_requests_total") == {("GET", "/search", "500"): 1}


@pytest.mark.parametrize("kind", ["fusion", "dual"])
def test_with_a_reranker_texts_are_reranked_and_images_are_not(searcher, kind):
    fusion, dual = make_models(served.CAPTIONS)
    scorer = fusion if kind == "fusion" else models.DualScorer(dual)
    second = replace(searcher, reranker=Reranker("runs/fusion", scorer, 3, served.CPU))
    client = served.client_of(second, CONFIG)
    assert client.get("/health").json()["reranker"] == "runs/fusion"
    by_text = client.get("/search?text=two+dogs").json()
    assert [one["reranked"] is None for one in by_text["results"]] == [False, False, False, True, True]
    assert by_text["rerank_ms"] > 0
    by_row = client.get("/search?row=0").json()
    assert by_row["results"][0]["row"] == 0
    assert by_row["notes"] == [search_routes.NOT_RERANKED]


def test_results_have_their_first_caption_as_long_as_the_corpus_is_there(scenes_corpus_dir, tmp_path):
    made = served.make(tmp_path / "all")
    moved = shutil.copytree(scenes_corpus_dir, tmp_path / "corpus")
    update(made.index, add=moved, split="val")
    corpus = Corpus.open(moved, "val")
    client = served.client_of(made.searcher, CONFIG)
    first = {name: corpus.captions[corpus.captions_of(row)[0]] for row, name in enumerate(corpus.image_ids)}
    answers = [client.get("/search", params={"text": "a red bus", "k": 50}).json() for _ in range(2)]
    for found in answers:
        assert found["captions"] == [first.get(hit["image_id"], "") for hit in found["results"]]
        assert {"", *first.values()} >= {*found["captions"]} != {""}
    shutil.rmtree(moved)
    found = served.client_of(made.searcher, CONFIG).get("/search", params={"text": "a red bus", "k": 50}).json()
    assert {*found["captions"]} == {""}
