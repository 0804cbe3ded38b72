"""The sides of a comparison: evaluations on disk, one or one a seed, of the same queries by the same protocol.

FOLDER           ranks.parquet and result.json, as `dcdctl eval` leaves them; the cascade's where there are no others
FOLDER:cascade   cascade-ranks.parquet and cascade.json
FILE             a table of ranks; what else is known of it is what lies beside it under these names
REF,REF,REF      the seeds of one side, each any of the above
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dcdctl.core.data import Direction
from dcdctl.core.errors import InputError, StaleError
from dcdctl.core.evaluation import recall, significance
from dcdctl.core.evaluation.bootstrap import holm
from dcdctl.core.evaluation.files import ALONE, CASCADE, Names, read_ranks
from dcdctl.core.evaluation.ranks import Ranks, RankTable
from dcdctl.core.evaluation.significance import Comparison, Estimates, check_queries
from dcdctl.core.files import read_json

CASCADE_SUFFIX = ":cascade"
MAX_ROUNDING = 1e-6
"""RSUM by the ranks and RSUM as written may differ by so much."""
_KEYS = ("model", "split", "rsum", "protocol", "corpus_fingerprint")


@dataclass(frozen=True)
class Measured:
    """An evaluation on disk."""

    ref: str
    ranks: RankTable
    document: dict[str, Any] | None
    """result.json or cascade.json; None for a table of ranks that lies alone."""
    top: Path | None
    """The first few of every query, where they were kept."""


@dataclass(frozen=True)
class Side:
    """A model, or several that differ in the seed alone."""

    name: str
    members: tuple[Measured, ...]

    @property
    def tables(self) -> list[RankTable]:
        return [member.ranks for member in self.members]

    @property
    def document(self) -> dict[str, Any] | None:
        """The first there is of its members'."""
        return next((member.document for member in self.members if member.document is not None), None)


def read_sides(names: Sequence[str]) -> list[Side]:
    """Read them all; InputError for what is not there, StaleError that names both where two do not belong together."""
    sides = [Side(name, tuple(_read(ref) for ref in _refs(name))) for name in names]
    for side in sides:
        _check_alike(side.members, _kind_facts, "are not seeds of one side", "name them as two")
    members = [member for side in sides for member in side.members]
    _check_alike(members, _protocol_facts, "were not measured alike", "evaluate both alike with `dcdctl eval`")
    check_queries({member.ref: member.ranks for member in members})
    return sides


def index_of(sides: Sequence[Side], name: str) -> int:
    """Which side has this name; InputError where none has."""
    for index, side in enumerate(sides):
        if side.name.rstrip("/") == name.rstrip("/"):
            return index
    raise InputError(f"{name} is none of the sides", hint=f"they are {' and '.join(side.name for side in sides)}")


def _refs(name: str) -> list[str]:
    refs = [name] if Path(name).exists() else name.split(",")
    if not all(refs):
        raise InputError(f"a name in {name!r} is empty", hint="separate the seeds of a side by single commas")
    return refs


def _read(ref: str) -> Measured:
    ranks_file, names = _find(ref)
    table = read_ranks(ranks_file)
    if names is None:
        return Measured(ref, table, None, None)
    document_file, top_file = ranks_file.with_name(names.result), ranks_file.with_name(names.top)
    document = _read_document(document_file) if document_file.is_file() else None
    if document is not None:
        _check_rsum(document, document_file, table, ranks_file)
    return Measured(ref, table, document, top_file if top_file.is_file() else None)


def _find(ref: str) -> tuple[Path, Names | None]:
    """The table of ranks, and what the files beside it are called."""
    path, is_cascade = Path(ref), False
    if not path.exists() and ref.endswith(CASCADE_SUFFIX):
        path, is_cascade = Path(ref.removesuffix(CASCADE_SUFFIX)), True
    if path.suffix == ".parquet" and not path.is_dir():
        return path, next((names for names in (ALONE, CASCADE) if names.ranks == path.name), None)
    if not path.is_dir():
        raise InputError(f"there is no folder {path}, an evaluation is wanted", hint=_how_to_make("RUN"))
    for names in (CASCADE,) if is_cascade else (ALONE, CASCADE):
        if (path / names.ranks).is_file():
            if not (path / names.result).is_file():
                raise InputError(f"{path} has {names.ranks} and no {names.result}: its evaluation was cut off", hint=_how_to_make(path))
            return path / names.ranks, names
    wanted = CASCADE if is_cascade else ALONE
    raise InputError(f"{path} has no {wanted.ranks}, it is no evaluation", hint=_how_to_make(path, " --rerank REF" if is_cascade else ""))


def _how_to_make(what: Path | str, more: str = "") -> str:
    return f"`dcdctl eval {what} --data DIR{more}` makes one"


def _read_document(path: Path) -> dict[str, Any]:
    document = read_json(path, hint=_how_to_make(path.parent))
    if missing := [key for key in _KEYS if key not in document]:
        raise InputError(f"{path} is not the result of an evaluation: it has no {missing[0]!r}", hint=_how_to_make(path.parent))
    return document


