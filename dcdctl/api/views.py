"""Answers as HTML for notebooks, with small images. Every text is escaped."""

from __future__ import annotations

import os
from pathlib import Path

from PIL import Image

from dcdctl.core import report, templates
from dcdctl.core.search import (
    Browse,
    CombinedQuery,
    ImageIndex,
    SearchAnswer,
    caption_of,
    columns_text,
    image_of,
    title_of,
)

Query = str | os.PathLike[str] | Image.Image
"""A text, the path of an image file, or an image in memory."""
AnyQuery = Query | CombinedQuery | Browse
"""What an answer is to."""
# Four in a row fit the width of a notebook cell on a small screen.
THUMBNAIL_PX = 112
NUM_SHOWN = 20
"""Images of an answer that are shown: an output stays in the notebook's file."""


def answer_html(query: AnyQuery, answer: SearchAnswer, index: ImageIndex) -> str:
    """The images of an answer with their names and scores."""
    cards, notes = [], list(answer.notes)
    for hit in answer.hits[:NUM_SHOWN]:
        image = image_of(index, hit.row)
        score = hit.score if hit.reranked is None else hit.reranked
        cards.append(
            {
                # A small image as a data: URL; None if it is gone or damaged.
                "image": None if image is None else report.embed_image(image, THUMBNAIL_PX).source,
                "name": hit.name,
                "score": "" if score is None else f"{score:.3f}",
                "columns": columns_text(hit),
                "caption": caption_of(index, hit.row),
            }
        )
    if rest := len(answer.hits) - len(cards):
        notes.append(f"{rest:,} more images are not shown")
    total = index.num_images if answer.total is None else answer.total
    title = f"{query_text(query)}: {len(answer.hits):,} of {total:,} images"
    return templates.render("notebook.html", title=title, tables=[], cards=cards, notes=notes)


def query_text(query: AnyQuery) -> str:
    """A query in words: a text in quotes, the name of an image file, or the size of an image in memory.

    >>> query_text("a dog"), query_text(Image.new("L", (3, 2)))
    ("'a dog'", 'an image of 3 x 2 pixels')
    """
    if isinstance(query, Image.Image):
        return f"an image of {query.width} x {query.height} pixels"
    if isinstance(query, CombinedQuery | Browse):
        return title_of(query)
    return repr(query) if isinstance(query, str) else Path(query).name
