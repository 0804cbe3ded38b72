"""Preparation of a corpus from raw files: threads decode every image once, to find damaged ones; rows keep the source's
order.

A shard holds a fixed range of source rows. `prepare.json` notes the finished shards, so that a killed run resumes.
`corpus.json` is written last, and `prepare.json` is removed then.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import PIL
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dcdctl.core import config, files
from dcdctl.core.artifacts import Build, seal_of, sha256_of
from dcdctl.core.config import Count
from dcdctl.core.data import images, near_duplicates, source_files
from dcdctl.core.data.columns import ImageColumns
from dcdctl.core.data.corpus import CORPUS, CORPUS_FILE, columns_name, read_corpus_json, split_to_measure
from dcdctl.core.data.images import CheckedImage, ImageError, ImageFile, RowError
from dcdctl.core.data.manifest import Manifest, SplitCounts, check_protocol
from dcdctl.core.data.near_duplicates import Leakage
from dcdctl.core.data.readers import list_source
from dcdctl.core.data.readers.rows import SKIP_HINT, SPLITS, Listing, RowCheck, SkippedRow, SourceRow, empty_split_hint
from dcdctl.core.data.shards import CorpusRow, fingerprint_of, read_shard, shard_name, write_shard
from dcdctl.core.data.source_files import LocatedSource, SourceOptions
from dcdctl.core.errors import InputError
from dcdctl.core.machine import num_cores, read_in_threads
from dcdctl.core.progress import Advance, Track, silent

AHEAD_PER_WORKER = 8
"""Images read ahead per worker: enough to keep it busy while a shard is written, few enough that large photos do not
fill the memory."""


@dataclass(frozen=True, kw_only=True)
class PrepareOptions:
    """Options of a preparation. All but `workers` change the corpus."""

    splits: tuple[str, ...] = ()
    """Empty: all splits of the source."""
    max_images: Count | None = None
    """Only the first images of each split."""
    image_size_px: Count | None = None
    """Shrink larger images so that their shorter side has this length; None keeps the original bytes."""
    workers: Count = field(default_factory=num_cores)
    """Threads that read and check images ahead; with one, the program reads each image when it is needed."""
    on_error: Literal["stop", "skip"] = "stop"
    shard_size: Count = 2000
    """Images per shard."""

    def __post_init__(self) -> None:
        for split in self.splits:
            if split not in SPLITS:
                raise InputError(f"unknown split {split!r}", hint=f"known splits: {', '.join(SPLITS)}")
        config.check_fields(self)

    def to_plan(self) -> dict[str, Any]:
        """The options that change the corpus, without the splits, whose counts are in the plan."""
        return {key: value for key, value in config.to_table(self).items() if key not in ("workers", "splits")}


@dataclass(frozen=True, kw_only=True)
class CorpusSummary:
    """The result of a preparation."""

    name: str
    folder: str
    splits: dict[str, dict[str, Any]]
    """By split: images, captions, fingerprint, shards."""
    protocol: str
    """The published protocol that the corpus reproduces, or "none: " and the reason."""
    leakage: dict[str, Any]
    """Images that splits share, see `near_duplicates.Leakage`."""
    skipped: list[dict[str, str]]
    notes: list[str]
    """Where the files came from and how they were checked; how a table was read and divided."""
    already_there: bool

    def __repr__(self) -> str:
        counts = ", ".join(f"{split} {entry['images']:,} images" for split, entry in self.splits.items())
        return f"CorpusSummary({self.folder!r}: {counts})"

    def __fspath__(self) -> str:
        return self.folder

    @property
    def next_step(self) -> str:
        """A command that reads a split of this corpus: a training on train, or an evaluation where there is none."""
        if "train" in self.splits:
            return f"dcdctl distill RECIPE --data {self.folder} --out RUN"
        split = split_to_measure(Path(self.folder), "train")
        return f"dcdctl eval MODEL --data {self.folder}{'' if split == 'test' else f' --split {split}'}"

    def __str__(self) -> str:
        lines = [f"{self.name}: {'already prepared in' if self.already_there else 'prepared in'} {self.folder}"]
        for split, entry in self.splits.items():
            lines.append(
                f"  {split:<5} {entry['images']:,} images, {entry['captions']:,} captions, fingerprint "
                f"{entry['fingerprint'][:8]}"
            )
        lines.append(f"  protocol: {self.protocol}")
        lines += [f"  {name}: {value}" for name, value in near_duplicates.leakage_facts(self.leakage)]
        lines += [f"  {note}" for note in self.notes]
        if self.skipped:
            lines.append(
                f"  {len(self.skipped):,} rows skipped, listed in {CORPUS_FILE}; the first: {self.skipped[0]['reason']}"
            )
        lines.append(f"  next: {self.next_step}")
        return "\n".join(lines)


def prepare_corpus(
    manifest: Manifest,
    out: Path,
    *,
    options: PrepareOptions | None = None,
    source_options: SourceOptions | None = None,
    track: Track = silent,
) -> CorpusSummary:
    """Write a corpus, or resume an interrupted one; does nothing if the corpus is finished.

    InputError if a row cannot be used, or if the test split is not the one of the manifest's protocol; StaleError if
    another run is writing to the folder, or if the folder holds something else.
    """
    options = options or PrepareOptions()
    CORPUS.check_folder(out)
    located = source_files.locate(manifest, source_options or SourceOptions(), track)
    check = RowCheck(splits=options.splits, max_images=options.max_images, skip_bad=options.on_error == "skip")
    listing = list_source(located.source, check)
    listed = {
        split: SplitCounts(images=count, captions=listing.captions[split]) for split, count in listing.counts.items()
    }
    # Before any image is read, and again below, because damaged images may be skipped.
    check_protocol(manifest, listed, options.splits, options.max_images)
    # `licence` is the key of corpus.json format 1.
    plan: dict[str, Any] = {"format": CORPUS.format, "name": manifest.name, "licence": manifest.license}
    plan |= {"citation": manifest.citation, "source": dict(listing.provenance), "counts": dict(listing.counts)}
    plan |= {"options": options.to_plan()}
    digest = files.digest_of(plan)
    # Shards of other library versions are not mixed, because their bytes may differ. A finished corpus is valid with
    # any version.
    build = Build(
        out, {"format": CORPUS.format, "plan": digest, "pillow": PIL.__version__, "pyarrow": pa.__version__}, CORPUS
    )
    with build.lock():
        if build.is_sealed:
            return _already_there(out, digest)
        splits, skipped = _write_splits(listing, build, options, track)
        entries = {split: _entry(shards) for split, shards in splits.items()}
        written = {
            split: SplitCounts(images=entry["images"], captions=entry["captions"]) for split, entry in entries.items()
        }
        index: dict[str, Any] = {"format": CORPUS.format, "name": manifest.name, "splits": entries}
        index |= {"protocol": check_protocol(manifest, written, options.splits, options.max_images)}
        index |= {"leakage": config.to_table(_find_leakage(splits))}
        index |= {"source": plan["source"] | _origin(manifest, located) | {"options": plan["options"]}}
        index |= {"licence": manifest.license, "citation": manifest.citation, "homepage": manifest.homepage}
        index |= {"skipped": config.to_table(skipped), "plan": digest}
        if (kept := listing.columns) is not None:
            index["columns"] = {
                split: _write_columns(out / columns_name(split), kept, shards) for split, shards in splits.items()
            }
        names = [entry["file"] for entry in index.get("columns", {}).values()]
        build.seal(index, [*names, *(shard.entry["file"] for shards in splits.values() for shard in shards)])
    notes = [] if kept is None else [f"columns: {', '.join(kept.table.column_names)}", *kept.notes]
    return _summary(out, index, [*located.notes, *notes], already_there=False)


def _write_columns(path: Path, columns: ImageColumns, shards: Sequence[Shard]) -> dict[str, Any]:
    """Write the columns of a split's images, in their order. Returns the entry in corpus.json."""
    ids = pa.array([image_id for shard in shards for image_id in shard.image_ids], pa.string())
    with files.atomic_path(path) as partial:
        pq.write_table(
            columns.table.take(pc.index_in(ids, value_set=pa.array(columns.images, pa.string()))),
            partial,
            compression="zstd",
        )
    return {"file": path.name, **seal_of(path)}


