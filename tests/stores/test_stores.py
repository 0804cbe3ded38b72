"""Every store gives the answers of an exact search, keeps vectors bit by bit, and resumes a killed upload."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from made_edges import CASES, EDGES, LIKES, PATTERNS, edge_condition, edge_facts, edge_images
from made_index import Killed, exact, ragged, unit_vectors, write_index, write_late
from made_store import COLUMNS, COUNT, DIM, URLS, made_facts, made_images, vectors_of

from dcdctl.core.config import to_table
from dcdctl.core.errors import InputError, MissingError, StaleError
from dcdctl.core.search import StoredTokens
from dcdctl.core.search.columns.where import matches, parse_where
from dcdctl.core.stores import (
    StoreIndex,
    open_index,
    open_store,
    retry,
    store_index,
    upload_index,
)
from dcdctl.core.stores.protocol import Store
from dcdctl.core.stores.retry import UnavailableError


@pytest.fixture(params=URLS)
def url(request, tmp_path):
    return URLS[request.param](request, tmp_path)


@pytest.fixture
def store(url):
    opened = open_store(url)
    yield opened
    opened.close()


def fill(store):
    store.create(made_facts())
    store.upsert(made_images())
    store.finish()
    return store


@pytest.fixture
def full(store):
    """A store with made-up images."""
    return fill(store)


@pytest.fixture(scope="module", params=URLS)
def read_only(request, tmp_path_factory):
    """A store with made-up images, which is not to be changed."""
    store = fill(open_store(URLS[request.param](request, tmp_path_factory.mktemp("stores"))))
    yield store
    store.close()


def pairs(images, name, values):
    """For each image its value and the one that it was compared with."""
    images = images.sort_by("row")
    tested = [values[block] for block in images["tested"].to_pylist()]
    return [(str(value), other) for value, other in zip(images[name], tested, strict=True)]


def hit_rows(hits):
    return [hit.row for hit in hits]


@pytest.mark.parametrize("k", [1, 10, COUNT + 5])
def test_a_store_finds_what_an_exact_search_finds_ties_by_row(read_only, k):
    index, vectors = StoreIndex.open(read_only), vectors_of(made_images())
    queries = np.concatenate([unit_vectors(4, DIM, seed=9), vectors[3:4]])
    for query, hits in zip(queries, index.search(queries, k), strict=True):
        assert hit_rows(hits) == exact(vectors, query, k)
        scores = (
            vectors[hit_rows(hits)].astype(float)
            @ query
            / np.linalg.norm(vectors[hit_rows(hits)].astype(float), axis=1)
        )
        np.testing.assert_allclose([hit.score for hit in hits], scores / np.linalg.norm(query.astype(float)), atol=1e-6)


CONDITIONS = [
    "owner = 'ann'",
    "owner != 'bob''s'",
    "owner = 'a \"quote\"' or owner = '50%' or owner = 'back\\slash'",
    "owner in ('日本 \U0001f600', 'new\nline', '', '5_0')",
    "owner not in ('ann', 'Été')",
    "owner is null",
    "owner is not null and not is_public",
    "year = 4611686018427387905 or year = -4611686018427387905",
    "year >= 2020 and year < 2021",
    "not (year between 2000 and 2020)",
    "year in (1999, 2021)",
    '"score of judges" > 0.1',
    '"score of judges" = 0.1 or "score of judges" <= -2.5',
    "is_public",
    "is_public != true",
    "day = '2020-01-31' or day < '1970-01-01'",
    "day in ('2024-02-29', '2020-01-31') and day not in ('2020-01-31')",
    "taken > '2020-01-31 12:30:15.123455' and taken <= '2020-01-31T12:30:15.123456'",
    "taken != '1969-07-20'",
    "not (owner = 'ann' or (year is null and day is not null))",
    "image_id = 'déjà/5.png'",
    "owner < 'b'",
    "owner >= 'Z' and owner <= 'Été'",
    "owner like '5_0'",
    "owner like '5\\_0'",
    "owner like '%\\\\%'",
    "owner like '%n%' and owner not like 'ann%'",
]


@pytest.mark.parametrize("text", CONDITIONS)
def test_a_condition_holds_for_the_same_images_as_in_an_index(read_only, text):
    images = made_images()
    condition = parse_where(text, COLUMNS)
    held = matches(condition, images)
    assert held.any()
    assert read_only.count(condition) == held.sum()
    query = unit_vectors(1, DIM, seed=5)
    (hits,) = StoreIndex.open(read_only).search(query, 12, condition)
    assert hit_rows(hits) == exact(vectors_of(images), query[0], 12, removed=np.flatnonzero(~held).tolist())


@pytest.fixture(scope="module", params=URLS)
def edges(request, tmp_path_factory):
    """A store with values at the edges of each type of column, and its images."""
    store = open_store(URLS[request.param](request, tmp_path_factory.mktemp("stores")))
    images = edge_images()
    if store.kind == "postgresql":  # which keeps no NUL
        images = images.filter(np.array(["\0" not in (text or "") for text in images["text"].to_pylist()]))
    store.create(edge_facts())
    store.upsert(images)
    store.finish()
    yield store, images
    store.close()


@pytest.mark.parametrize(("name", "operator"), CASES)
def test_values_at_the_edges_of_their_types_compare_as_in_an_index(edges, name, operator):
    store, images = edges
    values = PATTERNS if operator in LIKES else EDGES[name][1]
    if store.kind == "postgresql":
        values = [value for value in values if value != "a\0b"]
    condition = parse_where(edge_condition(name, operator, values), edge_facts().schema)
    (found,), _ = store.search(unit_vectors(1, images["vector"].type.list_size), len(images), condition)
    expected = images.filter(matches(condition, images))
    assert pairs(found, name, values) == pairs(expected, name, values)


def test_a_condition_that_no_image_meets_finds_nothing(read_only):
    assert StoreIndex.open(read_only).search(unit_vectors(2, DIM), 5, parse_where("owner = 'nobody'", COLUMNS)) == [
        (),
        (),
    ]


def test_images_come_back_as_they_were_sent(read_only):
    images = made_images()
    assert read_only.fetch(np.array([119, 0, 7, 4000])).equals(images.take([0, 7, 119]))
    index = StoreIndex.open(read_only)
    (hits,) = index.search(unit_vectors(1, DIM, seed=5), COUNT)
    assert len(hits) == COUNT
    for hit in hits:
        values = images.slice(hit.row, 1).to_pylist()[0]
        assert (hit.image_id, hit.name) == (values["image_id"], values["path"])
        assert hit.columns == {name: values[name] for name in COLUMNS.names}
    rows = np.array([5, 119, 5])
    assert index.stored(rows).data.tobytes() == vectors_of(images)[rows].tobytes()


def test_rows_that_are_sent_again_are_replaced_and_deleted_rows_are_gone(full):
    changed = made_images(COUNT, seed=1).slice(10, 5)
    full.upsert(changed)
    full.upsert(changed)
    full.delete(np.array([0, 12, 500]))
    assert full.count() == COUNT - 2
    assert full.rows_in(range(8, 16)).tolist() == [8, 9, 10, 11, 13, 14, 15]
    assert full.fetch(np.arange(10, 15)).equals(changed.take([0, 1, 3, 4]))


def test_facts_are_kept_and_a_store_that_is_not_there_has_none(store, url):
    assert store.facts() is None
    with pytest.raises(MissingError, match=r"there are no images in .*dcdctl upload INDEX"):
        open_index(url)
    store.create(made_facts())
    store.describe(made_facts(generation=2, images=7))
    again = open_store(url)
    assert again.facts() == made_facts(generation=2, images=7)
    again.close()


def test_a_draft_takes_the_place_of_the_store_when_it_is_published(full):
    draft = full.draft()
    assert draft.facts() is None
    draft.create(made_facts(model="b" * 64))
    draft.upsert(made_images(COUNT, seed=1).slice(0, 9))
    index = StoreIndex.open(full)
    assert len(index.search(unit_vectors(1, DIM), 20)[0]) == 20
    draft.publish()
    assert draft.facts() is None
    # A store that knew the old one asks again.
    assert retry.repeated(full.count, retry.FOR_A_QUESTION) == 9
    draft.close()
    with pytest.raises(StaleError, match=r"filled with another model \(bbbbbbbb, not aaaaaaaa\)"):
        index.search(unit_vectors(1, DIM), 20)


DEEP = "[" * 10_000
HOSTILE = {
    "hello": "dcdctl did not make it",
    DEEP: "dcdctl did not make it",
    f'{{"dcdctl": {DEEP}': "dcdctl did not make it",
    '{"dcdctl": {"format": ' + DEEP[:900] + "]" * 900 + "}}": r"by another version of dcdctl \(its format is \[",
    '{"dcdctl": {"format": 1, "' + 10**5 * "x" + '": 1}}': r"by another version of dcdctl \(unknown key xxx",
    '{"dcdctl": 5}': "by another version of dcdctl",
}
"""Facts that are not of this program, and what is said."""


class Text:
    """Facts of these letters."""

    def __init__(self, text):
        self.to_json = lambda: text


def changed(**values):
    return Text(json.dumps({"dcdctl": {**to_table(made_facts()), **values}}))


def facts_error(store, url, facts):
    """The error about the facts of a store, which are written past all checks."""
    store.create(made_facts())
    store.describe(facts)
    again = open_store(url)
    with pytest.raises(StaleError) as caught:
        StoreIndex.open(again)
    again.close()
    assert len(str(caught.value)) < 600
    return str(caught.value)


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_facts_that_are_damaged_or_hostile_are_one_short_line(store, url, text):
    assert re.search(HOSTILE[text], facts_error(store, url, Text(text)))


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"model": "\x1b[31m\nevil"}, "model"),
        ({"dims": 0}, "dims"),
        ({"dims": 10**30}, "dims"),
        ({"rows": 10**30}, "rows"),
        ({"images": -1}, "rows"),
        ({"columns": {"owner": "evil"}}, "columns"),
        ({"columns": {"vector": "string"}}, "columns"),
        ({"columns": {"a\x1b[31m": "string"}}, "columns"),
        ({"columns": {"\ud800": "string"}}, "columns"),
        ({"sources": []}, "paths"),
        ({"model_folder": "x" * 10**5}, "paths"),
    ],
)
def test_facts_of_values_that_no_upload_writes_are_refused(store, url, values, name):
    assert f"another version of dcdctl (its {name} cannot be right)" in facts_error(store, url, changed(**values))


def test_facts_with_a_source_that_is_nowhere_are_refused(store, url):
    found = facts_error(store, url, changed(sources=[{"kind": "folder", "path": "a\0"}]))
    assert r"another version of dcdctl (sources[0].path must be a path, got 'a\x00')" in found


OTHER_COLUMNS = {"owner": "int64"}


@pytest.mark.parametrize(
    "values",
    [{"dims": 8}, {"is_late": True}, {"columns": OTHER_COLUMNS}, {"columns": OTHER_COLUMNS | {"other": "bool"}}],
)
def test_facts_of_other_images_than_those_of_the_store_are_one_line(full, url, values):
    full.describe(changed(**values))
    again = open_store(url)
    index = StoreIndex.open(again)
    with pytest.raises((StaleError, InputError), match=r"does not hold what its facts say: |refuses: ") as caught:
        index.stored(np.arange(9))
    assert len(str(caught.value)) < 900
    again.close()


# Uploads of an index


@pytest.fixture
def index(tmp_path):
    return write_index(tmp_path / "index", [unit_vectors(30), unit_vectors(25, seed=1)], removed=[4, 40])


def test_an_uploaded_index_answers_like_the_index(index, store):
    done = upload_index(index, store)
    assert (done.images, done.sent, done.deleted) == (53, 53, 0)
    uploaded, queries = StoreIndex.open(store), unit_vectors(6, seed=3)
    assert uploaded.search(queries, 60) == index.search(queries, 60)
    assert uploaded.spread_rows(1000) == index.spread_rows(1000)
    assert uploaded.name(3) == index.name(3) == "3.png"
    with pytest.raises(MissingError, match=r"has no image 40"):
        uploaded.image_bytes(40)


@pytest.mark.parametrize(("codes", "error"), [("float16", 0), ("int8", 1e-3)])
def test_a_late_index_is_compared_by_maxsim_or_refused(store, tmp_path, monkeypatch, codes, error):
    # More images than are proposed for 10 answers, and than LanceDB compares without an index.
    monkeypatch.setattr(store_index, "CANDIDATES", 20)
    index, _ = write_late(tmp_path / "index", [4, 1, 7, 3, 3, 5, 2, 6] * 5, codes, removed=[5])
    if store.kind == "postgresql":
        with pytest.raises(InputError, match=r"takes one vector per image, and .*; upload it to LanceDB"):
            upload_index(index, store)
        return
    monkeypatch.setattr("dcdctl.core.stores.lancedb.EXACT_UP_TO", 30)
    assert upload_index(index, store).images == 39
    assert upload_index(index, store).sent == 0
    uploaded = StoreIndex.open(store)
    assert (uploaded.dim, uploaded.stored_type) == (6, StoredTokens)
    # Of different lengths in an answer, and with padding.
    queries = ragged([5] * 8, seed=2).reshape(8, 5, 6) / 5
    queries[1::2, 3:] = 0
    some, none = (
        parse_where(f"image_id in ({names})", uploaded.columns) for names in ("'3.png', '5.png', '30.png'", "'99.png'")
    )
    for k, where, num_hits in ((10, None, 10), (99, None, 39), (10, some, 2), (10, none, 0)):
        for found, expected in zip(uploaded.search(queries, k, where), index.search(queries, k, where), strict=True):
            assert len(found) == num_hits
            np.testing.assert_allclose([hit.score for hit in found], [hit.score for hit in expected], atol=error)
            assert error or found == expected
    found, expected = (place.stored(np.array([9, 2])) for place in (uploaded, index))
    np.testing.assert_allclose(found.tokens_ND, expected.tokens_ND, atol=error)
    assert found.counts_R.tolist() == expected.counts_R.tolist()


def test_the_same_upload_again_sends_nothing_and_a_change_of_the_index_is_followed(index, store, tmp_path):
    upload_index(index, store)
    assert upload_index(index, store).sent == 0
    more = write_index(
        tmp_path / "more", [unit_vectors(30), unit_vectors(25, seed=1), unit_vectors(9, seed=2)], removed=[4, 5, 40]
    )
    done = upload_index(more, store)
    assert (done.images, done.sent, done.deleted) == (61, 9, 1)
    queries = unit_vectors(6, seed=3)
    assert StoreIndex.open(store).search(queries, 60) == more.search(queries, 60)
    with pytest.raises(StaleError, match=r"holds the images of another index than"):
        upload_index(index, store)


@pytest.mark.parametrize("batches", [0, 1, 4])
def test_a_killed_upload_resumes_with_the_missing_images_only(index, store, monkeypatch, batches):
    monkeypatch.setattr(type(store), "batch_rows", 7)
    sent, upsert = [], type(store).upsert

    def killed(self, images):
        if len(sent) == batches:
            raise Killed
        sent.append(len(images))
        upsert(self, images)

    with monkeypatch.context() as patched:
        patched.setattr(type(store), "upsert", killed)
        with pytest.raises(Killed):
            upload_index(index, store)
    assert store.facts() is None
    assert upload_index(index, store).sent == 53 - sum(sent)
    queries = unit_vectors(6, seed=3)
    assert StoreIndex.open(store).search(queries, 60) == index.search(queries, 60)


def test_another_index_replaces_a_store_only_if_it_is_told_to(index, store, tmp_path):
    upload_index(index, store)
    other = write_index(tmp_path / "other", [unit_vectors(12, seed=7)])
    with pytest.raises(StaleError, match=r"holds the images of another index .*--replace"):
        upload_index(other, store)
    other.fingerprint = "b" * 64
    with pytest.raises(StaleError, match=r"holds the images of another index .*--replace"):
        upload_index(other, store)
    assert store.count() == 53
    done = upload_index(other, store, replace=True)
    assert (done.images, done.sent) == (12, 12)
    assert StoreIndex.open(store).fingerprint == "b" * 64


def test_a_failing_batch_is_sent_again_and_bad_input_is_not(index, store, monkeypatch):
    monkeypatch.setattr(type(store), "batch_rows", 20)
    upsert, failures = type(store).upsert, iter([UnavailableError("gone")] * 3)

    def failing(self, images):
        if error := next(failures, None):
            raise error
        upsert(self, images)

    monkeypatch.setattr(type(store), "upsert", failing)
    assert upload_index(index, store).images == 53
    failures = iter([InputError("bad")])
    with pytest.raises(InputError, match=r"bad"):
        upload_index(index, store, replace=True)


@pytest.mark.parametrize("has_locks", [True, False])
def test_of_two_uploads_at_once_one_stops_and_the_other_is_whole(index, store, url, tmp_path, monkeypatch, has_locks):
    if not has_locks:  # as in object storage
        monkeypatch.setattr(type(store), "lock", Store.lock)
    monkeypatch.setattr(type(store), "batch_rows", 20)
    other, second, upsert = (
        write_index(tmp_path / "other", [unit_vectors(53, seed=7)]),
        open_store(url),
        type(store).upsert,
    )
    other_upload, stopped = [lambda: upload_index(other, second)], []

    def beside(self, images):
        upsert(self, images)
        if other_upload:
            try:
                other_upload.pop()()
            except StaleError as error:
                stopped.append(str(error))

    monkeypatch.setattr(type(store), "upsert", beside)
    try:
        upload_index(index, store)
        winner = index
    except StaleError as error:
        stopped.append(str(error))
        winner = other
    assert len(stopped) == 1
    assert (winner is index) == has_locks
    other_writes = f"another upload writes to {store.location}"
    is_file_lock = has_locks and store.kind == "lancedb"
    assert (f"another run is writing to {tmp_path}" if is_file_lock else other_writes) in stopped[0]
    queries = unit_vectors(6, seed=3)
    assert StoreIndex.open(store).search(queries, 60) == winner.search(queries, 60)
    second.close()


def test_a_count_that_does_not_fit_is_an_error(index, store, monkeypatch):
    monkeypatch.setattr(type(store), "count", lambda self, where=None: 52)
    with pytest.raises(StaleError, match=r"has 52 images after the upload, and the index .* has 53"):
        upload_index(index, store)
    assert store.facts() is None


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (
            "postgresql://host/photos",
            r"postgresql://host/photos names no table, or several; such as "
            r"postgresql://user@host/database\?table=photos",
        ),
        ("postgresql://me:secret@host?table=a", "postgresql://me@host names no place"),
        ("mysql://me:secret@host/photos", r"'mysql://host/photos' is not the URL of a store; write postgresql://"),
        (f"postgresql://host/photos?table={'x' * 70}", "is too long for PostgreSQL"),
        ("lancedb:folder", r"lancedb:folder names no table, or several; such as lancedb:FOLDER\?table=photos"),
        ("lancedb:?table=photos", "lancedb: names no place"),
        ("lancedb+s3:?table=photos", r"lancedb\+s3: names no place"),
        ("postgresql://[::1/photos?table=a", r"the postgresql URL cannot be read: .*in brackets: \[::1\]"),
        ("postgresql://host/photos?table=\udce9", "the postgresql URL cannot be read: .* not UTF-8"),
        ("mysql://[::1/photos", r"'mysql://\.\.\.' is not the URL of a store"),
        *(
            (f"postgresql://me:secret{sign}rest@host/photos?table=a", r"an @ behind its host; write / \? # and @ in a")
            for sign in "/?#"
        ),
    ],
)
def test_a_wrong_url_says_how_one_looks(url, message):
    with pytest.raises(InputError, match=message) as caught:
        open_index(url)
    assert "secret" not in str(caught.value)
