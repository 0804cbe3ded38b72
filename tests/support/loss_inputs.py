"""Golden values of the released losses, and random logits."""

from __future__ import annotations

import json

import torch
from hypothesis import strategies as st
from paths import FIXTURES
from torch import Tensor

# From the released code (DCD commit fbb5ff0), fp32 on a CPU.
GOLDEN = json.loads((FIXTURES / "dcd_golden_a.json").read_text(encoding="utf-8"))
CLOSE = {"rtol": 1e-5, "atol": 1e-6}
SEEDS = st.integers(0, 2**32 - 1)


def tensor(values: object, dtype: torch.dtype = torch.float32) -> Tensor:
    """A golden value: numbers, in lists or not, with NaN and infinity as strings."""
    if isinstance(values, list):
        return torch.stack([tensor(value, dtype) for value in values])
    return torch.tensor(float(values), dtype=dtype)


def draw(seed: int, *shape: int, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
