"""One `dcdctl cache-teacher`: what needs no model is checked first, then the corpus is opened, and the teacher is
loaded last. Also the cost of a planned cache, and a check of scores against their teacher."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dcdctl.core import artifacts, files, models
from dcdctl.core.artifacts import Build
from dcdctl.core.data import Corpus, counted_corpus
from dcdctl.core.engines import Compute
from dcdctl.core.errors import StaleError
from dcdctl.core.models import Model, Scorer
from dcdctl.core.places import shown
from dcdctl.core.progress import Track, silent
from dcdctl.core.scoring import PairScorer, measure_rate, open_source
from dcdctl.core.teacher import build
from dcdctl.core.teacher.budget import LEFT_OUT
from dcdctl.core.teacher.build import BYTES_PER_PAIR, CacheJob, PlannedCache, kind_of, score_pairs
from dcdctl.core.teacher.cache import TeacherCache, read_cache
from dcdctl.core.teacher.cache_format import CACHE, DROPPED_FILE, Pairs, read_shard
from dcdctl.core.teacher.candidates import most_pairs

TOLERANCES = {"float32": 1e-4, "bfloat16": 0.1, "float16": 0.02}
"""Largest allowed difference of a recomputed score, by precision, relative to max(1, |cached score|)."""
HALF_WEIGHTS = {"bfloat16": 0.25, "float16": 0.03}
"""Largest allowed difference for a model whose weights have this type. Its head rounds too: bfloat16 logits of 16 to 32
have steps of 0.125."""


POOL_RECIPE = "pool-distilled"
"""Its candidates are blocks of images and texts, which need no model and have many scores for each of them."""


def command_to_compare(data: Path, split: str, teacher: str, out: str) -> str:
    """The command that scores a split of a pool, or of captioned images, so that the order of a model can be compared
    with a teacher that is no dual encoder."""
    of_split = [] if split == "train" else ["--split", split]
    words = ["--data", shown(data), *of_split, "--teacher", teacher, "--recipe", POOL_RECIPE, "--out", out]
    return shlex.join(["dcdctl", "cache-teacher", *words])


@dataclass(frozen=True, kw_only=True)
class CacheCost:
    """The cost of scoring a plan, or the most that it can be."""

    num_pairs: int
    num_to_score: int
    """Pairs without a score. The others have one from the extended cache or from an earlier run."""
    num_left_out: int
    """Candidates that exceed `--max-pairs`."""
    is_most: bool = False
    """Whether the pairs are only counted, by the sizes of the corpus; there may be fewer."""
    pairs_per_s: float | None = None
    """Rate of a short trial by this process on this device; None without a trial: if the pairs are only counted, or
    scored by the workers of an engine."""
    seconds: float | None = None
    """Remaining time."""
    disk_bytes: int
    """Upper bound."""


def _resolve(job: CacheJob) -> dict[str, Any]:
    """The model settings of a job's teacher, after every check that opens no corpus and no weights.

    ConfigError for a wrong model setting, ModelError for a reference that names nothing, MissingError if the candidates
    need a package that is not installed, StaleError or InputError if the output folder is taken or cannot be written.
    """
    overrides = models.parse_overrides(job.model_set)
    models.check_ref(job.teacher, overrides)
    job.candidates.check_model()
    job.candidates.require_packages()
    CACHE.check_folder(job.out)
    if job.compute.features is not None:
        files.check_output_folder(job.compute.features)
    return overrides


@contextmanager
def _planned(job: CacheJob, track: Track) -> Iterator[PlannedCache]:
    """The plan of a cache with its teacher, which no other process replaces meanwhile."""
    overrides = _resolve(job)
    corpus = job.open_corpus()
    # A missing or damaged cache is an error before the teacher is loaded.
    if job.extend is not None:
        read_cache(job.extend)
    teacher = models.load_scorer(job.teacher, overrides, track)
    # Over planning and scoring: another plan must not replace this one in between.
    with files.lock(job.out), models.naming_fields({"candidates": job.candidates}):
        yield build.plan_cache(job, corpus, teacher, track)


def cache_scores(
    job: CacheJob, *, track: Track = silent, on_estimate: Callable[[CacheCost], None] | None = None
) -> TeacherCache:
    """Score the candidates of a job, or resume.

    `on_estimate` receives the number of pairs, the time and the disk space before anything is scored. Without it there
    is no trial, which takes seconds.
    """
    with _planned(job, track) as planned:
        if on_estimate is not None:
            on_estimate(estimate_cost(planned))
        return build.score_planned(planned, track=track)


def preview_cost(job: CacheJob, track: Track = silent) -> CacheCost:
    """What `cache_scores` would cost. Without a teacher, or for data that name a manifest, the most that it can cost,
    by the counts of corpus or manifest: no model is loaded, no candidates are drawn, and the time is not known."""
    corpus = counted_corpus(job.data, job.split, job.max_images)
    if job.teacher and corpus is None:
        with _planned(job, track) as planned:
            return estimate_cost(planned)
    most = most_pairs(corpus or job.open_corpus(), job.candidates)
    num_to_score = min(most, job.max_pairs or most)
    num_pairs = num_to_score + (read_cache(job.extend).num_pairs if job.extend else 0)
    return CacheCost(
        num_pairs=num_pairs,
        num_to_score=num_to_score,
        num_left_out=most - num_to_score,
        is_most=True,
        disk_bytes=BYTES_PER_PAIR * num_pairs,
    )


def estimate_cost(job: PlannedCache) -> CacheCost:
    """Number of pairs, the rate of a short trial, and the time and space that the remaining pairs need."""
    missing = set(job.shards.missing())
    shards = [read_shard(job.build, shard) for shard in range(len(job.shards.names))]
    planned = [shards[shard] for shard in sorted(missing)]
    num_to_score = sum(int(np.isnan(pairs.score).sum()) for pairs in planned)
    num_pairs = sum(len(pairs) for pairs in shards)
    dropped_file = job.build.folder / DROPPED_FILE
    dropped = artifacts.read_document(dropped_file, hint=CACHE.remake) if dropped_file.exists() else {}
    rate = seconds = None
    # The workers of an engine may be faster than this process, or slower.
    if not job.compute.engine.sends_tasks:
        rate = _trial(job, next((pairs for pairs in planned if np.isnan(pairs.score).any()), None), num_to_score)
        seconds = num_to_score / rate if num_to_score else 0.0
    return CacheCost(
        num_pairs=num_pairs,
        num_to_score=num_to_score,
        num_left_out=dropped.get(LEFT_OUT, 0),
        pairs_per_s=rate,
        seconds=seconds,
        disk_bytes=BYTES_PER_PAIR * num_pairs,
    )


def _trial(job: PlannedCache, pairs: Pairs | None, num_to_score: int) -> float:
    """Pairs per second for the first images of a shard. The time includes the encoding of images and captions, as in
    the full run."""
    if pairs is None:
        return 0.0
    if job.teacher.keeps_states:
        # Each image and caption is encoded once for all its pairs, which no trial on a few images can show.
        num_images, num_texts = job.corpus.num_images, job.corpus.num_captions
        trial = PairScorer(
            scorer=job.teacher, source=job.source, images=range(num_images), texts=range(num_texts), compute=job.compute
        )
        return num_to_score / trial.workload(num_to_score, num_images, num_texts).seconds
    todo = np.flatnonzero(np.isnan(pairs.score))
    image_P, text_P = pairs.image[todo], pairs.text[todo]
    images = np.unique(image_P)

    def score_first(num_images: int) -> tuple[int, Callable[[], object]]:
        chosen = np.isin(image_P, images[:num_images])
        return int(chosen.sum()), partial(score_pairs, job, image_P[chosen], text_P[chosen])

    return measure_rate(score_first, len(todo), job.compute.device)


def verify_scores(
    folder: Path, corpus: Corpus, teacher: Scorer, count: int, *, compute: Compute, track: Track = silent
) -> float:
    """Recompute `count` scores of a finished cache; the largest difference relative to max(1, |cached score|).

    StaleError if the difference exceeds the rounding of the cache's precision, or if the cache belongs to another
    corpus or teacher, or was scored with other settings.
    """
    cache = read_cache(folder, corpus=corpus, teacher=teacher.digest)
    artifacts.expect(folder, cache.plan, {"precision": compute.precision, "features": kind_of(compute)})
    # Always the same pairs, so that a second check gives the same difference.
    chosen = np.sort(np.random.default_rng(0).permutation(cache.num_pairs)[:count])
    image, text, cached = cache.image_P[chosen], cache.text_P[chosen], cache.score_P[chosen]
    source = open_source(corpus, teacher, compute, track)
    teacher.to(compute.device).eval()
    recomputed = score_pairs(
        PlannedCache(Build(folder, cache.plan, CACHE), corpus, teacher, source, compute), image, text
    )
    difference = np.abs(cached - recomputed) / np.maximum(1, np.abs(cached))
    worst = int(difference.argmax())
    if difference[worst] > tolerance(teacher, compute.precision):
        pair = f"image {image[worst]} with caption {text[worst]}"
        raise StaleError(
            f"{folder}: {pair} scores {recomputed[worst]:.5f}, and the cache has {cached[worst]:.5f}",
            hint="delete the cache and run `dcdctl cache-teacher` again",
        )
    return float(difference[worst])


def tolerance(model: Model, precision: str) -> float:
    """Largest allowed difference of what a model computes twice, by precision and by the types of its weights."""
    types = {str(parameter.dtype).removeprefix("torch.") for parameter in model.parameters()}
    return max(TOLERANCES[precision], *(HALF_WEIGHTS.get(name, 0.0) for name in types), 0.0)
