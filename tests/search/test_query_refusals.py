"""What a query refuses: tables of columns, conditions, orders, texts and images."""

from __future__ import annotations

from functools import partial

import numpy as np
import pyarrow as pa
import pytest
import refusals
import torch
from image_files import put
from made_index import build, searcher_of, unit_vectors, write_index
from refusals import Refusal
from tiny import make_models

from dcdctl.core import models
from dcdctl.core.data import MOMENT, read_columns
from dcdctl.core.errors import ConfigError, InputError, MissingError, ModelError
from dcdctl.core.search import (
    CombinedQuery,
    IndexConfig,
    Order,
    StoredVectors,
    browse_index,
    parse_order,
    parse_where,
    read_image,
)
from dcdctl.core.search.answers import MAX_CHARACTERS

pytestmark = pytest.mark.usefixtures("_duals_read_once")

SCHEMA = pa.schema(
    [
        *(("year", pa.int64()), ("owner", pa.string()), ("rating", pa.float64()), ("starred", pa.bool_())),
        *(("day", pa.date32()), ("taken", MOMENT), ("owner name", pa.string())),
    ]
)


@pytest.fixture(scope="module")
def vectors(tmp_path_factory):
    """An index of three vectors."""
    return write_index(tmp_path_factory.mktemp("made") / "index", [unit_vectors(3)])


@pytest.fixture(scope="module")
def searcher(noise_index):
    return searcher_of(noise_index)


@pytest.fixture(scope="module")
def reranking(noise_index):
    return searcher_of(noise_index, rerank=str(noise_index.parent / "fusion"), depth=5)


# Tables, conditions and orders

TABLES = [
    ("photo,year\na,1\n", "names no images, its columns are photo, year; .*image, image_id, path, filepath"),
    ("image\na\n", "has no columns besides the names of images; add some"),
    ("image,Score\na,1\n", "the column 'Score' of .* has a name that the index itself uses; rename it"),
    ('image,"a""b"\na,1\n', "has a name with quotation marks, .*; rename it"),
    (f"image,{'x' * 61}\na,1\n", "more than 60 bytes; rename it"),
    ("image,year,year\na,1,2\n", "has the column 'year' twice; rename one"),
    ("image,owner\na,b, c\n", "line 2 has 3 cells, and line 1 names 2.*quotation marks"),
    ('image,owner\na,"b\n', "line 2: a cell starts with a quotation mark and does not end with one"),
]
FILES = [
    ("absent.csv", "cannot be read: No such file"),
    ("m.xlsx", r"is no table of metadata, its name ends with '\.xlsx'"),
    ("m.parquet", "cannot be read: .*[Pp]arquet"),
]
CONDITIONS = [
    ("", "cannot be read; comparisons are"),
    ("year >=", "cannot be read near .*; comparisons are = != <"),
    ("year = 2020; drop table images", "cannot be read near 'drop'"),
    ("owner = '\ud83d'", "is not Unicode text; use UTF-8"),
    ("(" * 900 + "year = 1" + ")" * 900, "is nested too deeply|cannot be read"),
    ("not " * 5000 + "starred", "is nested too deeply"),
    ("yaer = 2020", "column yaer; the columns are year, owner, .*, owner name, image_id, path$"),
    ("images.year = 2020", "has images.year where a column is expected; for example year"),
    ("read_csv('/etc/passwd') = 1", "where a column is expected"),
    ("owner", "takes owner for true or false, and it is a text; for example owner is not null"),
    ("year ilike '2%'", "takes year for a text, and it is a whole number; like and ilike compare texts"),
    ("owner like 'a\\'", r"has the pattern 'a\\', which ends in a backslash; double it to find one"),
    ("owner not ilike '\\\\\\'", r"has the pattern '\\\\\\', which ends in a backslash"),
    ("year in (select 1)", "which is not a test of a column; for example"),
    ("owner like year", "which is not a test of a column"),
    ("true", "which is not a test of a column"),
    ("year = 'x'", "compares year, which is a whole number, with 'x'; for example year >= 2020"),
    ("year in (2020, '2021')", "compares year, .*; a number has no quotes: year = 2021"),
    ("year = 2020.5", "compares year"),
    ("year = true", "compares year"),
    ("year = 9223372036854775808", "compares year"),
    ("year = -9223372036854775809", "compares year"),
    (f"year < {'9' * 5000}", "compares year, which is a whole number, with 999"),
    ("rating in (1, -1e400)", "compares rating, which is a number, with -1e400"),
    (f"rating < {'9' * 400}", "compares rating, which is a number, with 999"),
    ("owner = 3", "compares owner, which is a text, with 3; a text has single quotes: owner = '3'"),
    ('"owner name" = "x"', "a text has single quotes: \"owner name\" = 'x'"),
    ("owner = year", "compares owner"),
    ("starred = 1", "it is a condition by itself: starred, or not starred"),
    ("day = '2024-13-01'", "compares day, which is a date, .*: day >= '2024-05-01'$"),
    ("day = '2021-12'", "write day >= '2021-12-01' and day < '2022-01-01'"),
    ("taken = 2021", "write year = 2021, or taken >= '2021-01-01' and taken < '2022-01-01'"),
    ("taken = 'yesterday'", "taken >= '2024-05-01' or '2024-05-01 12:30'"),
    ("taken > '0001-01-01T00:00:00+23:00'", "compares taken, which is a date and time, with '0001"),
    ("taken < '9999-12-31T23:59:59-00:01'", "compares taken, which is a date and time, with '9999"),
    # What is long is cut.
    ("x" * 9000 + " = 1", r"^the condition '.{100}\.\.\.'.{1,350}$"),
    (f"rating > {'9' * 4000}", r"^the condition '.{100}\.\.\.'.{1,350}$"),
    ("year = 1 " + "\n)" * 4000, r"^the condition '.{100}\.\.\.'.{1,350}$"),
]
ORDERS = [
    ("yaer", "there is no column 'yaer' to order by: the columns are year, .*; for example year"),
    ('""', "there is no column"),
    ("year desc desc", "there is no column 'year desc' to"),
    ("x" * 5000, r"no column 'x{100}\.\.\.' to order by"),
]


