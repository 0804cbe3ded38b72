"""The parts of shards, and the engine of this process."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from dcdctl.core.engines.choice import EngineChoice
from dcdctl.core.engines.compute import MOST_READERS, Compute, OfWorker
from dcdctl.core.engines.engine import Task, whole_shards
from dcdctl.core.engines.processes import Processes
from dcdctl.core.engines.ray_engine import RayEngine
from dcdctl.core.engines.this_process import ThisProcess
from dcdctl.core.progress import Advance, unsaid


def task(shard: int, part: int = 0, num_parts: int = 1) -> Task[str]:
    name = f"{shard}.{part}"
    return Task(shard, name, inputs=lambda: name, packed=lambda: name, part=part, num_parts=num_parts)


@pytest.mark.parametrize("seed", range(5))
def test_a_shard_has_its_parts_in_order_in_whatever_order_they_arrive(seed):
    sizes = [1, 2, 5, 3]
    arriving = [task(shard, part, size) for shard, size in enumerate(sizes) for part in range(size)]
    random.Random(seed).shuffle(arriving)
    seen: list[str] = []

    def results():
        for each in arriving:
            seen.append(each.name)
            yield each, each.name

    for shard, parts in whole_shards(results()):
        assert parts == [f"{shard}.{part}" for part in range(sizes[shard])]
        # As soon as the last of them is there.
        assert seen[-1] in parts
        sizes[shard] = -1
    assert set(sizes) == {-1}


class Doubling:
    """A worker that notes what it does, and fails to start the task "bad"."""

    def __init__(self, log: list[str]) -> None:
        self.log = log

    def start(self, inputs: str) -> Callable[[Advance], str]:
        self.log.append(f"start {inputs}")
        if inputs == "bad":
            raise ValueError("this one is bad")

        def rest(advance: Advance) -> str:
            self.log.append(f"end {inputs}")
            advance(1)
            return 2 * inputs

        return rest


def named(shard: int, name: str) -> Task[str]:
    return Task(shard, name, inputs=lambda: name, packed=lambda: name)


def test_a_task_is_started_while_the_one_before_it_is_to_be_computed():
    log: list[str] = []
    shown: list[int] = []
    tasks = [named(0, "a"), named(1, "b"), named(2, "c")]
    results = ThisProcess().map(tasks, lambda: Doubling(log), shown.append)
    assert [(task.name, output) for task, output in results] == [("a", "aa"), ("b", "bb"), ("c", "cc")]
    assert log == ["start a", "start b", "end a", "start c", "end b", "end c"]
    assert shown == [1, 1, 1]


def test_an_error_of_a_task_comes_after_the_results_of_those_before_it():
    log: list[str] = []
    results = ThisProcess().map([named(0, "a"), named(1, "bad"), named(2, "c")], lambda: Doubling(log), lambda _: None)
    assert next(results)[1] == "aa"
    with pytest.raises(ValueError, match="this one is bad"):
        next(results)
    assert log == ["start a", "start bad", "end a"]


def test_tasks_are_small_only_where_they_are_sent_to_other_processes():
    assert not ThisProcess().sends_tasks
    assert Processes(2, 1, unsaid).sends_tasks
    assert RayEngine(EngineChoice(engine="ray"), unsaid).sends_tasks


def test_no_worker_is_made_without_a_task():
    assert list(ThisProcess().map([], lambda: pytest.fail("it was made"), lambda _: None)) == []


@pytest.mark.parametrize(("threads", "readers"), [(1, 1), (2, 1), (3, 2), (9, 8), (64, MOST_READERS)])
def test_a_worker_reads_ahead_on_all_threads_but_one(threads, readers):
    assert OfWorker(device="cpu", threads=threads).readers == readers


def test_a_worker_computes_with_what_the_user_gave_it(monkeypatch):
    used: list[int | None] = []
    monkeypatch.setattr("torch.set_num_threads", used.append)
    given = Compute(batch_size=3, precision="bfloat16", of_worker=OfWorker(device="cpu", threads=5))
    made = given.for_workers().in_worker()
    assert (made.workers, made.batch_size, made.precision, made.of_worker) == (4, 3, "bfloat16", None)
    assert isinstance(made.engine, ThisProcess)
    assert used == [5]
    assert replace(given, workers=0).in_worker().workers == 0
    # A process that is no worker keeps what it has.
    assert made.in_worker() is made
