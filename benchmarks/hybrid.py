"""Whether words help vectors: image retrieval by caption, with vectors, BM25, and their fusion.

    dcdctl index RUN --images data/flickr8k --split val --out val.index
    python benchmarks/hybrid.py val.index

Every caption of the indexed split is a query for its image. It is not among the words of its image: the queries are the
first captions of all images, then the second ones, and so on, and each time these captions are left out of the words of
all images. So every image has its other captions, and no image has the query's. The vectors are those of the index, and
the ranks and their fusion are computed by the functions of `dcdctl search --hybrid`.

The weighted sum is the usual alternative to ranks: weight * cosine + (1 - weight) * BM25, each scaled to 0..1 over the
images of a query. Its weight has to be chosen. It is the best of 0, 0.1, ..., 1 on the queries of one half of the
images, and serves the queries of the other half, in turn. Reciprocal rank fusion chooses nothing.

What else a skeptic asks:
    half       the images of one random half have captions, the others only their names: the queries of both halves,
        and by plain fusion,
               without the rule for images without captions (`keywords.fuse`)
    one        each image has one other caption
    names      no image has a caption: only the names of the files

Recalls in percent. The intervals are of paired differences to the vectors, by 10,000 bootstrap draws of images. Ends
with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dcdctl.core import devices
from dcdctl.core.data import Corpus
from dcdctl.core.evaluation import RankTable, compare_ranks
from dcdctl.core.evaluation.recall import KS
from dcdctl.core.search import Index, Searcher
from dcdctl.core.search.keywords import DEPTH, Keywords, best, fuse, words_of_image

WEIGHTS = np.arange(11) / 10
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Queries:
    """The captions of a split, and their cosines with its images."""

    corpus: Corpus
    cosines_TI: Floats

    @staticmethod
    def of(index: Index) -> Queries:
        """The corpus of an index of one split, and the vectors of the index."""
        (source,) = index.document["sources"]
        corpus = Corpus.open(Path(source["path"]), source["split"])
        images_ID = unit(index.vectors(np.arange(index.num_rows)).astype(np.float64))
        searcher = Searcher.for_index(index, device=devices.choose("cpu"))
        texts_TD = np.concatenate(
            [searcher.text_vectors(corpus.captions[at : at + 64]) for at in range(0, corpus.num_captions, 64)]
        )
        return Queries(corpus, (unit(texts_TD.astype(np.float64)) @ images_ID.T).astype(np.float32))

    @property
    def place_T(self) -> NDArray[np.int64]:
        """The place of each caption among those of its image."""
        return np.concatenate(
            [np.arange(len(self.corpus.captions_of(image))) for image in range(self.corpus.num_images)]
        )


def unit(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def words_without(corpus: Corpus, place: int, kept: Callable[[int, int], bool]) -> list[list[str]]:
    """The words of each image without its caption at a place, and without those that `kept(image, place)` does not
    keep."""

    def captions(image: int) -> list[str]:
        numbers = enumerate(corpus.captions_of(image))
        return [corpus.captions[number] for at, number in numbers if at != place and kept(image, at)]

    return [words_of_image(image_id, captions(image)) for image, image_id in enumerate(corpus.image_ids)]


def bm25_of(queries: Queries, kept: Callable[[int, int], bool] = lambda image, place: True) -> Floats:
    """(T, I): the BM25 of each caption, which is left out of the words of its image."""
    corpus, place_T = queries.corpus, queries.place_T
    bm25_TI = np.empty_like(queries.cosines_TI)
    for place in range(place_T.max() + 1):
        words = Keywords.of(words_without(corpus, place, kept))
        for text in np.flatnonzero(place_T == place).tolist():
            bm25_TI[text] = words.scores(corpus.captions[text])
    return bm25_TI


def rank_of(order: NDArray[np.int64], image: int, num_images: int) -> int:
    """The rank of an image in a list, from 1; the last one if the list lacks it."""
    (found,) = np.nonzero(order == image)
    return int(found[0]) + 1 if len(found) else num_images


def ranks(queries: Queries, order_of: Callable[[int], NDArray[np.int64]]) -> NDArray[np.int64]:
    """(T,): the rank of the image of each caption in the order of its images."""
    images = queries.corpus.caption_image.tolist()
    return np.array([rank_of(order_of(text), image, queries.corpus.num_images) for text, image in enumerate(images)])


def by_score(scores_I: Floats) -> NDArray[np.int64]:
    return np.argsort(-scores_I, kind="stable")


def hybrid_order(cosines_I: Floats, bm25_I: Floats, has_captions_I: NDArray[np.bool_] | None) -> NDArray[np.int64]:
    """The order of `dcdctl search --hybrid`."""
    return fuse(by_score(cosines_I)[:DEPTH], best(bm25_I, DEPTH), DEPTH, has_captions_I)[0]


def scaled(scores_TI: Floats) -> Floats:
    """Scores from 0 to 1 for each query."""
    low, high = scores_TI.min(axis=1, keepdims=True), scores_TI.max(axis=1, keepdims=True)
    return (scores_TI - low) / np.maximum(high - low, np.float32(1e-9))


def weighted_ranks(queries: Queries, bm25_TI: Floats) -> tuple[NDArray[np.int64], list[float], list[dict[str, float]]]:
    """The ranks by the weighted sum, the weight that each half of the images chose for the other, and the recalls of
    every weight."""
    cosines_TI, words_TI = scaled(queries.cosines_TI), scaled(bm25_TI)
    ranks_WT = np.stack(
        [ranks(queries, lambda text, w=w: by_score(w * cosines_TI[text] + (1 - w) * words_TI[text])) for w in WEIGHTS]
    )
    half_T = halves(queries.corpus)[queries.corpus.caption_image]
    hits_WT = (ranks_WT[:, :, None] <= np.array(KS)).sum(axis=2)
    chosen = [int(hits_WT[:, half_T != half].sum(axis=1).argmax()) for half in (0, 1)]
    return np.where(half_T == 0, *ranks_WT[chosen]), WEIGHTS[chosen].tolist(), [recalls(one) for one in ranks_WT]


def halves(corpus: Corpus) -> NDArray[np.int64]:
    """0 or 1 for each image, half of them each."""
    return np.random.default_rng(0).permutation(corpus.num_images) % 2


def recalls(ranks_T: NDArray[np.int64]) -> dict[str, float]:
    return {f"R@{k}": round(100 * float(np.mean(ranks_T <= k)), 2) for k in KS}


def difference(
    queries: Queries, ours_T: NDArray[np.int64], base_T: NDArray[np.int64], is_used_I: NDArray[np.bool_]
) -> dict[str, Any]:
    """Recalls, and their differences to the base with intervals, for the captions of some images."""
    corpus = queries.corpus
    used_T, new_I = is_used_I[corpus.caption_image], np.cumsum(is_used_I) - 1
    images = np.flatnonzero(is_used_I)

    def table(ranks_T: NDArray[np.int64]) -> RankTable:
        return RankTable(
            tuple(corpus.image_ids[image] for image in images),
            corpus.caption_ids[used_T],
            new_I[corpus.caption_image[used_T]],
            np.ones(len(images), dtype=np.int64),  # only image retrieval is compared
            ranks_T[used_T],
        )

    found = compare_ranks([table(ours_T)], [table(base_T)]).difference.image_retrieval
    bounds = {
        name: [round(bound, 1) for bound in (one.value, one.interval.low, one.interval.high)]
        for name, one in found.items()
    }
    return {**recalls(ours_T[used_T]), "difference": bounds}


def measure(index: Index) -> dict[str, Any]:
    queries = Queries.of(index)
    corpus, cosines_TI = queries.corpus, queries.cosines_TI
    everything, half_I = np.ones(corpus.num_images, dtype=bool), halves(corpus)
    vectors_T = ranks(queries, lambda text: by_score(cosines_TI[text]))

    def hybrid_ranks(bm25_TI: Floats, has_captions_I: NDArray[np.bool_] | None = None) -> NDArray[np.int64]:
        return ranks(queries, lambda text: hybrid_order(cosines_TI[text], bm25_TI[text], has_captions_I))

    bm25_TI = bm25_of(queries)
    weighted_T, weights, by_weight = weighted_ranks(queries, bm25_TI)
    of_half_TI = bm25_of(queries, lambda image, place: half_I[image] == 0)
    half_T, plain_T = hybrid_ranks(of_half_TI, half_I == 0), hybrid_ranks(of_half_TI)
    systems = {
        "vectors": (vectors_T, everything),
        "BM25": (ranks(queries, lambda text: best(bm25_TI[text], corpus.num_images)), everything),
        "hybrid": (hybrid_ranks(bm25_TI), everything),
        "weighted sum": (weighted_T, everything),
        "one: hybrid": (hybrid_ranks(one_caption(queries)), everything),
        "half: hybrid, images with captions": (half_T, half_I == 0),
        "half: hybrid, images without": (half_T, half_I == 1),
        "half: plain, images with captions": (plain_T, half_I == 0),
        "half: plain, images without": (plain_T, half_I == 1),
        "names: hybrid": (hybrid_ranks(bm25_of(queries, lambda image, place: False)), everything),
    }
    rows = {name: difference(queries, ranks_T, vectors_T, used) for name, (ranks_T, used) in systems.items()}
    return {
        "systems": rows,
        "weights": weights,
        "by_weight": by_weight,
        "images": corpus.num_images,
        "captions": corpus.num_captions,
    }


def one_caption(queries: Queries) -> Floats:
    """(T, I): the BM25 if each image has only the caption after the place of the query."""
    place_T = queries.place_T
    bm25_TI, count = np.empty_like(queries.cosines_TI), int(place_T.max()) + 1
    for place in range(count):
        words = Keywords.of(
            words_without(queries.corpus, place, lambda image, at, place=place: at == (place + 1) % count)
        )
        for text in np.flatnonzero(place_T == place).tolist():
            bm25_TI[text] = words.scores(queries.corpus.captions[text])
    return bm25_TI


def show(rows: dict[str, dict[str, Any]]) -> None:
    """Each system on a line: its recalls, and their differences to the vectors with intervals."""
    for name, row in rows.items():
        cells = [
            f"{row[key]:6.2f} ({value:+.1f}: {low} to {high})" for key, (value, low, high) in row["difference"].items()
        ]
        sys.stderr.write(f"{name:<36}{'  '.join(cells)}\n")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("index", type=Path, help="an index of one split of a corpus")
    args = parser.parse_args(arguments)
    found = measure(Index.open(args.index))
    show(found["systems"])
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
