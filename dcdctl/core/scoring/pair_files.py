"""Pairs as files of tasks (`engines.task_files`), and the worker that scores them.

    tasks     image_id, caption_id; image_index, caption_index: positions in the split; caption; image_bytes
    results   the first four columns, and score

The rows of an image follow each other. Scores have the bits of `cache-teacher`: positions keep the order of the corpus,
which decides the batches.

Shape letters: P pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dcdctl.core import models
from dcdctl.core.data import Corpus, Indices, Scores
from dcdctl.core.engines import IMAGE_BYTES, Compute, TaskRows
from dcdctl.core.errors import InputError, StaleError
from dcdctl.core.progress import Advance
from dcdctl.core.scoring.shards import PairWorker, ShardItems, ShardPairs
from dcdctl.core.scoring.sources import ImageFiles

SCORES = "scores"
"""The kind of work."""
IDS = ["image_id", "caption_id", "image_index", "caption_index"]


def job_of_scores(
    corpus: Corpus, plan: str, scorer: Mapping[str, Any] | None = None, compute: Compute | None = None
) -> dict[str, Any]:
    """What is done in all tasks of a cache with this digest of its plan: with a `scorer` that `named_model` describes,
    or by another program."""
    job = {"work": SCORES, "corpus": corpus.fingerprint, **(scorer or {})}
    if compute is not None:
        job |= {"precision": compute.precision, "batch_size": compute.batch_size}
    # Last: the first difference is reported, and the others are plainer.
    return {**job, "plan": plan}


def named_model(ref: str, digest: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """A model as a task names it: by its place on this machine, or by a name that is known everywhere."""
    path = Path(ref).expanduser()
    return {"digest": digest, "model": str(path.absolute()) if path.exists() else ref, "overrides": dict(overrides)}


def pair_rows(job: Mapping[str, Any], corpus: Corpus, image_P: Indices, text_P: Indices) -> TaskRows[Scores]:
    """Pairs of a corpus as the rows of a task."""
    image_ids, captions = corpus.image_ids, corpus.captions
    rows = {
        "image_id": pa.array([image_ids[image] for image in image_P.tolist()], pa.string()),
        "caption_id": pa.array([corpus.caption_ids[text] for text in text_P.tolist()], pa.int64()),
        "image_index": pa.array(image_P, pa.int32()),
        "caption_index": pa.array(text_P, pa.int32()),
        "caption": pa.array([captions[text] for text in text_P.tolist()], pa.string()),
    }

    def images() -> pa.Array:
        # A dictionary, so that the bytes of an image are in memory once and not once per pair.
        different, index_P = np.unique(image_P, return_inverse=True)
        data = pa.array([corpus.image_bytes(image) for image in different.tolist()], pa.binary())
        return pa.DictionaryArray.from_arrays(pa.array(index_P, pa.int32()), data)

    def result(table: pa.Table) -> Scores:
        return table.column("score").to_numpy().astype(np.float32)

    return TaskRows(job, pa.table(rows), images, result)


@dataclass(frozen=True)
class ScoreTasks:
    """Does tasks of pairs."""

    worker: PairWorker

    @classmethod
    def make(cls, job: Mapping[str, Any], model: str, compute: Compute) -> ScoreTasks:
        """A worker with the model at a place, which must be the one of the job; StaleError if it is not."""
        models.check_ref(model, job["overrides"])
        scorer = models.load_scorer(model, job["overrides"])
        expect_digest(model, scorer.digest, job)
        return cls(PairWorker.make(scorer, compute))

    def start(self, rows: pa.Table, name: str) -> Callable[[Advance], pa.Table]:
        """The scoring of the pairs of a task."""
        if IMAGE_BYTES not in rows.column_names:
            raise InputError(f"{name} has no bytes of images", hint="write the tasks without ?bytes=false")
        first_image, image_P = _distinct(rows, "image_index")
        first_text, text_P = _distinct(rows, "caption_index")
        of_images = rows.take(pa.array(first_image)).select(["image_id", IMAGE_BYTES]).to_pylist()
        of_texts = rows.take(pa.array(first_text)).select(["caption_id", "caption"]).to_pylist()
        names = [f"image {row['image_id']!r} of {Path(name).name}" for row in of_images]
        items = ShardItems(
            ImageFiles(names, [row[IMAGE_BYTES] for row in of_images]),
            [row["caption"] for row in of_texts],
            [f"caption {row['caption_id']} of {Path(name).name}" for row in of_texts],
        )
        return partial(self._score, rows.select(IDS), ShardPairs(items, image_P, text_P))

    def _score(self, ids: pa.Table, pairs: ShardPairs, advance: Advance) -> pa.Table:
        scores_P = self.worker.start(pairs)(advance)
        return ids.append_column("score", pa.array(scores_P, pa.float32()))


def _distinct(rows: pa.Table, name: str) -> tuple[Indices, Indices]:
    """The first row of each different number of a column, in order of the numbers, and the place of each row among
    them."""
    _, firsts, at_P = np.unique(rows.column(name).to_numpy(), return_index=True, return_inverse=True)
    return firsts, at_P


def expect_digest(model: str, digest: str, job: Mapping[str, Any]) -> None:
    """StaleError if a model is not the one of a job."""
    if digest != job["digest"]:
        raise StaleError(
            f"the tasks are for the model {job['digest'][:8]}, and {model} is {digest[:8]}",
            hint="name the model of the tasks with --model",
        )
