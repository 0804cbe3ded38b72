"""Parts of benchmarks/gpu.py in which a training asks its teacher, and in which a worker of a cluster scores."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
from gpu_machine import FEW_IMAGES, NAMES, Machine, Row, relative, with_peak
from gpu_students import CHECKED_STEPS, cache_row
from reports import say

import dcdctl
from dcdctl.core import devices
from dcdctl.core.data import Corpus
from dcdctl.core.engines import Compute, EngineChoice
from dcdctl.core.teacher import TeacherCache, find_picks, read_cache
from dcdctl.core.teacher.make import TOLERANCES

TEACHER = "vilt"
PER_TEXT = 4
"""Images that are proposed for a text."""
OTHERS_LIMIT = 0.05
"""The share of proposals, or of picks, that may be others than the CPU's: images that are equally near change
places."""


@dataclass(frozen=True, kw_only=True)
class AskingStudent:
    """A student that proposes pairs, which its teacher scores during the training."""

    rounds: int
    is_of_pool: bool
    overrides: dict[str, Any]


STUDENTS = {
    "late-mined": AskingStudent(rounds=1, is_of_pool=False, overrides={}),
    "pool-picked": AskingStudent(
        rounds=2,
        is_of_pool=True,
        # No pick of random weights is sure, so the second round asks for all texts.
        overrides={"pool.rounds": 2, "loss.temperature": 1.0},
    ),
}
"""By their recipes."""


@dataclass(frozen=True, kw_only=True)
class Proposed:
    """What a training in rounds has asked its teacher."""

    corpus: Corpus
    cache: TeacherCache
    """The last round's, which holds all pairs of the rounds before."""

    @property
    def scores(self) -> dict[tuple[int, int], float]:
        """The teacher's score by image and text."""
        pairs = zip(self.cache.image_P.tolist(), self.cache.text_P.tolist(), strict=True)
        return dict(zip(pairs, self.cache.score_P.tolist(), strict=True))

    @property
    def picks(self) -> Any:
        """The image that the teacher picks for each text."""
        return find_picks(self.cache, self.corpus).image_T


def asked(machine: Machine, name: str) -> Iterator[Row]:
    """What a student proposes, how its teacher scores that and, of a pool, what it picks, against the CPU."""
    student, expected = STUDENTS[name], train(machine, name, Compute())
    # Proposals and their scores are float32, whatever the precision of a training, which other parts compare.
    work = partial(devices.timed, partial(train, machine, name, machine.compute()), machine.device)
    (seconds, found), mib = with_peak(machine, work)
    common = sorted(found.scores.keys() & expected.scores.keys())
    yield Row(
        model=name, what=f"other proposals, fp32, rounds: {student.rounds}",
        difference=1 - len(common) / len(expected.scores), limit=OTHERS_LIMIT, value=seconds, unit="s", peak_mib=mib,
        note=f"{len(expected.scores):,} pairs",
    )  # fmt: skip
    scores = [np.array([proposed.scores[pair] for pair in common]) for proposed in (found, expected)]
    limit = TOLERANCES["float32"]
    yield Row(model=name, what="scores of the same proposals, fp32", difference=relative(*scores), limit=limit)
    if student.is_of_pool:
        others = float((found.picks != expected.picks).mean())
        yield Row(model=name, what="texts with another pick, fp32", difference=others, limit=OTHERS_LIMIT)


def train(machine: Machine, name: str, compute: Compute) -> Proposed:
    """A training of a few steps in each round, in place of the one before."""
    student = STUDENTS[name]
    data = machine.small_pool if student.is_of_pool else machine.data
    out = machine.out / "runs" / name
    rounds = out.with_name(f"{name}-rounds")
    for folder in (out, rounds):
        shutil.rmtree(folder, ignore_errors=True)
    sets: dict[str, Any] = {
        "model.start": machine.model("clip"),
        "candidates.per_query": PER_TEXT,
        "batch.size": machine.size.batch,
        "optimizer.lr": machine.size.lr,
        "optimizer.steps": CHECKED_STEPS,
        **student.overrides,
    }
    dcdctl.distill(
        dcdctl.load_recipe(name, sets),
        data,
        out,
        teacher=machine.model(TEACHER),
        max_images=FEW_IMAGES,
        device=str(compute.device),
        precision=NAMES[compute.precision],
    )
    return Proposed(corpus=Corpus.open(data, "train", FEW_IMAGES), cache=read_cache(rounds / f"cache-{student.rounds}"))


def ray(machine: Machine) -> Iterator[Row]:
    """`cache-teacher --engine ray` by one worker with a GPU, or by one on a CPU, which Ray gives no GPU."""
    what = "cache-teacher --engine ray"
    if find_spec("ray") is None:
        yield Row(model=TEACHER, what=what, note="the extra ray is not installed")
        return
    import ray as cluster

    choice = EngineChoice(engine="ray", workers=1, gpus=float(machine.is_gpu))
    try:
        for compute in machine.computes:
            precision = NAMES[compute.precision]
            by_worker = Compute.chosen(choice, device=machine.device.type, precision=precision, say=say)
            row = cache_row(machine, TEACHER, by_worker, what=f"{what} gpus={choice.gpus:g}")
            # The memory is the worker's, in another process.
            yield replace(row, peak_mib=None, note="with the start of the worker")
    finally:
        cluster.shutdown()
