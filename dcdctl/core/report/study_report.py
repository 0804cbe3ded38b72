"""The report of a study: each way to use a start and a teacher, the differences between them, and whether the teacher
paid.

A study trains several seeds. Recalls are means over the seeds; a difference is paired query by query, as in `dcdctl
compare`. On a pool there are no recalls, and the models are compared by their agreement with the teacher.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcdctl.core.artifacts import Document
from dcdctl.core.bench import QueryTimes, read_times
from dcdctl.core.config import to_table
from dcdctl.core.data import Direction
from dcdctl.core.evaluation import (
    CASCADE_FILES,
    ESTIMATED,
    LEVEL,
    MODEL_FILES,
    NDCG,
    AgreementComparison,
    Agreements,
    Estimate,
    Evaluation,
    PoolEvaluation,
    RankComparison,
    RankTable,
    SavedAgreement,
    SavedEvaluation,
    check_comparable,
    compare_agreements,
    compare_ranks,
    holm,
    outcome,
)
from dcdctl.core.progress import digits
from dcdctl.core.report import html
from dcdctl.core.report.tables import NOTHING
from dcdctl.core.templates import Table

ZERO_SHOT, DISTILLED, CASCADE, TEACHER = "zero-shot", "distilled", "cascade", "teacher"
"""Models of a study; the others are its baselines."""


@dataclass(frozen=True, kw_only=True)
class StudyRow:
    """A model with its results: a row of the table."""

    name: str
    folders: Sequence[Path]
    """An evaluation per seed; empty for a model that was not evaluated."""
    results: tuple[Evaluation | PoolEvaluation, ...]
    """Per seed."""
    tables: tuple[RankTable | Agreements, ...]
    """The ranks, per seed; of a pool, the agreement of every query."""
    query_ms: float | None
    """One caption against the encoded images of the split; a mean over seeds for a cascade."""
    is_extrapolated: bool
    speed_up: float | None
    """The teacher's time over this model's."""

    def measure(self, direction: Direction, name: str) -> float | None:
        """A measure of the direction, the mean over seeds; None without one."""
        of_seeds = [result.measures(direction) or {} for result in self.results]
        values = [measures[name] for measures in of_seeds if name in measures]
        return statistics.fmean(values) if values else None

    @property
    def totals(self) -> list[float]:
        """RSUM of each seed; of a pool, nDCG@10."""
        return [result.total for result in self.results]

    @property
    def spread(self) -> float | None:
        """The sample standard deviation of the totals; None for fewer than two."""
        return statistics.stdev(self.totals) if len(self.totals) > 1 else None


@dataclass(frozen=True)
class Difference:
    """Two models of a study, compared."""

    ours: str
    base: str
    comparison: RankComparison | AgreementComparison
    covers: str
    """What the intervals are over: the images (of a pool, the queries), or the seeds too."""

    @property
    def totals(self) -> tuple[Estimate, Estimate, Estimate]:
        """RSUM, or nDCG@10 of a pool: ours, the base's, and the difference."""
        comparison = self.comparison
        return comparison.ours.total, comparison.base.total, comparison.difference.total


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
        """Whether the teacher paid, in a sentence. Several baselines: against the one with the highest total."""
        about = [difference for difference in self.differences if difference.ours == DISTILLED]
        starts = [statistics.fmean(row.totals) for row in self.rows if row.name == ZERO_SHOT]
        return verdict(about, max(starts, default=0.0))

    def to_json(self) -> Document:
        """The contents of study.json; recalls in percent, intervals as [low, high]."""
        return {
            "verdict": self.verdict,
            **{name.replace(" ", "_"): text for name, text in self.facts},
            "models": [_row_document(row) for row in self.rows],
            "differences": [_difference_document(difference) for difference in self.differences],
            "planned_p_values": planned_p_values(self.differences),
            "level": LEVEL,
            "notes": list(self.notes),
            "left_out": list(self.left_out),
        }


