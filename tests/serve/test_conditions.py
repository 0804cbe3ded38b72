"""Conditions of requests, and the columns that the service offers."""

from __future__ import annotations

import io
import json
from datetime import date, datetime

import pytest
import served
from made_index import update
from PIL import Image

from dcdctl.core.search import ColumnSummary
from dcdctl.core.serve import ServiceConfig
from dcdctl.core.serve.facets import facet_of

NUM = len(served.NAMES)
YEARS = [2020 + place % 3 for place in range(NUM)]
OWNERS = ["o'neil", None, *["ann"] * (NUM - 2)]
DAYS = [date(2024, 1, 1 + place) for place in range(NUM)]
CONFIG = ServiceConfig(default_k=NUM, max_where_chars=60)


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    made = served.make(tmp_path_factory.mktemp("conditions") / "all")
    made = made.with_columns(year=YEARS, owner=OWNERS, day=DAYS, taken=[datetime(2024, 1, 1, 12)] * NUM)
    return served.client_of(made.searcher, CONFIG)


def png():
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, "PNG")
    return stream.getvalue()


def kept(condition):
    return {name for name, *values in zip(served.NAMES, YEARS, OWNERS, strict=True) if condition(*values)}


@pytest.mark.parametrize("by", ["text", "row", "file"])
def test_each_kind_of_query_meets_its_conditions(client, by):
    params = {"where": ["year >= 2021", "owner = 'ann'"]}
    if by == "file":
        response = client.post("/search", files={"image": ("a.png", png())}, params=params)
    else:
        response = client.get("/search", params=params | {by: "two dogs" if by == "text" else 0})
    found = response.json()["results"]
    assert {one["name"] for one in found} == kept(lambda year, owner: year >= 2021 and owner == "ann")
    assert {one["columns"]["owner"] for one in found} == {"ann"}
    assert {one["columns"]["taken"] for one in found} == {"2024-01-01T12:00:00"}


def test_each_query_of_a_batch_meets_its_own_condition_and_those_of_the_url(client):
    queries = [
        {"text": "a", "where": "year = 2021"},  # an image of 2021 has no owner
        {"text": "b"},
        {"text": "c", "where": "yaer = 1"},
        {"text": "d", "where": "year = 2021"},
    ]
    answers = client.post("/search", json={"queries": queries}, params={"where": "owner is not null"}).json()["answers"]
    names = [
        {one["name"] for one in answer["results"]} if "results" in answer else answer["error"] for answer in answers
    ]
    with_owner, both = kept(lambda _, owner: owner), kept(lambda year, owner: owner and year == 2021)
    assert both < kept(lambda year, _: year == 2021)
    assert [names[0], names[1], names[3]] == [both, with_owner, both]
    assert "unknown column yaer" in names[2]


def test_images_are_listed_without_a_query_page_by_page(client):
    order = {"order": "day desc", "where": "year >= 2021"}
    expected = [name for name, year in reversed(list(zip(served.NAMES, YEARS, strict=True))) if year >= 2021]
    pages = [client.get("/browse", params={**order, "k": 5, "offset": offset}).json() for offset in (0, 5, 10, 2**62)]
    assert [one["name"] for page in pages for one in page["results"]] == expected
    assert {page["total"] for page in pages} == {len(expected)}
    first = pages[0]["results"][0]
    assert (first["score"], first["path"], first["columns"]["year"]) == (None, None, YEARS[-1])
    # All were taken at the same moment, so the order without another one is that of rows.
    assert len(client.get("/browse").json()["results"]) == NUM


WRONG = {
    "owner = '\ud83d'": "is not Unicode text",
    "\ud83d = 1": "is not Unicode text",
    f"rating > {'9' * 400}": "...' compares rating, which is a number, with 9",
    "rating < 1e400": "compares rating, which is a number, with 1e400",
    "taken > '0001-01-01T00:00:00+23:00'": "compares taken, which is a date and time, with '0001",
    "owner like 'a\\'": "ends in a backslash",
}


