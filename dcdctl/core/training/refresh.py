"""New hard candidates while a student learns: what it finds hard by now, scored by the teacher and added to the cache.

The caches lie in the run's folder, one for each refresh, each an extension of the one before: a run that goes on reads them, and mines anew
only where it was killed before one was whole, with the very weights it had then.
"""

from __future__ import annotations

import dataclasses
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
"""Fusion students: candidates drawn at random for each that is kept."""


def refreshed(
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
    """The cache with the student's own hardest candidates, as many for each query as the plan has, their missing scores computed.

    `source` is what the student reads, `compute` how the teacher scores (`teacher_compute`): their features may be of other encoders.
    """
    if (folder / "cache.json").exists():
        return read_cache(folder, corpus=source.corpus, teacher=teacher.digest)
    planned = build(CandidateConfig, cache.plan["candidates"], "candidates")
    config = dataclasses.replace(planned, seed=planned.seed + step)
    student.eval()
    if student.kind == "dual":
        drawn = _of_dual(student, source, config, compute.device, track)
    else:
        drawn = _of_fusion(student, source, config, compute.device)
    return build_cache(source.corpus, teacher, folder, config, compute=compute, extend=cache.folder, drawn=drawn, track=track)


def teacher_compute(cache: TeacherCache, compute: Compute) -> Compute:
    """How to score with the teacher of a cache: at the cache's precision, and from stored features if the cache was scored from some.

    ConfigError if it was and `compute` names no features.
    """
    if cache.plan["features"] is None:
        compute = replace(compute, features=None)
    elif compute.features is None:
        raise ConfigError("the cache was made with --features, and the run has none", hint="name the folder with --features")
    return replace(compute, precision=cache.plan["precision"])


def _of_dual(student: DualEncoder, source: Source, config: CandidateConfig, device: torch.device, track: Track) -> Candidates:
    """Nearest by the student's vectors."""
    found = scoring.embed_with_model(student, source, device, track)
    nearest = dataclasses.replace(config, kind="embedding", shares={}, model="the student")
    return mine_candidates(source.corpus, nearest, found)


def _of_fusion(student: FusionScorer, source: Source, config: CandidateConfig, device: torch.device) -> Candidates:
    """The student's highest scores among candidates drawn at random."""
    wide = dataclasses.replace(config, kind="random", shares={}, model="", per_query=POOL * config.per_query)
    pool = draw_candidates(source.corpus, wide)

    def hardest(lists: RaggedArray, *, is_image_query: bool) -> RaggedArray:
        query = lists.rows
        pairs = (query, lists.values) if is_image_query else (lists.values, query)
        scores = scoring.score_pairs(student, source, *pairs, compute=Compute(device=device)) if len(query) else np.empty(0)
        order = np.lexsort((-scores, query))
        place = np.arange(len(query)) - lists.offsets[query[order]]
        best = order[place < config.per_query]
        return RaggedArray.from_pairs(query[best], lists.values[best], len(lists))

    return Candidates(hardest(pool.texts_of_image, is_image_query=True), hardest(pool.images_of_text, is_image_query=False))
