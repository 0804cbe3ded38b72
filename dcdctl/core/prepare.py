"""From raw files to a corpus: every image is decoded once to see that it is whole, in worker processes, in the order of the source.

A shard holds a fixed range of source rows, is written under another name and renamed when whole. `prepare.json` records which
shards are finished, so that a run that was killed goes on where it stopped; `corpus.json` comes last, and then `prepare.json` goes.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import PIL
import pyarrow as pa

from dcdctl.core import config, corpus, files, pictures
from dcdctl.core.errors import ConfigError, CorpusError, InputError
from dcdctl.core.manifest import SPLITS, Manifest
from dcdctl.core.picture_pool import CHUNK_PICTURES, ReadAll, picture_pool
from dcdctl.core.prepare_sources import SKIP_HINT, Listing, RowCheck, Skipped, SourceRow, list_source, why_empty
from dcdctl.core.progress import Advance, Track, silent

PLAN_FILE = "prepare.json"
SHARD_FILE = re.compile(rf"({'|'.join(SPLITS)})-\d{{5}}-of-\d{{5}}\.parquet")


def num_cores() -> int:
    """The CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True, kw_only=True)
class PrepareOptions:
    """How to prepare; only `workers` leaves the result as it is."""

    splits: tuple[str, ...] = ()
    """Empty: all the source has."""
    max_images: int | None = None
    """Only the first rows of each split."""
    image_size_px: int | None = None
    """Shrink larger images so that their shorter side is this long; without it the original bytes are kept."""
    workers: int = field(default_factory=num_cores)
    on_error: Literal["stop", "skip"] = "stop"
    shard_size: int = 2000
    """Images a shard."""

    def __post_init__(self) -> None:
        for split in self.splits:
            if split not in SPLITS:
                raise InputError(f"unknown split {split!r}", hint=f"known splits: {', '.join(SPLITS)}")
        if self.on_error not in ("stop", "skip"):
            raise ConfigError(f"on_error must be stop or skip, got {self.on_error!r}")
        for name in ("max_images", "image_size_px", "workers", "shard_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")

    def to_plan(self) -> dict[str, Any]:
        """What decides the result, beside the counts by split."""
        return {key: value for key, value in config.to_table(self).items() if key not in ("workers", "splits")}


@dataclass(frozen=True, kw_only=True)
class CorpusSummary:
    """What `prepare` leaves behind."""

    name: str
    folder: str
    splits: dict[str, dict[str, Any]]
    """By split: images, captions, fingerprint, shards."""
    skipped: list[dict[str, str]]
    already_there: bool

    def __str__(self) -> str:
        lines = [f"{self.name}: {'already there, in' if self.already_there else 'prepared in'} {self.folder}"]
        for split, entry in self.splits.items():
            lines.append(f"  {split:<5} {entry['images']:,} images, {entry['captions']:,} captions, fingerprint {entry['fingerprint'][:8]}")
        if self.skipped:
            lines.append(f"  {len(self.skipped):,} rows left out, listed in {corpus.INDEX_FILE}; the first: {self.skipped[0]['reason']}")
        return "\n".join(lines)


@dataclass(kw_only=True)
class Shard:
    """A finished shard: its entry in corpus.json, and what the split as a whole is counted from."""

    entry: dict[str, Any]
    captions: int
    row_digests: list[bytes]
    skipped: list[Skipped]


def prepare(source: Manifest, out: Path, *, options: PrepareOptions | None = None, track: Track = silent) -> CorpusSummary:
    """Write a corpus, or go on with one that was interrupted; one that is there already is left as it is."""
    options = options or PrepareOptions()
    _refuse_foreign_folder(out)
    check = RowCheck(splits=options.splits, max_images=options.max_images, skip_bad=options.on_error == "skip")
    listing = list_source(source.source, check)
    plan: dict[str, Any] = {"format": corpus.FORMAT_VERSION, "name": source.name, "licence": source.licence, "citation": source.citation}
    plan |= {"source": dict(listing.provenance), "counts": dict(listing.counts), "options": options.to_plan()}
    digest = files.digest_of(plan)
    if (out / corpus.INDEX_FILE).is_file():
        return _already_there(out, digest)
    progress = _Progress.load(out, digest)
    splits = _write_splits(listing, out, options, progress, track)
    skipped = [*listing.skipped, *(skip for shards in splits.values() for shard in shards for skip in shard.skipped)]
    for split, shards in splits.items():
        if not any(shard.entry["rows"] for shard in shards):
            raise InputError(f"split {split!r} is empty", hint=why_empty(skipped))
    index: dict[str, Any] = {"format": corpus.FORMAT_VERSION, "name": source.name}
    index |= {"splits": {split: _entry(shards) for split, shards in splits.items()}}
    index |= {"source": plan["source"] | {"options": plan["options"]}, "licence": source.licence, "citation": source.citation}
    index |= {"skipped": config.to_table(skipped), "plan": digest}
    files.write_json(out / corpus.INDEX_FILE, index)
    (out / PLAN_FILE).unlink(missing_ok=True)
    return _summary(out, index, already_there=False)


