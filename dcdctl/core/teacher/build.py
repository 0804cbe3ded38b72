"""Taking the scores of one teacher cache over into another: for more negatives, another miner, or a corpus with new pictures.

Pictures and captions are found again by what they are, not by where they stand: a digest of the picture's bytes, of the caption's text.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dcdctl.core import distributed, files, scoring
from dcdctl.core.config import to_table
from dcdctl.core.data import Corpus
from dcdctl.core.devices import ON_CPU, Compute, versions
from dcdctl.core.errors import InputError, StaleError
from dcdctl.core.models import FusionScorer
from dcdctl.core.progress import Track, silent
from dcdctl.core.scoring import Source, open_source
from dcdctl.core.teacher import cache, candidates
from dcdctl.core.teacher.cache import TeacherCache, read_cache
from dcdctl.core.teacher.cache_format import (
    FORMAT,
    IMAGES_PER_SHARD,
    Index,
    Pairs,
    check_content,
    expect,
    pairs_name,
    planned_name,
    read_json,
    read_pairs,
    seal_of,
    shards_of,
    write_pairs,
)
from dcdctl.core.teacher.candidates import CandidateConfig, Candidates

_SCHEMA = pa.schema([("image", pa.binary(16)), ("captions", pa.list_(pa.binary(8)))])
SAME = ("image_size_px", "max_text_len", "teacher", "precision", "features")
"""What two caches must have in common for a score of one to be a score of the other."""


def write_items(path: Path, corpus: Corpus, track: Track = silent) -> None:
    """Write the digest of each picture and of each of its captions."""
    images, captions = [], []
    with track("read pictures", total=corpus.num_images, unit="images") as advance:
        for image in range(corpus.num_images):
            images.append(_digest(corpus.image_bytes(image), 16))
            captions.append([_digest(corpus.captions[text].encode(), 8) for text in corpus.captions_of(image)])
            advance(1)
    with files.atomic_path(path) as partial:
        pq.write_table(pa.table({"image": images, "captions": captions}, schema=_SCHEMA), partial, compression="none", use_dictionary=False)


def taken_over(folder: Path, corpus: Corpus, plan: dict[str, Any]) -> Pairs:
    """The scored pairs of a finished cache whose picture and caption are in this corpus, at their places in it, sorted.

    StaleError if the cache is of another teacher, or was scored in another way.
    """
    cache = read_cache(folder)
    for key in SAME:
        expect(folder, key, cache.plan[key], plan[key])
    if cache.plan["corpus"] == plan["corpus"]:
        return Pairs(cache.image_P, cache.text_P.astype(np.int64), cache.score_P, cache.role_P)
    check_content(folder, "items.parquet", cache.whole["files"]["items.parquet"])
    new_image, new_text = _places(folder / "items.parquet", corpus)
    image, text = new_image[cache.image_P], new_text[cache.text_P]
    order = np.lexsort((text, image))
    order = order[(image[order] >= 0) & (text[order] >= 0)]
    return Pairs(image[order], text[order], cache.score_P[order], cache.role_P[order])


def merged(pairs: Pairs, old: Pairs, num_texts: int) -> Pairs:
    """All pairs of both, each once, with the old scores and the roles of both."""
    new_keys, old_keys = (part.image * num_texts + part.text for part in (pairs, old))
    keys = np.union1d(new_keys, old_keys)
    score, role = np.full(len(keys), np.nan, dtype=np.float32), np.zeros(len(keys), dtype=np.uint8)
    for part, part_keys in ((pairs, new_keys), (old, old_keys)):
        role[np.searchsorted(keys, part_keys)] |= part.role
    score[np.searchsorted(keys, old_keys)] = old.score
    return Pairs(keys // num_texts, keys % num_texts, score, role)


def _places(path: Path, corpus: Corpus) -> tuple[Index, Index]:
    """For each old image and each old caption its index in the corpus, -1 where it is not in it."""
    images = {_digest(corpus.image_bytes(image), 16): image for image in reversed(range(corpus.num_images))}
    table = pq.read_table(path)
    new_image, new_text = [], []
    for digest, captions in zip(table["image"].to_pylist(), table["captions"].to_pylist(), strict=True):
        image = images.get(digest, -1)
        new_image.append(image)
        own = {} if image < 0 else {_digest(corpus.captions[text].encode(), 8): text for text in reversed(corpus.captions_of(image))}
        new_text += [own.get(caption, -1) for caption in captions]
    return np.array(new_image, dtype=np.int64), np.array(new_text, dtype=np.int64)


def _digest(data: bytes, size: int) -> bytes:
    return hashlib.blake2b(data, digest_size=size).digest()


BYTES_PER_PAIR = 12
"""At most, on disk."""


@dataclass(frozen=True)
class Job:
    """A planned cache: what `plan` gives, and `score` works off."""

    folder: Path
    plan: dict[str, Any]
    corpus: Corpus
    teacher: FusionScorer
    source: Source
    """What the teacher reads: images and captions, or stored features of its encoders."""
    compute: Compute

    @property
    def missing(self) -> list[int]:
        """The shards that are not scored yet."""
        return [shard for shard in range(len(shards_of(self.plan))) if not (self.folder / pairs_name(shard)).exists()]


def build_cache(
    corpus: Corpus,
    teacher: FusionScorer,
    folder: Path,
    config: CandidateConfig,
    *,
    compute: Compute = ON_CPU,
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
        return score_planned(
            plan_cache(corpus, teacher, folder, config, compute=compute, extend=extend, drawn=drawn, track=track), track=track
        )


def claimed(folder: Path) -> AbstractContextManager[None]:
    """The folder, as far as this process works on it, for this run alone; StaleError if another one is writing to it."""
    return files.lock(folder, distributed.rank())


def check_folder(folder: Path) -> None:
    """StaleError if a folder holds something other than a teacher cache, finished or not; InputError if it cannot be written."""
    files.check_output_folder(folder)
    if not (folder / "plan.json").exists() and not files.is_vacant(folder):
        raise StaleError(f"{folder} holds something that is not a teacher cache", hint="name an empty or a new folder with --out")


def plan_cache(
    corpus: Corpus,
    teacher: FusionScorer,
    folder: Path,
    config: CandidateConfig,
    *,
    compute: Compute = ON_CPU,
    extend: Path | None = None,
    drawn: Candidates | None = None,
    track: Track = silent,
) -> Job:
    """Decide which pairs are scored, and write it into the folder; nothing is scored. `drawn` are candidates in place of the recipe's."""
    wanted = make_plan(corpus, teacher, config, compute, extend)
    with distributed.main_first():
        source = open_source(corpus, teacher, compute, track)

    def draw() -> Candidates:
        return candidates.draw_candidates(corpus, config, device=compute.device, track=track) if drawn is None else drawn

    with distributed.main_first():
        if distributed.is_main():
            _begin(folder, wanted, corpus, draw, extend, track)
    teacher.to(compute.device).eval()
    return Job(folder, wanted, corpus, teacher, source, compute)


