"""The files of an evaluation: `dcdctl eval` writes them into a run's folder or another one, and `SavedEvaluation.load`
reads them back.

    DIR/ranks.parquet            direction, query, image_id, caption_id, caption, rank, score; language if captions
                                 have one; ndcg with relevance
    DIR/top.parquet              direction, query, place, candidate, score, is_own
    DIR/agreement.parquet        direction, query, candidates, same_first, ndcg, spearman; only with a teacher
    DIR/result.json              `Evaluation.document`, written last

The files of a cascade are cascade-ranks.parquet, cascade-top.parquet and cascade.json, so they never replace those of
its dual encoder; those of a pool are pool-agreement.parquet and pool.json alone. docs/formats.md describes the columns.
The document lists size and SHA-256 of the tables, which are compared before a table is read. The old document is
removed first: a killed evaluation leaves no document, and never one that belongs to other ranks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
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
from dcdctl.core.data import Direction, Flags, Indices, Scores
from dcdctl.core.errors import InputError
from dcdctl.core.evaluation.agreement import AGREEMENT, Agreements, QueryAgreement
from dcdctl.core.evaluation.document import (
    CASCADE_FILES,
    MODEL_FILES,
    POOL_FILES,
    Agreement,
    Evaluation,
    FileNames,
    PoolEvaluation,
)
from dcdctl.core.evaluation.measured import Measured
from dcdctl.core.evaluation.measures import NDCG
from dcdctl.core.evaluation.ranking import NUM_TOP, RankTable, is_positive

Result = TypeVar("Result", Evaluation, PoolEvaluation)
TABLES_HINT = "`dcdctl eval` writes the tables again"


@dataclass(frozen=True, eq=False)
class TopCandidates:
    """The best candidates of every query of a direction, best first."""

    candidate_QK: Indices
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
    evaluation: Evaluation
    listed: dict[str, artifacts.Document]
    """Size and SHA-256 of the tables beside the document, by file name."""

    @staticmethod
    def load(folder: Path, names: FileNames = MODEL_FILES, ref: str = "") -> SavedEvaluation:
        """The evaluation in a folder: of a model, or of a cascade with `CASCADE_FILES`. InputError for a
        missing or damaged document."""
        return SavedEvaluation(folder, names, ref or str(folder), *_read_document(Evaluation, folder / names.result))

    @staticmethod
    def find(folder: Path, names: FileNames = MODEL_FILES) -> SavedEvaluation | None:
        """The evaluation of a model in a folder; None for a folder without a document."""
        return SavedEvaluation.load(folder, names) if (folder / names.result).exists() else None

    def _checked(self, name: str) -> Path:
        """A table of a folder whose tables are all as the document lists them. InputError for missing and damaged
        ones."""
        if name not in self.listed:
            raise InputError(f"{self.folder / self.names.result} lists no {name}", hint=TABLES_HINT)
        artifacts.check_files(self.folder, self.listed, error=InputError, hint=TABLES_HINT)
        return self.folder / name

    @property
    def basis(self) -> dict[str, object]:
        """What must be equal for two evaluations to be compared, query by query."""
        evaluation, protocol = self.evaluation, self.evaluation.protocol
        return {
            "measure": "recalls",
            "split": evaluation.split,
            "protocol's name": protocol.name,
            "protocol's folds": protocol.folds,
            "protocol's ties": protocol.ties,
            "corpus": evaluation.corpus_fingerprint[:8],
            "relevance": evaluation.relevance,
        }

    @property
    def measured_by(self) -> str:
        return f"protocol {self.evaluation.protocol.name}"

    @property
    def drawn(self) -> str:
        """What an interval is over."""
        return "images"

    @cached_property
    def table(self) -> RankTable:
        """The ranks of all queries."""
        return read_ranks(self._checked(self.names.ranks))

    @cached_property
    def top(self) -> dict[Direction, TopCandidates]:
        """The best candidates of all queries by direction."""
        by_direction = {}
        for direction, rows in _by_direction(_read(self._checked(self.names.top))).items():
            num_queries = len(self.table.ranks(direction))
            by_direction[direction] = TopCandidates(
                candidate_QK=rows["candidate"].to_numpy().reshape(num_queries, -1),
                score_QK=rows["score"].to_numpy().reshape(num_queries, -1),
                # Booleans are bits in Arrow, so they cannot be read without a copy.
                is_positive_QK=rows["is_own"].to_numpy(zero_copy_only=False).reshape(num_queries, -1),
            )
        return by_direction


@dataclass(frozen=True, eq=False)
class SavedAgreement:
    """How a model agrees with a teacher, on disk: on a pool, or on a split with captions, beside the recalls."""

    folder: Path
    names: FileNames
    ref: str
    """Its name, as the user gave it."""
    evaluation: Evaluation | PoolEvaluation
    listed: dict[str, artifacts.Document]
    """Size and SHA-256 of the tables beside the document, by file name."""

    @staticmethod
    def load(folder: Path, names: FileNames = POOL_FILES, ref: str = "") -> SavedAgreement:
        """The agreement in a folder: on a pool, or with MODEL_FILES on a split with captions. InputError for a missing
        or damaged document, or for one without an agreement."""
        path = folder / names.result
        evaluation: Evaluation | PoolEvaluation
        if names is POOL_FILES:
            evaluation, listed = _read_document(PoolEvaluation, path)
        else:
            evaluation, listed = _read_document(Evaluation, path)
        saved = SavedAgreement(folder, names, ref or str(folder), evaluation, listed)
        if saved.evaluation.agreement is None:
            raise InputError(
                f"{saved.ref} was evaluated without a teacher, whose order could be compared",
                hint=f"`dcdctl eval {folder} --data DIR --against TEACHER` adds the agreement",
            )
        return saved

    @staticmethod
    def find(folder: Path) -> SavedAgreement | None:
        """The agreement on a pool in a folder; None without one."""
        return SavedAgreement.load(folder) if (folder / POOL_FILES.result).exists() else None

    @property
    def agreement(self) -> Agreement:
        assert self.evaluation.agreement is not None  # as `load` checks
        return self.evaluation.agreement

    @property
    def basis(self) -> dict[str, object]:
        """What must be equal for two evaluations to be compared, query by query."""
        evaluation = self.evaluation
        return {
            "measure": "agreement with a teacher",
            "split": evaluation.split,
            "corpus": evaluation.corpus_fingerprint[:8],
            **self.agreement.basis,
        }

    @property
    def measured_by(self) -> str:
        return f"agreement with {self.agreement.teacher} over {self.agreement.candidates_in_words}"

    @property
    def drawn(self) -> str:
        """What an interval is over."""
        return self.by_query.drawn

    @cached_property
    def by_query(self) -> Agreements:
        """The agreement of every query. InputError for a missing or damaged table."""
        artifacts.check_files(self.folder, self.listed, error=InputError, hint=TABLES_HINT)
        by_direction = {}
        for direction, rows in _by_direction(_read(self.folder / self.names.agreement)).items():
            if rows.num_rows:
                measures_QM = np.column_stack([rows[row.column].to_numpy() for row in AGREEMENT])
                by_direction[direction] = QueryAgreement(
                    rows["query"].to_numpy(), rows["candidates"].to_numpy(), measures_QM
                )
        # The ranks beside it name the image of each caption; a pool has none.
        image_of_text = read_ranks(self.folder / self.names.ranks).caption_image if self.names.ranks else None
        agreement = self.agreement
        return Agreements(agreement.over, by_direction, image_of_text, agreement.pairs_fingerprint)


def _read_document(kind: type[Result], path: Path) -> tuple[Result, dict[str, artifacts.Document]]:
    """An evaluation, and size and SHA-256 of the tables that it lists."""
    hint = f"`dcdctl eval {path.parent} --data DIR` writes it again"
    document = artifacts.read_document(path, error=InputError, hint=hint)
    models.expect_run(path, document, error=InputError, hint=hint)
    listed = artifacts.listed_files(path, document, error=InputError, hint=hint)
    evaluation = build_document(kind, document, path, error=InputError, hint=hint)
    return replace(evaluation, folder=path.parent), listed


def read_ranks(path: Path) -> RankTable:
    """The table of ranks that `write_ranks` wrote; its checksum is not compared here."""
    table = _read(path)
    rows_of = _by_direction(table)
    text, image = rows_of.values()
    has_ndcg, has_languages = NDCG.column in table.column_names, "language" in table.column_names
    return RankTable(
        image_ids=tuple(text["image_id"].to_pylist()),
        caption_ids=image["caption_id"].to_numpy(),
        caption_image=pc.index_in(image["image_id"], value_set=text["image_id"]).to_numpy().astype(np.int64),
        text_ranks=text["rank"].to_numpy(),
        image_ranks=image["rank"].to_numpy(),
        captions=tuple(image["caption"].to_pylist()),
        scores={direction: rows["score"].to_numpy() for direction, rows in rows_of.items()},
        ndcg={direction: rows[NDCG.column].to_numpy() for direction, rows in rows_of.items()} if has_ndcg else {},
        languages=tuple(image["language"].to_pylist()) if has_languages else (),
    )


def _read(path: Path) -> pa.Table:
    """A table whose checksum was compared."""
    # pyarrow takes a relative path with a colon for an address.
    with pq.ParquetFile(path.absolute()) as file:
        return file.read()


def _by_direction(table: pa.Table) -> dict[Direction, pa.Table]:
    return {direction: table.filter(pc.field("direction") == direction.value) for direction in Direction}


def write_evaluation(
    folder: Path, evaluation: Result, measured: Measured | None = None, agreements: Agreements | None = None
) -> Result:
    """Write the tables, of which a pool has no ranks, and the document last; returns the evaluation with its folder."""
    paired = CASCADE_FILES if evaluation.protocol.is_cascade else MODEL_FILES
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
        frames = []
        for direction, agreement in agreements.by_direction.items():
            columns = {
                "direction": direction.value,
                "query": agreement.query_Q,
                "candidates": agreement.num_candidates_Q,
            }
            for row, measure_Q in zip(AGREEMENT, agreement.measures_QM.T, strict=True):
                columns[row.column] = measure_Q
            frames.append(pd.DataFrame(columns))
        _write(folder / names.agreement, frames)
    listed = artifacts.list_files(folder, tables)
    document = {**evaluation.document, **models.run_of(folder), artifacts.FILES: listed}
    artifacts.write_document(folder / names.result, document)
    return replace(evaluation, folder=folder)


def write_ranks(path: Path, table: RankTable) -> None:
    """Write the rank of every query to a Parquet table.

    `query` is an image index for text retrieval, which has no caption, and a caption index for image retrieval.
    """
    image_ids = np.array(table.image_ids, dtype=object)
    of_captions = {
        "image_id": image_ids[table.caption_image],
        # Nullable integers, because a missing value makes ordinary ones floats.
        "caption_id": pd.array(table.caption_ids, dtype="Int64"),
        "caption": table.captions,
    }
    if any(table.languages):
        of_captions["language"] = table.languages
    frames = []
    for direction, names in ((Direction.TEXT, {"image_id": image_ids}), (Direction.IMAGE, of_captions)):
        ranks = table.ranks(direction)
        columns = {
            "direction": direction.value,
            "query": np.arange(len(ranks)),
            **names,
            "rank": ranks,
            "score": table.scores[direction].astype(np.float32),
        }
        if table.ndcg:
            columns[NDCG.column] = table.ndcg[direction]
        frames.append(pd.DataFrame(columns))
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
        pq.write_table(table, partial)
