"""The values of annotation files: whatever is not as it should be is a RowError that says so."""

from __future__ import annotations

import json
from typing import Any

from dcdctl.core.formats import SPLIT_ALIASES, SPLITS
from dcdctl.core.image_store import RowError


def caption_text(value: Any, which: str) -> str:
    """A caption; `which` one it is, for the message."""
    if not isinstance(value, str):
        raise RowError(f"{which} is {kind_of(value)}, text is wanted")
    if not value.strip():
        raise RowError(f"{which} is empty")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise RowError(f"{which} is not Unicode text ({error.reason})") from error
    return value


def caption_texts(value: Any) -> list[str]:
    """A list of captions, at least one."""
    if not isinstance(value, list):
        raise RowError(f"the captions are {kind_of(value)}, a list is wanted")
    if not value:
        raise RowError("the image has no caption")
    return [caption_text(text, f"caption {i}") for i, text in enumerate(value)]


def numbers_of(value: Any, count: int) -> list[int] | None:
    """The numbers of so many captions; None if that is not what the value is."""
    if isinstance(value, list) and len(value) == count and all(type(number) is int and abs(number) < 2**63 for number in value):
        return value
    return None


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
    shown = json.dumps(value, ensure_ascii=False, default=str)
    return f"{words.get(type(value), type(value).__name__)} ({shown if len(shown) <= 40 else shown[:37] + '...'})"
