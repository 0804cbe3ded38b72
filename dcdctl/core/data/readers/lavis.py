"""LAVIS's JSON of COCO: a list a split; train has a row a caption, val and test a row an image with a list of captions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from dcdctl.core.data.image_archives import ImageFile, ImageStore, RowError
from dcdctl.core.data.readers import json_stream
from dcdctl.core.data.readers.rows import (
    SPLITS,
    Listing,
    Paths,
    RowCheck,
    caption_text,
    caption_texts,
    check_splits,
    checksum_of,
    describe_value,
    gather,
    make_listing,
)
from dcdctl.core.errors import InputError

HINT = "LAVIS's files look like coco_karpathy_val.json"


@dataclass(frozen=True, kw_only=True)
class LavisSource:
    """JSON lists in the form of LAVIS: `image` and `caption`, one row per caption, or one row per image with a list of captions."""

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
                    for i, value in enumerate(json_stream.items(path, "", HINT)):
                        yield LavisEntry(f"{path.name} [{i}]", value, split, store)
                except json_stream.ArrayError as error:
                    raise InputError(f"{path} is {error.actual}, a list of rows is wanted", hint=HINT) from error

        rows = gather(entries(), check, joins=True)
        annotations = {split: checksum_of(path) for split, path in self.annotations.items() if not check.splits or split in check.splits}
        return make_listing(rows, check, {"kind": "lavis", "annotations": annotations}, self.images)


@dataclass(frozen=True, slots=True)
class LavisEntry:
    """A row of a split, unchecked."""

    where: str
    value: Any
    split_name: str
    store: ImageStore

    @property
    def image_name(self) -> str:
        value = self.value.get("image") if isinstance(self.value, dict) else None
        return value if isinstance(value, str) else ""

    def split(self) -> str:
        if not isinstance(self.value, dict):
            raise RowError(f"{describe_value(self.value)}, an object is wanted")
        return self.split_name

    def path(self) -> str:
        image = self.value.get("image")
        if not isinstance(image, str) or not image.strip():
            raise RowError(f'"image" is {describe_value(image)}, the path of an image is wanted')
        return str(PurePosixPath(image))

    def captions(self) -> list[str]:
        found = self.value.get("caption")
        return caption_texts(found) if isinstance(found, list) else [caption_text(found, "the caption")]

    def caption_ids(self) -> None:
        return None

    def image_file(self, path: str) -> ImageFile:
        return self.store.find(path)
