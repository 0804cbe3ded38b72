"""What the driver of a Ray cluster gives to whom, and what its bar shows: without a cluster, by workers that do
nothing."""

from __future__ import annotations

import pickle
import random
import socket
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray import exceptions as failures
from ray._private import worker

from dcdctl.core.data import PrepareJob, make_corpus
from dcdctl.core.engines import EngineChoice, cluster, ray_engine
from dcdctl.core.engines.engine import Task
from dcdctl.core.engines.open_tasks import TRIES, Begun, OpenTasks
from dcdctl.core.engines.ray_worker import RayWorker, versions
from dcdctl.core.errors import DcdError, SourceError
from dcdctl.core.progress import Advance, unsaid


@pytest.fixture
def shown() -> list[int]:
    """How the bar moved."""
    return []


@pytest.fixture
def job(monkeypatch, shown) -> ray_engine._Job:
    """A job of nine tasks for three workers, all of them ready."""
    for module in (cluster, ray_engine):
        monkeypatch.setattr(module, "is_alive", lambda: True)
    monkeypatch.setattr(ray, "nodes", list)
    monkeypatch.setattr(ray, "kill", lambda handle: None)
    monkeypatch.setattr(ray, "cluster_resources", dict)
    engine = ray_engine.RayEngine(EngineChoice(engine="ray"), unsaid)
    made = ray_engine._Job(engine, OpenTasks(task(number) for number in range(9)), None, 3, shown.append)
    for _ in range(3):
        calls = SimpleNamespace(remote=lambda *_: object())
        engine.actors.append(
            ray_engine._Actor(handle=SimpleNamespace(run=calls, done=calls), node="here", is_ready=True)
        )
    return made


def task(number: int) -> Task[int]:
    return Task(number, f"task {number}", inputs=lambda: number, packed=lambda: number)


def tasks_of(job: ray_engine._Job) -> list[list[int]]:
    return [[begun.task.shard for begun in actor.tasks] for actor in job.engine.actors]


def finish(job: ray_engine._Job, place: int, num_units: int = 1) -> tuple[Task[int], str] | None:
    """The result of the first task of a worker arrives."""
    actor = job.engine.actors[place]
    return job._receive(actor, actor.tasks[0], "result", num_units)


def test_each_worker_has_a_task_before_any_has_a_second_one_that_it_reads_ahead(job):
    assert job._give()
    assert tasks_of(job) == [[0, 3], [1, 4], [2, 5]]
    assert finish(job, 1)[0].shard == 1
    assert job._give()
    assert tasks_of(job) == [[0, 3], [4, 6], [2, 5]]


def test_a_worker_without_work_gets_the_oldest_task_of_another_once(job):
    job._give()
    for place in (0, 0, 1, 1, 2):  # the last worker is slow with its second task
        finish(job, place)
    job._give()
    assert tasks_of(job) == [[6, 8], [7], [5]]
    for _ in range(2):
        finish(job, 0)
        job._give()
    # Nobody has nothing to do, and no third worker gets a task that two have.
    assert tasks_of(job) == [[5], [7], [5]]
    finish(job, 1)
    job._give()
    assert tasks_of(job) == [[5], [], [5]]
    # The first result counts.
    assert finish(job, 0)[0].shard == 5
    assert finish(job, 2) is None
    assert not job._give()
    assert job.received == 9


def test_the_tasks_of_a_lost_worker_go_to_others_first_and_the_bar_moves_back(job, shown):
    job._give()
    lost = job.engine.actors[0]
    for actor, done in zip(job.engine.actors, (5, 2, 0), strict=True):
        job._hear("done", actor, done)
    job._show()
    assert sum(shown) == 7
    job._lose(lost, DcdError("the node has died"))
    job._show()
    assert sum(shown) == 2
    assert [begun.task.shard for begun in job.tasks.again] == [0, 3]
    # The task that it computed may be what ended it, and not the one that it read ahead.
    assert [len(begun.reasons) for begun in job.tasks.again] == [1, 0]
    assert job.news["lost"] == 0  # told at once
    finish(job, 0, num_units=2)
    assert sum(shown) == 2
    job.num_workers = 2
    job._give()
    assert tasks_of(job) == [[4, 0], [2, 5]]


def test_two_workers_with_one_task_count_as_the_one_that_did_more(job, shown):
    job.tasks = OpenTasks(iter([task(0)]))
    job._give()
    assert tasks_of(job) == [[0], [0], []]
    for actor, done in zip(job.engine.actors[:2], (3, 4), strict=True):
        job._hear("done", actor, done)
    job._show()
    assert sum(shown) == 4


