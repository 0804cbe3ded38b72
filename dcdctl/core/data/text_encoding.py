"""Text files: UTF-8, UTF-16 or UTF-32 by their bytes, or in the encoding that the user names; and lines of JSON.

An encoding is never guessed: tables of spreadsheets in cp1252 or GB18030 need a name, because wrong characters in
captions would go unnoticed.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dcdctl.core.errors import ConfigError, InputError

FORCE = "name the encoding with --encoding, such as --encoding cp1252, or save the file as UTF-8"
_WIDE = {
    (False, True): "utf-16-le",
    (True, False): "utf-16-be",
    (False, True, True, True): "utf-32-le",
    (True, True, True, False): "utf-32-be",
}
"""Encodings by the bytes of a Latin letter that are zero."""
_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    # Before UTF-16, with whose mark the one of little-endian UTF-32 begins.
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def check_encoding(name: str) -> str:
    """The codec name of an encoding; ConfigError if Python has no text encoding of that name."""
    try:
        "".encode(name)
    except LookupError as error:
        raise ConfigError(
            f"unknown encoding {name!r}",
            hint="known: utf-8, utf-16, cp1252, latin-1, shift_jis, gb18030, and Python's others",
        ) from error
    # One name for cp1252 and windows-1252, so that both give the same corpus.
    return codecs.lookup(name).name


def find_encoding(path: Path, forced: str | None = None) -> str:
    """The encoding that the whole file decodes in: `forced`, or the one that its bytes show; utf-8-sig for UTF-8.

    InputError if it does not decode.
    """
    data = path.read_bytes()
    if forced is not None:
        # A byte order mark would become a part of the first column's name.
        name = "utf-8-sig" if forced == "utf-8" else forced
        if wrong := _fault(data, name):
            raise InputError(f"{path} is not {forced} text ({wrong})", hint="leave --encoding out, or name another")
        return name
    for mark, name in _MARKS.items():
        if data.startswith(mark):
            if wrong := _fault(data, name):
                raise InputError(
                    f"{path} is not {name.removesuffix('-sig').upper()} text ({wrong}), and its first bytes say so",
                    hint=FORCE,
                )
            return name
    if (wide := _without_mark(data)) is not None and not _fault(data, wide):
        return wide
    if not (wrong := _fault(data, "utf-8")):
        return "utf-8-sig"
    raise InputError(f"{path} is not UTF-8 text ({wrong})", hint=FORCE)


def not_utf8(path: Path) -> InputError:
    """The error for a file that is not UTF-8: what it looks like, or the first line that is not."""
    data = path.read_bytes()
    wide = next((name for mark, name in _MARKS.items() if data.startswith(mark)), None) or _without_mark(data)
    reason = f"it looks like {wide[:6].upper()}" if wide not in (None, "utf-8-sig") else _fault(data, "utf-8")
    return InputError(f"{path} is not UTF-8 text ({reason})", hint="save it as UTF-8")


def json_lines(path: Path, encoding: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The number and the object of each line that is not blank; InputError for a line that is no JSON object."""
    hint = 'expected one JSON object per line, such as {"image": "a.jpg", "caption": "a dog"}'
    # Not splitlines, because a caption may contain a Unicode line separator.
    with path.open(encoding=encoding) as lines:
        for line, text in enumerate(lines, start=1):
            if not text.strip():
                continue
            try:
                value = json.loads(text.removesuffix("\n"))
            except (ValueError, RecursionError) as error:
                raise InputError(f"{path.name} line {line} is not JSON: {error}", hint=hint) from error
            if not isinstance(value, dict):
                raise InputError(f"{path.name} line {line} is {describe_value(value)}, expected an object", hint=hint)
            yield line, value


def describe_value(value: Any) -> str:
    """The type and the beginning of a JSON value, in words."""
    if value is None:
        return "missing or null"
    words = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "a list", dict: "an object"}
    shown = json.dumps(value, ensure_ascii=False, default=str)
    return f"{words.get(type(value), type(value).__name__)} ({shown if len(shown) <= 40 else shown[:37] + '...'})"


def _fault(data: bytes, encoding: str) -> str:
    """Why bytes do not decode, with the line; empty if they do."""
    try:
        data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        return f"{error.reason} on line {line:,}"
    except UnicodeError as error:  # a codec of several bytes without their mark
        return str(error)
    return ""


def _without_mark(data: bytes) -> str | None:
    """UTF-16 or UTF-32 by the zero bytes of Latin letters; None for anything else."""
    zeros = tuple(byte == 0 for byte in data[:8])  # a table begins with the name of a column, a line of JSON with {"
    return {zeros_of * (8 // len(zeros_of)): name for zeros_of, name in _WIDE.items()}.get(zeros)