def _already_there(out: Path, digest: str) -> CorpusSummary:
    index = read_corpus_json(out)
    if index.get("plan") != digest:
        message = f"{out} holds a finished corpus, {index['name']}, made from other files or with other options"
        raise InputError(message, hint="remove it, or write elsewhere with --out")
    for entry in (shard for split in index["splits"].values() for shard in split["shards"]):
        CORPUS.check_part(out, entry["file"], entry["bytes"])
    # A run that is killed after the seal leaves the plan.
    (out / CORPUS.plan_file).unlink(missing_ok=True)
    return _summary(out, index, already_there=True)


def _summary(out: Path, index: dict[str, Any], notes: Sequence[str] = (), *, already_there: bool) -> CorpusSummary:
    splits = {split: entry | {"shards": len(entry["shards"])} for split, entry in index["splits"].items()}
    saved = {key: index[key] for key in ("name", "protocol", "leakage", "skipped")}
    notes = [*notes, *_source_notes(index["source"])]
    return CorpusSummary(folder=str(out), splits=splits, notes=notes, already_there=already_there, **saved)


def _source_notes(source: Mapping[str, Any]) -> Iterator[str]:
    """How a table without splits was divided, and in which encoding a table was read."""
    if (hold_out := source.get("hold_out")) is not None:
        if hold_out["splits"]:
            names = f"{' and '.join(hold_out['splits'])}, {hold_out['share']:.0%} of the images each"
            yield f"held out: {names}, by a hash of the image id; --hold-out 0 keeps all in train"
        else:
            yield f"held out: nothing, because {hold_out['share']:.0%} of so few images is less than one"
    if (encoding := source.get("encoding")) is not None:
        example = (
            f"; if this caption is wrong, name another with --encoding: {encoding['example']}"
            if encoding["example"]
            else ""
        )
        yield f"{source['pairs']['file']} was read as {encoding['name']}{example}"


