"""`dcdctl inspect`: what a corpus, a teacher cache, a text cache or an index holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from dcdctl.cli.options import Json, refuse
from dcdctl.cli.views.terminal import note, show, show_csv, show_facts, show_json, show_table
from dcdctl.core.arguments import argument, configures, reads
from dcdctl.core.options import MaxImages, reads_split

NUM_HARDEST = 10
"""Hardest negatives of a cache that are shown."""


@dataclass(frozen=True, kw_only=True)
class Inspect:
    """What to inspect, and how much of it to show."""

    place: Annotated[
        str, argument("Folder written by `dcdctl prepare`, `cache-teacher` or `index`.", "DIR|CACHE|INDEX")
    ]
    data: Annotated[
        Path | None, reads("--data", "With a cache: its corpus, to show captions and image names.", "DIR", "place")
    ] = None
    split: Annotated[str | None, reads_split(show_default="all of a corpus, train of a cache")] = None
    max_images: MaxImages = None
    csv: Annotated[
        bool, configures("--csv", "With a cache and --data: print the captions that the teacher doubts as CSV.")
    ] = False
    json: Json = False


def inspect(arguments: Inspect) -> None:
    """Show what a corpus, cache or index holds. It prints counts and sizes, then captions, or scores and the hardest
    negatives."""
    from dcdctl.core.data import artifact_kind
    from dcdctl.core.places import shown

    place, folder = arguments.place, Path(arguments.place)
    kind = artifact_kind(folder)
    # An option without effect is an error, so that nobody trusts a result that ignored it.
    of_cache = {"--data": arguments.data, "--csv": arguments.csv or None}
    if kind in WHOLE:
        name, show_whole = WHOLE[kind]
        others = {"--split": arguments.split, "--max-images": arguments.max_images}
        refuse({**of_cache, **others}, f"is for a corpus or a teacher cache, and {place} is {name}")
        show_whole(folder, arguments.json)
    elif kind == "corpus":
        refuse(of_cache, f"is for a teacher cache, and {shown(folder)} is a corpus")
        _inspect_corpus(folder, arguments)
    else:
        _inspect_cache(folder, arguments)


def _inspect_corpus(folder: Path, arguments: Inspect) -> None:
    from dcdctl.core import data
    from dcdctl.core.config import to_table
    from dcdctl.core.places import shown

    summary = data.summarize_corpus(folder, arguments.split, max_images=arguments.max_images)
    if arguments.json:
        return show_json(to_table(summary))
    show(f"{summary.name}, {shown(folder)}")
    show_facts(data.corpus_facts(summary))
    show_table("", *data.corpus_table(summary))


def _inspect_cache(cache: Path, arguments: Inspect) -> None:
    from dcdctl.core import teacher
    from dcdctl.core.data import Corpus

    corpus = None
    if arguments.csv:
        refuse({"--csv": True if arguments.data is None else None}, "lists captions, which --data DIR names")
        refuse({"--csv": arguments.json or None}, "and --json are two forms: choose one")
    if arguments.data is not None:
        corpus = Corpus.open(arguments.data, arguments.split or "train", arguments.max_images)
    scores, checked = teacher.read_cache(cache, corpus=corpus), None
    if corpus is not None and (arguments.csv or not corpus.is_pool):
        checked = teacher.check_captions(corpus, scores, "auto")
        if arguments.csv:
            show_csv(list(checked.rows(corpus)))
            return note(str(checked))
    summary = teacher.summarize_cache(scores, NUM_HARDEST)
    document = teacher.cache_document(summary, corpus)
    if arguments.json:
        return show_json(document | ({} if checked is None else {"captions": checked.to_json()}))
    show(str(cache))
    show_facts(teacher.cache_facts(summary))
    if checked is not None:
        show(str(checked))
    _show_scores(document)


def _inspect_index(folder: Path, json: bool) -> None:
    from dcdctl.core import search

    index = search.FolderIndex.open(folder)
    if json:
        return show_json(search.index_document(index))
    show(f"index {folder}")
    show_facts(search.index_facts(index))


def _inspect_texts(folder: Path, json: bool) -> None:
    from dcdctl.core import teacher

    cache = teacher.read_text_cache(folder)
    if json:
        return show_json(cache.plan)
    show(f"text cache {folder}")
    show_facts(teacher.text_cache_facts(cache))


WHOLE: dict[str, tuple[str, Callable[[Path, bool], None]]] = {
    "index": ("an index", _inspect_index),
    "texts": ("a text cache", _inspect_texts),
}
"""What is shown as a whole, without a choice of split or images: its name with an article, and what shows it."""


def _show_scores(document: dict[str, Any]) -> None:
    positives, negatives = document["positives"], document["negatives"]
    # 1, so that a cache without scores divides by no zero.
    most = max(1, *positives, *negatives)
    rows = []
    # A bin begins at its edge; the last edge is the end of the last bin.
    for low, true, false in zip(document["edges"][:-1], positives, negatives, strict=True):
        blocks = "#" * round(30 * false / most) + "+" * round(30 * true / most)
        rows.append([f"{low:.2f}", f"{true:,}", f"{false:,}", blocks])
    show_table("scores", ["from", "true", "negative", "# negative, + true"], rows)
    columns = ["score", "image", "caption", "own score", "own caption"]
    negatives = []
    for pair in document["hardest"]:
        _, own_caption = _names(pair, "own_")
        negatives.append([f"{pair['score']:.2f}", *_names(pair, ""), f"{pair['own_score']:.2f}", own_caption])
    if negatives:
        show_table("hardest negatives", columns, negatives)


def _names(entry: dict[str, Any], prefix: str) -> list[str]:
    """The image and the caption of a pair: by name if the corpus is known, else by index."""
    return [str(entry.get("image_id", entry["image"])), str(entry.get(f"{prefix}caption", entry[f"{prefix}text"]))]
