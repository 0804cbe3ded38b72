"""What claims.toml has: runs, claims, and how a value is shown; claims.py runs and judges them."""

from __future__ import annotations

import math
import re
import shlex
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dcdctl.core import config
from dcdctl.core.errors import ConfigError
from dcdctl.core.progress import digits
from dcdctl.core.toml import parse_toml

CLAIMS = Path(__file__).resolve().parent / "claims.toml"
GIVEN = ("vision", "text", "karpathy", "images", "outside", "wordnet", "lite2", "resnet50")
"""What a clone lacks and an option gives: two encoders, the captions and photos of Flickr8k, texts of another
source, and two more image encoders."""
At = str | float | list[Any]
"""`FILE > key > key`, a number, or `["minus", AT, AT]`; `tables.md > TABLE > ROW > COLUMN > 0` is the first number of
a cell. A file with a *, `*name` and a key `name=value & name=value`, which selects in a list, may fit several values:
the value is their mean."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """Commands, and what they need."""

    steps: Mapping[str, str]
    """Shell lines by name, with {work} for the run's folder and the names of `GIVEN` for what a clone lacks."""
    minutes: float
    """On two idle cores."""
    hardware: str = "two CPU cores"
    needs: str = ""
    """What no option gives, such as a GPU: the run is never started here."""
    published: str = ""
    """Folder of the repository with the committed files of such a run."""
    results: str = "."
    """Where a run writes these files, in its folder."""
    tolerance: float | str = 0.0
    """How far a value may lie from the expected one: an amount, or a share such as "30 %". A claim may say otherwise,
    one for each value."""
    planned: Mapping[str, str] = field(default_factory=dict)
    """Date and commit in which the expectation was written down, before the run."""
    last: Mapping[str, Any] = field(default_factory=dict)
    """Date, commit, machine and minutes of the last run."""

    def __post_init__(self) -> None:
        try:
            is_within(0, 0, self.tolerance)
            unknown = placeholders(self) - {"work", *GIVEN}
            is_empty = not all(map(shlex.split, self.steps.values()))
        except ValueError as error:
            raise ConfigError(f"steps or tolerance: {error}") from error
        if unknown or is_empty:
            raise ConfigError(f"steps name {', '.join(sorted(unknown)) or 'no program'}")


@dataclass(frozen=True, kw_only=True)
class Claim:
    """Values that pages show."""

    run: str
    expected: list[float]
    base: str = ""
    """What each `at` begins with."""
    at: list[At] = field(default_factory=list)
    """One for each value; none if no file has them."""
    tolerance: list[float | str] = field(default_factory=list)
    text: Mapping[str, str | list[str]]
    """By page, fragments of one line."""

    def __post_init__(self) -> None:
        numbers = len(self.expected)
        if not {len(self.at), len(self.tolerance)} <= {0, numbers} or not all(map(math.isfinite, self.expected)):
            raise ConfigError(f"expected has {self.expected}; at and tolerance must be as many, and the numbers finite")
        try:
            self.shown()
            for tolerance in self.tolerance:
                is_within(0, 0, tolerance)
        except (ValueError, LookupError) as error:
            raise ConfigError(f"text or tolerance: {error}") from error

    def shown(self, values: Sequence[float] | None = None) -> list[tuple[str, str]]:
        """Page and fragment, with these values or the expected ones."""
        shown = [Shown(value) for value in (self.expected if values is None else values)]
        return [(page, template.format(*shown)) for page, template in self.templates()]

    def templates(self) -> list[tuple[str, str]]:
        """Page and fragment, with placeholders."""
        return [
            (page, each) for page, text in self.text.items() for each in ([text] if isinstance(text, str) else text)
        ]


class Shown(float):
    """A value as pages show it: `{}` as a whole number, `{:1}` with one decimal at most, `{:digits}` as dcdctl shows
    times, or any format of Python's own."""

    def __format__(self, spec: str) -> str:
        if spec == "digits":
            return digits(self)
        if re.fullmatch(r"\+?\d", spec or "0"):
            shown = f"{float(self):{spec[:-1]},.{spec[-1:] or 0}f}"
            return re.sub(r"\.?0+$", "", shown) if "." in shown else shown
        return float.__format__(self, spec)


def is_within(measured: float, expected: float, tolerance: float | str) -> bool:
    """Whether a value lies within an amount or a share of the expected one; what rounds to it always does."""
    if isinstance(tolerance, str):
        tolerance = abs(expected) * float(tolerance.removesuffix("%")) / 100
    return abs(measured - expected) <= tolerance + 1e-9


def placeholders(run: Run) -> set[str]:
    """The names that the lines of a run leave open."""
    return {name for line in run.steps.values() for _, name, _, _ in string.Formatter().parse(line) if name}


@dataclass(frozen=True, kw_only=True)
class Claims:
    """What claims.toml has."""

    runs: Mapping[str, Run]
    claims: Mapping[str, Claim]
    facts: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        if unknown := {claim.run for claim in self.claims.values()} - {*self.runs}:
            raise ConfigError(f"no run is called {', '.join(sorted(unknown))}")


def load(path: Path = CLAIMS) -> tuple[Mapping[str, Run], Mapping[str, Claim]]:
    """Runs and claims by name; ConfigError for a field that does not exist or has another type."""
    document = parse_toml(path, lambda table: config.build(Claims, table))
    return document.runs, document.claims
