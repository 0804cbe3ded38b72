"""Work that is killed at chosen moments and started again. Imports no torch, so that a script which needs none starts
soon."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any


def kill_often(
    work: Callable[[Path], None],
    whole: Path,
    victim: Path,
    num_kills: int,
    *,
    check: Callable[[Path], None] = lambda victim: None,
) -> None:
    """Do the work into `whole` without interruption; then into `victim`, killed `num_kills` times before it is allowed
    to finish.

    The work runs in forks of this process, which must have one thread. A fork is killed at a chosen change of a file,
    so the clock does not decide how far it gets. `check` gets `victim` after each kill, and at the end.
    """
    changes = _in_fork(work, whole)
    # A change that happens once is ahead of a fork as long as no earlier one has made it.
    moments = [change for change in changes if changes.count(change) == 1]
    for number in range(num_kills):
        moment = moments[(number + 1) * len(moments) // (num_kills + 1)]
        # Each kill is a change later than the one before, so that they interrupt different steps of writing a part.
        assert not _in_fork(work, victim, kill_at=(moment, number)), (
            f"the work was done before it was killed at: {moment}"
        )
        check(victim)
    assert _in_fork(work, victim)
    check(victim)


def _in_fork(work: Callable[[Path], None], folder: Path, *, kill_at: tuple[str, int] | None = None) -> list[str]:
    """The changes that the work makes to files in the folder, in order; none if it was killed: just before a change, or
    a number later."""
    with tempfile.TemporaryFile("w+") as log:
        child = os.fork()
        if not child:
            try:
                changes = _watch_changes(folder, kill_at)
                work(folder)
                json.dump(changes, log)
                log.flush()
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status in (0, -signal.SIGKILL)
        log.seek(0)
        return [] if status else json.load(log)


def _watch_changes(folder: Path, kill_at: tuple[str, int] | None) -> list[str]:
    """A list that receives each change that this process is about to make in a folder: a file or folder opened, made or
    renamed."""
    process, changes = os.getpid(), []

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in ("open", "os.mkdir", "os.rename") or isinstance(arguments[0], int) or os.getpid() != process:
            return
        path, is_read = (
            Path(os.fsdecode(arguments[0])),
            event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR),
        )
        if is_read or folder not in path.parents:
            return
        # The name of a file until it is complete has the number of the process.
        changes.append(f"{event} {re.sub(r'[.][0-9a-f]{8}-[0-9]+(?=[.]partial)', '', str(path.relative_to(folder)))}")
        if kill_at is not None and kill_at[0] in changes and len(changes) - changes.index(kill_at[0]) > kill_at[1]:
            # A file that is about to get its name is cut off, as by a kill in the middle of writing it.
            for part in (path, *path.rglob("*")) if event == "os.rename" else ():
                if part.is_file():
                    os.truncate(part, part.stat().st_size // 2)
            os.kill(process, signal.SIGKILL)

    sys.addaudithook(note)
    return changes