def read_rows(
    models: Mapping[str, Sequence[Path]], timed_in: Mapping[str, Path], *, by_agreement: bool = False
) -> dict[str, StudyRow]:
    """The rows of a study by name, read from the folders of its evaluations; with `by_agreement` those of a pool, which
    may stand beside others.

    `timed_in` names the folder whose bench.json has the time of a model; a cascade's is in its evaluation. InputError
    for a damaged evaluation; StaleError if evaluations of different corpora, splits or protocols are compared.
    """
    times: dict[str, QueryTimes | None] = {}
    for name, folder in timed_in.items():
        times[name] = read_times(folder / "bench.json", "teacher" if name == TEACHER else "student")
    teacher, rows = times.get(TEACHER), {}
    for name, folders in models.items():
        names = CASCADE_FILES if name == CASCADE else MODEL_FILES
        results: list[Evaluation | PoolEvaluation] = []
        tables: list[RankTable | Agreements] = []
        for folder in folders:
            if by_agreement and (agreed := SavedAgreement.find(folder)) is not None:
                results.append(agreed.evaluation)
                tables.append(agreed.by_query)
            else:
                saved = SavedEvaluation.load(folder, names)
                results.append(saved.evaluation)
                tables.append(saved.table)
        timed = times.get(name)
        query_ms = None if timed is None else timed.query_ms
        # The benchmark of a study times single models; the evaluation of a cascade times its query.
        if name == CASCADE and all(result.reranked for result in results):
            query_ms = statistics.fmean(result.reranked[-1].ms_per_query for result in results)
        rows[name] = StudyRow(
            name=name,
            folders=folders,
            results=tuple(results),
            tables=tuple(tables),
            query_ms=query_ms,
            is_extrapolated=timed is not None and timed.is_extrapolated,
            speed_up=None if query_ms is None or teacher is None else teacher.query_ms / query_ms,
        )
    named = [(result.model, result) for row in rows.values() for result in row.results]
    check_comparable(named, "run the study into another folder")
    return rows


def compare_rows(rows: Mapping[str, StudyRow], contrasts: Sequence[tuple[str, str]]) -> list[Difference]:
    """The differences between pairs of rows, without those of a model that was not evaluated.

    With two seeds or more, the seeds are drawn too (`compare_ranks`). The start was not trained: it has no seed, and is
    the same against each run.
    """
    differences = []
    for ours, base in contrasts:
        # A study without a fusion teacher has no cascade, and the teacher is evaluated only if asked for.
        if all(name in rows and rows[name].tables for name in (ours, base)):
            our_tables, base_tables = rows[ours].tables, rows[base].tables
            if base == ZERO_SHOT:
                base_tables = base_tables * len(our_tables)
            tables: Any = our_tables, base_tables
            # One run of a system does not show how its runs differ (`compare_ranks`).
            draw_seeds = min(map(len, tables)) > 1
            comparison: RankComparison | AgreementComparison
            if isinstance(tables[0][0], Agreements):
                comparison, covers = compare_agreements(*tables, draw_seeds=draw_seeds), tables[0][0].drawn
            else:
                comparison, covers = compare_ranks(*tables, draw_seeds=draw_seeds), "images"
            differences.append(Difference(ours, base, comparison, f"{covers} and seeds" if draw_seeds else covers))
    return differences


def planned_p_values(differences: Sequence[Difference]) -> dict[str, float]:
    """The p-values of the planned differences, distillation from each baseline, adjusted for their number (Holm);
    none with one seed, which does not test the method.

    All other differences are exploratory. Adjusted for them too, a verdict would depend on what else is evaluated.
    """
    planned = [difference for difference in differences if difference.ours == DISTILLED]
    tested = [(one.base, p) for one in planned if (p := one.comparison.method_p_value) is not None]
    p_values = holm([p_value for _, p_value in tested])
    return {base: p_value for (base, _), p_value in zip(tested, p_values, strict=True)}