@dataclass(kw_only=True)
class _Progress:
    """prepare.json: which plan the folder is being filled by, and the shards that are finished."""

    folder: Path
    plan: dict[str, Any]
    shards: dict[str, dict[str, Any]]

    @staticmethod
    def load(folder: Path, digest: str) -> _Progress:
        """The progress of the same plan by the same library versions; of another one nothing is kept."""
        plan = {"plan": digest, "pillow": PIL.__version__, "pyarrow": pa.__version__}
        folder.mkdir(parents=True, exist_ok=True)
        files.remove_partials(folder)
        try:
            found = json.loads((folder / PLAN_FILE).read_text(encoding="utf-8"))
            shards = found.pop("shards")
        except (OSError, ValueError, KeyError, AttributeError):
            found, shards = None, {}
        progress = _Progress(folder=folder, plan=plan, shards=shards if found == plan else {})
        for path in sorted(folder.iterdir()):
            if SHARD_FILE.fullmatch(path.name) and path.name not in progress.shards:
                path.unlink()
        progress.save()
        return progress

    def save(self) -> None:
        files.write_json(self.folder / PLAN_FILE, self.plan | {"shards": self.shards})

    def add(self, shard: Shard) -> None:
        self.shards[shard.entry["file"]] = {"entry": shard.entry, "skipped": config.to_table(shard.skipped)}
        self.save()

    def finished(self, name: str) -> Shard | None:
        """A shard that an earlier run finished, if its file is still what that run wrote."""
        path = self.folder / name
        if name not in self.shards or not path.is_file() or files.sha256_of(path) != self.shards[name]["entry"]["sha256"]:
            return None
        captions, digests = 0, []
        for row in corpus.read_shard(path):
            captions += len(row.captions)
            digests.append(row.digest())
        skipped = [Skipped(**skip) for skip in self.shards[name]["skipped"]]
        return Shard(entry=self.shards[name]["entry"], captions=captions, row_digests=digests, skipped=skipped)


def _write_splits(listing: Listing, out: Path, options: PrepareOptions, progress: _Progress, track: Track) -> dict[str, list[Shard]]:
    num_images = sum(listing.counts.values())
    splits: dict[str, list[Shard]] = {}
    with (
        picture_pool(min(options.workers, math.ceil(num_images / CHUNK_PICTURES)), options.image_size_px) as read,
        track("prepare", total=num_images, unit="images") as advance,
    ):
        for split, count in listing.counts.items():
            rows = listing.rows(split)
            num_shards = math.ceil(count / options.shard_size)
            splits[split] = []
            for number in range(num_shards):
                name = corpus.shard_name(split, number, num_shards)
                part = list(itertools.islice(rows, options.shard_size))
                shard = progress.finished(name)
                if shard is None:
                    shard = _write_shard(out / name, part, read, skip_bad=options.on_error == "skip", advance=advance)
                    progress.add(shard)
                else:
                    advance(len(part))
                splits[split].append(shard)
    return splits


def _write_shard(path: Path, rows: Sequence[SourceRow], read: ReadAll, *, skip_bad: bool, advance: Advance) -> Shard:
    skipped: list[Skipped] = []

    def good_rows() -> Iterator[corpus.CorpusRow]:
        for row, result in zip(rows, read(row.picture for row in rows), strict=True):
            advance(1)
            if isinstance(result, pictures.CheckedPicture):
                yield _corpus_row(row, result)
            elif skip_bad:
                skipped.append(Skipped(row=row.where, image=row.path, reason=result.reason))
            else:
                raise InputError(f"{row.where} {json.dumps(row.path, ensure_ascii=False)}: {result.reason}", hint=SKIP_HINT)

    captions, digests = 0, []
    for written in corpus.write_shard(path, good_rows()):
        captions += len(written.captions)
        digests.append(written.digest())
    entry = {"file": path.name, "sha256": files.sha256_of(path), "rows": len(digests)}
    return Shard(entry=entry, captions=captions, row_digests=digests, skipped=skipped)


def _corpus_row(row: SourceRow, picture: pictures.CheckedPicture) -> corpus.CorpusRow:
    # A picture that was made smaller may have become a PNG.
    path = str(PurePosixPath(row.path).with_suffix(".png")) if picture.became_png else row.path
    return corpus.CorpusRow(
        image_id=row.image_id,
        path=path,
        data=picture.data,
        width=picture.width,
        height=picture.height,
        captions=row.captions,
        caption_ids=row.caption_ids,
    )


def _entry(shards: Sequence[Shard]) -> dict[str, Any]:
    return {
        "images": sum(shard.entry["rows"] for shard in shards),
        "captions": sum(shard.captions for shard in shards),
        "fingerprint": corpus.fingerprint_of(digest for shard in shards for digest in shard.row_digests),
        "shards": [shard.entry for shard in shards],
    }


def _summary(out: Path, index: dict[str, Any], *, already_there: bool) -> CorpusSummary:
    splits = {split: entry | {"shards": len(entry["shards"])} for split, entry in index["splits"].items()}
    return CorpusSummary(name=index["name"], folder=str(out), splits=splits, skipped=index["skipped"], already_there=already_there)


def _already_there(out: Path, digest: str) -> CorpusSummary:
    index = corpus.read_index(out)
    if index.get("plan") != digest:
        message = f"{out} holds a finished corpus, {index['name']}, that was made from other files or with other options"
        raise InputError(message, hint="remove it, or write elsewhere with --out")
    for entry in (shard for split in index["splits"].values() for shard in split["shards"]):
        if not (out / entry["file"]).is_file():
            raise CorpusError(f"{out / entry['file']} is missing", hint=f"remove {out} and run `dcdctl prepare` again")
    (out / PLAN_FILE).unlink(missing_ok=True)
    return _summary(out, index, already_there=True)


def _refuse_foreign_folder(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file, a folder to write is wanted", hint="name another with --out")
    if not out.is_dir() or (out / corpus.INDEX_FILE).is_file() or (out / PLAN_FILE).is_file():
        return
    foreign = [path.name for path in sorted(out.iterdir()) if not path.name.endswith(files.PARTIAL_SUFFIX)]
    if foreign:
        raise InputError(f"{out} holds something else ({foreign[0]})", hint="an empty or a new folder is wanted: --out DIR")
