"""Tasks done by the workers of a Ray cluster.

The driver, which is the process that called `map`, gives each worker a task and a second one to read meanwhile, and
takes the results as they come. It sends the tasks of a lost worker to others, and starts another worker in its place,
which may have to wait for a node. Ray's own retries are off: with them, a task that kills its worker is repeated
without end.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any

import ray
from ray import exceptions as failures

from dcdctl.core.engines.choice import EngineChoice
from dcdctl.core.engines.cluster import (
    answering,
    connect,
    free_room,
    gpus_of_worker,
    has_room,
    is_alive,
    num_workers,
    room_of_cluster,
    room_of_worker,
)
from dcdctl.core.engines.engine import Output, TaskOf, Worker
from dcdctl.core.engines.open_tasks import IN_FLIGHT, TRIES, Begun, OpenTasks
from dcdctl.core.engines.ray_worker import RayWorker
from dcdctl.core.engines.travel import STORE_FULL, cause_of, check_versions, put_maker, store_error
from dcdctl.core.errors import DcdError
from dcdctl.core.progress import Advance, Say, counted

SECONDS_BETWEEN_LOOKS = 0.5
SECONDS_WITHOUT_WORKER = 30.0
"""How long no worker may be there before the user is told what they wait for."""
SECONDS_WITHOUT_ANSWER = 300.0
"""How long a worker may not say how far it is before it is taken for lost: it hangs, or its machine does."""
SECONDS_BETWEEN_NEWS = 5.0
"""How often the user is told who works: a hundred workers come one after the other."""
_TASK_FAILED = (failures.ObjectLostError, *STORE_FULL, failures.UnserializableException, failures.RaySystemError)
"""An input or a result is lost, or cannot be stored or read. With any other error of Ray, the worker is gone."""

# It answers while tasks are computed. Here and not in the class, whose file does not import Ray.
ray.method(concurrency_group="watch")(RayWorker.done)


@dataclass(eq=False)
class _Actor:
    """A worker as the driver sees it."""

    handle: Any
    node: str = ""
    """Known when it runs."""
    is_ready: bool = False
    is_told: bool = False
    """Whether the user knows of it."""
    tasks: list[Begun] = field(default_factory=list)
    """In the order in which they were sent: the first one is computed."""
    reported: int = 0
    """Units that it says it has done."""
    received: int = 0
    """Units of the results that came from it."""
    looks: int = 0
    """How often the driver has looked since it asked how far the worker is; 0 if that was answered."""
    round: int = 0
    """Round of starts: workers that are lost together before they are ready, as with their node, are one failure."""


class RayEngine:
    """The workers of a Ray cluster, which are started for the first task and kept for the next call."""

    sends_tasks = True

    def __init__(self, choice: EngineChoice, say: Say) -> None:
        self.choice, self.say = choice, say
        self.actors: list[_Actor] = []

    def map(
        self, tasks: Iterable[TaskOf], make_worker: Callable[[], Worker[Any, Output]], advance: Advance
    ) -> Iterator[tuple[TaskOf, Output]]:
        """The result of each task, in the order in which they come.

        A task that fails `TRIES` times, on whatever worker, is left out; when the others are done, a DcdError names it.
        StaleError for a node whose versions are not those of this process, InputError if Ray's object store is too
        small for a task, ModelError for a worker that cannot travel, SourceError if the cluster ends.
        """
        remaining = iter(tasks)
        some = list(islice(remaining, 1))
        if not some:
            return
        connect(self.choice, self.say)
        # No more workers than there are tasks.
        some += islice(remaining, num_workers(self.choice) - 1)
        with answering():
            maker = put_maker(make_worker)
        job = _Job(self, OpenTasks(chain(some, remaining)), maker, len(some), advance)
        try:
            yield from job.results()
        finally:
            job.end()
        job.raise_failures()

    def start_actor(self) -> _Actor:
        """A new worker, which Ray places as soon as a node has room for it."""
        remote = ray.remote(concurrency_groups={"watch": 1})(RayWorker)
        handle = remote.options(
            num_cpus=self.choice.cpus,
            num_gpus=gpus_of_worker(self.choice),
            max_concurrency=IN_FLIGHT,
            max_restarts=0,
            max_task_retries=0,
        ).remote()
        actor = _Actor(handle)
        self.actors.append(actor)
        return actor


class _Job:
    """One call of `map`."""

    def __init__(
        self, engine: RayEngine, tasks: OpenTasks, make_worker: Any, num_workers: int, advance: Advance
    ) -> None:
        self.engine, self.num_workers, self.advance = engine, num_workers, advance
        self.tasks, self.make_worker = tasks, make_worker
        self.expected: dict[Any, tuple[str, _Actor, Begun | None]] = {}
        """What each reference will give: a word for it, the worker, and the task of a result."""
        self.round, self.ready_round = 0, 0
        """The round of starts, and the one in which a worker became ready last."""
        self.received, self.shown = 0, 0
        """Units of all results, and units on the bar."""
        self.last_seen = time.monotonic() if has_room(engine.choice) else -math.inf
        """When a worker was ready; long ago if none fits on a node, which the user is told at once."""
        self.news: dict[str, int] = {"ready": 0, "lost": 0}
        """Workers that came and went since the user was told."""
        self.last_news = -math.inf

    def results(self) -> Iterator[tuple[Any, Any]]:
        """The results as they come."""
        for actor in self.engine.actors:  # of an earlier call
            actor.is_ready, actor.reported, actor.received, actor.looks, actor.round = False, 0, 0, 0, 0
            self._expect("ready", actor, actor.handle.prepare.remote([self.make_worker]))
        looked = time.monotonic()
        while self._give():
            with answering():
                ready, _ = ray.wait(list(self.expected), num_returns=1, timeout=SECONDS_BETWEEN_LOOKS)
            for reference in ready:
                if (found := self._take(reference)) is not None:
                    yield found
            if time.monotonic() - looked > SECONDS_BETWEEN_LOOKS:
                with answering():
                    self._look()
                looked = time.monotonic()
        if self.news["lost"]:
            self.last_news = -math.inf
            self._tell_news()

    def _give(self) -> bool:
        """Start workers that are missing, and give tasks to those that have time; whether a result is still to come."""
        while len(self.engine.actors) < self.num_workers:
            actor = self.engine.start_actor()
            actor.round = self.round
            self._expect("described", actor, actor.handle.describe.remote())
        for num_tasks in range(IN_FLIGHT):  # a first task for each before a second one for any
            for actor in self.engine.actors:
                if actor.is_ready and len(actor.tasks) == num_tasks and (begun := self._next(actor)):
                    self._send(actor, begun)
        # Without a worker that is ready, no task is begun.
        return not self.tasks.is_done

    def _next(self, actor: _Actor) -> Begun | None:
        """The task that a worker gets. If none is left, a worker without work gets the oldest one that another worker
        has, which may be slow, or gone without a word: the first result counts, and both are equal."""
        if (begun := self.tasks.next()) is not None or actor.tasks:
            return begun
        return next((begun for begun in self.tasks.open if begun.num_in_flight == 1), None)

    def _send(self, actor: _Actor, begun: Begun) -> None:
        inputs = begun.task.packed()
        try:
            with answering():
                reference = actor.handle.run.remote(inputs)
        except STORE_FULL as error:
            raise store_error(begun.task.name) from error
        actor.tasks.append(begun)
        begun.num_in_flight += 1
        self._expect("result", actor, reference, begun)

    def _expect(self, kind: str, actor: _Actor, reference: Any, begun: Begun | None = None) -> None:
        self.expected[reference] = kind, actor, begun

    def _take(self, reference: Any) -> tuple[Any, Any] | None:
        """Take what a reference gives: a result to pass on, None if it is something else."""
        kind, actor, begun = self.expected.pop(reference)
        try:
            with answering():
                value = ray.get(reference)
        except failures.RayTaskError as error:
            cause = cause_of(error, actor.node)
            if begun is None:  # a worker that cannot be made here can be made nowhere
                raise cause from error
            self._fail(actor, begun, cause)
        except failures.RayError as error:
            if begun is not None and isinstance(error, _TASK_FAILED):
                self._fail(actor, begun, error)
            else:
                self._lose(actor, error)
        else:
            if begun is not None:
                return self._receive(actor, begun, *value)
            self._hear(kind, actor, value)
        return None

    def _receive(self, actor: _Actor, begun: Begun, output: Any, num_units: int) -> tuple[Any, Any] | None:
        """A result to pass on; None if another worker was faster."""
        self._leave(actor, begun)
        actor.received += num_units
        if not self.tasks.finish(begun):
            return None
        self.received += num_units
        self._show()
        return begun.task, output

    def _hear(self, kind: str, actor: _Actor, value: Any) -> None:
        """Take what a worker says of itself."""
        if kind == "described":
            actor.node = value["node"]
            check_versions(actor.node, value["versions"])
            self._expect("ready", actor, actor.handle.prepare.remote([self.make_worker]))
        elif kind == "ready":
            actor.is_ready, self.ready_round = True, self.round
            if not actor.is_told:
                actor.is_told = True
                self.news["ready"] += 1
                self._tell_news()
        else:
            actor.reported, actor.looks = value, 0

    def _leave(self, actor: _Actor, begun: Begun) -> None:
        actor.tasks.remove(begun)
        begun.num_in_flight -= 1

    def _fail(self, actor: _Actor, begun: Begun, reason: BaseException) -> None:
        """Note that a task failed."""
        self._leave(actor, begun)
        self.tasks.try_again(begun, reason)

    def _lose(self, actor: _Actor, reason: BaseException) -> None:
        """Forget a worker that is gone or does not answer; its tasks go to others."""
        self.engine.actors.remove(actor)
        ray.kill(actor.handle)
        self.expected = {key: value for key, value in self.expected.items() if value[1] is not actor}
        if not actor.is_ready and actor.round == self.round:
            self.round += 1
            if self.round - self.ready_round >= TRIES:
                said = str(reason).strip().splitlines()[-1]  # where Python's traceback has the error
                raise DcdError(
                    f"{TRIES} workers in a row ended before they were ready: {said.strip()}",
                    hint="look at the nodes: they may lack memory, or an installed dcdctl",
                ) from reason
        for position, begun in enumerate(list(actor.tasks)):
            self._leave(actor, begun)
            # The one that was computed may be what ended the worker.
            self.tasks.try_again(begun, reason if position == 0 else None)
        self.news["lost"] += 1
        self._tell_news()

    def _look(self) -> None:
        """Ask the workers how far they are, and tell the user if there is none."""
        now = time.monotonic()
        for actor in list(self.engine.actors):
            # Looks and not time, because this process may itself be stopped for a while.
            if actor.looks * SECONDS_BETWEEN_LOOKS > SECONDS_WITHOUT_ANSWER:
                self._lose(actor, DcdError(f"a worker on {actor.node} has not answered for minutes"))
            elif actor.looks:
                actor.looks += 1
            elif actor.tasks:
                actor.looks = 1
                self._expect("done", actor, actor.handle.done.remote())
        self._show()
        self._tell_news()
        if any(actor.is_ready for actor in self.engine.actors):
            self.last_seen = now
        elif now - self.last_seen > SECONDS_WITHOUT_WORKER:
            self.last_seen = now
            if num_placed := sum(bool(actor.node) for actor in self.engine.actors):
                self.engine.say(f"{counted(num_placed, 'workers')} started, and none has loaded its model yet")
            else:
                room = room_of_worker(self.engine.choice)
                # Where all is in use, by this user's other commands perhaps, the size of the cluster explains nothing.
                found = f"the cluster has {room_of_cluster()}, {free_room()}"
                self.engine.say(f"waiting for a worker with {room}: {found}")

    def _show(self) -> None:
        """Move the bar: results, and what workers have done of the next ones. It moves back where a worker is lost."""
        unfinished: dict[Begun, int] = {}
        for actor in self.engine.actors:
            if actor.tasks and actor.tasks[0] in self.tasks.open:
                # Two workers may have one task.
                done = max(unfinished.get(actor.tasks[0], 0), actor.reported - actor.received)
                unfinished[actor.tasks[0]] = done
        done = self.received + sum(unfinished.values())
        self.advance(done - self.shown)
        self.shown = done

    def _tell_news(self) -> None:
        """Tell the user which workers came and went, unless they were told just now."""
        now = time.monotonic()
        if not any(self.news.values()) or now - self.last_news < SECONDS_BETWEEN_NEWS:
            return
        changes = ", ".join(f"{counted(count, 'workers')} {what}" for what, count in self.news.items() if count)
        num_ready = sum(actor.is_ready for actor in self.engine.actors)
        self.engine.say(f"{changes}: {num_ready} of {self.num_workers} at work")
        self.news, self.last_news = dict.fromkeys(self.news, 0), now

    def end(self) -> None:
        """End the workers that still compute something; the others are kept for the next call."""
        for actor in list(self.engine.actors):
            if actor.tasks or not actor.is_ready:
                self.engine.actors.remove(actor)
                if is_alive():
                    ray.kill(actor.handle)

    def raise_failures(self) -> None:
        """Raise what `OpenTasks.raise_failures` does, or the error of Ray with the traceback of a bug."""
        if self.tasks.failed and isinstance(bug := self.tasks.failed[0].reasons[-1], failures.RayTaskError):
            raise bug
        self.tasks.raise_failures()
