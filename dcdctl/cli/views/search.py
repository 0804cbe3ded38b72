"""How `dcdctl search` shows its results."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dcdctl.cli.views import images
from dcdctl.cli.views.terminal import note, printable, show, show_image, show_json

if TYPE_CHECKING:
    from dcdctl.core.search import Answer, ImageIndex


@dataclass(frozen=True)
class View:
    """Text or JSON, with images between the lines of text if there is a graphics protocol."""

    is_json: bool
    protocol: str | None


def show_answer(view: View, index: ImageIndex, question: str | Path, answer: Answer) -> None:
    """Show an answer: one hit per line, or a JSON document."""
    if view.is_json:
        from dcdctl.core.search import answer_document

        return show_json(answer_document(question, answer, index))
    _show_hits(view, index, answer)
    _show_notes(answer)
    note(f"{len(answer.hits):,} of {index.num_images:,} images in {_times(answer)}")


def show_line(view: View, index: ImageIndex, question: str, answer: Answer) -> None:
    """Show an answer on one line: the query and the names of the hits, separated by tabs, or a JSON document."""
    if view.is_json:
        from dcdctl.core.search import answer_document

        return show_json(answer_document(question, answer, index), indent=None)
    show("\t".join(printable(text) for text in (question, *(hit.name for hit in answer.hits))))
    _show_notes(answer)


def show_failure(view: View, question: str, error: Exception) -> None:
    """Show the line of a query that could not be answered."""
    from dcdctl.core.search import as_text

    if view.is_json:
        return show_json({"query": {"text": as_text(question)}, "error": as_text(str(error))}, indent=None)
    show(printable(as_text(question)))


def _show_notes(answer: Answer) -> None:
    for text in answer.notes:
        note(f"note: {printable(text)}")


def _show_hits(view: View, index: ImageIndex, answer: Answer) -> None:
    from dcdctl.core.search import columns_text, image_of

    is_reranked = any(hit.reranked is not None for hit in answer.hits)
    is_hybrid = any(hit.fused is not None for hit in answer.hits)
    show(
        "  ".join([f"{'#':>4}", *([f"{'logit':>8}"] * is_reranked), "cosine", *([f"{'BM25':>6}"] * is_hybrid), "image"])
    )
    for position, hit in enumerate(answer.hits, start=1):
        logit = f"{'-' if hit.reranked is None else f'{hit.reranked:.3f}':>8}  " if is_reranked else ""
        bm25 = f"{'-' if hit.bm25 is None else f'{hit.bm25:.3f}':>6}  " if is_hybrid else ""
        gone = "" if index.has_image(hit.row) else "  (gone)"
        show(f"{position:>4}  {logit}{hit.score:>6.4f}  {bm25}{printable(hit.name)}{gone}")
        if columns := columns_text(hit):
            show(f"{'':>{14 + 10 * is_reranked + 8 * is_hybrid}}{printable(columns)}")
        if view.protocol is not None and (image := image_of(index, hit.row)) is not None:
            show_image(images.escape_sequence(image, view.protocol).removesuffix("\n"))


def _times(answer: Answer) -> str:
    parts = {"encoding": answer.encode_seconds, "search": answer.find_seconds, "re-ranking": answer.rerank_seconds}
    details = ", ".join(f"{name} {1000 * seconds:.1f}" for name, seconds in parts.items() if seconds)
    return f"{1000 * sum(parts.values()):.1f} ms ({details})"
