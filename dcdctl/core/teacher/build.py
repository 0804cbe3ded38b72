"""Building a teacher cache: the pairs are planned, scored by shard, and sealed.

A cache can extend a finished one: for more negatives, another miner, or a corpus with new images. Images and captions
of the old corpus are matched by digests of the image's bytes and the caption's text, not by position.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dcdctl.core import artifacts, files, models, scoring
from dcdctl.core.arguments import Settings
from dcdctl.core.artifacts import Build, Parts
from dcdctl.core.config import to_table
from dcdctl.core.data import Corpus, Indices, Scores
from dcdctl.core.devices import versions
from dcdctl.core.engines import ON_CPU, Compute, Task, ThisProcess, whole_shards
from dcdctl.core.models import Scorer
from dcdctl.core.progress import Track, silent
from dcdctl.core.scoring import (
    CorpusSource,
    PairWorker,
    ShardPairs,
    Source,
    job_of_scores,
    named_model,
    open_source,
    pair_rows,
    scored_apart,
)
from dcdctl.core.teacher import cache, candidates
from dcdctl.core.teacher.cache import TeacherCache, read_cache
from dcdctl.core.teacher.cache_format import (
    CACHE,
    DROPPED_FILE,
    IMAGES_PER_SHARD,
    ITEMS_FILE,
    NUM_GIVEN,
    Pairs,
    asked_name,
    pairs_name,
    planned_name,
    read_pairs,
    read_shard,
    shards_of,
    write_pairs,
)
from dcdctl.core.teacher.candidate_lists import POSITIVE, ROLES
from dcdctl.core.teacher.candidates import CandidateConfig, check_candidates
from dcdctl.core.teacher.false_negatives import false_negative_filter

# 8 bytes are enough for a caption, which is compared with the captions of its image, or with the texts of a pool: of
# ten million texts and ten million others, two differ and have one digest with a chance of 5 in a million.
_SCHEMA = pa.schema([("image", pa.binary(16)), ("captions", pa.list_(pa.binary(8)))])
# A score depends on nothing else in a plan.
SAME = ("image_size_px", "max_text_len", "teacher", "precision", "features")
"""Fields of the plan that must be equal in a cache and the cache that it extends."""


def write_items(path: Path, corpus: Corpus, track: Track) -> None:
    """Write the digest of each image and of each of its captions to a file; the texts of a pool are those of a last row
    without an image."""
    images: list[bytes | None] = []
    captions: list[list[bytes]] = []
    with track("read images", total=corpus.num_images, unit="images") as advance:
        for image in range(corpus.num_images):
            images.append(_digest(corpus.image_bytes(image), 16))
            captions.append(_text_digests(corpus, corpus.captions_of(image)))
            advance(1)
    if corpus.is_pool:
        images.append(None)
        captions.append(_text_digests(corpus, range(corpus.num_captions)))
    # Digests look like random bytes, so compression and dictionaries would gain nothing.
    pq.write_table(
        pa.table({"image": images, "captions": captions}, schema=_SCHEMA),
        path,
        compression="none",
        use_dictionary=False,
    )


def reusable_pairs(folder: Path, corpus: Corpus, plan: artifacts.Document) -> Pairs:
    """The scored pairs of a finished cache whose image and caption are in this corpus, with their indices in it,
    sorted.

    StaleError if the cache is of another teacher, or was scored with other settings.
    """
    cache = read_cache(folder)
    artifacts.expect(folder, cache.plan, {key: plan[key] for key in SAME if key in plan})
    if cache.plan["corpus"] == plan["corpus"]:
        return Pairs(*cache.scored_pairs, cache.score_P, cache.role_P)
    items = CACHE.checked(folder / ITEMS_FILE, cache.seal["files"][ITEMS_FILE]["sha256"])
    new_image, new_text = _new_indices(items, corpus)
    image, text = new_image[cache.image_P], new_text[cache.text_P]
    order = np.lexsort((text, image))
    order = order[(image[order] >= 0) & (text[order] >= 0)]
    return Pairs(image[order], text[order], cache.score_P[order], cache.role_P[order])


def without_refused_roles(old: Pairs, corpus: Corpus, config: CandidateConfig, track: Track) -> Pairs:
    """Pairs of an old cache with their scores, and with only the roles that the new plan allows.

    A pair is no candidate of a direction that the plan lacks, nor if the plan's filter calls it a false negative. A
    pool has no positives. The margin of the new plan applies to all candidates when the cache is read.
    """
    # A pool has no positives.
    own = 0 if corpus.is_pool else POSITIVE
    reason_against = false_negative_filter(corpus, config.duplicate_bits, track)
    allowed = sum(role for direction, role in ROLES.items() if direction in config.directions)
    role_P = np.where(reason_against(old.image, old.text) > 0, old.role & own, old.role & (own | allowed))
    return replace(old, role=role_P.astype(np.uint8))


def merge(pairs: Pairs, old: Pairs, num_texts: int) -> Pairs:
    """All pairs of both, each once, with the old scores and the roles of both; an old pair may have no role."""
    new_keys, old_keys = (part.image * num_texts + part.text for part in (pairs, old))
    keys = np.union1d(new_keys, old_keys)
    score, role = np.full(len(keys), np.nan, dtype=np.float32), np.zeros(len(keys), dtype=np.uint8)
    for part, part_keys in ((pairs, new_keys), (old, old_keys)):
        role[np.searchsorted(keys, part_keys)] |= part.role
    score[np.searchsorted(keys, old_keys)] = old.score
    return Pairs(keys // num_texts, keys % num_texts, score, role)


def _new_indices(path: Path, corpus: Corpus) -> tuple[Indices, Indices]:
    """The index in the corpus of each old image and each old caption; -1 if the corpus lacks it."""
    # Reversed, so that the first of several equal images is found.
    images = {_digest(corpus.image_bytes(image), 16): image for image in reversed(range(corpus.num_images))}
    table = pq.read_table(path)
    texts_of_pool = _by_digest(corpus, range(corpus.num_captions)) if corpus.is_pool else None
    new_image, new_text = [], []
    for digest, captions in zip(table["image"].to_pylist(), table["captions"].to_pylist(), strict=True):
        image = images.get(digest, -1)
        new_image.append(image)
        texts: Mapping[bytes, int] = {}
        if texts_of_pool is not None:
            texts = texts_of_pool
        elif image >= 0:
            texts = _by_digest(corpus, corpus.captions_of(image))
        new_text += [texts.get(caption, -1) for caption in captions]
    return np.array(new_image, dtype=np.int64), np.array(new_text, dtype=np.int64)


def _by_digest(corpus: Corpus, texts: range) -> dict[bytes, int]:
    return dict(zip(reversed(_text_digests(corpus, texts)), reversed(texts), strict=True))


def _text_digests(corpus: Corpus, texts: range) -> list[bytes]:
    return [_digest(corpus.captions[text].encode(), 8) for text in texts]


def _digest(data: bytes, size: int) -> bytes:
    return hashlib.blake2b(data, digest_size=size).digest()


BYTES_PER_PAIR = 12
"""At most, on disk."""


@dataclass(frozen=True, kw_only=True)
class CacheJob:
    """Which pairs to score with a teacher, once, into which folder: for a command, for a round of a training, or for a
    study."""

    out: Path
    teacher: str = ""
    """Empty where another program computes (`external_scores`)."""
    data: Path
    split: str = "train"
    max_images: int | None = None
    model_set: Settings | None = None
    """Settings that the teacher's files lack: image_size=384."""
    candidates: CandidateConfig = field(default_factory=CandidateConfig)
    extend: Path | None = None
    """Finished cache of the same teacher whose scores are reused."""
    max_pairs: int | None = None
    """At most so many pairs are scored, beside those that have a score: the best candidates of each query, and the
    queries first about which `candidates.model` disagrees with the scores of `extend`."""
    sure_above: float | None = None
    """A text that has a score above this in `extend` gets no further images: its pick is sure. Not for blocks."""
    compute: Compute = ON_CPU
    """Its folder of features is made if it does not exist."""

    def open_corpus(self) -> Corpus:
        """The corpus; an error for candidates that it cannot have."""
        corpus = Corpus.open(self.data, self.split, self.max_images)
        check_candidates(corpus, self.candidates)
        return corpus


