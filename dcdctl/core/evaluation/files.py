"""The files of an evaluation: `dcdctl eval` writes them into a run's folder or another one, and `SavedEvaluation.load`
reads them back.

    DIR/ranks.parquet            direction, query, image_id, caption_id, caption, rank, score; ndcg with relevance
    DIR/top.parquet              direction, query, place, candidate, score, is_own
    DIR/agreement.parquet        direction, query, candidates, same_first, ndcg, spearman; only with a teacher
    DIR/result.json              `Evaluation.document`, written last

The files of a cascade are cascade-ranks.parquet, cascade-top.parquet and cascade.json, so they never replace those of
its dual encoder; those of a pool are pool-agreement.parquet and pool.json alone. docs/formats.md describes the columns.
The document lists size and SHA-256 of the tables, which are compared before a table is read. The pages of a table also
have checksums, for copies without a document. The old document is removed first: a killed evaluation leaves no
document, and never one that belongs to other ranks.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dcdctl.core import artifacts, files, models
from dcdctl.core.config import build_document
from dcdctl.core.data import Direction, Flags, Index, Scores
from dcdctl.core.errors import InputError
from dcdctl.core.evaluation.agreement import Agreements, QueryAgreement
from dcdctl.core.evaluation.document import (
    CASCADE_FILES,
    MODEL_FILES,
    POOL_FILES,
    Evaluation,
    FileNames,
    Measured,
    PoolEvaluation,
)
from dcdctl.core.evaluation.ranking import NUM_TOP, RANKS_HINT, RankTable, is_positive

Result = TypeVar("Result", Evaluation, PoolEvaluation)
TABLES_HINT = "`dcdctl eval` writes the tables again"
_RANKS = {
    "direction": "string",
    "query": "int64",
    "image_id": "string",
    "caption_id": "int64",
    "rank": "int64",
}
AGREEMENT_COLUMNS = ("same_first", "ndcg", "spearman")
"""Of the MEASURES of `agreement`."""
_OPTIONAL = {"caption": "string", "score": "float32", "ndcg": "float64"}
"""Columns that a table of ranks by another program may lack: a comparison needs ranks alone."""
_TOP = {
    "direction": "string",
    "query": "int64",
    "place": "int16",
    "candidate": "int64",
    "score": "float32",
    "is_own": "bool",
}


@dataclass(frozen=True, eq=False)
class TopCandidates:
    """The best candidates of every query of a direction, best first."""

    candidate_QK: Index
    """Caption indices for text retrieval, image indices for image retrieval."""
    score_QK: Scores
    is_positive_QK: Flags

    @property
    def hardest_negative_Q(self) -> Scores:
        """The highest score among the negatives of each query; NaN if its first K candidates are all positives.

        >>> scores_QK, is_positive_QK = np.array([[3.0, 1.0]], np.float32), np.array([[True, False]])
        >>> TopCandidates(np.array([[4, 7]]), scores_QK, is_positive_QK).hardest_negative_Q
        array([1.], dtype=float32)
        """
        first_Q = self.is_positive_QK.argmin(axis=1)
        score_Q = self.score_QK[np.arange(len(first_Q)), first_Q]
        return np.where(self.is_positive_QK.all(axis=1), np.float32("nan"), score_Q).astype(np.float32)


@dataclass(frozen=True, eq=False)
class SavedEvaluation:
    """An evaluation on disk. The document is read at once, the tables when they are first needed."""

    folder: Path
    names: FileNames
    ref: str
    """Its name, as the user gave it."""
    evaluation: Evaluation | None = None
    """None without a document: a table of ranks alone, or nothing."""
    listed: dict[str, artifacts.Document] = field(default_factory=dict)
    """Size and SHA-256 of the tables beside the document, by file name."""

    @staticmethod
    def load(folder: Path, names: FileNames = MODEL_FILES, ref: str = "") -> SavedEvaluation:
        """The evaluation in a folder: of a model, or of a cascade with `CASCADE_FILES`. InputError for a
        damaged document."""
        ref = ref or str(folder)
        if not names.result or not (folder / names.result).exists():
            return SavedEvaluation(folder, names, ref)
        return SavedEvaluation(folder, names, ref, *_read_document(Evaluation, folder / names.result))

    @property
    def ranks_file(self) -> Path:
        return self.folder / self.names.ranks

    @cached_property
    def table(self) -> RankTable | None:
        """The ranks of all queries; None without a table of ranks. InputError for a damaged table."""
        if not self.ranks_file.exists():
            return None
        # Without a document, any table is right.
        for name in () if self.evaluation is None else (self.names.ranks, self.names.top, self.names.agreement):
            if not name or not (self.folder / name).exists():
                continue
            if name not in self.listed:
                raise InputError(
                    f"{self.folder / name} does not belong to {self.names.result} beside it, which does not list it",
                    hint=TABLES_HINT,
                )
            artifacts.check_files(self.folder, {name: self.listed[name]}, error=InputError, hint=TABLES_HINT)
        return read_ranks(self.ranks_file)

    @cached_property
    def top(self) -> dict[Direction, TopCandidates]:
        """The best candidates of all queries by direction; empty without their table. InputError for a damaged one."""
        path = self.folder / self.names.top
        if self.table is None or not self.names.top or not path.exists():
            return {}
        table = _read(path, "a table of best candidates", _TOP, TABLES_HINT)
        return {
            direction: TopCandidates(
                # Booleans are bits in Arrow, so they cannot be read without a copy.
                *(
                    rows[name].to_numpy(zero_copy_only=False).reshape(len(self.table.ranks(direction)), -1)
                    for name in ("candidate", "score", "is_own")
                )
            )
            for direction, rows in _by_direction(
                table.sort_by([("query", "ascending"), ("place", "ascending")])
            ).items()
        }


def _read_document(kind: type[Result], path: Path) -> tuple[Result, dict[str, artifacts.Document]]:
    """An evaluation, and size and SHA-256 of the tables that it lists."""
    hint = f"`dcdctl eval {path.parent} --data DIR` writes it again"
    document = artifacts.read_document(path, error=InputError, hint=hint)
    models.expect_run(path, document, error=InputError, hint=hint)
    listed = artifacts.listed_files(path, document, error=InputError, hint=hint)
    evaluation = build_document(kind, document, path, error=InputError, hint=hint)
    return replace(evaluation, folder=path.parent), listed


def read_pool(folder: Path) -> tuple[PoolEvaluation, Agreements] | None:
    """The evaluation of a pool in a folder, and its agreement query by query; None without one. InputError for damaged
    files."""
    if not (folder / POOL_FILES.result).exists():
        return None
    evaluation, listed = _read_document(PoolEvaluation, folder / POOL_FILES.result)
    artifacts.check_files(folder, listed, error=InputError, hint=TABLES_HINT)
    columns = {"direction": "string", "query": "int64", "candidates": "int64"}
    columns |= dict.fromkeys(AGREEMENT_COLUMNS, "float64")
    table = _read(folder / POOL_FILES.agreement, "a table of agreement", columns, TABLES_HINT)
    by_direction = {
        direction: QueryAgreement(
            rows["query"].to_numpy(),
            rows["candidates"].to_numpy(),
            np.column_stack([rows[name].to_numpy() for name in AGREEMENT_COLUMNS]),
        )
        for direction, rows in _by_direction(table).items()
        if rows.num_rows
    }
    return evaluation, Agreements(evaluation.agreement.over, by_direction)


def read_ranks(path: Path) -> RankTable:
    """The table of ranks that `write_ranks` wrote, or another program; InputError for another file, or none."""
    if not path.is_file():
        raise InputError(f"there is no file {path}, expected a table of ranks", hint=RANKS_HINT)
    table = _read(path, "a table of ranks", _RANKS, RANKS_HINT, optional=_OPTIONAL)
    if fault := _fault(table):
        raise InputError(f"{path} is not a table of ranks: {fault}", hint=RANKS_HINT)
    rows_of = _by_direction(table)
    text, image = rows_of.values()
    captions = image["caption"].fill_null("").to_pylist() if "caption" in table.column_names else [""] * image.num_rows
    return RankTable(
        tuple(text["image_id"].to_pylist()),
        image["caption_id"].to_numpy(),
        # By id, because another program may number its images otherwise.
        pc.index_in(image["image_id"], value_set=text["image_id"]).to_numpy().astype(np.int64),
        text["rank"].to_numpy(),
        image["rank"].to_numpy(),
        tuple(captions),
        {
            direction: rows["score"].to_numpy()
            if "score" in rows.column_names
            else np.full(rows.num_rows, np.nan, "f4")
            for direction, rows in rows_of.items()
        },
        {direction: rows["ndcg"].to_numpy() for direction, rows in rows_of.items() if "ndcg" in rows.column_names},
    )


def _read(
    path: Path, what: str, columns: dict[str, str], hint: str, *, optional: dict[str, str] | None = None
) -> pa.Table:
    """The columns of a table, in this order, with those optional ones that it has. InputError for another file, and
    for a damaged one."""
    try:
        # pyarrow takes a relative path with a colon for an address.
        with pq.ParquetFile(path.absolute(), page_checksum_verification=True) as file:
            present = set(file.schema_arrow.names)
            if missing := set(columns) - present:
                raise InputError(f"{path} is not {what}: it has no column {min(missing)!r}", hint=hint)
            schema = pa.schema(columns | {name: kind for name, kind in (optional or {}).items() if name in present})
            # pyarrow reads columns in the order of the file, and casts only columns in the order of the schema.
            return file.read(schema.names).select(schema.names).cast(schema)
    except PermissionError as error:
        raise files.unreadable(path, error) from error
    # pyarrow reports a damaged page as OSError, which is no ArrowException.
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} is not {what} ({error})", hint=hint) from error


def _by_direction(table: pa.Table) -> dict[Direction, pa.Table]:
    return {direction: table.filter(pc.field("direction") == direction.value) for direction in Direction}


def _fault(table: pa.Table) -> str | None:
    """What is wrong with a table of ranks that has the right columns."""
    text, image = _by_direction(table).values()
    if 0 in (text.num_rows, image.num_rows) or text.num_rows + image.num_rows != table.num_rows:
        return f"its directions are {table['direction'].unique().to_pylist()}, expected text and image"
    for rows, required in ((text, set(_RANKS) - {"caption_id"}), (image, set(_RANKS))):
        if empty := [name for name in rows.column_names if name in required and rows[name].null_count]:
            return f"its column {empty[0]!r} has empty fields"
        if rows["query"].to_pylist() != list(range(rows.num_rows)):
            return f"its {rows['direction'][0]} queries are not numbered from 0 to {rows.num_rows - 1}"
    if (lowest := pc.min(table["rank"]).as_py()) < 1:
        return f"it has the rank {lowest}, ranks start at 1"
    image_ids = set(text["image_id"].to_pylist())
    if len(image_ids) != text.num_rows:
        return f"its {text.num_rows} images have {len(image_ids)} different ids"
    in_one = image_ids ^ set(image["image_id"].to_pylist())
    return f"the image {min(in_one)!r} is in one direction only" if in_one else None


def check_copy(path: Path, folder: Path | None, names: FileNames) -> None:
    """InputError if a copy of the ranks at `path` would replace ranks that belong to the document of another
    evaluation."""
    for other in (MODEL_FILES, CASCADE_FILES):
        is_own = folder is not None and other == names and path.resolve() == (folder / names.ranks).resolve()
        document = path.with_name(other.result)
        if path.name == other.ranks and document.exists() and not is_own:
            raise InputError(
                f"{document} belongs to the ranks in {path}, which --ranks would replace by those of another "
                "evaluation",
                hint="name another file with --ranks",
            )


def write_evaluation(
    folder: Path, evaluation: Result, measured: Measured | None = None, agreements: Agreements | None = None
) -> Result:
    """Write the tables, of which a pool has no ranks, and the document last; returns the evaluation with its folder."""
    paired = CASCADE_FILES if evaluation.protocol.kind == "cascade" else MODEL_FILES
    names = POOL_FILES if measured is None else paired
    # First, so that a killed evaluation leaves no numbers beside other ranks.
    for name in filter(None, (names.result, names.agreement)):
        (folder / name).unlink(missing_ok=True)
    tables = []
    if measured is not None:
        tables = [names.ranks, names.top]
        write_ranks(folder / names.ranks, measured.table)
        _write(folder / names.top, [_top_table(direction, measured) for direction in Direction])
    if agreements is not None:
        tables.append(names.agreement)
        # One row per query.
        frames = [
            pd.DataFrame(
                {
                    "direction": direction.value,
                    "query": agreement.query_Q,
                    "candidates": agreement.num_candidates_Q,
                    **dict(zip(AGREEMENT_COLUMNS, agreement.measures_QM.T, strict=True)),
                }
            )
            for direction, agreement in agreements.by_direction.items()
        ]
        _write(folder / names.agreement, frames)
    listed = artifacts.list_files(folder, tables)
    document = {**evaluation.document, **models.run_of(folder), artifacts.FILES: listed}
    artifacts.write_document(folder / names.result, document)
    return replace(evaluation, folder=folder)


def write_ranks(path: Path, table: RankTable) -> None:
    """Write the rank of every query to a Parquet table.

    `query` is an image index for text retrieval, which has no caption, and a caption index for image retrieval.
    """
    num_images, image_ids = len(table.image_ids), np.array(table.image_ids, dtype=object)
    # Nullable integers, because a missing value makes ordinary ones floats.
    no_ids, no_captions = pd.array([pd.NA] * num_images, dtype="Int64"), pd.Series([None] * num_images, dtype="str")
    named = {
        Direction.TEXT: {"image_id": image_ids, "caption_id": no_ids, "caption": no_captions},
        Direction.IMAGE: {
            "image_id": image_ids[table.caption_image],
            "caption_id": pd.array(table.caption_ids, dtype="Int64"),
            "caption": table.captions,
        },
    }
    frames = [
        pd.DataFrame(
            {
                "direction": direction.value,
                "query": np.arange(len(table.ranks(direction))),
                **names,
                "rank": table.ranks(direction),
                "score": table.scores[direction].astype(np.float32),
                **({"ndcg": table.ndcg[direction]} if table.ndcg else {}),
            }
        )
        for direction, names in named.items()
    ]
    _write(path, frames)


def _top_table(direction: Direction, measured: Measured) -> pd.DataFrame:
    """One row per candidate."""
    ranking = measured.rankings.of(direction)
    top_QK = ranking.top_QK[:, :NUM_TOP]
    num_queries, k = top_QK.shape
    return pd.DataFrame(
        {
            "direction": direction.value,
            "query": np.repeat(np.arange(num_queries), k),
            "place": np.tile(np.arange(1, k + 1, dtype=np.int16), num_queries),
            "candidate": top_QK.ravel(),
            "score": ranking.top_score_QK[:, :NUM_TOP].ravel().astype(np.float32),
            "is_own": is_positive(direction, top_QK, measured.table.caption_image).ravel(),
        }
    )


def _write(path: Path, frames: list[pd.DataFrame]) -> None:
    table = pa.Table.from_pandas(pd.concat(frames, ignore_index=True), preserve_index=False)
    with files.atomic_path(path) as partial:
        pq.write_table(table, partial, write_page_checksum=True)
