"""Reading PyTorch checkpoints without running what is in them."""

from __future__ import annotations

import pickle
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dcdctl.core.errors import ModelError

MATCH_ROW = 1
"""The row of the two-way matching head that says "match"."""
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


def ranking_head(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The head that ranks: `rank_output`, and in a pre-training checkpoint, which has none, the matching row of its matching head."""
    head = {name: state[name] for name in ("rank_output.weight", "rank_output.bias") if name in state}
    for part in ("weight", "bias"):
        matching = state.get(f"itm_score.fc.{part}")
        if matching is not None:
            head.setdefault(f"rank_output.{part}", matching[MATCH_ROW : MATCH_ROW + 1].clone())
    return head


def check_complete(source: object, missing: Iterable[str], what: str) -> None:
    """ModelError that lists the parameters of `what` that a checkpoint lacks, if there are any."""
    names = sorted(missing)
    if names:
        more = f" and {len(names) - 8} more" if len(names) > 8 else ""
        raise ModelError(f"{source} lacks {len(names)} parameters of {what}: {', '.join(names[:8])}{more}")
