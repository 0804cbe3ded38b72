"""Images listed without a query: under a condition, in an order, page by page."""

from __future__ import annotations

import shutil
from datetime import datetime

import pyarrow as pa
import pytest
from made_index import build, searcher_of, unit_vectors, update, write_index

from dcdctl.core.data import MOMENT
from dcdctl.core.search import CombinedQuery, FolderIndex, Order, browse_index, parse_order, parse_where

COUNT, REMOVED = 9, (4,)
MOMENTS = [datetime(2020 + number % 3, 5, 1 + number) if number % 4 else None for number in range(COUNT)]
COLUMNS = {
    "taken": pa.array(MOMENTS, MOMENT),
    "year": pa.array([2020 + number % 3 for number in range(COUNT)], pa.int64()),
    "owner": pa.array(["b", None, "é", "B", "b", "c", "a", "é", None], pa.string()),
    "rating": pa.array([0.0, -0.0, 1e300, None, 5.0, -1e300, 0.5, None, 0.25], pa.float64()),
    "starred": pa.array([True, None, False, True, True, False, None, True, False], pa.bool_()),
    "day": pa.array([None if moment is None else moment.date() for moment in MOMENTS], pa.date32()),
    "\U0001f4f7 desc": pa.array(range(COUNT, 0, -1), pa.int64()),
}
ORDERS = [(name, is_descending) for name in [*COLUMNS, "image_id"] for is_descending in (False, True)]


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> FolderIndex:
    folder = tmp_path_factory.mktemp("browse") / "index"
    vectors = unit_vectors(COUNT)
    write_index(folder, [vectors[:5], vectors[5:]], images=folder.parent / "photos", removed=REMOVED)
    return update(folder, metadata=pa.table({"image": [f"{row}.png" for row in range(COUNT)], **COLUMNS}))


def in_order(name: str, is_descending: bool) -> list[int]:
    """The oracle: by Python's sort, which keeps equal values by row, and images without a value last."""
    values = [f"{row}.png" for row in range(COUNT)] if name == "image_id" else COLUMNS[name].to_pylist()
    rows = [row for row in range(COUNT) if row not in REMOVED]
    filled = [row for row in rows if values[row] is not None]
    # Texts by their bytes, as everywhere in dcdctl.
    keys = {row: values[row].encode() if isinstance(values[row], str) else values[row] for row in filled}
    # Equal values stay in the order of rows, also in reverse.
    filled.sort(key=lambda row: keys[row], reverse=is_descending)
    return [*filled, *(row for row in rows if values[row] is None)]


@pytest.mark.parametrize(("name", "is_descending"), ORDERS)
def test_the_order_of_each_type_is_that_of_python_with_missing_values_last(index, name, is_descending):
    answer = browse_index(index, 99, order=Order(name, is_descending))
    assert [hit.row for hit in answer.hits] == in_order(name, is_descending)
    assert {hit.score for hit in answer.hits} == {None}


def test_pages_follow_each_other_and_the_newest_come_first(index):
    rows = in_order("taken", True)
    pages = [[hit.row for hit in browse_index(index, 3, offset=offset).hits] for offset in (0, 3, 6, 9, 10**30)]
    assert pages == [rows[:3], rows[3:6], rows[6:], [], []]
    assert browse_index(index, 1).total == len(rows)


def test_a_list_under_a_condition_has_the_images_that_meet_it(index):
    answer = browse_index(index, 2, parse_where("year = 2021", index.columns), Order("year"))
    assert ([hit.row for hit in answer.hits], answer.total, answer.notes) == ([1, 7], 2, ())
    empty = browse_index(index, 2, parse_where("year = 1", index.columns))
    assert (empty.hits, empty.total) == ((), 0)
    assert empty.notes == ("no image meets the condition: year is from 2020 to 2022",)


def test_without_dates_the_list_is_in_the_order_of_rows(index):
    plain = write_index(index.folder.parent / "plain", [unit_vectors(4)])
    assert [hit.row for hit in browse_index(plain).hits] == [0, 1, 2, 3]


def test_a_hit_has_the_path_of_its_file(index):
    hit = browse_index(index, 1).hits[0]
    assert hit.path == index.folder.parent / "photos" / hit.name
    assert index.search(unit_vectors(1), 1)[0][0].path.is_absolute()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("year", Order("year")),
        ("  year  ASC ", Order("year")),
        ("year\tDesc", Order("year", True)),
        ('"year" desc', Order("year", True)),
        ("path desc", Order("path", True)),
        ('"\U0001f4f7 desc"', Order("\U0001f4f7 desc")),
        ('"\U0001f4f7 desc" desc', Order("\U0001f4f7 desc", True)),
    ],
)
def test_an_order_is_a_column_and_a_direction(index, text, expected):
    assert parse_order(text, index.columns) == expected


def test_copies_are_one_image_of_a_list_and_of_a_combined_query_unless_all_are_asked_for(noise_index, tmp_path):
    photos, files = tmp_path / "photos", noise_index.parent / "images"
    photos.mkdir()
    for name, source in (("a.png", "plain.png"), ("b.png", "plain.png"), ("c.png", "g.png")):
        shutil.copy(files / source, photos / name)
    index = build(noise_index.parent / "dual", photos, tmp_path / "index")
    searcher = searcher_of(index.folder)
    combined = CombinedQuery("red", without=("blue",))
    for all_copies in (False, True, False):
        index.all_copies = searcher.index.all_copies = all_copies
        listed = browse_index(index, 9, order=Order("path"))
        names = ["a.png", "b.png", "c.png"] if all_copies else ["a.png", "c.png"]
        assert ([hit.name for hit in listed.hits], listed.total) == (names, len(names))
        assert listed.hits[0].copies == (() if all_copies else ("b.png",))
        assert len(searcher.ask(combined).hits) == len(names)
