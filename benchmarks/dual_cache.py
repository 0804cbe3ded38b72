"""Cost of a teacher cache of a dual encoder: encoding, scores, and the scores by plain NumPy from the same vectors.

    python benchmarks/dual_cache.py [--images 2000] [--width 512] OUT

The corpus is `scenes`; its blocks of 128 images give 640 captions per image. The dual encoder is tiny and has vectors
of a real width, so that the time of the scores is real and that of the encoding is not. Times are processor seconds of
one thread. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from dcdctl.core import models, scoring
from dcdctl.core.data import Corpus, PrepareOptions, manifest, prepare_corpus
from dcdctl.core.devices import Compute, cpu_name
from dcdctl.core.teacher import CandidateConfig, build
from dcdctl.core.teacher.cache_format import planned_name, read_pairs

T = TypeVar("T")
GATHERED = 4096
"""Pairs whose vectors NumPy gathers at a time."""


def timed(work: Callable[[], T]) -> tuple[float, T]:
    started = time.process_time()
    result = work()
    return time.process_time() - started, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--width", type=int, default=512)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    sets = [f"counts.train={arguments.images}", "counts.val=2", "counts.test=2", "side_px=64"]
    prepare_corpus(manifest.find_manifest("scenes", sets), arguments.out / "data", options=PrepareOptions(workers=1))
    corpus = Corpus.open(arguments.out / "data", "train")
    size = models.DualSize(
        hidden_size=32, num_vision_layers=1, num_text_layers=1, projection_dim=arguments.width, image_size=32
    )
    scorer = models.DualScorer(models.dual_student(size, corpus.captions, vocab_size=200))
    job = build.plan_cache(corpus, scorer, arguments.out / "cache", CandidateConfig(kind="blocks", block_size=128))
    shards = [read_pairs(job.build.written(planned_name(shard))) for shard in job.shards]
    encode_s, source = timed(lambda: scoring.encode_corpus(scorer, job.source, job.compute))
    score_s, found = timed(
        lambda: [scoring.score_pairs(scorer, source, pairs.image, pairs.text, compute=Compute()) for pairs in shards],
    )
    images_ID = source.images(range(corpus.num_images)).vectors.numpy()  # type: ignore[union-attr]
    texts_TD = source.texts(range(corpus.num_captions)).vectors.numpy()  # type: ignore[union-attr]

    def gathered() -> list[np.ndarray]:
        return [
            np.concatenate(
                [
                    np.einsum("pd,pd->p", images_ID[pairs.image[part]], texts_TD[pairs.text[part]])
                    for part in (slice(start, start + GATHERED) for start in range(0, len(pairs), GATHERED))
                ]
            )
            for pairs in shards
        ]

    gather_s, expected = timed(gathered)
    product_s, _ = timed(lambda: images_ID @ texts_TD.T)
    scale = scorer.dual.logit_scale.item()
    difference = max(float(np.abs(ours - scale * theirs).max()) for ours, theirs in zip(found, expected, strict=True))
    total_s, _ = timed(lambda: build.score_planned(job))
    num_pairs = sum(map(len, shards))
    result = {
        "cpu": cpu_name(),
        "images": corpus.num_images,
        "captions": corpus.num_captions,
        "pairs": num_pairs,
        "encode_s": encode_s,
        "score_s": score_s,
        "pairs_per_s": num_pairs / score_s,
        "numpy_pairs_per_s": num_pairs / gather_s,
        "numpy_product_of_all_s": product_s,
        "largest_difference": difference,
        "encode_score_write_and_seal_s": total_s,
    }
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
