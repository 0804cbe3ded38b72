"""`dcdctl search`: the images of an index that match a text or resemble an image, or a list of them by a column."""

from __future__ import annotations

import os
import stat
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dcdctl.cli.options import AnyIndex, Json, refuse
from dcdctl.cli.search_models import SearchModels
from dcdctl.cli.views.terminal import bar, note
from dcdctl.core.arguments import argument, configures, optional_path, path, reads
from dcdctl.core.options import Page

if TYPE_CHECKING:
    from dcdctl.core.search import Browse, CombinedQuery, Condition, ImageIndex, SearchAnswer


@dataclass(frozen=True, kw_only=True)
class Query:
    """What to find in an index; queries of stdin have neither a text nor an image."""

    text: Annotated[
        list[str] | None,
        argument("What the images show; without a text and --image, one query per line of stdin.", "TEXT"),
    ] = None
    image: Annotated[Path | None, reads("--image", "Find images that resemble this one.", "FILE")] = None
    also: Annotated[
        list[str] | None, configures("--also", "Add a text to the text or the image; repeatable.", "TEXT")
    ] = None
    without: Annotated[
        list[str] | None, configures("--not", "Rank images lower that show this; repeatable.", "TEXT")
    ] = None
    k: Annotated[int, configures("--k -k", "Number of images to find.", "N", min=1)] = 10
    where: Annotated[
        str | None,
        configures(
            "--where", "Only images whose columns meet a condition: \"year >= 2020 and owner = 'x'\".", "CONDITION"
        ),
    ] = None
    order: Annotated[
        str | None,
        configures(
            "--order",
            'List images without a query, by a column: year, or "year desc" for the highest first.',
            "COLUMN",
        ),
    ] = None
    all_copies: Annotated[
        bool, configures("--all-copies", "Show copies and look-alikes as hits of their own, not as one.")
    ] = False
    exact: Annotated[bool, configures("--exact", "Compare all images, in place of the candidates of codes.")] = False
    hybrid: Annotated[
        bool,
        configures(
            "--hybrid", "Rank by the words of captions and file names too; the index needs --set keywords=true."
        ),
    ] = False


@dataclass(frozen=True, kw_only=True)
class Output:
    """How an answer is shown."""

    html: Page = None
    json: Json = False
    paths: Annotated[bool, configures("--paths", "Print only the absolute path of each image, one per line.")] = False
    null: Annotated[bool, configures("--null -0", "End each path with a NUL, for xargs -0.")] = False


def search(index: AnyIndex, query: Query, models: SearchModels, output: Output) -> None:
    """Find images by a text, an image or both, or list them by a column. Without a query it answers each line of
    stdin."""
    from dcdctl.cli.views.search import answer_lines, show_answer, show_paths

    question = _question(query, models)
    _check_output(output, question)
    opened, condition = _open(index, query, models)
    if question is None:
        searcher = models.searcher(opened)
        raise typer.Exit(answer_lines(searcher, query.k, condition, hybrid=query.hybrid, as_json=output.json))
    if output.paths:
        opened.check_paths()
    answer = _answer(question, opened, condition, query, models)
    if output.paths:
        show_paths(answer, end="\0" if output.null else "\n")
    else:
        show_answer(opened, question, answer, as_json=output.json)
    if output.html is not None:
        from dcdctl.core import report

        report.write_search_page(path(output.html), opened, question, answer, track=bar)
        note(f"page -> {output.html}")


def _question(query: Query, models: SearchModels) -> str | Path | CombinedQuery | Browse | None:
    """The query: a text, of one argument or several, an image file, several of them, or a list of images in an order;
    None if queries come from stdin. A usage error for options that would have no effect, before a model is loaded."""
    models.check_depth()
    also, without = query.also or [], query.without or []
    if not query.text and query.image is None:
        why = "changes a query, and there is none: add a text or --image"
        refuse({"--also": query.also, "--not": query.without}, why)
        return _without_query(query, models)
    refuse({"--order": query.order}, "orders a list without a query, and what a query finds is ordered by its scores")
    from dcdctl.core.search import CombinedQuery, check_query, question_of

    question = question_of(" ".join(query.text) if query.text else None, query.image, also, without)
    assert isinstance(question, str | Path | CombinedQuery), "an image of the command line is a file"
    check_query(question)
    hybrid = query.hybrid or None
    if isinstance(question, Path):
        refuse({"--rerank": models.rerank}, "scores an image with a text, and cannot re-rank what --image finds")
        refuse({"--hybrid": hybrid}, "compares the words of a text, and --image has none")
    if isinstance(question, CombinedQuery):
        refuse({"--rerank": models.rerank}, "scores an image with one text, and this query has several parts")
        refuse({"--hybrid": hybrid}, "compares the words of one text, and this query has several parts")
    return question


def _without_query(query: Query, models: SearchModels) -> Browse | None:
    """A list of images, or None for queries from stdin.

    With --order it is always a list. With --where alone, lines that are piped in are queries, as they are without it,
    and where nothing is piped in, it is a list.
    """
    if query.order is None and (query.where is None or _is_piped()):
        # Python has no stdin if it was closed when the process began.
        if sys.stdin is None or sys.stdin.isatty():
            refuse({"TEXT": ""}, "is missing: give a text, --image, --where or --order, or one query per line of stdin")
        return None
    why = "is for a query, and this is a list of images without one"
    refuse({"--rerank": models.rerank, "--hybrid": query.hybrid or None, "--exact": query.exact or None}, why)
    from dcdctl.core.search import Browse

    return Browse(query.where, query.order)


def _is_piped() -> bool:
    """Whether stdin is a pipe or a file: not a terminal, the null device, or closed."""
    if sys.stdin is None:
        return False
    try:
        return not stat.S_ISCHR(os.fstat(sys.stdin.fileno()).st_mode)
    except (OSError, ValueError):
        return not sys.stdin.isatty()  # a stream that is no file


def _check_output(output: Output, question: str | Path | CombinedQuery | Browse | None) -> None:
    """A usage error for kinds of output that exclude each other."""
    if question is None:
        refuse({"--html": output.html}, "shows the answer to one query: add a text or --image")
        refuse({"--paths": output.paths or None}, "prints the answer to one query: add a text, --image or --order")
    if output.json:
        refuse({"--paths": output.paths or None}, "cannot be combined with --json, which has the path of each image")
    if not output.paths:
        refuse({"--null": output.null or None}, "ends paths: add --paths")


def _open(place: str, query: Query, models: SearchModels) -> tuple[ImageIndex, Condition | None]:
    """The index at a place (`open_index`), and the condition. Both are checked before torch is imported, which takes
    seconds."""
    from dcdctl.core.search import check_comes_first, parse_where
    from dcdctl.core.stores import is_store, open_index

    check_comes_first(place, query.text or [])
    if is_store(place):
        refuse({"--exact": query.exact or None}, "compares all images of an index in a folder, and this is a store")
    index = open_index(place, optional_path(models.model))
    index.compares_all, index.all_copies = query.exact, query.all_copies
    condition = None if query.where is None else parse_where(query.where, index.columns)
    if query.hybrid:
        index.check_hybrid()
    return index, condition


def _answer(
    question: str | Path | CombinedQuery | Browse,
    index: ImageIndex,
    where: Condition | None,
    query: Query,
    models: SearchModels,
) -> SearchAnswer:
    from dcdctl.core.search import Browse, browse_index, parse_order

    if isinstance(question, Browse):
        order = None if question.order is None else parse_order(question.order, index.columns)
        return browse_index(index, query.k, where, order)
    return models.searcher(index).ask(question, query.k, where, hybrid=query.hybrid)
