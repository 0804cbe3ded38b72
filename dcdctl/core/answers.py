"""What a model answered, query by query: the tables of ranks and of the first ten that `dcdctl eval` leaves in a folder, read back.

Shape letters: Q queries of a direction, K places, T captions.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dcdctl.core import comparison
from dcdctl.core.comparison import RankTable
from dcdctl.core.errors import InputError

Direction = Literal["text", "image"]
DIRECTIONS: tuple[Direction, Direction] = ("text", "image")
"""Text retrieval: a query is an image, captions are found. Image retrieval: a query is a caption, images are found."""
HINT = "`dcdctl eval` writes both tables anew"
_TOP = {
    "direction": pa.string(),
    "query": pa.int64(),
    "place": pa.int16(),
    "candidate": pa.int64(),
    "score": pa.float32(),
    "is_own": pa.bool_(),
}


@dataclass(frozen=True, eq=False)
class Top:
    """The best candidates of every query, best first."""

    candidate_QK: NDArray[np.int64]
    """Caption indices where texts are retrieved, else image indices."""
    score_QK: NDArray[np.float32]
    is_own_QK: NDArray[np.bool_]

    @property
    def hardest_negative_Q(self) -> NDArray[np.float32]:
        """The score of the best candidate that is not the query's own; NaN where there is none among the first K.

        >>> Top(np.array([[4, 7]]), np.array([[3.0, 1.0]], np.float32), np.array([[True, False]])).hardest_negative_Q
        array([1.], dtype=float32)
        """
        first_Q = self.is_own_QK.argmin(axis=1)
        found_Q = self.score_QK[np.arange(len(first_Q)), first_Q]
        return np.where(self.is_own_QK.all(axis=1), np.float32("nan"), found_Q).astype(np.float32)


@dataclass(frozen=True, eq=False, kw_only=True)
class Answers:
    """How a model answers the queries of a split."""

    table: RankTable
    captions: tuple[str, ...]
    """(T,)"""
    own_scores: dict[Direction, NDArray[np.float32]]
    """Score of each query's best positive; empty where a table of ranks has no scores."""
    top: dict[Direction, Top]
    """Empty where there is no table of the first ten."""

    def ranks(self, direction: Direction) -> NDArray[np.int64]:
        """(Q,): the rank of each query's best positive, from 1."""
        return self.table.text_ranks if direction == "text" else self.table.image_ranks


def read(folder: Path, prefix: str = "") -> Answers | None:
    """The answers in an evaluation folder, "cascade-" being the prefix of a cascade's; None where there is no table of ranks."""
    path, top_path = folder / f"{prefix}ranks.parquet", folder / f"{prefix}top.parquet"
    if not path.exists():
        return None
    ranks = comparison.read_ranks(path)
    columns = pq.read_table(path)
    is_image = np.array(columns["direction"].to_pylist()) == "image"
    own_scores: dict[Direction, NDArray[np.float32]] = {}
    if "score" in columns.column_names:
        scores = columns["score"].to_numpy().astype(np.float32)
        own_scores = {"text": scores[~is_image], "image": scores[is_image]}
    captions = columns["caption"].to_pylist() if "caption" in columns.column_names else [""] * len(is_image)
    counts = {"text": len(ranks.text_ranks), "image": len(ranks.image_ranks)}
    return Answers(
        table=ranks,
        captions=tuple(caption or "" for caption, one in zip(captions, is_image, strict=True) if one),
        own_scores=own_scores,
        top=_read_top(top_path, counts) if top_path.exists() else {},
    )


def _read_top(path: Path, counts: dict[str, int]) -> dict[Direction, Top]:
    try:
        table = pq.read_table(path)
        if missing := [name for name in _TOP if name not in table.column_names]:
            raise InputError(f"{path} is not a table of first answers: it has no column {missing[0]!r}", hint=HINT)
        table = table.select(list(_TOP)).cast(pa.schema(_TOP)).sort_by([("query", "ascending"), ("place", "ascending")])
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} is not a table of first answers ({error})", hint=HINT) from error
    directions = np.array(table["direction"].to_pylist(), dtype=object)
    columns = {name: table[name].to_numpy(zero_copy_only=False) for name in _TOP}
    # What is retrieved for an image is captions, and the other way round.
    galleries = {"text": counts["image"], "image": counts["text"]}
    return {
        direction: _top(
            {name: column[directions == direction] for name, column in columns.items()}, path, counts[direction], galleries[direction]
        )
        for direction in DIRECTIONS
    }


def _top(columns: dict[str, NDArray[Any]], path: Path, num_queries: int, gallery_size: int) -> Top:
    """The rows of one direction as arrays; they must be the first K of every query, numbered from 1."""
    num_places = len(columns["query"]) // num_queries
    query, place = np.divmod(np.arange(num_queries * num_places), max(1, num_places))
    shape = (num_queries, num_places)
    if not num_places or not np.array_equal(columns["query"], query) or not np.array_equal(columns["place"], place + 1):
        wanted = f"{num_queries:,} queries with the same number of places each"
        raise InputError(f"{path} and the ranks beside it are not of one evaluation: {wanted} are wanted", hint=HINT)
    if not 0 <= columns["candidate"].min() <= columns["candidate"].max() < gallery_size:
        raise InputError(f"{path} names candidates that are not among the {gallery_size:,} of the ranks beside it", hint=HINT)
    return Top(columns["candidate"].reshape(shape), columns["score"].reshape(shape), columns["is_own"].reshape(shape))
