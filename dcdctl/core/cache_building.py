"""Making a teacher cache: plan the pairs, score those that have no score yet, seal the folder.

Several processes (`distributed`) share a folder: the first plans, each scores every so-manieth shard, the first seals. A shard is whole or
absent; a killed run goes on with the shards that are missing, whatever their number of processes, and ends with the same bytes.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dcdctl.core import cache_extension, candidates, devices, distributed, files, scoring, teacher_cache
from dcdctl.core.cache_files import (
    FORMAT,
    IMAGES_PER_SHARD,
    Index,
    Pairs,
    expect,
    pairs_name,
    planned_name,
    read_json,
    read_pairs,
    seal_of,
    shards_of,
    write_pairs,
)
from dcdctl.core.candidates import CandidateConfig, Candidates
from dcdctl.core.config import to_table
from dcdctl.core.corpus import Corpus
from dcdctl.core.devices import versions
from dcdctl.core.errors import InputError, StaleError
from dcdctl.core.features import CorpusSource, Features, Source, open_or_build
from dcdctl.core.models.protocols import FusionScorer
from dcdctl.core.progress import Track, silent
from dcdctl.core.teacher_cache import TeacherCache

BYTES_PER_PAIR = 12
"""At most, on disk."""


@dataclass(frozen=True, kw_only=True)
class ScoringOptions:
    """Where and how fast to score; `precision` and `features` are part of what a cache is made of, the rest is not."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    batch_size: int = 256
    precision: str = "float32"
    """float32, or the torch name of what to compute in under autocast."""
    features: Features | None = None
    """Outputs of the teacher's encoders, so that these are not run."""


@dataclass(frozen=True)
class Job:
    """A planned cache: what `plan` gives, and `score` works off."""

    folder: Path
    plan: dict[str, Any]
    corpus: Corpus
    teacher: FusionScorer
    options: ScoringOptions

    @property
    def source(self) -> Source:
        return CorpusSource(self.corpus, self.teacher.preprocess) if self.options.features is None else self.options.features

    @property
    def missing(self) -> list[int]:
        """The shards that are not scored yet."""
        return [shard for shard in range(len(shards_of(self.plan))) if not (self.folder / pairs_name(shard)).exists()]


def build(
    corpus: Corpus,
    teacher: FusionScorer,
    folder: Path,
    config: CandidateConfig,
    *,
    options: ScoringOptions = ScoringOptions(),
    extend: Path | None = None,
    drawn: Candidates | None = None,
    track: Track = silent,
) -> TeacherCache:
    """Score the candidates of every query and keep the scores; goes on where a killed run of the same plan stopped.

    The teacher is put in eval mode: one that drops out at random has no score to keep. `extend` is a finished cache of the same teacher:
    its pairs of pictures and captions that are in this corpus too are taken over, with their scores. StaleError if the folder holds a
    cache of another corpus, teacher or plan.
    """
    with claimed(folder):
        return score(plan(corpus, teacher, folder, config, options=options, extend=extend, drawn=drawn, track=track), track=track)


def claimed(folder: Path) -> AbstractContextManager[None]:
    """The folder, as far as this process works on it, for this run alone; StaleError if another one is writing to it."""
    return files.lock(folder, distributed.rank())


def plan(
    corpus: Corpus,
    teacher: FusionScorer,
    folder: Path,
    config: CandidateConfig,
    *,
    options: ScoringOptions = ScoringOptions(),
    extend: Path | None = None,
    drawn: Candidates | None = None,
    track: Track = silent,
) -> Job:
    """Decide which pairs are scored, and write it into the folder; nothing is scored. `drawn` are candidates in place of the recipe's."""
    wanted = make_plan(corpus, teacher, config, options, extend)

    def draw() -> Candidates:
        return candidates.draw(corpus, config, device=options.device, track=track) if drawn is None else drawn

    with distributed.main_first():
        if distributed.is_main():
            _begin(folder, wanted, corpus, draw, extend, track)
    teacher.to(options.device).eval()
    return Job(folder, wanted, corpus, teacher, options)


def make_plan(
    corpus: Corpus, teacher: FusionScorer, config: CandidateConfig, options: ScoringOptions, extend: Path | None = None
) -> dict[str, Any]:
    """All that decides what a cache holds; MissingError if there is no cache to extend."""
    if extend is not None:
        teacher_cache.read(extend)
    return {
        "format": FORMAT,
        "corpus": corpus.fingerprint,
        "split": corpus.split,
        "images": corpus.num_images,
        "captions": corpus.num_captions,
        # Before the teacher, whose digest changes with them: of two differences the plainer is told.
        "image_size_px": teacher.preprocess.image_size_px,
        "max_text_len": teacher.preprocess.max_text_len,
        "teacher": teacher.digest,
        "candidates": to_table(config),
        "precision": options.precision,
        "features": kind_of(options.features),
        "extends": None if extend is None else files.sha256_of(extend / "cache.json"),
        "images_per_shard": IMAGES_PER_SHARD,
    }


def options_for(
    corpus: Corpus, teacher: FusionScorer, device: str, batch_size: int, precision: str, features: Path | None, track: Track
) -> ScoringOptions:
    """Scoring options from the words of the command line; features that are wanted and not there are made."""
    place, kept = devices.choose(device), None
    if features is not None:
        with distributed.main_first():
            kept = open_or_build(features, corpus, teacher, device=place, track=track)
    return ScoringOptions(device=place, batch_size=batch_size, precision=devices.precision(precision), features=kept)


