"""`dcdctl inspect`: what a corpus, a teacher cache or an index holds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dcdctl.cli.completion import complete_split
from dcdctl.cli.options import Json, MaxImages, Page, refuse
from dcdctl.cli.views.terminal import bar, note, show, show_json, show_table

Place = Annotated[
    str,
    typer.Argument(
        help="Folder written by `dcdctl prepare`, `cache-teacher` or `index`, or the URL of a store.",
        metavar="DIR|CACHE|INDEX",
    ),
]
CorpusFolder = Annotated[
    Path | None,
    typer.Option("--data", help="With a cache: its corpus, to show captions and image names.", metavar="DIR"),
]
Split = Annotated[
    str | None,
    typer.Option(
        "--split",
        help="Split of the corpus; train+val reads two as one.",
        show_default="all of a corpus, train of a cache",
        autocompletion=complete_split,
        metavar="NAME",
    ),
]
Hardest = Annotated[
    int | None,
    typer.Option("--hardest", help="With a cache: number of hardest negatives to show (10).", min=0, metavar="N"),
]
NumImages = Annotated[
    int | None,
    typer.Option(
        "--show-images",
        help="With a corpus: images on the page, from --split or the first split (60).",
        min=0,
        metavar="N",
    ),
]


def inspect(
    place: Place,
    data: CorpusFolder = None,
    split: Split = None,
    max_images: MaxImages = None,
    hardest: Hardest = None,
    html: Page = None,
    num_images: NumImages = None,
    json: Json = False,
) -> None:
    """Show what a corpus, cache or index holds. It prints counts and sizes, then captions, or scores and the hardest
    negatives."""
    from dcdctl.core.data import artifact_kind
    from dcdctl.core.files import shown
    from dcdctl.core.stores import is_store

    folder = Path(place)
    kind = "store" if is_store(place) else artifact_kind(folder)
    if kind in ("index", "store"):
        of_others = {"--data": data, "--split": split, "--max-images": max_images, "--hardest": hardest}
        refuse(
            {**of_others, "--html": html, "--show-images": num_images},
            f"is for a corpus or a teacher cache, and {place} is an index",
        )
        return _inspect_index(folder, json) if kind == "index" else _inspect_store(place, json)
    if kind == "corpus":
        refuse({"--data": data, "--hardest": hardest}, f"is for a teacher cache, and {shown(folder)} is a corpus")
        refuse({"--show-images": num_images if html is None else None}, "is for the page: name a file with --html")
        return _inspect_corpus(folder, split, max_images, html, num_images, json)
    refuse({"--show-images": num_images}, f"is for a corpus, and {folder} is a teacher cache")
    refuse({"--html": html if data is None else None}, "needs the images: name their corpus with --data")
    _inspect_cache(folder, data, split or "train", max_images, 10 if hardest is None else hardest, html, json)


def _inspect_corpus(
    folder: Path, split: str | None, max_images: int | None, html: Path | None, num_images: int | None, json: bool
) -> None:
    from dcdctl.core import data, report
    from dcdctl.core.config import to_table
    from dcdctl.core.data import Corpus
    from dcdctl.core.files import shown

    summary = data.summarize_corpus(folder, split, max_images=max_images, track=bar)
    if html is not None:
        corpus = Corpus.open(folder, next(iter(summary.splits)), max_images)
        num_images = report.NUM_IMAGES if num_images is None else num_images
        report.write_corpus_page(html, summary, corpus, f"Corpus {summary.name}, {shown(folder)}", num_images)
        note(f"page -> {html}")
    if json:
        return show_json(to_table(summary))
    show(f"{summary.name}, {shown(folder)}")
    for name, value in data.corpus_facts(summary):
        show(f"  {name}: {value}")
    show_table("", *data.corpus_table(summary))


def _inspect_cache(
    cache: Path, data: Path | None, split: str, max_images: int | None, hardest: int, html: Path | None, json: bool
) -> None:
    from dcdctl.core import report, teacher
    from dcdctl.core.data import Corpus

    corpus = None if data is None else Corpus.open(data, split, max_images)
    summary = teacher.summarize_cache(teacher.read_cache(cache, corpus=corpus), hardest)
    if html is not None and corpus is not None:
        report.write_cache_page(html, summary, corpus, f"Teacher cache {cache}")
        note(f"page -> {html}")
    document = teacher.cache_document(summary, corpus)
    if json:
        return show_json(document)
    _show_cache(str(cache), teacher.cache_facts(summary), document)


def _inspect_index(folder: Path, json: bool) -> None:
    from dcdctl.core import search
    from dcdctl.core.search import FolderIndex

    summary = search.summarize_index(FolderIndex.open(folder))
    if json:
        return show_json(search.index_document(summary))
    show(f"index {folder}")
    for name, value in search.index_facts(summary):
        show(f"  {name}: {value}")


def _inspect_store(url: str, json: bool) -> None:
    from dcdctl.core import stores

    summary = stores.summarize_store(stores.open_store(url))
    if json:
        return show_json(stores.store_document(summary))
    show(f"{summary.kind} {summary.location}")
    for name, value in stores.store_facts(summary):
        show(f"  {name}: {value}")


def _show_cache(title: str, facts: list[tuple[str, str]], document: dict[str, Any]) -> None:
    show(title)
    for name, value in facts:
        show(f"  {name}: {value}")
    bins = zip(document["edges"], document["positives"], document["negatives"], strict=False)
    most = max(1, *document["positives"], *document["negatives"])
    rows = [
        [f"{low:.2f}", f"{true:,}", f"{false:,}", "#" * round(30 * false / most) + "+" * round(30 * true / most)]
        for low, true, false in bins
    ]
    show_table("scores", ["from", "true", "negative", "# negative, + true"], rows)
    columns = ["score", "image", "caption", "own score", "own caption"]
    negatives = [
        [f"{pair['score']:.2f}", *_names(pair, ""), f"{pair['own_score']:.2f}", _names(pair, "own_")[-1]]
        for pair in document["hardest"]
    ]
    if negatives:
        show_table("hardest negatives", columns, negatives)


def _names(entry: dict[str, Any], prefix: str) -> list[str]:
    """The image and the caption of a pair: by name if the corpus is known, else by index."""
    return [str(entry.get("image_id", entry["image"])), str(entry.get(f"{prefix}caption", entry[f"{prefix}text"]))]
