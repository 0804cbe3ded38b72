"""Rows to be prepared: what a source lists, one image after the other, and what is done about rows that are wrong.

Whatever an annotation file may get wrong is found here, with the row it stands in. Pictures are only located; `Picture.read`
is called in a worker process.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import Field, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

from dcdctl.core import files
from dcdctl.core.data.image_archives import ImageFile, RowError
from dcdctl.core.errors import ConfigError, InputError

SPLITS = ("train", "val", "test")
SPLIT_ALIASES = {"restval": "train", "validation": "val", "dev": "val"}
"""COCO's `restval` images belong to train: 82,783 + 30,504. `validation` and `dev` are the names that the Hub and Flickr8k use for val."""
Paths = tuple[Path, ...]
SKIP_HINT = "put it right, or leave such rows out with --on-error skip"


@dataclass(frozen=True, slots=True)
class SourceRow:
    """An image to be prepared; `where` names its row in the source, `path` is how the source calls the image."""

    where: str
    image_id: str
    path: str
    image_file: ImageFile
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
    captions: Mapping[str, int]
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


class SourceConfig(Protocol):
    """The settings of a data source in one format: a frozen dataclass whose fields are the keys of the source's table in a manifest.

    The type of a field says whether it is a path: Path, Path | None, Paths, or a dict of Path or Paths by split. A manifest gives such a
    field as text, and `source_files` replaces it by paths of local files.
    """

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]
    format: ClassVar[str]
    """The name of the format in manifests."""

    def list_rows(self, check: RowCheck) -> Listing:
        """The rows of the source."""
        ...


class Entry(Protocol):
    """A row of an annotation file, not looked into yet: each question may be answered by a RowError."""

    @property
    def where(self) -> str: ...

    @property
    def image_name(self) -> str:
        """What it calls its image, empty where it does not: for messages."""
        ...

    def split(self) -> str | None:
        """None: the image is not part of the data set."""
        ...

    def path(self) -> str: ...

    def captions(self) -> list[str]: ...

    def caption_ids(self) -> list[int] | None:
        """What the source calls its captions; None where it does not."""
        ...

    def image_file(self, path: str) -> ImageFile: ...


def gather(entries: Iterable[Entry], check: RowCheck, *, joins: bool) -> dict[str, list[SourceRow]]:
    """The rows of each split, an image where it first stands; with `joins` entries of one image are joined, else the second is refused.

    Captions without a number get their place among those of their split.
    """
    rows: dict[str, list[SourceRow]] = {split: [] for split in SPLITS}
    found: dict[str, tuple[str, SourceRow]] = {}
    num_captions = dict.fromkeys(SPLITS, 0)
    for entry in entries:
        try:
            split = entry.split()
            if split is None or not check.wants(split):
                continue
            path = entry.path()
            is_new = path not in found
            if is_new and check.is_full(len(rows[split])):
                continue
            if not is_new and not joins:
                raise RowError(f"the same image as {found[path][1].where}")
            if not is_new and found[path][0] != split:
                raise RowError(f"its split is {split}, but {found[path][0]} in {found[path][1].where}")
            texts, numbers = entry.captions(), entry.caption_ids()
            if is_new:
                found[path] = split, SourceRow(entry.where, path, path, entry.image_file(path), [], [])
                rows[split].append(found[path][1])
        except RowError as error:
            check.refuse(entry.where, entry.image_name, str(error))
            continue
        found[path][1].captions.extend(texts)
        first = num_captions[split]
        found[path][1].caption_ids.extend(range(first, first + len(texts)) if numbers is None else numbers)
        num_captions[split] += len(texts)
    return rows


def make_listing(rows: Mapping[str, list[SourceRow]], check: RowCheck, provenance: dict[str, Any], images: Sequence[Path]) -> Listing:
    """A listing of rows that are all known."""
    stamps = hashlib.sha256()
    for row in (row for split in SPLITS for row in rows[split]):
        stamps.update(f"{row.path} {row.image_file.stamp()}\n".encode())
    # Names and sizes (in a zip checksums too) stand for the pictures: reading them all would take as long as preparing them.
    provenance |= {"images": {"files": [path.name for path in images], "listing_sha256": stamps.hexdigest()}}
    counts = {split: len(rows[split]) for split in SPLITS if rows[split]}
    captions = {split: sum(len(row.captions) for row in rows[split]) for split in counts}
    return Listing(
        counts=counts, captions=captions, rows=lambda split: iter(rows[split]), provenance=provenance, skipped=tuple(check.skipped)
    )


def check_empty(listing: Listing, check: RowCheck) -> Listing:
    """The listing; InputError if a split that is asked for, or that rows name, has no image."""
    for split in check.splits or [split for split in SPLITS if split in check.named]:
        if not listing.counts.get(split):
            raise InputError(f"split {split!r} is empty", hint=why_empty(listing.skipped))
    if not listing.counts:
        raise InputError("the source has no image", hint="a split of it needs at least one")
    return listing


def why_empty(skipped: Sequence[Skipped]) -> str:
    """The hint for a split without images."""
    return f"the first row left out: {skipped[0].row}: {skipped[0].reason}" if skipped else "the source has no row of it"


def checksum_of(path: Path) -> dict[str, str]:
    """A file as corpus.json names it."""
    return {"file": path.name, "sha256": files.sha256_of(path)}


def caption_text(value: Any, which: str) -> str:
    """A caption; `which` one it is, for the message."""
    if not isinstance(value, str):
        raise RowError(f"{which} is {describe_value(value)}, text is wanted")
    if not value.strip():
        raise RowError(f"{which} is empty")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise RowError(f"{which} is not Unicode text ({error.reason})") from error
    return value


def caption_texts(value: Any) -> list[str]:
    """A list of captions, at least one."""
    if not isinstance(value, list):
        raise RowError(f"the captions are {describe_value(value)}, a list is wanted")
    if not value:
        raise RowError("the image has no caption")
    return [caption_text(text, f"caption {i}") for i, text in enumerate(value)]


def read_caption_ids(value: Any, count: int) -> list[int] | None:
    """The numbers of so many captions; None if that is not what the value is."""
    if isinstance(value, list) and len(value) == count and all(type(number) is int and abs(number) < 2**63 for number in value):
        return value
    return None


def read_split(value: Any) -> str:
    """The split a row belongs to."""
    split = SPLIT_ALIASES.get(value, value) if isinstance(value, str) else value
    if split not in SPLITS:
        known = ", ".join([*SPLITS, *SPLIT_ALIASES])
        raise RowError(f"unknown split {value!r} (known: {known})" if isinstance(value, str) else f'"split" is {describe_value(value)}')
    return str(split)


def describe_value(value: Any) -> str:
    """What a JSON value is, in words."""
    if value is None:
        return "missing or null"
    words = {bool: "a truth value", int: "a number", float: "a number", str: "a text", list: "a list", dict: "an object"}
    shown = json.dumps(value, ensure_ascii=False, default=str)
    return f"{words.get(type(value), type(value).__name__)} ({shown if len(shown) <= 40 else shown[:37] + '...'})"


def check_splits(where: str, given: Iterable[str]) -> None:
    """ConfigError for a key that is not a split."""
    for split in given:
        if split not in SPLITS:
            raise ConfigError(f"{where}.{split} is not a split", hint=f"known splits: {', '.join(SPLITS)}")
