"""The comparison of systems as one value, as a JSON document, and as the tables of text that the terminal, the page and
notebooks show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from dcdctl.core import templates
from dcdctl.core.artifacts import Document
from dcdctl.core.config import to_table
from dcdctl.core.data import Direction
from dcdctl.core.errors import InputError
from dcdctl.core.evaluation.agreement import Agreements
from dcdctl.core.evaluation.document import Evaluation, PoolEvaluation
from dcdctl.core.evaluation.estimates import (
    AgreementComparison,
    AgreementEstimates,
    Estimate,
    Estimates,
    RankComparison,
    outcome,
)
from dcdctl.core.evaluation.files import SavedAgreement, SavedEvaluation
from dcdctl.core.evaluation.ranking import RankTable
from dcdctl.core.evaluation.significance import LEVEL
from dcdctl.core.templates import Table

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
"""One for each system of a comparison."""


@dataclass(frozen=True)
class System:
    """A model, or several that differ only in the seed."""

    name: str
    runs: tuple[SavedEvaluation | SavedAgreement, ...]
    """All of one kind: each with the ranks of its queries, or with their agreement with a teacher."""

    @property
    def tables(self) -> list[RankTable]:
        """The ranks of each run; empty for agreements."""
        return [run.table for run in self.runs if isinstance(run, SavedEvaluation)]

    @property
    def agreements(self) -> list[Agreements]:
        """The agreement of each run; empty for ranks."""
        return [run.by_query for run in self.runs if isinstance(run, SavedAgreement)]

    @property
    def evaluation(self) -> Evaluation | PoolEvaluation:
        """The document of the first run."""
        return self.runs[0].evaluation


@dataclass(frozen=True)
class RankShift:
    """A query whose ranks differ."""

    query: int
    """The image index for text retrieval, the caption index for image retrieval."""
    ours: tuple[int, ...]
    """The rank in each run of the system."""
    base: tuple[int, ...]


@dataclass(frozen=True)
class QueryShifts:
    """How many queries of a direction do better, equally well and worse than in the base; of ranks, also those that
    differ most."""

    num_better: int
    num_equal: int
    num_worse: int
    better: tuple[RankShift, ...] = ()
    worse: tuple[RankShift, ...] = ()


@dataclass(frozen=True, kw_only=True)
class AdjustedComparison:
    """The queries of a system against the base's, with p-values adjusted for all comparisons of the report
    (`bootstrap.holm`)."""

    comparison: RankComparison | AgreementComparison
    holm_p_value: float
    """Of the bootstrap."""
    holm_sign_flip_p_value: float
    holm_t_test_p_value: float | None
    """None unless the seeds are drawn: otherwise the comparison is about these trainings alone."""


@dataclass(frozen=True, kw_only=True)
class PairwiseComparison(AdjustedComparison):
    """A system against the base."""

    letter: str
    shifts: dict[Direction, QueryShifts]
    by_language: dict[str, AdjustedComparison]
    """In image retrieval alone (`RankTable.of_captions`), for the captions of each language; adjusted for all languages
    and systems. Empty if the captions have no languages."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Comparison:
    """Every system against the base, with intervals and p-values."""

    systems: dict[str, System]
    """By letter."""
    base: str
    """Letter of the base."""
    comparisons: tuple[PairwiseComparison, ...]
    num_resamples: int
    seed: int
    draws_seeds: bool = False
    """Whether the intervals and the p-values of the bootstrap cover the runs of a system too."""

    @cached_property
    def names(self) -> dict[str, str]:
        """A short name of each system that no other has, by letter."""
        return dict(zip(self.systems, short_names([system.name for system in self.systems.values()]), strict=True))

    @property
    def queries(self) -> RankTable:
        """A table of ranks; all systems have the same images and captions. Agreements have none."""
        return self.systems[self.base].tables[0]

    @property
    def evaluation(self) -> Evaluation | PoolEvaluation:
        """A document, for the split and the protocol that all systems share."""
        return self.systems[self.base].evaluation

    @property
    def measured_by(self) -> str:
        """The protocol, or the teacher, in words."""
        return self.systems[self.base].runs[0].measured_by

    @property
    def drawn(self) -> str:
        """What the intervals are over, besides runs."""
        return self.systems[self.base].runs[0].drawn

    @property
    def lists_queries(self) -> bool:
        """Whether it names the queries that differ most."""
        return any(shifts.better or shifts.worse for one in self.comparisons for shifts in one.shifts.values())

    @property
    def estimates(self) -> dict[str, Estimates | AgreementEstimates]:
        """The measures of each system, by letter."""
        compared = {pairwise.letter: pairwise.comparison.ours for pairwise in self.comparisons}
        # The base is estimated in every comparison, on the same draws.
        return {letter: compared.get(letter, self.comparisons[0].comparison.base) for letter in self.systems}

    @property
    def verdicts(self) -> list[str]:
        """Whether each system differs from the base, a sentence each. Its p-value is the larger one of both tests,
        adjusted for all comparisons (Holm)."""
        sentences = []
        for pairwise in self.comparisons:
            difference = pairwise.comparison.difference
            about = f"{self.names[pairwise.letter]} against {self.names[self.base]}, {difference.total_in_words}"
            p_value = max(holm for _, holm in _tests(pairwise))
            sentences.append(outcome(about, difference.total, p_value))
        return sentences

    def __repr__(self) -> str:
        return f"Comparison({' '.join(self.verdicts)})"

    def _repr_html_(self) -> str:
        return templates.render(
            "notebook.html",
            title=" ".join(self.verdicts),
            tables=comparison_tables(self),
            cards=[],
            notes=[": ".join(fact) for fact in comparison_facts(self)] + how_to_read(self),
        )


