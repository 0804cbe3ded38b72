"""What is open of one call of `Engine.map`: the tasks that workers have, those that wait for another worker, and those
that failed too often. Each engine knows its workers; which tasks are left is the same for all."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from dcdctl.core.engines.engine import Task
from dcdctl.core.errors import DcdError, first_line
from dcdctl.core.progress import counted

TRIES = 4
"""How often a task may fail, or lose its worker, before it is left out."""
IN_FLIGHT = 2
"""Tasks that a worker has: one that it computes, and one that it reads ahead."""


@dataclass(eq=False)
class Begun:
    """A task that some worker has or had."""

    task: Task[Any]
    reasons: list[BaseException] = field(default_factory=list)
    """Why it failed, each time."""
    num_in_flight: int = 0
    """Workers that have it."""


class OpenTasks:
    """The tasks of a call that have no result yet."""

    def __init__(self, tasks: Iterator[Task[Any]]) -> None:
        self._not_begun = tasks
        self._ahead: deque[Task[Any]] = deque()
        """Tasks that were looked at and not begun."""
        self.all_begun = False
        self.again: deque[Begun] = deque()
        """Tasks that failed, or whose worker was lost."""
        self.open: list[Begun] = []
        """Tasks that were begun and have no result, oldest first."""
        self.failed: list[Begun] = []

    @property
    def is_done(self) -> bool:
        """Whether no result is still to come."""
        return self.all_begun and not self.open

    def next(self) -> Begun | None:
        """A task for a worker, first those that wait for another one; None if none is left."""
        if self.again:
            return self.again.popleft()
        if not self.has_more_than(0):
            self.all_begun = True
            return None
        self.open.append(Begun(self._ahead.popleft()))
        return self.open[-1]

    def has_more_than(self, count: int) -> bool:
        """Whether more tasks than this are not begun."""
        self._ahead += islice(self._not_begun, max(0, count + 1 - len(self._ahead)))
        return len(self._ahead) > count

    def finish(self, begun: Begun) -> bool:
        """Note a result; whether it is the first one of its task."""
        if begun not in self.open:
            return False
        self.open.remove(begun)
        return True

    def try_again(self, begun: Begun, reason: BaseException | None) -> None:
        """Let a task wait for another worker, unless it has failed too often; None if it is not known to be the
        reason."""
        if begun not in self.open:
            return
        if reason is not None:
            begun.reasons.append(reason)
        if len(begun.reasons) >= TRIES:
            self.open.remove(begun)
            self.failed.append(begun)
        elif not begun.num_in_flight:
            self.again.append(begun)

    def raise_failures(self, hint: str = "") -> None:
        """DcdError that names the tasks that were left out, if there are some; with this hint where the first one has
        none."""
        if not self.failed:
            return
        first = self.failed[0].reasons[-1]
        reasons = [(begun.task.name, begun.reasons[-1]) for begun in self.failed]
        raise DcdError(
            f"{counted(len(self.failed), 'tasks')} failed {TRIES} times, and the others are kept",
            details=[f"{name}: {first_line(reason)}" for name, reason in reasons],
            hint=first.hint or hint if isinstance(first, DcdError) else hint,
        ) from first
