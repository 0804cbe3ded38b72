"""The captions of a row of a source, and what its table says of each: checked, with a message for every mistake."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from dcdctl.core.data.images import RowError
from dcdctl.core.data.text_encoding import describe_value

MAX_TEXT_BYTES = 1 << 20
"""Larger captions, and files of captions in a tar, are rejected: to compare and tokenize a text takes 60 to 170 times
its size."""
MAX_WEIGHT = 1e9
"""The largest weight of a caption: sums of such weights keep their precision."""
MAX_NAME_LETTERS = 60
"""The longest name of a source or a language, which tables show as a heading."""


class CaptionLabel(NamedTuple):
    """What a table says of a caption besides its text."""

    source: str = ""
    """Who wrote it: human, alt text, synthetic, ...; empty if the table does not say."""
    weight: float = 1.0
    """How often training draws it, beside the other captions."""
    language: str = ""
    """Such as "de"; empty if the table does not say."""


NO_LABEL = CaptionLabel()
_NUMBERED = re.compile(r"caption_(\d+)")


def numbered_captions(names: Iterable[str]) -> list[str]:
    """The columns caption_0, caption_1, ... among these, with a caption each, by their numbers.

    >>> numbered_captions(["caption_10", "image", "caption_2"])
    ['caption_2', 'caption_10']
    """
    # By number: as text, caption_10 precedes caption_2.
    numbers = {name: int(match[1]) for name in names if (match := _NUMBERED.fullmatch(name))}
    return sorted(numbers, key=lambda name: numbers[name])


def read_captions(value: Any) -> list[str]:
    """The captions of a row that has one or a list of them; at least one."""
    if not isinstance(value, list):
        return [read_caption(value, "the caption")]
    if not value:
        raise RowError("the image has no caption")
    return [read_caption(text, f"caption {i}") for i, text in enumerate(value)]


def read_caption(value: Any, name: str) -> str:
    """A caption; `name` is its name in messages."""
    if not isinstance(value, str):
        raise RowError(f"{name} is {describe_value(value)}, expected text")
    if not value.strip():
        raise RowError(f"{name} is empty")
    # JSON may hold half of a surrogate pair, which UTF-8 cannot store.
    try:
        reject_large_text(len(value.encode()), name)
    except UnicodeEncodeError as error:
        raise RowError(f"{name} is not Unicode text ({error.reason})") from error
    return value


def reject_large_text(num_bytes: int, name: str) -> None:
    """RowError for a text of more than `MAX_TEXT_BYTES`."""
    if num_bytes > MAX_TEXT_BYTES:
        raise RowError(f"{name} is larger than {MAX_TEXT_BYTES:,} bytes")


def read_caption_ids(value: Any, count: int) -> list[int] | None:
    """The numbers of `count` captions; None if the value is anything else."""
    # Not isinstance, because a bool is an int. 64 bits, because the corpus stores int64.
    if (
        isinstance(value, list)
        and len(value) == count
        and all(type(number) is int and abs(number) < 2**63 for number in value)
    ):
        return value
    return None


def read_labels(cells: Mapping[str, Any], count: int) -> list[CaptionLabel]:
    """The labels of `count` captions, from cells `source`, `weight` and `language`: one value for all, or a list."""
    if cells.keys().isdisjoint(CaptionLabel._fields):
        return [NO_LABEL] * count
    columns: list[list[Any]] = []
    for name, default in NO_LABEL._asdict().items():
        value = cells.get(name)
        values = value if isinstance(value, list) else [value] * count
        if len(values) != count:
            raise RowError(f'"{name}" has {len(values)} values for {count} captions')
        columns.append([default if each is None or each == "" else read_label(name, each) for each in values])
    return list(map(CaptionLabel, *columns))


def is_synthetic(source: Any) -> bool:
    """Whether a model wrote the captions of a source: its name starts with `synthetic`, in upper or lower case.

    >>> is_synthetic("synthetic"), is_synthetic("Synthetic BLIP-2"), is_synthetic("alt text")
    (True, True, False)
    """
    return isinstance(source, str) and source.strip().lower().startswith("synthetic")


def read_label(label: str, value: Any) -> Any:
    """The value of a field of `CaptionLabel`: a weight, or a short name."""
    if label == "weight":
        return _read_weight(value)
    name = read_caption(value, f"the {label}").strip()
    if len(name) > MAX_NAME_LETTERS or not name.isprintable():
        raise RowError(f"the {label} is {name[:MAX_NAME_LETTERS]!r}, expected a short name")
    return name


def _read_weight(value: Any) -> float:
    try:
        # Not isinstance, because a bool is an int.
        weight = float(value) if type(value) in (int, float, str) else math.nan
    except (ValueError, OverflowError):
        weight = math.nan
    if not 0 < weight <= MAX_WEIGHT:
        raise RowError(
            f"the weight of a caption is {value!s:.60}, expected a number above 0 and at most {MAX_WEIGHT:g} "
            "(rename the column if it is about images)"
        )
    return weight
