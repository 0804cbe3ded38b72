"""The page of `dcdctl compare`: tables, and the queries whose ranks differ most, with images and first answers of both
systems.

A system with several runs shows the first answers of its first run.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from dcdctl.core import evaluation
from dcdctl.core.data import CORPUS_FILE, Corpus, Direction, read_corpus_json
from dcdctl.core.errors import StaleError
from dcdctl.core.evaluation import Comparison, PairwiseComparison, RankShift, RankTable
from dcdctl.core.places import shown
from dcdctl.core.report import html
from dcdctl.core.report.gallery import ModelColumn, Query, captions_of, first_answers, query_of
from dcdctl.core.report.html import EmbeddedImage

# Enough to recognize a photo.
QUERY_PX = 160
ANSWER_PX = 72
MAX_QUERIES = 80
"""Queries on a page, over all comparisons; this keeps the page under 3 MB."""


def open_corpus(comparison: Comparison, data: Path | None = None) -> Corpus | None:
    """The corpus of the queries: `data`, or the folder that an evaluation names; None if that one is not known, not
    there, or changed.

    StaleError if `data` has other images or captions.
    """
    queries, measured = comparison.queries, comparison.evaluation
    runs = (run for system in comparison.systems.values() for run in system.runs)
    named = [Path(run.evaluation.data) for run in runs if run.evaluation is not None] if data is None else [data]
    # The folder of an evaluation may be gone; the user's is opened in any case, for the error that says what is wrong.
    folder = next((folder for folder in named if data is not None or (folder / CORPUS_FILE).is_file()), None)
    if folder is None:
        return None
    splits = list(read_corpus_json(folder).splits) if measured is None else [measured.split]
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


def write_comparison_page(path: Path, comparison: Comparison, corpus: Corpus | None) -> None:
    """Write the page of a comparison; without a corpus it has the names of the images, and no image."""
    table = replace(comparison.queries, captions=_captions(comparison, corpus))
    sections = _sections(comparison, table)
    on_page = [query for section in sections.values() for query in section]
    answered = [
        answer.candidate
        for query in on_page
        if query.direction == Direction.IMAGE
        for column in query.columns
        for answer in column.answers
    ]
    summary, *details = evaluation.comparison_tables(comparison)
    base = comparison.names[comparison.base]
    html.write(
        path,
        "comparison.html",
        title=f"Compared with {base}",
        facts=evaluation.comparison_facts(comparison),
        summary=summary,
        details={
            f"{comparison.names[pairwise.letter]} compared with {base}": table
            for pairwise, table in zip(comparison.comparisons, details, strict=True)
        },
        has_images=corpus is not None,
        how_to_read=evaluation.how_to_read(comparison),
        sections=sections,
        query_images=_embed(corpus, (query.image for query in on_page), QUERY_PX),
        answer_images=_embed(corpus, answered, ANSWER_PX),
        # What stands in place of an image: its first caption.
        alt={image: captions_of(table, image)[0] for image in {*(query.image for query in on_page), *answered}},
    )


def _captions(comparison: Comparison, corpus: Corpus | None) -> tuple[str, ...]:
    """The captions of the queries: of the corpus, or of a table of ranks, or else their numbers."""
    if corpus is not None:
        return tuple(corpus.captions)
    tables = (table for system in comparison.systems.values() for table in system.tables)
    saved = next((table.captions for table in tables if any(table.captions)), None)
    return saved or tuple(f"caption {number}" for number in comparison.queries.caption_ids)


def _sections(comparison: Comparison, table: RankTable) -> dict[str, list[Query]]:
    """Better and worse queries for each comparison and direction, by their heading."""
    # Four lists per comparison: better and worse, in two directions.
    limit = max(1, MAX_QUERIES // (4 * len(comparison.comparisons)))
    sections = {}
    for pairwise in comparison.comparisons:
        ours, base = comparison.names[pairwise.letter], comparison.names[comparison.base]
        for direction, shifts in pairwise.shifts.items():
            for verb, listed, count in (
                ("better", shifts.better, shifts.num_better),
                ("worse", shifts.worse, shifts.num_worse),
            ):
                title = f"{ours} {verb} than {base}, {direction.title}: {len(listed[:limit]):,} of {count:,} "
                sections[f"{title}{direction.query}s"] = [
                    query_of(table, direction, shift.query, _columns(comparison, pairwise, direction, shift, table))
                    for shift in listed[:limit]
                ]
    return {heading: section for heading, section in sections.items() if section}


def _columns(
    comparison: Comparison, pairwise: PairwiseComparison, direction: Direction, shift: RankShift, table: RankTable
) -> list[ModelColumn]:
    """The base, then the other system."""
    return [
        ModelColumn(
            comparison.names[letter],
            ranks,
            first_answers(table, comparison.systems[letter].runs[0], direction, shift.query),
        )
        for letter, ranks in ((comparison.base, shift.base), (pairwise.letter, shift.ours))
    ]


def _embed(corpus: Corpus | None, images: Iterable[int], side_px: int) -> dict[int, EmbeddedImage]:
    """Each image once, in the order of the corpus, which is the fastest to read; none without a corpus."""
    if corpus is None:
        return {}
    return {image: html.embed_image(corpus.image(image), side_px) for image in sorted(set(images))}
