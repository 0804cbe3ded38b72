"""Encoders compiled by torch.compile, in the forward passes that ask for it (`Compute.compile`).

A compiled encoder takes inputs of one shape: that of the first batch. A batch with a few rows less is padded to it. Any
other batch, such as the last one of a corpus, is computed without the compiled encoder, because compiling takes a
minute or more. So only encoders whose inputs have one shape are compiled: images of one size, and captions that are
padded to a fixed length.

Shape letters: N rows of a batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dcdctl.core import devices
from dcdctl.core.errors import ModelError, is_out_of_memory

BACKEND = "inductor"
"""torch's own; tests take one that generates no code."""
FEWEST_ROWS = 8
"""Smaller batches are not compiled: single queries, and the trial batches of a pass."""
ROWS_MULTIPLE = 8
"""In a training the first number of rows is rounded up to a multiple, because steps differ a little in the number of
their images."""
PADDED_SHARE = 0.75
"""Smallest share of the compiled rows that is padded; below it, the padding takes more time than the compiled encoder
saves."""
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}
"""Largest difference of a compiled row from the same row without compilation, relative to its length; by the type to
compute in."""

Run = Callable[[Any, Tensor], Tensor]
"""An encoder and its N inputs to N outputs."""
HINT = "leave --compile out"


class _HasSides(Protocol):
    @property
    def compiled_sides(self) -> tuple[str, ...]: ...


class _Programs(dict[tuple[Any, ...], "_Program"]):
    """The compiled forms of an encoder, by side and mode. A copy of the encoder has other weights, and starts without
    any."""

    def __deepcopy__(self, memo: dict[int, Any]) -> _Programs:
        return _Programs()


@dataclass(frozen=True)
class _Program:
    run: Run
    shape: tuple[int, ...]

    def fits(self, rows: Tensor) -> bool:
        """Whether the batch has the shape that was compiled, or a few rows less."""
        most = self.shape[0]
        return tuple(rows.shape[1:]) == self.shape[1:] and PADDED_SHARE * most <= len(rows) <= most

    def __call__(self, encoder: nn.Module, rows: Tensor) -> Tensor:
        return self.run(encoder, _padded(rows, self.shape[0]))[: len(rows)]


def require_compiled_sides(*loaded: _HasSides) -> None:
    """ModelError unless one of these models has an encoder that can be compiled."""
    if not any(model.compiled_sides for model in loaded):
        names = " and ".join(type(model).__name__ for model in loaded)
        raise ModelError(f"{names}: no encoder has inputs of one shape, so none can be compiled", hint=HINT)


def run_encoder(side: str, encoder: nn.Module, run: Run, rows: Tensor) -> Tensor:
    """`run(encoder, rows)`, by a compiled form of it in a forward pass that asks for it.

    The first compiled batch of each mode is also computed without compilation: ModelError if the two differ by more
    than rounding, or if the encoder cannot be compiled.
    """
    if not devices.is_compiling_asked():
        return run(encoder, rows)
    programs: _Programs = encoder.__dict__.setdefault("compiled_programs", _Programs())
    mode = _mode(side, encoder, rows)
    program = programs.get(mode)
    if program is None:
        if len(rows) < FEWEST_ROWS:
            return run(encoder, rows)
        program = _compiled(run, rows)
        found = _checked(program, run, encoder, rows)
        # Only now: a batch that does not fit into memory is halved, and its half decides the shape.
        programs[mode] = program
        return found
    return program(encoder, rows) if program.fits(rows) else run(encoder, rows)


def _mode(side: str, encoder: nn.Module, rows: Tensor) -> tuple[Any, ...]:
    """All that torch would compile an encoder again for, besides the shape of its inputs."""
    device = rows.device.type
    autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    passes = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), rows.is_inference()
    return side, *passes, autocast, encoder.training, rows.device, rows.dtype


def _compiled(run: Run, rows: Tensor) -> _Program:
    assert isinstance(run, FunctionType)
    # torch counts compilations by code object, and stops at eight: the models of a long program would share one.
    own = FunctionType(run.__code__.replace(), run.__globals__, run.__name__, run.__defaults__, run.__closure__)
    # With this option dropout draws what it draws without compilation, so both passes of a split batch drop the same.
    options: dict[str, Any] | None = {"fallback_random": True} if BACKEND == "inductor" else None
    count = -(-len(rows) // ROWS_MULTIPLE) * ROWS_MULTIPLE if torch.is_grad_enabled() else len(rows)
    return _Program(
        torch.compile(own, backend=BACKEND, dynamic=False, fullgraph=True, options=options), (count, *rows.shape[1:])
    )


def _checked(program: _Program, run: Run, encoder: nn.Module, rows: Tensor) -> Tensor:
    """The outputs of the compiled encoder; ModelError unless those of the encoder are equal up to rounding."""
    device = rows.device
    autocast = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
    tolerance = TOLERANCES[autocast or torch.float32]
    name = type(encoder).__name__
    # Both draw the same dropout. Weights that are cast without a graph must not stay in the cache of the autocast
    # around this.
    with (
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        torch.no_grad(),
        torch.autocast(device.type, autocast, enabled=autocast is not None, cache_enabled=False),
    ):
        expected = run(encoder, _padded(rows, program.shape[0]))[: len(rows)]
    from torch._dynamo.exc import TorchDynamoException  # only here: the import takes seconds

    try:
        found = program(encoder, rows)
    except TorchDynamoException as error:
        if is_out_of_memory(error):
            raise
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ModelError(f"{name} cannot be compiled: {reason}", hint=HINT) from error
    difference = _largest_difference(found.detach(), expected)
    if not difference <= tolerance:
        problem = (
            f"the compiled {name} differs from the one without compilation by {difference:.1e} of an output's length"
        )
        raise ModelError(
            f"{problem}, at most {tolerance:.0e} is rounding", hint=f"{HINT}; a report to PyTorch may help others"
        )
    return found


def _largest_difference(found: Tensor, expected: Tensor) -> float:
    """The largest distance of two equal rows, relative to the length of the row."""
    found, expected = found.flatten(1).float(), expected.flatten(1).float()
    return float(((found - expected).norm(dim=1) / expected.norm(dim=1).clamp(min=1e-12)).max())


def _padded(rows: Tensor, count: int) -> Tensor:
    """The rows, and the last one again up to `count` of them."""
    missing = count - len(rows)
    if not missing:
        return rows
    # In the mode that the rows were made in: to torch a tensor of inference mode is another input, for which it would
    # compile again.
    with torch.inference_mode(rows.is_inference()):
        return torch.cat([rows, rows[-1:].expand(missing, *rows.shape[1:])])
