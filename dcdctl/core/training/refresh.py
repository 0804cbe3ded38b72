"""New hard candidates during a training: the student's own, scored by the teacher and added to the cache.

Each refresh writes a cache to the run's folder, which extends the one before. A run that resumes reads finished caches.
If it was killed during a refresh, it mines again, with the same weights from its checkpoint.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from dcdctl.core import scoring
from dcdctl.core.config import build
from dcdctl.core.data import RaggedArray
from dcdctl.core.devices import Compute
from dcdctl.core.errors import ConfigError
from dcdctl.core.models import DualEncoder, FusionScorer, Model
from dcdctl.core.progress import Track, silent
from dcdctl.core.scoring import Source
from dcdctl.core.teacher import (
    CandidateConfig,
    Candidates,
    TeacherCache,
    build_cache,
    draw_candidates,
    mine_candidates,
    read_cache,
)

POOL = 4
"""Fusion students: random candidates scored per candidate kept. A fusion student cannot score the whole corpus for each
query."""


def refresh_cache(
    cache: TeacherCache,
    folder: Path,
    student: Model,
    teacher: FusionScorer,
    source: Source,
    *,
    compute: Compute,
    step: int,
    track: Track = silent,
) -> TeacherCache:
    """A cache that adds the student's own hardest candidates, as many per query as the cache's plan has, with the
    teacher's scores.

    The student reads `source`; the teacher scores with `compute` (`teacher_compute`), because the two may have features
    of different encoders.
    """
    # cache.json is written last, so a refresh that has it is complete.
    if (folder / "cache.json").exists():
        return read_cache(folder, corpus=source.corpus, teacher=teacher.digest)
    planned = build(CandidateConfig, cache.plan["candidates"], "candidates")
    # Each refresh draws another random pool, and the same one again if it is repeated.
    config = replace(planned, seed=planned.seed + step)
    # Without dropout the candidates are a function of the weights; `loop.train` switches back to training mode.
    student.eval()
    if student.kind == "dual":
        mined = _nearest_by_vectors(student, source, config, compute.device, track)
    else:
        mined = _hardest_of_pool(student, source, config, compute.device)
    return build_cache(
        source.corpus, teacher, folder, config, compute=compute, extend=cache.folder, drawn=mined, track=track
    )


def teacher_compute(cache: TeacherCache, compute: Compute) -> Compute:
    """How to score with the teacher of a cache: at the cache's precision, and from stored features if the cache was
    scored from some.

    ConfigError if it was and `compute` names no features.
    """
    if cache.plan["features"] is None:
        compute = replace(compute, features=None)
    elif compute.features is None:
        raise ConfigError(
            "the cache was made with --features, and the run has none", hint="name the folder with --features"
        )
    return replace(compute, precision=cache.plan["precision"])


def _nearest_by_vectors(
    student: DualEncoder, source: Source, config: CandidateConfig, device: torch.device, track: Track
) -> Candidates:
    """The nearest images and captions by a dual student's vectors."""
    vectors = scoring.embed_with_model(student, source, device, track)
    # The vectors are given, so no model is loaded by this name.
    nearest = replace(config, kind="embedding", model="the student")
    return mine_candidates(source.corpus, nearest, vectors)


def _hardest_of_pool(
    student: FusionScorer, source: Source, config: CandidateConfig, device: torch.device
) -> Candidates:
    """The candidates that a fusion student scores highest in a random pool."""
    wide = replace(config, kind="random", model="", per_query=POOL * config.per_query)
    pool = draw_candidates(source.corpus, wide)

    def hardest(lists: RaggedArray, *, is_image_query: bool) -> RaggedArray:
        query = lists.rows
        pairs = (query, lists.values) if is_image_query else (lists.values, query)
        scores = (
            scoring.score_pairs(student, source, *pairs, compute=Compute(device=device)) if len(query) else np.empty(0)
        )
        # A stable sort: equal scores keep the order of the pool.
        order = np.lexsort((-scores, query))
        rank = np.arange(len(query)) - lists.offsets[query[order]]
        best = order[rank < config.per_query]
        return RaggedArray.from_pairs(query[best], lists.values[best], len(lists))

    return Candidates(
        hardest(pool.texts_of_image, is_image_query=True), hardest(pool.images_of_text, is_image_query=False)
    )