def short_names(names: Sequence[str]) -> list[str]:
    """The ends of the names of systems, with as many folders as make them differ; seeds by the first one. The same name
    twice is numbered.

    >>> short_names(["runs/a", "runs/b-0,runs/b-1", "old/a:cascade"])
    ['a', 'b-0 + 1 more', 'a:cascade']
    >>> short_names(["runs/1/a", "runs/2/a"]), short_names(["a", "a"])
    (['1/a', '2/a'], ['a (1)', 'a (2)'])
    """
    refs = [refs_of(name) for name in names]
    parts = [Path(first).parts for first, *_ in refs]
    ends = [f" + {len(seeds) - 1} more" if len(seeds) > 1 else "" for seeds in refs]
    for length in range(1, max(map(len, parts)) + 1):
        short = ["/".join(part[-length:]) + end for part, end in zip(parts, ends, strict=True)]
        if len(set(short)) == len(short):
            return short
    return [f"{name} ({number})" for number, name in enumerate(short, start=1)]


def refs_of(name: str) -> list[str]:
    """The references of a system's runs; InputError if one is empty."""
    # A path that exists may contain a comma.
    refs = [name] if Path(name).exists() else name.split(",")
    if not all(refs):
        raise InputError(f"a name in {name!r} is empty", hint="separate the seeds of a system by single commas")
    return refs


def comparison_document(comparison: Comparison) -> Document:
    """The comparison for JSON; recalls and mean reciprocal ranks in percent, intervals as [low, high]."""
    evaluation, sides = comparison.evaluation, []
    first = comparison.systems[comparison.base].runs[0]
    of_teacher: Document = {}
    if isinstance(first, SavedAgreement):
        of_teacher = {"teacher": first.agreement.teacher, "over": first.agreement.over}
    for letter, system in comparison.systems.items():
        sides.append(
            {
                "side": letter,
                "name": system.name,
                "runs": [run.ref for run in system.runs],
                "kind": system.evaluation.protocol.kind,
                "depth": system.evaluation.protocol.depth,
                **to_table(comparison.estimates[letter]),
            }
        )
    return {
        "verdicts": comparison.verdicts,
        "split": evaluation.split,
        "images": evaluation.images,
        "captions": evaluation.captions,
        "protocol": evaluation.protocol.name,
        "corpus_fingerprint": evaluation.corpus_fingerprint,
        **of_teacher,
        "level": LEVEL,
        "resamples": comparison.num_resamples,
        "seed": comparison.seed,
        "draws_seeds": comparison.draws_seeds,
        "base": comparison.base,
        "sides": sides,
        "comparisons": [_pairwise(comparison, pairwise) for pairwise in comparison.comparisons],
    }


