"""What the Python functions share: messages as log records, and bars for notebooks."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from dcdctl.core.errors import InputError
from dcdctl.core.progress import Advance, Track, Watch, silent, step_bar

say = logging.getLogger("dcdctl").warning
"""Shows a line that a command would print as a message."""


def texts(given: str | Sequence[object]) -> tuple[str, ...]:
    """The texts of one, or of several; InputError for what is no text."""
    found = [given] if isinstance(given, str) else list(given)
    texts = [each for each in found if isinstance(each, str)]
    if len(texts) < len(found):
        wrong = next(type(each).__name__ for each in found if not isinstance(each, str))
        raise InputError(f"a list of texts has a {wrong}", hint="search by each image by itself")
    return tuple(texts)


def track(progress: bool) -> Track:
    """A bar of tqdm, which is a widget in a notebook and text elsewhere; nothing unless `progress` is set."""
    return _bar if progress else silent


def watch(progress: bool) -> Watch:
    """A bar of the steps of a training."""
    return step_bar(track(progress))


@contextmanager
def _bar(label: str, *, total: int | None, unit: str) -> Iterator[Advance]:
    from tqdm.auto import tqdm

    with tqdm(total=total, desc=label, unit=f" {unit}", unit_scale=unit == "bytes") as bar:
        # tqdm returns whether it has drawn, and an Advance returns nothing.
        yield lambda count: bar.update(count) and None
