"""The data of a report: runs and evaluations read from their folders.

What a folder lacks is named with the command that adds it. Results that cannot be compared are an error.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from dcdctl.core import artifacts, evaluation
from dcdctl.core.artifacts import Document
from dcdctl.core.bench import QueryTimes, read_times
from dcdctl.core.data import CORPUS_FILE, Corpus
from dcdctl.core.errors import MissingError, StaleError
from dcdctl.core.evaluation import (
    CASCADE_FILES,
    Agreement,
    AgreementComparison,
    Evaluation,
    PoolEvaluation,
    RankComparison,
    SavedAgreement,
    SavedEvaluation,
)
from dcdctl.core.places import shown
from dcdctl.core.training import Run, command_of

Role = Literal["teacher", "baseline", "student"]


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelResults:
    """The results of a model, or of a cascade of two: a row of the tables."""

    label: str
    """Unique in a report."""
    role: Role
    folder: Path
    saved: SavedEvaluation | SavedAgreement | None
    """Recalls, or the agreement with a teacher on a pool; None for a run that was not evaluated."""
    times: QueryTimes | None
    comparison: RankComparison | AgreementComparison | None = None
    """With the baseline."""

    @property
    def result(self) -> Evaluation | PoolEvaluation | None:
        return None if self.saved is None else self.saved.evaluation

    @property
    def agreement(self) -> Agreement | None:
        """On a pool, or beside the recalls."""
        return None if self.result is None else self.result.agreement

    @property
    def ranked(self) -> SavedEvaluation:
        """The evaluation of a model of `Report.ranked`."""
        assert isinstance(self.saved, SavedEvaluation)
        return self.saved

    @property
    def is_cascade(self) -> bool:
        return self.result is not None and self.result.protocol.is_cascade

    @property
    def gallery_size(self) -> int | None:
        """Images that the timed query is compared with; None if no query was timed."""
        if self.times is not None:
            return self.times.num_images
        if self.result is None or not self.result.reranked:
            return None
        # Only cascades have depths, and cascades have ranks.
        return self.ranked.evaluation.gallery_size

    @property
    def query_ms(self) -> tuple[float, ...]:
        """Milliseconds per query among `gallery_size` images: one number, or one per depth of a cascade; empty if not
        timed."""
        depths = [] if self.result is None else [depth.ms_per_query for depth in self.result.reranked]
        if self.times is None:
            return tuple(depths)
        # Re-ranking a depth takes the same time in a gallery of any size.
        if not depths:
            return (self.times.query_ms,)
        return tuple(self.times.query_ms + ms - depths[-1] for ms in depths)


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a model was trained: run.json and metrics.jsonl."""

    label: str
    role: Role
    folder: Path
    facts: Document
    metrics: list[Document]

    @property
    def command(self) -> list[str]:
        """The command line that trains such a run."""
        return command_of(self.facts)


@dataclass(frozen=True, kw_only=True, eq=False)
class Report:
    models: tuple[ModelResults, ...]
    trainings: tuple[Training, ...]
    corpus: Corpus | None
    """The source of the images."""

    @property
    def gallery_size(self) -> int | None:
        """Images that the queries of the chart are compared with: those of the first benchmark, or of a cascade if
        there is none."""
        sizes = [model.gallery_size for model in self.models if model.times is not None]
        sizes += [model.gallery_size for model in self.models]
        return next((size for size in sizes if size is not None), None)

    def of_role(self, role: Role) -> ModelResults | None:
        """The teacher, the baseline, or the first student."""
        return next((model for model in self.models if model.role == role), None)

    @property
    def result(self) -> Evaluation | PoolEvaluation | None:
        """The first result; all results are on the same split."""
        return next((model.result for model in self.models if model.result is not None), None)

    @property
    def lacks(self) -> dict[str, str]:
        """What was not done, with the command that does it, and the models that lack it."""
        evaluated = [model for model in self.models if model.result is not None]
        # A teacher is timed together with a student, and a cascade by its evaluation.
        own_times = [model for model in evaluated if model.role != "teacher" and not model.is_cascade]
        labels = {
            "not evaluated (dcdctl eval)": [model.label for model in self.models if model.result is None],
            "not timed (dcdctl bench)": [model.label for model in own_times if model.times is None],
            "without images (--data DIR)": [model.label for model in self.ranked] if self.corpus is None else [],
        }
        return {what: ", ".join(models) for what, models in labels.items() if models}

    @cached_property
    def ranked(self) -> tuple[ModelResults, ...]:
        """The models whose queries have ranks: all that were evaluated, unless it was on a pool."""
        return tuple(model for model in self.models if isinstance(model.saved, SavedEvaluation))


