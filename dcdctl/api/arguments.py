"""What the Python functions share: messages as log records, the threads of the program, and bars for notebooks."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from dcdctl.core.progress import Advance, OnStep, Track, Watch, silent, step_bar

say = logging.getLogger("dcdctl").warning
"""Shows a line that a command would print as a message."""


@contextmanager
def same_threads() -> Iterator[None]:
    """Let torch use the number of CPU threads after the block that it used before."""
    # A command ends with its process; the other cells of a notebook expect the threads that they had.
    before = torch.get_num_threads()
    try:
        yield
    finally:
        if torch.get_num_threads() != before:
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
        # tqdm returns whether it has drawn, and an Advance returns nothing.
        yield lambda count: bar.update(count) and None


@contextmanager
def _steps(*, total: int, done: int, unit: str = "steps", per_step: int = 1) -> Iterator[OnStep]:
    from tqdm.auto import tqdm

    with tqdm(total=total, initial=done, desc="train", unit=" steps") as bar:

        def on_step(steps: int, values: Mapping[str, float]) -> None:
            shown = {name: values[name] for name in ("loss", "val_best_rsum", "val_best_ndcg") if name in values}
            bar.set_postfix(shown, refresh=False)  # `update` draws, at most ten times a second
            bar.update(1)

        yield on_step