@dataclass(frozen=True)
class PlannedCache:
    """A planned cache, and the teacher that scores it."""

    build: Build
    corpus: Corpus
    teacher: Scorer
    source: Source
    """What the teacher reads: images and captions, or stored features of its encoders."""
    compute: Compute
    model: Mapping[str, Any] = field(default_factory=dict)
    """The teacher as tasks in files name it."""

    @property
    def shards(self) -> Parts:
        """The pairs of each range of images."""
        return shard_parts(self.build)

    def asked(self, shard: int) -> Path:
        """The file of the scores of an unfinished shard."""
        return self.build.folder / asked_name(shard)

    def tasks(self, shard: int, *, are_sent: bool) -> Iterator[Task[ShardPairs]]:
        """The pairs of a shard that have no score: one task, or where tasks are sent one for each group of pairs that
        can be scored apart, so that all workers end at about the same time."""
        pairs = read_shard(self.build, shard)
        todo = pairs.at(np.isnan(pairs.score))
        # In the order of images, which is that of the pairs of a shard.
        groups = scored_apart(self.teacher, todo.image) if are_sent else [np.arange(len(todo))]
        keep_in = None if self.teacher.keeps_states else self.asked(shard)
        job = job_of_scores(self.corpus, files.digest_of(self.build.plan), self.model, self.compute)
        for part, group in enumerate(groups):
            image, text = todo.image[group], todo.text[group]
            rows = partial(pair_rows, job, self.corpus, image, text)
            yield Task(
                shard,
                pairs_name(shard),
                inputs=partial(ShardPairs, self.source, image, text, keep_in),
                packed=partial(ShardPairs.packed, self.source, image, text),
                part=part,
                num_parts=len(groups),
                # Stored features are no columns of a task.
                in_file=rows if type(self.source) is CorpusSource else None,
            )


