"""torch's table of ONNX operators, made once instead of for each file that it exports, which takes half a second."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def operators_once() -> Iterator[None]:
    """All exports in this block use one table. Its import takes seconds, so only a process that exports enters the block."""
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(functools.cache(ONNXRegistry.from_torchlib)))
        yield
