"""The report of a study: each way to use a start and a teacher, the differences between them, and whether the teacher
paid.

A study trains several seeds. Recalls are means over the seeds; a difference is paired query by query, as in `dcdctl
compare`.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcdctl.core.bench import QueryTimes, read_times
from dcdctl.core.config import to_table
from dcdctl.core.data import Direction
from dcdctl.core.errors import MissingError
from dcdctl.core.evaluation import (
    ALPHA,
    CASCADE_FILES,
    LEVEL,
    MODEL_FILES,
    RECALL_NAMES,
    Estimate,
    Evaluation,
    RankComparison,
    RankTable,
    SavedEvaluation,
    check_comparable,
    compare_ranks,
    holm,
)
from dcdctl.core.report import html
from dcdctl.core.report.tables import NOTHING, RECALLS
from dcdctl.core.templates import Table

ZERO_SHOT, DISTILLED, CASCADE, TEACHER = "zero-shot", "distilled", "cascade", "teacher"
"""Models of a study; the others are its baselines."""


@dataclass(frozen=True, kw_only=True)
class StudyRow:
    """A model with its results: a row of the table."""

    name: str
    folders: Sequence[Path]
    """An evaluation per seed; empty for a model that was not evaluated."""
    results: tuple[Evaluation, ...]
    """Per seed."""
    tables: tuple[RankTable, ...]
    """The ranks, per seed."""
    query_ms: float | None
    """One caption against the encoded images of the split; a mean over seeds for a cascade."""
    is_extrapolated: bool
    speed_up: float | None
    """The teacher's time over this model's."""

    def recall(self, direction: Direction, name: str) -> float:
        """A recall in percent, the mean over seeds."""
        return statistics.fmean(result.measures(direction)[name] for result in self.results)

    @property
    def rsums(self) -> list[float]:
        """RSUM of each seed."""
        return [result.rsum for result in self.results]

    @property
    def spread(self) -> float | None:
        """The sample standard deviation of RSUM over seeds; None for fewer than two."""
        return statistics.stdev(self.rsums) if len(self.rsums) > 1 else None


@dataclass(frozen=True)
class Difference:
    """Two models of a study, compared."""

    ours: str
    base: str
    comparison: RankComparison
    covers: str
    """What the intervals are over: the images, or the seeds too."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """A study as read from its folders."""

    rows: tuple[StudyRow, ...]
    differences: tuple[Difference, ...]
    facts: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    """How the models were trained and measured."""
    left_out: tuple[str, ...]
    """What was not measured, and why."""

    def __repr__(self) -> str:
        return f"Study({self.verdict!r})"

    @property
    def verdict(self) -> str:
        """Whether the teacher paid, in a sentence. Several baselines: against the one with the highest RSUM."""
        about = [difference for difference in self.differences if difference.ours == DISTILLED]
        return verdict(about, next(statistics.fmean(row.rsums) for row in self.rows if row.name == ZERO_SHOT))

    def to_json(self) -> dict[str, Any]:
        """The contents of study.json; recalls in percent, intervals as [low, high]."""
        return {
            **{name.replace(" ", "_"): text for name, text in self.facts},
            "models": [_row_document(row) for row in self.rows],
            "differences": [_difference_document(difference) for difference in self.differences],
            "planned_p_values": planned_p_values(self.differences),
            "level": LEVEL,
            "notes": list(self.notes),
            "left_out": list(self.left_out),
            "verdict": self.verdict,
        }


def read_rows(models: Mapping[str, Sequence[Path]], timed_in: Mapping[str, Path]) -> dict[str, StudyRow]:
    """The rows of a study by name, read from the folders of its evaluations.

    `timed_in` names the folder whose bench.json has the time of a model; a cascade's is in its evaluation. InputError
    for a damaged evaluation; StaleError for evaluations on different corpora, splits or protocols.
    """
    times = {
        name: read_times(folder / "bench.json", "teacher" if name == TEACHER else "student")
        for name, folder in timed_in.items()
    }
    teacher = times.get(TEACHER)
    rows = {
        name: _row(name, folders, times.get(name), None if teacher is None else teacher.query_ms)
        for name, folders in models.items()
    }
    check_comparable(
        [(result.model, result) for row in rows.values() for result in row.results],
        "run the study into another folder",
    )
    return rows


def compare_rows(rows: Mapping[str, StudyRow], contrasts: Sequence[tuple[str, str]]) -> list[Difference]:
    """The differences between pairs of rows, without those of a model that was not evaluated.

    Systems of two runs or more on both sides are compared with their seeds drawn too (`compare_ranks`).
    """
    differences = []
    for ours, base in contrasts:
        # A study without a fusion teacher has no cascade, and the teacher is evaluated only if asked for.
        if all(name in rows and rows[name].tables for name in (ours, base)):
            tables = rows[ours].tables, rows[base].tables
            # One run of a system does not show how its runs differ (`compare_ranks`).
            draws_seeds = min(map(len, tables)) > 1
            covers = "images and seeds" if draws_seeds else "images"
            differences.append(Difference(ours, base, compare_ranks(*tables, draw_seeds=draws_seeds), covers))
    return differences


def planned_p_values(differences: Sequence[Difference]) -> dict[str, float]:
    """The p-values of the planned differences, distillation from each baseline, adjusted for their number (Holm).

    All other differences are exploratory. Adjusted for them too, a verdict would depend on what else is evaluated.
    """
    planned = [difference for difference in differences if difference.ours == DISTILLED]
    p_values = holm([difference.comparison.method_p_value for difference in planned])
    return {difference.base: p_value for difference, p_value in zip(planned, p_values, strict=True)}


def verdict(differences: Sequence[Difference], untrained: float) -> str:
    """Whether the teacher paid, from the differences to the baselines without it; `untrained` is the RSUM of the start.

    The baseline with the highest RSUM counts: a teacher that only beats the weaker one adds nothing that is not free.
    With one seed, the verdict is about these trainings, not about the method.
    """
    strongest = max(differences, key=lambda difference: difference.comparison.base.rsum.value)
    comparison, p_value = strongest.comparison, planned_p_values(differences)[strongest.base]
    rsum, base = comparison.difference.rsum, _as_training(strongest.base)
    is_shown = p_value <= ALPHA
    interval = f"[{rsum.interval.low:.1f}, {rsum.interval.high:.1f}] points"
    if not is_shown and not rsum.interval.low <= 0 <= rsum.interval.high:
        interval += f" (adjusted p {p_value:.2g})"
    is_start_best = untrained > max(comparison.ours.rsum.value, comparison.base.rsum.value)
    end = "; the start without any training has a higher RSUM than both." if is_start_best else "."
    if is_shown and rsum.value > 0:
        text = f"The teacher added {rsum.value:.1f} {interval} of RSUM over {base}{end}"
    else:
        outcome = "The teacher did not pay" if is_shown else "No difference was shown"
        text = f"{outcome}: distillation changed RSUM by {rsum.value:+.1f} {interval} compared with {base}{end}"
    if comparison.num_runs == 1:
        text = f"For these trainings, {text[0].lower()}{text[1:]}"
    return f"{text} {comparison.seed_warning}".rstrip()


def _as_training(name: str) -> str:
    """The name of a baseline as the act of training it.

    >>> _as_training("fine-tuned, random batches")
    'fine-tuning with random batches'
    """
    first, _, rest = name.partition(", ")
    return first.replace("fine-tuned", "fine-tuning") + (f" with {rest}" if rest else "")


def _row(name: str, folders: Sequence[Path], times: QueryTimes | None, teacher_ms: float | None) -> StudyRow:
    is_cascade = name == CASCADE
    evaluations = [SavedEvaluation.load(folder, CASCADE_FILES if is_cascade else MODEL_FILES) for folder in folders]
    results, tables = zip(*map(_read_evaluation, evaluations), strict=True) if evaluations else ((), ())
    query_ms = None if times is None else times.query_ms
    # The benchmark of a study times single models; the evaluation of a cascade times its query.
    if is_cascade and all(result.reranked for result in results):
        query_ms = statistics.fmean(result.reranked[-1].ms_per_query for result in results)
    return StudyRow(
        name=name,
        folders=folders,
        results=results,
        tables=tables,
        query_ms=query_ms,
        is_extrapolated=times is not None and times.is_extrapolated,
        speed_up=None if query_ms is None or teacher_ms is None else teacher_ms / query_ms,
    )


def _read_evaluation(saved: SavedEvaluation) -> tuple[Evaluation, RankTable]:
    """An evaluation and its ranks. MissingError for a folder without them: means over different numbers of seeds
    cannot be compared."""
    if saved.evaluation is None or saved.table is None:
        raise MissingError(
            f"{saved.folder} has no evaluation with ranks", hint=f"`dcdctl eval {saved.folder} --data DIR` makes one"
        )
    return saved.evaluation, saved.table


def study_tables(study: Study) -> list[Table]:
    """The models and their recalls, and the differences between them, as text."""
    return [_models_table(study.rows), _differences_table(study.differences)]


def _models_table(rows: Sequence[StudyRow]) -> Table:
    cells = []
    for row in rows:
        recalls = [f"{row.recall(direction, name):.1f}" if row.results else NOTHING for direction, name in RECALLS]
        spread = "" if row.spread is None else f" \N{PLUS-MINUS SIGN} {row.spread:.1f}"
        rsum = f"{statistics.fmean(row.rsums):.1f}{spread}" if row.results else NOTHING
        mark = "~" if row.is_extrapolated else ""
        query = NOTHING if row.query_ms is None else f"{mark}{row.query_ms:,.2f} ms"
        speed_up = NOTHING if row.speed_up is None else f"{row.speed_up:,.1f}\N{MULTIPLICATION SIGN}"
        cells.append((row.name, *recalls, rsum, query, speed_up))
    columns = ("model", *(f"{direction} {name}" for direction, name in RECALLS), "RSUM", "query", "speed-up")
    return Table("Models", columns, tuple(cells))


def _differences_table(differences: Sequence[Difference]) -> Table:
    rows = []
    for difference in differences:
        estimates = difference.comparison.difference
        recalls = [estimates.text_retrieval["R@1"], estimates.image_retrieval["R@1"], estimates.rsum]
        name = f"{difference.ours} \N{MINUS SIGN} {difference.base}"
        kind = "planned" if difference.ours == DISTILLED else "exploratory"
        rows.append((name, *map(_estimate, recalls), difference.covers, kind))
    return Table(
        "Differences in percentage points",
        ("difference", "text R@1", "image R@1", "RSUM", "interval over", "kind"),
        tuple(rows),
    )


def _estimate(estimate: Estimate) -> str:
    return f"{estimate.value:+.1f} [{estimate.interval.low:+.1f}, {estimate.interval.high:+.1f}]"


def write_study_page(path: Path, study: Study) -> None:
    """Write the page of a study."""
    html.write(
        path,
        "study.html",
        title="Does the teacher pay?",
        verdict=study.verdict,
        facts=study.facts,
        tables=study_tables(study),
        notes=study.notes,
        left_out=study.left_out,
    )


def _row_document(row: StudyRow) -> dict[str, Any]:
    document: dict[str, Any] = {"name": row.name, "folders": list(map(str, row.folders))}
    if row.results:
        for direction in Direction:
            document[direction.key] = {name: row.recall(direction, name) for of, name in RECALLS if of == direction}
        document |= {"rsum": statistics.fmean(row.rsums), "rsum_by_seed": row.rsums, "rsum_spread": row.spread}
    return {
        **document,
        "query_ms": row.query_ms,
        "query_ms_extrapolated": row.is_extrapolated,
        "speed_up": row.speed_up,
    }


def _difference_document(difference: Difference) -> dict[str, Any]:
    estimates = difference.comparison.difference
    return {
        "ours": difference.ours,
        "base": difference.base,
        "rsum": to_table(estimates.rsum),
        **{
            direction.key: {name: to_table(estimates.of(direction)[name]) for name in RECALL_NAMES}
            for direction in Direction
        },
        "interval_over": difference.covers,
        "p_value": difference.comparison.p_value,
        "t_test_p_value": difference.comparison.t_test_p_value,
    }
