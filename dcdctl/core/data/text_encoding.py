"""Text files: UTF-8, or UTF-16 with its mark, or in the encoding that the user names; lines of JSON, and rows of CSV.

An encoding is never guessed: tables of spreadsheets in cp1252 or GB18030 need a name, because wrong characters in
captions would go unnoticed.
"""

from __future__ import annotations

import codecs
import csv
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from dcdctl.core.errors import ConfigError, InputError
from dcdctl.core.files import unreadable

_HINT = "save the file as UTF-8; tell `dcdctl prepare` its encoding, such as --set encoding=cp1252"
_PIECE = 1 << 20
_LONGEST_LINE = 1 << 24
"""Characters, more than any row has."""
_SPREADSHEETS = {b"PK\x03\x04": "a spreadsheet or a zip", b"\xd0\xcf\x11\xe0": "a spreadsheet of Excel"}
"""How the files of .xlsx and .ods begin, and those of .xls. Many encodings would take the bytes for letters."""
SPREADSHEET_SUFFIXES = (".xlsx", ".xls", ".ods", ".numbers")
AS_CSV = "open it in its program and save it as CSV UTF-8"
_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


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
    """The encoding that the whole file decodes in: `forced`, or the one of its byte order mark; utf-8-sig for UTF-8.

    InputError if it cannot be read, and if it does not decode.
    """
    line = 1
    try:
        with path.open("rb") as file:
            mark = file.read(4)
            if (kind := _SPREADSHEETS.get(mark)) is not None:
                raise InputError(f"{path} is {kind}, expected a table in a text file", hint=AS_CSV)
            marked = next((name for known, name in _MARKS.items() if mark.startswith(known)), None)
            # A byte order mark would become a part of the first column's name.
            name = ("utf-8-sig" if forced == "utf-8" else forced) or marked or "utf-8-sig"
            decoder = codecs.getincrementaldecoder(name)()
            file.seek(0)
            # In pieces, because a log may be larger than the memory.
            while piece := file.read(_PIECE):
                decoder.decode(piece)
                line += piece.count(b"\n")
            decoder.decode(b"", final=True)
    except OSError as error:
        raise unreadable(path, error, hint="check the path") from error
    except UnicodeError as error:
        fault = str(error)  # of a codec of several bytes without their mark
        if isinstance(error, UnicodeDecodeError):
            fault = f"{error.reason} on line {line + error.object.count(10, 0, error.start):,}"
        raise InputError(f"{path} is not {name.removesuffix('-sig').upper()} text ({fault})", hint=_HINT) from error
    return name


def lines_of(file: TextIO) -> Iterator[str]:
    """The lines of a file. One that is longer than any row comes in pieces, which are refused as rows, so that it is
    never in memory."""
    return iter(lambda: file.readline(_LONGEST_LINE), "")


def json_lines(path: Path, encoding: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The number and the object of each line that is not blank; InputError for a line that is no JSON object."""
    hint = 'expected one JSON object per line, such as {"image": "a.jpg", "caption": "a dog"}'
    # Not splitlines, because a caption may contain a Unicode line separator.
    with path.open(encoding=encoding) as file:
        for line, text in enumerate(lines_of(file), start=1):
            if not text.strip():
                continue
            try:
                value = json.loads(text.removesuffix("\n"))
            except (ValueError, RecursionError) as error:
                raise InputError(f"{path.name} line {line} is not JSON: {error}", hint=hint) from error
            if not isinstance(value, dict):
                raise InputError(f"{path.name} line {line} is {describe_value(value)}, expected an object", hint=hint)
            yield line, value


def csv_rows(path: Path, encoding: str, delimiters: str = ",;\t") -> Iterator[tuple[int, list[str]]]:
    """The first line and the cells of each row that is not blank: the names of the columns first, then rows with a cell
    for each. Between cells stands the delimiter that the first line has most, the first one of equals.

    InputError for a name that is there twice, for a row with more cells than names, and for damaged quotes.
    """
    # Of Python, and meant for wrong quotes; a longer caption is refused with its row.
    csv.field_size_limit(2**31 - 1)
    names: list[str] = []
    with path.open(encoding=encoding, newline="") as file:
        header = next(lines_of(file), "")
        file.seek(0)
        delimiter = max(delimiters, key=header.count)
        # strict, because a quotation mark that is never closed would swallow the rows after it.
        reader, line = csv.reader(lines_of(file), delimiter=delimiter, strict=True), 1
        try:
            for cells in reader:
                if line == 1:
                    names = [name.strip() for name in cells]
                    if repeated := next((name for name, count in Counter(names).items() if name and count > 1), None):
                        raise InputError(f"{path} has the column {repeated!r} twice", hint="rename one of them")
                    yield line, names
                elif len(cells) > len(names):
                    raise InputError(
                        f"{path} line {line} has {len(cells)} cells, and line 1 names {len(names)} columns",
                        hint=f'a text with {delimiter!r} needs quotation marks: "a dog{delimiter} running"',
                    )
                # Spreadsheets end tables with blank lines, and leave out empty cells at the end of a line.
                elif any(cells):
                    yield line, [*cells, *[""] * (len(names) - len(cells))]
                # A quoted cell may contain line breaks.
                line = reader.line_num + 1
        except csv.Error as error:
            raise InputError(
                f"{path} line {line}: a cell starts with a quotation mark and does not end with one, up to line "
                f"{reader.line_num}",
                hint='put quotation marks around the whole text, and two for each inside: "a ""big"" dog"',
            ) from error


def find_column(where: Path | str, names: Sequence[str], known: Sequence[str], hint: str) -> str:
    """The first of the known names that a table has; InputError if it has none of them."""
    if (name := next((name for name in known if name in names), None)) is None:
        more = f" and {len(names) - 8:,} more" if len(names) > 8 else ""
        columns = f"its columns are {', '.join(names[:8]):.300}{more}" if names else "it is empty"
        raise InputError(f"{where} has no column {', '.join(known)}: {columns}", hint=hint)
    return name


def describe_value(value: Any) -> str:
    """The type and the beginning of a JSON value, in words."""
    if value is None:
        return "missing or null"
    words = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "a list", dict: "an object"}
    shown = json.dumps(value, ensure_ascii=False, default=str)
    kind = words.get(type(value), type(value).__name__)
    return f"{kind} ({shown})" if len(shown) <= 40 else f"{kind} ({shown[:37]}...)"
