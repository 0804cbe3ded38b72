"""The way to a cluster: mistakes in its address are told at once, and what no node has is no long wait. Ray is not
started here."""

from __future__ import annotations

import socket
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from processes import free_port

from dcdctl.core.engines import EngineChoice, cluster, ray_engine
from dcdctl.core.errors import ConfigError, SourceError, StaleError
from dcdctl.core.progress import unsaid


def refuse(*args: object, **options: object) -> None:
    raise AssertionError("Ray would try for minutes")


@pytest.mark.parametrize("is_named_by_option", [True, False])
@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("127.0.0.1:{}", "refused"),
        ("127.0.0.1", "it is not HOST:PORT"),
        ("127.0.0.1:99999", "[Pp]ort out of range"),
        ("no-such-host.invalid:{}", r"\[Errno"),
    ],
)
def test_an_address_where_nobody_listens_is_an_error_at_once(monkeypatch, is_named_by_option, address, why):
    monkeypatch.setattr(ray, "init", refuse)
    address = address.format(free_port())
    choice = EngineChoice(engine=f"ray://{address}" if is_named_by_option else "ray")
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(SourceError, match=rf"no Ray cluster answers at .*{address}: .*{why}.*; `ray start --head`"):
        cluster.connect(choice, unsaid)


def test_a_cluster_with_another_version_is_told_with_both(monkeypatch):
    said = "Version mismatch: The cluster has:\n  Ray: 2.9.0\n  Python: 3.9.1\nThis process:\n  Ray: 2.60"

    def init(**options: object) -> None:
        raise RuntimeError(said)

    monkeypatch.setattr(ray, "init", init)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"ray://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(
            StaleError, match=r"Ray: 2\.9\.0 Python: 3\.9\.1 This process: Ray: 2\.60; install the same"
        ):
            cluster.connect(EngineChoice(engine=url), unsaid)


@pytest.fixture
def alone(monkeypatch) -> list[dict[str, Any]]:
    """A machine with two cores, on which no cluster runs; and what Ray is started with."""
    from ray._private import services

    started: list[dict[str, Any]] = []
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    # Ray remembers the head that was started last, though it was killed.
    monkeypatch.setattr(services, "canonicalize_bootstrap_address_or_die", lambda address: f"127.0.0.1:{free_port()}")
    monkeypatch.setattr(ray, "init", lambda **options: started.append(options))
    monkeypatch.setattr(ray, "shutdown", lambda: started.append({"address": "none"}))
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 2.0}}])
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0})
    return started


def test_a_head_that_was_killed_is_not_waited_for(alone):
    said: list[str] = []
    cluster.connect(EngineChoice(engine="ray"), said.append)
    assert [options["address"] for options in alone] == ["local"]
    assert "one was started for this command" in said[0]


@pytest.mark.parametrize(
    ("more", "taken"), [({"worker_gpus": 0.5}, "1 CPU and 0.5 GPUs"), ({"worker_cpus": 64}, "64 CPUs and 0 GPUs")]
)
def test_a_worker_that_can_never_start_is_an_error_at_once(alone, more, taken):
    message = f"no worker fits: one takes {taken}, and the cluster has 2 CPUs and 0 GPUs on 1 node; use a smaller"
    with pytest.raises(ConfigError, match=message):
        cluster.connect(EngineChoice(engine="ray", **more), unsaid)
    assert [options["address"] for options in alone] == ["local", "none"]


def test_a_hundred_workers_are_a_few_lines(monkeypatch):
    now = 1000.0
    said: list[str] = []
    monkeypatch.setattr(ray_engine, "has_room", lambda choice: True)
    monkeypatch.setattr(ray_engine, "time", SimpleNamespace(monotonic=lambda: now))
    engine = ray_engine.RayEngine(EngineChoice(engine="ray"), said.append)
    job = ray_engine._Job(engine, iter([]), None, 100, lambda count: None)
    for number in range(100):
        engine.actors.append(ray_engine._Actor(handle=None))
        job._hear("ready", engine.actors[number], None)
        now += 0.1
    now += ray_engine.SECONDS_BETWEEN_NEWS
    job._look()
    assert said == [
        "1 worker ready: 1 of 100 at work",
        "50 workers ready: 51 of 100 at work",
        "49 workers ready: 100 of 100 at work",
    ]
