"""Sides against a base: what differs, how sure that is, and on which queries.

Sides have letters in the order they were named in, for names are long.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dcdctl.core import comparison, rank_shifts, sides
from dcdctl.core.comparison import Comparison, Estimates, RankTable
from dcdctl.core.errors import InputError
from dcdctl.core.rank_shifts import DIRECTIONS, Direction, Shifts
from dcdctl.core.resampling import holm
from dcdctl.core.sides import Side

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True, kw_only=True)
class Duel:
    """A side against the base."""

    letter: str
    side: Side
    comparison: Comparison
    holm_p_value: float
    """Of the bootstrap, adjusted for all duels of the contest (`resampling.holm`)."""
    holm_sign_flip_p_value: float
    shifts: dict[Direction, Shifts]


@dataclass(frozen=True, kw_only=True)
class Contest:
    sides: dict[str, Side]
    """By letter."""
    base: str
    """A letter."""
    duels: tuple[Duel, ...]
    num_resamples: int
    seed: int

    @property
    def queries(self) -> RankTable:
        """Any of the tables: all have the same images and captions."""
        return self.sides[self.base].members[0].ranks

    @property
    def document(self) -> dict[str, Any] | None:
        """What is known of how everyone was measured; None where only tables of ranks are compared."""
        return next((side.document for side in self.sides.values() if side.document is not None), None)

    @property
    def alone(self) -> dict[str, Estimates]:
        """The recalls of each side, by letter."""
        of_others = {duel.letter: duel.comparison.ours for duel in self.duels}
        return {letter: of_others.get(letter, self.duels[0].comparison.base) for letter in self.sides}


def hold(names: Sequence[str], base: str | None = None, *, resamples: int = 10_000, seed: int = 0, num_queries: int = 6) -> Contest:
    """Compare each side with the base, the first one unless named; of each duel, `num_queries` a direction and way are named.

    InputError for a side that is not there, StaleError where sides do not belong together.
    """
    if not 2 <= len(names) <= len(LETTERS):
        raise InputError(f"{len(names)} sides were named, 2 to {len(LETTERS)} are wanted", hint="name two or more evaluations")
    read = dict(zip(LETTERS, sides.read_sides(names), strict=False))
    first = LETTERS[0 if base is None else sides.index_of(list(read.values()), base)]
    others = {letter: side for letter, side in read.items() if letter != first}
    tables = {letter: side.tables for letter, side in others.items()}
    found = comparison.compare_all(tables, read[first].tables, resamples=resamples, seed=seed)
    holm_D, holm_sign_flip_D = holm([one.p_value for one in found]), holm([one.sign_flip_p_value for one in found])
    duels = [
        Duel(
            letter=letter,
            side=side,
            comparison=found[i],
            holm_p_value=holm_D[i],
            holm_sign_flip_p_value=holm_sign_flip_D[i],
            shifts={way: rank_shifts.find(side.tables, read[first].tables, way, num_queries) for way in DIRECTIONS},
        )
        for i, (letter, side) in enumerate(others.items())
    ]
    return Contest(sides=read, base=first, duels=tuple(duels), num_resamples=resamples, seed=seed)