def _origin(manifest: Manifest, located: LocatedSource) -> dict[str, Any]:
    """The source that was used, and the URLs of its files; empty for a manifest without named files."""
    return {"name": located.name, "urls": located.urls} if manifest.files else {}


def _entry(shards: Sequence[Shard]) -> dict[str, Any]:
    return {
        "images": sum(shard.entry["rows"] for shard in shards),
        "captions": sum(shard.captions for shard in shards),
        "fingerprint": fingerprint_of(digest for shard in shards for digest in shard.row_digests),
        "shards": [shard.entry for shard in shards],
    }


@dataclass(kw_only=True)
class Shard:
    """A finished shard: its entry in corpus.json, and what its split's counts, fingerprint and duplicates are computed
    from."""

    entry: dict[str, Any] = field(default_factory=dict)
    captions: int = 0
    row_digests: list[bytes] = field(default_factory=list)
    image_ids: list[str] = field(default_factory=list)
    image_digests: list[bytes] = field(default_factory=list)
    hashes: list[int] = field(default_factory=list)
    """The difference hash of each image, see `images.difference_hash`."""
    skipped: list[SkippedRow] = field(default_factory=list)

    def add(self, row: CorpusRow) -> None:
        """Count a written row."""
        image_digest = row.image_digest()
        self.captions += len(row.captions)
        self.row_digests.append(row.digest(image_digest))
        self.image_ids.append(row.image_id)
        self.image_digests.append(image_digest)


@dataclass(kw_only=True)
class ShardProgress:
    """The finished shards of a build, as its notes in prepare.json."""

    build: Build
    shards: dict[str, dict[str, Any]]

    @staticmethod
    def load(build: Build) -> ShardProgress:
        """The shards of an earlier run of the same plan with the same library versions; those of another plan are
        removed."""
        shards = build.begin(restart=True).get("shards", {})
        build.clean(shards)  # a shard that is not noted may be of another plan
        return ShardProgress(build=build, shards=shards)

    def add(self, shard: Shard) -> None:
        hashes = [f"{value:016x}" for value in shard.hashes]
        self.shards[shard.entry["file"]] = {
            "entry": shard.entry,
            "skipped": config.to_table(shard.skipped),
            "hashes": hashes,
        }
        self.build.note(shards=self.shards)

    def finished(self, name: str) -> Shard | None:
        """A shard that an earlier run finished; None if its file is missing or has changed since."""
        path, known = self.build.folder / name, self.shards.get(name)
        if known is None or self.build.missing([name]) or sha256_of(path) != known["entry"]["sha256"]:
            return None
        # The hashes come from the notes, because computing them again would decode every image.
        hashes, skipped = (
            [int(value, 16) for value in known["hashes"]],
            [SkippedRow(**skip) for skip in known["skipped"]],
        )
        shard = Shard(entry=known["entry"], hashes=hashes, skipped=skipped)
        for row in read_shard(path):
            shard.add(row)
        return shard