def of_table(name: str, text: str | None = None):
    def do(tmp_path):
        put(tmp_path, {"m.parquet": b"x", **({} if text is None else {name: text.encode()})})
        read_columns(tmp_path / name)

    return do


TEXTS = [
    *(Refusal(f"table {text!r:.40}", of_table("m.csv", text), InputError, says) for text, says in TABLES),
    *(Refusal(f"table in {name}", of_table(name), InputError, says) for name, says in FILES),
    *(
        Refusal(
            f"condition {text!r:.40}", partial(parse_where, text, SCHEMA), InputError, f"(?s)the condition .*{says}"
        )
        if not says.startswith("^")
        else Refusal(f"condition {text!r:.40}", partial(parse_where, text, SCHEMA), InputError, says)
        for text, says in CONDITIONS
    ),
    Refusal(
        "condition without columns",
        partial(parse_where, "year = 2020", pa.schema([])),
        InputError,
        "the columns are image_id, path; `dcdctl change INDEX --metadata FILE` adds others",
    ),
    *(Refusal(f"order {text!r:.40}", partial(parse_order, text, SCHEMA), InputError, says) for text, says in ORDERS),
    Refusal(
        "a condition on a column that is gone",
        lambda vectors: vectors.nearest(unit_vectors(1), 1, parse_where("year = 1", SCHEMA)),
        InputError,
        "has no column year; `dcdctl inspect` lists",
    ),
    Refusal(
        "an order by a column that is gone",
        lambda vectors: browse_index(vectors, order=Order("taken")),
        InputError,
        "has no column taken",
    ),
]

# Queries


def of_text(text: str):
    return lambda searcher: searcher.by_text(text)


def of_browse(**wrong: int):
    return lambda vectors: browse_index(vectors, **wrong)


def of_file(name: str):
    """Search by an image in a file."""

    def do(tmp_path):
        (tmp_path / "text.jpg").write_text("hello")
        read_image(tmp_path / name)

    return do


def nan_logits(reranking, monkeypatch):
    monkeypatch.setattr(reranking.reranker.scorer, "score_pairs", lambda *_: torch.tensor([1.0, torch.nan]))
    reranking.by_text("a red circle", 2)


def nan_query(searcher, noise_index, monkeypatch):
    monkeypatch.setattr(searcher.model, "embed_images", lambda _: torch.full((1, searcher.index.dim), torch.nan))
    searcher.ask(noise_index.parent / "images" / "plain.png")


