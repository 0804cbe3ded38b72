"""Recalls of the mean of several dual teachers, as `dcdctl distill` averages them, beside those of each teacher.

    python benchmarks/mean_teachers.py runs/few-lite0-0 runs/few-lite2-0 --data data/few --split val --features features
        --out teachers.json

A tie counts against the positive, as in `dcdctl eval`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from reports import commit, say

from dcdctl.core import models
from dcdctl.core.data import Corpus
from dcdctl.core.engines import ON_CPU, Compute
from dcdctl.core.evaluation import measures
from dcdctl.core.teacher import embed_corpus


def recalls(refs: Sequence[str], corpus: Corpus, compute: Compute) -> dict[str, object]:
    """The recalls of the mean of these models, in percent, and their sum."""
    teacher = embed_corpus([(ref, models.load_searchable(ref)) for ref in refs], corpus, compute)
    columns = np.arange(corpus.num_captions)[None]
    score_IT = teacher.lookup(np.arange(corpus.num_images)[:, None], columns)
    is_own = corpus.caption_image[columns] == np.arange(corpus.num_images)[:, None]
    by_image, by_text = (
        measures.recall_at_k(_ranks(scores, own)) for scores, own in ((score_IT.T, is_own.T), (score_IT, is_own))
    )
    return {"image_retrieval": by_image, "text_retrieval": by_text, "rsum": measures.rsum(by_text, by_image)}


def _ranks(score_QG: np.ndarray, is_own: np.ndarray) -> np.ndarray:
    best_Q = np.where(is_own, score_QG, -np.inf).max(axis=1)
    # The number of other candidates that score at least as high.
    return ((score_QG >= best_Q[:, None]) & ~is_own).sum(axis=1) + 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--split", default="val")
    parser.add_argument("--features", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    corpus, compute = Corpus.open(args.data, args.split), replace(ON_CPU, features=args.features)
    document = json.loads(args.out.read_text()) if args.out.exists() else {}
    singles = [[ref] for ref in args.models]
    for refs in [*singles, args.models]:
        row = recalls(refs, corpus, compute)
        document[" + ".join(refs)] = {"data": str(args.data), "split": args.split, "commit": commit(), **row}
        say(f"{' + '.join(refs)}: RSUM {row['rsum']:.2f}")
    args.out.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
