"""An index that keeps following its image folders."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

from dcdctl.core.errors import DcdError, InputError, require_extra
from dcdctl.core.progress import Track, silent
from dcdctl.core.search import named, upkeep
from dcdctl.core.search.changes import IndexChange
from dcdctl.core.search.index import FolderIndex

if TYPE_CHECKING:
    from dcdctl.core.engines import Compute

LOOK_AGAIN_S = 60
"""Seconds after which the folders are compared without a message of the system: a network drive may send none."""
TRY_AGAIN_S = 5
"""Seconds before the next try after an error: another run writes to the index, or the disk is full."""


def sync_index(place: str, *, compute: Callable[[], Compute] | None = None, track: Track = silent) -> IndexChange:
    """Follow the image folders of an index once. Torch is imported, and `compute` called, only if something happened in
    them."""
    index = named.open_to_change(place)
    if (same := upkeep.up_to_date(index)) is not None:
        return same
    from dcdctl.core import devices
    from dcdctl.core.engines import Compute
    from dcdctl.core.search.build import follow_folders

    how = Compute(device=devices.choose("auto")) if compute is None else compute()
    return follow_folders(place, compute=how, track=track)


def watch_index(
    place: str,
    on_change: Callable[[IndexChange], None],
    on_error: Callable[[DcdError], None],
    *,
    stop: Event | None = None,
    compute: Callable[[], Compute] | None = None,
    track: Track = silent,
) -> None:
    """Follow the image folders of an index until `stop` is set. `on_change` gets each change, and the first comparison
    whatever it finds; `on_error` what went wrong, once. It is tried again until it goes well.

    MissingError without the package watchfiles, InputError for an index without an image folder.
    """
    require_extra("watch", "watchfiles", needed_by="--watch")
    folders = _folders(named.open_to_change(place))
    if not folders:
        raise InputError(f"{place} is of a corpus, and no image folder can be watched", hint="leave --watch out")
    stop = stop or Event()
    is_first, problem, next_look = True, None, -math.inf
    while not stop.is_set():
        for is_due in _seconds([folder for folder in folders if folder.is_dir()], folders, stop, on_error):
            if not (is_due or time.monotonic() > next_look):
                continue
            try:
                change = sync_index(place, compute=compute, track=track)
            except DcdError as error:
                if problem != str(error):
                    on_error(error)
                problem, next_look = str(error), time.monotonic() + TRY_AGAIN_S
                continue
            if is_first or change.newly_skipped or not change.is_nothing:
                on_change(change)
            is_first, problem, next_look = False, None, time.monotonic() + LOOK_AGAIN_S
            if folders != (folders := _folders(change.index)):
                break  # another command moved or added one


def _folders(index: FolderIndex) -> list[Path]:
    return [Path(source.path) for source in index.document.sources if not source.is_corpus]


def _seconds(
    there: Sequence[Path], folders: Sequence[Path], stop: Event, on_error: Callable[[DcdError], None]
) -> Iterator[bool]:
    """Each second, whether to compare at once: at the start, and when files changed in folders that are there and rest
    again. Ends when another of the folders is there."""
    # Imported here: only the extra has it.
    from watchfiles import watch

    def is_another_there() -> bool:
        return [folder for folder in folders if folder.is_dir()] != list(there)

    yield True
    is_due = True  # what happens during the first comparison has no message
    try:
        # Messages that come during a comparison wait for the next one. A copy of a video changes many times.
        for messages in watch(
            *there,
            watch_filter=None,
            stop_event=stop,
            step=500,
            debounce=10_000,
            rust_timeout=1000,
            yield_on_timeout=True,
        ):
            if is_another_there():
                return
            yield is_due or bool(messages)
            is_due = False
    except OSError as error:
        on_error(
            DcdError(
                f"the system does not watch all folders, which are compared every {LOOK_AGAIN_S} seconds now ({error})",
                hint="on Linux, fs.inotify.max_user_watches is the limit",
            )
        )
        while not (stop.wait(1) or is_another_there()):
            yield is_due
            is_due = False
