"""Karpathy's JSON: `images`, each with filename, perhaps filepath, split and sentences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from dcdctl.core.data.image_archives import ImageFile, ImageStore, RowError
from dcdctl.core.data.readers import json_stream
from dcdctl.core.data.readers.rows import (
    Listing,
    Paths,
    RowCheck,
    caption_text,
    checksum_of,
    describe_value,
    gather,
    make_listing,
    read_caption_ids,
    read_split,
)
from dcdctl.core.errors import InputError

HINT = "Karpathy's files look like dataset_flickr30k.json"


@dataclass(frozen=True, kw_only=True)
class KarpathySource:
    """A JSON file in the form of Karpathy's splits."""

    format: ClassVar[str] = "karpathy"
    annotations: Path
    images: Paths
    """Folders, zips and tars."""

    def list_rows(self, check: RowCheck) -> Listing:
        """The rows of a Karpathy JSON; `restval` is train. A caption's number is its `sentid` if all have one, else its place."""
        store = ImageStore(self.images)
        all_numbered = all(_sentids(value) is not None for value in read_images(self.annotations))

        def entries() -> Iterator[KarpathyEntry]:
            place = 0
            for i, value in enumerate(read_images(self.annotations)):
                count = len(_sentences(value))
                numbers = (_sentids(value) or []) if all_numbered else list(range(place, place + count))
                yield KarpathyEntry(f"{self.annotations.name} images[{i}]", value, numbers, store)
                place += count

        provenance = {"kind": "karpathy", "annotations": checksum_of(self.annotations)}
        return make_listing(gather(entries(), check, joins=False), check, provenance, self.images)


@dataclass(frozen=True, slots=True)
class KarpathyEntry:
    """One of `images`, unchecked."""

    where: str
    value: Any
    sentids: list[int]
    store: ImageStore

    @property
    def image_name(self) -> str:
        value = self.value.get("filename") if isinstance(self.value, dict) else None
        return value if isinstance(value, str) else ""

    def split(self) -> str:
        if not isinstance(self.value, dict):
            raise RowError(f"{describe_value(self.value)}, an object is wanted")
        return read_split(self.value.get("split"))

    def path(self) -> str:
        filename, folder = self.value.get("filename"), self.value.get("filepath", "")
        if not isinstance(filename, str) or not filename.strip():
            raise RowError(f'"filename" is {describe_value(filename)}, the name of an image is wanted')
        if not isinstance(folder, str):
            raise RowError(f'"filepath" is {describe_value(folder)}, a folder is wanted')
        return str(PurePosixPath(f"{folder}/{filename}" if folder else filename))

    def captions(self) -> list[str]:
        sentences = self.value.get("sentences")
        if not isinstance(sentences, list):
            raise RowError(f'"sentences" is {describe_value(sentences)}, a list is wanted')
        if not sentences:
            raise RowError("the image has no caption")
        for i, sentence in enumerate(sentences):
            if not isinstance(sentence, dict):
                raise RowError(f'sentences[{i}] is {describe_value(sentence)}, an object with "raw" is wanted')
        return [caption_text(sentence.get("raw"), f"caption {i}") for i, sentence in enumerate(sentences)]

    def caption_ids(self) -> list[int]:
        return self.sentids

    def image_file(self, path: str) -> ImageFile:
        return self.store.find(path)


def read_images(path: Path) -> Iterator[Any]:
    """The entries of `images`, unchecked; InputError where there is no such list."""
    try:
        yield from json_stream.items(path, "images", "--karpathy takes a JSON file")
    except json_stream.ArrayError as error:
        found = f'"images" is {error.actual}' if error.actual else 'no "images"'
        raise InputError(f"{path}: {found}, a list of images is wanted", hint=HINT) from error


def splits_by_name(path: Path) -> Mapping[str, str]:
    """The split of each file name of a Karpathy JSON; InputError where an entry has none."""
    splits = {}
    for i, value in enumerate(read_images(path)):
        entry = KarpathyEntry(f"{path.name} images[{i}]", value, [], ImageStore(()))
        try:
            splits[PurePosixPath(entry.path()).name] = entry.split()
        except RowError as error:
            raise InputError(f"{entry.where}: {error}", hint=HINT) from error
    return splits


def _sentences(value: Any) -> list[Any]:
    """An entry's sentences; none where it is not as it should be, which is refused elsewhere."""
    found = value.get("sentences") if isinstance(value, dict) else None
    return found if isinstance(found, list) else []


def _sentids(value: Any) -> list[int] | None:
    """The numbers of an entry's captions, if each has one."""
    numbers = [one.get("sentid") if isinstance(one, dict) else None for one in _sentences(value)]
    return read_caption_ids(numbers, len(numbers))
