"""Where a corpus comes from: annotation files and folders or zips of images, listed as rows that are read later.

Whatever an annotation file may get wrong is found here, with the row it stands in. Pictures are only located; `Picture.read`
is called in a worker process.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from dcdctl.core import annotation_files, drawing, files, scenes
from dcdctl.core.errors import InputError
from dcdctl.core.image_store import ImageStore, Picture, RowError
from dcdctl.core.manifest import SPLITS, CsvSource, KarpathySource, ScenesSource, Source

SKIP_HINT = "put it right, or leave such rows out with --on-error skip"


@dataclass(frozen=True, slots=True)
class ScenePicture:
    """A picture that is drawn when read."""

    scene: scenes.Scene
    side_px: int

    def read(self) -> bytes:
        return drawing.to_png(drawing.draw(self.scene, self.side_px))

    def stamp(self) -> str:
        return repr(self.scene)


@dataclass(frozen=True, slots=True)
class SourceRow:
    """An image to be prepared; `where` names its row in the source, `path` is how the source calls the image."""

    where: str
    image_id: str
    path: str
    picture: Picture
    captions: list[str]
    caption_ids: list[int]


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A row that was left out, and why."""

    row: str
    image: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Listing:
    """What there is to prepare: counts by split, rows of a split in source order, and where it all comes from."""

    counts: Mapping[str, int]
    rows: Callable[[str], Iterator[SourceRow]]
    provenance: Mapping[str, Any]
    skipped: Sequence[Skipped] = ()


@dataclass(kw_only=True)
class RowCheck:
    """What is wanted of the rows of an annotation file, and what was found wrong with some of them."""

    splits: Sequence[str]
    """Empty: all there are."""
    max_images: int | None
    skip_bad: bool
    skipped: list[Skipped] = field(default_factory=list)
    named: set[str] = field(default_factory=set)
    """The wanted splits that rows name, good ones or bad."""

    def refuse(self, where: str, image: str, reason: str) -> None:
        """Note a bad row, or stop at it."""
        if not self.skip_bad:
            quoted = f" {json.dumps(image, ensure_ascii=False)}" if image else ""
            raise InputError(f"{where}{quoted}: {reason}", hint=SKIP_HINT)
        self.skipped.append(Skipped(row=where, image=image, reason=reason))

    def wants(self, split: str) -> bool:
        """Whether a split is to be prepared; one that is must not turn out empty."""
        if self.splits and split not in self.splits:
            return False
        self.named.add(split)
        return True

    def is_full(self, num_images: int) -> bool:
        return self.max_images is not None and num_images >= self.max_images


def list_scenes(source: ScenesSource, check: RowCheck) -> Listing:
    """The rows of the built-in corpus; scenes are thought up as they are asked for."""
    counts = {split: count for split in SPLITS if (count := source.counts.get(split, 0)) and check.wants(split)}
    if check.max_images is not None:
        counts = {split: min(count, check.max_images) for split, count in counts.items()}

    def rows(split: str) -> Iterator[SourceRow]:
        described = scenes.describe(source.seed, split, source.captions)
        for i in range(counts[split]):
            one = next(described)
            yield SourceRow(
                where=f"scenes {split}[{i}]",
                image_id=f"{split}/{i:06}",
                path=f"{split}/{i:06}.png",
                picture=ScenePicture(one.scene, source.side_px),
                captions=[statement.text for statement in one.statements],
                caption_ids=list(range(i * source.captions, (i + 1) * source.captions)),
            )

    provenance = {"kind": "scenes", "seed": source.seed, "side_px": source.side_px, "captions": source.captions}
    return Listing(counts=counts, rows=rows, provenance=provenance)