def test_the_user_is_told_once_that_a_worker_is_ready(job):
    said: list[str] = []
    job.engine.say = said.append
    for _ in range(2):  # in this call, and in the next one
        job._hear("ready", job.engine.actors[0], None)
    assert said == ["1 worker ready: 3 of 3 at work"]
    assert job.news["ready"] == 0


def test_a_task_that_fails_as_often_as_may_be_is_left_out_and_named(job):
    job.tasks = OpenTasks(iter([task(0), task(1)]))
    job.num_workers = 1
    del job.engine.actors[1:]
    for trial in range(TRIES):
        assert [begun.task.shard for begun in job.tasks.failed] == []
        assert job._give()
        (actor,) = job.engine.actors
        (begun,) = [begun for begun in actor.tasks if begun.task.shard == 0]
        job._fail(actor, begun, DcdError(f"a wrong file, {trial}"))
    assert finish(job, 0)[0].shard == 1
    assert not job._give()
    with pytest.raises(DcdError, match=r"task 0.*a wrong file"):
        job.raise_failures()


@pytest.mark.parametrize("error", [failures.OutOfDiskError("full"), failures.ObjectLostError("0" * 56, "", "here")])
def test_a_task_whose_result_is_lost_is_tried_again_and_its_worker_stays(job, monkeypatch, error):
    def lose(reference: object) -> None:
        raise error

    monkeypatch.setattr(ray, "get", lose)
    job._give()
    first = next(iter(job.expected))
    assert job._take(first) is None
    assert tasks_of(job) == [[3], [1, 4], [2, 5]]
    assert [(begun.task.shard, begun.reasons) for begun in job.tasks.again] == [(0, [error])]


@pytest.mark.parametrize("is_result", [True, False])
def test_another_error_of_ray_loses_the_worker(job, monkeypatch, is_result):
    def end(reference: object) -> None:
        raise failures.RayActorError

    monkeypatch.setattr(ray, "get", end)
    job._give()
    job._look()  # asks each worker how far it is
    kinds = [kind for kind, _, _ in job.expected.values()]
    reference = list(job.expected)[kinds.index("result" if is_result else "done")]
    assert job._take(reference) is None
    assert tasks_of(job) == [[1, 4], [2, 5]]
    assert [begun.task.shard for begun in job.tasks.again] == [0, 3]


def test_a_user_is_told_every_half_minute_what_the_job_waits_for(job, monkeypatch):
    second = 0
    told: list[tuple[int, str]] = []
    job.engine.say = lambda line: told.append((second, line))
    monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": 0.5})
    monkeypatch.setattr(ray_engine, "time", SimpleNamespace(monotonic=lambda: second))
    job.last_seen = 0
    for actor in job.engine.actors:
        actor.is_ready, actor.node = False, ""
    for second in range(70):
        if second == 40:
            job.engine.actors[0].node = "here"  # it has a place, and loads its model
        job._look()
    assert [second for second, _ in told] == [31, 62]
    assert "waiting for a worker with 1 CPU and 0 GPUs" in told[0][1]
    assert told[1][1] == "1 worker started, and none has loaded its model yet"


def test_a_user_is_told_at_once_that_no_node_has_room_and_else_after_the_last_worker_has_gone(job, monkeypatch):
    second = 0
    told: list[int] = []
    job.engine.say = lambda line: told.append(second)
    monkeypatch.setattr(ray, "available_resources", dict)
    monkeypatch.setattr(ray_engine, "time", SimpleNamespace(monotonic=lambda: second))
    for second in range(60):
        for actor in job.engine.actors:
            actor.is_ready = 5 <= second < 20
        job._look()
    # The cluster of this job has no node.
    assert told == [0, 50]


def test_a_connection_is_alive_while_its_node_answers(monkeypatch, tmp_path):
    # A path of a socket has at most 108 bytes.
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    assert not cluster.is_alive()
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(worker, "_global_node", None)  # connected as ray://
    assert cluster.is_alive()
    monkeypatch.setattr(worker, "_global_node", SimpleNamespace(plasma_store_socket_name="store"))
    assert not cluster.is_alive()
    with socket.socket(socket.AF_UNIX) as store:
        store.bind("store")
        store.listen()
        assert cluster.is_alive()
    assert not cluster.is_alive()


def test_a_lost_connection_of_a_worker_is_no_lost_cluster(monkeypatch):
    monkeypatch.setattr(cluster, "is_alive", lambda: True)
    of_worker = failures.RayTaskError("run", "its traceback", ConnectionError("reset by a store")).as_instanceof_cause()
    assert isinstance(of_worker, ConnectionError)
    with pytest.raises(failures.RayTaskError), cluster.answering():
        raise of_worker
    with pytest.raises(SourceError, match="no longer answers"), cluster.answering():
        raise ConnectionError("reset")
    monkeypatch.setattr(cluster, "is_alive", lambda: False)
    with pytest.raises(SourceError, match="no longer answers"), cluster.answering():
        pytest.fail("it began")


