"""What travels to the workers of a Ray cluster, and the errors that come back."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import ray
from ray import cloudpickle
from ray import exceptions as failures

import dcdctl
from dcdctl.core.engines.engine import cannot_travel
from dcdctl.core.engines.ray_worker import versions
from dcdctl.core.errors import DcdError, InputError, MissingError, StaleError, first_line

_STORE_HINT = "start Ray with more: ray start --object-store-memory BYTES"
STORE_FULL = (failures.ObjectStoreFullError, failures.OutOfDiskError)
"""A node has no room for an object."""


def put_maker(make_worker: Callable[[], Any]) -> Any:
    """The reference of what makes a worker, with its model and with the user's own modules, which other nodes lack."""
    own = _own_modules()
    for module in own:
        cloudpickle.register_pickle_by_value(module)
    try:
        pickled = cloudpickle.dumps(make_worker)
    except Exception as error:
        raise cannot_travel(error) from error
    finally:
        for module in own:
            cloudpickle.unregister_pickle_by_value(module)
    try:
        return ray.put(pickled)
    except STORE_FULL as error:
        raise store_error("the model") from error


def _own_modules() -> list[ModuleType]:
    """The loaded modules of the current folder, in which `module:function` is found."""
    here, installed = Path.cwd(), (Path(sys.prefix), Path(dcdctl.__file__).parent)
    own = []
    for name, module in list(sys.modules.items()):
        path = Path(getattr(module, "__file__", None) or "/")
        is_installed = any(path.is_relative_to(folder) for folder in installed)
        if name != "__main__" and path.is_relative_to(here) and not is_installed:
            own.append(module)
    return own


def cause_of(error: failures.RayTaskError, node: str) -> BaseException:
    """What a worker raised: an error that a user can put right, else that of Ray, which has the traceback."""
    cause = error.cause
    if isinstance(cause, STORE_FULL):
        return InputError(f"Ray's object store is too small: {first_line(cause)}", hint=_STORE_HINT)
    if isinstance(cause, ImportError):
        return MissingError(
            f"the node {node} lacks a package: {first_line(cause)}", hint="install the same packages on all nodes"
        )
    return cause if isinstance(cause, DcdError) else error


def store_error(what: str) -> InputError:
    """The error for an object that no node has room for."""
    return InputError(f"Ray's object store is too small for {what}", hint=_STORE_HINT)


def check_versions(node: str, theirs: dict[str, str]) -> None:
    """StaleError for a node whose software is not that of this process."""
    ours = versions()
    if other := [name for name in ours if theirs.get(name) != ours[name]]:
        differences = ", ".join(f"{name} {theirs.get(name)} there and {ours[name]} here" for name in other)
        raise StaleError(
            f"the node {node} would compute with other software: {differences}",
            hint="install the same versions on all nodes",
        )
