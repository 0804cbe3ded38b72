"""Locks on folders; on POSIX systems."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import time
from pathlib import Path

import pytest

from dcdctl.core.errors import StaleError
from dcdctl.core.files import is_vacant, lock
from dcdctl.core.progress import silent


@pytest.mark.parametrize("is_recreated", [False, True], ids=["removed", "removed and recreated"])
def test_a_lock_file_removed_while_another_process_opens_it_is_opened_again(tmp_path, monkeypatch, is_recreated):
    folder, path = tmp_path / "cache", tmp_path / ".cache.lock-0"
    path.touch()
    open_file, opened = Path.open, []

    def open_before_release(self, *arguments):
        file = open_file(self, *arguments)
        opened.append(self.name)
        if len(opened) == 1:  # the owner releases its lock here
            path.unlink()
            if is_recreated:
                path.touch()
        return file

    monkeypatch.setattr(Path, "open", open_before_release)
    with lock(folder):
        assert opened == [path.name] * 2
        assert path.exists()
        with pytest.raises(StaleError, match=f"another run is writing to {folder}; wait until it ends"), lock(folder):
            pass
        with lock(folder, 1):  # a lock for another part
            pass
    assert list(tmp_path.iterdir()) == []


HELD_TIMES = 10


def hold_often(folder: Path, *, is_waiting: bool) -> None:
    """Hold a lock many times, in a process of its own; each time make and remove a file that only one holder can
    make."""
    held = 0
    while held < HELD_TIMES:
        try:
            with lock(folder, wait=silent if is_waiting else None):
                os.close(os.open(folder / "holder", os.O_CREAT | os.O_EXCL))
                time.sleep(0.001)
                (folder / "holder").unlink()
            held += 1
        except StaleError:
            assert not is_waiting


def test_no_two_of_many_processes_hold_a_lock_at_once(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    folder.mkdir()
    flock = fcntl.flock
    # Between opening a lock file and locking it there is time for its owner to remove it.
    monkeypatch.setattr(
        fcntl, "flock", lambda file, operation: (time.sleep(0.001 * random.random()), flock(file, operation))
    )
    children = []
    for number in range(8):
        if not (child := os.fork()):
            code = 1
            try:
                hold_often(folder, is_waiting=number % 2 == 0)
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * 8
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


def test_a_lock_file_that_somebody_replaced_stays_on_release(tmp_path):
    path = tmp_path / ".cache.lock-0"
    with lock(tmp_path / "cache"):
        path.unlink()
        path.write_text("another process's")
    assert path.read_text() == "another process's"


def test_the_first_part_is_refused_while_another_part_is_held(tmp_path):
    with lock(tmp_path / "cache", 1):
        with pytest.raises(StaleError, match="another run is writing to"), lock(tmp_path / "cache"):
            pass
        with lock(tmp_path / "cache", 2):
            pass
    (tmp_path / ".cache.lock-3").touch()  # of a killed process
    with lock(tmp_path / "cache"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_all_names_of_a_folder_share_one_lock(tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "link").symlink_to("cache")
    with (
        lock(tmp_path / "link"),
        pytest.raises(StaleError, match="another run is writing to"),
        lock(tmp_path / "cache"),
    ):
        pass


def test_a_folder_inside_one_that_cannot_be_written_is_locked_from_inside(tmp_path, monkeypatch):
    (tmp_path / "cache").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    with lock(tmp_path / "cache"):
        assert [path.name for path in (tmp_path / "cache").iterdir()] == [".cache.lock-0"]
        assert is_vacant(tmp_path / "cache")


def test_a_file_system_without_locks_is_used_without(tmp_path, monkeypatch):
    def flock(file: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", flock)
    with lock(tmp_path / "cache"):
        pass
    assert list(tmp_path.iterdir()) == []
