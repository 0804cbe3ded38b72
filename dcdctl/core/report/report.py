"""Runs and evaluations read back as one: what was run, how well it retrieves, how fast it is, what it answered.

What a folder lacks is no error but a gap, which names the command that fills it. Results that cannot be compared are an error.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from dcdctl.core import evaluation
from dcdctl.core.data import CORPUS_FILE, Corpus, Direction
from dcdctl.core.errors import MissingError, StaleError
from dcdctl.core.evaluation import Answers, Comparison, Result, Times, flat
from dcdctl.core.training import Run

Role = Literal["teacher", "baseline", "student"]
OWN, CASCADE = "", "cascade-"
"""What the names of the tables of a model and of its cascade begin with."""


@dataclass(frozen=True, kw_only=True, eq=False)
class System:
    """What retrieves: a model, or a cascade of two; a row of the tables."""

    label: str
    """No other system of a report has it."""
    role: Role
    folder: Path
    result: Result | None
    answers: Answers | None
    times: Times | None
    comparison: Comparison | None = None
    """With the baseline."""

    @property
    def is_cascade(self) -> bool:
        return self.result is not None and self.result.kind == "cascade"


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a model was made: run.json and metrics.jsonl."""

    label: str
    role: Role
    folder: Path
    facts: dict[str, Any]
    metrics: list[dict[str, Any]]

    @property
    def recipe(self) -> dict[str, Any]:
        """Every field of the recipe by its dotted name."""
        return flat(self.facts["recipe"])


@dataclass(frozen=True)
class Gap:
    """What is left out of a report, and the command that makes it."""

    what: str
    command: str

    def __str__(self) -> str:
        return f"{self.what}: `{self.command}`"


@dataclass(frozen=True, kw_only=True, eq=False)
class Report:
    systems: tuple[System, ...]
    trainings: tuple[Training, ...]
    gaps: tuple[Gap, ...]
    corpus: Corpus | None
    """Where pictures come from."""

    def of_role(self, role: Role) -> System | None:
        """The teacher's or the baseline's own system, or the first student."""
        return next((one for one in self.systems if one.role == role), None)

    @property
    def result(self) -> Result | None:
        """The first result; what it says of the split holds for all."""
        return next((one.result for one in self.systems if one.result is not None), None)

    @cached_property
    def answering(self) -> tuple[System, ...]:
        """The systems whose first ten are known."""
        return tuple(one for one in self.systems if one.answers is not None and one.answers.top)


def read_report(runs: Sequence[Path], *, teacher: Path | None = None, baseline: Path | None = None, data: Path | None = None) -> Report:
    """Read evaluation folders; without a `baseline` it is the first of `runs` that is not the teacher.

    MissingError for a folder that holds nothing to show; StaleError for results on different corpora, splits or protocols, and for `data`
    that is not their corpus.
    """
    folders = list(dict.fromkeys([*([teacher] if teacher else []), *runs, *([baseline] if baseline else [])]))
    if baseline is None:
        baseline = next((folder for folder in folders if folder != teacher), None)
    roles: dict[Path, Role] = {
        folder: "teacher" if folder == teacher else "baseline" if folder == baseline else "student" for folder in folders
    }
    labels = _labels(folders)
    systems = [system for folder in folders for system in _systems(folder, labels[folder], roles[folder])]
    trainings = tuple(
        Training(label=labels[folder], role=roles[folder], folder=folder, facts=Run(folder).facts(), metrics=Run(folder).metrics())
        for folder in folders
        if (folder / "run.json").exists()
    )
    _check_alike(systems)
    systems = _timed(systems)
    corpus, gap = _corpus(next((one.result for one in systems if one.result), None), data, runs)
    gaps = [*(gap for one in systems for gap in _gaps(one, systems)), *(gap for one in trainings for gap in _training_gaps(one)), *gap]
    return Report(systems=_compared(systems), trainings=trainings, gaps=_joined(gaps), corpus=corpus)


def _labels(folders: Sequence[Path]) -> dict[Path, str]:
    """The name of each folder, with those above it where two are called alike."""
    parts = {folder: folder.resolve().parts for folder in folders}
    for length in range(1, max(map(len, parts.values())) + 1):
        labels = {folder: "/".join(names[-length:]) for folder, names in parts.items()}
        if len(set(labels.values())) == len(labels):
            return labels
    # The same folder, named in two ways.
    return {folder: str(folder) for folder in folders}


def _systems(folder: Path, label: str, role: Role) -> list[System]:
    """The model of a folder, and the cascade that starts from it."""
    own = System(
        label=label,
        role=role,
        folder=folder,
        result=evaluation.read_result(folder / "result.json"),
        answers=evaluation.read_answers(folder, OWN),
        times=evaluation.read_times(folder / "bench.json", "student"),
    )
    cascade = evaluation.read_result(folder / "cascade.json")
    is_there = (own.result, own.answers, own.times, cascade) != (None,) * 4 or (folder / "run.json").exists()
    if not is_there:
        raise MissingError(
            f"{folder} holds nothing to show: neither a run (run.json) nor an evaluation (result.json)",
            hint=f"`dcdctl eval REF --data DIR --out {shlex.quote(str(folder))}` makes it an evaluation of any model",
        )
    if cascade is None:
        return [own]
    reranker = "re-ranked" if cascade.reranker is None else Path(cascade.reranker).name
    name = f"{label} + {reranker}, top {cascade.depth}"
    # A cascade of the teacher's or the baseline's is neither.
    return [
        own,
        System(label=name, role="student", folder=folder, result=cascade, answers=evaluation.read_answers(folder, CASCADE), times=None),
    ]


