"""An index that keeps following its image folders."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from threading import Event

from dcdctl.core.errors import DcdError, InputError, require_extra
from dcdctl.core.progress import Track, silent
from dcdctl.core.search import upkeep
from dcdctl.core.search.changes import Changes, IndexChange

LOOK_AGAIN_S = 60
"""Seconds after which the folders are compared without a message of the system: a network drive may send none."""


def sync_index(place: str, *, track: Track = silent) -> IndexChange:
    """Follow the image folders of an index once. Torch is imported only if something happened in them."""
    index = upkeep.open_to_change(place)
    if (same := upkeep.up_to_date(index)) is not None:
        return same
    from dcdctl.core import devices
    from dcdctl.core.search.build import change_index
    from dcdctl.core.search.embed import DEFAULT_BATCH_SIZE

    compute = devices.Compute(device=devices.choose("auto"), batch_size=DEFAULT_BATCH_SIZE)
    return change_index(place, Changes(sync=True), compute=compute, track=track)


def watch_index(
    place: str,
    on_change: Callable[[IndexChange], None],
    on_error: Callable[[DcdError], None],
    *,
    stop: Event | None = None,
    track: Track = silent,
) -> None:
    """Follow the image folders of an index until `stop` is set. `on_change` gets each change, the first one at once;
    `on_error` what went wrong with one, which is tried again with the next.

    MissingError without the package watchfiles, InputError for an index without an image folder.
    """
    require_extra("watch", "watchfiles", needed_by="--watch")
    folders = [Path(source.path) for source in upkeep.open_to_change(place).document.sources if not source.is_corpus]
    if not folders:
        raise InputError(f"{place} is of a corpus, and no image folder can be watched", hint="leave --watch out")
    stop = stop or Event()
    on_change(sync_index(place, track=track))
    while not stop.is_set():
        for _ in _moments([folder for folder in folders if folder.is_dir()], folders, stop):
            try:
                change = sync_index(place, track=track)
            except DcdError as error:
                on_error(error)
            else:
                if not change.is_nothing:
                    on_change(change)


def _moments(there: Sequence[Path], folders: Sequence[Path], stop: Event) -> Iterator[None]:
    """The moments to compare: at once, when files changed in folders that are there and rest again, and every
    `LOOK_AGAIN_S`. Ends when another of the folders is there."""
    # Imported here: only the extra has it.
    from watchfiles import watch

    compared_at = -math.inf
    # Messages that come during a comparison wait for the next one. A copy of a video changes many times.
    for messages in watch(
        *there, watch_filter=None, stop_event=stop, step=500, debounce=10_000, rust_timeout=1000, yield_on_timeout=True
    ):
        if [folder for folder in folders if folder.is_dir()] != list(there):
            return
        if messages or time.monotonic() > compared_at + LOOK_AGAIN_S:
            yield
            compared_at = time.monotonic()
