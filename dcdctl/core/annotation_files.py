"""Annotation files: Karpathy's JSON and a CSV of pairs, value by value; whatever is not as it should be is a RowError that says so."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from dcdctl.core.errors import InputError
from dcdctl.core.image_store import RowError
from dcdctl.core.manifest import SPLIT_ALIASES, SPLITS


def read_karpathy(path: Path) -> list[Any]:
    """The entries of `images`, unchecked; InputError where there is no such list."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})", hint="--karpathy takes a JSON file") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {error}", hint="a download may have been cut off") from error
    entries = content.get("images") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries:
        found = f'"images" is {kind_of(entries)}' if isinstance(content, dict) and "images" in content else 'no "images"'
        raise InputError(f"{path}: {found}, a list of images is wanted", hint="Karpathy's files look like dataset_flickr30k.json")
    return entries


def sentence_numbers(entries: Sequence[Any]) -> list[list[int]]:
    """The numbers of each image's captions; an entry that is not as it should be has none, and is refused elsewhere."""
    sentences = [entry.get("sentences") if isinstance(entry, dict) else None for entry in entries]
    lists: list[list[Any]] = [value if isinstance(value, list) else [] for value in sentences]
    sentids: list[list[Any]] = [[one.get("sentid") if isinstance(one, dict) else None for one in value] for value in lists]
    if all(type(number) is int and abs(number) < 2**63 for numbers in sentids for number in numbers):
        return sentids
    start, numbered = 0, []
    for value in lists:
        numbered.append(list(range(start, start + len(value))))
        start += len(value)
    return numbered


def karpathy_path(entry: Mapping[str, Any]) -> str:
    """Folder and name of an entry's image."""
    filename, folder = entry.get("filename"), entry.get("filepath", "")
    if not isinstance(filename, str) or not filename.strip():
        raise RowError(f'"filename" is {kind_of(filename)}, the name of an image is wanted')
    if not isinstance(folder, str):
        raise RowError(f'"filepath" is {kind_of(folder)}, a folder is wanted')
    return str(PurePosixPath(f"{folder}/{filename}" if folder else filename))


def karpathy_captions(entry: Mapping[str, Any]) -> list[str]:
    """The texts of an entry, at least one."""
    sentences = entry.get("sentences")
    if not isinstance(sentences, list):
        raise RowError(f'"sentences" is {kind_of(sentences)}, a list is wanted')
    if not sentences:
        raise RowError("the image has no caption")
    for i, sentence in enumerate(sentences):
        if not isinstance(sentence, dict):
            raise RowError(f'sentences[{i}] is {kind_of(sentence)}, an object with "raw" is wanted')
    return [_caption(sentence.get("raw"), f"caption {i}") for i, sentence in enumerate(sentences)]


def csv_caption(cell: str) -> str:
    """A cell is text, unless the whole of it is a JSON number, list or null: then it was written from something else."""
    try:
        value = json.loads(cell)
    except (ValueError, RecursionError):
        value = cell
    return _caption(cell if isinstance(value, str) else value, "the caption")


def _caption(value: Any, which: str) -> str:
    if not isinstance(value, str):
        raise RowError(f"{which} is {kind_of(value)}, text is wanted")
    if not value.strip():
        raise RowError(f"{which} is empty")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise RowError(f"{which} is not Unicode text ({error.reason})") from error
    return value


def split_of(value: Any) -> str:
    """The split a row belongs to."""
    split = SPLIT_ALIASES.get(value, value) if isinstance(value, str) else value
    if split not in SPLITS:
        known = ", ".join([*SPLITS, *SPLIT_ALIASES])
        raise RowError(f"unknown split {value!r} (known: {known})" if isinstance(value, str) else f'"split" is {kind_of(value)}')
    return str(split)


def kind_of(value: Any) -> str:
    """What a JSON value is, in words."""
    if value is None:
        return "missing or null"
    words = {bool: "a truth value", int: "a number", float: "a number", str: "a text", list: "a list", dict: "an object"}
    shown = json.dumps(value, ensure_ascii=False)
    return f"{words[type(value)]} ({shown if len(shown) <= 40 else shown[:37] + '...'})"


def filename_of(entry: Any) -> str:
    """What an entry calls its image, empty where it does not."""
    value = entry.get("filename") if isinstance(entry, dict) else None
    return value if isinstance(value, str) else ""


def read_csv(path: Path) -> list[tuple[int, str, str, str | None]]:
    """Line, image, caption and split (None without that column) of each row that is not blank."""
    import pandas as pd  # only here: every worker process imports this module, and pandas takes half a second

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            table = pd.read_csv(
                path, dtype=str, keep_default_na=False, skip_blank_lines=False, index_col=False, encoding="utf-8-sig"
            ).fillna("")
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})", hint="--csv takes a CSV file") from error
    except (ValueError, pd.errors.ParserWarning) as error:
        hint = 'a caption with a comma must stand in quotes: x.jpg,"a dog, running"'
        raise InputError(f"{path} is not a CSV of image and caption: {' '.join(str(error).split())}", hint=hint) from error
    table.columns = table.columns.str.strip()
    missing = [name for name in ("image", "caption") if name not in table.columns]
    if missing:
        found = ", ".join(map(str, table.columns))
        raise InputError(
            f"{path} has no column {missing[0]!r}, its columns are {found}", hint="the first line names: image,caption[,split]"
        )
    columns = [table[name].tolist() for name in table.columns]
    splits = table["split"].tolist() if "split" in table.columns else [None] * len(table)
    rows, line = [], 2
    for cells, image, caption, split in zip(zip(*columns, strict=True), table["image"], table["caption"], splits, strict=True):
        if any(cells):
            rows.append((line, image, caption, split))
        # A quoted cell may run over several lines, so a row's number is not its line.
        line += 1 + sum(cell.count("\n") for cell in cells)
    return rows
