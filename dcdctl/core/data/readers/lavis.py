"""LAVIS's JSON of COCO: one list per split. Train has one row per caption, val and test one row per image with a list
of captions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import ClassVar

from dcdctl.core.data.images import ImageStore, RowError
from dcdctl.core.data.readers import json_stream
from dcdctl.core.data.readers.rows import (
    SPLITS,
    EntryWithFile,
    Listing,
    Paths,
    RowCheck,
    SourceConfig,
    check_splits,
    describe_value,
    file_checksum,
    group_by_image,
    make_listing,
    read_caption,
    read_captions,
)
from dcdctl.core.errors import InputError

_HINT = "an example of this format is coco_karpathy_val.json"


@dataclass(frozen=True, kw_only=True)
class LavisSource(SourceConfig):
    """JSON lists in the format of LAVIS: objects with `image` and `caption`, which is a caption or a list of
    captions."""

    format: ClassVar[str] = "lavis"
    annotations: dict[str, Path]
    """By split."""
    images: Paths

    def __post_init__(self) -> None:
        check_splits("annotations", self.annotations)

    def list_rows(self, check: RowCheck) -> Listing:
        """The rows of each split's list."""
        store = ImageStore(self.images)

        def entries() -> Iterator[LavisEntry]:
            for split in SPLITS:
                if split not in self.annotations or (check.splits and split not in check.splits):
                    continue
                path = self.annotations[split]
                try:
                    for i, value in enumerate(json_stream.items(path, "", _HINT)):
                        yield LavisEntry(f"{path.name} [{i}]", value, store, split)
                except json_stream.ArrayError as error:
                    raise InputError(f"{path} is {error.actual}, expected a list of rows", hint=_HINT) from error

        rows = group_by_image(entries(), check, merge=True)
        annotations = {
            split: file_checksum(path)
            for split, path in self.annotations.items()
            if not check.splits or split in check.splits
        }
        return make_listing(rows, check, {"kind": "lavis", "annotations": annotations}, self.images)


@dataclass(frozen=True, slots=True)
class LavisEntry(EntryWithFile):
    """A row of a split."""

    split_name: str

    def split(self) -> str:
        if not isinstance(self.value, dict):
            raise RowError(f"{describe_value(self.value)}, expected an object")
        return self.split_name

    def image_path(self) -> str:
        image = self.value.get("image")
        if not isinstance(image, str) or not image.strip():
            raise RowError(f'"image" is {describe_value(image)}, expected the path of an image')
        return str(PurePosixPath(image))

    def captions(self) -> list[str]:
        caption = self.value.get("caption")
        return read_captions(caption) if isinstance(caption, list) else [read_caption(caption, "the caption")]
