"""A Ray cluster of several nodes on this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
from paths import ROOT
from processes import free_port

ray = pytest.importorskip("ray")

from ray.cluster_utils import Cluster  # noqa: E402

STORE_BYTES = 100_000_000
"""Of each node, for objects: little more than Ray's least."""


class Nodes:
    """A head, which computes nothing, and nodes by name."""

    def __init__(self) -> None:
        port = free_port()
        head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": STORE_BYTES}
        head |= {"ray_client_server_port": port}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.url = f"ray://127.0.0.1:{port}"
        self.named: dict[str, Any] = {}

    @property
    def address(self) -> str:
        return self.cluster.address

    def add(self, name: str, cpus: int = 2, **environment: str) -> None:
        """A node, with these variables for its workers."""
        self.named[name] = self.cluster.add_node(
            num_cpus=cpus, object_store_memory=STORE_BYTES, env_vars={"NODE": name, **environment}
        )

    def kill_head(self) -> None:
        """End all processes of the head, to which commands are connected."""
        for kind in self.cluster.head_node.all_processes.values():
            for started in kind:
                started.process.kill()

    def start_again(self) -> None:
        """A new head, without nodes."""
        # `shutdown` asks the head, which may be gone, and waits for it.
        for node in (self.cluster.head_node, *self.named.values()):
            node.kill_all_processes(check_alive=False, allow_graceful=False)
        self.__init__()

    def kill(self, name: str) -> None:
        self.cluster.remove_node(self.named.pop(name), allow_graceful=False)


@pytest.fixture
def nodes(monkeypatch) -> Iterator[Nodes]:
    """A cluster, to which commands and engines of this test connect."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "support")])
    # Of the nodes' processes, which import dcdctl and what tests share.
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    made = Nodes()
    monkeypatch.setenv("RAY_ADDRESS", made.address)
    yield made
    ray.shutdown()
    made.cluster.shutdown()
