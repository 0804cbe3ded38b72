"""The shards of every split of a corpus: threads decode every image once, to find damaged ones; rows keep the source's
order, and finished shards are noted, so that a killed run resumes."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterable, Iterator, Sequence
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
from dcdctl.core.data.images import CheckedImage, ImageError, RowError
from dcdctl.core.data.near_duplicates import Match
from dcdctl.core.data.readers.rows import HELD_OUT, SPLITS, Listing, SourceRow, skip_hint
from dcdctl.core.data.shards import CorpusRow, RowFacts, read_shard, shard_name, write_shard
from dcdctl.core.errors import RUN_AGAIN, InputError, resumed_by
from dcdctl.core.machine import num_cores, read_in_threads
from dcdctl.core.progress import Advance, Track

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
class ShardNote:
    """A finished shard, as prepare.json notes it."""

    entry: ShardFile
    skipped: tuple[SkippedRow, ...]
    hashes: tuple[str, ...]
    """In hex. They are kept because computing them again would decode every image."""
    left_out: Annotated[tuple[Match, ...], OMITTED] = ()
    """Images of a pool that are measured on."""


def write_splits(
    listing: Listing, build: Build, options: PrepareOptions, held_out: HeldOut, track: Track
) -> tuple[dict[str, list[ShardNote]], dict[str, list[RowFacts]]]:
    """The shards and the rows of each split; a shard is written unless an earlier run did. Images that are measured on
    are added to `held_out`."""
    # The shards of an earlier run of the same plan with the same library versions; the others are removed.
    noted = build.begin(restart=True).get("shards", {})
    build.clean(noted)
    notes = {name: config.build(ShardNote, note) for name, note in noted.items()}
    shards: dict[str, list[ShardNote]] = {split: [] for split in listing.counts}
    facts: dict[str, list[RowFacts]] = {split: [] for split in listing.counts}
    trained = decontamination.trained_pools(listing)
    with track("prepare", total=sum(count.images for count in listing.counts.values()), unit="images") as advance:
        # The pools to train on last, because they are left without what the other splits hold.
        for split in sorted(listing.counts, key=lambda split: split in trained):
            rows, unwanted = listing.rows(split), held_out if split in trained else HeldOut()
            num_shards = math.ceil(listing.counts[split].images / options.shard_size)
            for number in range(num_shards):
                path = build.folder / shard_name(split, number, num_shards)
                # Taken for a finished shard too, because `rows` is an iterator.
                part = list(itertools.islice(rows, options.shard_size))
                note = notes.get(path.name)
                # The file may be missing, or may have changed since.
                if note is not None and path.exists() and sha256_of(path) == note.entry.sha256:
                    written = list(map(RowFacts.of, read_shard(path), (int(value, 16) for value in note.hashes)))
                    advance(len(part))
                else:
                    with resumed_by(RUN_AGAIN, lambda: bool(notes)):
                        note, written = _write_shard(
                            path,
                            part,
                            labels=listing.label_columns,
                            unwanted=unwanted,
                            options=options,
                            advance=advance,
                        )
                    notes[path.name] = note
                    # After each shard: a killed run loses at most the shard that it was writing.
                    build.note(shards=config.to_table(notes))
                shards[split].append(note)
                facts[split] += written
            if split in HELD_OUT and trained:
                for fact in facts[split]:
                    held_out.add(f"{fact.image_id} of {split}", fact.image_digest, fact.hash)
                held_out.add_texts(text for row in listing.rows(split) for text in row.captions)
    return shards, facts


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
    labels: Sequence[str],
    *,
    unwanted: HeldOut,
    options: PrepareOptions,
    advance: Advance,
) -> tuple[ShardNote, list[RowFacts]]:
    hashes, skipped, left_out = list[int](), list[SkippedRow](), list[Match]()

    def check(row: SourceRow) -> CheckedImage | SkippedRow:
        """The image file, shrunk if it is too large, or why it cannot be used."""
        try:
            return images.check_image(row.image_file.read(), options.image_size_px)
        except (RowError, ImageError) as error:
            kind = images.kind_of(error, Path(row.path))
            return SkippedRow(row=row.where, image=row.path, reason=str(error), kind=kind)

    def usable_rows(results: Iterable[CheckedImage | SkippedRow]) -> Iterator[CorpusRow]:
        for row, result in zip(rows, results, strict=True):
            advance(1)
            if isinstance(result, CheckedImage):
                digest = hashlib.sha256(result.data).digest()
                if (match := unwanted.find(row.image_id, digest, result.hash)) is not None:
                    left_out.append(match)
                    continue
                hashes.append(result.hash)
                yield _corpus_row(row, result, labels)
            elif options.on_error == "skip":
                skipped.append(result)
            else:
                name = json.dumps(row.path, ensure_ascii=False)
                raise InputError(f"{row.where} {name}: {result.reason}", hint=skip_hint(result.kind))

    readers = 0 if options.workers == 1 else options.workers
    # Closed here, because the traceback of an error would keep the generator, and with it the threads.
    with closing(read_in_threads(check, rows, readers, ahead=AHEAD_PER_WORKER * readers)) as results:
        written = [RowFacts.of(row, hashes[i]) for i, row in enumerate(write_shard(path, usable_rows(results), labels))]
    note = ShardNote(
        entry=ShardFile(file=path.name, **seal_of(path, rows=len(written))),
        skipped=tuple(skipped),
        hashes=tuple(f"{value:016x}" for value in hashes),
        left_out=tuple(left_out),
    )
    return note, written
