"""Reading PyTorch checkpoints without running what is in them."""

from __future__ import annotations

import pickle
import types
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


class _Inert(dict[Any, Any]):
    """Stands for an object of an unknown class: holds the entries it is given, and does nothing."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.update(state)

    def append(self, item: Any) -> None:
        """Unpickling a list subclass adds its items so; they are dropped."""

    def extend(self, items: Any) -> None:
        """As `append`."""


class _InertUnpickler(pickle.Unpickler):
    """Knows tensors and plain containers; every other class becomes a placeholder, so nothing from the file is called."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _REBUILDERS:
            return super().find_class(module, name)
        return type(name, (_Inert,), {"__module__": __name__})


_INERT_PICKLE = types.ModuleType("inert_pickle")
_INERT_PICKLE.__dict__.update(Unpickler=_InertUnpickler, load=lambda file, **options: _InertUnpickler(file, **options).load())


def read_checkpoint(path: Path) -> Any:
    """The contents of a .ckpt on the CPU: tensors and plain containers; objects of other classes come as inert dictionaries."""
    try:
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:
            return torch.load(path, map_location="cpu", weights_only=False, pickle_module=_INERT_PICKLE)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, TypeError, AttributeError, IndexError, KeyError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(f"{path} is not a PyTorch checkpoint: {lines[0]}", hint="is the download complete?") from error
