"""Rows to prepare: what a source is, what it lists, and what happens to rows that cannot be used.

A reader turns each row of an annotation file into an `Entry`; `group_by_image` checks the entries and makes one
`SourceRow` per image. Every mistake of an annotation file is found here and reported with its row. Images are only
located, and read later.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from dcdctl.core import files
from dcdctl.core.data.columns import ImageColumns
from dcdctl.core.data.corpus_json import SkippedRow
from dcdctl.core.data.images import ImageFile, ImageStore, RowError
from dcdctl.core.data.text_encoding import describe_value
from dcdctl.core.errors import ConfigError, InputError

SPLITS = ("train", "val", "test")
SPLIT_ALIASES = {"restval": "train", "validation": "val", "dev": "val"}
"""COCO's `restval` images belong to train: 82,783 + 30,504. `validation` and `dev` are the names that the Hub and
Flickr8k use for val."""
Paths = tuple[Path, ...]
HELD_OUT = ("test", "val")
"""Splits that `divide` fills. Recipes validate on val, and eval measures on test."""
MAX_HELD_OUT = 0.3
"""Maximum share of each, so that train stays the largest split."""
MAX_TEXT_BYTES = 1 << 20
"""Larger captions, and files of captions in a tar, are rejected: to compare and tokenize a text takes 60 to 170 times
its size."""
SKIP_HINT = "correct it, or skip such rows with --on-error skip"


@dataclass(frozen=True, kw_only=True)
class SourceConfig(ABC):
    """The settings of a data source in one format: its fields are the keys of the source's table in a manifest.

    The type of a field says whether it is a path: Path, Path | None, Paths, or a dict of Path or Paths by split. A
    manifest gives such a field as text, and `source_files` replaces it by paths of local files.
    """

    format: ClassVar[str]
    """The name of the format in manifests."""

    @abstractmethod
    def list_rows(self, check: RowCheck) -> Listing:
        """The rows of the source; rows of the same image become one where the format allows it."""


@dataclass(frozen=True, slots=True)
class Entry(ABC):
    """A row of an annotation file that is not checked yet: each method may raise RowError."""

    where: str
    """The file and the row, for messages."""
    value: Any
    """What the row says: a JSON object, or cells by name."""
    image_key: ClassVar[str] = "image"

    @property
    def image_name(self) -> str:
        """The image as the row names it, for messages; empty if it does not."""
        name = self.value.get(self.image_key) if isinstance(self.value, Mapping) else None
        return name if isinstance(name, str) else ""

    @abstractmethod
    def split(self) -> str | None:
        """The split; None if the image is not part of the data set."""

    @abstractmethod
    def image_path(self) -> str:
        """The path that identifies the image."""

    @abstractmethod
    def captions(self) -> tuple[list[str], list[int] | None]:
        """At least one, and the source's number of each; None if they have no numbers."""

    @abstractmethod
    def image_file(self, path: str) -> ImageFile:
        """The image with that `image_path`."""


@dataclass(frozen=True, slots=True)
class EntryWithFile(Entry):
    """A row whose image is a file in folders or archives."""

    store: ImageStore

    def image_file(self, path: str) -> ImageFile:
        return self.store.find(path)


@dataclass(frozen=True, slots=True)
class SourceRow:
    """An image to prepare, with its captions."""

    where: str
    """The file and the row where the image first appears."""
    image_id: str
    path: str
    """The path of the image in the source."""
    image_file: ImageFile
    captions: list[str]
    caption_ids: list[int]


@dataclass(frozen=True, kw_only=True)
class SplitCounts:
    """Images and captions of a split."""

    images: int
    captions: int


@dataclass(frozen=True, kw_only=True)
class Listing:
    """Everything there is to prepare."""

    counts: Mapping[str, SplitCounts]
    """By split; splits without images have none."""
    rows: Callable[[str], Iterator[SourceRow]]
    """The rows of a split, in source order."""
    provenance: Mapping[str, Any]
    """The format, and checksums of the source's files."""
    skipped: Sequence[SkippedRow] = ()
    columns: ImageColumns | None = None
    """Columns of the images by their ids, such as a year; None if there are none."""


