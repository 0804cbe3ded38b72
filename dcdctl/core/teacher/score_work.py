"""Scoring files of the work list (`work_list`), one call per file: what a task of Slurm, of Spark or of a loop over ssh
does.

    SCORES/work-00000.parquet   image_id, caption_id, image_index, caption_index, score of the pairs of that work file

A work file holds the pairs of one shard of a cache, which are scored as `cache-teacher` scores that shard: the scores
have the same bits. A teacher that keeps its states is an exception: `cache-teacher` encodes the whole corpus once, in
other batches, so scores may differ by rounding.

Shape letters: P pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dcdctl.core import models, scoring
from dcdctl.core.arguments import Settings
from dcdctl.core.data import CORPUS_FACT, Indices, TaskFile, check_rows, complete_tasks, corpus_of, find_tasks
from dcdctl.core.engines import ON_CPU, Compute
from dcdctl.core.errors import InputError, StaleError
from dcdctl.core.models import Scorer
from dcdctl.core.places import shown, url_of
from dcdctl.core.progress import Track, silent
from dcdctl.core.scoring import ImageFiles, ShardItems, ShardSource
from dcdctl.core.teacher.cache_format import WORK_FOLDER

IDS = pa.schema(
    [("image_id", pa.string()), ("caption_id", pa.int64()), ("image_index", pa.int32()), ("caption_index", pa.int32())]
)
CAPTION, BYTES = "caption", "image_bytes"
TEXT_TYPES = pa.string(), pa.large_string(), pa.string_view()
BYTES_TYPES = pa.binary(), pa.large_binary(), pa.binary_view()


@dataclass(frozen=True, kw_only=True)
class ScoreWorkJob:
    """Which files of the work list to score, with which teacher."""

    work: Sequence[str]
    """Files, folders or patterns."""
    teacher: str
    out: Path
    """The folder of the scores."""
    model_set: Settings | None = None
    compute: Compute = ON_CPU


@dataclass(frozen=True, kw_only=True)
class ScoredWork:
    """Scores of files of the work list."""

    folder: Path
    teacher: str
    """Its digest."""
    num_files: int
    num_there: int
    """Files that were scored before."""
    num_pairs: int


def score_work(job: ScoreWorkJob, *, track: Track = silent) -> ScoredWork:
    """Score the files that have no scores yet.

    InputError for files that are not of the work list of `--with captions,bytes`; then nothing is scored. StaleError if
    the folder has scores of another teacher. InputError for a file with a damaged image or a score that is not finite;
    the others are scored and kept.
    """
    overrides = models.parse_overrides(job.model_set)
    models.check_ref(job.teacher, overrides)
    tasks = find_tasks(job.work, job.out, noun="work file", metavar="FILE")
    for task in tasks:
        _check_columns(task)
    teacher = models.load_scorer(job.teacher, overrides, track)
    teacher.to(job.compute.device).eval()
    # The digest covers the settings of the model.
    maker = {"teacher": teacher.digest, "precision": job.compute.precision}
    num_pairs = sum(task.num_rows for task in tasks)
    with track("score", total=num_pairs, unit="pairs") as advance:

        def compute(task: TaskFile) -> tuple[pa.Table, Mapping[str, Any]]:
            pairs = _WorkPairs.read(task)
            scores = pairs.scored_by(teacher, job.compute, advance)
            return scores, {} if pairs.corpus is None else {CORPUS_FACT: pairs.corpus}

        num_there = complete_tasks(tasks, maker, compute)
    return ScoredWork(
        folder=job.out, teacher=teacher.digest, num_files=len(tasks), num_there=num_there, num_pairs=num_pairs
    )


def holds_pairs(work: Sequence[str], out: Path) -> bool:
    """Whether the first of some files of tasks has pairs to score; otherwise it lists images to embed."""
    first, *_ = find_tasks(work, out, noun="work file", metavar="FILE")
    with first.open() as file:
        return "caption_index" in file.schema_arrow.names


def _check_columns(task: TaskFile) -> None:
    """InputError for a file without the columns that are read."""
    hint = "write the work list with `dcdctl cache-teacher --plan-only --with captions,bytes`"
    folder = task.source.parent / WORK_FOLDER
    if url_of(task.source) is None and folder.is_dir():
        hint = f"{folder} is the work list of this cache: name it"
    with task.open() as file:
        schema = file.schema_arrow
    if missing := [name for name in (*IDS.names, CAPTION, BYTES) if name not in schema.names]:
        columns = ", ".join(schema.names) or "none"
        raise InputError(f"{shown(task.source)} has no column {missing[0]} (it has {columns})", hint=hint)
    for name, accepted in ((CAPTION, TEXT_TYPES), (BYTES, BYTES_TYPES)):
        type_ = schema.field(name).type
        if (type_.value_type if pa.types.is_dictionary(type_) else type_) not in accepted:
            raise InputError(
                f"the column {name} of {shown(task.source)} is {type_}, {accepted[0]} is expected", hint=hint
            )


@dataclass
class _WorkPairs:
    """The pairs of a work file, and each of their images and captions once, by its index in the corpus."""

    path: Path
    corpus: str | None = None
    """The fingerprint of their corpus, if the file says it."""
    tables: list[pa.Table] = field(default_factory=list)
    """The ids of the rows, one table per row group."""
    images: dict[int, tuple[str, bytes]] = field(default_factory=dict)
    """Name and file."""
    captions: dict[int, tuple[str, str]] = field(default_factory=dict)
    """Name and text."""

    @staticmethod
    def read(task: TaskFile) -> _WorkPairs:
        """The pairs of a file; InputError for a damaged file and for rows without a value."""
        pairs = _WorkPairs(task.source)
        # A dictionary, so that the bytes of an image are in memory once and not once per pair.
        with task.open(read_dictionary=[BYTES]) as file:
            pairs.corpus = corpus_of(file.schema_arrow)
            for group in range(file.num_row_groups):
                pairs._add(file.read_row_group(group, columns=[*IDS.names, CAPTION, BYTES]))
            check_rows(sum(map(len, pairs.tables)), file, task.source)
        return pairs

    def _add(self, rows: pa.Table) -> None:
        for name in rows.column_names:
            if count := rows.column(name).null_count:
                raise InputError(
                    f"{count:,} rows of {shown(self.path)} have no {name}", hint="write the work list again"
                )
        ids = rows.select(IDS.names).cast(IDS)
        self.tables.append(ids)
        firsts = rows.take(_firsts(ids, "image_index"))
        columns = (firsts.column(name).to_pylist() for name in ("image_index", "image_id", BYTES))
        for index, image_id, file in zip(*columns, strict=True):
            self.images.setdefault(index, (f"image {image_id!r} of {self.path.name}", file))
        firsts = rows.select([*IDS.names, CAPTION]).take(_firsts(ids, "caption_index"))
        columns = (firsts.column(name).to_pylist() for name in ("caption_index", "caption_id", CAPTION))
        for index, caption_id, text in zip(*columns, strict=True):
            self.captions.setdefault(index, (f"caption {caption_id} of {self.path.name}", text))

    def scored_by(self, teacher: Scorer, compute: Compute, advance: Any) -> pa.Table:
        """The ids of the pairs and their scores, in the order of the file."""
        ids = pa.concat_tables(self.tables) if self.tables else IDS.empty_table()
        # Positions in the file keep the order of the corpus, which decides the batches, and with them the last bits.
        image_ix, image_P = np.unique(_numbers(ids, "image_index"), return_inverse=True)
        text_ix, text_P = np.unique(_numbers(ids, "caption_index"), return_inverse=True)
        image_names, image_files = _transposed([self.images[index] for index in image_ix.tolist()])
        names, texts = _transposed([self.captions[index] for index in text_ix.tolist()])
        source = ShardSource(ShardItems(ImageFiles(image_names, image_files), texts, names), teacher.preprocess)
        scores_P = np.empty(0, dtype=np.float32)
        if len(ids):
            scores_P = scoring.score_pairs(teacher, source, image_P, text_P, compute=compute, advance=advance)
        if len(wrong := np.flatnonzero(~np.isfinite(scores_P))):
            image, caption = image_names[image_P[wrong[0]]], names[text_P[wrong[0]]]
            raise StaleError(
                f"the teacher gave {len(wrong):,} scores that are not finite, such as {scores_P[wrong[0]]} for {image} "
                f"with {caption}",
                hint="try --precision fp32",
            )
        return ids.append_column("score", pa.array(scores_P, pa.float32()))


def _firsts(ids: pa.Table, name: str) -> pa.Array:
    """The first row of each value of a column."""
    return pa.array(np.sort(np.unique(_numbers(ids, name), return_index=True)[1]))


def _numbers(ids: pa.Table, name: str) -> Indices:
    return ids.column(name).to_numpy().astype(np.int64)


def _transposed(pairs: Sequence[tuple[str, Any]]) -> tuple[list[str], list[Any]]:
    return [name for name, _ in pairs], [value for _, value in pairs]
