"""Conditions on columns: what holds for which rows, and what is refused."""

from __future__ import annotations

import operator
import re
from datetime import date, datetime

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_edges import CASES, EDGES, LIKES, edge_condition, edge_facts, edge_images

from dcdctl.core.data import MOMENT
from dcdctl.core.errors import InputError
from dcdctl.core.search.columns.where import (
    Compare,
    Joined,
    columns_of,
    matches,
    parse_all,
    parse_where,
    quoted_name,
    quoted_value,
)

TABLE = pa.table(
    {
        "year": pa.array([2019, 2020, None, 2022, 2020], pa.int64()),
        "owner": pa.array(["x", "y", "x", None, "o'neil"], pa.string()),
        "rating": pa.array([1.5, -2.0, 3.0, 0.0, None], pa.float64()),
        "starred": pa.array([True, False, None, True, False], pa.bool_()),
        "day": pa.array([date(2024, 1, 31), date(2023, 5, 1), None, date(2024, 2, 1), date(2020, 2, 29)], pa.date32()),
        "taken": pa.array(
            [datetime(2024, 1, 31, 8, 30), None, datetime(2023, 5, 1), datetime(2024, 2, 1), datetime(2020, 1, 1)],
            MOMENT,
        ),
        "owner name": pa.array(["Ann", "Bob%", "b_b", "", None], pa.string()),
    }
)
CONDITIONS = [
    "year >= 2020 and owner = 'x'",
    "year >= 2020 or owner = 'x'",
    "not (year >= 2020 or owner = 'x')",
    "not (year < 2021 and not starred)",
    "year <> 2020",
    "not year = 2020",
    "year = 2020.0",
    "year between 2019 and 2020",
    "not year between 2019 and 2020",
    "year in (2019, 2022)",
    "year not in (2019, 2022)",
    "owner = 'o''neil'",
    "rating > -2.5 and rating <= 1.5",
    "starred",
    "not starred",
    "starred = false",
    "owner is null",
    "owner is not null and not (rating is null)",
    "day >= '2024-01-01'",
    "day = '2020-02-29'",
    "taken < '2024-01-31T08:30:01'",
    "taken between '2024-01-01' and '2024-12-31'",
    "\"owner name\" like 'B%'",
    "\"owner name\" not like '_nn'",
    "owner > 'o'",
    "owner ilike 'O''N%'",
    "\"owner name\" not ilike '%B%'",
    "not \"owner name\" ilike '%b'",
]


@pytest.fixture(scope="module")
def database():
    with duckdb.connect() as connected:
        connected.register("images", TABLE.append_column("row", pa.array(range(len(TABLE)))))
        yield connected


@pytest.mark.parametrize("text", CONDITIONS)
def test_the_rows_are_those_of_duckdb(database, text):
    expected = [row for (row,) in database.sql(f"select row from images where {text} order by row").fetchall()]
    held = matches(parse_where(text, TABLE.schema), TABLE)
    assert held.nonzero()[0].tolist() == expected


SIMPLE = st.sampled_from(
    ["year > 2019", "owner = 'x'", "starred", "rating is null", "day < '2024-01-01'", "year in (2020, 2022)"]
)
NESTED = st.recursive(
    SIMPLE,
    lambda inner: st.one_of(
        inner.map(lambda text: f"not ({text})"),
        st.tuples(inner, st.sampled_from(["and", "or"]), inner).map(lambda part: f"({' '.join(part)})"),
    ),
    max_leaves=6,
)


@settings(max_examples=25, deadline=None)
@given(NESTED)
def test_nested_conditions_have_the_rows_of_duckdb(database, text):
    test_the_rows_are_those_of_duckdb(database, text)


SUGGESTED = [
    *("year = '2021'", "rating > ' 4.5'", "year = 'x'", "taken = 2021", "day = '2021-12'", "taken >= '2021-02'"),
    *("day = 9999", "taken = 'yesterday'", "starred = 1", "owner = 3", 'owner = "x"', '"owner name" = 3', "year"),
]


@pytest.mark.parametrize("text", SUGGESTED)
def test_the_forms_that_a_refusal_suggests_are_conditions(text):
    with pytest.raises(InputError) as raised:
        parse_where(text, TABLE.schema)
    forms = re.sub(r"^(write|for example|.*:) ", "", raised.value.hint.partition(" or '")[0]).split(", or ")
    for form in forms:
        parse_where(form, TABLE.schema)


def test_a_condition_is_read_into_plain_values():
    condition = parse_where("not (owner in ('x', 'y') or year < 2020)", TABLE.schema)
    assert condition == Joined("and", (Compare("owner", "not in", ("x", "y")), Compare("year", ">=", 2020)))
    assert columns_of(condition) == {"owner", "year"}


