"""A worker of a Ray cluster. This file imports nothing that is heavy or that nodes may lack."""

from __future__ import annotations

import hashlib
import os
import pickle
import platform
import threading
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import dcdctl

COMPARED = ("torch", "transformers", "numpy", "pillow")
"""Packages whose versions can change a number."""


def versions() -> dict[str, str]:
    """What must be equal on all nodes, so that a result does not depend on who computes it."""
    found = {}
    for name in COMPARED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    return {"dcdctl": f"{dcdctl.__version__} ({_digest_of_code()})", **found, "machine": platform.machine()}


def _digest_of_code() -> str:
    """Eight digits that change with any line of the package: two clones may have one version."""
    folder = Path(dcdctl.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:8]


class RayWorker:
    """The actor: it does tasks one after the other, and says how far it is meanwhile."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._done = 0
        self._worker: Any = None

    def describe(self) -> dict[str, Any]:
        """Versions, and the node on which this worker is."""
        return {"versions": versions(), "node": platform.node(), "process": os.getpid()}

    def prepare(self, make_worker: list[Any]) -> None:
        """Make the worker, in place of an earlier one, from the reference in the list."""
        import ray

        with self._turn:
            self._worker, self._done = None, 0
            self._worker = pickle.loads(ray.get(make_worker[0]))()

    def run(self, inputs: Any) -> tuple[Any, int]:
        """The result of a task, and the units done for it."""
        # Outside of the lock: it reads ahead while another task is computed.
        finish = self._worker.start(inputs)
        with self._turn:
            before = self._done
            return finish(self._advance), self._done - before

    def _advance(self, count: int) -> None:
        self._done += count

    def done(self) -> int:
        """Units done since `prepare`."""
        return self._done
