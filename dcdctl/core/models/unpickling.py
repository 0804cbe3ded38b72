"""Reading PyTorch checkpoints without running what is in them.

What keeps the reader safe is that nothing a file names is called, but for the rebuilding of tensors. That a file which names
what could only be meant to run is refused as well is for the user to know what they have got.
"""

from __future__ import annotations

import pickle
import types
import warnings
from pathlib import Path
from typing import Any

import torch

from dcdctl.core.errors import ModelError

# Lightning before 1.5 keys its callbacks by class, so reading such a file as it was meant to needs that Lightning installed.
_REBUILDERS = {
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_parameter"),
    ("collections", "OrderedDict"),
}
_HOSTILE_MODULES = {
    *("os", "posix", "nt", "sys", "subprocess", "_posixsubprocess", "commands", "shutil", "pty", "signal"),
    *("importlib", "_frozen_importlib", "imp", "runpy", "pkgutil", "code", "codeop", "ctypes", "_ctypes"),
    *("pdb", "bdb", "timeit", "trace", "profile", "cProfile", "doctest", "pydoc"),
    *("pip", "ensurepip", "venv", "setuptools", "socket", "_socket", "webbrowser", "pickle", "_pickle", "marshal"),
}
_BUILTINS = {"builtins", "__builtin__", "io", "_io"}
_HOSTILE_BUILTINS = {
    *("eval", "exec", "execfile", "compile", "__import__", "open", "file", "input", "breakpoint"),
    *("getattr", "setattr", "delattr", "globals", "locals", "vars", "apply"),
}


class _HostileError(Exception):
    """A checkpoint names what would run something; the message is that name."""


class _Inert(dict[Any, Any]):
    """Stands for an object of an unknown class: holds the entries it is given, and does nothing."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__()
        for argument in arguments:
            self.__setstate__(argument)

    def __hash__(self) -> int:  # type: ignore[override]
        """Objects may be keys, as members of an enumeration are."""
        return id(self)

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.update(state)

    def append(self, item: Any) -> None:
        """Unpickling a list subclass adds its items so; they are dropped."""

    def extend(self, items: Any) -> None:
        """As `append`."""


class _InertUnpickler(pickle.Unpickler):
    """Knows tensors and plain containers; every other class or function becomes a placeholder, so nothing from the file is called."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _REBUILDERS:
            return super().find_class(module, name)
        if _is_hostile(module, name):
            raise _HostileError(f"{module}.{name}")
        return type(name, (_Inert,), {"__module__": __name__})


_INERT_PICKLE = types.ModuleType("inert_pickle")
_INERT_PICKLE.__dict__.update(Unpickler=_InertUnpickler, load=lambda file, **options: _InertUnpickler(file, **options).load())


def _is_hostile(module: str, name: str) -> bool:
    """Whether a checkpoint can name this only in order to run something; a dotted name may lead from one module to another."""
    *through, last = name.split(".")
    spaces = {module.partition(".")[0], *through}
    return not spaces.isdisjoint(_HOSTILE_MODULES) or (last in _HOSTILE_BUILTINS and not spaces.isdisjoint(_BUILTINS))


def read_checkpoint(path: Path) -> Any:
    """The contents of a .ckpt on the CPU: tensors and plain containers; objects of other classes come as inert dictionaries.

    ModelError for what is no checkpoint, and for one that would run something if it were unpickled as it stands.
    """
    try:
        # What torch warns of, old protocols and classes without source, is no matter here.
        with warnings.catch_warnings(action="ignore", category=UserWarning):
            try:
                return torch.load(path, map_location="cpu", weights_only=True)
            except pickle.UnpicklingError:
                return torch.load(path, map_location="cpu", weights_only=False, pickle_module=_INERT_PICKLE)
    except _HostileError as error:
        raise ModelError(
            f"{path} is refused: it asks for {error}, which can run anything and which no weights need; nothing of it was run",
            hint="get the checkpoint from a source you trust",
        ) from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, TypeError, AttributeError, IndexError, KeyError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(f"{path} is not a PyTorch checkpoint: {lines[0]}", hint="is the download complete?") from error
