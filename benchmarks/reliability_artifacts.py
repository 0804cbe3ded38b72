"""Artifacts that benchmarks/reliability.py damages beside those of tests/ground/test_corruption.py: what a command
reads again of its own, and what other commands read of it.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from damage import Artifact, as_new_process
from reliability_trials import CPU, Job, Stage, answers, dcdctl, followed, in_fork, in_rounds, trained

from dcdctl.core.data import Corpus
from dcdctl.core.search import FolderIndex, browse_index, find_copies, parse_order
from dcdctl.core.teacher import read_cache
from dcdctl.core.teacher.picks import find_picks


def kinds_of(stage: Stage) -> dict[str, Callable[[Path], Artifact]]:
    """A function that makes each, in a folder of its own."""
    jobs = stage.by_name
    return {
        "rounds of captions, resumed": _resumed(jobs["distill late-mined"], in_rounds, "run/model"),
        "rounds of a pool, resumed": _resumed(jobs["distill pool-picked"], in_rounds, "run/model"),
        "rounds of both, resumed": _resumed(jobs["distill pool-picked-late, captions"], in_rounds, "run/model"),
        "caches of rounds, their picks": lambda folder: _caches(stage, jobs["distill pool-picked"], folder),
        "synced index": _made(jobs["index --sync"], _read_index),
        "synced index of tokens": _made(jobs["index --sync, tokens"], followed),
        "look-alikes and files of an index": _made(
            jobs["index --sync"], _read_copies, lambda path: path.name.startswith("files-")
        ),
        "moved index": _made(jobs["index --moved"], _read_index),
        "index, synced again": _resumed(jobs["index --sync"], followed),
        "library of photos, once more": _resumed(jobs["photos"], lambda out: followed(out / "index")),
        "work list": lambda folder: _work(stage, folder),
        "scores of a work list": lambda folder: _scores(stage, jobs["score-work"], folder),
        "list of images": lambda folder: _list(stage, folder),
        "vectors of a list": lambda folder: _vectors(stage, jobs["embed-work"], folder),
        "states below the last layers": lambda folder: _states(stage, folder),
        "training of last layers, resumed": _resumed(
            jobs["distill, last layers"], lambda out: trained(out / "run"), "run/model"
        ),
    }


def _ran(job: Job, out: Path) -> None:
    job.start(out)
    if (ended := in_fork(lambda: dcdctl(*job.words(out)))).kind != "ok":
        raise SystemExit(f"{job.name}: {ended}")


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """An empty folder for what a command writes."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        yield Path(scratch)


def _made(job: Job, read: Callable[[Path], Any], is_part: Callable[[Path], bool] = lambda _: True) -> Any:
    """What a job writes, without its model, which is a kind of its own."""

    def make(folder: Path) -> Artifact:
        _ran(job, folder / "made")
        return Artifact(
            folder / "made", folder / "absent", read, lambda path: "model" not in path.parts and is_part(path)
        )

    return make


def _resumed(job: Job, result: Callable[[Path], str], removed: str | None = None) -> Any:
    """What a job writes, read by the same command; without `removed` it is finished."""

    def make(folder: Path) -> Artifact:
        _ran(job, folder / "made")
        if removed is not None:
            shutil.rmtree(folder / "made" / removed)

        def read(path: Path) -> Any:
            # The command changes the folder, and knows the names of its folders.
            kept = path.rename(path.with_name("kept"))
            shutil.copytree(kept, path)
            try:
                dcdctl(*job.words(path))
                as_new_process()
                return result(path)
            finally:
                shutil.rmtree(path)
                kept.rename(path)

        return Artifact(folder / "made", folder / "absent", read, lambda path: not _is_of_no_reader(path))

    return make


def _is_of_no_reader(path: Path) -> bool:
    """Logs of TensorBoard, and the model in an index, which is a kind of its own."""
    return "tensorboard" in path.parts or "index/model" in path.as_posix()


def _read_index(folder: Path) -> Any:
    """An index as a search, a list by a column and `--duplicates` read it."""
    index = FolderIndex.open(folder)
    listed = browse_index(index, 100, None, parse_order("image_id desc", index.columns)) if index.columns else None
    hits = [] if listed is None else [hit.name for hit in listed.hits]
    return [followed(folder), answers(folder), hits, _read_copies(folder)]


