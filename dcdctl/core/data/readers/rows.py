"""Rows to prepare: what a source is, what it lists, and what happens to rows that cannot be used.

A reader turns each row of an annotation file into an `Entry`; `group_by_image` checks the entries and makes one
`SourceRow` per image. Every mistake of an annotation file is found here and reported with its row. Images are only
located, and read later.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

from dcdctl.core import files
from dcdctl.core.config import between, settle_fields
from dcdctl.core.data.columns import ImageColumns
from dcdctl.core.data.corpus_json import SkippedRow
from dcdctl.core.data.images import NEEDS_PACKAGE, ImageFile, ImageStore, RowError, count_kinds, left_out_lines
from dcdctl.core.data.readers.captions import NO_LABEL, CaptionLabel, is_synthetic
from dcdctl.core.data.shards import LABEL_COLUMNS
from dcdctl.core.data.text_encoding import check_encoding, describe_value
from dcdctl.core.errors import ConfigError, InputError
from dcdctl.core.places import in_utf8

CAPTIONED_SPLITS = ("train", "val", "test")
SPLITS = (*CAPTIONED_SPLITS, "pool")
"""In the order in which they are written. `pool` is the unpaired part of a captioned corpus; no row names it."""
SPLIT_ALIASES = {"restval": "train", "validation": "val", "dev": "val"}
"""COCO's `restval` images belong to train: 82,783 + 30,504. `validation` and `dev` are the names that the Hub and
Flickr8k use for val."""
Paths = tuple[Path, ...]
HELD_OUT = ("test", "val")
"""Splits that `divide` fills. Recipes validate on val, and eval measures on test."""
# Enough images to choose settings on; 1,500 photos give 150.
HELD_OUT_BY_DEFAULT = 0.1
MAX_HELD_OUT = 0.3
"""Maximum share of each, so that train stays the largest split."""
NOT_UTF8 = "its name is not UTF-8"
SKIP_HINT = "correct it, or skip such rows with --on-error skip"


@dataclass(frozen=True, kw_only=True)
class SourceConfig(ABC):
    """The settings of a data source in one format: its fields are the keys of the source's table in a manifest.

    The type of a field says whether it is a path: Path, Path | None, Paths, or a dict of Path or Paths by split. A
    manifest gives such a field as text, and `source_files` replaces it by paths of local files.
    """

    format: ClassVar[str]
    """The name of the format in manifests."""

    queries: Paths = ()
    """Files of texts: they become the split `pool`, with the images in the source's places that no row names."""

    @abstractmethod
    def list_rows(self, check: RowCheck) -> Listing:
        """The rows of the source; rows of the same image become one where the format allows it."""


@dataclass(frozen=True, kw_only=True)
class TextSource(SourceConfig):
    """The settings of a source in text files, which is divided unless it has splits of its own."""

    hold_out: Annotated[float, between(0, MAX_HELD_OUT)] | None = None
    """The share of images, and of a pool's texts, that is test, and as many are val; 0 for none. None for 0.1 of a
    table without splits, and of a pool with images and texts."""
    encoding: str | None = None
    """The encoding of the file, or of the files of texts; None to recognize it."""

    def __post_init__(self) -> None:
        settle_fields(self)
        if self.encoding is not None:
            # One name for each codec, so that cp1252 and windows-1252 give the same corpus.
            object.__setattr__(self, "encoding", check_encoding(self.encoding))


