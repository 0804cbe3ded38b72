"""The shards of every split of a corpus: workers of an engine decode every image once, to find damaged ones; rows keep
the source's order, and finished shards are noted, so that a killed run resumes."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from dcdctl.core import config
from dcdctl.core.artifacts import Build, seal_of, sha256_of
from dcdctl.core.config import OMITTED, Count
from dcdctl.core.data import decontamination, images
from dcdctl.core.data.corpus_json import ShardFile, SkippedRow
from dcdctl.core.data.decontamination import HeldOut
from dcdctl.core.data.images import CheckedImage, ImageChecks, ImageError, RowError, ShardFiles
from dcdctl.core.data.near_duplicates import Match
from dcdctl.core.data.readers.rows import HELD_OUT, SPLITS, Listing, SourceRow, skip_hint
from dcdctl.core.data.shards import CorpusRow, RowFacts, read_shard, shard_name, write_shard
from dcdctl.core.engines import Engine
from dcdctl.core.errors import RUN_AGAIN, DcdError, InputError, resumed_by
from dcdctl.core.machine import num_cores
from dcdctl.core.progress import Track


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
    """Threads that read and check images ahead, of this process or of each worker of an engine; with one, images are
    read when they are needed."""
    on_error: Literal["stop", "skip"] = "stop"
    shard_size: Count = 2000
    """Images per shard."""

    def __post_init__(self) -> None:
        for split in self.splits:
            if split not in SPLITS:
                raise InputError(f"unknown split {split!r}", hint=f"known splits: {', '.join(SPLITS)}")
        config.settle_fields(self)

    def to_plan(self) -> dict[str, Any]:
        """The options that change the corpus, without the splits, whose counts are in the plan."""
        return {key: value for key, value in config.to_table(self).items() if key not in ("workers", "splits")}


@dataclass(frozen=True, kw_only=True)
class ShardNote:
    """A finished shard, as prepare.json notes it."""

    entry: ShardFile
    skipped: tuple[SkippedRow, ...]
    hashes: tuple[str, ...]
    """In hex. They are kept because computing them again would decode every image."""
    left_out: Annotated[tuple[Match, ...], OMITTED] = ()
    """Images of a pool that are measured on."""


@dataclass(frozen=True)
class PlannedShard:
    """A shard, and its rows."""

    number: int
    """Among those of all splits."""
    split: str
    path: Path
    rows: Sequence[SourceRow]
    note: ShardNote | None
    """That of an earlier run, if it has written the shard."""

    @property
    def files(self) -> ShardFiles:
        """The image of each row."""
        return ShardFiles(self.number, self.path.name, [row.image_file for row in self.rows])


def write_splits(
    listing: Listing, build: Build, options: PrepareOptions, held_out: HeldOut, engine: Engine, track: Track
) -> tuple[dict[str, list[ShardNote]], dict[str, list[RowFacts]]]:
    """The shards and the rows of each split; a shard is written unless an earlier run did. Images that are measured on
    are added to `held_out`.

    If an engine cannot do a task, its error is raised when the other shards are written.
    """
    # The shards of an earlier run of the same plan with the same library versions; the others are removed.
    noted = build.begin(restart=True).get("shards", {})
    build.clean(noted)
    notes = {name: config.build(ShardNote, note) for name, note in noted.items()}
    shards: dict[str, list[ShardNote]] = {split: [] for split in listing.counts}
    facts: dict[str, list[RowFacts]] = {split: [] for split in listing.counts}
    trained = decontamination.trained_pools(listing)
    # Rows are listed once: to make tasks of them, which are ahead, and to write them.
    to_check, to_write = itertools.tee(_planned_shards(listing, build.folder, options, notes))
    with (
        track("prepare", total=sum(count.images for count in listing.counts.values()), unit="images") as advance,
        # Closed here, because the traceback of an error would keep the threads of the engine.
        closing(
            ImageChecks(
                engine,
                (shard.files for shard in to_check if shard.note is None),
                image_size_px=options.image_size_px,
                threads=options.workers,
                advance=advance,
            )
        ) as checks,
    ):
        for split, planned in itertools.groupby(to_write, key=lambda shard: shard.split):
            unwanted = held_out if split in trained else HeldOut()
            for shard in planned:
                if shard.note is not None:
                    note, rows = shard.note, _rows_of_finished(shard.path, shard.note)
                    advance(len(shard.rows))
                else:
                    # An image that the pool must not have may be in a shard that could not be written.
                    lacks_unwanted = split in trained and checks.error is not None
                    written = None if lacks_unwanted else _written(shard, listing, notes, checks, unwanted, options)
                    if written is None:
                        continue  # `checks.end` says why
                    note, rows = written
                    notes[shard.path.name] = note
                    # After each shard: a killed run loses at most the shards that it was writing.
                    build.note(shards=config.to_table(notes))
                shards[split].append(note)
                facts[split] += rows
            if split in HELD_OUT and trained:
                for fact in facts[split]:
                    held_out.add(f"{fact.image_id} of {split}", fact.image_digest, fact.hash)
                held_out.add_texts(text for row in listing.rows(split) for text in row.captions)
        checks.end()
    return shards, facts


def _planned_shards(
    listing: Listing, folder: Path, options: PrepareOptions, notes: Mapping[str, ShardNote]
) -> Iterator[PlannedShard]:
    """All shards, in the order in which they are written."""
    trained = decontamination.trained_pools(listing)
    numbers = itertools.count()
    # The pools to train on last, because they are left without what the other splits hold.
    for split in sorted(listing.counts, key=lambda split: split in trained):
        rows = listing.rows(split)
        num_shards = math.ceil(listing.counts[split].images / options.shard_size)
        for number in range(num_shards):
            path = folder / shard_name(split, number, num_shards)
            # Taken for a finished shard too, because `rows` is an iterator.
            part = list(itertools.islice(rows, options.shard_size))
            note = notes.get(path.name)
            # The file may be missing, or may have changed since.
            is_finished = note is not None and path.exists() and sha256_of(path) == note.entry.sha256
            yield PlannedShard(next(numbers), split, path, part, note if is_finished else None)


def _rows_of_finished(path: Path, note: ShardNote) -> list[RowFacts]:
    """The rows of a shard that an earlier run has written."""
    return list(map(RowFacts.of, read_shard(path), (int(value, 16) for value in note.hashes)))


def _written(
    shard: PlannedShard,
    listing: Listing,
    notes: Mapping[str, ShardNote],
    checks: ImageChecks,
    unwanted: HeldOut,
    options: PrepareOptions,
) -> tuple[ShardNote, list[RowFacts]] | None:
    """The note and the rows of a shard that is now written; None if the engine could not do one of its tasks, whose
    error is that of the checks."""
    try:
        with resumed_by(RUN_AGAIN, lambda: bool(notes)):
            return _write_shard(
                shard.path,
                shard.rows,
                checked=checks.of(shard.files),
                labels=listing.label_columns,
                unwanted=unwanted,
                options=options,
            )
    except DcdError as error:
        if error is not checks.error:
            raise
        return None


def _corpus_row(row: SourceRow, image: CheckedImage, labels: Sequence[str]) -> CorpusRow:
    return CorpusRow(
        image_id=row.image_id,
        # An image that was shrunk or converted may have another format.
        path=row.path if image.suffix is None else str(PurePosixPath(row.path).with_suffix(image.suffix)),
        data=image.data,
        width=image.width,
        height=image.height,
        captions=row.captions,
        caption_ids=row.caption_ids,
        **row.label_columns(labels),
    )


def _write_shard(
    path: Path,
    rows: Sequence[SourceRow],
    *,
    checked: Iterable[CheckedImage | RowError | ImageError],
    labels: Sequence[str],
    unwanted: HeldOut,
    options: PrepareOptions,
) -> tuple[ShardNote, list[RowFacts]]:
    """Write the rows whose images can be used; `checked` has the image of each row, or why it cannot be used."""
    hashes, skipped, left_out = list[int](), list[SkippedRow](), list[Match]()

    def usable_rows() -> Iterator[CorpusRow]:
        for row, image in zip(rows, checked, strict=True):
            if isinstance(image, CheckedImage):
                digest = hashlib.sha256(image.data).digest()
                if (match := unwanted.find(row.image_id, digest, image.hash)) is not None:
                    left_out.append(match)
                    continue
                hashes.append(image.hash)
                yield _corpus_row(row, image, labels)
                continue
            kind = images.kind_of(image, Path(row.path))
            if options.on_error == "stop":
                name = json.dumps(row.path, ensure_ascii=False)
                raise InputError(f"{row.where} {name}: {image}", hint=skip_hint(kind))
            skipped.append(SkippedRow(row=row.where, image=row.path, reason=str(image), kind=kind))

    written = [RowFacts.of(row, hashes[i]) for i, row in enumerate(write_shard(path, usable_rows(), labels))]
    note = ShardNote(
        entry=ShardFile(file=path.name, **seal_of(path, rows=len(written))),
        skipped=tuple(skipped),
        hashes=tuple(f"{value:016x}" for value in hashes),
        left_out=tuple(left_out),
    )
    return note, written
