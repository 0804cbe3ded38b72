"""The items of a large JSON array, one at a time: COCO's 409 MB of annotations take about 3 GB as Python objects.

The text of the file is in memory. A Karpathy JSON of COCO's size (123,287 images with 5 captions, 157 MB) takes 1.2 s
of a processor and at most 300 MiB on a 2-core x86 VM, and json.loads some 1,000 MiB. The yajl2_c backend of ijson 3.6
reads the file in parts, and half of a surrogate pair (`\\ud83d`) as "?", which changes a caption without an error.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dcdctl.core.data.text_encoding import describe_value
from dcdctl.core.errors import InputError

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
        yield from _items(_Scanner(path.read_text(encoding="utf-8-sig")), key)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})", hint=hint) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({error.reason})", hint="save it as UTF-8") from error
    # Also an integer of more than 4,300 digits, and a value that is nested too deep.
    except (ValueError, RecursionError) as error:
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
    """Reads the tokens and the values of a text, one after the other."""

    def __init__(self, text: str) -> None:
        self._text, self._position, self._decoder = text, 0, json.JSONDecoder()

    def peek(self) -> str:
        """The next character that is not white space; empty at the end."""
        while self._text.startswith((" ", "\t", "\r", "\n"), self._position):
            self._position += 1
        return self._text[self._position : self._position + 1]

    def take(self, allowed: str) -> str:
        """The next character, which must be one of those allowed."""
        character = self.peek()
        if not character or character not in allowed:
            raise self.error(f"Expecting {' or '.join(allowed)}")
        self._position += 1
        return character

    def value(self) -> Any:
        """The next value."""
        self.peek()
        value, self._position = self._decoder.raw_decode(self._text, self._position)
        return value

    def error(self, message: str) -> json.JSONDecodeError:
        """An error at the next character."""
        return json.JSONDecodeError(message, self._text, self._position)


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
