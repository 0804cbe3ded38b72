"""Columns of images: read from tables, kept through changes of an index, and exact under a condition."""

from __future__ import annotations

import shutil
from dataclasses import replace
from datetime import date, datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from made_index import exact, unit_vectors, write_index
from PIL import Image
from PIL.ExifTags import Base

from dcdctl.core.data import MOMENT, columns_of_table, read_columns
from dcdctl.core.errors import InputError
from dcdctl.core.search import Changes, change_index, parse_where, readers

KINDS = {
    "flat": {},
    "codes": {"flat_up_to": 10, "segment_rows": 128},
}
REMOVED = (3, 40, 41)


def set_columns(index, table=None, **changes):
    metadata = pa.table(table) if isinstance(table, dict) else table
    change = change_index(str(index.folder), Changes(metadata=metadata, **changes))
    return change.index, list(change.notes)


def table_of(count, seed=0):
    """Metadata for the images 0.png, 1.png, ...: a number with every value in 0..99, and an owner that some lack."""
    rng = np.random.default_rng(seed)
    owners = np.array(["ann", "bob", None, "o'neil"], dtype=object)[rng.integers(0, 4, count)]
    return pa.table(
        {
            "image": [f"{row}.png" for row in range(count)],
            "share": pa.array(rng.integers(0, 100, count), pa.int64()),
            "owner": pa.array(owners.tolist(), pa.string()),
        }
    )


