"""LAVIS's JSON of COCO: one list per split. Train has one row per caption, val and test one row per image with a list
of captions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from dcdctl.core.data.images import ImageStore
from dcdctl.core.data.readers import json_stream
from dcdctl.core.data.readers.csv_jsonl import TableEntry, cells_of
from dcdctl.core.data.readers.rows import (
    Listing,
    Paths,
    RowCheck,
    SourceConfig,
    check_splits,
    file_checksum,
    group_by_image,
    make_listing,
)
from dcdctl.core.data.text_encoding import describe_value
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

        def entries() -> Iterator[TableEntry]:
            for split in check.requested(self.annotations):
                path = self.annotations[split]
                try:
                    for i, value in enumerate(json_stream.items(path, "", _HINT)):
                        if isinstance(value, dict):
                            yield TableEntry(f"{path.name} [{i}]", cells_of(value) | {"split": split}, store, {})
                        else:
                            check.reject(f"{path.name} [{i}]", "", f"{describe_value(value)}, expected an object")
                except json_stream.ArrayError as error:
                    raise InputError(f"{path} is {error.actual}, expected a list of rows", hint=_HINT) from error

        rows = group_by_image(entries(), check, merge=True)
        annotations = {split: file_checksum(self.annotations[split]) for split in check.requested(self.annotations)}
        return make_listing(rows, check, {"kind": "lavis", "annotations": annotations}, self.images)