@dataclass(kw_only=True)
class RowCheck:
    """Which rows are requested, and which of them were skipped because they cannot be used."""

    splits: Sequence[str]
    """Empty: all splits of the source."""
    max_images: int | None
    """Images per split."""
    skip_bad: bool
    """Skip rows that cannot be used; else the first one is an error."""
    skipped: list[SkippedRow] = field(default_factory=list)
    seen_splits: set[str] = field(default_factory=set)
    """The requested splits that rows name, usable or not."""

    def reject(self, where: str, image: str, reason: str) -> None:
        """Record a row that cannot be used, or raise InputError."""
        if not self.skip_bad:
            quoted = f" {json.dumps(image, ensure_ascii=False)}" if image else ""
            raise InputError(f"{where}{quoted}: {reason}", hint=SKIP_HINT)
        self.skipped.append(SkippedRow(row=where, image=image, reason=reason))

    def includes(self, split: str) -> bool:
        """Whether a split is requested; such a split must not turn out empty."""
        if self.splits and split not in self.splits:
            return False
        self.seen_splits.add(split)
        return True


def group_by_image(entries: Iterable[Entry], check: RowCheck, *, merge: bool) -> dict[str, list[SourceRow]]:
    """The rows of each split, in the order in which their images first appear.

    With `merge`, entries of the same image become one row; else every entry after the first is rejected. Captions
    without a number get their position in the split.
    """
    rows: dict[str, list[SourceRow]] = {split: [] for split in SPLITS}
    by_path: dict[str, tuple[str, SourceRow]] = {}
    num_captions = dict.fromkeys(SPLITS, 0)
    for entry in entries:
        try:
            split = entry.split()
            if split is None or not check.includes(split):
                continue
            path = entry.image_path()
            is_new = path not in by_path
            # A full split still accepts further captions of its images.
            if is_new and check.max_images is not None and len(rows[split]) >= check.max_images:
                continue
            if not is_new and not merge:
                raise RowError(f"the same image as {by_path[path][1].where}")
            if not is_new and by_path[path][0] != split:
                raise RowError(f"its split is {split}, but {by_path[path][0]} in {by_path[path][1].where}")
            # All that may fail precedes the first change, so that a rejected row leaves nothing behind.
            captions, caption_ids = entry.captions()
            if is_new:
                by_path[path] = split, SourceRow(entry.where, path, path, entry.image_file(path), [], [])
                rows[split].append(by_path[path][1])
        except RowError as error:
            check.reject(entry.where, entry.image_name, str(error))
            continue
        by_path[path][1].captions.extend(captions)
        first = num_captions[split]
        by_path[path][1].caption_ids.extend(range(first, first + len(captions)) if caption_ids is None else caption_ids)
        num_captions[split] += len(captions)
    return rows


def make_listing(
    rows: Mapping[str, list[SourceRow]], check: RowCheck, provenance: dict[str, Any], images: Sequence[Path]
) -> Listing:
    """A listing of rows that are all in memory; adds the files with the images to the provenance."""
    stamps = hashlib.sha256()
    for row in (row for split in SPLITS for row in rows[split]):
        stamps.update(f"{row.path} {row.image_file.stamp()}\n".encode())
    # Names and sizes (and checksums in a zip) stand for the images, because reading them all would take as long as
    # preparing them.
    provenance |= {"images": {"files": [path.name for path in images], "listing_sha256": stamps.hexdigest()}}
    counts = {
        split: SplitCounts(images=len(rows[split]), captions=sum(len(row.captions) for row in rows[split]))
        for split in SPLITS
        if rows[split]
    }
    return Listing(
        counts=counts,
        rows=lambda split: iter(rows[split]),
        provenance=provenance,
        skipped=tuple(check.skipped),
    )


