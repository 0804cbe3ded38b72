"""`dcdctl inspect`: what a teacher cache holds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dcdctl.cli.options import Json, MaxImages, Split
from dcdctl.cli.terminal import note, show, show_json, show_table

CacheFolder = Annotated[Path, typer.Argument(help="Folder written by `dcdctl cache-teacher`.", metavar="CACHE")]
CorpusFolder = Annotated[Path | None, typer.Option("--data", help="Its corpus: captions and pictures are shown then.", metavar="DIR")]
Hardest = Annotated[int, typer.Option("--hardest", help="Hardest negatives to show.", min=0, metavar="N")]
Page = Annotated[Path | None, typer.Option("--html", help="Write a page with the pictures; wants --data.", metavar="FILE")]


def inspect(
    cache: CacheFolder,
    data: CorpusFolder = None,
    split: Split = "train",
    max_images: MaxImages = None,
    hardest: Hardest = 10,
    html: Page = None,
    json: Json = False,
) -> None:
    """Show a teacher cache: counts, scores, how often the positive comes first, the hardest negatives."""
    from dcdctl.core import inspection, teacher_cache
    from dcdctl.core.corpus import Corpus

    if html is not None and data is None:
        raise typer.BadParameter("a page shows pictures: name their corpus with --data", param_hint="--html")
    corpus = None if data is None else Corpus.open(data, split, max_images)
    found = inspection.inspect(teacher_cache.read(cache, corpus=corpus), hardest)
    if html is not None and corpus is not None:
        inspection.write_page(html, found, corpus, f"Teacher cache {cache}")
        note(f"page -> {html}")
    document = inspection.to_document(found, corpus)
    if json:
        return show_json(document)
    _show(str(cache), inspection.facts_of(found), document)


def _show(title: str, facts: list[tuple[str, str]], document: dict[str, Any]) -> None:
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