def test_no_condition_of_a_batch_fails_the_other_queries(tmp_path):
    made = served.make(tmp_path / "all").with_columns(
        owner=OWNERS, rating=[0.5] * NUM, taken=[datetime(2024, 1, 1)] * NUM
    )
    client = served.client_of(made.searcher, ServiceConfig())
    wrong = [{"text": "a", "where": where} for where in WRONG]
    others = [{"text": "a \ud83d"}, {"text": "a", "\ud83d": 1}]
    # By `content`, because httpx does not encode lone surrogates.
    response = client.post(
        "/search",
        content=json.dumps({"queries": [*wrong, *others, {"text": "two dogs", "where": "rating > 0"}]}),
        headers={"Content-Type": "application/json"},
    )
    assert response.status_code == 200
    *refused, answer = response.json()["answers"]
    assert len(answer["results"]) == NUM
    errors = [one["error"] for one in refused]
    for error, message in zip(errors, [*WRONG.values(), "valid string", "valid string"], strict=True):
        assert message in error
        assert len(error) < 400
    for where in list(WRONG)[2:]:
        alone = client.get("/search", params={"text": "a", "where": where})
        assert (alone.status_code, alone.json()["error"]) == (400, errors[list(WRONG).index(where)])


def test_an_answer_without_images_is_no_error(client):
    answer = client.get("/search", params={"text": "dogs", "where": "year = 1"}).json()
    assert (answer["results"], answer["notes"], answer["weak"]) == (
        [],
        ["no image meets the condition: year is from 2020 to 2022"],
        False,
    )


def test_the_conditions_of_a_query_and_of_the_url_are_limited_together(client):
    of_url, fits, too_long = ("year >= 2020".ljust(length) for length in (30, 30, 31))
    batch = {"queries": [{"text": "a", "where": fits}, {"text": "a", "where": too_long}]}
    allowed, refused = client.post("/search", json=batch, params={"where": of_url}).json()["answers"]
    assert len(allowed["results"]) == NUM
    assert "the conditions have 61 characters, at most 60 are read" in refused["error"]


def test_columns_are_listed_with_conditions_that_are_read_back(client):
    columns = {one["name"]: one for one in client.get("/columns").json()}
    assert {name: (one["type"], one["facet"]) for name, one in columns.items()} == {
        "year": ("whole number", "values"),
        "owner": ("text", "values"),
        "day": ("date", "range"),
        "taken": ("date and time", None),
    }
    assert (columns["owner"]["missing"], columns["owner"]["distinct"], columns["day"]["low"]) == (1, 2, "2024-01-01")
    assert columns["owner"]["values"] == [
        {"value": "ann", "images": NUM - 2, "condition": "\"owner\" = 'ann'"},
        {"value": "o'neil", "images": 1, "condition": "\"owner\" = 'o''neil'"},
    ]
    for column in columns.values():
        for value in column["values"]:
            found = client.get("/search", params={"text": "dogs", "where": value["condition"]}).json()["results"]
            assert len(found) == value["images"]


@pytest.mark.parametrize(
    ("type_", "distinct", "facet"),
    [
        ("text", 1, None),
        ("text", 50, "values"),
        ("text", 51, "part"),
        ("date and time", 12, "range"),
        ("number", 3, "range"),
        ("whole number", 50, "values"),
        ("whole number", 51, "range"),
        ("true or false", 2, "values"),
    ],
)
def test_every_column_with_two_values_is_offered(type_, distinct, facet):
    summary = ColumnSummary(name="c", type=type_, missing=0, distinct=distinct, frequent=(), low=None, high=None)
    assert facet_of(summary) == facet


def test_columns_that_are_set_while_the_index_is_served_are_offered(tmp_path):
    made = served.make(tmp_path / "all")
    client = served.client_of(made.searcher, CONFIG)
    assert client.get("/columns").json() == []
    refused = client.get("/search", params={"text": "dogs", "where": "year = 2020"})
    assert (
        "the columns are image_id, path; `dcdctl change INDEX --metadata FILE` adds others" in refused.json()["error"]
    )
    made.with_columns(year=YEARS)
    found = client.get("/search", params={"text": "dogs", "where": "year = 2020"}).json()["results"]
    assert {one["name"] for one in found} == kept(lambda year, owner: year == 2020)
    update(made.index, drop_columns=("year",))
    assert client.get("/columns").json() == []


def test_large_texts_do_not_make_answers_large(tmp_path):
    """All requests wait while an answer is written."""
    names = "anna, " * 10_000
    more = {f"c{number:02}": [number] * len(served.NAMES) for number in range(60)}
    made = served.make(tmp_path / "made").with_columns(names=[names] * len(served.NAMES), **more)
    client = served.client_of(made.searcher, ServiceConfig())
    for hit in client.get("/search", params={"text": "a bus"}).json()["results"]:
        assert list(hit["columns"]) == ["names", *sorted(more)[:49]]
        assert hit["columns"]["names"] == names[:500] + "..."
    first = client.get("/columns").json()[0]
    assert (first["distinct"], first["values"], first["low"]) == (1, [], names[:500] + "...")
