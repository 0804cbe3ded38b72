"""Tables: a CSV or JSONL file with an image and a caption a row, or with several captions in one cell.

image,caption[,split]               ours; file_name and text, as the Hub's image folders call them, are understood too
filename,raw,sentids,split          nlphuji/flickr30k: raw and sentids hold JSON lists
{"image": "a.jpg", "captions": ["a dog", "a brown dog"], "split": "val"}
"""

from __future__ import annotations

import csv
import json
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from dcdctl.core.data.image_archives import ImageFile, ImageStore, RowError
from dcdctl.core.data.readers.rows import (
    SPLITS,
    Listing,
    Paths,
    RowCheck,
    caption_text,
    caption_texts,
    checksum_of,
    describe_value,
    gather,
    make_listing,
    read_caption_ids,
    read_split,
)
from dcdctl.core.errors import ConfigError, InputError

IMAGE_COLUMNS = ("image", "file_name", "filename")
CAPTION_COLUMNS = ("caption", "text")
LIST_COLUMNS = ("captions", "raw")
_CSV_HINT = 'a caption with a comma must stand in quotes: x.jpg,"a dog, running"'


@dataclass(frozen=True, kw_only=True)
class CsvSource:
    """A CSV file: columns image and caption, or those of the Hub's image folders, or of nlphuji/flickr30k."""

    format: ClassVar[str] = "csv"
    pairs: Path
    images: Paths
    split: str = "train"
    """The split of all rows where the file has no split column."""

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise ConfigError(f"split must be one of {', '.join(SPLITS)}, got {self.split!r}")

    def list_rows(self, check: RowCheck) -> Listing:
        """The rows of the table, grouped by image in the order of first appearance."""
        return _list_table(self, read_csv(self.pairs), check)


@dataclass(frozen=True, kw_only=True)
class JsonlSource(CsvSource):
    """The same in JSON: one object per line, its keys the columns."""

    format: ClassVar[str] = "jsonl"

    def list_rows(self, check: RowCheck) -> Listing:
        """The rows of the objects, grouped by image in the order of first appearance."""
        return _list_table(self, _read_jsonl(self.pairs), check)


@dataclass(frozen=True, slots=True)
class TableEntry:
    """A row, its cells by what they are: image, caption or captions, split, sentids."""

    where: str
    cells: Mapping[str, Any]
    default_split: str
    store: ImageStore

    @property
    def image_name(self) -> str:
        image = self.cells.get("image")
        return image if isinstance(image, str) else ""

    def split(self) -> str:
        return read_split(self.cells["split"]) if "split" in self.cells else self.default_split

    def path(self) -> str:
        image = self.cells.get("image")
        if image is not None and not isinstance(image, str):
            raise RowError(f'"image" is {describe_value(image)}, a path is wanted')
        if image is None or not image.strip():
            raise RowError("no image is named")
        return str(PurePosixPath(image.strip()))

    def captions(self) -> list[str]:
        if "captions" in self.cells:
            return caption_texts(self.cells["captions"])
        return [caption_text(self.cells.get("caption"), "the caption")]

    def caption_ids(self) -> list[int] | None:
        return read_caption_ids(self.cells.get("sentids"), len(self.captions()))

    def image_file(self, path: str) -> ImageFile:
        return self.store.find(path)


def _list_table(source: CsvSource, rows: Iterable[tuple[int, dict[str, Any]]], check: RowCheck) -> Listing:
    store = ImageStore(source.images)
    entries = (TableEntry(f"{source.pairs.name} line {line}", cells, source.split, store) for line, cells in rows)
    provenance = {"kind": source.format, "pairs": checksum_of(source.pairs)}
    return make_listing(gather(entries, check, joins=True), check, provenance, source.images)


def read_csv(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """Line and cells of each row that is not blank; InputError for a file without the columns of an image and a caption."""
    import pandas as pd  # only here: every worker process imports this module, and pandas takes half a second

    # Before pandas: a JSON that was taken for a CSV would be a head of a million columns.
    wanted = _columns(path, _head(path))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            table = pd.read_csv(
                path, dtype=str, keep_default_na=False, skip_blank_lines=False, index_col=False, encoding="utf-8-sig"
            ).fillna("")
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})", hint="--csv takes a CSV file") from error
    except (ValueError, pd.errors.ParserWarning) as error:
        raise InputError(f"{path} is not a CSV of image and caption: {' '.join(str(error).split())}", hint=_CSV_HINT) from error
    table.columns = table.columns.str.strip()
    columns = [table[name].tolist() for name in table.columns]
    named = [table[name].tolist() for name in wanted.values()]
    rows, line = [], 2
    for cells, values in zip(zip(*columns, strict=True), zip(*named, strict=True), strict=True):
        if any(cells):
            rows.append((line, {what: _cell(what, value) for what, value in zip(wanted, values, strict=True)}))
        # A quoted cell may run over several lines, so a row's number is not its line.
        line += 1 + sum(cell.count("\n") for cell in cells)
    return rows


def _head(path: Path) -> list[str]:
    """The names of the columns."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return [name.strip() for name in next(csv.reader(file), [])]
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})", hint="--csv takes a CSV file") from error
    except (ValueError, csv.Error) as error:
        raise InputError(f"{path} is not a CSV of image and caption: {error}", hint=_CSV_HINT) from error


def _columns(path: Path, names: list[str]) -> dict[str, str]:
    """What a cell is -> the name of its column."""
    choices = {"image": IMAGE_COLUMNS, "captions": LIST_COLUMNS, "caption": CAPTION_COLUMNS, "split": ("split",), "sentids": ("sentids",)}
    found = {what: name for what, known in choices.items() for name in known[::-1] if name in names}
    missing = ["image"] if "image" not in found else [] if {"caption", "captions"} & set(found) else ["caption"]
    if missing:
        if not names:
            raise InputError(f"{path} is not a CSV of image and caption: it is empty", hint=_CSV_HINT)
        shown = ", ".join(names[:8]) + (f" and {len(names) - 8:,} more" if len(names) > 8 else "")
        message = f"{path} has no column {missing[0]!r}, its columns are {shown:.300}"
        raise InputError(message, hint="the first line names: image,caption[,split]")
    if "caption" in found:
        found.pop("captions", None)
    return found


def _cell(what: str, text: str) -> Any:
    """A cell's value: text, unless it should be a list, or the whole of it is a JSON number, list or null where a caption should be."""
    if what not in ("caption", "captions", "sentids"):
        return text
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return text if isinstance(value, str) else value


def _read_jsonl(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """Line and values of each object."""
    rows = []
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # not splitlines: a caption may hold a line separator
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})", hint="--jsonl takes a file with a JSON object a line") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({error.reason})", hint="--jsonl takes a file with a JSON object a line") from error
    for line, text in enumerate(lines, start=1):
        if text.strip():
            rows.append((line, _object(path, line, text)))
    return rows


def _object(path: Path, line: int, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path.name} line {line} is not JSON: {error}", hint="a JSON object a line is wanted") from error
    if not isinstance(value, dict):
        raise InputError(
            f"{path.name} line {line} is {describe_value(value)}, an object is wanted", hint='{"image": "a.jpg", "caption": "a dog"}'
        )
    cells = {key: value[key] for key in ("split", "sentids") if key in value}
    cells["image"] = next((value[key] for key in IMAGE_COLUMNS if key in value), None)
    found = next((value[key] for key in (*CAPTION_COLUMNS, *LIST_COLUMNS) if key in value), None)
    return cells | {"captions" if isinstance(found, list) else "caption": found}
