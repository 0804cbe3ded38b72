"""`dcdctl search`: the images of an index that match a text or resemble an image."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dcdctl.cli.options import AnyIndex, Depth, Device, Json, Page, Rerank, RerankSet, StoreModel, Threads
from dcdctl.cli.views.terminal import bar, note, printable

if TYPE_CHECKING:
    from dcdctl.core.search import Condition, ImageIndex, IndexSearcher, SearchAnswer

Words = Annotated[
    list[str] | None,
    typer.Argument(
        help="What the images show; without a text and --image, one query per line of stdin.",
        metavar="TEXT",
    ),
]
ImageFile = Annotated[Path | None, typer.Option("--image", help="Find images that resemble this one.", metavar="FILE")]
NumAnswers = Annotated[int, typer.Option("--k", "-k", help="Number of images to find.", min=1, metavar="N")]
Hybrid = Annotated[
    bool,
    typer.Option(
        "--hybrid", help="Rank by the words of captions and file names too; the index needs `dcdctl index --keywords`."
    ),
]
Where = Annotated[
    str | None,
    typer.Option(
        "--where",
        help="Only images whose columns meet a condition: \"year >= 2020 and owner = 'x'\".",
        metavar="CONDITION",
    ),
]


def search(
    index: AnyIndex,
    text: Words = None,
    image: ImageFile = None,
    k: NumAnswers = 10,
    where: Where = None,
    hybrid: Hybrid = False,
    model: StoreModel = None,
    rerank: Rerank = None,
    rerank_set: RerankSet = None,
    depth: Depth = None,
    html: Page = None,
    json: Json = False,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Find images by a text or by an image. Without a query it answers each line of stdin."""
    from dcdctl.cli.views.search import answer_lines, show_answer

    question = _question(text, image)
    _check_usage(question, rerank, depth, html, hybrid)
    reranking = {"rerank": rerank, "depth": depth, "rerank_set": rerank_set or ()}
    searcher, condition = _open((index, model), question, where, hybrid, reranking, (device, threads))
    if question is None:
        raise typer.Exit(answer_lines(searcher, k, condition, hybrid=hybrid, as_json=json))
    answer = searcher.ask(question, k, condition, hybrid=hybrid)
    show_answer(searcher.index, question, answer, as_json=json)
    if html is not None:
        _write_page(html, searcher.index, question, answer)


def _question(text: list[str] | None, image: Path | None) -> str | Path | None:
    """The query: a text, of one argument or several, or an image file; None if queries come from stdin."""
    if text and image is not None:
        raise typer.BadParameter("cannot be combined with a text: give one of them", param_hint="--image")
    if image is None and not text:
        if sys.stdin.isatty():
            raise typer.BadParameter(
                "is missing: give a text or --image, or one query per line of stdin", param_hint="TEXT"
            )
        return None
    from dcdctl.core.search import check_query, looks_like_a_path

    question = image or " ".join(text or [])
    if isinstance(question, str) and (warning := looks_like_a_path(question)):
        note(printable(warning))
    check_query(question)
    return question


def _check_usage(
    question: str | Path | None, rerank: str | None, depth: int | None, html: Path | None, hybrid: bool
) -> None:
    """A usage error for options that would have no effect, before a model is loaded."""
    if depth is not None and rerank is None:
        raise typer.BadParameter("is the number of candidates to re-rank: add --rerank REF", param_hint="--depth")
    if rerank is not None and isinstance(question, Path):
        raise typer.BadParameter(
            "scores an image with a text, and cannot re-rank what --image finds", param_hint="--rerank"
        )
    if hybrid and isinstance(question, Path):
        raise typer.BadParameter("compares the words of a text, and --image has none", param_hint="--hybrid")
    if html is not None and question is None:
        raise typer.BadParameter("shows the answer to one query: add a text or --image", param_hint="--html")


def _open(
    place: tuple[str, Path | None],
    question: str | Path | None,
    where: str | None,
    hybrid: bool,
    reranking: dict[str, Any],
    machine: tuple[str, int | None],
) -> tuple[IndexSearcher, Condition | None]:
    """The searcher of a place (`open_index`), and the condition. Both the index and the condition are checked before
    torch is imported, which takes seconds."""
    device, threads = machine
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(threads)  # read by NumPy's and torch's libraries when they are imported
    from dcdctl.core.search import parse_where
    from dcdctl.core.stores import open_index

    index = open_index(*place)
    condition = None if where is None else parse_where(where, index.columns)
    if hybrid:
        index.check_hybrid()
    from dcdctl.core.search import IndexSearcher

    if isinstance(question, Path):  # which comes without a re-ranker
        return IndexSearcher.with_model(index, device=device, threads=threads), condition
    return IndexSearcher.for_index(index, device=device, threads=threads, **reranking), condition


def _write_page(path: Path, index: ImageIndex, question: str | Path, answer: SearchAnswer) -> None:
    from dcdctl.core import report

    report.write_search_page(path, index, question, answer, track=bar)
    note(f"page -> {path}")
