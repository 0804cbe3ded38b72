"""Processes of a service: signals, failed starts, and all that happens to two of them until they are stopped."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import served
from paths import ROOT
from processes import TIMEOUT_S

from dcdctl.core.search import IndexSearcher
from dcdctl.core.serve import Job, ServiceConfig, child
from dcdctl.core.serve import listener as sockets

SCRIPT = """
import sys
from pathlib import Path
from dcdctl.core.errors import DcdError
from dcdctl.core.serve import Job, ServiceConfig, serve

good, bad = map(Path, sys.argv[1:])
config = ServiceConfig(port=0, processes=2, log_format="json", access_log=True)
try:
    serve(Job(str(bad), config, device="cpu"), on_start=print)
except DcdError as error:
    print(type(error).__name__, error, flush=True)
print(sorted({"torch", "transformers", "fastapi"} & set(sys.modules)), flush=True)
serve(Job(str(good), config, device="cpu"), on_start=lambda started: print(started.url, flush=True))
"""


KEY = {"Authorization": "Bearer a-key-of-the-environment"}


def get(url: str) -> httpx2.Response:
    """A response over a connection of its own, so that either process may accept it; without TLS, certificates need not
    be read."""
    return httpx2.get(url, headers=KEY, timeout=TIMEOUT_S, verify=False)


class Log:
    """The records of a service on stderr, all of them JSON."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def records(self, **fields: object) -> list[dict[str, object]]:
        lines = self._path.read_text(encoding="utf-8").splitlines(keepends=True)
        records = [json.loads(line) for line in lines if line.endswith("\n")]
        return [record for record in records if fields.items() <= record.items()]

    def await_record(self, pattern: str, number: int = 1) -> dict[str, object]:
        """The last of this many records whose message has a pattern, as soon as there are so many."""
        until(lambda: len(self._matching(pattern)) >= number)
        return self._matching(pattern)[number - 1]

    def _matching(self, pattern: str) -> list[dict[str, object]]:
        return [record for record in self.records() if re.search(pattern, str(record["message"]))]


def until(condition: Callable[[], bool]) -> None:
    ends = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.02)


@contextmanager
def requests_all_the_time(url: str) -> Iterator[list[int]]:
    """The statuses of searches that two clients send all the time, over one connection each; 0 is a broken
    connection."""
    statuses: list[int] = []
    ends = threading.Event()

    def ask() -> None:
        with httpx2.Client(base_url=url, timeout=TIMEOUT_S, headers=KEY) as client:
            while not ends.is_set():
                try:
                    statuses.append(client.get("search?text=two+dogs&k=3").status_code)
                except httpx2.HTTPError:
                    statuses.append(0)
                time.sleep(0.01)  # a fifth of a second would be a reload that no request meets

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield statuses
    finally:
        ends.set()
        for thread in threads:
            thread.join()


def count(url: str, sample: str) -> float:
    lines = [line for line in get(f"{url}metrics").text.splitlines() if line.startswith(f"{sample} ")]
    return float(lines[0].split()[-1]) if lines else 0


SEARCHES = 'dcdctl_requests_total{method="GET",route="/search",status="200"}'


def assert_metrics_are_those_of_all_processes(url: str, log: Log) -> None:
    number = 30
    for _ in range(number):
        assert get(f"{url}search?text=a+secret+bus").status_code == 200
    # A response is counted after it was sent.
    until(lambda: count(url, SEARCHES) == number)
    assert count(url, "dcdctl_processes") == 2
    until(lambda: len(log.records(route="/search")) == number)
    requests = log.records(route="/search", method="GET", status=200, client="127.0.0.1")
    assert len(requests) == number
    assert {one["process"] for one in requests} <= {1, 2}
    assert httpx2.get(f"{url}search?text=a", timeout=TIMEOUT_S).status_code == 401
    assert all(re.fullmatch(r"2\d\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d\d\dZ", str(one["time"])) for one in requests)
    assert not {word for word in ("secret", "a-key-of") if word in json.dumps(log.records())}


def assert_a_killed_process_is_replaced(url: str, log: Log) -> None:
    before = count(url, SEARCHES)
    os.kill(int(str(log.await_record("process 1 answers")["pid"])), signal.SIGKILL)
    assert "starts again in 0 s" in str(log.await_record("process 1 of 2 was ended by SIGKILL")["message"])
    log.await_record("process 1 answers", 2)
    assert count(url, "dcdctl_processes") == 2
    assert count(url, SEARCHES) == before


def models_of(url: str) -> set[str]:
    return {get(f"{url}health").json()["model"] for _ in range(20)}


def assert_a_reload_loses_no_request(url: str, log: Log, index: Path, other: Path) -> None:
    (old,) = models_of(url)
    with requests_all_the_time(url) as statuses:
        until(lambda: len(statuses) > 20)
        point_to(index, other)
        os.kill(parent_of(log), signal.SIGHUP)
        log.await_record("reloaded the index and its model", 2)
        num_before = len(statuses)
        until(lambda: len(statuses) > num_before + 20)
    assert {one["process"] for one in log.records(message="reloaded the index and its model")} == {1, 2}
    assert set(statuses) == {200}
    (new,) = models_of(url)
    assert new != old


