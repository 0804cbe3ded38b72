"""What may go wrong on a cluster: workers and nodes that end or are slow, tasks that fail, stores that are too
small."""

from __future__ import annotations

import os
import re
import signal
from functools import partial
from pathlib import Path

import pytest
from processes import FAULT_TRIALS
from toy_work import Adder, Sum, ToyJob, expected

from dcdctl.core.engines import EngineChoice, open_engine
from dcdctl.core.errors import ConfigError, DcdError, MissingError, StaleError

# Ray leaves files of its logs open.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")]
NUM_TRIALS = int(os.environ.get(FAULT_TRIALS, "1"))
"""How often each fault is tried; docs/evidence/reliability.md says how often it was."""


class Job(ToyJob):
    """Tasks on a cluster, and what came of them."""

    def __init__(self, folder: Path, workers: int = 2) -> None:
        super().__init__(folder)
        self.engine = open_engine(EngineChoice(engine="ray", workers=workers), self.said.append)

    def processes(self, node: str = "") -> list[int]:
        """The processes of workers, on a node or on all."""
        names = [path.name.rpartition("-") for path in self.folder.iterdir()]
        return [int(process) for name, _, process in names if node in ("", name)]


@pytest.fixture(params=range(NUM_TRIALS))
def job(request, nodes, tmp_path) -> Job:
    nodes.add("a")
    nodes.add("b")
    return Job(tmp_path)


def test_a_worker_that_is_killed_loses_nothing(job):
    works = [Sum(number, seconds=0.2) for number in range(12)]

    def kill_one(count: int) -> None:
        if count == 2:
            os.kill(job.processes()[0], signal.SIGKILL)

    job.run(works, kill_one)
    assert job.results == expected(works)
    assert job.units == 120
    assert any("1 worker lost" in line for line in job.said)


def test_a_killed_node_loses_nothing_and_one_that_joins_takes_part(job, nodes):
    job.engine.choice = EngineChoice(engine="ray", workers=4)  # as many as two nodes have room for
    works = [Sum(number, seconds=0.5) for number in range(24)]

    def change(count: int) -> None:
        if count == 2:
            nodes.kill("a")
        if count == 6:
            nodes.add("c")

    job.run(works, change)
    assert job.results == expected(works)
    assert job.units == 240
    assert job.processes("c")


@pytest.mark.parametrize("fails", ["error", "end"])
def test_a_task_that_always_fails_is_named_and_the_others_are_kept(job, fails):
    works = [Sum(number, seconds=0.1, fails=fails if number == 3 else "") for number in range(8)]
    with pytest.raises(DcdError, match="1 task failed 4 times, and the others are kept") as raised:
        job.run(works)
    assert job.results == {number: result for number, result in expected(works).items() if number != 3}
    assert "shard-3: " in raised.value.details[0]
    assert job.units == 70


def test_a_task_that_fails_once_is_done_by_the_next_try(job, tmp_path):
    works = [Sum(number, fails="end" if number == 3 else "", once=tmp_path / "once") for number in range(8)]
    job.run(works)
    assert job.results == expected(works)


def test_a_bug_keeps_its_traceback(job):
    with pytest.raises(ValueError, match="3") as raised:
        job.run([Sum(number, fails="bug" if number == 3 else "") for number in range(5)])
    assert "_add" in str(raised.value)
    assert len(job.results) == 4


def test_a_slow_node_does_not_hold_up_the_others(job, nodes):
    nodes.add("slow", SLOWNESS="1000")
    job.engine.choice = EngineChoice(engine="ray", workers=6)
    works = [Sum(number, seconds=0.1) for number in range(24)]
    job.run(works)  # a task of the slow node would take 100 s
    assert job.results == expected(works)


def test_results_larger_than_the_object_store_arrive(job):
    works = [Sum(number, size=30_000_000 if number == 1 else 10) for number in range(3)]  # 240 MB, of 100
    job.run(works)
    assert job.results == expected(works)


