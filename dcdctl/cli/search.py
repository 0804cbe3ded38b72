"""`dcdctl search`: the images of an index that match a text or resemble an image."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dcdctl.cli.declare import Ref, optional_path, path
from dcdctl.cli.options import AnyIndex, Json, Page, SearchModels, argument, configures, reads, refuse, writes
from dcdctl.cli.views.terminal import bar, note

if TYPE_CHECKING:
    from dcdctl.core.search import Condition, IndexSearcher


@dataclass(frozen=True, kw_only=True)
class Query:
    """What to find in an index; queries of stdin have neither a text nor an image."""

    text: Annotated[
        list[str] | None,
        argument("What the images show; without a text and --image, one query per line of stdin.", "TEXT"),
    ] = None
    image: Annotated[Path | None, reads("--image", "Find images that resemble this one.", "FILE")] = None
    k: Annotated[int, writes("--k -k", "Number of images to find.", "N", min=1)] = 10
    where: Annotated[
        str | None,
        configures(
            "--where", "Only images whose columns meet a condition: \"year >= 2020 and owner = 'x'\".", "CONDITION"
        ),
    ] = None
    exact: Annotated[
        bool, configures("--exact", "Compare all images, in place of the candidates of graphs and codes.")
    ] = False
    hybrid: Annotated[
        bool,
        configures(
            "--hybrid", "Rank by the words of captions and file names too; the index needs `dcdctl index --keywords`."
        ),
    ] = False


def search(index: AnyIndex, query: Query, models: SearchModels, html: Page = None, json: Json = False) -> None:
    """Find images by a text or by an image. Without a query it answers each line of stdin."""
    from dcdctl.cli.views.search import answer_lines, show_answer

    question = _question(query, models, html)
    searcher, condition = _open(index, query, models)
    if question is None:
        raise typer.Exit(answer_lines(searcher, query.k, condition, hybrid=query.hybrid, as_json=json))
    answer = searcher.ask(question, query.k, condition, hybrid=query.hybrid)
    show_answer(searcher.index, question, answer, as_json=json)
    if html is not None:
        from dcdctl.core import report

        report.write_search_page(path(html), searcher.index, question, answer, track=bar)
        note(f"page -> {html}")


def _question(query: Query, models: SearchModels, html: Ref | None) -> str | Path | None:
    """The query: a text, of one argument or several, or an image file; None if queries come from stdin. A usage error
    for options that would have no effect, before a model is loaded."""
    question = " ".join(query.text) if query.text else query.image
    if query.text:
        refuse({"--image": query.image}, "cannot be combined with a text: give one of them")
    if question is None:
        if sys.stdin.isatty():
            refuse({"TEXT": ""}, "is missing: give a text or --image, or one query per line of stdin")
    else:
        from dcdctl.core.search import check_query

        check_query(question)
    models.check_depth()
    if isinstance(question, Path):
        refuse({"--rerank": models.rerank}, "scores an image with a text, and cannot re-rank what --image finds")
        refuse({"--hybrid": query.hybrid or None}, "compares the words of a text, and --image has none")
    if question is None:
        refuse({"--html": html}, "shows the answer to one query: add a text or --image")
    return question


def _open(place: str, query: Query, models: SearchModels) -> tuple[IndexSearcher, Condition | None]:
    """The searcher of a place (`open_index`), and the condition. Both the index and the condition are checked before
    torch is imported, which takes seconds."""
    if models.threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(models.threads)  # read by NumPy's and torch's libraries when imported
    from dcdctl.core.search import parse_where
    from dcdctl.core.stores import is_store, open_index

    if is_store(place):
        refuse({"--exact": query.exact or None}, "compares all images of an index in a folder, and this is a store")
    index = open_index(place, optional_path(models.model))
    index.compares_all = query.exact
    condition = None if query.where is None else parse_where(query.where, index.columns)
    if query.hybrid:
        index.check_hybrid()
    return models.searcher(index), condition