def score(job: Job, *, track: Track = silent) -> TeacherCache:
    """Score what is missing, this process's share of it, and seal the cache."""
    if not (job.folder / "cache.json").exists():
        mine = [shard for shard in distributed.dealt(len(shards_of(job.plan))) if shard in set(job.missing)]
        total = sum(_count_unscored(job.folder / planned_name(shard)) for shard in mine)
        with track("score", total=total, unit="pairs") as advance:
            for shard in mine:
                pairs = read_pairs(job.folder / planned_name(shard))
                todo = np.isnan(pairs.score)
                scores = pairs.score.copy()
                if todo.any():
                    scores[todo] = score_pairs(job, pairs.image[todo], pairs.text[todo], advance)
                write_pairs(job.folder / pairs_name(shard), Pairs(pairs.image, pairs.text, scores, pairs.role))
        distributed.wait()
    with distributed.main_first():
        if distributed.is_main():
            _seal(job)
    return teacher_cache.read(job.folder, corpus=job.corpus, teacher=job.teacher.digest)


def _count_unscored(path: Path) -> int:
    return int(np.isnan(read_pairs(path).score).sum())


def score_pairs(job: Job, image_P: Index, text_P: Index, advance: Any = None) -> NDArray[np.float32]:
    """The teacher's scores of pairs, as a job has them computed; StaleError if one is not finite."""
    options = job.options
    found = scoring.score_pairs(
        job.teacher,
        job.source,
        image_P,
        text_P,
        device=options.device,
        batch_size=options.batch_size,
        precision=options.precision,
        advance=advance,
    )
    if not np.isfinite(found).all():
        raise StaleError(f"the teacher gave {int((~np.isfinite(found)).sum())} scores that are not finite", hint="try --precision fp32")
    return found


def _begin(folder: Path, wanted: dict[str, Any], corpus: Corpus, draw: Callable[[], Candidates], extend: Path | None, track: Track) -> None:
    """Make the folder this plan's, with the pairs of every shard that is not scored."""
    path = folder / "plan.json"
    if path.exists() and any(folder.glob("pairs-*.parquet")):
        found = read_json(path)
        for key in wanted:
            expect(folder, key, found.get(key), wanted[key])
        files.remove_partials(folder)
        if (folder / "cache.json").exists() or not _unplanned(folder, wanted):
            return
    elif not path.exists() and not files.is_vacant(folder):
        raise StaleError(f"{folder} holds something that is not a teacher cache", hint="name an empty or a new folder with --out")
    files.remove_partials(folder)
    if path.exists() and read_json(path) != wanted:
        # Planned and not begun: nothing is lost by another plan.
        for old in [*folder.glob("planned-*.parquet"), folder / "items.parquet", folder / "dropped.json"]:
            old.unlink(missing_ok=True)
    files.write_json(path, wanted)
    if _unplanned(folder, wanted):
        _check_room(folder, corpus)
        drawn = draw()
        image, text, role = drawn.pairs(corpus.caption_image)
        pairs = Pairs(image, text, np.full(len(image), np.nan, dtype=np.float32), role)
        if extend is not None:
            pairs = cache_extension.merged(pairs, cache_extension.taken_over(extend, corpus, wanted), corpus.num_captions)
        files.write_json(folder / "dropped.json", drawn.dropped)
        _write_planned(folder, wanted, pairs)
    if not (folder / "items.parquet").exists():
        cache_extension.write_items(folder / "items.parquet", corpus, track)


def _unplanned(folder: Path, plan: dict[str, Any]) -> list[int]:
    shards = range(len(shards_of(plan)))
    return [shard for shard in shards if not any((folder / name(shard)).exists() for name in (planned_name, pairs_name))]


def _check_room(folder: Path, corpus: Corpus) -> None:
    if (free := shutil.disk_usage(folder).free) < BYTES_PER_PAIR * corpus.num_captions:
        raise InputError(f"{folder} has {free / 1e6:,.0f} MB free, not enough for the scores of the positives alone")


def _write_planned(folder: Path, plan: dict[str, Any], pairs: Pairs) -> None:
    for shard, images in enumerate(shards_of(plan)):
        inside = slice(*np.searchsorted(pairs.image, (images.start, images.stop)).tolist())
        if not (folder / pairs_name(shard)).exists():
            part = Pairs(pairs.image[inside], pairs.text[inside], pairs.score[inside], pairs.role[inside])
            write_pairs(folder / planned_name(shard), part)


def _seal(job: Job) -> None:
    """Write cache.json, and take away what is no longer needed."""
    folder, names = job.folder, [pairs_name(shard) for shard in range(len(shards_of(job.plan)))]
    if not (folder / "cache.json").exists():
        seals = {name: seal_of(folder / name, pairs=len(read_pairs(folder / name))) for name in names}
        dropped = read_json(folder / "dropped.json")
        whole = {"format": FORMAT, "pairs": sum(seal["pairs"] for seal in seals.values()), "dropped": dropped, "versions": versions()}
        whole["files"] = {"items.parquet": seal_of(folder / "items.parquet"), **seals}
        cache = TeacherCache(folder, job.plan, whole)
        whole["dropped"] = {**dropped, **cache.candidates.dropped}
        files.write_json(folder / "cache.json", whole)
    for left in [*folder.glob("planned-*.parquet"), folder / "dropped.json"]:
        left.unlink(missing_ok=True)


def kind_of(features: Features | None) -> str | None:
    """How features are kept, as a plan says it."""
    return None if features is None else "float16"
