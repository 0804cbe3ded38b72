"""Names of devices and precisions as the user types them."""

from __future__ import annotations

import torch

from dcdctl.core.errors import ConfigError

PRECISIONS = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def choose(name: str) -> torch.device:
    """The device of a name; `auto` is the GPU where there is one. ConfigError if there is no such device here."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {name} cannot be used here: {str(error).splitlines()[0]}", hint="try --device cpu or --device auto") from error
    return device


def precision(name: str) -> str:
    """The torch name of a precision."""
    if name not in PRECISIONS:
        raise ConfigError(f"precision must be one of {', '.join(PRECISIONS)}, got {name}")
    return PRECISIONS[name]
