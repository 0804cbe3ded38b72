"""Processes that tests start: a time limit that allows for a busy machine, and an environment without the settings of
its user."""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
from collections.abc import Callable, MutableMapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest

Made = TypeVar("Made")
WORKER = "PYTEST_XDIST_WORKER"
"""The environment variable that names a process of several that share the tests."""

TIMEOUT_S = 600
"""How long tests wait for a process or a server. Generous, because a test that passes does not wait for it."""
LONG_TIMEOUT_S = 7200
"""The same for a download of gigabytes, or a whole suite."""
USER_SETTINGS = ("HF_", "HUGGING", "TRANSFORMERS_", "WANDB_", "DCDCTL_", "TORCHELASTIC_", "AWS_")
"""Beginnings of the names of environment variables that change what dcdctl and its libraries do; HF_DATASETS_* is one
of the first."""
PLAIN_TESTS = "DCDCTL_PLAIN_TESTS"
"""Set to 1, it runs the tests without what makes them fast: libraries as they are, new processes in place of forks."""
FAULT_TRIALS = "DCDCTL_FAULT_TRIALS"
"""Set to a number, it is how often each fault of a cluster is tried."""
IS_PLAIN = os.environ.get(PLAIN_TESTS) == "1"
LAUNCHER_SETTINGS = (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "RAY_ADDRESS",
)


def clear_user_settings(environment: MutableMapping[str, str]) -> None:
    """Remove the settings of the user who runs the tests; each test sets those that it is about."""
    for name in list(environment):
        if name not in (PLAIN_TESTS, FAULT_TRIALS) and (name.startswith(USER_SETTINGS) or name in LAUNCHER_SETTINGS):
            del environment[name]


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def run(command: Sequence[object], **options: Any) -> subprocess.CompletedProcess[Any]:
    """`subprocess.run` with the time limit, unless the options have another."""
    return subprocess.run(list(map(str, command)), **{"timeout": TIMEOUT_S, **options})


def make_once(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], Made]) -> Made:
    """What `make` returns for a new folder, made by the first process that asks and loaded by the others of this test
    run.

    For what takes many seconds, because the tests of a module may run in any of the processes. The folder is not to be
    written to.
    """
    from dcdctl.core.files import lock
    from dcdctl.core.progress import silent

    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if WORKER in os.environ else own) / f"once-{name}"
    with lock(folder, wait=silent):
        made = folder / "made.pickle"
        if not made.exists():
            (folder / "work").mkdir(parents=True)
            made.write_bytes(pickle.dumps(make(folder / "work")))
        return pickle.loads(made.read_bytes())
