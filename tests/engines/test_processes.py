"""Several processes of this machine: what they are given, and what may go wrong with them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from processes import FAULT_TRIALS, TIMEOUT_S
from toy_work import Adder, Sum, ToyJob, expected, tasks

from dcdctl.core.engines import EngineChoice, Task, open_engine
from dcdctl.core.engines.open_tasks import TRIES
from dcdctl.core.engines.processes import Processes
from dcdctl.core.errors import ConfigError, DcdError, InputError, ModelError
from dcdctl.core.progress import Advance, unsaid


class Job(ToyJob):
    """Tasks of two processes, and what came of them."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.engine = Processes(2, 1, self.said.append)

    def processes(self) -> list[int]:
        """The processes that have made a worker."""
        return [int(path.name.rpartition("-")[2]) for path in self.folder.glob("head-*")]


@pytest.fixture(params=range(int(os.environ.get(FAULT_TRIALS, "1"))))
def job(tmp_path) -> Job:
    return Job(tmp_path)


def wait_until_gone(processes: list[int]) -> None:
    """Until none of these processes runs."""
    deadline = time.monotonic() + TIMEOUT_S
    while any(Path(f"/proc/{process}").exists() for process in processes):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_each_task_has_one_result_and_processes_are_kept_for_the_next_call(job):
    works = [Sum(number, seconds=0.3) for number in range(7)]
    for _ in range(2):
        job.results.clear()
        job.run(works)
        assert job.results == expected(works)
    assert job.units == 140
    assert 1 <= len(job.processes()) <= 2  # the second may start while the first one does all
    assert job.said == []
    running = job.processes()
    del job.engine
    wait_until_gone(running)


def test_there_are_no_more_processes_than_tasks_and_none_without_a_task(job):
    job.run([])
    assert job.engine.running == []
    job.run([Sum(1)])
    assert len(job.processes()) == 1


class Telling:
    """A worker that tells what its process was given."""

    def start(self, inputs: int) -> Callable[[Advance], dict[str, str]]:
        names = ("LOCAL_RANK", "OMP_NUM_THREADS")
        # Long enough that the other one gets a task too.
        return lambda advance: {**dict.fromkeys(names, ""), **told(names)}


def told(names: tuple[str, ...]) -> dict[str, str]:
    time.sleep(0.3)
    return {name: os.environ[name] for name in names}


def test_each_process_has_the_gpu_of_its_place_and_its_threads():
    engine = Processes(2, 3, unsaid)
    works = [Task(number, str(number), partial(int, number), partial(int, number)) for number in range(6)]
    found = [result for _, result in engine.map(works, Telling, lambda _: None)]
    assert {result["LOCAL_RANK"] for result in found} == {"0", "1"}
    assert {result["OMP_NUM_THREADS"] for result in found} == {"3"}


def test_few_tasks_are_packed_before_there_are_results(job):
    packed: list[int] = []

    def pack(number: int) -> Sum:
        packed.append(number)
        return Sum(number)

    works = [
        Task(number, str(number), inputs=partial(Sum, number), packed=partial(pack, number)) for number in range(30)
    ]
    results = job.engine.map(works, partial(Adder.make, job.folder), job.advance)
    for num_results, _ in enumerate(results, 1):
        assert len(packed) <= num_results + 2 * 2
    assert packed == list(range(30))


def test_the_last_tasks_wait_for_a_process_that_has_nothing_to_do(job):
    # A second task of the process that does the long one would wait for it.
    works = [Sum(0, seconds=4.0), Sum(1), Sum(2)]
    order: list[int] = []
    for task, _ in job.engine.map(tasks(works), partial(Adder.make, job.folder), job.advance):
        order.append(task.shard)
    assert order[-1] == 0


def test_a_process_that_is_killed_loses_nothing_and_another_takes_its_place(job):
    works = [Sum(number, seconds=0.2) for number in range(12)]

    def kill_one(count: int) -> None:
        if count == 2:
            os.kill(job.processes()[0], signal.SIGKILL)

    job.run(works, kill_one)
    assert job.results == expected(works)
    assert job.units == 120
    assert job.said == ["1 of 2 processes ended with SIGKILL: its tasks go to others"]
    assert {worker.place for worker in job.engine.running} == {0, 1}


def test_a_task_that_always_ends_its_process_is_named_and_the_others_are_kept(job):
    works = [Sum(number, fails="end" if number == 3 else "") for number in range(8)]
    with pytest.raises(DcdError, match=r"1 task failed 4 times, and the others are kept") as raised:
        job.run(works)
    assert raised.value.details == ("shard-3: its process ended with exit status 1",)
    assert raised.value.hint == "it may have run out of memory: take fewer processes, or a smaller --batch-size"
    assert job.results == {number: result for number, result in expected(works).items() if number != 3}
    assert job.units == 70
    assert len(job.said) == TRIES


def test_an_error_of_a_task_is_raised_as_it_is_when_the_tasks_in_flight_are_done(job):
    works = [Sum(number, seconds=0.1, fails="error" if number == 3 else "") for number in range(20)]
    with pytest.raises(InputError, match=r"^3 cannot be added; name another$"):
        job.run(works)
    assert {0, 1, 2} <= set(job.results) < set(range(8))
    assert job.units == 10 * len(job.results)
    # They are as good as before.
    job.results.clear()
    job.run(works[:3])
    assert len(job.processes()) <= 2


def test_a_bug_has_the_traceback_of_the_process(job):
    with pytest.raises(ValueError, match="3") as raised:
        job.run([Sum(number, fails="bug" if number == 3 else "") for number in range(5)])
    assert "in _add" in raised.value.__notes__[0]


