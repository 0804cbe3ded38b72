"""The members of a large JSON array, one after the other: a file of 400 MB must not become objects of 3 GB."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from dcdctl.core.data.readers.rows import kind_of
from dcdctl.core.errors import InputError

FIRST_CHARS = 1 << 20
_SPACE = " \t\r\n"


class ArrayError(Exception):
    """There is no such array; `found` says what is there instead, in words, or is empty."""

    def __init__(self, found: str) -> None:
        super().__init__(found)
        self.found = found


def items(path: Path, key: str, hint: str) -> Iterator[Any]:
    """The members of the array under a key of the top object, or of the top array where the key is empty.

    InputError, with that hint, if the file cannot be read or is no JSON; ArrayError if there is no such array.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            text = _Text(file)
            _find_array(text, key)
            yield from _members(text)
            if key:
                _skip_members(text)
            if text.peek():
                raise json.JSONDecodeError("Extra data", text.buffer, text.place)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})", hint=hint) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {error}", hint="a download may have been cut off") from error


class _Text:
    """What is left of a file, read as far as needed, ever larger parts at a time."""

    def __init__(self, file: IO[str]) -> None:
        self._file, self._decoder = file, json.JSONDecoder()
        self.buffer, self.place = "", 0

    def peek(self) -> str:
        """The next character that is no space; empty at the end."""
        while True:
            while self.place < len(self.buffer) and self.buffer[self.place] in _SPACE:
                self.place += 1
            if self.place < len(self.buffer) or not self._read(FIRST_CHARS):
                return self.buffer[self.place : self.place + 1]

    def take(self, wanted: str) -> str:
        """The next character, which has to be one of those wanted."""
        found = self.peek()
        if not found or found not in wanted:
            raise json.JSONDecodeError(f"Expecting {' or '.join(wanted)}", self.buffer, self.place)
        self.place += 1
        return found

    def value(self) -> Any:
        """The next value; read until something follows that cannot belong to it, for a number may go on."""
        self.peek()
        size = FIRST_CHARS
        while True:
            try:
                value, end = self._decoder.raw_decode(self.buffer, self.place)
            except json.JSONDecodeError:
                if not self._read(size):
                    raise
            else:
                is_over = self.buffer[end : end + 1] in tuple(_SPACE + ",:]}")
                if is_over or not self._read(size):
                    self.place = end
                    return value
            size *= 2

    def _read(self, size: int) -> bool:
        more = self._file.read(size)
        self.buffer, self.place = self.buffer[self.place :] + more, 0
        return bool(more)


def _find_array(text: _Text, key: str) -> None:
    """Go to the first member of the array."""
    if not key:
        if text.peek() != "[":
            raise ArrayError(kind_of(text.value()))
    else:
        if text.peek() != "{":
            text.value()
            raise ArrayError("")
        text.take("{")
        while text.peek() != "}":
            name = text.value()
            text.take(":")
            if name == key:
                if text.peek() != "[":
                    raise ArrayError(kind_of(text.value()))
                break
            text.value()
            if text.take(",}") == "}":
                raise ArrayError("")
        else:
            raise ArrayError("")
    text.take("[")
    if text.peek() == "]":
        text.take("]")
        raise ArrayError(kind_of([]))


def _members(text: _Text) -> Iterator[Any]:
    while True:
        yield text.value()
        if text.take(",]") == "]":
            return


def _skip_members(text: _Text) -> None:
    """The rest of an object after one of its values, so that a file that was cut off there is noticed."""
    while text.take(",}") == ",":
        text.value()
        text.take(":")
        text.value()
