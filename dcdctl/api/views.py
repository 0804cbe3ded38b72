"""Results as HTML for notebooks: tables of numbers, and answers with small images. Every text is escaped."""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from dcdctl.core import data, report, templates
from dcdctl.core.data import Direction
from dcdctl.core.errors import MissingError, StaleError
from dcdctl.core.evaluation import KS, ComparisonReport
from dcdctl.core.search import ImageIndex, SearchAnswer, columns_text

THUMBNAIL_PX = 112
NUM_SHOWN = 20
"""Images of an answer that are shown: an output stays in the notebook's file."""
TEMPLATE = "notebook.html"


def evaluation_html(document: dict[str, Any]) -> str:
    """The table of `dcdctl eval`: recalls with their intervals, mAP@R and median ranks; with several depths, a row for
    each."""
    protocol, intervals = document["protocol"], document["intervals"]
    names = [f"R@{k}" for k in KS]
    rows = []
    for direction in Direction:
        measures, bounds = document[direction.key], intervals[direction.key]
        recalls = [f"{measures[name]:.2f} [{_interval(bounds[name])}]" for name in names]
        rows.append(
            [
                direction.title,
                *recalls,
                f"{measures['mAP@R']:.2f}",
                f"{measures['median_rank']:,.1f}".removesuffix(".0"),
            ]
        )
    kind = protocol["kind"] if protocol["depth"] is None else f"{protocol['kind']} of depth {protocol['depth']}"
    counts = f"{document['images']:,} images, {document['captions']:,} captions"
    title = f"{document['model']} ({kind}) on {document['split']}: {counts}"
    rsum = (
        f"RSUM {document['rsum']:.2f} [{_interval(intervals['rsum'])}]; [low, high]: {intervals['level']:.0%} "
        "interval over images"
    )
    tables = [(["", *names, "mAP@R", "median rank"], rows)]
    if depths := document.get("depths"):
        cells = [[f"{depth['depth']}", f"{depth['rsum']:.2f}", f"{depth['ms_per_query']:,.2f} ms"] for depth in depths]
        tables.append((["depth", "RSUM", "per query"], cells))
    return templates.render(TEMPLATE, title=title, tables=tables, cards=[], notes=[rsum])


def comparison_html(comparison: ComparisonReport) -> str:
    """The tables of `dcdctl compare`: RSUM and p-values of each system, and the recalls against the base."""
    tables = [report.comparison_summary(comparison)]
    tables += [report.comparison_details(comparison, pairwise) for pairwise in comparison.comparisons]
    facts = [f"{name}: {value}" for name, value in report.comparison_facts(comparison)]
    return templates.render(
        TEMPLATE, title="; ".join(facts), tables=tables, cards=[], notes=report.how_to_read(comparison)
    )


def answer_html(query: str | os.PathLike[str] | Image.Image, answer: SearchAnswer, index: ImageIndex) -> str:
    """The images of an answer with their names and scores."""
    shown = answer.hits[:NUM_SHOWN]
    cards = [
        {
            "image": _thumbnail(index, hit.row),
            "name": hit.name,
            "score": f"{hit.score if hit.reranked is None else hit.reranked:.3f}",
            "columns": columns_text(hit),
        }
        for hit in shown
    ]
    rest = len(answer.hits) - len(shown)
    notes = [*answer.notes, *([f"{rest:,} more images are not shown"] if rest else [])]
    title = f"{query_text(query)}: {len(answer.hits):,} of {index.num_images:,} images"
    return templates.render(TEMPLATE, title=title, tables=[], cards=cards, notes=notes)


def query_text(query: str | os.PathLike[str] | Image.Image) -> str:
    """A query in words: a text in quotes, the name of an image file, or the size of an image in memory.

    >>> query_text("a dog"), query_text(Image.new("L", (3, 2)))
    ("'a dog'", 'an image of 3 x 2 pixels')
    """
    if isinstance(query, Image.Image):
        return f"an image of {query.width} x {query.height} pixels"
    return repr(query) if isinstance(query, str) else Path(query).name


def _interval(bounds: Sequence[float]) -> str:
    low, high = bounds
    return f"{low:.1f}, {high:.1f}"


def _thumbnail(index: ImageIndex, row: int) -> str | None:
    """A small JPEG as a data: URL; None if the image is gone or damaged."""
    try:
        small = data.thumbnail(index.image_bytes(row), THUMBNAIL_PX)
    except (MissingError, StaleError, data.ImageError):
        return None
    return f"data:image/jpeg;base64,{base64.b64encode(small).decode()}"