@pytest.mark.parametrize(
    ("resources", "choice", "expected"),
    [
        ({"CPU": 7.0}, {}, 7),
        ({"CPU": 7.0}, {"cpus": 2}, 3),
        ({"CPU": 7.0}, {"cpus": 8}, 1),
        ({"CPU": 7.0, "GPU": 2.0}, {}, 2),
        ({"CPU": 7.0, "GPU": 2.0}, {"gpus": 0.5}, 4),
        ({"CPU": 3.0, "GPU": 2.0}, {"gpus": 0.5}, 3),
        ({"CPU": 7.0, "GPU": 2.0}, {"gpus": 0}, 7),
        ({"CPU": 7.0, "GPU": 2.0}, {"workers": 5}, 5),
    ],
)
def test_there_are_as_many_workers_as_nodes_have_room_for_unless_the_user_says(
    monkeypatch, resources, choice, expected
):
    monkeypatch.setattr(ray, "cluster_resources", lambda: resources)
    assert cluster.num_workers(EngineChoice(engine="ray", **choice)) == expected


@pytest.mark.parametrize(
    ("nodes", "choice", "expected"),
    [
        ([{"CPU": 2.0}], {}, True),
        ([{"CPU": 2.0}], {"cpus": 2}, True),
        ([{"CPU": 2.0}], {"cpus": 3}, False),
        ([{"CPU": 2.0}, {"CPU": 2.0}], {"cpus": 3}, False),
        ([{"CPU": 2.0}, {"CPU": 3.0}], {"cpus": 3}, True),
        ([{"CPU": 2.0}], {"gpus": 0.5}, False),
        ([{"CPU": 2.0, "GPU": 0.5}], {"gpus": 0.5}, True),
        # Not the cores of one node and the GPU of another.
        ([{"CPU": 4.0}, {"CPU": 1.0, "GPU": 1.0}], {"cpus": 4, "gpus": 1}, False),
        ([None, {"CPU": 1.0}], {}, True),
        ([None], {}, False),
        ([], {}, False),
    ],
)
def test_a_worker_needs_a_node_with_room_for_all_that_it_takes(monkeypatch, nodes, choice, expected):
    listed = [{"Alive": node is not None, "Resources": node or {"CPU": 64.0}} for node in nodes]  # None: it is gone
    monkeypatch.setattr(ray, "nodes", lambda: listed)
    monkeypatch.setattr(ray, "cluster_resources", dict)
    assert cluster.has_room(EngineChoice(engine="ray", **choice)) == expected


def test_rooms_are_told_in_words(monkeypatch):
    nodes = [{"Alive": True}, {"Alive": False}, {"Alive": True}]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 6.0, "GPU": 1.0})
    monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": 1.0})
    assert cluster.room_of_cluster() == "6 CPUs and 1 GPU on 2 nodes"
    assert cluster.free_room() == "1 CPU and 0 GPUs free"
    assert cluster.room_of_worker(EngineChoice(engine="ray")) == "1 CPU and 1 GPU"
    assert cluster.room_of_worker(EngineChoice(engine="ray", cpus=2, gpus=0.5)) == "2 CPUs and 0.5 GPUs"


def test_workers_without_a_task_are_kept_for_the_next_call_and_the_others_end(job, monkeypatch):
    killed: list[object] = []
    monkeypatch.setattr(ray, "kill", killed.append)
    job.tasks = OpenTasks(iter([task(0)]))
    job._give()
    busy, _, idle = job.engine.actors
    late = ray_engine._Actor(handle=object())
    job.engine.actors.append(late)
    finish(job, 1)
    job.end()
    assert idle in job.engine.actors
    assert len(job.engine.actors) == 2
    assert killed == [busy.handle, late.handle]


def test_a_bug_of_a_task_keeps_its_traceback_and_an_error_of_the_user_its_hint(job):
    bug = failures.RayTaskError("run", "its traceback", ZeroDivisionError("by zero"))
    failed = Begun(task(7), reasons=[bug])
    job.tasks.failed = [failed]
    with pytest.raises(failures.RayTaskError, match="its traceback"):
        job.raise_failures()
    job.tasks.failed = [
        Begun(task(1), reasons=[DcdError("old"), DcdError("the file is damaged", hint="make it again")]),
        Begun(task(2), reasons=[DcdError("another one")]),
    ]
    with pytest.raises(DcdError, match=r"2 tasks failed 4 times, and the others are kept") as error:
        job.raise_failures()
    assert error.value.hint == "make it again"
    assert list(error.value.details) == ["task 1: the file is damaged; make it again", "task 2: another one"]


