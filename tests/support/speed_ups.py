"""Speed-ups as tables show them: the time of a model times its speed-up is the time of its teacher."""

from __future__ import annotations

import re
from collections.abc import Iterable

UNITS = {"ms": 1.0, "s": 1e3, "min": 6e4, "h": 3.6e6}
"""In milliseconds; a number without a unit is in them."""


def rounded(text: str) -> tuple[float, float]:
    """The least and the largest number that is shown like this.

    >>> rounded("~8.9 ms"), rounded("1,234x")
    ((8.85, 8.95), (1233.5, 1234.5))
    """
    digits, unit = re.findall(r"^~?([\d,]+(?:\.\d+)?) ?(\w*)", text)[0]
    value, half = float(digits.replace(",", "")), 0.5 * 10.0 ** -len(digits.partition(".")[2])
    # A teacher is exactly as fast as itself; 1.00 is a time, or the speed-up of another.
    if digits == "1" and unit not in UNITS:
        half = 0.0
    return tuple(round((value + sign * half) * UNITS.get(unit, 1.0), 9) for sign in (-1, 1))


def check_speed_ups(rows: Iterable[tuple[str, str]]) -> None:
    """All rows of time and speed-up give one time of the teacher, within the rounding of both."""
    teacher = [
        tuple(time * ratio for time, ratio in zip(rounded(ms), rounded(speed_up), strict=True)) for ms, speed_up in rows
    ]
    assert len(teacher) > 1
    assert max(low for low, _ in teacher) <= min(high for _, high in teacher), teacher