def test_a_result_that_cannot_travel_is_an_error(job):
    with pytest.raises(TypeError, match="cannot pickle"):
        job.run([Sum(1, fails="lock")])


class UnmakeableError(Exception):
    """An error that is not made again of its message."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


class Raising:
    """A worker that cannot read its inputs."""

    def start(self, inputs: int) -> Any:
        raise UnmakeableError(1, 2)


def test_an_error_that_cannot_travel_arrives_as_its_text():
    works = [Task(0, "0", partial(int, 0), partial(int, 0))]
    with pytest.raises(RuntimeError, match=r"UnmakeableError: 1 and 2"):
        list(Processes(1, 1, unsaid).map(works, Raising, lambda _: None))


def test_a_task_that_cannot_be_read_is_an_error_when_those_before_it_are_done(job):
    def unreadable() -> Sum:
        raise InputError("the file is damaged")

    works = [*tasks([Sum(0, seconds=0.3)]), Task(1, "1", unreadable, unreadable)]
    found = []
    with pytest.raises(InputError, match="the file is damaged"):
        found += job.engine.map(works, partial(Adder.make, job.folder), job.advance)
    assert job.units == 10


def refuse_device(folder: Path) -> Adder:
    """A worker that a machine without GPUs cannot make."""
    raise ConfigError("device cuda is not there", hint="try --device cpu")


def test_an_error_in_making_a_worker_arrives_as_it_is(job):
    with pytest.raises(ConfigError, match=r"^device cuda is not there; try --device cpu$"):
        job.run([Sum(1)], make_worker=partial(refuse_device, job.folder))


def end_at_first(folder: Path, times: int) -> Adder:
    """A worker whose process ends while it is made, this often."""
    number = len(list(folder.glob("made-*")))
    (folder / f"made-{number}-{os.getpid()}").touch()
    if number < times:
        os.kill(os.getpid(), signal.SIGKILL)
    return Adder.make(folder)


def test_a_process_that_ends_before_it_is_ready_is_replaced(job):
    works = [Sum(number) for number in range(3)]
    job.run(works, make_worker=partial(end_at_first, job.folder, 1))
    assert job.results == expected(works)


def test_processes_that_always_end_before_they_are_ready_end_the_job(job):
    with pytest.raises(DcdError, match=r"4 processes in a row ended before they were ready, the last one with SIGKILL"):
        job.run([Sum(1)], make_worker=partial(end_at_first, job.folder, 1000))


def test_a_process_that_is_killed_between_two_calls_is_replaced(job):
    works = [Sum(number) for number in range(6)]
    job.run(works)
    os.kill(job.processes()[0], signal.SIGKILL)
    job.results.clear()
    job.run(works)
    assert job.results == expected(works)
    assert job.units == 120


def test_a_model_that_cannot_travel_is_refused(job):
    with pytest.raises(ModelError, match=r"the model cannot travel to workers: .*pickle.*; leave --engine out"):
        job.run([Sum(1)], make_worker=threading.Lock().acquire)


def test_a_consumer_that_fails_leaves_no_process_at_work(job):
    def fill_the_disk(count: int) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        job.run([Sum(number, seconds=1.0) for number in range(6)], fill_the_disk)
    assert job.engine.running == []
    wait_until_gone(job.processes())


SCRIPT = """
import signal
import sys
from functools import partial
from pathlib import Path
from dcdctl.core.engines import EngineChoice, open_engine
from toy_work import Adder, Sum, tasks

# What a shell starts in the background ignores it.
signal.signal(signal.SIGINT, signal.default_int_handler)
folder = Path(sys.argv[1])
engine = open_engine(EngineChoice.parse("processes:2"), print)
works = [Sum(number, seconds=60.0 if number > 5 else 0.5) for number in range(9)]
for task, _ in engine.map(tasks(works), partial(Adder.make, folder), lambda count: None):
    (folder / f"result-{task.shard}").touch()
"""


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_process_outlives_its_parent(job, sign):
    """Not even one that computes; and the script, which has no guard, is run once."""
    script = job.folder / "script.py"
    script.write_text(SCRIPT)
    with subprocess.Popen(
        [sys.executable, script, job.folder],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    ) as parent:
        deadline = time.monotonic() + TIMEOUT_S
        while len(list(job.folder.glob("result-*"))) < 5 and time.monotonic() < deadline and parent.poll() is None:
            time.sleep(0.05)
        running = job.processes()
        # As a terminal does it for Ctrl-C: to all processes of the group.
        os.killpg(parent.pid, sign)
        said = parent.communicate(timeout=TIMEOUT_S)[1]
    assert len(running) == 2
    assert parent.returncode == -sign
    assert said.count("Traceback") == (sign == signal.SIGINT)
    wait_until_gone(running)


def test_cores_are_divided_among_processes_unless_the_user_says_how_many_threads_each_has(monkeypatch):
    monkeypatch.setattr("dcdctl.core.machine.num_cores", lambda: 9)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    threads = {number: EngineChoice.parse(f"processes:{number}").cpus for number in (1, 2, 4, 20)}
    assert threads == {1: 9, 2: 4, 4: 2, 20: 1}
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    choice = EngineChoice.parse("processes:4")
    assert (choice.workers, choice.cpus) == (4, 5)
    engine = open_engine(choice, unsaid)
    assert isinstance(engine, Processes)
    assert (engine.num_processes, engine.threads, engine.sends_tasks) == (4, 5, True)