def read_report(
    runs: Sequence[Path], *, teacher: Path | None = None, baseline: Path | None = None, data: Path | None = None
) -> Report:
    """Read evaluation folders. The default `baseline` is the first of `runs` that is not the teacher.

    MissingError for a folder with nothing to show; StaleError for results on different corpora, splits, protocols or
    teachers, and for `data` that is not their corpus.
    """
    # The teacher and the baseline may be among the runs.
    named = (teacher, *runs, baseline)
    folders = list(dict.fromkeys(folder for folder in named if folder is not None))
    if baseline is None:
        baseline = next((folder for folder in folders if folder != teacher), None)
    roles: dict[Path, Role] = dict.fromkeys(folders, "student")
    if baseline is not None:
        roles[baseline] = "baseline"
    if teacher is not None:
        roles[teacher] = "teacher"
    # Absolute, because the current folder has no name.
    labels = dict(zip(folders, evaluation.short_names([str(folder.resolve()) for folder in folders]), strict=True))
    models: list[ModelResults] = []
    trainings = []
    for folder in folders:
        models += _models(folder, labels[folder], roles[folder])
    for folder in folders:
        if (folder / "run.json").exists():
            run = Run(folder)
            trainings.append(
                Training(
                    label=labels[folder], role=roles[folder], folder=folder, facts=run.facts(), metrics=run.metrics()
                )
            )
    results = [(model.folder, model.result) for model in models if model.result is not None]
    evaluation.check_comparable(results, "report them apart")
    report = Report(models=tuple(models), trainings=tuple(trainings), corpus=None)
    report = replace(report, models=_with_teacher_times(report))
    corpus = None
    # The queries of a pool have no answers to show; data that are named must be its own all the same.
    if report.result is not None and (report.ranked or data is not None):
        corpus = open_corpus(report.result, data)
    return replace(report, models=_compared(report), corpus=corpus)


def _models(folder: Path, label: str, role: Role) -> list[ModelResults]:
    """The model of a folder, and the cascade that starts from it."""
    # Recalls come first: an agreement on a pool is read only where there are none.
    alone = SavedEvaluation.find(folder) or SavedAgreement.find(folder)
    cascaded = SavedEvaluation.find(folder, CASCADE_FILES)
    times = read_times(folder / "bench.json", "student")
    if (alone, cascaded, times) == (None, None, None) and not (folder / "run.json").exists():
        raise artifacts.other_folder_error(folder, "run or an evaluation") or MissingError(
            f"{folder} holds nothing to show: neither a run (run.json) nor an evaluation (result.json)",
            hint=f"`dcdctl eval REF --data DIR --out {shlex.quote(str(folder))}` makes it an evaluation of any model",
        )
    model = ModelResults(label=label, role=role, folder=folder, saved=alone, times=times)
    if cascaded is None:
        return [model]
    cascade, cascade_times = cascaded.evaluation, None
    # In the gallery of the dual encoder's benchmark: re-ranking takes the same time in any. Depth 0 tells re-ranking
    # from retrieval, whose time in cascade.json is that in the gallery of the evaluation.
    if times is not None and cascade.dual_query_ms is not None and cascade.reranked:
        rerank_ms = cascade.reranked[-1].ms_per_query - cascade.dual_query_ms
        cascade_times = replace(times, query_ms=times.query_ms + rerank_ms)
    reranker = "re-ranked" if cascade.reranker is None else Path(cascade.reranker).name
    return [
        model,
        ModelResults(
            label=f"{label} + {reranker}, top {cascade.protocol.depth}",
            role="student",  # even if it starts from the teacher or the baseline
            folder=folder,
            saved=cascaded,
            times=cascade_times,
        ),
    ]