def plan_cache(job: CacheJob, corpus: Corpus, teacher: Scorer, track: Track) -> PlannedCache:
    """Write into the folder of a job which pairs are to be scored; nothing is scored.

    The teacher is put in eval mode, because dropout would make its scores random. StaleError if the folder holds a
    cache of another corpus, teacher or plan.
    """
    compute = job.compute
    scorer = {
        # Before the teacher, whose digest changes with them: the first difference is reported, and these are plainer.
        "image_size_px": teacher.preprocess.image_size_px,
        "max_text_len": teacher.preprocess.max_text_len,
        "teacher": teacher.digest,
        "precision": compute.precision,
        "features": kind_of(compute),
    }
    job = replace(job, candidates=_named_as_before(job))
    build = Build(job.out, plan_of(job, corpus, scorer), CACHE)
    source = open_source(corpus, teacher, compute, track)
    begin(build, job, corpus, track)
    # The released code keeps the teacher's dropout on, so its scores of equal pairs differ.
    teacher.to(compute.device).eval()
    model = named_model(job.teacher, teacher.digest, models.parse_overrides(job.model_set))
    return PlannedCache(build, corpus, teacher, source, compute, model)


def _named_as_before(job: CacheJob) -> CandidateConfig:
    """The candidates of a job. If an earlier plan has the same model by another path, such as a relative one, its path
    stays."""
    candidates = job.candidates
    if not candidates.model or not (job.out / CACHE.plan_file).exists():
        return candidates
    recorded = CACHE.read_plan(job.out)["candidates"]["model"]
    known, named = models.path_of(recorded), models.path_of(candidates.model)
    is_same = known.exists() and named.exists() and known.samefile(named)
    return replace(candidates, model=recorded) if is_same else candidates


def plan_of(job: CacheJob, corpus: Corpus, scorer: Mapping[str, Any]) -> artifacts.Document:
    """Everything that a cache's content depends on: the corpus, its candidates, and what is known of the scorer."""
    return {
        "format": CACHE.format,
        "corpus": corpus.fingerprint,
        "split": corpus.split,
        "images": corpus.num_images,
        "captions": corpus.num_captions,
        **scorer,
        "candidates": to_table(job.candidates),
        **_model_of_candidates(job.candidates),
        # The seal holds the checksum of every shard, so its own checksum stands for the cache.
        "extends": None if job.extend is None else files.sha256_of(job.extend / CACHE.seal_file),
        "images_per_shard": IMAGES_PER_SHARD,
        "max_pairs": job.max_pairs,
        "sure_above": job.sure_above,
    }


def _model_of_candidates(config: CandidateConfig) -> artifacts.Document:
    """Which model proposes the pairs, where its name does not say it: another one may be in its folder now."""
    digest = models.digest_of_files(config.model) if config.model else None
    return {} if digest is None else {"candidates_model": digest}


