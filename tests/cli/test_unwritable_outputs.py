"""An output that cannot be written, or a disk that is full at any time: one line that names it, and no half-written
file."""

from __future__ import annotations

import os
import re
import resource
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import processes
import pytest
from command_line import run
from every_command import COMMANDS, NEW, inside, make_stage, without_root

WRITERS = [
    "prepare",
    "photos",
    "cache-teacher",
    "cache-texts",
    "distill",
    "finetune-teacher",
    "convert",
    "export",
    "index",
    "eval",
    "compare",
    "report",
]
PLACES = [
    "/proc/x",
    "pipe",
    "pipe/x",
    "pairs.csv",
    "pairs.csv/x",
    "no-permission/x",
    "x" * 300,
    "loop",
    "loop/x",
    "dangling/x",
]
LIMITS = [0, 150, 1500, 6000, 30_000]
"""Bytes that one file may have."""


def line(command: str, place: str) -> str:
    words = COMMANDS[command] + (" --out NEW" if command == "eval" else "")
    return re.sub(r"\b(NEW|compared\.html|report\.html)", place, words)


def some(command: str, quick: tuple[str, ...]) -> Any:
    """A command as a parameter; slow unless it is one of the quick ones, which stand for the others."""
    return command if command in quick else pytest.param(command, marks=pytest.mark.slow)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_stage(tmp_path_factory.mktemp("stage"))


@pytest.fixture(scope="module")
def places(stage: Path) -> Path:
    os.mkfifo(
        stage / "pipe"
    )  # stands for a device such as /dev/null: a command that replaced that would harm the whole machine
    (stage / "no-permission").mkdir(mode=0o500)
    (stage / "loop").symlink_to("loop")
    (stage / "dangling").symlink_to("/proc/nowhere")
    return stage


def outcome(words: str, folder: Path) -> tuple[str, str]:
    """named, written or traceback, and what was printed."""
    with inside(folder), without_root():
        result = run(words, code=None, catch_exceptions=True)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        return "traceback", f"{type(result.exception).__name__}: {result.exception}"
    if result.exit_code == 0:
        return "written", ""
    errors = [row for row in result.stderr.splitlines() if row.startswith("error: ")]
    return ("named" if result.exit_code in (1, 2) and len(errors) <= 1 else "unnamed"), "".join(
        errors
    ) or result.stderr[-300:]


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.parametrize("command", [some(command, ("prepare", "export")) for command in WRITERS])
def test_a_place_that_cannot_be_written_is_one_line_and_nothing_is_written(command, places):
    before, counts, wrong = names(places), Counter(), []
    # A file, or a link to nothing, is replaced by a page.
    for place in [
        place for place in PLACES if command not in ("compare", "report") or place not in ("pairs.csv", "loop")
    ]:
        found, text = outcome(line(command, place), places)
        counts[found] += 1
        if found != "named" or not re.search(rf"{place[:4]}|/proc/nowhere|[Uu]sage", text) or "delete" in text:
            wrong.append(f"{found}: {command} {place[:20]}: {text}")
    sys.stdout.write(f"{command}: {dict(counts)}\n")
    assert not wrong, "\n".join(wrong)
    assert names(places) == before


@contextmanager
def file_size_limit(limit: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("command", [some(command, ("distill",)) for command in WRITERS])
def test_a_write_that_fails_at_any_size_is_one_line_and_leaves_no_half_file(command, stage):
    counts, wrong = Counter(), []
    for limit in LIMITS:
        with file_size_limit(limit):
            found, text = outcome(line(command, "out.html" if command in ("compare", "report") else NEW), stage)
        counts[found] += 1
        if found not in ("named", "written"):
            wrong.append(f"{found}: {command} {limit}: {text}")
        wrong += [f"left: {command} {limit}: {path}" for path in stage.rglob("*.partial")]
        shutil.rmtree(stage / NEW, ignore_errors=True)
        (stage / "out.html").unlink(missing_ok=True)
    sys.stdout.write(f"{command}: {dict(counts)}\n")
    assert counts["named"]
    assert not wrong, "\n".join(wrong)


@contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[None]:
    folder.mkdir()
    mounted = processes.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        folder.rmdir()
        pytest.skip("only root may mount a small disk")
    try:
        yield
    finally:
        processes.run(["umount", "--lazy", folder], check=True)  # a traceback may keep a file open
        folder.rmdir()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="only root may mount a small disk")
# Once there is room for its corpus, photos lacks its encoders.
@pytest.mark.parametrize("command", sorted({*WRITERS} - {"photos"}))
def test_a_full_disk_is_one_line_that_says_to_make_room(command, stage, tmp_path):
    counts = Counter()
    for kilobytes in (4, 12, 40, 120):
        with small_disk(tmp_path / "disk", kilobytes):
            found, text = outcome(
                line(command, str(tmp_path / "disk" / ("out.html" if command in ("compare", "report") else "out"))),
                stage,
            )
            assert found in ("named", "written"), (kilobytes, text)
            assert found == "written" or "make room" in text or "not enough" in text, text
            assert not list((tmp_path / "disk").rglob("*.partial"))
        counts[found] += 1
    sys.stdout.write(f"{command}: {dict(counts)}\n")
    assert counts["named"]