def empty_split_hint(skipped: Sequence[SkippedRow]) -> str:
    """The hint for a split without images."""
    return f"the first skipped row: {skipped[0].row}: {skipped[0].reason}" if skipped else "the source has no row of it"


def check_splits(where: str, keys: Iterable[str]) -> None:
    """ConfigError for a key that is not a split."""
    for split in keys:
        if split not in SPLITS:
            raise ConfigError(f"{where}.{split} is not a split", hint=f"known splits: {', '.join(SPLITS)}")


def file_checksum(path: Path) -> dict[str, str]:
    """A file as `corpus.json` records it."""
    return {"file": path.name, "sha256": files.sha256_of(path)}


def divide(image_ids: Iterable[str], share: float) -> dict[str, str]:
    """The split of each image: a share is test, as large a share is val, and the rest is train.

    The SHA-256 of the id decides, so an image keeps its split when others are added. Each split has at least one image;
    all images are train where they are so few that the share is less than one image.

    >>> splits = list(divide(map(str, range(1000)), 0.1).values())
    >>> [splits.count(split) for split in ("train", "val", "test")]
    [788, 106, 106]
    >>> set(divide(map(str, range(9)), 0.1).values())
    {'train'}
    """
    places = sorted(
        (int.from_bytes(hashlib.sha256(image_id.encode("utf-8", "surrogatepass")).digest()[:8]) / 2**64, image_id)
        for image_id in set(image_ids)
    )
    splits = dict.fromkeys((image_id for _, image_id in places), "train")
    if share * len(places) < 1:
        return splits
    start = 0
    for number, split in enumerate(HELD_OUT):
        count = sum(number * share <= place < (number + 1) * share for place, _ in places)
        # At most a third each, so that train is never empty.
        stop = start + min(max(count, 1), len(places) // 3)
        splits |= dict.fromkeys((image_id for _, image_id in places[start:stop]), split)
        start = stop
    return splits


def read_split(value: Any) -> str:
    """The split that a row names."""
    split = SPLIT_ALIASES.get(value, value) if isinstance(value, str) else value
    if split not in SPLITS:
        known = ", ".join([*SPLITS, *SPLIT_ALIASES])
        raise RowError(
            f"unknown split {value!r} (known: {known})"
            if isinstance(value, str)
            else f'"split" is {describe_value(value)}'
        )
    return str(split)


def read_captions(value: Any) -> list[str]:
    """The captions of a row that has one or a list of them; at least one."""
    if not isinstance(value, list):
        return [read_caption(value, "the caption")]
    if not value:
        raise RowError("the image has no caption")
    return [read_caption(text, f"caption {i}") for i, text in enumerate(value)]


def read_caption(value: Any, name: str) -> str:
    """A caption; `name` is its name in messages."""
    if not isinstance(value, str):
        raise RowError(f"{name} is {describe_value(value)}, expected text")
    if not value.strip():
        raise RowError(f"{name} is empty")
    # JSON may hold half of a surrogate pair, which UTF-8 cannot store.
    try:
        reject_large_text(len(value.encode()), name)
    except UnicodeEncodeError as error:
        raise RowError(f"{name} is not Unicode text ({error.reason})") from error
    return value


def reject_large_text(num_bytes: int, name: str) -> None:
    """RowError for a text of more than `MAX_TEXT_BYTES`."""
    if num_bytes > MAX_TEXT_BYTES:
        raise RowError(f"{name} is larger than {MAX_TEXT_BYTES:,} bytes")


def read_caption_ids(value: Any, count: int) -> list[int] | None:
    """The numbers of `count` captions; None if the value is anything else."""
    # Not isinstance, because a bool is an int. 64 bits, because the corpus stores int64.
    if (
        isinstance(value, list)
        and len(value) == count
        and all(type(number) is int and abs(number) < 2**63 for number in value)
    ):
        return value
    return None