def score_planned(job: PlannedCache, *, track: Track = silent) -> TeacherCache:
    """Score the missing shards, and seal the cache."""
    if job.shards.missing():
        # Before any shard, for a teacher whose states can be kept: a shard needs captions of nearly the whole corpus.
        source = scoring.encode_corpus(job.teacher, job.source, job.compute, track=track)
        job = replace(job, source=source)
    num_unscored = {shard: int(np.isnan(read_shard(job.build, shard).score).sum()) for shard in job.shards.missing()}
    # Scores of vectors that are known cost less than sending the vectors.
    engine = ThisProcess() if job.teacher.keeps_states else job.compute.engine
    make_worker = partial(PairWorker.make, job.teacher, job.compute.for_workers())
    # The long ones first: the last ones decide how long some workers have nothing to do.
    shards = sorted(num_unscored, key=lambda shard: -num_unscored[shard]) if engine.sends_tasks else list(num_unscored)
    tasks = (task for shard in shards for task in job.tasks(shard, are_sent=engine.sends_tasks))
    with track("score", total=sum(num_unscored.values()), unit="pairs") as advance:
        for shard, scored in whole_shards(engine.map(tasks, make_worker, advance)):
            pairs = read_shard(job.build, shard)
            # Arrays that come from pyarrow are read-only.
            scores = pairs.score.copy()
            scores[np.isnan(pairs.score)] = np.concatenate(scored)
            with job.build.write(pairs_name(shard)) as path:
                write_pairs(path, replace(pairs, score=scores))
            job.asked(shard).unlink(missing_ok=True)
    seal(job.build)
    return cache.read_cache(job.build.folder, corpus=job.corpus, teacher=job.teacher.digest)


def shard_parts(build: Build) -> Parts:
    """The parts of a teacher cache."""
    return Parts(build, [pairs_name(shard) for shard in range(len(shards_of(build.plan)))])


def score_pairs(job: PlannedCache, image_P: Indices, text_P: Indices) -> Scores:
    """The teacher's scores of pairs in this process, computed with the options of a job; StaleError if one is not
    finite."""
    score = PairWorker(job.teacher, job.compute).start(ShardPairs(job.source, image_P, text_P))
    return score(lambda count: None)


def begin(build: Build, job: CacheJob, corpus: Corpus, track: Track, *, replaces: bool = True) -> artifacts.Document:
    """Make the folder this plan's, with the pairs of every shard that is not scored, and return the notes of the plan.

    With `replaces`, another plan is replaced if none of it is scored; without it, it is a StaleError.
    """
    # A planned shard may have scores too: those that were given from elsewhere.
    has_scores = any(build.folder.glob("pairs-*.parquet")) or (
        (build.folder / CACHE.plan_file).exists() and NUM_GIVEN in CACHE.read_plan(build.folder)
    )
    notes = build.begin(restart=replaces and not has_scores)
    if build.is_sealed:
        return notes
    shards = shards_of(build.plan)
    # A shard that is scored does not need its planned file.
    any_missing = any(build.missing([pairs_name(i)]) and build.missing([planned_name(i)]) for i in range(len(shards)))
    if any_missing or build.missing([DROPPED_FILE]):
        config, compute = job.candidates, job.compute
        old = None if job.extend is None else reusable_pairs(job.extend, corpus, build.plan)
        drawn = candidates.draw_candidates(
            corpus, config, compute=compute, max_pairs=job.max_pairs, scored=old, sure_above=job.sure_above, track=track
        )
        image, text, role = drawn.pairs(corpus.caption_image)
        pairs = Pairs(image, text, np.full(len(image), np.nan, dtype=np.float32), role)
        if old is not None:
            pairs = merge(pairs, without_refused_roles(old, corpus, config, track), corpus.num_captions)
        artifacts.write_document(build.folder / DROPPED_FILE, drawn.dropped)
        for shard, images in enumerate(shards):
            inside = slice(*np.searchsorted(pairs.image, (images.start, images.stop)).tolist())
            if build.missing([pairs_name(shard)]):
                with build.write(planned_name(shard)) as partial:
                    write_pairs(partial, pairs.at(inside))
    if build.missing([ITEMS_FILE]):
        with build.write(ITEMS_FILE) as partial:
            write_items(partial, corpus, track)
    return notes


def seal(build: Build) -> None:
    """Write cache.json when all shards are there, and remove the files that only the build needed."""

    def document_of(listed: dict[str, artifacts.Document]) -> artifacts.Document:
        dropped = artifacts.read_document(build.folder / DROPPED_FILE, hint=CACHE.remake)
        by_margin = TeacherCache(build.folder, build.plan, {"files": listed}).candidates.dropped
        return {
            "format": CACHE.format,
            "pairs": sum(part["pairs"] for part in listed.values() if "pairs" in part),
            "dropped": {**dropped, **by_margin},
            "versions": versions(),
            "files": listed,
        }

    def facts_of(shard: str) -> artifacts.Document:
        return {"pairs": len(read_pairs(build.written(shard)))}

    shard_parts(build).seal(document_of, further=[ITEMS_FILE], facts_of=facts_of)


def kind_of(compute: Compute) -> str | None:
    """Number type of the stored features that the teacher reads, as the plan names it; None if it reads none."""
    return None if compute.features is None else "float16"
