"""What an evaluation leaves in a folder, a run's or another: the rank of every query, its first candidates, and the numbers, written last.

    DIR/ranks.parquet            direction, query, image_id, caption_id, caption, rank, score
    DIR/top.parquet              direction, query, place, candidate, score, is_own
    DIR/result.json              the document of `evaluation.to_document`

A cascade's are cascade-ranks.parquet, cascade-top.parquet and cascade.json, so that the dual encoder's own stay. docs/formats.md has the
columns. The numbers of before are removed first: an evaluation that is killed in between leaves none, and never those of other ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dcdctl.core import files
from dcdctl.core.data import Corpus, Direction
from dcdctl.core.errors import InputError
from dcdctl.core.evaluation.ranks import NUM_TOP, RANKS_HINT, Ranking, RankTable
from dcdctl.core.evaluation.result import Evaluation

_SCHEMA = pa.schema({"direction": pa.string(), "query": pa.int64(), "image_id": pa.string(), "caption_id": pa.int64(), "rank": pa.int64()})


@dataclass(frozen=True)
class Names:
    """What the files of an evaluation are called."""

    ranks: str
    top: str
    result: str


ALONE = Names("ranks.parquet", "top.parquet", "result.json")
CASCADE = Names("cascade-ranks.parquet", "cascade-top.parquet", "cascade.json")


def read_ranks(path: Path) -> RankTable:
    """The table that `evaluation_files.write_ranks` has written; InputError where there is none."""
    if not path.is_file():
        raise InputError(f"there is no file {path}, a table of ranks is wanted", hint=RANKS_HINT)
    try:
        with pq.ParquetFile(path.absolute()) as file:  # a relative one with a colon would be an address
            if missing := set(_SCHEMA.names) - set(file.schema_arrow.names):
                raise InputError(f"{path} is not a table of ranks: it has no column {min(missing)!r}", hint=RANKS_HINT)
            table = file.read(_SCHEMA.names).select(_SCHEMA.names).cast(_SCHEMA)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} is not a table of ranks ({error})", hint=RANKS_HINT) from error
    text, image = (table.filter(pc.field("direction") == direction.value) for direction in Direction)
    if fault := _fault(table, text, image):
        raise InputError(f"{path} is not a table of ranks: {fault}", hint=RANKS_HINT)
    image_ids = tuple(text["image_id"].to_pylist())
    caption_image = pc.index_in(image["image_id"], value_set=text["image_id"]).to_numpy().astype(np.int64)
    return RankTable(image_ids, image["caption_id"].to_numpy(), caption_image, text["rank"].to_numpy(), image["rank"].to_numpy())


def _fault(table: pa.Table, text: pa.Table, image: pa.Table) -> str | None:
    """What is wrong with a table that has the right columns."""
    if 0 in (text.num_rows, image.num_rows) or text.num_rows + image.num_rows != table.num_rows:
        return f"its directions are {table['direction'].unique().to_pylist()}, text and image are wanted"
    for part in (text.drop_columns("caption_id"), image):
        if empty := [name for name in part.column_names if part[name].null_count]:
            return f"its column {empty[0]!r} has empty fields"
        if part["query"].to_pylist() != list(range(part.num_rows)):
            return f"its {part['direction'][0]} queries are not numbered from 0 to {part.num_rows - 1}"
    if (lowest := pc.min(table["rank"]).as_py()) < 1:
        return f"it has the rank {lowest}, ranks start at 1"
    image_ids = set(text["image_id"].to_pylist())
    if len(image_ids) != text.num_rows:
        return f"its {text.num_rows} images have {len(image_ids)} different ids"
    alone = image_ids ^ set(image["image_id"].to_pylist())
    return f"the image {min(alone)!r} is in one direction only" if alone else None


def names_of(*, is_cascade: bool) -> Names:
    return CASCADE if is_cascade else ALONE


def folder_of(ref: str, out: Path | None) -> Path | None:
    """Where the evaluation of a model belongs: in the folder that is named, else in the model's run; None where it has none."""
    return out if out is not None else Path(ref) if Path(ref, "run.json").exists() else None


def check_copy(path: Path, folder: Path | None, names: Names) -> None:
    """InputError if a copy of the ranks at `path` would take the place of ranks that other numbers belong to."""
    for other in (ALONE, CASCADE):
        is_ours = folder is not None and other == names and path.resolve() == (folder / names.ranks).resolve()
        if path.name == other.ranks and path.with_name(other.result).exists() and not is_ours:
            said = f"{path.with_name(other.result)} belongs to the ranks in {path}"
            raise InputError(f"{said}, which --ranks would replace by those of another evaluation", hint="name another file with --ranks")


def write_evaluation(folder: Path, document: dict[str, Any], evaluation: Evaluation, corpus: Corpus) -> None:
    """Write the three files, the numbers last."""
    names = names_of(is_cascade=evaluation.kind == "cascade")
    (folder / names.result).unlink(missing_ok=True)
    write_ranks(folder / names.ranks, evaluation, corpus)
    _write_top(folder / names.top, evaluation)
    files.write_json(folder / names.result, document)


