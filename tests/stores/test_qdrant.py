"""What is special to Qdrant: aliases, refusals of a server, and what it does not keep or compare."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from made_index import unit_vectors, write_index, write_late
from made_store import COLUMNS, DIM, made_facts, made_images

from dcdctl.core.errors import InputError, StaleError
from dcdctl.core.search.columns.where import parse_where
from dcdctl.core.stores import open_index, open_store, retry, upload_index
from dcdctl.core.stores.retry import UnavailableError


@pytest.fixture
def store(qdrant_url):
    return open_store(qdrant_url())


@contextmanager
def refusing(status):
    """The address of a server that answers every request with this status, and the keys that it was sent."""
    keys = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            keys.append(self.headers["api-key"])
            self.send_response(status)
            self.end_headers()
            self.wfile.write(b"no")

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"127.0.0.1:{server.server_port}", keys
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_name_of_a_store_is_an_alias_that_moves_to_the_published_draft(store):
    store.create(made_facts())
    store.upsert(made_images().slice(0, 5))
    client = store._client
    (before,) = client.get_aliases().aliases
    assert before.alias_name == "photos"
    draft = store.draft()
    draft.create(made_facts(generation=2))
    draft.publish()
    (after,) = client.get_aliases().aliases
    assert (after.alias_name, [found.name for found in client.get_collections().collections]) == (
        "photos",
        [after.collection_name],
    )
    assert after.collection_name != before.collection_name


@pytest.mark.parametrize(("status", "num_waits"), [(503, 3), (429, 3), (401, 0), (400, 0)])
def test_a_server_is_asked_again_if_that_may_help(status, num_waits, waits, monkeypatch):
    with refusing(status) as (address, keys):
        store = open_store(f"qdrant://{address}/photos")
        kind, found = (UnavailableError, "does not answer") if num_waits else (InputError, "refuses")
        with pytest.raises(kind, match=rf"qdrant://{address}/photos {found}: .*{status}"):
            retry.repeated(store.facts, retry.FOR_A_QUESTION)
        store.close()
    assert (len(waits), keys) == (num_waits, [None] * (num_waits + 1))


def test_a_server_that_is_not_there_is_told(waits):
    with pytest.raises(UnavailableError, match=r"qdrant://127.0.0.1:1/photos does not answer: .*is the server running"):
        open_index("qdrant://127.0.0.1:1/photos")
    assert len(waits) == 3


def test_an_ipv6_address_and_an_encoded_name_arrive_as_they_are_meant():
    store = open_store("qdrant://[::1]:7/my%20photos")
    assert store._client._client.rest_uri == "http://[::1]:7"
    assert store._name == "my photos"
    store.close()


def test_a_collection_of_another_program_is_never_touched(store):
    from qdrant_client import models  # here, because it takes most of a second that only one process of the tests needs

    vectors = models.VectorParams(size=4, distance=models.Distance.COSINE)
    store._client.create_collection("photos", vectors_config=vectors)
    with pytest.raises(StaleError, match=r"is there, and dcdctl did not make it; .*nothing was changed"):
        store.facts()


def test_the_graph_is_searched_for_more_than_is_asked_and_exactly_if_it_gives_less(store, monkeypatch):
    store.create(made_facts())
    store.upsert(made_images().slice(0, 90))
    ask, params = store._client.query_batch_points, []

    def noted(collection, requests):
        params.extend((request.params.hnsw_ef, bool(request.params.exact)) for request in requests)
        return ask(collection, requests)

    monkeypatch.setattr(store._client, "query_batch_points", noted)
    for count, expected in ((1, [(128, False)]), (80, [(160, False)]), (100, [(200, False), (None, True)])):
        params.clear()
        store.search(unit_vectors(1, DIM), count)
        assert params == expected


def test_a_request_has_fewer_images_if_each_has_more_numbers(store, tmp_path, monkeypatch):
    sent, upsert = [], type(store).upsert

    def noted(self, images):
        sent.append(len(images))
        upsert(self, images)

    monkeypatch.setattr(type(store), "upsert", noted)
    monkeypatch.setattr(type(store), "batch_rows", 8)
    upload_index(write_index(tmp_path / "short", [unit_vectors(12, 512)]), store)
    upload_index(write_index(tmp_path / "long", [unit_vectors(9, 1024)]), store, replace=True)
    # 2,400 numbers each, three to a part.
    upload_index(write_late(tmp_path / "late", [400] * 4)[0], store, replace=True)
    assert sent == [8, 4, 4, 4, 1, 1, 1, 1, 1]


def test_what_qdrant_does_not_compare_is_refused(store):
    store.create(made_facts())
    with pytest.raises(InputError, match="Qdrant does not order numbers as large as 9007199254740993"):
        store.count(parse_where("year > 9007199254740993", COLUMNS))


def test_a_column_may_have_a_dot_or_a_bracket_in_its_name(store):
    facts = made_facts(columns={"a.b[0] c": "string"})
    store.create(facts)
    images = made_images().slice(0, 9).select(["row", "source", "image_id", "path", "corpus_row", "vector", "owner"])
    store.upsert(images.rename_columns(facts.image_schema.names))
    assert store.count(parse_where('"a.b[0] c" is not null', facts.schema)) == 9 - images.column("owner").null_count
