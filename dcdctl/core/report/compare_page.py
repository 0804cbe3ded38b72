"""The page of `dcdctl compare`: tables, and the queries whose ranks differ most, with images and first answers of both
systems.

For a system with several runs, the first answers are those of its first run.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dcdctl.core.data import CORPUS_FILE, Corpus, Direction, read_corpus_json
from dcdctl.core.errors import StaleError
from dcdctl.core.evaluation import ComparisonReport, PairwiseComparison, RankShift, RankTable, System
from dcdctl.core.files import shown
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
    names: tuple[str, str]
    ranks: tuple[tuple[int, ...], tuple[int, ...]]
    top: tuple[list[_Ranked], list[_Ranked]]
    """Empty if they were not kept."""

    def image(self, queries: RankTable) -> int:
        """The query image, or the image of the query caption."""
        return self.index if self.direction == Direction.TEXT else int(queries.caption_image[self.index])


@dataclass(frozen=True)
class _Words:
    """The captions of the queries, from the corpus or from the table of ranks, and the images if they were found."""

    queries: RankTable
    captions: Sequence[str]
    corpus: Corpus | None

    @staticmethod
    def of(report: ComparisonReport, corpus: Corpus | None) -> _Words:
        if corpus is not None:
            return _Words(report.queries, corpus.captions, corpus)
        tables = (run.result.answers for system in report.systems.values() for run in system.runs)
        found = next((answers.captions for answers in tables if answers is not None and any(answers.captions)), None)
        ids = [f"caption {number}" for number in report.queries.caption_ids]
        return _Words(report.queries, found or ids, None)

    def of_image(self, image: int) -> list[str]:
        """The captions of an image."""
        return [self.captions[caption] for caption in np.flatnonzero(self.queries.caption_image == image).tolist()]


def open_corpus(report: ComparisonReport, data: Path | None = None) -> Corpus | None:
    """The corpus of the queries: `data`, or the folder that an evaluation names; None if that one is not known, not
    there, or changed.

    StaleError if `data` has other images or captions.
    """
    queries, summary = report.queries, report.summary
    folder = _known_folder(report) if data is None else data
    if folder is None:
        return None
    splits = list(read_corpus_json(folder).splits) if summary is None else [summary.split]
    for split in splits:
        corpus = Corpus.open(folder, split, len(queries.image_ids))
        if tuple(corpus.image_ids) == queries.image_ids and np.array_equal(corpus.caption_ids, queries.caption_ids):
            return corpus
    if data is None:
        return None
    expected = f"the {len(queries.image_ids):,} images and {len(queries.caption_ids):,} captions of the ranks"
    raise StaleError(
        f"{shown(folder)} does not have {expected} in {' or '.join(splits)}", hint="name their corpus with --data DIR"
    )


def write_comparison_page(path: Path, report: ComparisonReport, corpus: Corpus | None) -> None:
    """Write the page of a comparison; without a corpus it has the names of the images, and no image."""
    words = _Words.of(report, corpus)
    sections = {
        heading: queries
        for pairwise in report.comparisons
        for heading, queries in _queries(report, pairwise)
        if queries
    }
    images = _embedded_images(words, [query for queries in sections.values() for query in queries])
    html.write(
        path,
        "comparison.html",
        title=f"Compared with {report.names[report.base]}",
        facts=compare_tables.comparison_facts(report),
        summary=compare_tables.comparison_summary(report),
        comparisons=[
            {
                "heading": f"{report.names[pairwise.letter]} compared with {report.names[report.base]}",
                "details": compare_tables.comparison_details(report, pairwise),
                "rank_changes": compare_tables.rank_changes(report, pairwise),
            }
            for pairwise in report.comparisons
        ],
        has_images=corpus is not None,
        how_to_read=compare_tables.how_to_read(report),
        sections=[
            {"heading": heading, "queries": [_query_view(query, words, images) for query in queries]}
            for heading, queries in sections.items()
        ],
    )


def _known_folder(report: ComparisonReport) -> Path | None:
    """The first folder that an evaluation names and that still holds a corpus."""
    named = [
        run.result.summary.data
        for system in report.systems.values()
        for run in system.runs
        if run.result.summary is not None and run.result.summary.data is not None
    ]
    return next((Path(folder) for folder in named if (Path(folder) / CORPUS_FILE).is_file()), None)


def _queries(report: ComparisonReport, pairwise: PairwiseComparison) -> Iterator[tuple[str, list[_Query]]]:
    """Headings and queries: better and worse ones for each direction."""
    # Four lists per comparison: better and worse, in two directions.
    limit = max(1, MAX_QUERIES // (4 * len(report.comparisons)))
    ours, base = report.names[pairwise.letter], report.names[report.base]
    for direction in Direction:
        shifts = pairwise.shifts[direction]
        kind = f"{direction.query}s"
        for verb, listed, count in (
            ("better", shifts.better, shifts.num_better),
            ("worse", shifts.worse, shifts.num_worse),
        ):
            shown = listed[:limit]
            title = f"{ours} {verb} than {base}, {direction.title}: {len(shown):,} of {count:,} {kind}"
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
            names=(report.names[report.base], report.names[pairwise.letter]),
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
        query: [
            _Ranked(*row) for row in zip(*(column[query, :NUM_ANSWERS].tolist() for column in columns), strict=True)
        ]
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
    """The caption; for an image its first caption, or its id if there are no images."""
    image: EmbeddedImage | None
    score: float
    is_own: bool


@dataclass(frozen=True)
class _ColumnView:
    """The rank and first answers of a system for a query."""

    name: str
    ranks: tuple[int, ...]
    answers: list[_AnswerView]


@dataclass(frozen=True, kw_only=True)
class _QueryView:
    """A query as the template reads it."""

    image: EmbeddedImage | None
    image_id: str
    alt: str
    caption: str
    """The query if it is a caption; else empty."""
    captions: list[str]
    """The captions of the query if it is an image; else empty."""
    columns: list[_ColumnView]


def _embedded_images(words: _Words, queries: list[_Query]) -> _Images:
    if words.corpus is None:
        return _Images({}, {})
    shown = (query.image(words.queries) for query in queries)
    ranked = (
        answer.candidate
        for query in queries
        if query.direction == Direction.IMAGE
        for top in query.top
        for answer in top
    )
    return _Images(_embed(words.corpus, shown, QUERY_PX), _embed(words.corpus, ranked, ANSWER_PX))


def _embed(corpus: Corpus, images: Iterable[int], side_px: int) -> dict[int, EmbeddedImage]:
    # Each image once, in the order of the corpus, which is the fastest to read.
    return {image: html.embed_image(corpus.image(image), side_px) for image in sorted(set(images))}


def _query_view(query: _Query, words: _Words, images: _Images) -> _QueryView:
    image, is_caption = query.image(words.queries), query.direction == Direction.IMAGE
    columns = [
        _ColumnView(name, ranks, [_answer_view(query.direction, answer, words, images) for answer in top])
        for name, ranks, top in zip(query.names, query.ranks, query.top, strict=True)
    ]
    return _QueryView(
        image=images.queries.get(image),
        image_id=words.queries.image_ids[image],
        alt=words.of_image(image)[0],
        caption=words.captions[query.index] if is_caption else "",
        captions=[] if is_caption else words.of_image(image),
        columns=columns,
    )


def _answer_view(direction: Direction, answer: _Ranked, words: _Words, images: _Images) -> _AnswerView:
    if direction == Direction.TEXT:
        return _AnswerView(words.captions[answer.candidate], None, answer.score, answer.is_own)
    text = words.of_image(answer.candidate)[0] if words.corpus else words.queries.image_ids[answer.candidate]
    return _AnswerView(text, images.answers.get(answer.candidate), answer.score, answer.is_own)
