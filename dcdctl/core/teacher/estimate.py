"""What a cache will cost before it is scored, and whether it still says what its teacher says after."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dcdctl.core import artifacts, distributed
from dcdctl.core.artifacts import Build
from dcdctl.core.data import Corpus
from dcdctl.core.devices import Compute
from dcdctl.core.errors import StaleError
from dcdctl.core.models import FusionScorer
from dcdctl.core.progress import Track, silent
from dcdctl.core.scoring import open_source
from dcdctl.core.teacher.build import BYTES_PER_PAIR, Job, kind_of, score_pairs
from dcdctl.core.teacher.cache import read_cache
from dcdctl.core.teacher.cache_format import CACHE, Pairs, pairs_name, planned_name, read_pairs

TRIAL_S = 2.0
"""Seconds of scoring that a rate is told from."""
TOLERANCES = {"float32": 1e-4, "bfloat16": 0.1, "float16": 0.02}
"""How far a score computed anew may lie from the cached one, relative to the larger of 1 and its size."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What scoring a plan takes."""

    num_pairs: int
    num_to_score: int
    """Pairs without a score: the others are those of the cache that is extended, or of an earlier run."""
    pairs_per_s: float
    """Of a short trial on this device, by this process."""
    seconds: float
    """Time left, for all processes together."""
    disk_bytes: int
    """At most."""


def estimate_cost(job: Job) -> Estimate:
    """How many pairs there are, how fast some of them are scored, and what that makes of the rest."""
    planned = [read_pairs(job.folder / planned_name(shard)) for shard in job.missing]
    num_to_score = sum(int(np.isnan(pairs.score).sum()) for pairs in planned)
    whole = [shard for shard in job.shards if shard not in set(job.missing)]
    num_pairs = sum(map(len, planned)) + sum(len(read_pairs(job.folder / pairs_name(shard))) for shard in whole)
    rate = _trial(job, next((pairs for pairs in planned if np.isnan(pairs.score).any()), None))
    seconds = num_to_score / rate / distributed.world_size() if num_to_score else 0.0
    return Estimate(
        num_pairs=num_pairs, num_to_score=num_to_score, pairs_per_s=rate, seconds=seconds, disk_bytes=BYTES_PER_PAIR * num_pairs
    )


def _trial(job: Job, pairs: Pairs | None) -> float:
    """Pairs a second of the first images of a shard; images and captions are encoded in that time, as in the whole."""
    if pairs is None:
        return 0.0
    todo = np.flatnonzero(np.isnan(pairs.score))
    first = np.unique(pairs.image[todo])
    count, elapsed, num_images = 0, 0.0, 1
    while elapsed < TRIAL_S and count < len(todo):
        some = todo[np.isin(pairs.image[todo], first[:num_images])]
        started = time.perf_counter()
        score_pairs(job, pairs.image[some], pairs.text[some])
        elapsed, count, num_images = time.perf_counter() - started, len(some), 4 * num_images
    return count / elapsed


def verify_scores(folder: Path, corpus: Corpus, teacher: FusionScorer, count: int, *, compute: Compute, track: Track = silent) -> float:
    """Compute some scores of a finished cache anew; the largest difference, relative to the larger of 1 and the score's size.

    StaleError if it is larger than rounding at the cache's precision allows, or if the cache is of another corpus or teacher, or was
    scored in another way.
    """
    cache = read_cache(folder, corpus=corpus, teacher=teacher.digest)
    artifacts.expect(folder, cache.plan, {"precision": compute.precision, "features": kind_of(compute)})
    chosen = np.sort(np.random.default_rng(0).permutation(cache.num_pairs)[:count])
    image, text, cached = cache.image_P[chosen], cache.text_P[chosen].astype(np.int64), cache.score_P[chosen]
    source = open_source(corpus, teacher, compute, track)
    teacher.to(compute.device).eval()
    anew = score_pairs(Job(Build(folder, cache.plan, CACHE), corpus, teacher, source, compute), image, text)
    difference = np.abs(cached - anew) / np.maximum(1, np.abs(cached))
    worst = int(difference.argmax())
    if difference[worst] > TOLERANCES[compute.precision]:
        pair = f"image {image[worst]} with caption {text[worst]}"
        raise StaleError(
            f"{folder}: {pair} scores {anew[worst]:.5f}, and the cache has {cached[worst]:.5f}",
            hint="delete the cache and run `dcdctl cache-teacher` again",
        )
    return float(difference[worst])
