"""Frozen dataclasses from tables of TOML and JSON, and back.

The range of a field and its key in tables stand in its annotation:

    @dataclass(frozen=True, kw_only=True)
    class OptimizerConfig:
        lr: Positive = 1e-4
        schedule: Literal["linear", "cosine"] = "linear"

        def __post_init__(self) -> None:
            settle_fields(self, "optimizer")

`OptimizerConfig(lr=0.0)` raises "optimizer.lr must lie in (0, 1000000000], got 0.0". Every number has a range with two
ends.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import itertools
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from dcdctl.core.errors import ConfigError, DcdError

T = TypeVar("T")


@dataclass(frozen=True)
class Constraint:
    """What an annotation demands of a field's value."""

    demand: str
    """Completes "FIELD must ..."."""
    admits: Callable[[Any], bool]


@dataclass(frozen=True)
class Range(Constraint):
    """Numbers from `low` to `high`, neither of which is infinite."""

    low: float
    high: float


def between(low: float, high: float, ends: Literal["[]", "[)", "(]", "()"] = "[]") -> Range:
    """Numbers of an interval; in `ends`, a round bracket excludes that end."""
    excluded = [end for end, bracket in zip((low, high), ends, strict=True) if bracket in "()"]

    def admits(value: Any) -> bool:
        # A text is no number, and nan is in no interval.
        return isinstance(value, int | float) and low <= value <= high and value not in excluded

    return Range(f"lie in {ends[0]}{low}, {high}{ends[1]}", admits, low, high)


NOT_EMPTY = Constraint("not be empty", lambda value: len(value) > 0)
DISTINCT = Constraint("not repeat an item", lambda value: len(set(value)) == len(value))
ASCENDING = Constraint("ascend", lambda value: all(first < second for first, second in itertools.pairwise(value)))


@dataclass(frozen=True)
class OnlyIf:
    """A condition under which a field means something; otherwise it must keep its default."""

    holds: Callable[[Any], bool]
    """Of the config with the field."""
    purpose: str
    """Completes "FIELD is for ..."; {other} is the value of another field."""


@dataclass(frozen=True)
class OneOf:
    """Marks a union of configs whose tables name one of them in an entry, such as kind = "dual".

    Each config has that entry as a field of one choice, its default; a table without it is the first config.
    """

    tag: str


@dataclass(frozen=True)
class Key:
    """How tables write a field: under another name, such as R@1, which is no name of Python; without its default."""

    name: str = ""
    """Empty: the name of the field."""
    omits_default: bool = False


OMITTED = Key(omits_default=True)
"""A field that tables leave out while it has its default."""
MOST = 10**9
"""The highest count: no corpus has as many images, no vector as many numbers, and int64 holds the product of two."""
LARGEST = 10**9
"""The largest factor or weight: float32 holds the product of four."""
Count = Annotated[int, between(1, MOST)]
Natural = Annotated[int, between(0, MOST)]
Positive = Annotated[float, between(0, LARGEST, "(]")]
NotNegative = Annotated[float, between(0, LARGEST)]
Logit = Annotated[float, between(-3.4e38, 3.4e38)]
"""A score, which a cache has as float32."""
Share = Annotated[float, between(0, 1)]
Fraction = Annotated[float, between(0, 1, "[)")]
Width = Annotated[int, between(1, 2**16)]
"""Numbers of a vector, tokens of a text, pixels of a side."""
Repeated = Annotated[int, between(1, 1000)]
"""Layers, and rounds: each is made or run by itself, which takes time and not only memory."""
# As in NumPy's `seed`. Seeds are multiplied and added to (`Step.seed_dropout`), and torch takes 64 bits.
Seed = Annotated[int, between(0, 2**32 - 1)]


def settle_fields(config: Any, section: str = "") -> None:
    """Give each field the value that a table would give it, such as a tuple for a list; ConfigError that names
    `section.field` if a value is of another type than its annotation, is outside its range, or is no choice of its
    Literal.

    Called in `__post_init__`, so that no config exists with a wrong value, whether a table or Python gave it.
    """
    cls: Any = type(config)
    hints = _annotations(cls)
    for key, field in _fields(cls).items():
        value = _convert(hints[field.name], getattr(config, field.name), _join(section, key))
        # Past the frozen dataclass: the instance is still being made.
        object.__setattr__(config, field.name, value)
    # After the ranges of all fields, because a condition reads other fields.
    for key, field in _fields(cls).items():
        for condition in getattr(hints[field.name], "__metadata__", ()):
            is_set = getattr(config, field.name) != _default(field)
            if isinstance(condition, OnlyIf) and is_set and not condition.holds(config):
                purpose = condition.purpose.format_map(vars(config))
                raise ConfigError(f"{_join(section, key)} is for {purpose}", hint="leave it out")


