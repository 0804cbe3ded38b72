"""Frozen dataclasses from TOML tables and `--set key=value`."""

from __future__ import annotations

import dataclasses
import functools
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

from dcdctl.core.errors import ConfigError

T = TypeVar("T")


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file; ConfigError names the file and the line that is wrong."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error


def apply_sets(table: Mapping[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """The table with `a.b=value` assignments made; values are read as TOML, and as plain strings where that fails."""
    result = _copy(table)
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set expects key=value, got {assignment!r}", hint="for example --set loss.alpha=0.5")
        *parents, leaf = key.strip().split(".")
        inner = result
        for parent in parents:
            inner = inner.setdefault(parent, {})
            if not isinstance(inner, dict):
                raise ConfigError(f"--set {key}: {parent} is a value, not a table")
        inner[leaf] = parse_value(text)
    return result


def parse_value(text: str) -> Any:
    """A TOML value, or the text itself where it is none."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text.strip()


def build(cls: type[T], table: Mapping[str, Any], where: str = "") -> T:
    """An instance of a frozen dataclass; unknown keys, missing keys and values of another type are ConfigErrors that name them."""
    hints = _hints(cls)  # type: ignore[arg-type]
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = [key for key in table if key not in fields]
    if unknown:
        raise ConfigError(f"unknown key {_join(where, unknown[0])}", hint=f"known keys here: {', '.join(fields)}")
    for name, field in fields.items():
        if name not in table and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{_join(where, name)} is missing")
    return cls(**{key: _convert(hints[key], value, _join(where, key)) for key, value in table.items()})


def to_table(value: Any) -> Any:
    """The plain JSON-able form of a config."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_table(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: to_table(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [to_table(item) for item in value]
    return value.value if isinstance(value, Enum) else value


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        return _convert_to_one_of([kind for kind in arguments if kind is not type(None)], value, where)
    if origin is typing.Literal:
        if value not in arguments:
            raise ConfigError(f"{where} must be one of {', '.join(map(str, arguments))}, got {value!r}")
        return value
    if isinstance(hint, type) and issubclass(hint, Enum):
        return hint(_convert(typing.Literal[*(member.value for member in hint)], value, where))
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where} must be a table, got {value!r}")
        return build(hint, value, where)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{where} must be a list, got {value!r}")
        return tuple(_convert(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where} must be a table, got {value!r}")
        return {key: _convert(arguments[1], item, _join(where, key)) for key, item in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is not Any and (not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool)):
        raise ConfigError(f"{where} must be {hint.__name__}, got {value!r}")
    return value


def _convert_to_one_of(kinds: Sequence[Any], value: Any, where: str) -> Any:
    errors = []
    for kind in kinds:
        try:
            return _convert(kind, value, where)
        except ConfigError as error:
            errors.append(error)
    raise errors[0]


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def _copy(table: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copy(value) if isinstance(value, Mapping) else value for key, value in table.items()}
