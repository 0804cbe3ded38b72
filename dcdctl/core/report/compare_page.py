"""The page of `dcdctl compare`: tables, and the queries whose ranks differ most, with images and first answers of both systems.

For a system with several runs, the first answers are those of its first run.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dcdctl.core.data import Corpus, Direction, read_corpus_json
from dcdctl.core.errors import InputError, StaleError
from dcdctl.core.evaluation import ComparisonReport, PairwiseComparison, RankShift, System
from dcdctl.core.report import compare_tables, html
from dcdctl.core.report.html import EmbeddedImage

NUM_ANSWERS = 5
"""First answers shown for each system."""
QUERY_PX = 160
ANSWER_PX = 72
MAX_QUERIES = 80
"""Queries on a page, over all comparisons; this keeps the page under 3 MB."""


@dataclass(frozen=True)
class _Ranked:
    """One of the first answers to a query, as top.parquet has it."""

    candidate: int
    """A caption index if the direction is "text", else an image index."""
    score: float
    is_own: bool


@dataclass(frozen=True, kw_only=True)
class _Query:
    """A query with the ranks and first answers of both systems: the base, then the other."""

    direction: Direction
    index: int
    letters: tuple[str, str]
    ranks: tuple[tuple[int, ...], tuple[int, ...]]
    top: tuple[list[_Ranked], list[_Ranked]]
    """Empty if they were not kept."""

    def image(self, corpus: Corpus) -> int:
        """The query image, or the image of the query caption."""
        return self.index if self.direction == Direction.TEXT else int(corpus.caption_image[self.index])


def open_corpus(report: ComparisonReport, data: Path | None = None) -> Corpus:
    """The corpus of the queries: `data`, or the folder that an evaluation names.

    InputError if the folder is unknown, StaleError if the corpus has other images or captions.
    """
    queries, summary = report.queries, report.summary
    folder = _known_folder(report) if data is None else data
    splits = list(read_corpus_json(folder)["splits"]) if summary is None else [summary.split]
    for split in splits:
        corpus = Corpus.open(folder, split, len(queries.image_ids))
        if tuple(corpus.image_ids) == queries.image_ids and np.array_equal(corpus.caption_ids, queries.caption_ids):
            return corpus
    expected = f"the {len(queries.image_ids):,} images and {len(queries.caption_ids):,} captions of the ranks"
    raise StaleError(f"{folder} does not have {expected} in {' or '.join(splits)}", hint="name their corpus with --data DIR")


def write_comparison_page(path: Path, report: ComparisonReport, corpus: Corpus) -> None:
    """Write the page of a comparison."""
    sections = {heading: queries for pairwise in report.comparisons for heading, queries in _queries(report, pairwise) if queries}
    images = _embedded_images(corpus, [query for queries in sections.values() for query in queries])
    html.write(
        path,
        "comparison.html",
        title=f"Compared with {report.systems[report.base].name}",
        facts=compare_tables.comparison_facts(report),
        summary=compare_tables.comparison_summary(report),
        comparisons=[
            {
                "heading": f"{pairwise.letter} compared with {report.base}",
                "details": compare_tables.comparison_details(report, pairwise),
                "rank_changes": compare_tables.rank_changes(report, pairwise),
            }
            for pairwise in report.comparisons
        ],
        how_to_read=compare_tables.how_to_read(report),
        sections=[
            {"heading": heading, "queries": [_query_view(query, corpus, images) for query in queries]}
            for heading, queries in sections.items()
        ],
    )


def _known_folder(report: ComparisonReport) -> Path:
    named = [
        run.result.summary.data
        for system in report.systems.values()
        for run in system.runs
        if run.result.summary is not None and run.result.summary.data is not None
    ]
    for folder in named:
        if Path(folder).is_dir():
            return Path(folder)
    problem = f"the corpus of the evaluation, {named[0]}, is not there" if named else "the evaluations do not say where their corpus is"
    raise InputError(f"{problem}, and the page shows its images", hint="name it with --data DIR")


def _queries(report: ComparisonReport, pairwise: PairwiseComparison) -> Iterator[tuple[str, list[_Query]]]:
    """Headings and queries: better and worse ones for each direction."""
    # Four lists per comparison: better and worse, in two directions.
    limit = max(1, MAX_QUERIES // (4 * len(report.comparisons)))
    for direction in Direction:
        shifts = pairwise.shifts[direction]
        kind = f"{direction.query}s"
        for verb, listed, count in (("better", shifts.better, shifts.num_better), ("worse", shifts.worse, shifts.num_worse)):
            shown = listed[:limit]
            title = f"{pairwise.letter} {verb} than {report.base}, {direction.title}: {len(shown):,} of {count:,} {kind}"
            yield title, _with_answers(report, pairwise, direction, shown)


def _with_answers(
    report: ComparisonReport, pairwise: PairwiseComparison, direction: Direction, shifts: Iterable[RankShift]
) -> list[_Query]:
    shifts = list(shifts)
    queries = [shift.query for shift in shifts]
    both = [_first_answers(system, direction, queries) for system in (report.systems[report.base], pairwise.system)]
    return [
        _Query(
            direction=direction,
            index=shift.query,
            letters=(report.base, pairwise.letter),
            ranks=(shift.base, shift.ours),
            top=(both[0].get(shift.query, []), both[1].get(shift.query, [])),
        )
        for shift in shifts
    ]


def _first_answers(system: System, direction: Direction, queries: list[int]) -> dict[int, list[_Ranked]]:
    """The first answers to each query, by the system's first run."""
    answers = system.runs[0].result.answers if queries else None
    if answers is None or not answers.top:
        return {}
    top = answers.top[direction]
    columns = (top.candidate_QK, top.score_QK, top.is_positive_QK)
    return {
        query: [_Ranked(*row) for row in zip(*(column[query, :NUM_ANSWERS].tolist() for column in columns), strict=True)]
        for query in queries
    }