@dataclass(frozen=True, slots=True)
class Entry(ABC):
    """A row of an annotation file that is not checked yet: each method may raise RowError."""

    where: str
    """The file and the row, for messages."""
    value: Any
    """What the row says: a JSON object, or cells by name."""

    @abstractmethod
    def split(self) -> str | None:
        """The split; None if the image is not part of the data set."""

    @abstractmethod
    def image_path(self) -> str:
        """The path that identifies the image."""

    @abstractmethod
    def captions(self) -> tuple[list[str], list[int] | None]:
        """At least one, and the source's number of each; None if they have no numbers."""

    def labels(self, count: int) -> list[CaptionLabel]:
        """The label of each of `count` captions."""
        return [NO_LABEL] * count

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
    captions: list[str] = field(default_factory=list)
    caption_ids: list[int] = field(default_factory=list)
    labels: list[CaptionLabel] = field(default_factory=list)

    def label_columns(self, names: Sequence[str]) -> dict[str, list[Any]]:
        """Columns of `LABEL_COLUMNS`, with a value for each caption."""
        columns = {}
        for number, name in enumerate(LABEL_COLUMNS):
            if name in names:
                columns[name] = [label[number] for label in self.labels]
        return columns


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
    label_columns: tuple[str, ...] = ()
    """The columns of `LABEL_COLUMNS` that say something of a caption."""
    pools: Mapping[str, Mapping[str, tuple[int, str]]] = field(default_factory=dict)
    """By split that is a pool: its texts, with their numbers in the source and their languages."""


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
    num_synthetic: int = 0
    """Synthetic captions that were left out of held-out splits."""

    def reject(self, where: str, image: str, reason: str) -> None:
        """Record a row that cannot be used, or raise InputError."""
        where, image, reason = map(in_utf8, (where, image, reason))
        if not self.skip_bad:
            quoted = f" {json.dumps(image, ensure_ascii=False)}" if image else ""
            raise InputError(f"{where}{quoted}: {reason}", hint=SKIP_HINT)
        self.skipped.append(SkippedRow(row=where, image=image, reason=reason))

    def leave_out(self, where: str, name: str, kind: str, reason: str = "its name is not that of an image") -> None:
        """Record a file of a pool that is no image by its name, which is no error."""
        self.skipped.append(SkippedRow(row=where, image=in_utf8(name), reason=reason, kind=kind))

    def requested(self, keys: Collection[str]) -> list[str]:
        """The splits among the keys that are requested, in the order in which they are written."""
        return [split for split in SPLITS if split in keys and (not self.splits or split in self.splits)]

    def includes(self, split: str) -> bool:
        """Whether a split is requested; such a split must not turn out empty."""
        if self.splits and split not in self.splits:
            return False
        self.seen_splits.add(split)
        return True


def group_by_image(
    entries: Iterable[Entry], check: RowCheck, *, merge: bool, is_divided: bool = False
) -> dict[str, list[SourceRow]]:
    """The rows of each split, in the order in which their images first appear.

    With `merge`, entries of the same image become one row; else every entry after the first is rejected. Captions
    without a number get their position in the split. A synthetic caption of a held-out split is left out if `divide`
    made the splits, else its row is rejected.
    """
    rows: dict[str, list[SourceRow]] = {split: [] for split in SPLITS}
    by_path: dict[str, tuple[str, SourceRow]] = {}
    num_captions = dict.fromkeys(SPLITS, 0)
    for entry in entries:
        path = ""
        try:
            split = entry.split()
            if split is None or not check.includes(split):
                continue
            path = entry.image_path()
            if in_utf8(path) != path:
                raise RowError(NOT_UTF8)
            known = by_path.get(path)
            # A full split still accepts further captions of its images.
            if known is None and check.max_images is not None and len(rows[split]) >= check.max_images:
                continue
            if known is not None and not merge:
                raise RowError(f"the same image as {known[1].where}")
            if known is not None and known[0] != split:
                raise RowError(f"its split is {split}, but {known[0]} in {known[1].where}")
            # All that may fail precedes the first change, so that a rejected row leaves nothing behind.
            captions, caption_ids, labels = _captions_in(entry, split, check, is_divided=is_divided)
            if not captions:
                continue
            if known is None:
                known = split, SourceRow(entry.where, path, path=path, image_file=entry.image_file(path))
                by_path[path] = known
                rows[split].append(known[1])
        except RowError as error:
            check.reject(entry.where, path, str(error))
            continue
        row, first = known[1], num_captions[split]
        num_captions[split] += len(captions)
        row.captions.extend(captions)
        row.caption_ids.extend(range(first, num_captions[split]) if caption_ids is None else caption_ids)
        row.labels.extend(labels)
    return rows


def _captions_in(
    entry: Entry, split: str, check: RowCheck, *, is_divided: bool
) -> tuple[list[str], list[int] | None, list[CaptionLabel]]:
    """The captions of an entry that belong into its split, their numbers and their labels."""
    captions, caption_ids = entry.captions()
    labels = entry.labels(len(captions))
    kept = [i for i, label in enumerate(labels) if split not in HELD_OUT or not is_synthetic(label.source)]
    # Recall on captions that a model wrote is no measure of a search by people.
    if len(kept) < len(captions) and not is_divided:
        raise RowError(f"it has a synthetic caption, and split {split} is for captions that people wrote")
    check.num_synthetic += len(captions) - len(kept)
    kept_ids = None if caption_ids is None else [caption_ids[i] for i in kept]
    return [captions[i] for i in kept], kept_ids, [labels[i] for i in kept]


