"""Tables: a CSV, JSONL or LAVIS JSON file with one image and caption per row, or with several captions in one cell.

image,caption[,split]               or file_name and text, the names in the Hub's image folders
filename,raw,sentids,split          nlphuji/flickr30k; raw and sentids hold JSON lists
image,caption_0,...,caption_4       several captions of an image in one row, as in data sets of Kaggle
{"image": "a.jpg", "captions": ["a dog", "a brown dog"], "split": "val"}
[{"image": "a.jpg", "caption": "a dog"}]      LAVIS: a list per split; val and test have a list of captions per image

A table without splits is divided into train, val and test.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, Literal

from dcdctl.core import files
from dcdctl.core.data.columns import (
    KEYS,
    ImageColumns,
    by_first_row,
    check_chosen,
    from_cells,
    from_json,
    problem_of_name,
)
from dcdctl.core.data.images import ImageStore, RowError
from dcdctl.core.data.readers.captions import (
    CaptionLabel,
    is_synthetic,
    numbered_captions,
    read_caption_ids,
    read_captions,
    read_labels,
)
from dcdctl.core.data.readers.rows import (
    HELD_OUT_BY_DEFAULT,
    EntryWithFile,
    Listing,
    Paths,
    RowCheck,
    SourceConfig,
    TextSource,
    check_splits,
    divide,
    file_checksum,
    group_by_image,
    held_out_facts,
    make_listing,
    read_split,
)
from dcdctl.core.data.text_encoding import csv_rows, describe_value, find_column, find_encoding, json_lines
from dcdctl.core.errors import ConfigError, InputError

Rows = list[tuple[int, dict[str, Any]]]
"""Line number and cells by role of each row of a table."""
_IMAGE_COLUMNS = ("image", "file_name", "filename")
_CAPTION_COLUMNS = ("caption", "text")
_LIST_COLUMNS = ("captions", "raw")
_OF_CAPTIONS = ("sentids", *CaptionLabel._fields)
_WITH_A_ROLE = {*_IMAGE_COLUMNS, *_CAPTION_COLUMNS, *_LIST_COLUMNS, "split", *_OF_CAPTIONS, *KEYS}
_LAVIS_HINT = "an example of this format, in UTF-8, is coco_karpathy_val.json"
MAX_SHOWN = 60
"""Characters of a caption that every image has, in corpus.json."""
_HEADER_HINT = "the first line names the columns: image,caption[,split]"


@dataclass(frozen=True, kw_only=True)
class CsvSource(TextSource):
    """A CSV with columns image and caption, or with the columns of the Hub's image folders or of nlphuji/flickr30k."""

    format: ClassVar[str] = "csv"
    pairs: Path
    images: Paths
    split: Literal["train", "val", "test"] | None = None
    """The split of all rows if the file has no split column; None to hold images out instead."""
    columns: tuple[str, ...] | None = None
    """The other columns that the corpus keeps, such as year; None for all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.split is not None and self.hold_out:
            raise ConfigError(
                f"hold_out is {self.hold_out:g}, and split = {self.split!r} leaves nothing to divide",
                hint="set one of them",
            )

    def list_rows(self, check: RowCheck) -> Listing:
        """The rows of the table; rows of the same image become one."""
        store, encoding = ImageStore(self.images), find_encoding(self.pairs, self.encoding)
        if self.format == "csv":
            rows = read_csv(self.pairs, encoding)
        else:
            rows = [(line, cells_of(value)) for line, value in json_lines(self.pairs, encoding)]
        provenance: dict[str, Any] = {"kind": self.format, "pairs": file_checksum(self.pairs)}
        for _, cells in rows:
            if isinstance(image := cells["image"], str):
                cells["image"] = store.relative(image.strip())
        images = [_path_or_none(cells) for _, cells in rows]
        columns = _other_columns(self, rows, images)
        if columns is not None:
            provenance["columns"] = columns.table.column_names
        splits: Mapping[str, str] = {}
        if (share := _share_held_out(self, rows)) > 0:
            human = (image for image, (_, cells) in zip(images, rows, strict=True) if not _is_synthetic(cells))
            splits = divide(filter(None, human), share)
            provenance["hold_out"] = held_out_facts(share, "SHA-256 of image_id", splits)
        elif self.split is not None:
            splits = dict.fromkeys(filter(None, images), self.split)
        entries = (TableEntry(f"{self.pairs.name} line {line}", cells, store, splits) for line, cells in rows)
        grouped = group_by_image(entries, check, merge=True, is_divided=share > 0)
        prepared = [row for rows_of_split in grouped.values() for row in rows_of_split]
        texts = {text for row in prepared for text in row.captions}
        if len(texts) == 1 < len(prepared):
            provenance["only_caption"] = texts.pop()[:MAX_SHOWN]
        if encoding != "utf-8-sig":
            provenance["encoding"] = {"file": self.pairs.name, "name": encoding}
        if check.num_synthetic:
            provenance["hold_out"]["synthetic_left_out"] = check.num_synthetic
        return replace(make_listing(grouped, check, provenance, self.images), columns=columns)


class JsonlSource(CsvSource):
    """One JSON object per line, with the same keys as the columns of a CSV."""

    format: ClassVar[str] = "jsonl"


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
                for i, value in enumerate(files.read_json(path, kind=list, hint=_LAVIS_HINT)):
                    if isinstance(value, dict):
                        yield TableEntry(f"{path.name} [{i}]", cells_of(value) | {"split": split}, store, {})
                    else:
                        check.reject(f"{path.name} [{i}]", "", f"{describe_value(value)}, expected an object")

        rows = group_by_image(entries(), check, merge=True)
        annotations = {split: file_checksum(self.annotations[split]) for split in check.requested(self.annotations)}
        return make_listing(rows, check, {"kind": "lavis", "annotations": annotations}, self.images)


@dataclass(frozen=True, slots=True)
class TableEntry(EntryWithFile):
    """A row: `value` has its cells by role, which are image, caption or captions, split, sentids, source, weight,
    language."""

    splits: Mapping[str, str]
    """The split of an image by its path, for a row that names none; "train" for images that it lacks."""

    def split(self) -> str:
        return read_split(self.value["split"]) if "split" in self.value else self.splits.get(self.image_path(), "train")

    def image_path(self) -> str:
        return _image_path(self.value)

    def captions(self) -> tuple[list[str], list[int] | None]:
        listed = self.value.get("captions")
        if "captions" in self.value and not isinstance(listed, list):
            raise RowError(f"the captions are {describe_value(listed)}, expected a list")
        texts = read_captions(self.value.get("caption") if listed is None else listed)
        return texts, read_caption_ids(self.value.get("sentids"), len(texts))

    def labels(self, count: int) -> list[CaptionLabel]:
        return read_labels(self.value, count)


def _other_columns(source: CsvSource, rows: Rows, images: list[str | None]) -> ImageColumns | None:
    """The columns without a role, by image; None if there are none. InputError for a column to keep that the table
    lacks."""
    where = source.pairs.name
    if of_captions := [name for name in source.columns or () if name in _OF_CAPTIONS]:
        raise InputError(
            f"the column {of_captions[0]!r} of {where} is about its captions, not its images", hint="rename it"
        )
    known = list(dict.fromkeys(name for _, cells in rows for name in cells["columns"]))
    problems = {name: problem_of_name(name) for name in known} if source.columns is None else {}
    chosen = source.columns or tuple(name for name, problem in problems.items() if not problem)
    notes = [f"column {name} of {where} is left out: it {problem}" for name, problem in problems.items() if problem]
    check_chosen(chosen, known, where)
    make, empty = (from_cells, "") if source.format == "csv" else (from_json, None)
    values = {}
    for name in chosen:
        values[name] = make([cells["columns"].get(name, empty) for _, cells in rows])
    columns = by_first_row(images, values, where)
    return replace(columns, notes=(*columns.notes, *notes)) if columns.table.column_names else None


def _image_path(cells: Mapping[str, Any]) -> str:
    """The path of the image of a row; RowError if it names none."""
    image = cells.get("image")
    if image is not None and not isinstance(image, str):
        raise RowError(f'"image" is {describe_value(image)}, expected a path')
    if image is None or not image.strip():
        raise RowError("no image is named")
    return str(PurePosixPath(image.strip()))


def _path_or_none(cells: Mapping[str, Any]) -> str | None:
    """The path of the image of a row; None for a row that is refused later."""
    try:
        return _image_path(cells)
    except RowError:
        return None


def _is_synthetic(cells: Mapping[str, Any]) -> bool:
    """Whether a row has only captions that a model wrote."""
    source = cells.get("source")
    return all(map(is_synthetic, source if isinstance(source, list) else [source]))


def _share_held_out(source: CsvSource, rows: Rows) -> float:
    """The share of the images for each of val and test; 0 for a table with splits. InputError if such a table was to be
    divided."""
    if any("split" in cells for _, cells in rows):
        if source.hold_out:
            raise InputError(
                f"{source.pairs} has splits of its own, and hold_out is {source.hold_out:g}",
                hint="leave --hold-out out",
            )
        return 0.0
    if source.split is not None or source.hold_out is not None:
        return source.hold_out or 0.0
    return HELD_OUT_BY_DEFAULT


def read_csv(path: Path, encoding: str) -> Rows:
    """Line number and cells of each row that is not blank; InputError if there is no image column or no caption
    column."""
    table = csv_rows(path, encoding)
    _, names = next(table, (1, []))
    # Spreadsheets of all kinds write Image and Caption.
    names = [name.lower() if name.lower() in _WITH_A_ROLE else name for name in names]
    find_column(path, names, _IMAGE_COLUMNS, _HEADER_HINT)
    known = (*_CAPTION_COLUMNS, *_LIST_COLUMNS, *numbered_captions(names))
    is_list = find_column(path, names, known, _HEADER_HINT) in _LIST_COLUMNS
    rows = []
    for line, cells in table:
        row = cells_of({name: _parse_cell(name, cell) for name, cell in zip(names, cells, strict=True) if name})
        if is_list:
            # A list in another notation than JSON's would be taken for one caption.
            row.setdefault("captions", row.pop("caption", None))
        rows.append((line, row))
    if not rows:
        raise InputError(f"{path} has no row under its column names", hint="add one per caption: photo.jpg,a dog runs")
    return rows


def _parse_cell(name: str, text: str) -> Any:
    """The value of a cell: for captions and what belongs to them a JSON list, number or null if the whole text is one,
    else the text."""
    if name not in (*_CAPTION_COLUMNS, *_LIST_COLUMNS, *_OF_CAPTIONS):
        return text
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    # A caption in quotation marks is a JSON string too; the marks belong to the caption.
    return text if isinstance(value, str) else value


def cells_of(value: Mapping[str, Any]) -> dict[str, Any]:
    """The cells of a JSON object, by role."""
    cells = {key: value[key] for key in ("split", *_OF_CAPTIONS) if key in value}
    cells["image"] = next((value[key] for key in _IMAGE_COLUMNS if key in value), None)
    caption = next((value[key] for key in (*_CAPTION_COLUMNS, *_LIST_COLUMNS) if key in value), None)
    others = {key: item for key, item in value.items() if key not in _WITH_A_ROLE}
    if caption is None and (numbered := numbered_captions(others)):
        # An image with fewer captions than others has empty cells.
        caption = [item for name in numbered if (item := others.pop(name)) not in (None, "")]
    return cells | {"columns": others, "captions" if isinstance(caption, list) else "caption": caption}