def _write_splits(
    listing: Listing, build: Build, options: PrepareOptions, track: Track
) -> tuple[dict[str, list[Shard]], list[SkippedRow]]:
    """The shards of each split, written unless an earlier run did, and the skipped rows; InputError for an empty
    split."""
    progress = ShardProgress.load(build)
    num_images = sum(listing.counts.values())
    splits: dict[str, list[Shard]] = {}
    with track("prepare", total=num_images, unit="images") as advance:
        for split, count in listing.counts.items():
            rows = listing.rows(split)
            num_shards = math.ceil(count / options.shard_size)
            splits[split] = []
            for number in range(num_shards):
                name = shard_name(split, number, num_shards)
                # Taken for a finished shard too, because `rows` is an iterator.
                part = list(itertools.islice(rows, options.shard_size))
                shard = progress.finished(name)
                if shard is None:
                    shard = _write_shard(build.folder / name, part, options, advance)
                    progress.add(shard)
                else:
                    advance(len(part))
                splits[split].append(shard)
    skipped = [*listing.skipped, *(skip for shards in splits.values() for shard in shards for skip in shard.skipped)]
    for split, shards in splits.items():
        if not any(shard.entry["rows"] for shard in shards):
            raise InputError(f"split {split!r} is empty", hint=empty_split_hint(skipped))
    return splits, skipped


def _write_shard(path: Path, rows: Sequence[SourceRow], options: PrepareOptions, advance: Advance) -> Shard:
    shard = Shard()

    def usable_rows(results: Iterable[CheckResult]) -> Iterator[CorpusRow]:
        for row, result in zip(rows, results, strict=True):
            advance(1)
            if isinstance(result, CheckedImage):
                shard.hashes.append(result.hash)
                yield _corpus_row(row, result)
            elif options.on_error == "skip":
                shard.skipped.append(SkippedRow(row=row.where, image=row.path, reason=result.reason))
            else:
                raise InputError(
                    f"{row.where} {json.dumps(row.path, ensure_ascii=False)}: {result.reason}", hint=SKIP_HINT
                )

    # Closed here, because the traceback of an error would keep the generator, and with it the threads.
    with closing(_check_images([row.image_file for row in rows], options)) as results:
        for row in write_shard(path, usable_rows(results)):
            shard.add(row)
    shard.entry = {"file": path.name, **seal_of(path, rows=len(shard.row_digests))}
    return shard


@dataclass(frozen=True, kw_only=True, slots=True)
class UnusableImage:
    """Why an image cannot be used."""

    reason: str


CheckResult = CheckedImage | UnusableImage


def _check_images(image_files: Sequence[ImageFile], options: PrepareOptions) -> Generator[CheckResult, None, None]:
    """Read, check and shrink image files; the results come in order."""

    def check(file: ImageFile) -> CheckResult:
        try:
            return images.check_image(file.read(), options.image_size_px)
        except (RowError, ImageError) as error:
            return UnusableImage(reason=str(error))

    readers = 0 if options.workers == 1 else options.workers
    return read_in_threads(check, image_files, readers, ahead=AHEAD_PER_WORKER * readers)


def _corpus_row(row: SourceRow, image: CheckedImage) -> CorpusRow:
    # An image that was shrunk may have become a PNG.
    path = str(PurePosixPath(row.path).with_suffix(".png")) if image.became_png else row.path
    return CorpusRow(
        image_id=row.image_id,
        path=path,
        data=image.data,
        width=image.width,
        height=image.height,
        captions=row.captions,
        caption_ids=row.caption_ids,
    )


def _find_leakage(splits: Mapping[str, Sequence[Shard]]) -> Leakage:
    return near_duplicates.find_leakage(
        {
            split: near_duplicates.SplitImages(
                image_ids=[image_id for shard in shards for image_id in shard.image_ids],
                digests=[digest for shard in shards for digest in shard.image_digests],
                hashes=np.array([value for shard in shards for value in shard.hashes], dtype=np.uint64),
            )
            for split, shards in splits.items()
        }
    )
