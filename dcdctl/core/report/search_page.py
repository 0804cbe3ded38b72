"""The page of `dcdctl search`: the answer to one search."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dcdctl.core.progress import Advance, Track, silent
from dcdctl.core.report import html
from dcdctl.core.search import (
    CombinedQuery,
    ImageIndex,
    Question,
    SearchAnswer,
    as_text,
    caption_of,
    columns_text,
    image_of,
    read_image,
    title_of,
)

IMAGE_PX = 240


def write_search_page(
    path: Path, index: ImageIndex, question: Question, answer: SearchAnswer, track: Track = silent
) -> None:
    """Write the page of an answer: the hits with small images, and the query's own image if it is in a file.

    InputError if the file cannot be written.
    """
    given = question.image if isinstance(question, CombinedQuery) else question
    query_image = html.embed_image(read_image(given), IMAGE_PX) if isinstance(given, Path) else None
    total = index.num_images if answer.total is None else answer.total
    with track("read images", total=len(answer.hits), unit="images") as advance:
        cards = list(_hit_cards(index, answer, advance))
    html.write(
        path,
        "search_results.html",
        title=as_text(title_of(question)),
        query_image=query_image,
        counts=f"{len(answer.hits):,} of {total:,} images, model {index.fingerprint[:8]}",
        notes=answer.notes,
        cards=cards,
    )


def _hit_cards(index: ImageIndex, answer: SearchAnswer, advance: Advance) -> Iterator[dict[str, object]]:
    for hit in answer.hits:
        logit = [] if hit.reranked is None else [f"logit {hit.reranked:.3f}"]
        score = [] if hit.score is None else [f"{index.stored_type.score_name} {hit.score:.4f}"]
        bm25 = [] if hit.bm25 is None else [f"BM25 {hit.bm25:.3f}"]
        image = image_of(index, hit.row)  # None if it is gone
        yield {
            "image": None if image is None else html.embed_image(image, IMAGE_PX),
            "name": as_text(hit.name),
            "scores": " \N{MIDDLE DOT} ".join([*logit, *score, *bm25]),
            "columns": columns_text(hit),
            "caption": caption_of(index, hit.row),
        }
        advance(1)
