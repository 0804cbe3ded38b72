"""Arguments of the Python functions as the core takes them, and the progress bars of notebooks."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from dcdctl.core import devices
from dcdctl.core.devices import Compute
from dcdctl.core.progress import Advance, OnStep, Track, Watch, silent, step_bar

Ref = str | os.PathLike[str]
"""A path, a URL, or the name of a model; runs, caches, corpora and indexes name their folder."""
Overrides = Mapping[str, Any]
"""Settings by dotted name: {"optimizer.steps": 20}."""
say = logging.getLogger("dcdctl").warning
"""Shows a line that a command would print as a message."""


def path(ref: Ref) -> Path:
    """The path that a reference names; ~ is the user's folder."""
    return Path(ref).expanduser()


def optional_path(ref: Ref | None) -> Path | None:
    """The same where there may be none."""
    return None if ref is None else path(ref)


def many(refs: Ref | Sequence[Ref] | None) -> list[str]:
    """The names of one reference, of several, or of none."""
    if refs is None:
        return []
    return [os.fspath(refs)] if isinstance(refs, str | os.PathLike) else [os.fspath(ref) for ref in refs]


def assignments(overrides: Overrides | None) -> tuple[str, ...]:
    """Overrides as the options of a command.

    >>> assignments({"loss.terms": {"kl": 1.0}, "model.start": "new", "batch.size": 8, "loss.weight_group": None})
    ('loss.terms={"kl" = 1.0}', 'model.start="new"', 'batch.size=8', 'loss.weight_group=none')
    """
    return tuple(f"{name}={_toml(value)}" for name, value in (overrides or {}).items())


def _toml(value: Any) -> str:
    """A value as TOML reads it; none for None, as in `--set`."""
    if value is None:
        return "none"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(str(key))} = {_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(os.fspath(value) if isinstance(value, os.PathLike) else value)


def compute(
    device: str,
    *,
    precision: str = "fp32",
    batch_size: int | None = None,
    workers: int | None = None,
    features: Ref | None = None,
) -> Compute:
    """Where and how to run a model, by the names of the commands' options."""
    place = devices.choose(device)
    return Compute(
        device=place,
        precision=devices.precision(precision),
        batch_size=batch_size,
        workers=workers,
        features=optional_path(features),
    )


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Let torch use `count` CPU threads inside the block; None keeps the number of the program. ConfigError for less
    than 1."""
    before = torch.get_num_threads()
    devices.use_threads(count)
    try:
        yield
    finally:
        if count is not None:
            torch.set_num_threads(before)


def track(progress: bool) -> Track:
    """A bar of tqdm, which is a widget in a notebook and text elsewhere; nothing unless `progress` is set."""
    return _bar if progress else silent


def watch(progress: bool) -> Watch:
    """A bar of the steps of a training, with the loss and the best validation."""
    return _steps if progress else step_bar(silent)


@contextmanager
def _bar(label: str, *, total: int | None, unit: str) -> Iterator[Advance]:
    from tqdm.auto import tqdm

    with tqdm(total=total, desc=label, unit=f" {unit}", unit_scale=unit == "bytes") as bar:
        yield lambda count: bar.update(count) and None


@contextmanager
def _steps(*, total: int, done: int, unit: str = "steps", per_step: int = 1) -> Iterator[OnStep]:
    from tqdm.auto import tqdm

    with tqdm(total=total, initial=done, desc="train", unit=" steps") as bar:

        def on_step(steps: int, values: Mapping[str, float]) -> None:
            shown = {name: values[name] for name in ("loss", "val_best_rsum") if name in values}
            bar.set_postfix(shown, refresh=False)
            bar.update(1)

        yield on_step
