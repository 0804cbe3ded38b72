"""`dcdctl serve --watch`: a photo that comes or goes is seen in a browser without a restart, and both processes end
together."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import browser
import httpx2
import pytest
import served
from image_files import png, put
from paths import ROOT
from processes import TIMEOUT_S

needs_proc = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="children are found in /proc")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return served.make(tmp_path_factory.mktemp("followed") / "all")


@contextmanager
def watching(made: served.Made, log: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A service in a group of processes of its own, as a terminal makes one, and its URL."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    words = ["serve", str(made.index), "--watch", "--port", "0", "--device", "cpu", "--json"]
    with (
        log.open("w") as stderr,
        subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "dcdctl", *words],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            start_new_session=True,
        ) as process,
    ):
        try:
            yield process, json.loads(process.stdout.readline())["url"]
        finally:
            process.kill()


def until(condition: Callable[[], bool]) -> None:
    ends = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.05)


def children_of(process: int) -> list[int]:
    found = []
    for listed in Path(f"/proc/{process}/task").glob("*/children"):
        found += map(int, listed.read_text().split())
    return found


def has_ended(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state in "ZX"  # killed, and nobody asked for its exit code


@needs_proc
@browser.is_installed
def test_a_photo_comes_and_goes_in_a_browser_and_ctrl_c_ends_both_processes(made, tmp_path):
    def listed() -> set[str]:
        answer = httpx2.get(f"{url}browse?k=99", timeout=TIMEOUT_S, verify=False)
        return {hit["name"] for hit in answer.json()["results"]}

    with (
        browser.started(tmp_path / "profile") as chromium,
        watching(made, tmp_path / "log") as (process, url),
    ):

        def shown() -> bool:
            return 'title="late.png"' in chromium.html(url, budget_ms=2000)

        assert not shown()
        put(made.photos, {"late.png": png(99)})
        until(lambda: "late.png" in listed())
        assert shown()
        (made.photos / "late.png").unlink()
        until(lambda: "late.png" not in listed())
        assert not shown()
        children = children_of(process.pid)
        assert children
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(TIMEOUT_S) == 0
        # One of them is multiprocessing's own, and ends once it has cleaned up.
        until(lambda: all(map(has_ended, children)))
    assert (tmp_path / "log").read_text() == "Ctrl-C stops it\n"


@needs_proc
@pytest.mark.parametrize(("end", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 0)])
def test_a_service_that_ends_while_the_other_process_starts_leaves_nothing_behind(made, tmp_path, end, code):
    with watching(made, tmp_path / "log") as (process, _):
        # One of the two is multiprocessing's own.
        until(lambda: len(children_of(process.pid)) >= 2)
        children = children_of(process.pid)
        if end == signal.SIGINT:
            os.killpg(process.pid, end)  # as a terminal does it
        else:
            process.send_signal(end)
        assert process.wait(TIMEOUT_S) == code
        until(lambda: all(map(has_ended, children)))
    # A process that was still taking over its work says so if the service is killed then.
    if end == signal.SIGINT:
        assert (tmp_path / "log").read_text() == "Ctrl-C stops it\n"
