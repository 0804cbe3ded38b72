"""WebDataset tars: files with the same key are one sample, KEY.jpg with KEY.txt (one caption per line) or with KEY.json."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import ClassVar

from dcdctl.core.data.image_archives import ImageFile, ImageStore, RowError
from dcdctl.core.data.readers.rows import (
    SPLITS,
    Listing,
    Paths,
    RowCheck,
    check_splits,
    describe_value,
    group_by_image,
    make_listing,
    read_caption,
    read_captions,
)

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm")


@dataclass(frozen=True, kw_only=True)
class WebDatasetSource:
    """Tars of images, each followed by its captions: KEY.jpg with KEY.txt, one caption per line, or with KEY.json."""

    format: ClassVar[str] = "webdataset"
    shards: dict[str, Paths]
    """By split; names may contain a *."""

    def __post_init__(self) -> None:
        check_splits("shards", self.shards)

    def list_rows(self, check: RowCheck) -> Listing:
        """The samples of each split's tars, in order."""

        def samples() -> Iterator[Sample]:
            for split in SPLITS:
                for path in self.shards.get(split, ()) if not check.splits or split in check.splits else ():
                    yield from _samples(path, split)

        rows = group_by_image(samples(), check, merge=False)
        files = [path for split in SPLITS for path in self.shards.get(split, ())]
        return make_listing(rows, check, {"kind": "webdataset"}, files)


@dataclass(frozen=True, slots=True)
class Sample:
    """The files with one key."""

    where: str
    split_name: str
    members: Mapping[str, str]
    """Suffix -> name in the tar."""
    store: ImageStore

    @property
    def image_name(self) -> str:
        return self._image or next(iter(self.members.values()))

    @property
    def _image(self) -> str | None:
        return next((self.members[suffix] for suffix in IMAGE_SUFFIXES if suffix in self.members), None)

    def split(self) -> str:
        return self.split_name

    def image_path(self) -> str:
        if self._image is None:
            raise RowError(f"there is no image with that key, only {', '.join(sorted(self.members))}")
        # Different splits may use the same keys.
        return f"{self.split_name}/{self._image}"

    def captions(self) -> list[str]:
        if "txt" in self.members:
            # Not splitlines, because a caption may contain a Unicode line separator.
            lines = self._text("txt").split("\n")
            return read_captions([line for line in lines if line.strip()])
        if "json" not in self.members:
            raise RowError(f"there is no caption with that key, only {', '.join(sorted(self.members))}; expected KEY.txt or KEY.json")
        try:
            value = json.loads(self._text("json"))
        except (ValueError, RecursionError) as error:
            raise RowError(f"its JSON cannot be read ({error})") from error
        if not isinstance(value, dict):
            raise RowError(f"its JSON is {describe_value(value)}, expected an object")
        caption = next((value[key] for key in ("captions", "caption", "text") if key in value), None)
        return read_captions(caption) if isinstance(caption, list) else [read_caption(caption, "the caption")]

    def caption_ids(self) -> None:
        return None

    def _text(self, suffix: str) -> str:
        data = self.store.read(self.members[suffix])
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            raise RowError(f"its {suffix} is not UTF-8 text ({error.reason} on line {line}): save it as UTF-8") from error

    def image_file(self, path: str) -> ImageFile:
        return self.store.find(path.removeprefix(f"{self.split_name}/"))


def _samples(path: Path, split: str) -> Iterator[Sample]:
    store = ImageStore(path)
    members: dict[str, dict[str, str]] = {}
    for name in store.members():
        # In WebDataset the key ends at the first dot of the file name.
        stem, _, suffix = PurePosixPath(name).name.partition(".")
        key = str(PurePosixPath(name).with_name(stem)) if stem else name
        members.setdefault(key, {})[suffix.lower()] = name
    for key, by_suffix in members.items():
        yield Sample(f"{path.name} {key}", split, by_suffix, store)
