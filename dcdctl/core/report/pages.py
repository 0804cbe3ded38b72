"""The pages of `dcdctl inspect` and `dcdctl search`: a corpus, a teacher cache, the answer to one search."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dcdctl.core.data import MAX_WORDS_COUNTED, Corpus, CorpusInspection, corpus_facts, corpus_table
from dcdctl.core.progress import Advance, Track, silent
from dcdctl.core.report import html
from dcdctl.core.report.html import Histogram
from dcdctl.core.search import (
    CombinedQuery,
    ImageIndex,
    Question,
    SearchAnswer,
    as_text,
    caption_of,
    columns_text,
    image_of,
    read_image,
    spread_over,
    title_of,
)
from dcdctl.core.teacher import CacheSummary, cache_facts

NUM_IMAGES = 60
"""Images on the page of a corpus."""
# A grid of five on a laptop.
CORPUS_IMAGE_PX = 200
# Larger than elsewhere: a false negative shows in details.
CACHE_IMAGE_PX = 240
SEARCH_IMAGE_PX = 240


def write_corpus_page(path: Path, inspection: CorpusInspection, corpus: Corpus, title: str) -> None:
    """Write the page of a corpus: counts, caption lengths, and images spread evenly over `corpus`, one of the inspected
    splits."""
    counts = inspection.splits[corpus.split].captions_by_words
    # Bins below the shortest caption would be empty.
    shortest = next((words for words, count in enumerate(counts) if count), 0)
    text = "text" if corpus.is_pool else "caption"
    bins = [f"{words}+" if words == MAX_WORDS_COUNTED else str(words) for words in range(shortest, len(counts))]
    cards = []
    for image in spread_over(corpus.num_images, NUM_IMAGES):
        pixels = corpus.image(image)
        size = f"{pixels.width}\N{NO-BREAK SPACE}\N{MULTIPLICATION SIGN}\N{NO-BREAK SPACE}{pixels.height}"
        about = f"{image:,} \N{MIDDLE DOT} {corpus.image_ids[image]} \N{MIDDLE DOT} {size}"
        captions = [corpus.captions[caption] for caption in corpus.captions_of(image)]
        cards.append({"image": html.embed_image(pixels, CORPUS_IMAGE_PX), "about": about, "captions": captions})
    html.write(
        path,
        "corpus.html",
        title=title,
        facts=corpus_facts(inspection),
        splits=corpus_table(inspection),
        split=corpus.split,
        text=text,
        words=Histogram("words", bins, {f"{text}s": counts[shortest:]}),
        num_images=corpus.num_images,
        cards=cards,
    )


def write_cache_page(path: Path, summary: CacheSummary, corpus: Corpus, title: str) -> None:
    """Write the page of a teacher cache: counts, a histogram of the scores, and the hardest negatives with their
    images."""
    edges, hardest = [f"{low:.2f}" for low in summary.edges[:-1]], []
    for negative in summary.hardest:
        captions = [
            (negative.score, corpus.captions[negative.text], "negative"),
            (negative.own_score, corpus.captions[negative.own_text], "own caption"),
        ]
        image = html.embed_image(corpus.images([negative.image])[0], CACHE_IMAGE_PX)
        hardest.append({"image": image, "name": corpus.image_ids[negative.image], "captions": captions})
    html.write(
        path,
        "cache.html",
        title=title,
        facts=cache_facts(summary),
        scores=Histogram("from", edges, {"true": summary.positives, "negative": summary.negatives}),
        hardest=hardest,
    )


def write_search_page(
    path: Path, index: ImageIndex, question: Question, answer: SearchAnswer, track: Track = silent
) -> None:
    """Write the page of a search by a text or by the image in a file, or of a list: the hits with small images.

    InputError if the file cannot be written.
    """
    file = question.image if isinstance(question, CombinedQuery) else question
    query_image = html.embed_image(read_image(file), SEARCH_IMAGE_PX) if isinstance(file, Path) else None
    total = index.num_images if answer.total is None else answer.total
    with track("read images", total=len(answer.hits), unit="images") as advance:
        cards = list(_hit_cards(index, answer, advance))
    html.write(
        path,
        "search_results.html",
        title=as_text(title_of(question)),
        query_image=query_image,
        counts=f"{len(answer.hits):,} of {total:,} images, model {index.fingerprint[:8]}",
        notes=answer.notes,
        cards=cards,
    )


def _hit_cards(index: ImageIndex, answer: SearchAnswer, advance: Advance) -> Iterator[dict[str, object]]:
    for hit in answer.hits:
        logit = [] if hit.reranked is None else [f"logit {hit.reranked:.3f}"]
        bm25 = [] if hit.bm25 is None else [f"BM25 {hit.bm25:.3f}"]
        cosine = [] if hit.score is None else [f"cosine {hit.score:.4f}"]
        image = image_of(index, hit.row)  # None if it is gone
        yield {
            "image": None if image is None else html.embed_image(image, SEARCH_IMAGE_PX),
            "name": as_text(hit.name),
            "scores": " \N{MIDDLE DOT} ".join([*logit, *cosine, *bm25]),
            "columns": columns_text(hit),
            "caption": caption_of(index, hit.row),
        }
        advance(1)
