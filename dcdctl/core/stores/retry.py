"""Repeating what failed for a reason that may pass: a lost connection, a server that starts or is busy."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from dcdctl.core.errors import SourceError

T = TypeVar("T")


class UnavailableError(SourceError):
    """A store that did not answer, and may do so later."""


@dataclass(frozen=True)
class Patience:
    """How often to repeat, and how long to wait in between: the wait doubles each time, up to a maximum."""

    repeats: int
    first_wait_s: float
    max_wait_s: float = 30.0

    def waits(self) -> list[float]:
        """
        >>> Patience(4, 1, max_wait_s=5).waits()
        [1, 2, 4, 5]
        """
        return [min(self.first_wait_s * 2**number, self.max_wait_s) for number in range(self.repeats)]


FOR_A_BATCH = Patience(8, 0.5)
"""About a minute and a half: long enough for a server that is started again."""
FOR_A_QUESTION = Patience(3, 0.1)
"""A user waits for the answer."""


def repeated(work: Callable[..., T], patience: Patience, *arguments: Any) -> T:
    """The result of `work(*arguments)`, which is repeated while it raises an UnavailableError; the last error is
    raised."""
    for wait_s in patience.waits():
        try:
            return work(*arguments)
        except UnavailableError as error:
            # Not all clients at once: half of the wait is random.
            wait_s *= 0.5 + 0.5 * random.random()
            logging.getLogger("dcdctl").info("trying again in %.1f s: %s", wait_s, error)
            time.sleep(wait_s)
    return work(*arguments)