def _with_teacher_times(report: Report) -> tuple[ModelResults, ...]:
    """The models with their times: the teacher has those in its students' bench.json, and the others their speed-up
    over their teacher.

    `dcdctl bench` writes the times of both models into the folder of the student, so a teacher has many. The first one
    in a gallery of the same size counts for all.
    """
    models, teacher = report.models, report.of_role("teacher")
    first: dict[tuple[str, int], QueryTimes] = {}
    for model in models:
        if model.times is not None and (times := read_times(model.folder / "bench.json", "teacher")) is not None:
            first.setdefault((times.teacher_model, times.num_images), times)

    def timed(model: ModelResults) -> QueryTimes | None:
        if model is teacher:
            names = {model.folder}
            if model.result is not None:
                names.add(Path(model.result.model))
            return next((times for (name, _), times in first.items() if Path(name) in names), None)
        if (times := model.times) is None:
            return None
        of_teacher = first[times.teacher_model, times.num_images]
        return replace(times, speed_up=of_teacher.query_ms / times.query_ms)

    return tuple(replace(model, times=timed(model)) for model in models)


def _compared(report: Report) -> tuple[ModelResults, ...]:
    """The models, each with its comparison to the baseline."""
    base = report.of_role("baseline")
    if base is None or base.saved is None:
        return report.models
    compared = []
    for model in report.models:
        if model is base or model.saved is None:
            compared.append(model)
        else:
            compared.append(replace(model, comparison=_compare(model.saved, base.saved)))
    return tuple(compared)


def _compare(
    ours: SavedEvaluation | SavedAgreement, base: SavedEvaluation | SavedAgreement
) -> RankComparison | AgreementComparison:
    if isinstance(ours, SavedEvaluation) and isinstance(base, SavedEvaluation):
        return evaluation.compare_ranks([ours.table], [base.table])
    assert isinstance(ours, SavedAgreement)
    assert isinstance(base, SavedAgreement)  # of one kind, as `check_comparable` found
    return evaluation.compare_agreements([ours.by_query], [base.by_query])


def open_corpus(result: Evaluation | PoolEvaluation, data: Path | None) -> Corpus | None:
    """The split that a result is on, in `data` or where it was; None if it is gone or has changed. StaleError for
    another `data`."""
    folder = Path(result.data) if data is None else data
    if data is None and not (folder / CORPUS_FILE).exists():
        return None
    corpus = Corpus.open(folder, result.split, result.images)
    if corpus.fingerprint == result.corpus_fingerprint:
        return corpus
    if data is None:
        return None
    raise StaleError(
        f"{shown(folder)} is the corpus {corpus.fingerprint[:12]}, the results are on {result.about_basis}",
        hint="name theirs with --data",
    )


def teachers_of(inputs: Mapping[str, Any]) -> list[str]:
    """The fingerprints of the teachers whose scores or vectors a training learned from, by the inputs in its run.json.

    >>> teachers_of({"cache": None, "teachers": [{"teacher": "3f"}, {"teacher": "a0"}]})
    ['3f', 'a0']
    """
    plans = []
    # Caches, and dual teachers that scored the batches or gave their vectors.
    for found in (inputs.get("cache"), inputs.get("teachers")):
        if isinstance(found, list):
            plans += found
        elif found:
            plans.append(found)
    return [str(plan["teacher"]) for plan in plans]
