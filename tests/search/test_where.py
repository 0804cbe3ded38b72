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


@pytest.mark.parametrize("text", CONDITIONS)
def test_the_rows_are_those_of_duckdb(text):
    with duckdb.connect() as database:
        database.register("images", TABLE.append_column("row", pa.array(range(len(TABLE)))))
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
def test_nested_conditions_have_the_rows_of_duckdb(text):
    test_the_rows_are_those_of_duckdb(text)


def test_a_condition_is_read_into_plain_values():
    condition = parse_where("not (owner in ('x', 'y') or year < 2020)", TABLE.schema)
    assert condition == Joined("and", (Compare("owner", "not in", ("x", "y")), Compare("year", ">=", 2020)))
    assert columns_of(condition) == {"owner", "year"}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "cannot be read"),
        ("year >=", "cannot be read"),
        ("year = 2020; drop table images", "cannot be read near 'drop'"),
        ("yaer = 2020", "unknown column yaer"),
        ("images.year = 2020", "where a column is expected"),
        ("year = 'x'", "compares year, which is a whole number, with 'x'"),
        ("year = 2020.5", "compares year"),
        ("year = true", "compares year"),
        ("year = 9223372036854775808", "compares year"),
        ("year = -9223372036854775809", "compares year"),
        ("year > 1e400", "compares year, which is a whole number, with 1e400"),
        ("rating < 1e400", "compares rating, which is a number, with 1e400"),
        ("rating in (1, -1e400)", "compares rating, which is a number, with -1e400"),
        (f"rating < {'9' * 400}", "compares rating, which is a number, with 999"),
        (f"year < {'9' * 5000}", "compares year, which is a whole number, with 999"),
        ("taken > '0001-01-01T00:00:00+23:00'", "compares taken, which is a date and time, with '0001"),
        ("taken < '9999-12-31T23:59:59-00:01'", "compares taken, which is a date and time, with '9999"),
        ("owner = '\ud83d'", r"""the condition "owner = '\ud83d'" is not Unicode text"""),
        ("\udce9 = 1", r"the condition '\udce9 = 1' is not Unicode text"),
        ("owner like 'a\\'", r"has the pattern 'a\', which ends in a backslash; double it to find one"),
        ("owner not like '\\\\\\'", r"has the pattern '\\\', which ends in a backslash"),
        ("owner ilike 'a\\'", "ends in a backslash"),
        ("year ilike '2%'", "takes year for a text, and it is a whole number; like and ilike compare texts"),
        ("2020 < year", "has 2020 where a column is expected"),
        ("owner = 3", "compares owner, which is a text, with 3"),
        ("owner = year", "compares owner"),
        ("owner", "takes owner for true or false"),
        ("day = '2024-13-01'", "compares day, which is a date"),
        ("upper(owner) = 'X'", "where a column is expected"),
        ("year = (select 1)", "compares year"),
        ("year in (select 1)", "not a test of a column"),
        ("exists (select 1)", "not a test of a column"),
        ("year + 1 = 2", "where a column is expected"),
        ("read_csv('/etc/passwd') = 1", "where a column is expected"),
        ("1 = 1", "where a column is expected"),
        ("true", "not a test of a column"),
        ("owner like year", "not a test of a column"),
    ],
)
def test_what_is_no_condition_is_refused(text, problem):
    with pytest.raises(InputError, match="the condition") as raised:
        parse_where(text, TABLE.schema)
    assert problem in str(raised.value)


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("year = '2021'", "a number has no quotes: year = 2021"),
        ("year in (2020, '2021')", "a number has no quotes: year = 2021"),
        ("rating > ' 4.5'", "a number has no quotes: rating = 4.5"),
        ("year = 'x'", "for example year >= 2020"),
        ("taken = 2021", "write year = 2021, or taken >= '2021-01-01' and taken < '2022-01-01'"),
        ("taken = '2021'", "write year = 2021, or taken >= '2021-01-01' and taken < '2022-01-01'"),
        ("day = '2021-12'", "write day >= '2021-12-01' and day < '2022-01-01'"),
        ("taken >= '2021-02'", "write taken >= '2021-02-01' and taken < '2021-03-01'"),
        ("day = 9999", "a date is YYYY-MM-DD in single quotes: day >= '2024-05-01'"),
        ("taken = 'yesterday'", "a date is YYYY-MM-DD in single quotes: taken >= '2024-05-01' or '2024-05-01 12:30'"),
        ("starred = 1", "it is a condition by itself: starred, or not starred"),
        ("owner = 3", "a text has single quotes: owner = '3'"),
        ('owner = "x"', "a text has single quotes: owner = 'x'"),
        ('"owner name" = 3', "a text has single quotes: \"owner name\" = '3'"),
        ("taken like '2021%'", "like and ilike compare texts"),
        ("year", "for example year is not null"),
    ],
)
def test_a_value_of_another_type_is_answered_by_the_right_form(text, right):
    with pytest.raises(InputError) as raised:
        parse_where(text, TABLE.schema)
    hint = str(raised.value.hint)
    assert right in hint
    # Each form is a condition itself.
    forms = re.sub(r"^(write|for example|.*:) ", "", hint.partition(" or '")[0]).split(", or ")
    for form in forms if "compare texts" not in hint else []:
        parse_where(form, TABLE.schema)


@pytest.mark.parametrize("text", ["x" * 9000 + " = 1", f"rating > {'9' * 4000}", "year = 1 " + "\n)" * 4000])
def test_a_long_condition_is_shortened_in_its_message(text):
    with pytest.raises(InputError, match=r"^the condition '.{100}\.\.\.'") as raised:
        parse_where(text, TABLE.schema)
    assert len(str(raised.value)) < 500
    assert "\n" not in str(raised.value)


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


def test_an_unknown_column_names_the_columns():
    with pytest.raises(InputError) as raised:
        parse_where("yaer = 2020", TABLE.schema)
    assert raised.value.hint == "the columns are year, owner, rating, starred, day, taken, owner name, image_id, path"


def test_without_columns_the_hint_names_those_that_every_index_has():
    with pytest.raises(InputError) as raised:
        parse_where("year = 2020", pa.schema([]))
    assert raised.value.hint == "the columns are image_id, path; `dcdctl change INDEX --metadata FILE` adds others"


@pytest.mark.parametrize("text", ["(" * 900 + "year = 1" + ")" * 900, "not " * 5000 + "starred", "year in (" * 900])
def test_deep_nesting_is_an_error(text):
    with pytest.raises(InputError):
        parse_where(text, TABLE.schema)


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