def _check_rsum(document: dict[str, Any], document_file: Path, table: RankTable, ranks_file: Path) -> None:
    """StaleError if the ranks are of another evaluation than the document, such as one that was cut off."""
    if document["protocol"].get("folds", 1) != 1:
        return  # the document's recalls are means over folds, which may have different numbers of captions
    rsum = recall.summarize(Ranks(table.text_ranks, table.image_ranks)).rsum
    if abs(rsum - document["rsum"]) > MAX_ROUNDING:
        found = f"{ranks_file} has RSUM {rsum:.3f} and {document_file.name} beside it {document['rsum']:.3f}"
        raise StaleError(
            f"{found}: they are of different evaluations", hint=_how_to_make(ranks_file.parent).replace("makes one", "makes both")
        )


def _kind_facts(document: dict[str, Any]) -> dict[str, Any]:
    return {key: document["protocol"].get(key) for key in ("kind", "depth")}


def _protocol_facts(document: dict[str, Any]) -> dict[str, Any]:
    protocol = {f"protocol's {key}": document["protocol"].get(key) for key in ("name", "folds", "ties")}
    return {"split": document["split"], **protocol, "corpus": document["corpus_fingerprint"][:8]}


def _check_alike(members: Sequence[Measured], facts_of: Callable[[dict[str, Any]], dict[str, Any]], what: str, hint: str) -> None:
    """StaleError if one of those with a document differs from the first."""
    known = [(member.ref, facts_of(member.document)) for member in members if member.document is not None]
    for ref, facts in known[1:]:
        first_ref, first = known[0]
        for name, found in facts.items():
            if found != first[name]:
                difference = f"the {name} is {found!r} for {ref}, {first[name]!r} for {first_ref}"
                raise StaleError(f"{first_ref} and {ref} {what}: {difference}", hint=hint)


DECIMALS = 9
"""Of differences of logarithms: further digits are rounding."""


@dataclass(frozen=True)
class Shift:
    """A query whose ranks differ."""

    query: int
    """The image index where the direction is "text", else the caption index."""
    ours: tuple[int, ...]
    """The rank in each of our runs."""
    base: tuple[int, ...]


@dataclass(frozen=True)
class Shifts:
    """How many queries of a direction rank better, worse and equally with us, and the ones furthest apart."""

    num_better: int
    num_equal: int
    num_worse: int
    better: tuple[Shift, ...]
    worse: tuple[Shift, ...]


def find(ours: Sequence[RankTable], base: Sequence[RankTable], direction: Direction, num_queries: int) -> Shifts:
    """The shifts of one direction; `num_queries` of the better and of the worse are named.

    >>> one, other = (RankTable(("a", "b"), np.arange(2), np.arange(2), np.array(ranks), np.ones(2)) for ranks in ([3, 9], [5, 1]))
    >>> find([one], [other], Direction.TEXT, 1).worse
    (Shift(query=1, ours=(9,), base=(1,)),)
    """
    ours_QR, base_QR = (np.column_stack([table.ranks(direction) for table in tables]) for tables in (ours, base))
    log_ours_Q, log_base_Q = np.log(ours_QR).mean(axis=1), np.log(base_QR).mean(axis=1)
    gain_Q = (log_base_Q - log_ours_Q).round(DECIMALS)
    furthest_Q = np.lexsort([np.minimum(log_ours_Q, log_base_Q), -np.abs(gain_Q)])
    better, worse = furthest_Q[gain_Q[furthest_Q] > 0], furthest_Q[gain_Q[furthest_Q] < 0]
    first_of_each = [
        tuple(Shift(query, tuple(ours_QR[query].tolist()), tuple(base_QR[query].tolist())) for query in queries[:num_queries].tolist())
        for queries in (better, worse)
    ]
    return Shifts(len(better), len(gain_Q) - len(better) - len(worse), len(worse), *first_of_each)


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
    read = dict(zip(LETTERS, read_sides(names), strict=False))
    first = LETTERS[0 if base is None else index_of(list(read.values()), base)]
    others = {letter: side for letter, side in read.items() if letter != first}
    tables = {letter: side.tables for letter, side in others.items()}
    found = significance.compare_all(tables, read[first].tables, resamples=resamples, seed=seed)
    holm_D, holm_sign_flip_D = holm([one.p_value for one in found]), holm([one.sign_flip_p_value for one in found])
    duels = [
        Duel(
            letter=letter,
            side=side,
            comparison=found[i],
            holm_p_value=holm_D[i],
            holm_sign_flip_p_value=holm_sign_flip_D[i],
            shifts={direction: find(side.tables, read[first].tables, direction, num_queries) for direction in Direction},
        )
        for i, (letter, side) in enumerate(others.items())
    ]
    return Contest(sides=read, base=first, duels=tuple(duels), num_resamples=resamples, seed=seed)
