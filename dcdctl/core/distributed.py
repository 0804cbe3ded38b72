"""Several processes at one job: who this one is, and waiting for the others.

Started by `torchrun` or `accelerate launch`, which set RANK, WORLD_SIZE and LOCAL_RANK; alone otherwise. The processes share nothing but
a folder.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch.distributed

PATIENCE = timedelta(days=7)
"""How long a process waits for the others: one may have hours more to do."""


def rank() -> int:
    """Which of the processes this is, from 0."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """How many processes there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this process speaks, and does what is done once."""
    return rank() == 0


def dealt(count: int) -> range:
    """The numbers below `count` that are this process's work: every `world_size`-th."""
    return range(rank(), count, world_size())


def wait() -> None:
    """Until all processes are here."""
    if world_size() > 1:
        if not torch.distributed.is_initialized():
            torch.distributed.init_process_group("gloo", timeout=PATIENCE)
        torch.distributed.barrier()


@contextmanager
def main_first() -> Iterator[None]:
    """The block is run by the main process, and by the others when it is through: what it wrote is there then."""
    if not is_main():
        wait()
    yield
    if is_main():
        wait()


def leave() -> None:
    """End the connection to the others, if there is one."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
