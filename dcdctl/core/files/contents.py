"""What files hold: JSON, arrays of numbers, and digests of either."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from dcdctl.core.errors import DcdError, InputError, first_line
from dcdctl.core.files.access import unreadable
from dcdctl.core.files.atomic import write_text

if TYPE_CHECKING:
    from numpy.typing import NDArray


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically, with the keys in the given order."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


@overload
def read_json(path: Path, *, error: type[DcdError] = InputError, hint: str = "") -> dict[str, Any]: ...
@overload
def read_json(
    path: Path, *, kind: type[list[Any]], error: type[DcdError] = InputError, hint: str = ""
) -> list[Any]: ...
def read_json(path: Path, *, kind: type[Any] = dict, error: type[DcdError] = InputError, hint: str = "") -> Any:
    """The JSON object in a file, or the JSON array for `kind=list`.

    `error` with `hint` names the file if it is missing, cannot be read, is not JSON, or holds a value of another kind.
    """
    try:
        text = path.read_bytes()
    except OSError as reason:
        raise unreadable(path, reason, error=error, hint=hint) from reason
    return parse_json(text, str(path), kind, error=error, hint=hint)


def parse_json(text: str | bytes, name: str, kind: type[Any], *, error: type[DcdError], hint: str) -> Any:
    """The JSON value in a text; `error`, in which it is called `name`, if it is not JSON, or not of the kind."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as reason:  # json gives up on deep nesting with a RecursionError
        raise error(f"{name} is not JSON: {reason}", hint=hint) from reason
    if not isinstance(value, kind):
        expected = "array" if kind is list else "object"
        raise error(f"{name} holds no JSON {expected}", hint=hint)
    return value


def map_arrays(path: Path, *expected: tuple[Any, tuple[int | None, ...]]) -> list[NDArray[Any]]:
    """The arrays of a .npy file, one after another, memory-mapped; `expected` are their types and shapes, None for any
    length. ValueError if the file holds anything else: it may come from a stranger, and ask for any memory."""
    import numpy as np  # which `dcdctl --help` does not need

    num_bytes = path.stat().st_size
    arrays: list[NDArray[Any]] = []
    with path.open("rb") as file:
        for type_, lengths in expected:
            element = np.dtype(type_)
            try:
                if np.lib.format.read_magic(file) != (1, 0):
                    raise ValueError("its version is not 1.0")
                shape, is_by_columns, found = np.lib.format.read_array_header_1_0(file)
            # A header is an expression of Python, which may be nested too deeply to be read.
            except (ValueError, TypeError, RecursionError, MemoryError) as error:
                raise ValueError(f"it is no array of numbers: {first_line(error)[:200]}") from error
            is_shape = len(shape) == len(lengths) and min(shape, default=0) >= 0
            is_shape = is_shape and all(length in (None, axis) for length, axis in zip(lengths, shape, strict=True))
            if found != element or not is_shape:
                wanted = tuple("any" if length is None else length for length in lengths)
                raise ValueError(f"it has {found} of shape {shape}, expected {element} of shape {wanted}")
            offset = file.tell()
            stop = offset + element.itemsize * math.prod(shape)
            if stop > num_bytes:
                raise ValueError(f"it ends before its {math.prod(shape):,} numbers")
            file.seek(stop)
            if stop == offset:  # an empty array cannot be mapped
                arrays.append(np.empty(shape, element))
                continue
            order: Literal["C", "F"] = "F" if is_by_columns else "C"
            # Plain arrays, because indexing a np.memmap takes longer.
            arrays.append(np.asarray(np.memmap(path, element, "r", offset, shape, order)))
        if file.tell() != num_bytes:
            raise ValueError("it has bytes behind its numbers")
    return arrays


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of(value: Any) -> str:
    """The SHA-256 of a JSON-able value, in hex; it does not depend on the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
