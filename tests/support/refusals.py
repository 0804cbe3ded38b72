"""What a room refuses, as rows of a table, and the form that the message of each row must have."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import NamedTuple

import pytest

from dcdctl.core.errors import DcdError

EXPECTED = re.compile(r"\b(must|expected|known|needs?|takes?|is for|go together|multiple of|has|have|lacks|missing)\b")
"""A message without a hint says by one of these words what would be right."""


class Refusal(NamedTuple):
    """A row: what is wrong, the error, and what its message names."""

    what: str
    do: Callable[..., object]
    """Its parameters without defaults are names of fixtures."""
    error: type[DcdError]
    names: str
    """A pattern: the field or file, and the next step."""


def check(refusal: Refusal, request: pytest.FixtureRequest) -> None:
    """AssertionError unless the row is refused by one line that says what was found, what is expected or what to do
    next."""
    parameters = inspect.signature(refusal.do).parameters.values()
    names = [parameter.name for parameter in parameters if parameter.default is parameter.empty]
    fixtures = {name: request.getfixturevalue(name) for name in names}
    with pytest.raises(refusal.error, match=refusal.names) as caught:
        refusal.do(**fixtures)
    error, message = caught.value, str(caught.value)
    assert "\n" not in message
    assert message == message.strip()
    assert re.search(r"[^.]$|\.\.$", message)  # a list may be cut, and a path end with two
    assert error.hint or EXPECTED.search(message)