def _read_copies(folder: Path) -> Any:
    index = FolderIndex.open(folder)
    return [group.document() for group in find_copies(index)], index.image_files.stamps


def _caches(stage: Stage, job: Job, folder: Path) -> Artifact:
    _ran(job, folder / "job")
    (folder / "job" / "run-rounds").rename(folder / "made")
    for run in (folder / "made").glob("run-*"):
        shutil.rmtree(run)

    def read(path: Path) -> Any:
        found = []
        for cache in (read_cache(each, corpus=Corpus.open(stage.pool, "train")) for each in sorted(path.iterdir())):
            picks = find_picks(cache, Corpus.open(stage.pool, "train"))
            found.append([cache.score_P, cache.role_P, picks.image_T, picks.score_T, picks.second_T, cache.candidates])
        return found

    return Artifact(folder / "made", folder / "absent", read)


def _work(stage: Stage, folder: Path) -> Artifact:
    """A work list, scored, and the scores in a cache."""
    shutil.copytree(stage.planned / "work", folder / "made")

    def read(path: Path) -> Any:
        with _scratch(folder) as scratch:
            dcdctl("score-work", path, "--teacher", stage.fusion, "--out", scratch, "--device", "cpu")
            return [pq.read_table(file).to_pydict() for file in sorted(scratch.glob("*.parquet"))]

    return Artifact(folder / "made", folder / "absent", read)


def _scores(stage: Stage, job: Job, folder: Path) -> Artifact:
    _ran(job, folder / "made")
    scored = ("cache-teacher", "--data", stage.corpus, "--recipe", "demo-dual", "--teacher-name", "x")

    def read(path: Path) -> Any:
        with _scratch(folder) as scratch:
            dcdctl(*scored, "--scores", path, "--out", scratch / "cache")
            cache = read_cache(scratch / "cache")
            return [cache.image_P, cache.text_P, cache.score_P, cache.role_P]

    return Artifact(folder / "made", folder / "absent", read)


def _list(stage: Stage, folder: Path) -> Artifact:
    shutil.copytree(stage.folder / "LIST", folder / "made")

    def read(path: Path) -> Any:
        with _scratch(folder) as scratch:
            dcdctl("embed-work", path, stage.dual, "--out", scratch, "--workers", 0, *CPU)
            return [pq.read_table(file).to_pydict() for file in sorted(scratch.glob("*.parquet"))]

    return Artifact(folder / "made", folder / "absent", read)


def _vectors(stage: Stage, job: Job, folder: Path) -> Artifact:
    _ran(job, folder / "made")

    def read(path: Path) -> Any:
        with _scratch(folder) as scratch:
            images = ("--images", stage.photos, "--out", scratch / "index", "--workers", 0, *CPU)
            dcdctl("index", stage.dual, *images, "--vectors", path)
            return followed(scratch / "index")

    return Artifact(folder / "made", folder / "absent", read)


def _states(stage: Stage, folder: Path) -> Artifact:
    """The states that a training of last layers stores, read by a new training; and those of other encoders."""

    def store(start: Path, states: Path) -> list[Path]:
        words = stage.last_layers(folder / "training", states)
        words = [f"model.start={start}" if word == f"model.start={stage.layered}" else word for word in words]
        if (ended := in_fork(lambda: dcdctl(*words))).kind != "ok":
            raise SystemExit(f"states below the last layers: {ended}")
        shutil.rmtree(folder / "training")
        return sorted(states.iterdir())

    made = store(stage.layered, folder / "made")
    others = store(stage.other_layered, folder / "other")
    # The names hold fingerprints of the encoders.
    for one, other in zip(made, others, strict=True):
        other.rename(folder / "other" / one.name)

    def read(path: Path) -> Any:
        with _scratch(folder) as scratch:
            shutil.copytree(path, scratch / "states")
            dcdctl(*stage.last_layers(scratch, scratch / "states"))
            return trained(scratch / "run")

    return Artifact(folder / "made", folder / "other", read)