def write_ranks(path: Path, evaluation: Evaluation, corpus: Corpus) -> None:
    """Write the rank of every query to a Parquet table; `query` is an image index where the direction is "text", else a caption index.

    A query image has no caption.
    """
    num_images, num_captions = len(evaluation.text_ranks), len(evaluation.image_ranks)
    image_ids = np.array(evaluation.table.image_ids, dtype=object)
    text = {
        "direction": "text",
        "query": np.arange(num_images),
        "image_id": image_ids,
        "caption_id": pd.array([pd.NA] * num_images, dtype="Int64"),
        "caption": pd.Series([None] * num_images, dtype="str"),
        "rank": evaluation.text_ranks,
        "score": evaluation.rankings.text.best_Q.astype(np.float32),
    }
    image = {
        "direction": "image",
        "query": np.arange(num_captions),
        "image_id": image_ids[evaluation.table.caption_image],
        "caption_id": pd.array(evaluation.table.caption_ids, dtype="Int64"),
        "caption": corpus.captions[:num_captions],
        "rank": evaluation.image_ranks,
        "score": evaluation.rankings.image.best_Q.astype(np.float32),
    }
    _write(path, pd.concat([pd.DataFrame(text), pd.DataFrame(image)], ignore_index=True))


def _write_top(path: Path, evaluation: Evaluation) -> None:
    owner_T = evaluation.table.caption_image
    text, image = evaluation.rankings.text, evaluation.rankings.image
    is_own_IK = owner_T[text.top_QK] == np.arange(len(text.top_QK))[:, None]
    parts = [_top_table("text", text, is_own_IK), _top_table("image", image, image.top_QK == owner_T[:, None])]
    _write(path, pd.concat(parts, ignore_index=True))


def _top_table(direction: str, ranking: Ranking, is_own_QK: NDArray[np.bool_]) -> pd.DataFrame:
    """One row a candidate; `candidate` is a caption index where the direction is "text", else an image index."""
    top_QK = ranking.top_QK[:, :NUM_TOP]
    num_queries, k = top_QK.shape
    columns = {
        "direction": direction,
        "query": np.repeat(np.arange(num_queries), k),
        "place": np.tile(np.arange(1, k + 1, dtype=np.int16), num_queries),
        "candidate": top_QK.ravel(),
        "score": ranking.top_score_QK[:, :NUM_TOP].ravel().astype(np.float32),
        "is_own": is_own_QK[:, :NUM_TOP].ravel(),
    }
    return pd.DataFrame(columns)


def _write(path: Path, table: pd.DataFrame) -> None:
    with files.atomic_path(path) as partial:
        table.to_parquet(partial, index=False)


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


def read_answers(folder: Path, prefix: str = "") -> Answers | None:
    """The answers in an evaluation folder, "cascade-" being the prefix of a cascade's; None where there is no table of ranks."""
    path, top_path = folder / f"{prefix}ranks.parquet", folder / f"{prefix}top.parquet"
    if not path.exists():
        return None
    ranks = read_ranks(path)
    columns = pq.read_table(path)
    is_image = np.array(columns["direction"].to_pylist()) == "image"
    own_scores: dict[Direction, NDArray[np.float32]] = {}
    if "score" in columns.column_names:
        scores = columns["score"].to_numpy().astype(np.float32)
        own_scores = {Direction.TEXT: scores[~is_image], Direction.IMAGE: scores[is_image]}
    captions = columns["caption"].to_pylist() if "caption" in columns.column_names else [""] * len(is_image)
    return Answers(
        table=ranks,
        captions=tuple(caption or "" for caption, one in zip(captions, is_image, strict=True) if one),
        own_scores=own_scores,
        top=_read_top(top_path, ranks) if top_path.exists() else {},
    )


def _read_top(path: Path, ranks: RankTable) -> dict[Direction, Top]:
    try:
        table = pq.read_table(path)
        if missing := [name for name in _TOP if name not in table.column_names]:
            raise InputError(f"{path} is not a table of first answers: it has no column {missing[0]!r}", hint=HINT)
        table = table.select(list(_TOP)).cast(pa.schema(_TOP)).sort_by([("query", "ascending"), ("place", "ascending")])
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} is not a table of first answers ({error})", hint=HINT) from error
    directions = np.array(table["direction"].to_pylist(), dtype=object)
    columns = {name: table[name].to_numpy(zero_copy_only=False) for name in _TOP}
    num_images, num_captions = len(ranks.text_ranks), len(ranks.image_ranks)
    sizes = {Direction.TEXT: (num_images, num_captions), Direction.IMAGE: (num_captions, num_images)}
    return {
        direction: _top({name: column[directions == direction] for name, column in columns.items()}, path, *sizes[direction])
        for direction in Direction
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
