"""A page that shows a corpus: what it holds, how long its captions are, and pictures spread over a split, each with its captions."""

from __future__ import annotations

from html import escape
from pathlib import Path

from dcdctl.core.data import MAX_WORDS_COUNTED, Corpus, CorpusInspection, corpus_facts, corpus_table
from dcdctl.core.errors import InputError
from dcdctl.core.progress import Track, silent
from dcdctl.core.report import html
from dcdctl.core.search import Answer, Hit, Index, as_text, image_of, read_image
from dcdctl.core.teacher import CacheSummary, Negative, cache_facts

CACHE_THUMBNAIL_PX = 240


def write_cache_page(path: Path, inspection: CacheSummary, corpus: Corpus, title: str) -> None:
    """Write one HTML file that shows it all, pictures included."""
    edges = [f"{low:.2f}" for low in inspection.edges[:-1]]
    scores = html.histogram("from", edges, {"true": inspection.positives, "negative": inspection.negatives})
    hardest = html.cards([_cache_card(negative, corpus) for negative in inspection.hardest])
    html.write(path, title, html.facts(cache_facts(inspection)), html.heading("Scores"), scores, html.heading("Hardest negatives"), hardest)


def _cache_card(negative: Negative, corpus: Corpus) -> str:
    name = corpus.image_ids[negative.image]
    lines = [
        (negative.score, corpus.captions[negative.text], "negative"),
        (negative.own_score, corpus.captions[negative.own_text], "its own"),
    ]
    text = "".join(f"<p><b>{score:.2f}</b> {escape(caption)} <i>{what}</i></p>" for score, caption, what in lines)
    picture = corpus.images([negative.image])[0]
    return html.card(picture, name, f"{text}<small>{escape(name)}</small>", CACHE_THUMBNAIL_PX)


CORPUS_THUMBNAIL_PX = 200
NUM_IMAGES = 60


def spread_over(num_images: int, count: int) -> list[int]:
    """Image indices spread evenly: the middle of each of `count` equal parts; all where there are no more than that.

    >>> spread_over(10, 2), spread_over(2, 5)
    ([2, 7], [0, 1])
    """
    count = min(count, num_images)
    return [(2 * part + 1) * num_images // (2 * count) for part in range(count)]


def write_corpus_page(path: Path, inspection: CorpusInspection, corpus: Corpus, title: str, num_pictures: int = NUM_IMAGES) -> None:
    """Write one HTML file that shows it all, with pictures spread evenly over a split that is among those inspected."""
    counts = inspection.splits[corpus.split].captions_by_words
    lengths = range(next(words for words, count in enumerate(counts) if count), len(counts))
    bins = [f"{words}+" if words == MAX_WORDS_COUNTED else str(words) for words in lengths]
    images = spread_over(corpus.num_images, num_pictures)
    html.write(
        path,
        title,
        html.facts(corpus_facts(inspection)),
        html.heading("Splits"),
        html.table(*corpus_table(inspection)),
        html.heading(f"Words a caption, {corpus.split}"),
        html.histogram("words", bins, {"captions": counts[lengths.start :]}),
        html.heading(f"{len(images):,} of the {corpus.num_images:,} pictures of {corpus.split}"),
        html.cards([_corpus_card(corpus, image) for image in images]),
    )


def _corpus_card(corpus: Corpus, image: int) -> str:
    picture, name = corpus.image(image), corpus.image_ids[image]
    captions = [corpus.captions[text] for text in corpus.captions_of(image)]
    size = f"{picture.width}\N{NO-BREAK SPACE}\N{MULTIPLICATION SIGN}\N{NO-BREAK SPACE}{picture.height}"
    about = f"{image:,} \N{MIDDLE DOT} {name} \N{MIDDLE DOT} {size}"
    lines = "".join(f'<li dir="auto">{escape(caption)}</li>' for caption in captions)
    return html.card(picture, captions[0], f"<small>{escape(about)}</small><ul>{lines}</ul>", CORPUS_THUMBNAIL_PX)


SEARCH_THUMBNAIL_PX = 240
_STYLE = """.gone { display: grid; place-content: center; height: 9rem; border: 1px dashed var(--line); color: var(--quiet) }
h1 { font-weight: 600 } .asked { max-width: 15rem }
"""


def write_search_page(path: Path, index: Index, question: str | Path, answer: Answer, track: Track = silent) -> None:
    """Write one HTML file of what an index answers to a text, or to the picture in a file; pictures are small, and in it.

    InputError where the file cannot be written.
    """
    asked = ""
    if isinstance(question, Path):
        asked = f'<div class="asked">{html.picture(read_image(question), "the picture that was asked for", SEARCH_THUMBNAIL_PX)}</div>'
    found = []
    with track("read pictures", total=len(answer.hits), unit="images") as advance:
        for place, hit in enumerate(answer.hits, start=1):
            found.append(_search_card(index, place, hit))
            advance(1)
    counts = f"{len(answer.hits):,} of {index.num_images:,} images, model {index.fingerprint[:8]}"
    title = f"Like {question.name}" if isinstance(question, Path) else question
    notes = [html.paragraph(note) for note in answer.notes]
    try:
        html.write(path, as_text(title), asked, html.paragraph(counts), *notes, html.cards(found), style=_STYLE)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}", hint="name another file") from error


def _search_card(index: Index, place: int, hit: Hit) -> str:
    picture = image_of(index, hit.row)
    scores = f"cosine {hit.score:.4f}" if hit.reranked is None else f"logit {hit.reranked:.3f} \N{MIDDLE DOT} cosine {hit.score:.4f}"
    below = f'<b>{place}</b> <span dir="auto">{escape(as_text(hit.name))}</span><br><small>{scores}</small>'
    if picture is None:
        return html.captioned('<div class="gone">the picture is gone</div>', below)
    return html.card(picture, as_text(hit.name), below, SEARCH_THUMBNAIL_PX)
