"""Karpathy's JSON: a list `images` of objects with filename, split, sentences, and perhaps filepath."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from dcdctl.core import files
from dcdctl.core.data.images import ImageStore, RowError
from dcdctl.core.data.readers.captions import read_caption_ids, read_captions
from dcdctl.core.data.readers.rows import (
    EntryWithFile,
    Listing,
    Paths,
    RowCheck,
    SourceConfig,
    file_checksum,
    group_by_image,
    make_listing,
    read_split,
)
from dcdctl.core.data.text_encoding import describe_value
from dcdctl.core.errors import InputError

_HINT = "an example of this format, in UTF-8, is dataset_flickr30k.json"


@dataclass(frozen=True, kw_only=True)
class KarpathySource(SourceConfig):
    """A JSON in the format of Karpathy's splits."""

    format: ClassVar[str] = "karpathy"
    annotations: Path
    images: Paths
    """Folders, zips and tars."""

    def list_rows(self, check: RowCheck) -> Listing:
        """The rows of the JSON; `restval` is train. A caption's number is its `sentid` if all captions have one, else
        its position."""
        store = ImageStore(self.images)
        images = read_images(self.annotations)
        all_numbered = all(_sentids(value) is not None for value in images)

        def entries() -> Iterator[KarpathyEntry]:
            position = 0
            for i, value in enumerate(images):
                count = len(_sentences(value))
                numbers = (_sentids(value) or []) if all_numbered else list(range(position, position + count))
                yield KarpathyEntry(f"{self.annotations.name} images[{i}]", value, store, numbers)
                position += count

        provenance = {"kind": "karpathy", "annotations": file_checksum(self.annotations)}
        return make_listing(group_by_image(entries(), check, merge=False), check, provenance, self.images)


@dataclass(frozen=True, slots=True)
class KarpathyEntry(EntryWithFile):
    """An item of `images`."""

    numbers: list[int]

    def split(self) -> str:
        if not isinstance(self.value, dict):
            raise RowError(f"{describe_value(self.value)}, expected an object")
        return read_split(self.value.get("split"))

    def image_path(self) -> str:
        filename, folder = self.value.get("filename"), self.value.get("filepath", "")
        if not isinstance(filename, str) or not filename.strip():
            raise RowError(f'"filename" is {describe_value(filename)}, expected the name of an image')
        if not isinstance(folder, str):
            raise RowError(f'"filepath" is {describe_value(folder)}, expected a folder')
        return str(PurePosixPath(f"{folder}/{filename}" if folder else filename))

    def captions(self) -> tuple[list[str], list[int]]:
        sentences = self.value.get("sentences")
        if not isinstance(sentences, list):
            raise RowError(f'"sentences" is {describe_value(sentences)}, expected a list')
        texts = [sentence.get("raw") if isinstance(sentence, dict) else None for sentence in sentences]
        return read_captions(texts), self.numbers


def read_images(path: Path) -> list[Any]:
    """The items of `images`, unchecked; InputError if there is no such list."""
    images = files.read_json(path, hint=_HINT).get("images")
    if not isinstance(images, list):
        raise InputError(f'{path}: "images" is {describe_value(images)}, expected a list of images', hint=_HINT)
    return images


def splits_by_name(path: Path) -> Mapping[str, str]:
    """The split of each file name in a Karpathy JSON; InputError if an item has none."""
    splits = {}
    for i, value in enumerate(read_images(path)):
        entry = KarpathyEntry(f"{path.name} images[{i}]", value, ImageStore(()), [])
        try:
            splits[PurePosixPath(entry.image_path()).name] = entry.split()
        except RowError as error:
            raise InputError(f"{entry.where}: {error}", hint=_HINT) from error
    return splits


def _sentences(value: Any) -> list[Any]:
    """The sentences of an item; empty if it is malformed, which `KarpathyEntry` reports."""
    sentences = value.get("sentences") if isinstance(value, dict) else None
    return sentences if isinstance(sentences, list) else []


def _sentids(value: Any) -> list[int] | None:
    """The number of each caption of an item; None unless all have one."""
    numbers = [sentence.get("sentid") if isinstance(sentence, dict) else None for sentence in _sentences(value)]
    return read_caption_ids(numbers, len(numbers))