@dataclass(frozen=True)
class _Images:
    """The images of a page by their index."""

    queries: dict[int, EmbeddedImage]
    answers: dict[int, EmbeddedImage]


@dataclass(frozen=True)
class _AnswerView:
    text: str
    """The caption, or the first caption of the image."""
    image: EmbeddedImage | None
    score: float
    is_own: bool


@dataclass(frozen=True)
class _ColumnView:
    """The rank and first answers of a system for a query."""

    letter: str
    ranks: tuple[int, ...]
    answers: list[_AnswerView]


@dataclass(frozen=True, kw_only=True)
class _QueryView:
    """A query as the template reads it."""

    image: EmbeddedImage
    image_id: str
    alt: str
    caption: str
    """The query if it is a caption; else empty."""
    captions: list[str]
    """The captions of the query if it is an image; else empty."""
    columns: list[_ColumnView]


def _embedded_images(corpus: Corpus, queries: list[_Query]) -> _Images:
    shown = (query.image(corpus) for query in queries)
    ranked = (answer.candidate for query in queries if query.direction == Direction.IMAGE for top in query.top for answer in top)
    return _Images(_embed(corpus, shown, QUERY_PX), _embed(corpus, ranked, ANSWER_PX))


def _embed(corpus: Corpus, images: Iterable[int], side_px: int) -> dict[int, EmbeddedImage]:
    # Each image once, in the order of the corpus, which is the fastest to read.
    return {image: html.embed_image(corpus.image(image), side_px) for image in sorted(set(images))}


def _query_view(query: _Query, corpus: Corpus, images: _Images) -> _QueryView:
    image, is_caption = query.image(corpus), query.direction == Direction.IMAGE
    columns = [
        _ColumnView(letter, ranks, [_answer_view(query.direction, answer, corpus, images) for answer in top])
        for letter, ranks, top in zip(query.letters, query.ranks, query.top, strict=True)
    ]
    return _QueryView(
        image=images.queries[image],
        image_id=corpus.image_ids[image],
        alt=_first_caption(corpus, image),
        caption=corpus.captions[query.index] if is_caption else "",
        captions=[] if is_caption else [corpus.captions[caption] for caption in corpus.captions_of(image)],
        columns=columns,
    )


def _answer_view(direction: Direction, answer: _Ranked, corpus: Corpus, images: _Images) -> _AnswerView:
    if direction == Direction.TEXT:
        return _AnswerView(corpus.captions[answer.candidate], None, answer.score, answer.is_own)
    return _AnswerView(_first_caption(corpus, answer.candidate), images.answers[answer.candidate], answer.score, answer.is_own)


def _first_caption(corpus: Corpus, image: int) -> str:
    return corpus.captions[corpus.captions_of(image)[0]]
