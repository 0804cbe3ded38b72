"""The way to a cluster: mistakes in its address are told at once, and what no node has is no long wait. Ray is not
started here."""

from __future__ import annotations

import logging
import signal
import socket
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from processes import free_port
from ray._private import ray_constants, services

from dcdctl.core.engines import EngineChoice, cluster, open_engine, ray_engine
from dcdctl.core.engines.open_tasks import OpenTasks
from dcdctl.core.errors import ConfigError, DcdError, StaleError
from dcdctl.core.progress import unsaid


def refuse(*args: object, **options: object) -> None:
    raise AssertionError("Ray would try for minutes")


@pytest.mark.parametrize("named", ["", "auto", "local"])
def test_a_cluster_that_is_not_named_is_looked_for_when_a_task_is_given(monkeypatch, named):
    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.setenv("RAY_ADDRESS", named)
    assert isinstance(open_engine(EngineChoice(engine="ray"), unsaid), ray_engine.RayEngine)


def test_a_cluster_with_another_version_is_told_with_both(monkeypatch):
    said = "Version mismatch: The cluster has:\n  Ray: 2.9.0\n  Python: 3.9.1\nThis process:\n  Ray: 2.60"

    def init(**options: object) -> None:
        # Each try takes 41 s if somebody listens who is no head.
        assert ray_constants.NUM_REDIS_GET_RETRIES == 1
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
    assert (alone[0]["log_to_driver"], alone[0]["logging_level"]) == (False, logging.ERROR)


def test_a_worker_that_can_never_start_is_an_error_and_the_cluster_that_was_started_ends(alone):
    with pytest.raises(ConfigError, match=r"no worker fits: one takes 64 CPUs and 0 GPUs, .*; ask for less: --engine"):
        cluster.connect(EngineChoice(engine="ray", cpus=64), unsaid)
    assert [options["address"] for options in alone] == ["local", "none"]


@pytest.fixture
def job(monkeypatch) -> ray_engine._Job:
    """A job for a hundred workers, without a cluster."""
    monkeypatch.setattr(ray_engine, "has_room", lambda choice: True)
    monkeypatch.setattr(ray, "kill", lambda handle: None)
    engine = ray_engine.RayEngine(EngineChoice(engine="ray"), unsaid)
    monkeypatch.setattr(engine, "start_actor", partial(start_actor, engine))
    return ray_engine._Job(engine, OpenTasks(iter([])), None, 100, lambda count: None)


def start_actor(engine: ray_engine.RayEngine) -> ray_engine._Actor:
    """A worker that never answers."""
    describe = SimpleNamespace(remote=object)
    engine.actors.append(ray_engine._Actor(handle=SimpleNamespace(describe=describe)))
    return engine.actors[-1]


def test_a_node_that_ends_with_its_unready_workers_does_not_end_the_job(job):
    job._give()
    for _ in range(3):
        for actor in list(job.engine.actors):
            job._lose(actor, RuntimeError("the node has died"))
        assert job.engine.actors == []
        job._give()
    with pytest.raises(DcdError, match="4 workers in a row ended before they were ready: the node has died"):
        job._lose(job.engine.actors[0], RuntimeError("the node has died"))


def test_a_hundred_workers_are_a_few_lines(job, monkeypatch):
    now = 1000.0
    said: list[str] = []
    monkeypatch.setattr(ray_engine, "time", SimpleNamespace(monotonic=lambda: now))
    job.engine.say = said.append
    for number in range(100):
        job.engine.actors.append(ray_engine._Actor(handle=None))
        job._hear("ready", job.engine.actors[number], None)
        now += 0.1
    now += ray_engine.SECONDS_BETWEEN_NEWS
    job._look()
    assert said == [
        "1 worker ready: 1 of 100 at work",
        "50 workers ready: 51 of 100 at work",
        "49 workers ready: 100 of 100 at work",
    ]


def test_an_interrupt_waits_until_ray_has_started(alone, monkeypatch):
    def init(**options: object) -> None:
        signal.raise_signal(signal.SIGINT)
        alone.append({"address": "started"})

    monkeypatch.setattr(ray, "init", init)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        cluster.connect(EngineChoice(engine="ray"), unsaid)
    assert [options["address"] for options in alone] == ["started"]
    assert signal.getsignal(signal.SIGINT) is before


def test_the_cluster_of_this_machine_is_joined_with_its_token(monkeypatch):
    # By its address, Ray takes no token, and `ray start --head` asks for one.
    with socket.socket() as head:
        head.bind(("127.0.0.1", 0))
        head.listen()
        address = f"127.0.0.1:{head.getsockname()[1]}"
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        monkeypatch.setattr("ray._private.services.canonicalize_bootstrap_address_or_die", lambda _: address)
        assert cluster._address(EngineChoice(engine="ray")) == "auto"
    assert cluster._address(EngineChoice(engine="ray")) is None  # it was killed