def defaults_under(cls: Any, conditions: Sequence[OnlyIf]) -> dict[str, Any]:
    """The fields that have one of these conditions, by their keys, and their defaults."""
    hints, defaults = _annotations(cls), {}
    for key, field in _fields(cls).items():
        if any(mark in conditions for mark in getattr(hints[field.name], "__metadata__", ())):
            defaults[key] = _default(field)
    return defaults


def build(cls: type[T], table: Mapping[str, Any], where: str = "") -> T:
    """A frozen dataclass from a table; an unknown key, a missing key or a value of another type is a ConfigError that
    names it.

    `where` is the dotted name of the table, for messages.
    """
    known, hints = _fields(cls), _annotations(cls)  # type: ignore[arg-type]
    if unknown := next((key for key in table if key not in known), None):
        meant = _keys_like(unknown, known, hints, where)
        hint = f"did you mean {' or '.join(meant)}? " if meant else ""
        raise ConfigError(f"unknown key {_join(where, unknown)}", hint=f"{hint}known keys here: {', '.join(known)}")
    for key, field in known.items():
        if key not in table and _default(field) is dataclasses.MISSING:
            raise ConfigError(f"{_join(where, key)} is missing")
    names = {key: field.name for key, field in known.items()}
    return cls(**{names[key]: _convert(hints[names[key]], value, _join(where, key)) for key, value in table.items()})


def _keys_like(key: str, known: Mapping[str, Any], hints: Mapping[str, Any], where: str) -> list[str]:
    """What an unknown key may stand for: keys of that name in the tables of this one, or else a key that is spelled
    nearly so."""
    inside = [
        _join(_join(where, table), key)
        for table, field in known.items()
        if any(key in _fields(kind) for kind in _configs_in(hints[field.name]))
    ]
    return inside or [_join(where, near) for near in difflib.get_close_matches(key, known, n=1)]


def dotted_keys(cls: Any, prefix: str = "") -> Iterator[str]:
    """The names that `apply_sets` can set of a dataclass, those of its tables included: loss.alpha."""
    hints = _annotations(cls)
    for key, field in _fields(cls).items():
        tables = _configs_in(hints[field.name])
        if not tables:
            yield prefix + key
        for table in tables:
            yield from dotted_keys(table, f"{prefix}{key}.")


def _configs_in(hint: Any) -> list[Any]:
    """The dataclasses in a type: itself, or those of a union."""
    # The arguments of an Annotated are also constraints, which are instances of dataclasses.
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return [hint]
    return [kind for inner in typing.get_args(hint) for kind in _configs_in(inner)]


def build_document(
    cls: type[T], document: Mapping[str, Any], path: str | Path, *, error: type[DcdError], hint: str
) -> T:
    """The dataclass of a document; `error` that names the entry if one is missing or of another type.

    Further entries are ignored. A document of a stranger can have a checksum that fits.
    """
    known = _fields(cls)  # type: ignore[arg-type]
    # Such as the run that a document belongs to, which `artifacts` compares.
    try:
        return build(cls, {key: value for key, value in document.items() if key in known})
    except ConfigError as reason:
        raise error(f"{path} is not as this dcdctl writes it: {reason}", hint=hint) from reason


def to_table(value: Any) -> Any:
    """The plain JSON-able form of a config or a document, from which `build` makes it again."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        hints = _annotations(type(value))
        table = {}
        for key, field in _fields(type(value)).items():
            item = getattr(value, field.name)
            if not (_key(hints[field.name]).omits_default and item == _default(field)):
                table[key] = to_table(item)
        return table
    if isinstance(value, Mapping):
        return {to_table(key): to_table(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        # A list, as JSON and TOML give it back: a tuple would differ from the saved config.
        return [to_table(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return value.value if isinstance(value, Enum) else value


def changed_fields(config: Any) -> str:
    """A short repr of a config: the fields that differ from their defaults.

    >>> changed_fields(Key()), changed_fields(Key("R@1"))
    ('Key()', "Key(name='R@1')")
    """
    given = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value != _default(field):
            shown = changed_fields(value) if dataclasses.is_dataclass(value) else repr(value)
            given.append(f"{field.name}={shown}")
    return f"{type(config).__name__}({', '.join(given)})"


def flatten(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of nested tables by dotted names.

    >>> flatten({"seed": 1, "loss": {"terms": {"kl": 1.0}}})
    {'seed': 1, 'loss.terms.kl': 1.0}
    """
    values: dict[str, Any] = {}
    for key, value in table.items():
        values |= (
            flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) and value else {f"{prefix}{key}": value}
        )
    return values


@functools.cache
def _fields(cls: Any) -> dict[str, dataclasses.Field[Any]]:
    """The fields of a dataclass by their keys."""
    # Cached, because a document of many shards is built entry by entry, and type hints are slow to resolve.
    hints = _annotations(cls)
    return {_key(hints[field.name]).name or field.name: field for field in dataclasses.fields(cls)}