def make_listing(
    rows: Mapping[str, list[SourceRow]],
    check: RowCheck,
    provenance: dict[str, Any],
    images: Sequence[Path],
    pools: Mapping[str, Mapping[str, tuple[int, str]]] | None = None,
) -> Listing:
    """A listing of rows that are all in memory; adds the files with the images to the provenance."""
    stamps, texts = hashlib.sha256(), pools or {}
    labels = set()
    counts = {}
    for split, rows_of_split in rows.items():
        for row in rows_of_split:
            stamps.update(f"{row.path} {row.image_file.stamp()}\n".encode())
            labels.update(row.labels)
        num_captions = sum(len(row.captions) for row in rows_of_split) + len(texts.get(split, ()))
        if rows_of_split or texts.get(split):
            counts[split] = SplitCounts(images=len(rows_of_split), captions=num_captions)
    # Names and sizes (and checksums in a zip) stand for the images, because reading them all would take as long as
    # preparing them.
    provenance |= {"images": {"files": [path.name for path in images], "listing_sha256": stamps.hexdigest()}}
    # A column of labels is written if one of them is not the default.
    label_columns = []
    for number, name in enumerate(LABEL_COLUMNS):
        if any(label[number] != NO_LABEL[number] for label in labels):
            label_columns.append(name)
    return Listing(
        counts=counts,
        rows=lambda split: iter(rows[split]),
        provenance=provenance,
        skipped=tuple(check.skipped),
        label_columns=tuple(label_columns),
        pools={split: texts[split] for split in texts if split in counts},
    )


def skip_hint(kind: str) -> str:
    """What to do about a row whose image is of a kind that cannot be read."""
    packages = {unread.kind: unread.next_step for unread in NEEDS_PACKAGE}
    return SKIP_HINT.replace("correct it", packages[kind]) if kind in packages else SKIP_HINT


def empty_split_hint(skipped: Sequence[SkippedRow]) -> str:
    """The hint for a split without images."""
    kinds = count_kinds(row.kind for row in skipped if row.kind)
    if set(kinds) & {unread.kind for unread in NEEDS_PACKAGE}:
        return "; ".join(left_out_lines(kinds))
    return f"the first skipped row: {skipped[0].row}: {skipped[0].reason}" if skipped else "the source has no row of it"


def check_splits(where: str, keys: Iterable[str]) -> None:
    """ConfigError for a key that is not a split with captions."""
    for split in keys:
        if split not in CAPTIONED_SPLITS:
            raise ConfigError(f"{where}.{split} is not a split", hint=f"known splits: {', '.join(CAPTIONED_SPLITS)}")


def file_checksum(path: Path) -> dict[str, str]:
    """A file as `corpus.json` records it."""
    return {"file": path.name, "sha256": files.sha256_of(path)}


def divide(ids: Iterable[str], share: float) -> dict[str, str]:
    """The split of each image: about a share is test, about as many are val, and the rest is train.

    The SHA-256 of the id alone decides, so an image keeps its split whatever is added or removed. Among few images a
    split may therefore be empty.

    >>> splits = list(divide(map(str, range(1000)), 0.1).values())
    >>> [splits.count(split) for split in ("train", "val", "test")]
    [788, 106, 106]
    """
    splits = {}
    for image_id in ids:
        digest = hashlib.sha256(image_id.encode("utf-8", "surrogatepass")).digest()
        place = int.from_bytes(digest[:8]) / 2**64
        splits[image_id] = "train"
        for number, split in enumerate(HELD_OUT):
            if number * share <= place < (number + 1) * share:
                splits[image_id] = split
    return splits


def held_out_facts(share: float, by: str, *sides: Mapping[str, str]) -> dict[str, Any]:
    """What `corpus.json` says of a division: the split of each image, and of each text of a pool, are its sides."""
    filled = [split for split in CAPTIONED_SPLITS if all(split in side.values() for side in sides)]
    facts = {"share": share, "splits": [split for split in filled if split in HELD_OUT], "by": by}
    if empty := [split for split in CAPTIONED_SPLITS if split not in filled]:
        facts["empty"] = empty
    return facts


def read_split(value: Any) -> str:
    """The split that a row names."""
    if not isinstance(value, str):
        raise RowError(f'"split" is {describe_value(value)}')
    split = SPLIT_ALIASES.get(value, value)
    if split not in CAPTIONED_SPLITS:
        raise RowError(f"unknown split {value!r} (known: {', '.join([*CAPTIONED_SPLITS, *SPLIT_ALIASES])})")
    return split
