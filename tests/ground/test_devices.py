"""Compute settings: autocast follows the precision."""

from __future__ import annotations

import pytest
import torch

from dcdctl.core.devices import Compute


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_autocast_uses_the_set_precision(precision):
    with Compute(precision=precision).autocast():
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == getattr(torch, precision)


def test_weights_cast_without_gradients_are_not_reused_by_the_next_autocast_block():
    weight, compute = torch.ones(2, 2, requires_grad=True), Compute(precision="bfloat16")
    with torch.no_grad(), compute.autocast():
        torch.ones(2, 2) @ weight
    with compute.autocast():
        (torch.ones(2, 2) @ weight).sum().backward()
    assert weight.grad is not None
