"""WebDataset tars: files with the same key are one sample, KEY.jpg with KEY.txt (one caption per line) or with
KEY.json."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import ClassVar

from dcdctl.core.data.images import IMAGE_SUFFIXES, ImageFile, ImageStore, RowError
from dcdctl.core.data.readers.captions import read_captions, reject_large_text
from dcdctl.core.data.readers.rows import (
    SPLITS,
    EntryWithFile,
    Listing,
    Paths,
    RowCheck,
    SourceConfig,
    check_splits,
    group_by_image,
    make_listing,
)
from dcdctl.core.data.text_encoding import describe_value


@dataclass(frozen=True, kw_only=True)
class WebDatasetSource(SourceConfig):
    """Tars of images, each followed by its captions: KEY.jpg with KEY.txt, one caption per line, or with KEY.json."""

    format: ClassVar[str] = "webdataset"
    shards: dict[str, Paths]
    """By split; names may contain a *."""

    def __post_init__(self) -> None:
        check_splits("shards", self.shards)

    def list_rows(self, check: RowCheck) -> Listing:
        """The samples of each split's tars, in order."""

        def samples() -> Iterator[WebDatasetEntry]:
            for split in check.requested(self.shards):
                for path in self.shards[split]:
                    store = ImageStore(path)
                    # All of a tar, because the files of a sample need not be adjacent where it is read in any order.
                    members: dict[str, dict[str, str]] = {}
                    for name in store.members():
                        key, suffix = key_and_suffix(name)
                        members.setdefault(key, {})[suffix] = name
                    for key, by_suffix in members.items():
                        yield WebDatasetEntry(f"{path.name} {key}", by_suffix, store, split)

        rows = group_by_image(samples(), check, merge=False)
        files = [path for split in SPLITS for path in self.shards.get(split, ())]
        return make_listing(rows, check, {"kind": "webdataset"}, files)


@dataclass(frozen=True, slots=True)
class WebDatasetEntry(EntryWithFile):
    """The files with one key: `value` has their names in the tar, by suffix."""

    split_name: str

    def split(self) -> str:
        return self.split_name

    def image_path(self) -> str:
        # Different splits may use the same keys.
        return f"{self.split_name}/{self.value[require_image(self.value)]}"

    def captions(self) -> tuple[list[str], None]:
        return captions_of(self.value, lambda suffix: self.store.find(self.value[suffix]).read()), None

    def image_file(self, path: str) -> ImageFile:
        return self.store.find(path.removeprefix(f"{self.split_name}/"))


def key_and_suffix(name: str) -> tuple[str, str]:
    """The key of a file in a tar, with its folder, and the rest of its name in lower case. The key ends at the first
    dot of the name.

    >>> key_and_suffix("a/0001.seg.PNG")
    ('a/0001', 'seg.png')
    """
    # Not pathlib, which takes as long as the rest of reading a small sample.
    folder, slash, file = name.rpartition("/")
    stem, _, suffix = file.partition(".")
    return (f"{folder}{slash}{stem}" if stem else name), suffix.lower()


def image_suffix(suffixes: Collection[str]) -> str | None:
    """The suffix of the image among a sample's suffixes."""
    return next((suffix for suffix in IMAGE_SUFFIXES if suffix in suffixes), None)


def require_image(suffixes: Collection[str]) -> str:
    """The suffix of the image among a sample's suffixes; RowError if there is none."""
    suffix = image_suffix(suffixes)
    if suffix is None:
        raise RowError(f"there is no image with that key, only {', '.join(sorted(suffixes))}")
    return suffix


def captions_of(suffixes: Collection[str], read: Callable[[str], bytes]) -> list[str]:
    """The captions of a sample with files of these suffixes; `read` gives the content of one. RowError if there are
    none."""
    if "txt" in suffixes:
        # Not splitlines, because a caption may contain a Unicode line separator.
        return read_captions([line for line in _decoded(read("txt"), "txt").split("\n") if line.strip()])
    if "json" not in suffixes:
        raise RowError(
            f"there is no caption with that key, only {', '.join(sorted(suffixes))}; expected KEY.txt or KEY.json"
        )
    try:
        value = json.loads(_decoded(read("json"), "json"))
    except (ValueError, RecursionError) as error:
        raise RowError(f"its JSON cannot be read ({error})") from error
    if not isinstance(value, dict):
        raise RowError(f"its JSON is {describe_value(value)}, expected an object")
    return read_captions(next((value[key] for key in ("captions", "caption", "text") if key in value), None))


def _decoded(data: bytes, suffix: str) -> str:
    reject_large_text(len(data), f"its {suffix}")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise RowError(f"its {suffix} is not UTF-8 text ({error.reason} on line {line}): save it as UTF-8") from error