@pytest.fixture(scope="module", params=list(KINDS))
def filtered(request, tmp_path_factory):
    """An index of a kind with removed rows and columns; its vectors and its metadata."""
    count = 300
    vectors = unit_vectors(count)
    vectors[7] = vectors[12]  # a tie
    halves = [vectors[: count // 2], vectors[count // 2 :]]
    made = write_index(
        tmp_path_factory.mktemp(request.param) / "index", halves, removed=REMOVED, **KINDS[request.param]
    )
    assert made.kind == request.param
    table = table_of(count)
    return set_columns(made, table)[0], vectors, table


@pytest.mark.parametrize("many", [0.0, 0.05, 1.0])
@pytest.mark.parametrize(
    ("text", "keep"),
    [
        ("share = 17", lambda row: row["share"] == 17),
        ("share >= 40", lambda row: row["share"] >= 40),
        ("owner = 'o''neil' or share < 5", lambda row: row["owner"] == "o'neil" or row["share"] < 5),
        ("not (owner in ('ann', 'bob'))", lambda row: row["owner"] == "o'neil"),
        (
            "image_id in ('7.png', '12.png', '3.png', '299.png')",
            lambda row: row["image"] in ("7.png", "12.png", "3.png", "299.png"),
        ),
        ("share > 100", lambda row: False),
    ],
)
def test_under_a_condition_the_answer_is_exact_for_every_kind(filtered, monkeypatch, text, keep, many):
    index, vectors, table = filtered
    # All three: rows are always masked, few rows are gathered, rows are always gathered.
    monkeypatch.setattr(readers, "MANY", many)
    kept = [row for row, values in enumerate(table.to_pylist()) if keep(values) and row not in REMOVED]
    queries = np.random.default_rng(5).normal(size=(3, 16))
    queries[0] = vectors[12]
    out = set(range(len(vectors))) - set(kept)
    best = [exact(vectors, query, len(vectors), out) for query in queries]
    for k in (1, 10, len(kept) + 5):
        scores_QK, rows_QK = index.nearest(queries, k, parse_where(text, index.columns))
        for ranked, rows, scores in zip(best, rows_QK.tolist(), scores_QK.tolist(), strict=True):
            expected = ranked[:k]
            assert rows == expected + [-1] * (k - len(expected))
            assert all(np.isneginf(scores[len(expected) :]))


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_cells_of_a_csv_get_the_type_that_fits_all_of_them(tmp_path):
    text = (
        "image, year,zip,rating,starred,day,taken,owner,empty,huge,nobody\n"
        'a.jpg,2020,007,1.5,True,2024-01-31,2024-01-31T08:30:00+02:00,"Ann, B.",,99999999999999999999,nan\n'
        "\n"
        "b.jpg,,12,nan,false,,2024-02-01 09:00,  x ,,1,2020-02-31\n"
        "c.jpg,2019\n"
    )
    read = read_columns(write(tmp_path / "m.csv", text))
    assert read.images == ["a.jpg", "b.jpg", "c.jpg"]
    assert read.table.to_pydict() == {
        "year": [2020, None, 2019],
        "zip": ["007", "12", None],
        "rating": [1.5, None, None],
        "starred": [True, False, None],
        "day": [date(2024, 1, 31), None, None],
        "taken": [datetime(2024, 1, 31, 6, 30), datetime(2024, 2, 1, 9), None],
        "owner": ["Ann, B.", "x", None],
        "huge": ["99999999999999999999", "1", None],
        "nobody": ["nan", "2020-02-31", None],
    }
    assert read.table.schema.types == [
        pa.int64(), pa.string(), pa.float64(), pa.bool_(), pa.date32(), MOMENT, pa.string(), pa.string(), pa.string()
    ]  # fmt: skip
    assert read.notes == (f"column empty of {tmp_path / 'm.csv'} is left out: it has no values",)


def test_types_of_parquet_become_those_of_columns(tmp_path):
    table = pa.table(
        {
            "image_id": pa.array([1, 2], pa.int32()),
            "small": pa.array([1, None], pa.uint8()),
            "half": pa.array([np.float16(0.5), np.float16("nan")], pa.float16()),
            "word": pa.array(["x", "y"]).dictionary_encode(),
            "taken": pa.array([datetime(2024, 1, 1), None], pa.timestamp("ns", "Europe/Paris")),
            "day": pa.array([date(2024, 1, 1), None], pa.date64()),
        }
    )
    pq.write_table(table, tmp_path / "m.parquet")
    read = read_columns(tmp_path / "m.parquet")
    assert read.images == ["1", "2"]
    assert read.table.schema.types == [pa.int64(), pa.float64(), pa.string(), MOMENT, pa.date32()]
    assert read.table.to_pydict()["half"] == [0.5, None]
    assert read.table.to_pydict()["taken"] == [datetime(2024, 1, 1), None]


def test_nanoseconds_of_moments_are_dropped(tmp_path):
    late = np.array(["2024-01-01T00:00:00.000001999"], "datetime64[ns]")
    pq.write_table(pa.table({"image": ["a"], "taken": late}), tmp_path / "m.parquet")
    read = read_columns(tmp_path / "m.parquet")
    assert read.table.to_pydict() == {"taken": [datetime(2024, 1, 1, microsecond=1)]}


def test_the_first_row_of_an_image_counts_and_others_are_counted():
    table = pa.table({"path": ["a", "b", "a", "a", None], "year": [1, 2, 1, 5, 9], "owner": ["x", None, "x", "x", "y"]})
    read = columns_of_table(table, "it")
    assert (read.images, read.table.to_pydict()) == (["a", "b"], {"year": [1, 2], "owner": ["x", None]})
    assert read.notes == ("column year of it has several values for 1 image: the first row of an image counts",)


@pytest.fixture
def made(tmp_path):
    """An index of 0.png to 5.png, whose folder is called photos; 4.png is removed."""
    return write_index(
        tmp_path / "index",
        [unit_vectors(4), unit_vectors(2, seed=1)],
        images=tmp_path / "photos",
        removed=[4],
    )


def column(index, name):
    return index.values(name).to_pylist()


def test_values_are_replaced_for_named_images_only(made, tmp_path):
    photos = tmp_path / "photos"
    given = pa.table(
        {"image": ["0.png", "./1.png", f"{photos}/2.png", "photos/3.png", "x.png"], "year": [1, 2, 3, 4, 5]}
    )
    index, notes = set_columns(made, given)
    assert column(index, "year") == [1, 2, 3, 4, None, None]
    assert notes == [
        "not in the index: 1 image of the table of metadata, such as 'x.png'",
        "not in the table of metadata: 1 image of the index",
    ]
    index, _ = set_columns(
        index,
        {"image": ["1.png", "5.png", "2.png"], "year": [25, 7, None], "owner": ["a", "b", ""]},
    )
    assert column(index, "year") == [1, 25, None, 4, None, 7]
    assert column(index, "owner") == [None, "a", None, None, None, "b"]
    assert index.document.generation == 3
    assert sorted(path.name for path in index.folder.glob("columns-*")) == ["columns-3.parquet"]
    index.check()


def test_the_same_metadata_again_changes_nothing(made):
    given = pa.table({"image": ["0.png"], "year": [1]})
    index, _ = set_columns(made, given)
    assert set_columns(index, given)[0].document == index.document


def test_a_column_gets_another_type_if_no_value_of_the_old_type_stays(made):
    index, _ = set_columns(made, {"image": ["0.png", "1.png"], "year": [1, 2]})
    with pytest.raises(InputError, match="year"):
        set_columns(index, {"image": ["0.png"], "year": ["x"]})
    index, _ = set_columns(index, {"image": ["1.png", "0.png"], "year": ["x", "y"]})
    assert column(index, "year")[:2] == ["y", "x"]


def test_columns_are_dropped_and_an_index_without_columns_has_no_file(made):
    before = made.document
    assert before.columns is None
    index, _ = set_columns(made, {"image": ["0.png"], "year": [1], "owner": ["x"]})
    assert index.columns.names == ["year", "owner"]
    index, _ = set_columns(index, drop_columns=("year",))
    assert index.columns.names == ["owner"]
    index, _ = set_columns(index, drop_columns=("owner",))
    assert replace(index.document, generation=1) == before
    assert not list(index.folder.glob("columns-*"))


def test_a_column_is_summarized_without_removed_images(made):
    index, _ = set_columns(made, {"image": [f"{i}.png" for i in range(6)], "owner": ["b", "a", "b", None, "z", "a"]})
    (summary,) = index.summarize_columns()
    assert (summary.type, summary.missing, summary.distinct) == ("text", 1, 2)
    assert (summary.frequent, summary.low, summary.high) == ((("a", 2), ("b", 2)), "a", "b")


def test_values_of_all_types_come_back(made):
    rows = {
        "image": ["0.png", "1.png"],
        "flag": [True, None],
        "day": [date(2024, 2, 29), None],
        "taken": pa.array([datetime(2024, 2, 29, 1, 2, 3, 4), None], MOMENT),
        "x": [0.1, None],
        "word": ["\u72ac", None],
    }
    index, _ = set_columns(made, rows)
    (hits,) = index.search(unit_vectors(1), 2, parse_where("word = '\u72ac' or image_id = '1.png'", index.columns))
    values = {hit.row: dict(hit.columns) for hit in hits}
    assert values[0] == {
        "flag": True,
        "day": date(2024, 2, 29),
        "taken": datetime(2024, 2, 29, 1, 2, 3, 4),
        "x": 0.1,
        "word": "\u72ac",
    }
    assert set(values[1].values()) == {None}
    assert pc.is_null(index.values("x")).to_pylist() == [False] + [True] * 5


def test_a_hybrid_search_meets_the_condition_in_both_lists(tmp_path):
    made = write_index(tmp_path / "index", [unit_vectors(30)], removed=[5], keywords=True)
    index, _ = set_columns(
        made,
        {"image": [f"{row}.png" for row in range(30)], "parity": [row % 2 for row in range(30)]},
    )
    condition = parse_where("parity = 1", index.columns)
    (hits,) = index.hybrid(["8 9 11 5 png"], unit_vectors(1, seed=3), 30, condition)
    assert {hit.row for hit in hits} == {row for row in range(30) if row % 2} - {5}
    assert {hit.columns["parity"] for hit in hits} == {1}
    assert {hit.row for hit in hits if hit.bm25} == {9, 11}


def exif_photo(path, **tags):
    exif = Image.Exif()
    exif.update({getattr(Base, name): value for name, value in tags.items()})
    path.parent.mkdir(exist_ok=True)
    Image.new("RGB", (4, 4)).save(path, exif=exif)


def test_exif_columns_are_read_where_no_value_is(made, tmp_path):
    exif_photo(tmp_path / "photos" / "0.png", Model="EOS", DateTime="2019:05:01 12:00:00")
    exif_photo(tmp_path / "photos" / "1.png", Model="D70", DateTime="2018:05:01 12:00:00")
    exif_photo(tmp_path / "photos" / "4.png", Model="gone")
    index, _ = set_columns(made, {"image": ["0.png"], "year": [1999]}, sets=("exif=place",))
    assert column(index, "year") == [1999, 2018, None, None, None, None]
    assert column(index, "camera") == ["EOS", "D70", None, None, None, None]
    assert column(index, "taken")[1] == datetime(2018, 5, 1, 12)
    assert index.columns.types == [
        pa.int64(),
        MOMENT,
        pa.string(),
        pa.float64(),
        pa.float64(),
        pa.string(),
        pa.string(),
    ]
    assert index.values("latitude").null_count == 6
    # Again: what is there stays, whatever became of the files.
    shutil.rmtree(tmp_path / "photos")
    assert set_columns(index, sets=("exif=place",))[0].values("year").equals(index.values("year"))
