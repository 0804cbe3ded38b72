"""Made-up images with columns of every type for a store, and the answers that it must give."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from datetime import date, datetime
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from made_index import exact, unit_vectors
from numpy.typing import NDArray

from dcdctl.core.search import ImageSource
from dcdctl.core.search.columns.where import MOMENT, matches, parse_where
from dcdctl.core.stores import StoreFacts, StoreIndex

DIM = 16
COUNT = 120
COLUMNS = pa.schema(
    [
        ("owner", pa.string()),
        ("year", pa.int64()),
        ("score of judges", pa.float64()),
        ("is_public", pa.bool_()),
        ("day", pa.date32()),
        ("taken", MOMENT),
    ]
)
TEXTS = [
    "ann",
    "bob's",
    'a "quote"',
    "50%",
    "5_0",
    "back\\slash",
    "Été",
    "日本 \U0001f600",
    "",
    "new\nline",
    "ann ",
    "Zoë",
    None,
]
"""Texts that are hard to quote, to match and to sort."""


NAMES = map("photos_{}".format, itertools.count())
URLS: dict[str, Callable[[pytest.FixtureRequest, Path], str]] = {
    "postgresql": lambda request, _: f"{request.getfixturevalue('postgres_url')}&table={next(NAMES)}",
    "lancedb": lambda _, folder: f"lancedb:{folder / 'lance'}?table=photos",
}
"""For each kind the URL of a store that does not exist yet."""


def made_facts(**changes: object) -> StoreFacts:
    """The facts of these images."""
    facts: dict[str, object] = {
        "model": "a" * 64,
        "model_folder": "/nowhere/model",
        "dims": DIM,
        "precision": "float32",
        "columns": {field.name: str(field.type) for field in COLUMNS},
        "sources": (ImageSource(kind="folder", path="/nowhere"),),
        "generation": 1,
        "rows": COUNT,
        "images": COUNT,
        "content": "c" * 64,
        "values": "d" * 64,
    }
    return StoreFacts(**{**facts, **changes})  # type: ignore[arg-type]


@cache
def made_images(count: int = COUNT, seed: int = 0) -> pa.Table:
    """Images with values in every column; in each column about one in seven is missing."""
    rng = np.random.default_rng(seed)

    def column(values: list[object], type_: pa.DataType) -> pa.Array:
        return pa.array(
            [None if rng.random() < 0.15 else values[rng.integers(len(values))] for _ in range(count)], type_
        )

    vectors = unit_vectors(count, DIM, seed)
    vectors[7] = vectors[3]  # a tie
    schema = made_facts().image_schema
    values: dict[str, pa.Array] = {
        "row": pa.array(range(count), pa.int64()),
        "source": pa.array([0] * count, pa.int32()),
        "image_id": pa.array([f"déjà/{row}.png" for row in range(count)]),
        "path": pa.array([f"déjà/{row}.png" for row in range(count)]),
        "corpus_row": pa.array([None] * count, pa.int64()),
        "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), type=schema.field("vector").type),
        "owner": column(TEXTS, pa.string()),
        "year": column([1999, 2020, 2021, -(2**62) - 1, 2**62 + 1], pa.int64()),
        "score of judges": column([0.1, -2.5, 1e300, 3.0, 7.25], pa.float64()),
        "is_public": column([True, False], pa.bool_()),
        "day": column([date(2020, 1, 31), date(1969, 7, 20), date(2024, 2, 29)], pa.date32()),
        "taken": column(
            [datetime(2020, 1, 31, 12, 30, 15, 123456), datetime(1969, 7, 20), datetime(2024, 2, 29, 23, 59, 59)],
            MOMENT,
        ),
    }
    return pa.table([values[name] for name in schema.names], schema=schema)


def vectors_of(images: pa.Table) -> NDArray[np.float16]:
    """The vectors of a table of images."""
    numbers = images.column("vector").combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return numbers.astype(np.float16).reshape(len(images), -1)


def check_graph_search(index: StoreIndex, images: pa.Table) -> None:
    """Compare searches by a graph, with and without conditions, with an exact search: as many hits, and nearly all the
    same."""
    queries = unit_vectors(5, DIM, seed=4)
    # The second holds for a third of the images, the last for a handful.
    for text in (None, "year >= 2020", "owner = 'ann' and year = 2021 and is_public"):
        condition = None if text is None else parse_where(text, COLUMNS)
        held = np.ones(len(images), dtype=bool) if condition is None else matches(condition, images)
        num_found = num_expected = 0
        for query, hits in zip(queries, index.search(queries, 10, condition), strict=True):
            expected = exact(vectors_of(images), query, 10, removed=np.flatnonzero(~held).tolist())
            assert len(hits) == len(expected) > 0
            num_found += len({hit.row for hit in hits} & set(expected))
            num_expected += len(expected)
        assert num_found >= 0.98 * num_expected
