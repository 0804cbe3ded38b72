"""Atomic files and folders, JSON and checksums; on POSIX systems."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
from safetensors import SafetensorError

from dcdctl.core import files
from dcdctl.core.errors import InputError
from dcdctl.core.files import atomic


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "scores.json"
    path.write_text("old")

    def write_half() -> None:
        with files.atomic_path(path) as partial:
            partial.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_half()
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["scores.json"]


def test_a_file_does_not_exist_before_it_is_complete(tmp_path):
    with files.atomic_path(tmp_path / "deep" / "a.bin") as partial:
        partial.write_bytes(b"all")
        assert not (tmp_path / "deep" / "a.bin").exists()
    assert (tmp_path / "deep" / "a.bin").read_bytes() == b"all"


def fill(folder: Path, text: str, error: Exception | None = None) -> None:
    """Write two files into an atomic folder, then fail if an error is given."""
    with files.atomic_folder(folder) as partial:
        assert not list(partial.iterdir())
        (partial / "deep").mkdir()
        (partial / "deep" / "a.txt").write_text(text)
        (partial / "b.txt").write_text(text)
        if error is not None:
            raise error


def content(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_does_not_exist_before_it_is_complete(tmp_path):
    folder = tmp_path / "runs" / "model"
    with files.atomic_folder(folder) as partial:
        (partial / "a.txt").write_text("a")
        assert not folder.exists()
    assert content(folder) == {"a.txt": "a"}
    fill(folder, "new")
    assert content(folder) == {"deep/a.txt": "new", "b.txt": "new"}
    assert list(folder.parent.iterdir()) == [folder]


@pytest.mark.parametrize("moment", ["in the block", "at the rename"])
def test_a_failed_folder_write_keeps_the_old_folder_and_leaves_nothing_else(tmp_path, monkeypatch, moment):
    folder = tmp_path / "model"
    fill(folder, "old")
    if moment == "at the rename":
        rename = Path.rename
        monkeypatch.setattr(
            Path, "rename", lambda path, to: 1 / 0 if to == folder and "replaced" not in path.name else rename(path, to)
        )
    with pytest.raises(ZeroDivisionError):
        fill(folder, "half", ZeroDivisionError() if moment == "in the block" else None)
    assert content(tmp_path) == {"model/deep/a.txt": "old", "model/b.txt": "old"}
    assert list(tmp_path.iterdir()) == [folder]


def test_a_killed_writer_keeps_the_old_folder(tmp_path):
    folder = tmp_path / "model"
    fill(folder, "old")
    if not (child := os.fork()):
        with files.atomic_folder(folder) as partial:
            (partial / "a.txt").write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert content(folder) == {"deep/a.txt": "old", "b.txt": "old"}
    (tmp_path / "other.1.partial").touch()
    files.remove_partials(tmp_path, "model")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "other.1.partial"]


def test_every_file_of_a_folder_is_synced_before_the_rename(tmp_path, monkeypatch):
    synced = []

    def record(descriptor: int) -> None:
        assert not (tmp_path / "model").exists()
        synced.append(os.fstat(descriptor).st_ino)

    monkeypatch.setattr(os, "fsync", record)
    fill(tmp_path / "model", "all")
    assert sorted(synced) == sorted(path.stat().st_ino for path in (tmp_path / "model").rglob("*.txt"))


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        SafetensorError("I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_an_input_error_that_names_the_target(tmp_path, error):
    with pytest.raises(InputError, match=r"there is no room left for .*model; make room"):
        fill(tmp_path / "model", "half", error)
    with (
        pytest.raises(InputError, match=r"there is no room left for .*a\.bin; make room"),
        files.atomic_path(tmp_path / "a.bin"),
    ):
        raise error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "escapes"),
    [
        *(
            (name, True)
            for name in ("a\0.npy", "/a", "\\a", "C:a", "C:\\a", "..", "a/../b", "a\\..\\b", "//host/share/a")
        ),
        *((name, False) for name in ("a.npy", "a/b", "a\\b", "a..b", "...", "./a", "")),
    ],
)
def test_a_name_that_leads_out_of_its_folder_on_any_system_is_told(name, escapes):
    assert files.escapes_root(name) == escapes


def named(folder: Path, *names: str) -> list[str]:
    found = files.find_named([str(folder / name) for name in names], [".csv", ".jsonl"], what="table", option="--rows")
    return [path.relative_to(folder).as_posix() for path in found]


@pytest.fixture
def tables(tmp_path):
    """A folder of tables, markers and other files."""
    for name in ("b.csv", "a.CSV", "in/c.jsonl", "in/deep/d.csv", "_log/e.csv", ".f.csv", "note.txt", "empty/note.txt"):
        path = tmp_path / "all" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path / "all"


def test_files_are_named_by_themselves_by_folders_and_by_patterns_each_once(tables):
    assert named(tables, "") == ["a.CSV", "b.csv", "in/c.jsonl", "in/deep/d.csv"]
    assert named(tables, "in/deep/d.csv", "in", "b.csv") == ["in/deep/d.csv", "in/c.jsonl", "b.csv"]
    assert named(tables, "*.csv") == ["b.csv"]
    assert named(tables, "**/*.csv") == ["_log/e.csv", "b.csv", "in/deep/d.csv"]


def test_a_folder_counts_as_empty_while_a_part_of_it_is_locked(tmp_path):
    """A command that was killed there leaves the lock file."""
    with files.lock(tmp_path / "data"):
        assert any(tmp_path.iterdir())
        assert files.is_vacant(tmp_path)
    (tmp_path / ".notes").write_text("dear")
    assert not files.is_vacant(tmp_path)


def test_a_folder_with_only_partial_files_counts_as_empty(tmp_path):
    (tmp_path / "plan.json.123.partial").write_text("{")
    assert files.is_vacant(tmp_path)
    assert files.is_vacant(tmp_path / "absent")
    (tmp_path / "thesis.txt").write_text("dear")
    assert not files.is_vacant(tmp_path)
    files.remove_partials(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.txt"]


def test_digests_depend_on_content_and_not_on_key_order(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert files.sha256_of(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()
    assert files.digest_of({"a": 1, "b": 2}) == files.digest_of({"b": 2, "a": 1})
    assert files.digest_of({"a": 1}) != files.digest_of({"a": 2})
    # Artifacts hold digests of earlier runs.
    assert files.digest_of({"ü": "é"}) == hashlib.sha256('{"ü": "é"}'.encode()).hexdigest()


def test_json_survives_a_round_trip_with_the_order_of_its_keys_and_non_ascii_characters(tmp_path):
    path = tmp_path / "a.json"
    files.write_json(path, {"z": [1, None], "a": "é"})
    assert list(files.read_json(path).items()) == [("z", [1, None]), ("a", "é")]
    assert "é" in path.read_text(encoding="utf-8")
    files.write_json(path, [{"a": 1}])
    assert files.read_json(path, kind=list) == [{"a": 1}]
    files.write_json(path, {})
    with pytest.raises(InputError, match="holds no JSON array"):
        files.read_json(path, kind=list)


def test_files_are_flushed_when_they_are_whole(tmp_path, monkeypatch):
    flushed = []
    monkeypatch.setattr(os, "fsync", lambda file: flushed.append(os.fstat(file).st_size))
    files.write_text(tmp_path / "file", "12345")
    with files.atomic_folder(tmp_path / "folder") as partial:
        (partial / "part").write_text("123")
    assert flushed == [5, 3]


def test_what_a_living_process_writes_is_no_leftover(tmp_path):
    host = atomic._partial_of(tmp_path).name.split(".")[-2].split("-")[0]
    ended = subprocess.Popen(["true"])
    ended.wait()
    leftovers = {
        f"a.{host}-{ended.pid}.partial",
        f"b.{host}-{os.getpid()}.partial",
        "c.77.partial",
        "old.00000000-1.partial",
    }
    live = {f"d.{host}-{os.getppid()}.partial", "e.00000000-1.partial"}
    for name in leftovers | live:
        (tmp_path / name).touch()
    os.utime(tmp_path / "old.00000000-1.partial", (0, 0))
    files.remove_partials(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == live


def test_two_processes_that_fill_one_folder_leave_one_of_them_whole(tmp_path):
    folder = tmp_path / "model"
    fill(folder, "old")
    if not (child := os.fork()):
        code = 1
        try:
            for _ in range(100):
                fill(folder, "child")
            code = 0
        finally:
            os._exit(code)
    for _ in range(100):
        fill(folder, "parent")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert content(folder) in ({"deep/a.txt": text, "b.txt": text} for text in ("child", "parent"))
    assert list(tmp_path.iterdir()) == [folder]


def test_checking_an_output_path_accepts_new_and_existing_folders_and_writes_nothing(tmp_path):
    for folder in (tmp_path, tmp_path / "new" / "deep"):
        files.check_output_folder(folder)
        files.check_output_file(folder / "page.html")
    assert list(tmp_path.iterdir()) == []


def test_a_device_is_not_replaced(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(InputError, match=f"{pipe} is a device or a pipe"):
        files.write_text(pipe, "x")
    with pytest.raises(InputError, match=f"{pipe} is a device or a pipe"), files.atomic_folder(pipe):
        pass
    assert pipe.is_fifo()
    assert list(tmp_path.iterdir()) == [pipe]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("birds of Berlin", "birds of Berlin"),
        ("a/b\\c: d", "a-b-c: d"),
        ("tab\tand\nline", "tab-and-line"),
        ("\N{HEADPHONE}é", "\N{HEADPHONE}é"),
        ("..", ""),
        ("  ", ""),
        ("x" * 400, "x" * files.MAX_NAME_BYTES),
        ("é" * 400, "é" * (files.MAX_NAME_BYTES // 2)),
    ],
)
def test_a_text_becomes_the_name_of_a_file(text, expected):
    assert files.to_file_name(text) == expected
    assert not expected or files.is_file_name(expected)


def saved(path: Path, *arrays: np.ndarray) -> Path:
    with path.open("wb") as file:
        for array in arrays:
            np.lib.format.write_array(file, array, version=(1, 0))
    return path


def test_arrays_of_a_file_are_mapped_one_after_another_in_either_order_and_also_empty(tmp_path):
    arrays = [np.arange(6, dtype=np.int32).reshape(2, 3), np.zeros((0, 4), np.float16), np.arange(4.0)]
    arrays.append(np.asfortranarray(np.arange(12, dtype=np.int32).reshape(4, 3)))
    path = saved(tmp_path / "a.npy", *arrays)
    shapes = [(None, 3), (None, 4), (4,), (4, None)]
    found = files.map_arrays(path, *((array.dtype, shape) for array, shape in zip(arrays, shapes, strict=True)))
    for mapped, array in zip(found, arrays, strict=True):
        assert (type(mapped), mapped.dtype) == (np.ndarray, array.dtype)
        assert mapped.tolist() == array.tolist()
        assert mapped.shape == array.shape


@pytest.mark.parametrize(
    ("expected", "change", "message"),
    [
        ((np.int64, (2, 3)), bytes, r"it has int32 of shape \(2, 3\), expected int64 of shape \(2, 3\)"),
        ((np.int32, (3, None)), bytes, r"it has int32 of shape \(2, 3\), expected int32 of shape \(3, 'any'\)"),
        ((np.int32, (2, 3, 1)), bytes, r"of shape \(2, 3\), expected int32 of shape \(2, 3, 1\)"),
        ((np.int32, (None, 3)), lambda data: data.replace(b"(2, 3)", b"(-2,3)"), r"it has int32 of shape \(-2, 3\)"),
        ((np.int32, (None, 3)), lambda data: data.replace(b"(2, 3)", b"(9, 3)"), "it ends before its 27 numbers"),
        ((np.int32, (2, 3)), lambda data: data[:-1], "it ends before its 6 numbers"),
        ((np.int32, (2, 3)), lambda data: data + b"x", "it has bytes behind its numbers"),
        ((np.int32, (2, 3)), lambda data: b"x" + data, "it is no array of numbers: "),
        ((np.int32, (2, 3)), lambda data: data.replace(b"NUMPY\1", b"NUMPY\2"), "numbers: its version is not 1.0"),
    ],
)
def test_a_file_that_holds_other_arrays_is_an_error_that_says_what_it_has(tmp_path, expected, change, message):
    path = saved(tmp_path / "a.npy", np.arange(6, dtype=np.int32).reshape(2, 3))
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=message):
        files.map_arrays(path, expected)