def verdict(differences: Sequence[Difference], untrained: float) -> str:
    """Whether the teacher paid, from the differences to the baselines without it; `untrained` is the total of the
    start, which is the baseline of a training on a pool.

    The baseline with the highest total counts: a teacher that only beats the weaker one adds nothing that is not free.
    Its p-value is adjusted. With one seed there is none: another seed may differ by more than the teacher brings.
    """
    strongest = max(differences, key=lambda difference: difference.totals[1].value)
    comparison, p_value = strongest.comparison, planned_p_values(differences).get(strongest.base)
    ours, theirs, gain = strongest.totals
    base = "the start" if strongest.base == ZERO_SHOT else strongest.base.replace(",", " with")
    total = comparison.difference.total_in_words
    scope = " in these trainings" if comparison.num_runs == 1 else ""
    about = f"{DISTILLED} against {base}{scope}, {total}"
    lines = [outcome(about, gain, p_value, ("The teacher paid", "The teacher did not pay")), comparison.seed_warning]
    if untrained > max(ours.value, theirs.value):
        lines.append(f"The start without any training has a higher {total} than both.")
    return " ".join(filter(None, lines))


def study_tables(study: Study) -> list[Table]:
    """The models and their recalls, and the differences between them, as text."""
    return [_models_table(study.rows), _differences_table(study.differences)]


def _models_table(rows: Sequence[StudyRow]) -> Table:
    # All evaluations of a study are of one kind.
    kind, cells = rows[0].results[0], []
    for row in rows:
        shown = []
        for direction in Direction:
            for measure in kind.shown:
                mean = row.measure(direction, measure.name)
                shown.append(NOTHING if mean is None else measure.brief(mean))
        spread = "" if row.spread is None else f" \N{PLUS-MINUS SIGN} {row.spread:.1f}"
        total = f"{statistics.fmean(row.totals):.1f}{spread}" if row.results else NOTHING
        mark = "~" if row.is_extrapolated else ""
        query = NOTHING if row.query_ms is None else f"{mark}{digits(row.query_ms)} ms"
        speed_up = NOTHING if row.speed_up is None else f"{digits(row.speed_up)}\N{MULTIPLICATION SIGN}"
        cells.append((row.name, *shown, total, query, speed_up))
    names = [f"{direction} {measure.title}" for direction in Direction for measure in kind.shown]
    return Table("Models", ("model", *names, kind.total_title, "query", "speed-up"), cells)


def _differences_table(differences: Sequence[Difference]) -> Table:
    rows, names = [], [NDCG.name]
    for difference in differences:
        estimates = [difference.totals[-1]]
        if isinstance(difference.comparison, RankComparison):
            recalls, names = difference.comparison.difference, ["text R@1", "image R@1", "RSUM"]
            estimates = [recalls.text_retrieval["R@1"], recalls.image_retrieval["R@1"], *estimates]
        name = f"{difference.ours} \N{MINUS SIGN} {difference.base}"
        kind = "planned" if difference.ours == DISTILLED else "exploratory"
        rows.append((name, *map(_estimate, estimates), difference.covers, kind))
    return Table("Differences in percentage points", ("difference", *names, "interval over", "kind"), tuple(rows))


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


def _row_document(row: StudyRow) -> Document:
    document: Document = {"name": row.name, "folders": list(map(str, row.folders))}
    if row.results:
        kind = row.results[0]
        for direction in Direction:
            document[direction.key] = {one.name: row.measure(direction, one.name) for one in kind.shown}
        key = kind.total_key
        document |= {key: statistics.fmean(row.totals), f"{key}_by_seed": row.totals, f"{key}_spread": row.spread}
    return {
        **document,
        "query_ms": row.query_ms,
        "query_ms_extrapolated": row.is_extrapolated,
        "speed_up": row.speed_up,
    }


def _difference_document(difference: Difference) -> Document:
    document: Document = {"ours": difference.ours, "base": difference.base}
    if isinstance(difference.comparison, RankComparison):
        estimates = difference.comparison.difference
        document |= {"rsum": to_table(estimates.rsum)}
        for direction in Direction:
            document[direction.key] = {one.name: to_table(estimates.of(direction)[one.name]) for one in ESTIMATED}
    else:
        document |= {"ndcg": to_table(difference.comparison.difference.ndcg)}
    return {
        **document,
        "interval_over": difference.covers,
        "p_value": difference.comparison.p_value,
        "t_test_p_value": difference.comparison.t_test_p_value,
    }
