"""How two models are told apart."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from dcdctl.core import files


def digest_of_model(model: nn.Module, settings: Mapping[str, Any]) -> str:
    """SHA-256, in hex, of every parameter's name, type, shape and bytes, and of JSON-able settings."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        tensor = parameter.detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    digest.update(files.digest_of(settings).encode())
    return digest.hexdigest()