def _check_alike(systems: Sequence[System]) -> None:
    measured = [(one, one.result) for one in systems if one.result is not None]
    for system, result in measured[1:]:
        first, wanted = measured[0]
        if result.basis != wanted.basis:
            raise StaleError(
                f"{system.folder} was evaluated on {result.about_basis}, {first.folder} on {wanted.about_basis}",
                hint="evaluate both on the same with `dcdctl eval`, or report them apart",
            )


def _timed(systems: Sequence[System]) -> list[System]:
    """The systems, the teacher with its times, which stand in the files of its students."""
    teacher = next((one for one in systems if one.role == "teacher"), None)
    if teacher is None:
        return list(systems)
    names = {teacher.folder, *([] if teacher.result is None else [Path(teacher.result.model)])}
    beside = (one.folder / "bench.json" for one in systems if one.times is not None and Path(one.times.teacher_model) in names)
    times = next((evaluation.read_times(path, "teacher") for path in beside), None)
    return [replace(one, times=times) if one is teacher else one for one in systems]


def _compared(systems: Sequence[System]) -> tuple[System, ...]:
    base = next((one.answers for one in systems if one.role == "baseline"), None)
    return tuple(
        one
        if base is None or one.answers is None or one.role == "baseline"
        else replace(one, comparison=evaluation.compare_ranks([one.answers.table], [base.table]))
        for one in systems
    )


def _corpus(result: Result | None, data: Path | None, runs: Sequence[Path]) -> tuple[Corpus | None, list[Gap]]:
    """The split that was retrieved from, if it is where it is said to be; else what to do."""
    if result is None:
        return None, []
    folder = data if data is not None else None if result.data is None else Path(result.data)
    gap = Gap("pictures", _command("report", *map(str, runs), "--data", "DIR"))
    if folder is None or (data is None and not (folder / CORPUS_FILE).exists()):
        return None, [gap]
    corpus = Corpus.open(folder, result.split, result.num_images)
    if corpus.fingerprint == result.fingerprint:
        return corpus, []
    if data is None:
        return None, [gap]
    raise StaleError(
        f"{folder} is the corpus {corpus.fingerprint[:12]}, the results are on {result.about_basis}", hint="name theirs with --data"
    )


def _gaps(system: System, systems: Sequence[System]) -> list[Gap]:
    """What an evaluation lacks."""
    data = next((one.result.data for one in systems if one.result is not None and one.result.data), "DIR")
    split = next((one.result.split for one in systems if one.result is not None), "test")
    teacher = next((one for one in systems if one.role == "teacher"), None)
    result, found = system.result, system.answers
    ref = str(system.folder) if result is None else result.model
    rest = ["--data", data, "--split", split]
    if system.is_cascade and result is not None:
        rest += ["--rerank", result.reranker or "REF", "--depth", str(result.depth)]
    elif ref != str(system.folder):
        rest += ["--out", str(system.folder)]
    evaluate = _command("eval", ref, *rest)
    gaps = []
    if result is None:
        gaps.append(Gap(f"results of {system.label}", evaluate))
    elif result.rsum.interval is None or any(result.retrieval[way].map_at_r is None for way in Direction):
        gaps.append(Gap(f"intervals and mAP@R of {system.label}", evaluate))
    if found is None:
        gaps.append(Gap(f"ranks of each query of {system.label}", evaluate))
    elif not found.top or not found.own_scores:
        gaps.append(Gap(f"scores and first answers of {system.label}", evaluate))
    if system.times is None and not system.is_cascade:
        # The teacher is timed beside a student.
        student = next((one.folder for one in systems if one.role != "teacher"), Path("RUN"))
        timed = [str(student if system is teacher else system.folder), "--teacher", _ref(teacher), "--data", data]
        gaps.append(Gap(f"times of {system.label}", _command("bench", *timed)))
    return gaps


def _joined(gaps: Sequence[Gap]) -> tuple[Gap, ...]:
    """One gap for each command."""
    by_command: dict[str, list[str]] = {}
    for gap in gaps:
        by_command.setdefault(gap.command, []).append(gap.what)
    return tuple(Gap(", ".join(what), command) for command, what in by_command.items())


def _ref(teacher: System | None) -> str:
    if teacher is None:
        return "REF"
    return str(teacher.folder) if teacher.result is None else teacher.result.model


def _training_gaps(training: Training) -> list[Gap]:
    """What a training has not written."""
    command = list(training.facts["command"])
    if not training.metrics:
        return [Gap(f"training curves of {training.label}", shlex.join(command))]
    is_measured = any("val_rsum" in one for one in training.metrics)
    if is_measured or not {"distill", "finetune-teacher"} & set(command[:2]):
        return []
    again = shlex.join([*command, "--set", "validation.every=100"])
    return [Gap(f"recall in the course of {training.label}, by a new run", again)]


def _command(name: str, *words: str) -> str:
    return shlex.join(["dcdctl", name, *words])
