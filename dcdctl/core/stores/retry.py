"""Repeating what failed for a reason that may pass: a lost connection, a server that starts or is busy."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from dcdctl.core.errors import SourceError

T = TypeVar("T")


class UnavailableError(SourceError):
    """A store that did not answer, and may do so later."""


IS_IT_RUNNING = "run the same command again; is the server running, and are host and port right?"
FOR_A_BATCH = (0.5, 1, 2, 4, 8, 16, 30, 30)
"""Seconds before each repeat; about a minute and a half: long enough for a server that is started again."""
FOR_A_QUESTION = (0.1, 0.2, 0.4)
"""Seconds before each repeat: a user waits for the answer."""


def repeated(work: Callable[..., T], waits_s: Sequence[float], *arguments: Any) -> T:
    """The result of `work(*arguments)`, which is repeated after each wait while it raises an UnavailableError; the last
    error is raised."""
    for wait_s in waits_s:
        try:
            return work(*arguments)
        except UnavailableError:
            # Not all clients at once: half of the wait is random.
            time.sleep(wait_s * (0.5 + 0.5 * random.random()))
    return work(*arguments)
