"""How `dcdctl search` shows its results."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from dcdctl.cli.views.terminal import note, printable, show, show_error, show_json
from dcdctl.core.errors import DcdError
from dcdctl.core.progress import counted

if TYPE_CHECKING:
    from dcdctl.core.search import Condition, ImageIndex, IndexSearcher, SearchAnswer


def show_answer(index: ImageIndex, question: str | Path, answer: SearchAnswer, *, as_json: bool) -> None:
    """Show an answer: one hit per line, or a JSON document."""
    if as_json:
        from dcdctl.core.search import answer_document

        return show_json(answer_document(question, answer, index))
    _show_hits(index, answer)
    _show_notes(answer)
    ms = 1000 * (answer.encode_seconds + answer.find_seconds + answer.rerank_seconds)
    note(f"{len(answer.hits):,} of {counted(index.num_images, 'images')} in {ms:.1f} ms")


def answer_lines(searcher: IndexSearcher, k: int, where: Condition | None, *, hybrid: bool, as_json: bool) -> int:
    """Answer each line of stdin as it arrives; 1 if a line could not be answered, otherwise 0.

    An answer is one line: the query and the names of the hits, separated by tabs, or a JSON document.
    """
    from dcdctl.core.search import answer_document, as_text

    num_failed = 0
    # Bytes, because one line that is not UTF-8 must not end the others; files from Windows may begin with a byte order
    # mark.
    for number, raw in enumerate(sys.stdin.buffer, start=1):
        text = raw.decode("utf-8", "surrogateescape").removeprefix("\ufeff").strip()
        if not text:
            continue
        try:
            answer = searcher.by_text(text, k, where, hybrid=hybrid)
        except DcdError as error:
            num_failed += 1
            failure = {"query": {"text": as_text(text)}, "error": as_text(str(error))}
            if as_json:
                show_json(failure, indent=None)
            else:
                show(printable(as_text(text)))
            show_error(DcdError(f"line {number:,}: {error}"))
            continue
        if as_json:
            show_json(answer_document(text, answer, searcher.index), indent=None)
        else:
            show("\t".join(printable(each) for each in (text, *(hit.name for hit in answer.hits))))
            _show_notes(answer)
    return int(num_failed > 0)


def _show_notes(answer: SearchAnswer) -> None:
    for text in answer.notes:
        note(f"note: {printable(text)}")


def _show_hits(index: ImageIndex, answer: SearchAnswer) -> None:
    from dcdctl.core.search import columns_text

    is_reranked = any(hit.reranked is not None for hit in answer.hits)
    is_hybrid = any(hit.fused is not None for hit in answer.hits)
    show(
        "  ".join([f"{'#':>4}", *([f"{'logit':>8}"] * is_reranked), "cosine", *([f"{'BM25':>6}"] * is_hybrid), "image"])
    )
    for position, hit in enumerate(answer.hits, start=1):
        logit = f"{'-' if hit.reranked is None else f'{hit.reranked:.3f}':>8}  " if is_reranked else ""
        bm25 = f"{'-' if hit.bm25 is None else f'{hit.bm25:.3f}':>6}  " if is_hybrid else ""
        show(f"{position:>4}  {logit}{hit.score:>6.4f}  {bm25}{printable(hit.name)}")
        if columns := columns_text(hit):
            show(f"{'':>{14 + 10 * is_reranked + 8 * is_hybrid}}{printable(columns)}")
