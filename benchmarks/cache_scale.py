"""Cost of a teacher cache of COCO's size, without the teacher: plan, write and reopen.

    python benchmarks/cache_scale.py [--images 113287] [--captions 566747] [--per-query 63] OUT

The corpus is made up: captions are random words, and the scorer computes a number from a pair's indices instead of
running a model. The measured time is therefore that of everything except the teacher. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dcdctl.core.devices import Compute
from dcdctl.core.models import States
from dcdctl.core.teacher import CandidateConfig, build
from dcdctl.core.teacher import cache as teacher_cache

WORDS = [f"{first}{second}{third}" for first in "bdfgklmnprst" for second in "aeiou" for third in "bdgklmnprst"]


class MadeUp:
    """A corpus of random words, without images."""

    split, fingerprint = "train", "made up"

    def __init__(self, num_images: int, num_captions: int) -> None:
        rng = np.random.default_rng(0)
        self.num_images, self.num_captions = num_images, num_captions
        self.caption_image = np.arange(num_captions) * num_images // num_captions
        words = rng.integers(0, len(WORDS), (num_captions, 10))
        self.captions = [" ".join(WORDS[word] for word in row) for row in words]
        self._starts = np.searchsorted(self.caption_image, np.arange(num_images + 1)).tolist()

    def captions_of(self, image: int) -> range:
        return range(self._starts[image], self._starts[image + 1])

    def image_bytes(self, image: int) -> bytes:
        return image.to_bytes(8, "little")


class IndexSource:
    """Indices in place of features: each image and caption is encoded as its own index."""

    def __init__(self, corpus: MadeUp) -> None:
        self.corpus = corpus

    def images(self, image_ix: Any) -> States:
        return _indices(image_ix)

    def texts(self, text_ix: Any) -> States:
        return _indices(text_ix)


def _indices(index: Any) -> States:
    numbers = torch.as_tensor(np.asarray(index))
    return States(numbers[:, None, None], torch.ones(len(numbers), 1, dtype=torch.bool))


class FreeScorer(nn.Module):
    """A scorer that costs almost nothing."""

    digest = "stub"
    preprocess = SimpleNamespace(image_size_px=384, max_text_len=40)

    def encode_images(self, states: States) -> States:
        return states

    def encode_texts(self, states: States) -> States:
        return states

    def score_pairs(self, images: States, texts: States, image_ix_P: Tensor, text_ix_P: Tensor) -> Tensor:
        hashed = images.tokens[image_ix_P, 0, 0] * 7919 + texts.tokens[text_ix_P, 0, 0] * 104729
        return (hashed % 20011).float() / 1000 - 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--images", type=int, default=113_287)
    parser.add_argument("--captions", type=int, default=566_747)
    parser.add_argument("--per-query", type=int, default=63)
    options = parser.parse_args()
    corpus: Any = MadeUp(options.images, options.captions)
    scorer: Any = FreeScorer()
    seconds = {}
    started = time.perf_counter()

    def lap(name: str) -> None:
        nonlocal started
        seconds[name] = round(time.perf_counter() - started, 2)
        sys.stdout.write(f"{name}: {seconds[name]:.2f} s, peak memory so far {peak_mib():,.0f} MiB\n")
        started = time.perf_counter()

    compute = Compute(batch_size=65_536)
    job = build.plan_cache(corpus, scorer, options.out, CandidateConfig(per_query=options.per_query), compute=compute)
    job = replace(job, source=IndexSource(corpus))
    lap("plan")
    build.score_planned(job)
    lap("score and seal")
    cache = teacher_cache.read_cache(options.out)
    lap("reopen")
    cache.lookup(np.array([options.images // 2]), np.array([0]))
    lap("first score")
    rng = np.random.default_rng(1)
    cache.lookup(rng.integers(0, options.images, 512 * 64), rng.integers(0, options.captions, 512 * 64))
    lap("scores of a batch from all parts of the cache")
    num_candidates = len(cache.candidates.texts_of_image.values) + len(cache.candidates.images_of_text.values)
    lap("candidate lists")
    cache.lookup(rng.integers(0, options.images, 512 * 64), rng.integers(0, options.captions, 512 * 64))
    lap("scores of another batch")
    size = sum(path.stat().st_size for path in options.out.iterdir())
    sizes = {"pairs": cache.num_pairs, "candidates": num_candidates, "bytes_per_pair": round(size / cache.num_pairs, 2)}
    sys.stdout.write(json.dumps({**sizes, "peak_mib": round(peak_mib()), "seconds": seconds}) + "\n")


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    main()
