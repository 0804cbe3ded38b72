"""`dcdctl search`: the pictures of an index that fit a text, or look like a picture."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from dcdctl.cli.options import Device, Json, Threads
from dcdctl.cli.views.terminal import bar, note, printable

IndexFolder = Annotated[Path, typer.Argument(help="Folder written by `dcdctl index`.", metavar="INDEX")]
Words = Annotated[
    list[str] | None,
    typer.Argument(help="What the pictures show; without it and --image a prompt, or one answer for each line of stdin.", metavar="[TEXT]"),
]
ImageFile = Annotated[Path | None, typer.Option("--image", help="Find pictures that look like the one in this file.", metavar="FILE")]
NumAnswers = Annotated[int, typer.Option("--k", "-k", help="Pictures to find.", min=1, metavar="N")]
Rerank = Annotated[str | None, typer.Option("--rerank", help="Fusion model that puts the first of them in order.", metavar="REF")]
Depth = Annotated[int | None, typer.Option("--depth", help="With --rerank: how many are put in order (50).", min=1, metavar="N")]
Page = Annotated[Path | None, typer.Option("--html", help="Write a page with the pictures.", metavar="FILE", dir_okay=False)]
Pictures = Annotated[
    Literal["auto", "none", "kitty", "iterm2"],
    typer.Option("--pictures", help="Small pictures in the terminal: where it can show them, never, or by this protocol."),
]


def search(
    index: IndexFolder,
    text: Words = None,
    image: ImageFile = None,
    k: NumAnswers = 10,
    rerank: Rerank = None,
    depth: Depth = None,
    html: Page = None,
    json: Json = False,
    pictures: Pictures = "auto",
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Find pictures by a text or by a picture."""
    from dcdctl.cli.views import images, search_session
    from dcdctl.cli.views.search import View, show_answer

    question = _question(text, image)
    _refuse(question, rerank, depth, html)
    view = View(json, images.protocol(pictures, os.environ))
    searcher = _open(index, rerank, depth, device, threads)
    if question is None:
        raise typer.Exit(search_session.run(searcher, view, k))
    answer = searcher.ask(question, k)
    show_answer(view, searcher.index, question, answer)
    if html is not None:
        _write_page(html, searcher.index, question, answer)


def _question(text: list[str] | None, image: Path | None) -> str | Path | None:
    """What is asked: a text, of one argument or several, or the file of a picture; None where lines are to come."""
    if text and image is not None:
        raise typer.BadParameter("is asked for besides a text: one of them is wanted", param_hint="--image")
    if image is None and not text:
        return None
    from dcdctl.core.search import check_query, looks_like_a_path

    question = image or " ".join(text or [])
    if isinstance(question, str) and (told := looks_like_a_path(question)):
        note(printable(told))
    check_query(question)
    return question


def _refuse(question: str | Path | None, rerank: str | None, depth: int | None, html: Path | None) -> None:
    """Stop options that would change nothing, before a model is loaded."""
    if depth is not None and rerank is None:
        raise typer.BadParameter("says how many are re-ranked, and nothing is: add --rerank REF", param_hint="--depth")
    if rerank is not None and isinstance(question, Path):
        raise typer.BadParameter("scores a picture with a text, and cannot re-rank what --image finds", param_hint="--rerank")
    if html is not None and question is None:
        raise typer.BadParameter("shows one answer, and nothing is asked: add a text, or type :html FILE later", param_hint="--html")


def _open(folder: Path, rerank: str | None, depth: int | None, device: str, threads: int | None) -> Any:
    """The searcher; what is wrong with the index is said before torch is imported, which takes seconds."""
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(threads)  # read by NumPy's and torch's libraries when they are imported
    from dcdctl.core.search import Index

    Index.open(folder)
    from dcdctl.core import devices
    from dcdctl.core.search import DEPTH, Searcher

    devices.use_threads(threads)
    return Searcher.open(folder, device=devices.choose(device), rerank=rerank, depth=depth or DEPTH)


def _write_page(path: Path, index: Any, question: str | Path, answer: Any) -> None:
    from dcdctl.core import report

    report.write_search_page(path, index, question, answer, track=bar)
    note(f"page -> {path}")
