"""Recalls of some queries over a whole gallery, for models that are too slow to ask all queries.

    python benchmarks/sampled_recalls.py scenes-vilt runs/late-all-0 --data data/more --out sampled.json

Every model gets the same captions, each against all images, and the same images, each against all captions. A tie
counts against the positive, as in `dcdctl eval`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from reports import say

from dcdctl.core import models, scoring
from dcdctl.core.data import Corpus, Direction, Indices
from dcdctl.core.engines import ON_CPU
from dcdctl.core.models import Scorer
from dcdctl.core.progress import silent

DEPTHS = (1, 5, 10)


def recalls(scorer: Scorer, corpus: Corpus, images: Indices, captions: Indices) -> dict[str, dict[str, float]]:
    """The recalls of both directions, in percent."""
    source = scoring.open_source(corpus, scorer, ON_CPU, silent)
    found = {}
    for direction in Direction:
        if direction == Direction.IMAGE:
            image_P, text_P = (index.ravel() for index in np.meshgrid(np.arange(corpus.num_images), captions))
            is_own = (image_P == corpus.caption_image[text_P]).reshape(len(captions), -1)
        else:
            text_P, image_P = (index.ravel() for index in np.meshgrid(np.arange(corpus.num_captions), images))
            is_own = (image_P == corpus.caption_image[text_P]).reshape(len(images), -1)
        score_QG = scoring.score_pairs(scorer, source, image_P, text_P, compute=ON_CPU).reshape(is_own.shape)
        best_Q = np.where(is_own, score_QG, -np.inf).max(axis=1)
        # The number of other candidates that score at least as high.
        rank_Q = ((score_QG >= best_Q[:, None]) & ~is_own).sum(axis=1) + 1
        found[str(direction)] = {f"R@{depth}": round(100 * float((rank_Q <= depth).mean()), 2) for depth in DEPTHS}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--split", default="test")
    parser.add_argument("--captions", type=int, default=100)
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    corpus, rng = Corpus.open(args.data, args.split), np.random.default_rng(0)
    captions = np.sort(rng.choice(corpus.num_captions, args.captions, replace=False))
    images = np.sort(rng.choice(corpus.num_images, args.images, replace=False))
    document = json.loads(args.out.read_text()) if args.out.exists() else {}
    for ref in args.models:
        if ref not in document:
            found = recalls(models.load_scorer(ref).eval(), corpus, images, captions)
            document[ref] = {**found, "rsum": round(sum(sum(each.values()) for each in found.values()), 2)}
            args.out.write_text(json.dumps(document, indent=1) + "\n")
            say(f"{ref}: {document[ref]}")


if __name__ == "__main__":
    main()
