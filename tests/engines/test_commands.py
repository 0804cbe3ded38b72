"""Commands on a cluster of two nodes: one cache whoever scores it, killed and interrupted commands, models that only
the head can read."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import processes
import pytest
import ray
from processes import FAULT_TRIALS, TIMEOUT_S
from tiny import contents

# Ray leaves files of its logs open.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")]
NUM_KILLS = int(os.environ.get(FAULT_TRIALS, "1"))
RECIPE = """
[candidates]
kind = "random"
per_query = 2
[batch]
size = 4
random_negatives = 2
hard_negatives = 1
"""
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Scenes whose pairs are three shards, and a recipe beside them."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "r.toml").write_text(RECIPE)
    counts = ["--set", "counts.train=600", "--set", "counts.val=10", "--set", "counts.test=10"]
    processes.run([*DCDCTL, "prepare", "scenes", *counts, "--out", folder / "scenes"], check=True)
    return folder


DCDCTL = [sys.executable, "-m", "dcdctl"]


def scoring(data: Path, out: Path, *more: object, teacher: str = "scenes-vilt") -> list[str]:
    command = [*DCDCTL, "cache-teacher", "--data", data / "scenes", "--recipe", data / "r.toml", "--teacher", teacher]
    return list(map(str, [*command, "--out", out, *more]))


def pairs(out: Path) -> dict[str, bytes]:
    """The parts of a cache with scores."""
    return {path.name: path.read_bytes() for path in sorted(out.glob("pairs-*.parquet"))}


@pytest.fixture(scope="module")
def one(data, tmp_path_factory) -> Path:
    """The cache of one process."""
    out = tmp_path_factory.mktemp("one") / "cache"
    processes.run(scoring(data, out, "--device", "cpu"), check=True, env={**os.environ, **ONE_THREAD})
    return out


def test_one_cache_whoever_scores_it(nodes, data, one, tmp_path):
    nodes.add("a")
    nodes.add("b")
    command = scoring(data, tmp_path / "processes", "--engine", "processes:2", "--device", "cpu")
    processes.run(command, check=True, env={**os.environ, **ONE_THREAD})
    assert contents(tmp_path / "processes") == contents(one)
    for workers in (1, 2, 4):
        out = tmp_path / f"ray-{workers}"
        processes.run(scoring(data, out, "--engine", f"ray?workers={workers}"), check=True)
        assert contents(out) == contents(one)
    work, one_thread = [*DCDCTL, "work", "--device", "cpu"], {**os.environ, **ONE_THREAD}
    for calls in ("in a loop", "two at once"):
        out, tasks = tmp_path / calls, tmp_path / f"tasks {calls}"
        command = scoring(data, out, "--device", "cpu", "--engine", f"files:{tasks}")
        processes.run(command, check=True)
        if calls == "in a loop":
            for task in sorted(tasks.glob("tasks-*")):
                processes.run([*work, task], check=True, env=one_thread)
        else:
            running = [subprocess.Popen([*work, tasks], env=one_thread) for _ in range(2)]
            assert [process.wait(TIMEOUT_S) for process in running] == [0, 0]
        processes.run(command, check=True)
        assert contents(out) == contents(one)


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.parametrize("trial", range(NUM_KILLS))
def test_a_command_that_ends_in_the_middle_is_repeated_and_leaves_the_cluster(nodes, data, one, tmp_path, sign, trial):
    nodes.add("a")
    out = tmp_path / "cache"
    command = scoring(data, out, "--engine", "ray?workers=2")
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while not pairs(out):
            time.sleep(0.1)
        process.send_signal(sign)
        said = process.communicate(timeout=TIMEOUT_S)[1]
    assert process.returncode == (130 if sign == signal.SIGINT else -sign)
    if sign == signal.SIGINT:
        assert said.splitlines()[-1] == "interrupted: finished work, if any, is kept"
    kept = pairs(out)
    assert 0 < len(kept) < 3
    ray.init(nodes.address, log_to_driver=False)
    wait_until_free(2)
    again = processes.run(command, check=True, capture_output=True, text=True)
    assert contents(out) == contents(one)
    assert "Traceback" not in said + again.stderr


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.parametrize("trial", range(NUM_KILLS))
def test_a_command_of_two_processes_that_ends_in_the_middle_is_repeated(data, one, tmp_path, sign, trial):
    out = tmp_path / "cache"
    command = scoring(data, out, "--engine", "processes:2")
    environment = {**os.environ, **ONE_THREAD}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        while not pairs(out):
            time.sleep(0.1)
        process.send_signal(sign)
        said = process.communicate(timeout=TIMEOUT_S)[1]
    assert process.returncode == (130 if sign == signal.SIGINT else -sign)
    if sign == signal.SIGINT:
        assert said.splitlines()[-1] == "interrupted: finished work, if any, is kept"
    assert 0 < len(pairs(out)) < 3
    again = processes.run(command, check=True, capture_output=True, text=True, env=environment)
    assert contents(out) == contents(one)
    assert "Traceback" not in said + again.stderr


@pytest.mark.parametrize("by", ["address", "url"])
@pytest.mark.parametrize("trial", range(NUM_KILLS))
def test_a_command_ends_if_the_head_dies_and_is_repeated_on_a_new_cluster(
    nodes, data, one, tmp_path, monkeypatch, by, trial
):
    def engine() -> str:
        monkeypatch.setenv("RAY_ADDRESS", nodes.address)
        return "ray" if by == "address" else nodes.url

    nodes.add("a")
    out = tmp_path / "cache"
    command = scoring(data, out, "--engine", f"{engine()}?workers=2")
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while not pairs(out):
            time.sleep(0.1)
        nodes.kill_head()
        said = process.communicate(timeout=TIMEOUT_S)[1]
    assert process.returncode == 1
    assert said.splitlines()[-1].startswith("error: the Ray cluster no longer answers: ")
    assert "Traceback" not in said
    assert 0 < len(pairs(out)) < 3
    nodes.start_again()
    nodes.add("a")
    processes.run(scoring(data, out, "--engine", f"{engine()}?workers=2"), check=True)
    assert contents(out) == contents(one)


def wait_until_free(cpus: int) -> None:
    """Until no worker of a command that ended takes a core of the cluster."""
    deadline = time.monotonic() + TIMEOUT_S
    while ray.available_resources().get("CPU", 0) < cpus:
        assert time.monotonic() < deadline
        time.sleep(0.2)


FUNCTION = """
import own_words


class Length:
    def score(self, images, texts):
        return [float(len(text) + image.size[0] * own_words.WEIGHT) for image, text in zip(images, texts)]
"""


def test_a_teacher_of_the_current_folder_travels(nodes, data, tmp_path):
    nodes.add("a")
    (tmp_path / "own_words.py").write_text("WEIGHT = 0.5\n")
    (tmp_path / "own_scorer.py").write_text(FUNCTION)
    for out, more in (("one", ("--device", "cpu")), ("ray", ("--engine", "ray?workers=2"))):
        command = scoring(data, tmp_path / out, *more, teacher="own_scorer:Length")
        processes.run(command, check=True, cwd=tmp_path)
    assert contents(tmp_path / "ray") == contents(tmp_path / "one")


def test_the_address_of_a_head(nodes, data, one, tmp_path, monkeypatch):
    nodes.add("a")
    monkeypatch.delenv("RAY_ADDRESS")
    command = scoring(data, tmp_path / "cache", "--engine", f"{nodes.url}?workers=2")
    processes.run(command, check=True)
    assert contents(tmp_path / "cache") == contents(one)