def list_karpathy(source: KarpathySource, check: RowCheck) -> Listing:
    """The rows of a Karpathy JSON; `restval` is train. A caption's number is its `sentid` if all have one, else its place."""
    entries = annotation_files.read_karpathy(source.annotations)
    store = ImageStore(source.images)
    numbers = annotation_files.sentence_numbers(entries)
    rows: dict[str, list[SourceRow]] = {split: [] for split in SPLITS}
    seen: dict[str, str] = {}
    for i, entry in enumerate(entries):
        where = f"{source.annotations.name} images[{i}]"
        try:
            if not isinstance(entry, dict):
                raise RowError(f"{annotation_files.kind_of(entry)}, an object is wanted")
            split = annotation_files.split_of(entry.get("split"))
            if not check.wants(split) or check.is_full(len(rows[split])):
                continue
            path = annotation_files.karpathy_path(entry)
            if path in seen:
                raise RowError(f"the same image as {seen[path]}")
            texts = annotation_files.karpathy_captions(entry)
            row = SourceRow(where, path, path, store.find(path), texts, numbers[i])
        except RowError as error:
            check.refuse(where, annotation_files.filename_of(entry), str(error))
            continue
        seen[path] = f"images[{i}]"
        rows[split].append(row)
    return _listing(rows, check, {"kind": "karpathy", "annotations": _checksum(source.annotations)}, store)


def list_csv(source: CsvSource, check: RowCheck) -> Listing:
    """The rows of a CSV of image and caption, an image where it first stands; a caption's number is its row."""
    cells = annotation_files.read_csv(source.pairs)
    store = ImageStore(source.images)
    rows: dict[str, list[SourceRow]] = {split: [] for split in SPLITS}
    by_path: dict[str, tuple[str, SourceRow]] = {}
    for number, (line, image, caption, split_cell) in enumerate(cells):
        where = f"{source.pairs.name} line {line}"
        try:
            split = source.split if split_cell is None else annotation_files.split_of(split_cell)
            if not image.strip():
                raise RowError("no image is named")
            path = str(PurePosixPath(image.strip()))
            if path in by_path and by_path[path][0] != split:
                raise RowError(f"its split is {split}, but {by_path[path][0]} in {by_path[path][1].where}")
            if not check.wants(split) or (path not in by_path and check.is_full(len(rows[split]))):
                continue
            text = annotation_files.csv_caption(caption)
            if path not in by_path:
                by_path[path] = split, SourceRow(where, path, path, store.find(path), [], [])
                rows[split].append(by_path[path][1])
        except RowError as error:
            check.refuse(where, image, str(error))
            continue
        by_path[path][1].captions.append(text)
        by_path[path][1].caption_ids.append(number)
    return _listing(rows, check, {"kind": "csv", "pairs": _checksum(source.pairs)}, store)


def list_source(source: Source, check: RowCheck) -> Listing:
    """The rows of any source; InputError if a split that is asked for has none."""
    if isinstance(source, ScenesSource):
        listing = list_scenes(source, check)
    else:
        listing = list_karpathy(source, check) if isinstance(source, KarpathySource) else list_csv(source, check)
    for split in check.splits or [split for split in SPLITS if split in check.named]:
        if not listing.counts.get(split):
            raise InputError(f"split {split!r} is empty", hint=why_empty(listing.skipped))
    if not listing.counts:
        raise InputError("the source has no image", hint="a split of it needs at least one")
    return listing


def why_empty(skipped: Sequence[Skipped]) -> str:
    """The hint for a split without images."""
    return f"the first row left out: {skipped[0].row}: {skipped[0].reason}" if skipped else "the source has no row of it"


def _listing(rows: Mapping[str, list[SourceRow]], check: RowCheck, provenance: dict[str, Any], store: ImageStore) -> Listing:
    stamps = hashlib.sha256()
    for row in (row for split in SPLITS for row in rows[split]):
        stamps.update(f"{row.path} {row.picture.stamp()}\n".encode())
    # Names and sizes (in a zip checksums too) stand for the pictures: reading them all would take as long as preparing them.
    provenance |= {"images": {"file": store.path.name, "listing_sha256": stamps.hexdigest()}}
    counts = {split: len(rows[split]) for split in SPLITS if rows[split]}
    return Listing(counts=counts, rows=lambda split: iter(rows[split]), provenance=provenance, skipped=tuple(check.skipped))


def _checksum(path: Path) -> dict[str, str]:
    return {"file": path.name, "sha256": files.sha256_of(path)}
