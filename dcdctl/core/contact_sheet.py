"""A page that shows a corpus: what it holds, how long its captions are, and pictures spread over a split, each with its captions."""

from __future__ import annotations

from html import escape
from pathlib import Path

from dcdctl.core import pages
from dcdctl.core.corpus import Corpus
from dcdctl.core.corpus_inspection import MAX_WORDS_COUNTED, CorpusInspection, facts_of, table_of

THUMBNAIL_PX = 200
NUM_PICTURES = 60


def spread_over(num_images: int, count: int) -> list[int]:
    """Image indices spread evenly: the middle of each of `count` equal parts; all where there are no more than that.

    >>> spread_over(10, 2), spread_over(2, 5)
    ([2, 7], [0, 1])
    """
    count = min(count, num_images)
    return [(2 * part + 1) * num_images // (2 * count) for part in range(count)]


def write_page(path: Path, inspection: CorpusInspection, corpus: Corpus, title: str, num_pictures: int = NUM_PICTURES) -> None:
    """Write one HTML file that shows it all, with pictures spread evenly over a split that is among those inspected."""
    counts = inspection.splits[corpus.split].captions_by_words
    lengths = range(next(words for words, count in enumerate(counts) if count), len(counts))
    bins = [f"{words}+" if words == MAX_WORDS_COUNTED else str(words) for words in lengths]
    images = spread_over(corpus.num_images, num_pictures)
    pages.write(
        path,
        title,
        pages.facts(facts_of(inspection)),
        pages.heading("Splits"),
        pages.table(*table_of(inspection)),
        pages.heading(f"Words a caption, {corpus.split}"),
        pages.histogram("words", bins, {"captions": counts[lengths.start :]}),
        pages.heading(f"{len(images):,} of the {corpus.num_images:,} pictures of {corpus.split}"),
        pages.cards([_card(corpus, image) for image in images]),
    )


def _card(corpus: Corpus, image: int) -> str:
    picture, name = corpus.image(image), corpus.image_ids[image]
    captions = [corpus.captions[text] for text in corpus.captions_of(image)]
    size = f"{picture.width}\N{NO-BREAK SPACE}\N{MULTIPLICATION SIGN}\N{NO-BREAK SPACE}{picture.height}"
    about = f"{image:,} \N{MIDDLE DOT} {name} \N{MIDDLE DOT} {size}"
    lines = "".join(f'<li dir="auto">{escape(caption)}</li>' for caption in captions)
    return pages.card(picture, captions[0], f"<small>{escape(about)}</small><ul>{lines}</ul>", THUMBNAIL_PX)