class Counting:
    """A worker that is made anew for each `prepare`, and does as many units as it is told."""

    def start(self, inputs: int) -> Callable[[Advance], int]:
        def rest(advance: Advance) -> int:
            for _ in range(inputs):
                advance(1)
            return 10 * inputs

        return rest


def test_a_worker_says_how_many_units_it_has_done_since_it_was_made(monkeypatch):
    monkeypatch.setattr(ray, "get", pickle.dumps)
    made = RayWorker()
    made.prepare([Counting])
    assert [made.run(3), made.run(5), made.done()] == [(30, 3), (50, 5), 8]
    made.prepare([Counting])
    assert [made.done(), made.run(2), made.done()] == [0, (20, 2), 2]
    assert made.describe()["versions"] == versions()


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        (None, EngineChoice()),
        ("ray", EngineChoice(engine="ray")),
        ("ray?workers=300&gpus=0&cpus=2", EngineChoice(engine="ray", workers=300, gpus=0, cpus=2)),
        ("ray://head:10001", EngineChoice(engine="ray://head:10001")),
        ("ray://head:10001?gpus=0.5", EngineChoice(engine="ray://head:10001", gpus=0.5)),
    ],
)
def test_a_choice_is_read_as_it_is_typed(text, choice):
    assert EngineChoice.parse(text) == choice


class Ref:
    """What a call of a worker will give."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self.call = call


@pytest.fixture
def engine(monkeypatch) -> ray_engine.RayEngine:
    """A cluster with four cores whose workers are objects of this process, and do a task when its result is asked
    for."""
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    for module in (cluster, ray_engine):
        monkeypatch.setattr(module, "is_alive", lambda: True)
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 4.0}}])
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 4.0})
    monkeypatch.setattr(ray, "put", lambda value: value)
    monkeypatch.setattr(ray, "kill", lambda handle: None)
    monkeypatch.setattr(ray, "wait", lambda references, **_: ([random.Random(0).choice(references)], []))
    monkeypatch.setattr(ray, "get", lambda found: found.call() if isinstance(found, Ref) else found)
    made = ray_engine.RayEngine(EngineChoice(engine="ray"), unsaid)

    def start_actor() -> ray_engine._Actor:
        of_process = RayWorker()

        def remote(name: str) -> SimpleNamespace:
            return SimpleNamespace(remote=lambda *inputs: Ref(partial(getattr(of_process, name), *inputs)))

        handle = SimpleNamespace(**{name: remote(name) for name in ("describe", "prepare", "run", "done")})
        made.actors.append(ray_engine._Actor(handle))
        return made.actors[-1]

    monkeypatch.setattr(made, "start_actor", start_actor)
    return made


@pytest.mark.parametrize("num_tasks", [1, 3, 20])
def test_every_task_has_one_result_and_workers_that_rest_are_kept(engine, num_tasks):
    shown: list[int] = []
    for _ in range(2):
        results = list(engine.map([task(number) for number in range(num_tasks)], Counting, shown.append))
        assert sorted((each.shard, output) for each, output in results) == [(n, 10 * n) for n in range(num_tasks)]
        # No more workers than tasks, or than the cluster has cores.
        assert len(engine.actors) <= min(num_tasks, 4)
    assert sum(shown) == 2 * sum(range(num_tasks))
    assert all(actor.is_ready and not actor.tasks for actor in engine.actors)


def test_no_cluster_is_looked_for_without_a_task(engine, monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: pytest.fail("it was looked for"))
    assert list(engine.map([], Counting, lambda _: None)) == []


def test_a_task_that_always_fails_is_left_out_and_the_others_have_their_results(engine):
    tasks = [task(0), Task(1, "bad", inputs=lambda: "x", packed=lambda: "x"), task(2)]  # type: ignore[arg-type]
    found: list[int] = []
    with pytest.raises(failures.RayTaskError, match="cannot be interpreted as an integer"):
        found.extend(each.shard for each, _ in engine.map(tasks, Failing, lambda _: None))
    assert sorted(found) == [0, 2]


class Failing(Counting):
    """A worker that fails, as Ray reports it, with inputs that are no number."""

    def start(self, inputs: int) -> Callable[[Advance], int]:
        if isinstance(inputs, str):
            raise failures.RayTaskError("run", "'str' object cannot be interpreted as an integer", TypeError("str"))
        return super().start(inputs)


def test_decoding_takes_no_gpu_of_a_cluster(monkeypatch):
    class OpenedError(Exception):
        pass

    def opened(choice: EngineChoice, say: object) -> None:
        raise OpenedError(choice.gpus, choice.workers)

    monkeypatch.setattr("dcdctl.core.data.prepare.open_engine", opened)
    with pytest.raises(OpenedError, match=r"\(0\.0, 3\)"):
        make_corpus(PrepareJob(manifest="scenes", engine="ray?workers=3"))
