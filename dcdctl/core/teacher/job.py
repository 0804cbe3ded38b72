"""One `dcdctl cache-teacher`: what needs no model is checked first, then the corpus is opened, and the teacher is
loaded last."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dcdctl.core import distributed, files, models
from dcdctl.core.data import Corpus
from dcdctl.core.devices import ON_CPU, Compute
from dcdctl.core.errors import StaleError
from dcdctl.core.progress import Track, silent
from dcdctl.core.teacher import build, estimate
from dcdctl.core.teacher.cache import TeacherCache, read_cache
from dcdctl.core.teacher.cache_format import CACHE
from dcdctl.core.teacher.candidates import CandidateConfig, check_candidates
from dcdctl.core.teacher.estimate import CacheCost


@dataclass(frozen=True, kw_only=True)
class CacheJob:
    """Which pairs to score, with which teacher, into which folder."""

    data: Path
    out: Path
    candidates: CandidateConfig = field(default_factory=CandidateConfig)
    """Not read by `verify_cache`: the finished cache has its own."""
    teacher: str = ""
    """Empty where another program scores (`external_scores`)."""
    split: str = "train"
    max_images: int | None = None
    model_set: Sequence[str] = ()
    """Settings that the teacher's files lack: image_size=384."""
    extend: Path | None = None
    """Finished cache of the same teacher whose scores are reused."""
    max_pairs: int | None = None
    """At most so many pairs are scored, beside those that have a score: the best candidates of each query, and the
    queries first about which `candidates.model` disagrees with the scores of `extend`."""
    compute: Compute = ON_CPU
    """Its folder of features is made if it does not exist."""

    def open_corpus(self) -> Corpus:
        """The corpus; an error for candidates that it cannot have."""
        corpus = Corpus.open(self.data, self.split, self.max_images)
        check_candidates(corpus, self.candidates)
        return corpus


def _resolve(job: CacheJob) -> dict[str, Any]:
    """The model settings of a job's teacher, after every check that opens no corpus and no weights.

    ConfigError for a wrong model setting, ModelError for a reference that names nothing, MissingError if the candidates
    need a package that is not installed, StaleError or InputError if the output folder is taken or cannot be written.
    """
    overrides = models.parse_overrides(job.model_set)
    models.check_ref(job.teacher, overrides)
    job.candidates.require_packages()
    CACHE.check_folder(job.out)
    if job.compute.features is not None:
        files.check_output_folder(job.compute.features)
    return overrides


def cache_scores(
    job: CacheJob,
    *,
    dry_run: bool = False,
    track: Track = silent,
    on_estimate: Callable[[CacheCost], None] | None = None,
) -> TeacherCache | None:
    """Score the candidates of a job, or resume; None for a dry run, which ends after the estimate.

    `on_estimate` receives the number of pairs, the time and the disk space before anything is scored. Without it there
    is no trial, which takes seconds.
    """
    overrides = _resolve(job)
    corpus = job.open_corpus()
    # A missing or damaged cache is an error before the teacher is loaded.
    if job.extend is not None:
        read_cache(job.extend)
    teacher = models.load_scorer(job.teacher, overrides, track)
    # Over planning and scoring: another plan must not replace this one in between.
    with distributed.lock(job.out):
        planned = build.plan_cache(job, corpus, teacher, track)
        if on_estimate is not None:
            on_estimate(estimate.estimate_cost(planned))
        return None if dry_run else build.score_planned(planned, track=track)


def verify_cache(job: CacheJob, count: int, *, track: Track = silent) -> float:
    """The largest relative difference between `count` scores of the finished cache in `out` and the same scores
    computed again.

    StaleError if it is larger than rounding explains, or if the cache belongs to another corpus, teacher or precision.
    """
    overrides = _resolve(job)
    corpus = job.open_corpus()
    if (name := read_cache(job.out, corpus=corpus).teacher_name) is not None:
        raise StaleError(
            f"the scores of {job.out} are those of {name}, which dcdctl cannot compute again",
            hint="score some pairs again elsewhere: --scores compares them with the finished cache",
        )
    teacher = models.load_scorer(job.teacher, overrides, track)
    return estimate.verify_scores(job.out, corpus, teacher, count, compute=job.compute, track=track)
