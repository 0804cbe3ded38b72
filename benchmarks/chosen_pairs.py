"""A cache of some pairs of another one: for each text as many images, spread evenly over a student's order of those
that the cache has for it.

    python benchmarks/chosen_pairs.py --cache caches/wide --data data/scenes --model runs/student --pairs 53760
        --out caches/strata

`dcdctl cache-teacher` scores the first images of that order, or random ones, and --scores takes the scores of planned
pairs alone. So this script takes the scores of a wide cache, which holds more images than are chosen, and asks no
teacher. Its cost is not that of a cache of these pairs: the teacher would be asked for --pairs.

The new cache has the plan of the wide one, but for `max_pairs` and `extends`, so a training reads it with the recipe of
the wide one.

Shape letters: P pairs of the wide cache, T texts, K images of a text.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import numpy as np

from dcdctl.core import artifacts, files, models
from dcdctl.core.artifacts import Build
from dcdctl.core.data import Corpus, Flags, Indices, Values
from dcdctl.core.engines import ON_CPU
from dcdctl.core.teacher import build, embed_corpus, read_cache
from dcdctl.core.teacher.cache_format import (
    CACHE,
    DROPPED_FILE,
    ITEMS_FILE,
    Pairs,
    pairs_name,
    shards_of,
    write_pairs,
)
from dcdctl.core.teacher.candidate_lists import IMAGE_CANDIDATE


def spread_evenly(length: int, count: int) -> Indices:
    """So many places of a list of this length, from the first to the last.

    >>> spread_evenly(10, 4).tolist(), spread_evenly(3, 1).tolist(), spread_evenly(2, 4).tolist()
    ([0, 3, 6, 9], [0], [0, 1])
    """
    return np.unique(np.linspace(0, length - 1, min(count, length)).round().astype(np.int64))


def choose(text_P: Indices, student_P: Values, is_candidate_P: Flags, num_texts: int, num_pairs: int) -> Flags:
    """Which pairs stay: all that are no candidates, and candidates of every text, `num_pairs` in all.

    >>> text_P, student_P = np.array([0, 0, 0, 0, 1, 1]), np.array([9.0, 1.0, 3.0, 2.0, 5.0, 6.0])
    >>> choose(text_P, student_P, np.array([False, True, True, True, True, True]), num_texts=2, num_pairs=4).tolist()
    [True, False, True, False, False, True]
    """
    budget = num_pairs - int((~is_candidate_P).sum())
    # Texts get equally many, or one more or less.
    count_T = np.diff(np.arange(num_texts + 1) * budget // num_texts)
    order = np.lexsort((-student_P, text_P))
    order = order[is_candidate_P[order]]
    first_T = np.searchsorted(text_P[order], np.arange(num_texts + 1))
    stays_P = ~is_candidate_P
    for text, count in enumerate(count_T.tolist()):
        of_text_K = order[first_T[text] : first_T[text + 1]]
        if count:
            stays_P[of_text_K[spread_evenly(len(of_text_K), count)]] = True
    return stays_P


def write(wide: Path, data: Path, model: str, num_pairs: int, out: Path) -> None:
    """Write the cache of the chosen pairs."""
    cache, corpus = read_cache(wide), Corpus.open(data, "train")
    image_P, text_P = cache.scored_pairs
    student_P = embed_corpus([(model, models.load_searchable(model))], corpus, ON_CPU).lookup(image_P, text_P)
    stays_P = choose(text_P, student_P, cache.role_P == IMAGE_CANDIDATE, corpus.num_captions, num_pairs)
    pairs = Pairs(image_P[stays_P], text_P[stays_P], cache.score_P[stays_P], cache.role_P[stays_P])
    plan = {**cache.plan, "max_pairs": num_pairs, "extends": files.sha256_of(wide / CACHE.seal_file)}
    made = Build(out, plan, CACHE)
    with made.lock():
        made.begin(restart=True)
        artifacts.write_document(out / DROPPED_FILE, {"not chosen": int((~stays_P).sum())})
        with made.write(ITEMS_FILE) as partial:
            shutil.copyfile(wide / ITEMS_FILE, partial)
        for shard, images in enumerate(shards_of(plan)):
            inside = slice(*np.searchsorted(pairs.image, (images.start, images.stop)).tolist())
            with made.write(pairs_name(shard)) as partial:
                write_pairs(partial, pairs.at(inside))
        build.seal(made)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True, help="cache that has more pairs than are expected")
    parser.add_argument("--data", type=Path, required=True, help="its corpus")
    parser.add_argument("--model", required=True, help="run of the student whose order counts")
    parser.add_argument("--pairs", type=int, required=True, help="pairs of the new cache, positives included")
    parser.add_argument("--out", type=Path, required=True, help="folder of the new cache")
    return parser


def main() -> None:
    args = make_parser().parse_args()
    write(args.cache, args.data, args.model, args.pairs, args.out)


if __name__ == "__main__":
    main()
