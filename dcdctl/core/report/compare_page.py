"""The page of `dcdctl compare`: tables, and the queries whose ranks differ most, with images and first answers of both
systems.

A system with several runs shows the first answers of its first run.
"""

from __future__ import annotations

from pathlib import Path

from dcdctl.core import arguments, evaluation
from dcdctl.core.data import Corpus, Direction
from dcdctl.core.evaluation import CompareJob, Comparison, PairwiseComparison, RankShift, SavedEvaluation
from dcdctl.core.report import html
from dcdctl.core.report.gallery import ModelColumn, Query, captions_of, first_answers, query_of
from dcdctl.core.report.html import EmbeddedImage
from dcdctl.core.report.report import open_corpus

# Enough to recognize a photo.
QUERY_PX = 160
ANSWER_PX = 72
MAX_QUERIES = 80
"""Queries on a page, over all comparisons; this keeps the page under 3 MB."""


def write_page_of(job: CompareJob, comparison: Comparison) -> bool:
    """Write the page that a job asks for. False if the images of its queries are not there, so that it has only their
    names."""
    assert job.html is not None
    needs_images = comparison.lists_queries
    corpus = open_corpus(comparison.evaluation, arguments.optional_path(job.data)) if needs_images else None
    write_comparison_page(arguments.path(job.html), comparison, corpus)
    return corpus is not None or not needs_images


def write_comparison_page(path: Path, comparison: Comparison, corpus: Corpus | None) -> None:
    """Write the page of a comparison; without a corpus it has the names of the images, and no image."""
    sections = _sections(comparison)
    queries: set[int] = set()
    answers: set[int] = set()
    for section in sections.values():
        for query in section:
            queries.add(query.image)
            if query.direction == Direction.IMAGE:
                for column in query.columns:
                    answers.update(answer.candidate for answer in column.answers)
    summary, *tables = evaluation.comparison_tables(comparison)
    base = comparison.names[comparison.base]
    details = {}
    for pairwise, table in zip(comparison.comparisons, tables, strict=True):
        details[f"{comparison.names[pairwise.letter]} compared with {base}"] = table
    html.write(
        path,
        "comparison.html",
        title=f"Compared with {base}",
        total_title=comparison.estimates[comparison.base].total_title,
        verdicts=comparison.verdicts,
        facts=evaluation.comparison_facts(comparison),
        summary=summary,
        details=details,
        has_images=corpus is not None,
        how_to_read=evaluation.how_to_read(comparison),
        sections=sections,
        query_images=_embed(corpus, queries, QUERY_PX),
        answer_images=_embed(corpus, answers, ANSWER_PX),
        # What stands in place of an image: its first caption.
        alt={image: captions_of(comparison.queries, image)[0] for image in queries | answers},
    )


def _sections(comparison: Comparison) -> dict[str, list[Query]]:
    """Better and worse queries for each comparison and direction, by their heading."""
    # Four lists per comparison: better and worse, in two directions.
    limit = max(1, MAX_QUERIES // (4 * len(comparison.comparisons)))
    sections = {}
    for pairwise in comparison.comparisons:
        ours, base = comparison.names[pairwise.letter], comparison.names[comparison.base]
        for direction, shifts in pairwise.shifts.items():
            of_verbs = {"better": (shifts.better, shifts.num_better), "worse": (shifts.worse, shifts.num_worse)}
            for verb, (listed, count) in of_verbs.items():
                section = []
                for shift in listed[:limit]:
                    columns = _columns(comparison, pairwise, direction, shift)
                    section.append(query_of(comparison.queries, direction, shift.query, columns))
                if section:
                    shown = f"{len(section):,} of {count:,} {direction.query}s"
                    sections[f"{ours} {verb} than {base}, {direction.title}: {shown}"] = section
    return sections


def _columns(
    comparison: Comparison, pairwise: PairwiseComparison, direction: Direction, shift: RankShift
) -> list[ModelColumn]:
    """The base, then the other system."""
    columns = []
    for letter, ranks in ((comparison.base, shift.base), (pairwise.letter, shift.ours)):
        run = comparison.systems[letter].runs[0]
        assert isinstance(run, SavedEvaluation)  # agreements list no queries
        answers = first_answers(comparison.queries, run, direction, shift.query)
        columns.append(ModelColumn(comparison.names[letter], ranks, answers))
    return columns


def _embed(corpus: Corpus | None, images: set[int], side_px: int) -> dict[int, EmbeddedImage]:
    """Each image once, in the order of the corpus, which is the fastest to read; none without a corpus."""
    if corpus is None:
        return {}
    return {image: html.embed_image(corpus.image(image), side_px) for image in sorted(images)}