def _pairwise(comparison: Comparison, pairwise: PairwiseComparison) -> Document:
    ranks = pairwise.comparison
    document: Document = {
        "side": pairwise.letter,
        "base": comparison.base,
        "difference": to_table(ranks.difference),
        **_p_values(pairwise),
    }
    if isinstance(ranks, RankComparison) and ranks.ndcg_tests:
        document["ndcg"] = to_table(ranks.ndcg_tests)
    by_language: Document = {}
    for language, one in pairwise.by_language.items():
        by_language[language] = {
            "difference": to_table(one.comparison.difference.image_retrieval),
            **_p_values(one),
        }
    document |= {"image_retrieval_by_language": by_language, "seed_warning": ranks.seed_warning or None}
    for direction, shifts in pairwise.shifts.items():
        document[f"{direction}_queries"] = {
            "better": shifts.num_better,
            "equal": shifts.num_equal,
            "worse": shifts.num_worse,
            "most_better": [_query(comparison.queries, direction, shift) for shift in shifts.better],
            "most_worse": [_query(comparison.queries, direction, shift) for shift in shifts.worse],
        }
    return document


def _p_values(pairwise: AdjustedComparison) -> Document:
    ranks, t_test = pairwise.comparison, None
    if pairwise.holm_t_test_p_value is not None:
        t_test = {"p_value": ranks.t_test_p_value, "holm_p_value": pairwise.holm_t_test_p_value}
    return {
        "sign_flip": {
            "p_value": ranks.sign_flip_p_value,
            "holm_p_value": pairwise.holm_sign_flip_p_value,
            "exact": ranks.sign_flip_is_exact,
        },
        "bootstrap": {"p_value": ranks.p_value, "holm_p_value": pairwise.holm_p_value},
        "t_test": t_test,
    }


def _query(ranks: RankTable, direction: Direction, shift: RankShift) -> Document:
    image = shift.query if direction == Direction.TEXT else int(ranks.caption_image[shift.query])
    caption = {} if direction == Direction.TEXT else {"caption_id": int(ranks.caption_ids[shift.query])}
    return {
        "query": shift.query,
        "image_id": ranks.image_ids[image],
        **caption,
        "ranks": list(shift.ours),
        "base_ranks": list(shift.base),
    }


def comparison_facts(comparison: Comparison) -> list[tuple[str, str]]:
    """The systems and the corpus of a comparison."""
    evaluation, facts = comparison.evaluation, []
    for letter, system in comparison.systems.items():
        about = [system.evaluation.protocol.model_in_words]
        if len(system.runs) > 1:
            about.append(f"mean of {len(system.runs)} runs")
        if letter == comparison.base:
            about.append("the base")
        refs, words = ", ".join(run.ref for run in system.runs), ", ".join(about)
        facts.append((comparison.names[letter], f"{refs} ({words})"))
    counts = f"{evaluation.images:,} images, {evaluation.captions:,} {evaluation.texts}"
    measured = f"split {evaluation.split}; {comparison.measured_by}"
    runs = " and of runs" if comparison.draws_seeds else ""
    return [
        *facts,
        ("measured on", f"{counts}; {measured}"),
        ("draws", f"{comparison.num_resamples:,} of {comparison.drawn}{runs}, seed {comparison.seed}"),
    ]


def comparison_tables(comparison: Comparison) -> list[Table]:
    """The total and p-values of all systems; then the measures of each system against the base."""
    return [_summary(comparison), *(_details(comparison, pairwise) for pairwise in comparison.comparisons)]


def _summary(comparison: Comparison) -> Table:
    """The total of each system, its difference from the base, and the p-values of the difference."""
    test = "t-test p" if comparison.draws_seeds else "sign-flip p"
    columns = ["", comparison.estimates[comparison.base].total_title, "difference", test, "bootstrap p"]
    rows = []
    compared = {pairwise.letter: pairwise for pairwise in comparison.comparisons}
    for letter, estimates in comparison.estimates.items():
        cells = [comparison.names[letter], f"{estimates.total.value:.2f}"]
        if pairwise := compared.get(letter):
            total = pairwise.comparison.difference.total
            cells.append(f"{signed(total.value)} {_interval(total)}")
            for raw, adjusted in _tests(pairwise):
                cells.append(f"{_p(raw)} ({_p(adjusted)})" if len(compared) > 1 else _p(raw))
        rows.append([*cells, *[""] * (len(columns) - len(cells))])
    return Table("", columns, rows)


