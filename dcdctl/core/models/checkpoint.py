"""Weights on disk: saving, and reading a .ckpt of another program without running its code."""

from __future__ import annotations

import pickle
import types
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from dcdctl.core import files
from dcdctl.core.errors import DcdError, ModelError, first_line
from dcdctl.core.models.protocols import Table
from dcdctl.core.models.references.loading import silence_transformers

WEIGHTS_FILE = "model.safetensors"
# Lightning before 1.5 uses classes as keys of its callbacks, so plain unpickling of such a file needs that Lightning
# installed.
_REBUILDERS = {
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_parameter"),
    ("collections", "OrderedDict"),
}
# Placeholders would make these harmless too. A checkpoint that names them is refused because weights never need them.
_HOSTILE_MODULES = {"os", "posix", "nt", "sys", "subprocess", "shutil", "importlib", "runpy", "ctypes", "socket"}
_HOSTILE_BUILTINS = {"eval", "exec", "compile", "__import__", "open", "getattr", "setattr"}


def check_complete(source: object, missing: Iterable[str], what: str) -> None:
    """ModelError that lists the parameters of `what` that a checkpoint lacks, if there are any."""
    names = sorted(missing)
    if names:
        # Eight show which part is missing; a whole encoder has hundreds.
        more = f" and {len(names) - 8} more" if len(names) > 8 else ""
        raise ModelError(f"{source} lacks {len(names)} parameters of {what}: {', '.join(names[:8])}{more}")


def check_finite(
    state: Mapping[str, Tensor], source: object, *, error: type[DcdError] = ModelError, hint: str = ""
) -> None:
    """`error` that names the first tensor with a number that is not finite; ModelError by default."""
    for name, tensor in sorted(state.items()):
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        # The extremes are NaN if any number is, and need no copy: 0.05 s for 100 million numbers on two cores.
        if not all(extreme.isfinite() for extreme in tensor.aminmax()):
            num_bad = int(tensor.numel() - tensor.isfinite().sum())
            raise error(
                f"{source}: {num_bad:,} of {tensor.numel():,} numbers of the weights {name} are not finite", hint=hint
            )


def save_pretrained(network: Any, folder: Path, *, half: bool = False) -> None:
    """Write the configuration and the weights of a network of transformers, as it reads them; float16 where `half`."""
    state = {name: tensor.half() for name, tensor in network.state_dict().items()} if half else None
    with silence_transformers():
        network.save_pretrained(folder, state_dict=state)


def to_dtype(state: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """The state with its floating-point tensors in this type."""
    return {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in state.items()}


def save_state(module: nn.Module, path: Path, *, half: bool = False) -> None:
    """Write the weights of a module, float32, or float16 where `half`."""
    state = to_dtype(module.state_dict(), torch.float16 if half else torch.float32)
    # Copies, because safetensors refuses tensors that share memory or are not contiguous.
    save_file({name: each.clone(memory_format=torch.contiguous_format) for name, each in state.items()}, path)


def save_own_format(network: nn.Module, config: Table, folder: Path, *, half: bool = False) -> None:
    """Write config.json and the weights of a network that no other library reads."""
    files.write_json(folder / "config.json", config)
    save_state(network, folder / WEIGHTS_FILE, half=half)


class _HostileError(Exception):
    """A checkpoint names a function that could run code; the message is that name."""


class _Inert(dict[object, object]):
    """Placeholder for an object of an unknown class: keeps the entries it is given, and does nothing."""

    def __init__(self, *arguments: object, **named: object) -> None:
        super().__init__()
        for argument in arguments:
            self.__setstate__(argument)

    def __hash__(self) -> int:  # type: ignore[override]
        """Objects may be keys, as members of an enumeration are."""
        return id(self)

    def __setstate__(self, state: object) -> None:
        if isinstance(state, dict):
            self.update(state)

    def append(self, item: object) -> None:
        """Unpickling a list subclass adds its items with this method, or all with `extend`; they are dropped."""

    extend = append


class _InertUnpickler(pickle.Unpickler):
    """Rebuilds tensors and plain containers. Every other class or function becomes a placeholder, so no code of the
    file is called."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _REBUILDERS:
            return super().find_class(module, name)
        # A dotted name may lead from one module to another.
        names = [module.partition(".")[0], *name.split(".")]
        namespaces, last = names[:-1], names[-1]
        is_builtin = last in _HOSTILE_BUILTINS and not {"builtins", "__builtin__", "io"}.isdisjoint(namespaces)
        if is_builtin or not _HOSTILE_MODULES.isdisjoint(namespaces):
            raise _HostileError(f"{module}.{name}")
        return type(name, (_Inert,), {"__module__": __name__})


# torch.load takes a module with these two names: it reads zip files with `Unpickler`, and files before torch 1.6 also
# with `load`.
_INERT_PICKLE = types.ModuleType("inert_pickle")
_INERT_PICKLE.__dict__.update(
    Unpickler=_InertUnpickler, load=lambda file, **options: _InertUnpickler(file, **options).load()
)


def read_checkpoint(path: Path) -> Any:
    """The contents of a .ckpt on the CPU: tensors and plain containers; objects of other classes become inert
    dictionaries.

    ModelError for a file that is no checkpoint, and for one that would run code if it were unpickled.
    """
    try:
        # torch warns of old protocols and of classes without source, which do not affect tensors.
        with warnings.catch_warnings(action="ignore", category=UserWarning):
            try:
                return torch.load(path, map_location="cpu", weights_only=True)
            except pickle.UnpicklingError:
                # The safe reader refuses Lightning's classes. The inert unpickler replaces them, and calls no code of
                # the file either.
                return torch.load(path, map_location="cpu", weights_only=False, pickle_module=_INERT_PICKLE)
    except _HostileError as error:
        raise ModelError(
            f"{path} is refused: it asks for {error}, which can run any code and which no weights need; no code was "
            "run",
            hint="get the checkpoint from a source you trust",
        ) from error
    # The error of a damaged file depends on where the damage is.
    except (
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        ValueError,
        TypeError,
        AttributeError,
        LookupError,
    ) as error:
        raise ModelError(
            f"{path} is not a PyTorch checkpoint: {first_line(error)}", hint="is the download complete?"
        ) from error