def _key(hint: Any) -> Key:
    return next((option for option in getattr(hint, "__metadata__", ()) if isinstance(option, Key)), Key())


def _default(field: dataclasses.Field[Any]) -> Any:
    """MISSING if the field has none."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


@functools.cache
def _annotations(cls: Any) -> dict[str, Any]:
    """The type of each field, with constraints."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def _convert(hint: Any, value: Any, where: str) -> Any:
    """The value that a table gives for a type; a value that is of the type already stays. ConfigError that names
    `where` if it is of another type, or if a constraint does not admit it."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        inner, *marks = arguments
        for mark in marks:
            if isinstance(mark, OneOf):
                return _build_one_of(typing.get_args(inner), mark.tag, value, where)
        value = _convert(inner, value, where)
        for mark in marks:
            if isinstance(mark, Constraint) and not mark.admits(value):
                raise ConfigError(f"{where} must {mark.demand}, got {to_table(value)!r}")
        return value
    if origin in (types.UnionType, typing.Union):
        # TOML has no null, so "none" unsets a field; a text may really be "none".
        if type(None) in arguments and (value is None or (value == "none" and str not in arguments)):
            return None
        errors: list[ConfigError] = []
        choices: list[str] = []
        for kind in arguments:
            if kind is types.NoneType:
                continue
            # The first error names the first type, and the hint what else is a choice.
            if errors and typing.get_origin(kind) is Literal:
                choices += typing.get_args(kind)
            try:
                return _convert(kind, value, where)
            except ConfigError as error:
                errors.append(error)
        raise ConfigError(errors[0].args[0], hint=errors[0].hint or (f"or {', '.join(choices)}" if choices else ""))
    if origin is Literal:
        _check_choice(arguments, value, where)
        return value
    if isinstance(hint, type) and issubclass(hint, Enum):
        _check_choice([member.value for member in hint], value, where)
        return hint(value)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if isinstance(value, hint):
            return value
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where} must be a table, got {value!r}")
        return build(hint, value, where)
    if origin in (tuple, list):
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{where} must be a list, got {value!r}")
        kinds = _item_hints(arguments, value, where) if origin is tuple else arguments * len(value)
        items = zip(kinds, value, strict=True)
        return origin(_convert(kind, item, f"{where}[{i}]") for i, (kind, item) in enumerate(items))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            way = f"for example {{ {value} = 1.0 }}" if arguments[1] == Positive else ""
            raise ConfigError(f"{where} must be a table, got {value!r}", hint=way)
        key_kind, kind = arguments
        return {_convert(key_kind, key, where): _convert(kind, item, _join(where, key)) for key, item in value.items()}
    if hint is Path and isinstance(value, str):
        return Path(value)
    # TOML distinguishes 1 from 1.0, and users write either for a float. A bool is an int in Python, but no number in a
    # table.
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        if abs(value) > sys.float_info.max:
            raise ConfigError(f"{where} must be at most {sys.float_info.max}, got a number of {len(str(value))} digits")
        return float(value)
    if hint is not Any and (not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool)):
        raise ConfigError(f"{where} must be {hint.__name__}, got {value!r}")
    return value


def _build_one_of(kinds: Sequence[Any], tag: str, value: Any, where: str) -> Any:
    """The config that a table's entry `tag` names; the error for a field of other ones says which have it."""
    if isinstance(value, tuple(kinds)):
        return value
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where} must be a table, got {value!r}")
    by_tag = {_default(_fields(kind)[tag]): kind for kind in kinds}
    chosen = value.get(tag, next(iter(by_tag)))
    _check_choice(list(by_tag), chosen, _join(where, tag))
    table = {}
    for key, item in value.items():
        others = {name: kind for name, kind in by_tag.items() if key in _fields(kind)}
        if chosen in others or not others:
            table[key] = item
            continue
        *most, last = others
        default = to_table(_default(_fields(others[last])[key]))
        # Unset, as where an assignment changes the kind of a config that had it.
        if item != default:
            have_it = f"{', '.join(most)} and {last} {where}s have it" if most else f"a {last} {where} has it"
            raise ConfigError(
                f"{_join(where, key)} is unknown in a {chosen} {where}; {have_it}",
                hint=f"leave it out, or set it to {default!r}",
            )
    return build(by_tag[chosen], table, where)


def _check_choice(choices: Sequence[Any], value: Any, where: str) -> None:
    if value not in choices:
        raise ConfigError(f"{where} must be one of {', '.join(map(str, choices))}, got {value!r}")


def _item_hints(arguments: Sequence[Any], value: Sequence[Any], where: str) -> Sequence[Any]:
    """The type of each item of a tuple; ConfigError if the tuple has a fixed length and the value another."""
    if arguments[-1] is Ellipsis:
        return [arguments[0]] * len(value)
    if len(value) != len(arguments):
        raise ConfigError(f"{where} must have {len(arguments)} items, got {to_table(value)!r}")
    return arguments


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key