@pytest.mark.parametrize(
    ("text", "num_before"),
    [
        ("2020-01-01T00:00:00+05:00", 1),
        ("2020-01-01 00:00:00-05:00", 3),
        ("2019-12-31T20:00:00-05:30", 3),
        ("2020-01-01T00:00:00Z", 2),
        ("2020-01-01", 2),
    ],
)
def test_a_moment_with_an_offset_is_compared_in_utc(text, num_before):
    evening, year = datetime(2019, 12, 31, 19), datetime(2020, 1, 1)
    taken = pa.array([evening.replace(hour=18), evening, year, year.replace(hour=5)], MOMENT)
    table = pa.table({"taken": taken})
    assert matches(parse_where(f"taken < '{text}'", table.schema), table).sum() == num_before


@pytest.mark.parametrize(("name", "test"), [case for case in CASES if case[1] not in LIKES])
def test_values_at_the_edges_of_their_types_compare_as_in_python(name, test):
    values, images = EDGES[name][1], edge_images()
    held = matches(parse_where(edge_condition(name, test, values), edge_facts().schema), images)
    compare = {"=": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt}
    compare[">="] = operator.ge

    def expected(value, block):
        if block >= len(values):
            return False
        if test.startswith("is "):
            return (value is None) == (test == "is null")
        if value is None:
            return False
        if test.endswith("in"):
            return (value in (values[block], values[block - 1])) == (test == "in")
        return compare[test](value, values[block])

    rows = zip(images[name].to_pylist(), images["tested"].to_pylist(), strict=True)
    assert held.tolist() == [expected(value, block) for value, block in rows]


@pytest.mark.parametrize(
    ("test", "pattern", "expected"),
    [
        ("like", "%a\\\\b%", ["a\\b"]),
        ("like", "%a\\b%", ["ab"]),
        ("like", "%\\\\", ["\\"]),
        ("like", "a\\\\b%", ["a\\b"]),
        ("like", "50\\%", ["50%"]),
        ("like", "%\n%", ["a\nb"]),
        ("like", "a_b", ["a\\b", "a\nb", "a.b"]),
        ("like", "a.b", ["a.b"]),
        ("not like", "%b%", ["", "\\", "50%", "k", "K", "\u212a", "ΟΔΟΣ", "οδοσ", "οδος", "ẞ", "ß"]),
        ("like", "K", ["K"]),
        ("ilike", "k", ["k", "K", "\u212a"]),
        ("ilike", "\u212a", ["k", "K", "\u212a"]),
        ("ilike", "οδος", ["ΟΔΟΣ", "οδοσ", "οδος"]),
        ("ilike", "ß", ["ẞ", "ß"]),
        ("ilike", "ss", []),
        ("ilike", "A\\\\_", ["a\\b"]),
        ("ilike", "A\\B%", ["ab"]),
        ("ilike", "[AB]", []),
        ("not ilike", "%B%", ["", "\\", "50%", "k", "K", "\u212a", "ΟΔΟΣ", "οδοσ", "οδος", "ẞ", "ß"]),
    ],
)
def test_like_reads_a_backslash_and_the_case_of_letters(test, pattern, expected):
    texts = [
        "",
        "ab",
        "a\\b",
        "a\\\\b",
        "\\",
        "50%",
        "a\nb",
        "a.b",
        "k",
        "K",
        "\u212a",
        "ΟΔΟΣ",
        "οδοσ",
        "οδος",
        "ẞ",
        "ß",
    ]
    table = pa.table({"owner": [*texts, None]})
    condition = parse_where(f"owner {test} '{pattern}'", table.schema)
    assert table["owner"].filter(matches(condition, table)).to_pylist() == expected


@given(
    st.one_of(
        st.text(max_size=30),
        st.booleans(),
        st.integers(-(2**63), 2**63 - 1),
        st.floats(allow_nan=False, allow_infinity=False),
        st.dates(),
        st.datetimes(),
    )
)
@settings(max_examples=100, deadline=None)
def test_a_quoted_value_is_read_back_unchanged(value):
    types = {
        str: pa.string(),
        bool: pa.bool_(),
        int: pa.int64(),
        float: pa.float64(),
        date: pa.date32(),
        datetime: MOMENT,
    }
    name = "a 'b' % \u72ac"
    condition = parse_where(f"{quoted_name(name)} = {quoted_value(value)}", pa.schema([(name, types[type(value)])]))
    assert condition == Compare(name, "=", value)


def test_several_conditions_must_all_hold():
    year, owner = parse_where("year = 1", TABLE.schema), parse_where("owner = 'x'", TABLE.schema)
    assert parse_all(["year = 1", "owner = 'x'"], TABLE.schema) == Joined("and", (year, owner))
    assert parse_all([], TABLE.schema) is None


def test_ids_and_paths_are_columns_of_every_index():
    assert parse_where("image_id = 'x' or path like 'a/%'", pa.schema([])) == Joined(
        "or", (Compare("image_id", "=", "x"), Compare("path", "like", "a/%"))
    )