def zero_text(noise_index, tmp_path):
    """The first numbers of a text are zero, and the index has no others."""
    dual = make_models(["a cross"])[1]
    with torch.no_grad():
        dual.network.text_projection.weight[:3] = 0
    models.save(dual, tmp_path / "dual")
    build(tmp_path / "dual", noise_index.parent / "images", tmp_path / "index", IndexConfig(dims=3))
    searcher_of(tmp_path / "index").by_text("a cross", 1)


PARTS = CombinedQuery("red", also=("blue",))
QUERIES = [
    Refusal("a blank text", of_text(" \t\n"), InputError, "the query is empty, it must be a text"),
    Refusal("a text of no token", of_text("\u200b"), InputError, "the model reads nothing in .*; search in words"),
    Refusal(
        "a long text", of_text("x" * (MAX_CHARACTERS + 1)), InputError, "has 10,001 characters, at most 10,000 are"
    ),
    Refusal("a text of bytes", of_text("caf\udce9"), InputError, "bytes that are not UTF-8 text; use a UTF-8 terminal"),
    Refusal("k", lambda searcher: searcher.by_text("red", 0), ConfigError, "k must be at least 1, got 0"),
    Refusal("k of a list", of_browse(k=0), ConfigError, "k must be at least 1, got 0"),
    Refusal("offset of a list", of_browse(offset=-1), ConfigError, "the offset must be at least 0, got -1"),
    Refusal("a folder as image", of_file("."), InputError, "is not a file, it must be an image file"),
    Refusal("no image file", of_file("no.jpg"), InputError, "no.jpg does not exist, it must be"),
    Refusal("a text as image", of_file("text.jpg"), InputError, r"text\.jpg cannot be used: .*not an image file"),
    Refusal("a long name of an image", of_file("x" * 300), InputError, "cannot be read: File name too long"),
    Refusal(
        "only excluded", lambda: CombinedQuery(without=("x",)), ConfigError, "finds nothing; add a text or an image"
    ),
    Refusal(
        "wanted and excluded",
        lambda: CombinedQuery("a", also=("a Dog ",), without=(" A dog",)),
        InputError,
        "' A dog' is both searched for and excluded; leave one",
    ),
    Refusal("nine texts", lambda: CombinedQuery("a", also=tuple("bcdefghi")), InputError, "has 9 texts, at most 8 are"),
    *(
        Refusal(
            f"a blank {name}",
            lambda searcher, name=name: searcher.ask(CombinedQuery("red", **{name: (" ",)})),
            InputError,
            "the query is empty",
        )
        for name in ("also", "without")
    ),
    Refusal(
        "parts that cancel each other",
        lambda: StoredVectors.join([np.ones(4), -np.ones(4)], [0.5, 0.5]),
        InputError,
        "cancel each other out; leave one of them out",
    ),
    Refusal("parts by words", lambda searcher: searcher.ask(PARTS, hybrid=True), ConfigError, "words of one text, and"),
    Refusal(
        "words", lambda vectors: vectors.check_hybrid(), MissingError, "has no words .*: dcdctl change .* keywords=true"
    ),
    Refusal("parts to re-rank", lambda reranking: reranking.ask(PARTS), ConfigError, "cannot re-rank .*several parts"),
    Refusal(
        "an image to re-rank",
        lambda reranking, noise_index: reranking.ask(noise_index.parent / "images" / "plain.png"),
        ConfigError,
        "cannot re-rank images by an image; leave --rerank out",
    ),
    Refusal(
        "nothing to re-rank",
        lambda noise_index: searcher_of(noise_index, rerank=str(noise_index.parent / "fusion"), depth=0),
        ConfigError,
        "a depth of 0 re-ranks nothing, it must be at least 1",
    ),
    Refusal("a device", lambda noise_index: searcher_of(noise_index, device="x"), ConfigError, "device x is unknown"),
    Refusal("logits", nan_logits, ModelError, "fusion gives scores that are NaN or infinite; its training diverged"),
    Refusal("an image's vector", nan_query, ModelError, "vectors of queries that are zero, NaN or infinite; its train"),
    Refusal("a text's first numbers", zero_text, ModelError, "vectors of queries that are zero, NaN or infinite"),
]
ROWS = [*TEXTS, *QUERIES]


@pytest.mark.parametrize("refusal", ROWS, ids=lambda row: row.what)
def test_a_refusal_names_what_is_wrong_and_what_would_be_right(refusal, request):
    refusals.check(refusal, request)
