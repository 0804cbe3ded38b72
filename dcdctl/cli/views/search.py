"""How `dcdctl search` shows its results."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from dcdctl.cli.views.terminal import note, printable, show, show_error, show_exactly, show_json
from dcdctl.core.errors import DcdError
from dcdctl.core.progress import counted

if TYPE_CHECKING:
    from dcdctl.core.search import Condition, ImageIndex, IndexSearcher, Question, SearchAnswer


def show_answer(index: ImageIndex, question: Question, answer: SearchAnswer, *, as_json: bool) -> None:
    """Show an answer: one hit per line, or a JSON document."""
    if as_json:
        from dcdctl.core.search import answer_document

        return show_json(answer_document(question, answer, index))
    _show_hits(index, answer)
    _show_notes(answer)
    ms = 1000 * (answer.encode_seconds + answer.find_seconds + answer.rerank_seconds)
    total = index.num_images if answer.total is None else answer.total
    note(f"{len(answer.hits):,} of {counted(total, 'images')} in {ms:.1f} ms")


def show_paths(answer: SearchAnswer, *, end: str) -> None:
    """Print the path of each hit, as other programs read it; a terminal gets it with characters that do not print
    escaped."""
    paths = [str(hit.path) for hit in answer.hits if hit.path is not None]
    if end == "\n" and (broken := [path for path in paths if "\n" in path]):
        from dcdctl.core.errors import InputError

        raise InputError(
            f"the path {broken[0]!r} has a line break, so lines cannot tell paths apart",
            hint="add -0, or rename the file",
        )
    for path in paths:
        show_exactly(f"{path}{end}", on_terminal=printable(path))
    _show_notes(answer)
    if others := len(answer.hits) - len(paths):
        note(f"note: {counted(others, 'images')} of a corpus have no file of their own, and are left out")


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
            names = [hit.name for hit in answer.hits]
            show("\t".join(map(printable, [text, *names])))
            _show_notes(answer)
    return int(num_failed > 0)


def _show_notes(answer: SearchAnswer) -> None:
    for text in answer.notes:
        note(f"note: {printable(text)}")


def _show_hits(index: ImageIndex, answer: SearchAnswer) -> None:
    from dcdctl.core.search import columns_text

    # Title, width, and the text of each hit; the name comes last.
    columns = [("#", 4, [str(place) for place in range(1, len(answer.hits) + 1)])]
    if any(hit.reranked is not None for hit in answer.hits):
        columns.append(("logit", 8, [_number(hit.reranked) for hit in answer.hits]))
    if any(hit.score is not None for hit in answer.hits):
        columns.append((index.stored_type.score_name, 6, [f"{hit.score:.4f}" for hit in answer.hits]))
    if any(hit.fused is not None for hit in answer.hits):
        columns.append(("BM25", 6, [_number(hit.bm25) for hit in answer.hits]))
    indent = "  ".join(" " * width for _, width, _ in columns) + "  "
    show("  ".join([*(f"{title:>{width}}" for title, width, _ in columns), "image"]))
    for place, hit in enumerate(answer.hits):
        show("  ".join([*(f"{texts[place]:>{width}}" for _, width, texts in columns), printable(hit.name)]))
        copies = [f"{1 + len(hit.copies)} copies"] if hit.copies else []
        if details := ", ".join(filter(None, [*copies, columns_text(hit)])):
            show(indent + printable(details))


def _number(value: float | None) -> str:
    """A score as text; a hyphen for none."""
    return "-" if value is None else f"{value:.3f}"
