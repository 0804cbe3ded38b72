"""The items of a large JSON array, one at a time: COCO's 409 MB of annotations take about 3 GB as Python objects.

Why not ijson 3.6. Measured on a Karpathy JSON of COCO's size (123,287 images with 5 captions, 151 MB) on a 2-core x86
VM, CPU seconds and memory above what the imports take:

    this module                 1.1 s   6 MiB
    ijson, yajl2_c backend      1.6 s   1 MiB
    ijson, Python backend      34   s   4 MiB    (the fallback where there is no wheel)
    json.loads                  5.7 s   970 MiB

The yajl2_c backend also reads half of a surrogate pair (`\\ud83d`) as "?", which changes a caption without an error. It
refuses a byte order mark and integers of more than 64 bits, and its errors have no position.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from dcdctl.core.data.text_encoding import describe_value
from dcdctl.core.errors import InputError

FIRST_CHARS = 1 << 20
"""Characters of the first read of each value; each further read for the same value is twice as large."""
_SPACE = " \t\r\n"
_CUT_OFF_HINT = "a download may have been cut off"


class ArrayError(Exception):
    """There is no such array; `actual` describes the value in its place, and is empty if there is none."""

    def __init__(self, actual: str) -> None:
        super().__init__(actual)
        self.actual = actual


def items(path: Path, key: str, hint: str) -> Iterator[Any]:
    """The items of the array under a key of the top-level object, or of the top-level array if the key is empty.

    InputError, with the hint, if the file cannot be read; InputError with the position if it is not JSON; ArrayError if
    there is no such array.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            scanner = _Scanner(file)
            yield from _items(scanner, key)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})", hint=hint) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({error.reason})", hint="save it as UTF-8") from error
    except json.JSONDecodeError as error:
        where = f"character {scanner.num_read + error.pos:,}"
        raise InputError(f"{path} is not JSON: {error.msg} at {where}", hint=_CUT_OFF_HINT) from error
    except (
        ValueError,
        RecursionError,
    ) as error:  # an integer of more than 4,300 digits; a value that is nested too deep
        raise InputError(f"{path} is not JSON: {error}", hint=_CUT_OFF_HINT) from error


def _items(scanner: _Scanner, key: str) -> Iterator[Any]:
    if key:
        _find_member(scanner, key)
    if scanner.peek() != "[":
        raise ArrayError(describe_value(scanner.value()))
    scanner.take("[")
    if scanner.peek() == "]":
        raise ArrayError(describe_value([]))
    while True:
        yield scanner.value()
        if scanner.take(",]") == "]":
            break
    # The rest of the object too, so that a file that was cut off there is an error.
    while key and scanner.take(",}") == ",":
        scanner.value()
        scanner.take(":")
        scanner.value()
    if scanner.peek():
        raise scanner.error("Extra data")


class _Scanner:
    """Reads a file in parts and keeps only what is not yet consumed."""

    def __init__(self, file: IO[str]) -> None:
        self._file, self._decoder = file, json.JSONDecoder()
        self._buffer, self._position = "", 0
        self.num_read = 0
        """Characters of the text before the buffer."""

    def peek(self) -> str:
        """The next character that is not white space; empty at the end."""
        while True:
            while self._position < len(self._buffer) and self._buffer[self._position] in _SPACE:
                self._position += 1
            if self._position < len(self._buffer) or not self._read(FIRST_CHARS):
                return self._buffer[self._position : self._position + 1]

    def take(self, allowed: str) -> str:
        """The next character, which must be one of those allowed."""
        character = self.peek()
        if not character or character not in allowed:
            raise self.error(f"Expecting {' or '.join(allowed)}")
        self._position += 1
        return character

    def value(self) -> Any:
        """The next value. Reads on until a character follows that ends it, because a number may continue."""
        self.peek()
        size = FIRST_CHARS
        while True:
            try:
                value, end = self._decoder.raw_decode(self._buffer, self._position)
            except json.JSONDecodeError:
                # Either cut off by the end of the buffer or wrong: only more text decides.
                if not self._read(size):
                    raise
            else:
                # A tuple, because the empty text at the end of the buffer is in every text.
                is_complete = self._buffer[end : end + 1] in tuple(_SPACE + ",:]}")
                if is_complete or not self._read(size):
                    self._position = end
                    return value
            size *= 2

    def error(self, message: str) -> json.JSONDecodeError:
        """An error at the next character."""
        return json.JSONDecodeError(message, self._buffer, self._position)

    def _read(self, size: int) -> bool:
        """Append more text to the buffer and drop what is consumed; False at the end of the file, and then nothing
        changes."""
        more = self._file.read(size)
        if not more:
            return False
        self.num_read += self._position
        self._buffer, self._position = self._buffer[self._position :] + more, 0
        return True


def _find_member(scanner: _Scanner, key: str) -> None:
    """Move to the value under a key of the top-level object; ArrayError if there is none."""
    if scanner.peek() != "{":
        scanner.value()
        raise ArrayError("")
    scanner.take("{")
    while scanner.peek() != "}":
        name = scanner.value()
        scanner.take(":")
        if name == key:
            return
        scanner.value()
        if scanner.take(",}") == "}":
            break
    raise ArrayError("")
