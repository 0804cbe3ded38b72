"""The last sentence of the error for a model that is not on this machine: how its folder is named here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from dcdctl.core.config import flatten, to_table
from dcdctl.core.errors import DcdError

NAMED = "name DIR in place of {ref}"
"""The sentence where nothing better is known."""


@contextmanager
def naming_uses(uses: Mapping[str, str]) -> Iterator[None]:
    """Let the error say how the folder is named here: a sentence for each reference, in which the folder is DIR."""
    try:
        yield
    except DcdError as error:
        for ref, use in uses.items():
            if error.hint.endswith(place := NAMED.format(ref=ref)):
                raise type(error)(error.args[0], hint=error.hint.replace(place, use)) from error
        raise


@contextmanager
def naming_fields(config: Any) -> Iterator[None]:
    """Let the error name the field of a config that has the reference, as an override."""
    uses: dict[str, str] = {}
    for field, value in flatten(to_table(config)).items():
        if value and isinstance(value, str):
            uses.setdefault(value, f"give `--set {field}=DIR`")
    with naming_uses(uses):
        yield
