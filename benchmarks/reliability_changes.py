"""What benchmarks/reliability.py changes between the rounds of a training: its teacher, pool, captions, start or
recipe.

A training in rounds is killed at a random moment, an input is replaced by another one at the same place, and the same
command resumes. It must refuse, or give what it gives from the changed inputs alone: never rounds of both.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from reliability_trials import CHECKPOINTS, CPU, SIZES, Stage, Trial, dcdctl, in_fork, in_rounds, outcome_of, sets
from tiny import make_teacher

from dcdctl.core import models
from dcdctl.core.data import Corpus

TRAIN = ("--resume", "--out", "run", *CPU, *sets("batch.size=8", *CHECKPOINTS[:2]))
ROUNDS = sets("pool.rounds=2", "candidates.per_query=6", "pool.images=6", "pool.texts=6")
PICKED = ("distill", "pool-picked", "--data", "pool", *ROUNDS, *sets("model.start=begin"), *TRAIN)
CODE = ("--teacher", "changing:judge")
LINES = {
    "pool": (*PICKED, *CODE),
    "pool, weights": (
        *(*PICKED, "--teacher", "scorer"),
        *sets("pool.pseudo_positive_above=none", "loss.terms={ kl = 1.0 }", "pool.max_pairs=200"),
    ),
    "both": (
        *("distill", "pool-picked-late", "--data", "corpus", "--pool", "pool", *ROUNDS, *TRAIN, *CODE),
        *sets("model.start=late"),
    ),
    "captions": (
        *("distill", "late-mined", "--data", "corpus", *CODE, *TRAIN),
        *sets(*SIZES, "model.token_dim=8", "candidates.per_query=4"),
    ),
    "last layers": (
        *("distill", "photos", "--data", "corpus", "--features", "features", *TRAIN),
        *sets("model.start=layered", "model.trained=last-layers", "model.trained_layers=1"),
    ),
}
"""Command lines of trainings in rounds, and of last layers, over folders of the working folder."""


CHANGES = {
    "pool": ("changing.py", "pool", "begin"),
    "pool, weights": ("scorer", "pool", "begin"),
    "both": ("changing.py", "pool", "corpus", "late"),
    "captions": ("changing.py", "corpus"),
    "last layers": ("corpus", "layered"),
}
"""What each of them reads, and what is replaced by another one."""


def changed_inputs(stage: Stage, rng: random.Random, trials: int) -> Iterator[Trial]:
    """Kill, replace one input, resume."""
    first, other = _make_inputs(stage)
    for name, line in LINES.items():
        if stage.chosen and name not in stage.chosen:
            continue
        before, _ = _whole(stage, first, {}, line)
        for changed in CHANGES[name]:
            expected, seconds = _whole(stage, first, {changed: other}, line)
            if expected == before:
                raise SystemExit(f"{name}: another {changed} gives the same result")
            for _ in range(trials):
                moment = rng.uniform(0.0, 0.95 * seconds)
                out = _copied(stage, first)
                killed = in_fork(lambda out=out, line=line: _run(out, line), kill_at_cpu_s=moment)
                # In a run that is finished nothing is left to do, and its inputs are not read.
                if killed.kind == "killed":
                    _replace(out, changed, other)
                    ended = in_fork(lambda out=out, line=line: _run(out, line))
                    details = f"killed after {moment:.3f} of {seconds:.3f} s: {ended}"
                    if ended.text == before:
                        details = f"the result of the first {changed}; {details}"
                    yield f"another {changed} between rounds, {name}", outcome_of(ended, expected), details
                shutil.rmtree(out)


def _make_inputs(stage: Stage) -> tuple[Path, Path]:
    """Two folders with the same names in them."""
    first, other = (stage.folder / "inputs" / name for name in ("first", "other"))
    for folder in (first, other):
        folder.mkdir(parents=True)
    for name, source in (
        ("pool", stage.pool),
        ("corpus", stage.corpus),
        ("begin", stage.dual),
        ("late", stage.late),
        ("layered", stage.layered),
    ):
        shutil.copytree(source, first / name)
    shutil.copytree(stage.other_layered, other / "layered")
    for name, job in (("corpus", "prepare"), ("begin", "distill"), ("late", "distill, late")):
        stage.make(f"another {name}", [*stage.by_name[job].words(other / name), *sets("seed=1")])
    texts = ("--queries", stage.folder / "MORE.csv", "--workers", 1, "--name", "pool")
    stage.make("another pool", ["prepare", "--images", stage.more, *texts, "--out", other / "pool"])

    def save_teachers() -> str:
        for seed, folder in enumerate((first, other)):
            models.save(make_teacher(Corpus.open(stage.corpus, "train").captions, seed), folder / "scorer")
        return ""

    if (ended := in_fork(save_teachers)).kind != "ok":
        raise SystemExit(f"two teachers: {ended}")
    for folder, name in ((first, "judge"), (other, "inverted")):
        (folder / "changing.py").write_text(f"from reliability_teachers import {name} as judge\n")
    return first, other


def _copied(stage: Stage, first: Path) -> Path:
    out = stage.folder / "inputs" / "trial"
    shutil.copytree(first, out)
    return out


def _replace(out: Path, name: str, other: Path) -> None:
    """Put another input in the place of one."""
    if (out / name).is_dir():
        shutil.rmtree(out / name)
        shutil.copytree(other / name, out / name)
    else:
        shutil.copy(other / name, out / name)


def _whole(stage: Stage, first: Path, replaced: dict[str, Path], line: tuple[str, ...]) -> tuple[str, float]:
    """The result of an undisturbed training, and its processor time."""
    out = _copied(stage, first)
    for name, other in replaced.items():
        _replace(out, name, other)
    ended = in_fork(lambda: _run(out, line))
    shutil.rmtree(out)
    if ended.kind != "ok":
        raise SystemExit(f"{' '.join(line)}, with another {', '.join(replaced)}: {ended}")
    return ended.text, ended.cpu_s


def _run(out: Path, line: tuple[str, ...]) -> str:
    os.chdir(out)
    sys.path.insert(0, str(out))
    dcdctl(*line)
    return in_rounds(out)