def test_a_node_with_another_version_is_refused_by_name(job, nodes, tmp_path):
    shadow = tmp_path / "shadow" / "torch-9.9.dist-info"
    shadow.mkdir(parents=True)
    (shadow / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 9.9\n")
    path = os.pathsep.join([str(shadow.parent), os.environ["PYTHONPATH"]])
    nodes.kill("a")
    nodes.kill("b")
    nodes.add("other", PYTHONPATH=path)
    with pytest.raises(StaleError, match=r"would compute with other software: torch 9\.9 there and .* here"):
        job.run([Sum(number) for number in range(3)])


def test_workers_that_cannot_be_made_end_the_job(job, tmp_path):
    job.folder = tmp_path / "not there"
    with pytest.raises(FileNotFoundError):
        job.run([Sum(1)])


def test_a_user_who_waits_for_a_node_is_told(job, nodes, monkeypatch):
    from dcdctl.core.engines import ray_engine

    monkeypatch.setattr(ray_engine, "SECONDS_WITHOUT_WORKER", 1.0)
    nodes.kill("a")
    nodes.kill("b")

    def say(line: str) -> None:
        job.said.append(line)
        if "waiting for a worker" in line and "late" not in nodes.named:
            nodes.add("late")

    job.engine.say = say
    works = [Sum(number) for number in range(3)]
    job.run(works)
    assert job.results == expected(works)
    told = r"waiting for a worker with 1 CPU and 0 GPUs: the cluster has .*, 0 CPUs and 0 GPUs free"
    assert any(re.search(told, line) for line in job.said)


@pytest.mark.parametrize("all_hang", [False, True])
def test_a_worker_that_hangs_is_replaced(job, monkeypatch, all_hang):
    from dcdctl.core.engines import ray_engine

    # Long enough that a worker on a busy machine answers.
    monkeypatch.setattr(ray_engine, "SECONDS_WITHOUT_ANSWER", 10.0)
    works = [Sum(number, seconds=0.2) for number in range(12)]

    def stop(count: int) -> None:
        if count == 3:
            for process in job.processes() if all_hang else job.processes()[:1]:
                os.kill(process, signal.SIGSTOP)

    job.run(works, stop)
    assert job.results == expected(works)
    assert job.units == 120


def test_a_node_that_hangs_loses_nothing(job, nodes):
    works = [Sum(number, seconds=0.2) for number in range(12)]

    def stop(count: int) -> None:
        if count == 2:
            [raylet] = nodes.named["a"].all_processes["raylet"]
            for process in (raylet.process.pid, *job.processes("a")):
                os.kill(process, signal.SIGSTOP)

    job.run(works, stop)
    assert job.results == expected(works)


def end_at_first(folder: Path, times: int) -> Adder:
    """A worker whose process ends while it is made, this often."""
    number = len(list(folder.glob("made-*")))
    (folder / f"made-{number}-{os.getpid()}").touch()
    if number < times:
        os._exit(1)
    return Adder(folder)


def test_a_worker_that_is_killed_before_it_is_ready_is_replaced(job):
    works = [Sum(number) for number in range(6)]
    job.run(works, make_worker=partial(end_at_first, job.folder, 2))
    assert job.results == expected(works)


def test_workers_that_always_end_before_they_are_ready_end_the_job(job):
    with pytest.raises(DcdError, match=r"4 workers in a row ended before they were ready: .*; look at the nodes"):
        job.run([Sum(1), Sum(2)], make_worker=partial(end_at_first, job.folder, 1000))


def test_a_worker_that_is_killed_between_two_calls_is_replaced(job):
    works = [Sum(number) for number in range(6)]
    job.run(works)
    os.kill(job.processes()[0], signal.SIGKILL)
    job.results.clear()
    job.run(works)
    assert job.results == expected(works)
    assert job.units == 120


def test_a_model_larger_than_the_object_store_arrives(job):
    works = [Sum(number) for number in range(3)]
    job.run(works, make_worker=partial(make_with, job.folder, bytes(240_000_000)))
    assert job.results == expected(works)


def make_with(folder: Path, model: bytes) -> Adder:
    """A worker that needs a model."""
    return Adder.make(folder)


def refuse_device(folder: Path) -> Adder:
    """A worker that a machine without GPUs cannot make."""
    raise ConfigError("device cuda is not there", hint="try --device cpu")


def test_an_error_of_the_user_in_making_a_worker_arrives_as_it_is(job):
    with pytest.raises(ConfigError, match=r"^device cuda is not there; try --device cpu$"):
        job.run([Sum(1)], make_worker=partial(refuse_device, job.folder))


def test_a_package_that_nodes_lack_is_named_with_the_node(job, monkeypatch, tmp_path):
    (tmp_path / "only_here.py").write_text("def make(folder):\n    raise AssertionError\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import only_here

    with pytest.raises(MissingError, match=r"the node .+ lacks a package: No module named 'only_here'; install"):
        job.run([Sum(1)], make_worker=partial(only_here.make, job.folder))


def test_a_result_that_cannot_travel_is_an_error_and_the_others_are_kept(job):
    with pytest.raises(TypeError, match="cannot pickle"):
        job.run([Sum(number, fails="lock" if number == 3 else "") for number in range(5)])
    assert len(job.results) == 4


def test_a_worker_that_fits_on_no_node_is_told_at_once(job, nodes):
    job.engine.choice = EngineChoice(engine="ray", workers=1, cpus=7)

    def say(line: str) -> None:
        job.said.append(line)
        if "waiting" in line:
            nodes.add("large", cpus=7)

    job.engine.say = say
    works = [Sum(1)]
    job.run(works)
    assert job.results == {0: expected(works)[0]}
    assert re.search(r"waiting for a worker with 7 CPUs and 0 GPUs: the cluster has ", job.said[0])