def assert_a_reload_of_a_damaged_index_changes_nothing(url: str, log: Log, index: Path, bad: Path) -> None:
    before = models_of(url)
    point_to(index, bad)
    os.kill(parent_of(log), signal.SIGHUP)
    log.await_record("is not reloaded; the service continues with the previous one", 2)
    assert models_of(url) == before


def assert_a_process_that_cannot_start_is_tried_again_later(url: str, log: Log) -> None:
    os.kill(int(str(log.await_record("process 2 answers")["pid"])), signal.SIGKILL)
    assert "starts again in 0 s" in str(log.await_record("process 2 of 2 was ended by SIGKILL")["message"])
    # Its error, and not at once again: a start takes seconds of a core.
    log.await_record(r"lacks its model .*; it starts again in 30 s")
    assert get(f"{url}live").status_code == 200


def assert_a_request_in_progress_is_answered_before_the_end(
    url: str, process: subprocess.Popen[str], photo: bytes
) -> None:
    ended, answers = threading.Event(), []

    def body() -> Iterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
        process.send_signal(signal.SIGTERM)
        # Until the port is closed: the service is ending.
        until(lambda: not is_open(url))
        ended.set()
        yield photo + b"\r\n--x--\r\n"

    headers = {**KEY, "Content-Type": "multipart/form-data; boundary=x"}
    answers.append(httpx2.post(f"{url}search?k=2", content=body(), headers=headers, timeout=TIMEOUT_S))
    assert ended.is_set()
    assert [len(one.json()["results"]) for one in answers] == [2]
    assert process.wait(TIMEOUT_S) == 0


def is_open(url: str) -> bool:
    try:
        get(f"{url}live")
    except httpx2.HTTPError:
        return False
    return True


def parent_of(log: Log) -> int:
    return int(str(log.await_record("listening")["pid"]))


def point_to(link: Path, folder: Path) -> None:
    """Replace a link by one to another folder, atomically."""
    link.with_suffix(".new").symlink_to(folder)
    link.with_suffix(".new").replace(link)


def test_neither_requests_nor_the_end_of_a_single_process_wait_for_its_reload(made, monkeypatch):
    opened, begun, may_end = IndexSearcher.for_index, threading.Event(), threading.Event()
    statuses, reloads, job = [], [], Job(str(made.index), ServiceConfig(), device="cpu")

    def slow(*words: object, **options: object) -> IndexSearcher:
        reloads.append(threading.current_thread())
        begun.set()
        may_end.wait(20)
        return opened(*words, **options)

    def reload_and_stop(url: str) -> None:
        monkeypatch.setattr(IndexSearcher, "for_index", slow)
        os.kill(os.getpid(), signal.SIGHUP)
        begun.wait(TIMEOUT_S)
        statuses.append(httpx2.get(f"{url}search?text=two+dogs", timeout=TIMEOUT_S, verify=False).status_code)
        os.kill(os.getpid(), signal.SIGTERM)

    with sockets.bound("127.0.0.1", 0) as listener:
        asking = threading.Thread(target=reload_and_stop, args=(sockets.url_of(listener),))
        child.run(job, job.index(), listener, lambda _: asking.start())
    asking.join()
    assert statuses == [200]
    # The end of Python waits for no daemon.
    assert [(thread.is_alive(), thread.daemon) for thread in reloads] == [(True, True)]
    may_end.set()
    reloads[0].join()


def test_the_handlers_of_signals_are_those_of_before_after_a_service():
    before = signal.getsignal(signal.SIGTERM)
    with sockets.handled({signal.SIGTERM: print}):
        assert signal.getsignal(signal.SIGTERM) is print
    assert signal.getsignal(signal.SIGTERM) is before


def test_two_processes_behind_one_port_from_their_start_to_their_end(tmp_path):
    first, second = served.make(tmp_path / "first"), served.make(tmp_path / "second", [*served.CAPTIONS, "a cat"])
    bad = shutil.copytree(second.index, tmp_path / "bad")
    shutil.rmtree(bad / "model")
    index = tmp_path / "index"
    index.symlink_to(first.index)
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "DCDCTL_API_KEY": KEY["Authorization"].split()[1],
    }
    command = [sys.executable, "-W", "error", "-c", SCRIPT, str(index), str(bad)]
    log = Log(tmp_path / "log")
    with (
        (tmp_path / "log").open("w") as stderr,
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=stderr, text=True) as process,
    ):
        try:
            assert "MissingError" in process.stdout.readline()
            assert process.stdout.readline() == "[]\n"
            url = process.stdout.readline().strip()
            assert_metrics_are_those_of_all_processes(url, log)
            assert_a_killed_process_is_replaced(url, log)
            assert_a_reload_loses_no_request(url, log, index, second.index)
            assert_a_reload_of_a_damaged_index_changes_nothing(url, log, index, bad)
            assert_a_process_that_cannot_start_is_tried_again_later(url, log)
            assert_a_request_in_progress_is_answered_before_the_end(
                url, process, (first.photos / "00.png").read_bytes()
            )
        finally:
            process.kill()
    assert not list(Path(f"/proc/{process.pid}").glob("*"))
