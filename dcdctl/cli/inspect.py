"""`dcdctl inspect`: what a corpus or a teacher cache holds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dcdctl.cli.options import Json, MaxImages
from dcdctl.cli.views.terminal import bar, note, show, show_json, show_table

Folder = Annotated[Path, typer.Argument(help="Folder written by `dcdctl prepare` or `dcdctl cache-teacher`.", metavar="DIR|CACHE")]
CorpusFolder = Annotated[Path | None, typer.Option("--data", help="A cache's corpus: captions and pictures are shown then.", metavar="DIR")]
Split = Annotated[
    str | None,
    typer.Option("--split", help="Split of the corpus; if not given, all of a corpus, train of a cache's.", metavar="NAME"),
]
Hardest = Annotated[
    int | None, typer.Option("--hardest", help="Hardest negatives of a cache to show; 10 if not given.", min=0, metavar="N")
]
Page = Annotated[Path | None, typer.Option("--html", help="Write a page with pictures; of a cache, wants --data.", metavar="FILE")]
Pictures = Annotated[
    int | None,
    typer.Option(
        "--pictures", help="Pictures on the page of a corpus, spread over --split or its first split; 60 if not given.", min=0, metavar="N"
    ),
]


def inspect(
    folder: Folder,
    data: CorpusFolder = None,
    split: Split = None,
    max_images: MaxImages = None,
    hardest: Hardest = None,
    html: Page = None,
    pictures: Pictures = None,
    json: Json = False,
) -> None:
    """Show a corpus: counts, captions, sizes, some pictures; or a teacher cache: scores, hardest negatives."""
    from dcdctl.core.data import artifact_kind

    if artifact_kind(folder) == "corpus":
        _refuse({"--data": data, "--hardest": hardest}, f"is for a teacher cache, {folder} is a corpus")
        _refuse({"--pictures": pictures if html is None else None}, "is for the page: name a file with --html")
        return _inspect_corpus(folder, split, max_images, html, pictures, json)
    _refuse({"--pictures": pictures}, f"is for a corpus, {folder} is a teacher cache")
    _refuse({"--html": html if data is None else None}, "shows pictures: name their corpus with --data")
    _inspect_cache(folder, data, split or "train", max_images, 10 if hardest is None else hardest, html, json)


def _refuse(options: dict[str, object], why: str) -> None:
    for name, value in options.items():
        if value is not None:
            raise typer.BadParameter(why, param_hint=name)


def _inspect_corpus(folder: Path, split: str | None, max_images: int | None, html: Path | None, pictures: int | None, json: bool) -> None:
    from dcdctl.core import data, report
    from dcdctl.core.data import Corpus

    found = data.summarize_corpus(folder, split, max_images=max_images, track=bar)
    if html is not None:
        corpus = Corpus.open(folder, next(iter(found.splits)), max_images)
        num_pictures = report.NUM_IMAGES if pictures is None else pictures
        report.write_corpus_page(html, found, corpus, f"Corpus {found.name}, {folder}", num_pictures)
        note(f"page -> {html}")
    if json:
        return show_json(data.corpus_document(found))
    show(f"{found.name}, {folder}")
    for name, value in data.corpus_facts(found):
        show(f"  {name}: {value}")
    show_table("", *data.corpus_table(found))


def _inspect_cache(cache: Path, data: Path | None, split: str, max_images: int | None, hardest: int, html: Path | None, json: bool) -> None:
    from dcdctl.core import report, teacher
    from dcdctl.core.data import Corpus

    corpus = None if data is None else Corpus.open(data, split, max_images)
    found = teacher.summarize_cache(teacher.read_cache(cache, corpus=corpus), hardest)
    if html is not None and corpus is not None:
        report.write_cache_page(html, found, corpus, f"Teacher cache {cache}")
        note(f"page -> {html}")
    document = teacher.cache_document(found, corpus)
    if json:
        return show_json(document)
    _show_cache(str(cache), teacher.cache_facts(found), document)


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
    lines = [[f"{one['score']:.2f}", *_names(one, ""), f"{one['own_score']:.2f}", _names(one, "own_")[-1]] for one in document["hardest"]]
    if lines:
        show_table("hardest negatives", columns, lines)


def _names(entry: dict[str, Any], prefix: str) -> list[str]:
    """The picture and the caption, by name where the corpus is known."""
    return [str(entry.get("image_id", entry["image"])), str(entry.get(f"{prefix}caption", entry[f"{prefix}text"]))]