def _tests(pairwise: AdjustedComparison) -> list[tuple[float, float]]:
    """p-values of the two tests that are shown, raw and adjusted: the bootstrap's last. The sign-flip test averages the
    runs, so the t-test takes its place where seeds are drawn."""
    ranks = pairwise.comparison
    first = (ranks.sign_flip_p_value, pairwise.holm_sign_flip_p_value)
    if ranks.t_test_p_value is not None and pairwise.holm_t_test_p_value is not None:
        first = (ranks.t_test_p_value, pairwise.holm_t_test_p_value)
    return [first, (ranks.p_value, pairwise.holm_p_value)]


def _details(comparison: Comparison, pairwise: PairwiseComparison) -> Table:
    """The measures of both systems with the differences, and how many queries rank better."""
    base_name, name = comparison.names[comparison.base], comparison.names[pairwise.letter]
    ranks, estimates = pairwise.comparison, []
    for direction in Direction:
        for measure, change in ranks.difference.of(direction).items():
            both = ranks.base.of(direction)[measure], ranks.ours.of(direction)[measure]
            estimates.append((f"{direction} {measure.replace('_', ' ')}", *both, change))
    estimates.append((ranks.base.total_title, ranks.base.total, ranks.ours.total, ranks.difference.total))
    lines = []
    for direction, shifts in pairwise.shifts.items():
        lines.append(
            f"{ranks.base.per_query} of {direction.query}s: {shifts.num_better:,} better with {name} than with "
            f"{base_name}, {shifts.num_equal:,} equal, {shifts.num_worse:,} worse"
        )
    for language, one in pairwise.by_language.items():
        sides = one.comparison.base, one.comparison.ours, one.comparison.difference
        first, ours, change = (side.image_retrieval["R@1"] for side in sides)
        estimates.append((f"image R@1, {language}", first, ours, change))
        p_values = " and ".join(_p(holm) for _, holm in _tests(one))
        lines.append(f"image retrieval, {language}: p of both tests {p_values}, adjusted (Holm)")
    rows = []
    for row, first, ours, change in estimates:
        rows.append([row, f"{first.value:.2f}", f"{ours.value:.2f}", signed(change.value), _interval(change)])
    return Table("", ["", base_name, name, "difference", f"{100 * LEVEL:g} % interval"], rows, "\n".join(lines))


def how_to_read(comparison: Comparison) -> list[str]:
    """Notes on the intervals and p-values of the tables."""
    counted_all = all(pairwise.comparison.sign_flip_is_exact for pairwise in comparison.comparisons)
    exact = "; all patterns of signs counted" if counted_all and not comparison.draws_seeds else ""
    drawn = comparison.drawn
    interval = f"interval over {drawn} and runs" if comparison.draws_seeds else f"bootstrap interval over {drawn}"
    estimates = comparison.estimates[comparison.base]
    lines = [
        f"[low, high]: {100 * LEVEL:g}% {interval}. {estimates.note}",
        f"p: two-sided, for no difference in {estimates.total_title}{exact}.",
    ]
    if (count := len(comparison.comparisons)) > 1:
        lines.append(f"In parentheses after p: adjusted for {count} comparisons (Holm).")
    if comparison.draws_seeds:
        lines.append("t-test: over runs. A difference is shown if both p are at most 0.05.")
    elif all(len(system.runs) > 1 for system in comparison.systems.values()):
        # Where runs differ much, drawing images alone claims differences that are none (docs/metrics.md).
        lines.append("Intervals and p are about these trainings; for a claim about other seeds add --draw-seeds.")
    else:
        lines.append("Intervals and p are about these trainings; they cover no other seed.")
    warnings = dict.fromkeys(pairwise.comparison.seed_warning for pairwise in comparison.comparisons)
    return [*lines, *filter(None, warnings)]


def signed(value: float) -> str:
    """Two digits with a sign; zero gets a plus.

    >>> signed(-0.001), signed(-1.238)
    ('+0.00', '-1.24')
    """
    # Adding 0.0 turns a negative zero into a positive one.
    return f"{round(value, 2) + 0.0:+.2f}"


def _interval(difference: Estimate) -> str:
    return f"[{signed(difference.interval.low)}, {signed(difference.interval.high)}]"


def _p(p_value: float) -> str:
    # A smaller value would be shown as 0.0000.
    return f"{p_value:.4f}" if p_value >= 5e-5 else f"{p_value:.0e}"
