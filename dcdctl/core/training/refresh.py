"""New hard candidates while a student learns: what it finds hard by now, scored by the teacher and added to the cache.

The caches lie in the run's folder, one for each refresh, each an extension of the one before: a run that goes on reads them, and mines anew
only where it was killed before one was whole, with the very weights it had then.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dcdctl.core import models, scoring
from dcdctl.core.config import build
from dcdctl.core.data import Corpus
from dcdctl.core.errors import ConfigError
from dcdctl.core.models import DualModel
from dcdctl.core.progress import Track, silent
from dcdctl.core.scoring import Source
from dcdctl.core.teacher import (
    CandidateConfig,
    Candidates,
    Lists,
    ScoringOptions,
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
    student: Any,
    teacher: Any,
    source: Source,
    *,
    options: ScoringOptions,
    step: int,
    track: Track = silent,
) -> TeacherCache:
    """The cache with the student's own hardest candidates, as many for each query as the plan has, their missing scores computed.

    `source` is what the student reads, `options` how the teacher scores (`scoring_options`): their features may be of other encoders.
    """
    if (folder / "cache.json").exists():
        return read_cache(folder, corpus=source.corpus, teacher=teacher.digest)
    planned = build(CandidateConfig, cache.plan["candidates"], "candidates")
    config = dataclasses.replace(planned, seed=planned.seed + step)
    student.eval()
    is_dual, device = isinstance(student, DualModel), options.device
    drawn = _of_dual(student, source, config, device, track) if is_dual else _of_fusion(student, source, config, device)
    return build_cache(source.corpus, teacher, folder, config, options=options, extend=cache.folder, drawn=drawn, track=track)


def scoring_options(
    cache: TeacherCache, teacher: Any, corpus: Corpus, kept_in: Path | None, device: torch.device, track: Track = silent
) -> ScoringOptions:
    """How the teacher scored what the cache holds: from its features in `kept_in`, if it did; ConfigError if there is no such folder."""
    kept = None
    if cache.plan["features"] is not None:
        if kept_in is None:
            raise ConfigError("the cache was made with --features, and the run has none", hint="name the folder with --features")
        kept = scoring.open_or_build(kept_in, corpus, teacher, device=device, track=track)
    return ScoringOptions(device=device, precision=cache.plan["precision"], features=kept)


def _of_dual(student: DualModel, source: Source, config: CandidateConfig, device: torch.device, track: Track) -> Candidates:
    """Nearest by the student's vectors."""
    found = scoring.embed_with_model(student, source, device, track)
    nearest = dataclasses.replace(config, kind="embedding", shares={}, model="the student")
    return mine_candidates(source.corpus, nearest, found)


def _of_fusion(student: models.FusionScorer, source: Source, config: CandidateConfig, device: torch.device) -> Candidates:
    """The student's highest scores among candidates drawn at random."""
    wide = dataclasses.replace(config, kind="random", shares={}, model="", per_query=POOL * config.per_query)
    pool = draw_candidates(source.corpus, wide)

    def hardest(lists: Lists, *, is_image_query: bool) -> Lists:
        query = np.repeat(np.arange(len(lists)), np.diff(lists.offsets))
        pairs = (query, lists.values) if is_image_query else (lists.values, query)
        scores = scoring.score_pairs(student, source, *pairs, device=device, batch_size=256) if len(query) else np.empty(0)
        order = np.lexsort((-scores, query))
        place = np.arange(len(query)) - lists.offsets[query[order]]
        best = order[place < config.per_query]
        return Lists.from_pairs(query[best], lists.values[best], len(lists))

    return Candidates(hardest(pool.texts_of_image, is_image_query=True), hardest(pool.images_of_text, is_image_query=False))
