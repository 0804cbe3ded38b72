"""Where things are computed: devices and precisions as the user types them, and the versions of what computes."""

from __future__ import annotations

import dataclasses
import platform
from importlib.metadata import version
from typing import Any, TypeVar

import torch

from dcdctl import __version__
from dcdctl.core.errors import ConfigError

T = TypeVar("T")
PRECISIONS = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def choose(name: str) -> torch.device:
    """The device of a name; `auto` is the GPU where there is one. ConfigError if there is no such device here."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"device {name} cannot be used here: {reason}", hint="try --device cpu or --device auto") from error
    return device


def precision(name: str) -> str:
    """The torch name of a precision."""
    if name not in PRECISIONS:
        raise ConfigError(f"precision must be one of {', '.join(PRECISIONS)}, got {name}")
    return PRECISIONS[name]


def moved(batch: T, device: torch.device) -> T:
    """A copy of a dataclass, every field of which has a `.to`, on another device."""
    fields: Any = dataclasses.fields(batch)  # type: ignore[arg-type]
    return dataclasses.replace(batch, **{field.name: getattr(batch, field.name).to(device) for field in fields})  # type: ignore[type-var]


def versions() -> dict[str, str]:
    """What numbers depend on besides their inputs."""
    packages = {name: version(name) for name in ("torch", "transformers", "numpy", "pillow")}
    return {"dcdctl": __version__, "python": platform.python_version(), **packages, "machine": platform.machine()}
