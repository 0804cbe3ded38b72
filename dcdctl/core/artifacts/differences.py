"""What was found beside what was expected: the first difference of two JSON values, and how a message names it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dcdctl.core.errors import StaleError

ELSEWHERE = "name another folder, or delete this one"
_DIGEST = re.compile(r"[0-9a-f]{32,}")


def expect(where: Path | str, actual: Mapping[str, Any], expected: Mapping[str, Any], *, hint: str = ELSEWHERE) -> None:
    """StaleError if `actual` differs from `expected` in a key of `expected`; it names both sides of the first one."""
    for key, value in expected.items():
        if difference := first_difference(key, actual.get(key), value):
            raise StaleError(f"{where} was made with another {difference}", hint=hint)


def first_difference(name: str, actual: Any, expected: Any) -> str | None:
    """Where two JSON values first differ, with both sides; None if they are equal.

    >>> first_difference("recipe", {"seed": 0, "loss": {"alpha": 0.2}}, {"seed": 0, "loss": {"alpha": 0.5}})
    'recipe.loss.alpha (0.2, not 0.5)'
    """
    if actual == expected:
        return None
    parts: list[str | None] = []
    if isinstance(actual, Mapping) and isinstance(expected, Mapping):
        # A key that only one side has is a difference too.
        keys = {**actual, **expected}
        parts = [first_difference(f"{name}.{key}", actual.get(key), expected.get(key)) for key in keys]
    elif isinstance(actual, list) and isinstance(expected, list) and len(actual) == len(expected):
        parts = [first_difference(f"{name}[{i}]", *pair) for i, pair in enumerate(zip(actual, expected, strict=True))]
    return next(filter(None, parts), "{} ({}, not {})".format(name, *named(actual, expected)))


def named(*values: Any) -> list[str]:
    """Values as a message names them; of digests, the first digits if these differ."""
    words = [value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for value in values]
    short = [word[:12] if _DIGEST.fullmatch(word) else word for word in words]
    return short if len(set(short)) == len(short) else words
