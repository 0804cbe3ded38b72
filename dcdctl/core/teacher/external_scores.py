"""A cache whose scores come from elsewhere: planned here, scored by any engine, read by ids, checked and sealed here.

Scores may come in several calls. Each call checks all rows that it is given before it stores one. A shard is written
when every pair of it has a score; the scores of other shards are kept with their planned pairs. The cache is sealed
when nothing is missing.

Memory: 12 bytes per planned pair, and one batch of rows. Shape letters: P planned pairs, B rows of a batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dcdctl.core import data, files
from dcdctl.core.artifacts import Build
from dcdctl.core.data import Corpus, Flags, Indices, offsets_of
from dcdctl.core.engines import FilesEngine, Task
from dcdctl.core.errors import NUM_EXAMPLES, ConfigError, Faults, InputError, MissingError, StaleError
from dcdctl.core.places import shown
from dcdctl.core.progress import Track, silent
from dcdctl.core.scoring import job_of_scores, pair_rows
from dcdctl.core.teacher import build, score_files
from dcdctl.core.teacher.build import CacheJob
from dcdctl.core.teacher.cache import TeacherCache, read_cache
from dcdctl.core.teacher.cache_format import (
    CACHE,
    NUM_GIVEN,
    SCORES_DIGEST,
    SCORES_FROM,
    TEACHER_NAME,
    pairs_name,
    planned_name,
    read_shard,
    shards_of,
    write_pairs,
)

NO_SCORER = dict.fromkeys(("image_size_px", "max_text_len", "precision", "features"))
"""What a plan says of a teacher that dcdctl runs."""


def plan_scores(job: CacheJob, engine: FilesEngine, *, track: Track = silent) -> tuple[int, int]:
    """Plan the cache, or find it planned, and write the pairs that have no score yet as tasks for another program; the
    numbers of these pairs and of tasks.

    StaleError if the folder holds a cache of another corpus or plan, or a finished one.
    """
    _resolve(job)
    with _planned(job, track, replaces=True) as (corpus, planned, _):
        if planned.is_sealed:
            raise StaleError(
                f"the teacher cache in {job.out} is finished: no pair is left to score",
                hint="name another folder with --out",
            )
        job_of_files = job_of_scores(corpus, files.digest_of(planned.plan))
        num_pairs = 0

        def tasks() -> Iterator[Task[Any]]:
            nonlocal num_pairs
            shards = range(len(shards_of(planned.plan)))
            with track("write tasks", total=len(shards), unit="shards") as advance:
                for shard in shards:
                    pairs = read_shard(planned, shard)
                    todo = pairs.at(np.isnan(pairs.score))
                    if len(todo):
                        num_pairs += len(todo)
                        rows = partial(pair_rows, job_of_files, corpus, todo.image, todo.text)
                        # No worker of dcdctl does it.
                        yield Task(shard, pairs_name(shard), inputs=tuple, packed=tuple, in_file=rows)
                    advance(1)

        num_tasks = engine.write(tasks())
    return num_pairs, num_tasks


def take_scores(job: CacheJob, names: Sequence[str], teacher: str, *, track: Track = silent) -> TeacherCache:
    """The sealed cache with the scores of the files with these names, which `teacher` gave.

    A pair may be in several rows with the same score, since engines repeat a task that failed. InputError for rows that
    do not fit, by kind with examples; then nothing is stored. MissingError if pairs still have no score; then what was
    given is stored, and a further call may bring the rest. StaleError if the folder holds another plan, or if it or
    `job.extend` holds scores of another teacher, or of another kind (`score_files.SCORES`).
    """
    _resolve(job)
    if not teacher.strip() or not teacher.isprintable():
        raise ConfigError(
            f"--teacher must be a line of text, got {teacher!r}", hint="name the model, its version and its prompt"
        )
    paths = data.find_named(names, tuple(score_files.READERS), what="file of scores", option="--scores")
    # The scores are those of the plan that is there, whose tasks other machines may still read.
    with _planned(job, track, replaces=False) as (corpus, planned, noted):
        where = job.out if job.extend is None else f"{job.out}, which extends {job.extend},"
        if noted.get(TEACHER_NAME, teacher) != teacher:
            raise StaleError(
                f"{where} has scores of {noted[TEACHER_NAME]!r}, not of {teacher!r}",
                hint="name another folder with --out",
            )
        given = _GivenScores(corpus, planned)
        with track("read scores", total=len(paths), unit="files") as advance:
            for path in paths:
                score_files.expect_corpus(path, corpus.fingerprint)
                for batch in score_files.read_batches(path):
                    given.take(batch, path.name)
                advance(1)
        given.faults.check()
        form, earlier = score_files.SCORES[given.column or "score"], noted.get(SCORES_FROM)
        if TEACHER_NAME in noted and form != earlier:
            before, given_form = earlier or "score", form or "score"
            raise StaleError(
                f"{where} has scores from {before}, not from {given_form}",
                hint="name another folder with --out",
            )
        if not planned.is_sealed:
            given.store({TEACHER_NAME: teacher, **({} if form is None else {SCORES_FROM: form})})
        given.check_complete()
        build.seal(planned)
    return read_cache(job.out, corpus=corpus)


def _resolve(job: CacheJob) -> None:
    """An error for what can be checked before anything is opened."""
    job.candidates.require_packages()
    CACHE.check_folder(job.out)


@contextmanager
def _planned(job: CacheJob, track: Track, *, replaces: bool) -> Iterator[tuple[Corpus, Build, dict[str, Any]]]:
    """The corpus of a job, its planned cache, whose folder is locked, and what is noted of the scores that it has."""
    corpus = job.open_corpus()
    old = None if job.extend is None else read_cache(job.extend)
    if old is not None and old.teacher_name is None:
        raise StaleError(
            f"the scores of {job.extend} are those of a model that dcdctl ran", hint="extend it with --teacher"
        )
    planned = Build(job.out, build.plan_of(job, corpus, NO_SCORER), CACHE)
    with planned.lock():
        noted = build.begin(planned, job, corpus, track, replaces=replaces)
        if old is not None and TEACHER_NAME not in noted:
            noted = {name: old.plan[name] for name in (TEACHER_NAME, SCORES_FROM) if name in old.plan}
            planned.note(**noted)
        yield corpus, planned, noted


class RowNames:
    """The images and captions of a corpus, as the rows of files name them."""

    def __init__(self, corpus: Corpus) -> None:
        self.corpus = corpus
        self._ids = {"image": pa.array(corpus.image_ids, pa.string()), "caption": pa.array(corpus.caption_ids)}
        self.texts = pa.array(corpus.captions, pa.string())

    def name_of(self, batch: pa.RecordBatch, what: str) -> str:
        """The column that names the image or the caption of each row: an id, or the text."""
        return f"{what}_id" if f"{what}_id" in batch.schema.names else what

    def index(self, batch: pa.RecordBatch, what: str) -> Indices:
        """The index of the image or the caption that each row names by its id or text; -1 for none.

        By the index of the row, if it has one, which must agree with the id: in joined splits, several captions
        may have one id.
        """
        name = self.name_of(batch, what)
        known, ids = self.texts if name == "caption" else self._ids[what], batch.column(name)
        if f"{what}_index" not in batch.schema.names:
            # Of those that the rows name: many captions of a corpus have the same text.
            named = known.filter(pc.is_in(known, value_set=ids.unique()))
            counts = pc.value_counts(named)
            if len(counts) < len(named):
                repeated = next(entry["values"] for entry in counts.to_pylist() if entry["counts"] > 1)
                label = "text" if name == what else "id"
                raise InputError(
                    f"{shown(self.corpus.folder)} has several {what}s with the {label} "
                    f"{repeated!r:.80} in split {self.corpus.split}",
                    hint=f"keep the columns image_index and caption_index of the tasks, which tell the {what}s apart",
                )
            return _numbers(pc.index_in(ids, value_set=known))
        index_B = _numbers(batch.column(f"{what}_index"))
        index_B = np.where((index_B >= 0) & (index_B < len(known)), index_B, -1)
        is_own = pc.equal(known.take(pa.array(np.maximum(index_B, 0))), ids).fill_null(False)
        return np.where(is_own.to_numpy(zero_copy_only=False), index_B, -1)


class _GivenScores:
    """The planned pairs of a cache, and the scores that are known of them."""

    def __init__(self, corpus: Corpus, planned: Build) -> None:
        self.corpus, self.build = corpus, planned
        self.names = RowNames(corpus)
        self.faults = Faults("the scores do not fit the plan")
        self.column: str | None = None
        """The column that gives the scores, the same in all files; None before a row is taken."""
        self._is_whole = [not planned.missing([pairs_name(shard)]) for shard in range(len(shards_of(planned.plan)))]
        shards = [read_shard(planned, shard) for shard in range(len(self._is_whole))]
        self._first = offsets_of([len(pairs) for pairs in shards])
        # Ascending, because the pairs of a shard are sorted, and so are the shards.
        self._key_P = np.concatenate([pairs.image * corpus.num_captions + pairs.text for pairs in shards])
        self._score_P = np.concatenate([pairs.score for pairs in shards])

    def _count(self, where: slice) -> int:
        """The number of known scores."""
        return int(np.count_nonzero(~np.isnan(self._score_P[where])))

    def take(self, batch: pa.RecordBatch, where: str) -> None:
        """Take the scores of some rows of a file; rows that do not fit are noted in `faults`, each as one, the first
        that it has."""
        names = batch.schema.names
        column = next((name for name in ("relevance", "clicks") if name in names), "score")
        if self.column not in (None, column):
            raise InputError(
                f"{where} gives {column}, and a file before it {self.column}", hint="make a cache of each kind"
            )
        self.column = column
        image_B, text_B = self.names.index(batch, "image"), self.names.index(batch, "caption")
        with np.errstate(over="ignore"):  # a number that float32 cannot hold becomes infinite, which is a fault
            score_B = batch.column("score").fill_null(np.nan).to_numpy(zero_copy_only=False).astype(np.float32)
        key_B = image_B * self.corpus.num_captions + text_B
        # A key above all planned ones would point behind the last pair.
        position_B = np.minimum(np.searchsorted(self._key_P, key_B), len(self._key_P) - 1)
        is_planned = (self._key_P[position_B] == key_B) & (image_B >= 0) & (text_B >= 0)
        is_open = np.ones(len(score_B), dtype=bool)

        def fault(kind: str, is_wrong: Flags, column: str = column, other_B: Any = None) -> None:
            nonlocal is_open
            rows, examples = np.flatnonzero(is_wrong & is_open), []
            for row in rows[:NUM_EXAMPLES].tolist():
                columns = "image_id", self.names.name_of(batch, "caption"), column
                image, caption, *shown = (batch.column(name)[row].as_py() for name in columns)
                shown += [] if other_B is None else [other_B[row]]
                # A caption may be as long as a book.
                values = " and ".join(repr(value)[:80] if isinstance(value, str) else str(value) for value in shown)
                examples.append(f"image {image!r} with caption {str(caption)[:80]}: {values} in {where}")
            self.faults.add(kind, examples, len(rows))
            is_open &= ~is_wrong

        fault("rows of unknown images", image_B < 0)
        fault("rows of unknown captions", text_B < 0)
        if "caption" in names:
            texts = self.names.texts.take(pa.array(np.maximum(text_B, 0)))
            fault(
                "rows with another caption than the corpus",
                ~pc.equal(texts, batch.column("caption")).fill_null(False).to_numpy(False),
                "caption",
                texts.to_pylist(),
            )
        fault("rows of pairs that are not planned", ~is_planned)
        fault("scores that are not finite", ~np.isfinite(score_B))
        rows, known_B = np.flatnonzero(is_open), self._score_P[position_B]
        self._score_P[position_B[rows]] = np.where(np.isnan(known_B[rows]), score_B[rows], known_B[rows])
        # After the assignment, so that two rows of this batch are compared, too.
        known_B = self._score_P[position_B]
        fault("rows of pairs with two different scores", known_B != score_B, "score", known_B)

    def store(self, notes: dict[str, Any]) -> None:
        """Write the shards that have all scores, and keep the other scores with the planned pairs."""
        # The note comes first: from then on no other plan replaces this one.
        self.build.note(**notes, **{NUM_GIVEN: self._count(slice(None))})
        for shard, is_whole in enumerate(self._is_whole):
            here = slice(self._first[shard], self._first[shard + 1])
            if is_whole:
                continue
            pairs = read_shard(self.build, shard)
            num_known = self._count(here)
            is_changed = not np.array_equal(pairs.score, self._score_P[here], equal_nan=True)
            name = pairs_name(shard) if num_known == len(pairs) else planned_name(shard)
            if is_changed or num_known == len(pairs):
                with self.build.write(name) as partial:
                    write_pairs(partial, replace(pairs, score=self._score_P[here]))
        if self._count(slice(None)) == len(self._key_P):
            # A prefix, so that no name can pass for a fingerprint.
            self.build.note(**notes, teacher=f"external:{notes[TEACHER_NAME]}", **{SCORES_DIGEST: self._digest()})

    def _digest(self) -> str:
        """The SHA-256 of all pairs and their scores, whatever order and format they came in."""
        digest = hashlib.sha256(b"dcdctl scores 1")
        for values, kind in ((self._key_P, "<i8"), (self._score_P, "<f4")):
            digest.update(values.astype(kind, copy=False).data)
        return digest.hexdigest()

    def check_complete(self) -> None:
        """MissingError if pairs have no score."""
        if missing := len(self._key_P) - self._count(slice(None)):
            raise MissingError(
                f"{missing:,} of {len(self._key_P):,} pairs in {self.build.folder} have no score yet",
                hint="the given scores are stored; give the others with --scores. --engine files:DIR writes the pairs "
                "that are missing as tasks",
            )


def _numbers(column: pa.Array) -> Indices:
    return column.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
