"""What libraries do again for every tiny model and command, done once or left out from the import of this module on. No
result changes; DCDCTL_PLAIN_TESTS=1 leaves the libraries as they are."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import typer.testing
from processes import IS_PLAIN
from transformers import PreTrainedConfig, core_model_loading


def _make_quick() -> None:
    # A runner of typer makes the tree of all commands from their signatures, which takes longer than most commands of
    # the tests.
    typer.testing._get_command = functools.cache(typer.testing._get_command)
    # transformers compiles an expression for the name of every tensor that it loads, which are more than Python keeps.
    re._MAXCACHE = 2**15  # type: ignore[attr-defined]
    # It also lets four threads copy the tensors, which takes longer than the copies where tensors are tiny.
    core_model_loading.is_env_variable_true = _is_true
    # And it makes every model without memory first, where torch takes a fifth of the time of loading a tiny one to draw
    # no numbers.
    for name in ("kaiming_uniform_", "normal_", "ones_", "uniform_", "zeros_"):
        setattr(torch.nn.init, name, _unless_meta(getattr(torch.nn.init, name)))
    # And it writes every configuration that it reads into a message that nobody sees.
    PreTrainedConfig.__repr__ = object.__repr__  # type: ignore[method-assign]


def _is_true(name: str, is_true: Callable[[str], bool] = core_model_loading.is_env_variable_true) -> bool:
    return name == "HF_DEACTIVATE_ASYNC_LOAD" or is_true(name)


def _unless_meta(init: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    @functools.wraps(init)
    def run(tensor: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        return tensor if tensor.is_meta else init(tensor, *arguments, **options)

    return run


if not IS_PLAIN:
    _make_quick()


@contextmanager
def operators_once() -> Iterator[None]:
    """All exports in this block use one table of torch's ONNX operators, which torch makes for each file in half a
    second.

    Its import takes seconds, so only a process that exports enters the block.
    """
    if IS_PLAIN:
        yield
        return
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(functools.cache(ONNXRegistry.from_torchlib)))
        yield
