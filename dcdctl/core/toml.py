"""TOML files, and settings as a command line has them: loss.alpha=0.5."""

from __future__ import annotations

import copy
import json
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from dcdctl.core import files
from dcdctl.core.arguments import Settings
from dcdctl.core.config import to_table
from dcdctl.core.errors import ConfigError, DcdError

T = TypeVar("T")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file; ConfigError names the file and the line that is wrong."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise files.unreadable(path, error, error=ConfigError) from error
    # Also bytes that are not UTF-8, numbers of thousands of digits, and deep nesting.
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}", hint="correct it and try again") from error


def parse_toml(path: Path, parse: Callable[[dict[str, Any]], T], sets: Sequence[str] = ()) -> T:
    """What `parse` makes of the tables of a TOML file, with `a.b=value` assignments applied.

    Its errors name the file, and say if there are assignments, one of which may be what is wrong.
    """
    table = apply_sets(read_toml(path), sets)
    try:
        return parse(table)
    except DcdError as error:
        where = f"{path.name} with overrides" if sets else path
        raise type(error)(f"{where}: {error.args[0]}", hint=error.hint) from error


def apply_sets(table: Mapping[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """A copy of the table with `a.b=value` assignments applied; a value is read as TOML, or as plain text if it is not
    TOML.

    The text none unsets a field that has no value by default.
    """
    # Deep, because assignments set values in inner tables.
    result = copy.deepcopy(dict(table))
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key.strip():
            raise ConfigError(
                f"a setting must be KEY=VALUE, got {assignment!r}", hint="write its name, an equals sign and its value"
            )
        *parents, leaf = key.strip().split(".")
        inner = result
        for parent in parents:
            inner = inner.setdefault(parent, {})
            if not isinstance(inner, dict):
                raise ConfigError(f"{key}: {parent} is a value, not a table", hint=f"set {parent} itself")
        inner[leaf] = parse_value(text)
    return result


def parse_value(text: str) -> Any:
    """The value of a TOML expression, or the text itself if it is not TOML."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    # RecursionError: deep nesting.
    except (ValueError, RecursionError):
        return text.strip()


def assignments(settings: Settings | None) -> tuple[str, ...]:
    """Settings as a command line has them.

    >>> assignments({"loss.terms": {"kl": 1.0}, "model.start": "new", "batch.size": 8, "loss.weight_group": None})
    ('loss.terms={ kl = 1.0 }', 'model.start="new"', 'batch.size=8', 'loss.weight_group="none"')
    """
    if isinstance(settings, Mapping):
        return tuple(f"{name}={toml_value(to_table(value))}" for name, value in settings.items())
    return tuple(settings or ())


def toml_value(value: Any) -> str:
    """A value as TOML. None is the text "none", which unsets a field.

    >>> toml_value({"dcd-kl": 1.0, "a b": [True, None, "x"]})
    '{ dcd-kl = 1.0, "a b" = [true, "none", "x"] }'
    """
    if value is None:
        return '"none"'
    if isinstance(value, Mapping):
        pairs = []
        for key, item in value.items():
            name = key if _BARE_KEY.fullmatch(key) else json.dumps(key)
            pairs.append(f"{name} = {toml_value(item)}")
        return f"{{ {', '.join(pairs)} }}" if pairs else "{}"
    if isinstance(value, list):
        return f"[{', '.join(map(toml_value, value))}]"
    if isinstance(value, str | bool):
        # ensure_ascii would write characters above 16 bits as pairs of surrogates, which TOML refuses. DEL must be
        # escaped in TOML, and JSON does not escape it.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)  # numbers, inf and nan are written alike in both languages
