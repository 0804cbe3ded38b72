"""How two models are told apart."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from dcdctl.core import files


def digest_of_model(model: nn.Module, settings: Mapping[str, Any], *, without: str = "") -> str:
    """SHA-256, in hex, of the name, type, shape and bytes of all that a model saves, and of JSON-able settings.

    `without` names a part that is not saved with the model.
    """
    digest = hashlib.sha256()
    for name, saved in sorted(model.state_dict().items()):
        if without and name.startswith(f"{without}."):
            continue
        tensor = saved.cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    digest.update(files.digest_of(settings).encode())
    return digest.hexdigest()
