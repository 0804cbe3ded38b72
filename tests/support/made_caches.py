"""Teacher caches of corpora and teachers in memory, in the place of `cache_scores`, which opens both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dcdctl.core import files
from dcdctl.core.data import Corpus
from dcdctl.core.progress import Track, silent
from dcdctl.core.teacher import CacheJob, CandidateConfig, TeacherCache, build


def plan_cache(
    corpus: Corpus, teacher: Any, folder: Path, config: CandidateConfig, *, track: Track = silent, **options: Any
) -> build.PlannedCache:
    """The planned cache of these candidates; `options` are `compute`, `extend` and `max_pairs` of a `CacheJob`."""
    job = CacheJob(data=corpus.folder, split=corpus.split, out=folder, candidates=config, **options)
    return build.plan_cache(job, corpus, teacher, track)


def build_cache(
    corpus: Corpus, teacher: Any, folder: Path, config: CandidateConfig, *, track: Track = silent, **options: Any
) -> TeacherCache:
    """The finished cache of these candidates."""
    with files.lock(folder):
        return build.score_planned(plan_cache(corpus, teacher, folder, config, track=track, **options), track=track)