def make_plan(
    corpus: Corpus, teacher: FusionScorer, config: CandidateConfig, compute: Compute, extend: Path | None = None
) -> dict[str, Any]:
    """All that decides what a cache holds; MissingError if there is no cache to extend."""
    if extend is not None:
        cache.read_cache(extend)
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
        "precision": compute.precision,
        "features": kind_of(compute),
        "extends": None if extend is None else files.sha256_of(extend / "cache.json"),
        "images_per_shard": IMAGES_PER_SHARD,
    }


def score_planned(job: Job, *, track: Track = silent) -> TeacherCache:
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
    return cache.read_cache(job.folder, corpus=job.corpus, teacher=job.teacher.digest)


def _count_unscored(path: Path) -> int:
    return int(np.isnan(read_pairs(path).score).sum())


def score_pairs(job: Job, image_P: Index, text_P: Index, advance: Any = None) -> NDArray[np.float32]:
    """The teacher's scores of pairs, as a job has them computed; StaleError if one is not finite."""
    found = scoring.score_pairs(job.teacher, job.source, image_P, text_P, compute=job.compute, advance=advance)
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
    check_folder(folder)
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
            pairs = merged(pairs, taken_over(extend, corpus, wanted), corpus.num_captions)
        files.write_json(folder / "dropped.json", drawn.dropped)
        _write_planned(folder, wanted, pairs)
    if not (folder / "items.parquet").exists():
        write_items(folder / "items.parquet", corpus, track)


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


def kind_of(compute: Compute) -> str | None:
    """Number type of the stored features that the teacher reads, as the plan names it; None if it reads none."""
    return None if compute.features is None else "float16"
