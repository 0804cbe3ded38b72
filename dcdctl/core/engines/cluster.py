"""The connection to a Ray cluster, and what its nodes have room for."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import ray
from ray import exceptions as failures

from dcdctl.core.engines.choice import EngineChoice
from dcdctl.core.errors import RUN_AGAIN, ConfigError, SourceError, StaleError, first_line
from dcdctl.core.machine import num_cores
from dcdctl.core.progress import Say, counted

_AUTO = "auto"
"""What Ray calls the cluster that runs on this machine."""
_LOCAL = "local"
"""What Ray calls a cluster that it starts for this process."""
_NO_CLUSTER_HINT = (
    "`ray start --head` starts one, and `ray status` shows whether it runs; one that asks for a token takes "
    "RAY_AUTH_MODE=token and its file"
)
SECONDS_TO_ANSWER = 5.0
"""How long the head of a cluster may take to accept a connection."""


def connect(choice: EngineChoice, say: Say) -> None:
    """Connect to the cluster that the choice names; `ray` is the one that RAY_ADDRESS names or that runs on this
    machine, else one that is started here and ends with this process. A connection that exists is used as it is.

    SourceError if none answers, StaleError if its Ray or Python is another one, ConfigError if a worker can never
    start.
    """
    if ray.is_initialized():
        return
    _keep_stdout_free()
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    # Of a connection as ray://, which does not take the level.
    logging.getLogger("ray.util.client.logsclient").disabled = True
    address = _address(choice)
    if address is not None:
        _join(address, quiet)
        return
    # Nothing of it is reported to Ray's makers, and no page is served.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    with _interrupted_afterwards():
        ray.init(address=_LOCAL, num_cpus=num_cores(), include_dashboard=False, **quiet)
    say(f"no Ray cluster runs here: one was started for this command, with {counted(num_cores(), 'cores')}")
    # No node can join it.
    if not has_room(choice):
        found = f"one takes {room_of_worker(choice)}, and the cluster has {room_of_cluster()}"
        ray.shutdown()
        raise ConfigError(
            f"no worker fits: {found}",
            hint="ask for less: --engine 'ray?cpus=1&gpus=0', or name a cluster",
        )


def check_address(choice: EngineChoice) -> None:
    """SourceError if nobody listens at the address that the choice names: known before a model is read, which may take
    minutes. A cluster that is not named is looked for by `connect`."""
    named = _named(choice)
    if named and named not in (_LOCAL, _AUTO) and not ray.is_initialized():
        _check_answers(named)


def _keep_stdout_free() -> None:
    """Let Ray print nothing: its messages about lost workers go to stdout, which is for results, and no setting changes
    that. Its logs have them."""
    from ray._private import worker

    worker.print_to_stdstream = lambda data, **_: None


def _named(choice: EngineChoice) -> str | None:
    """The cluster that the user names; empty if they name none."""
    return os.environ.get("RAY_ADDRESS", "") if choice.engine == "ray" else choice.engine


def _address(choice: EngineChoice) -> str | None:
    """The address of the cluster; None if none is named and none runs on this machine."""
    named = _named(choice)
    if named == _LOCAL:
        return None
    if named and named != _AUTO:
        return named
    from ray._private import services

    try:
        found = services.canonicalize_bootstrap_address_or_die(_AUTO)
    except ConnectionError:
        return None
    # Ray remembers a head that was killed. By "auto" it is joined with the token of this machine, which
    # `ray start --head` made; by its address it is not.
    return None if _why_silent(found) else _AUTO


def _why_silent(address: str) -> str:
    """Why nobody accepts connections at HOST:PORT or ray://HOST:PORT; empty if somebody does."""
    try:
        place = urlsplit(address if "://" in address else f"ray://{address}")
        if place.hostname is None or place.port is None:
            return "it is not HOST:PORT"
        with socket.create_connection((place.hostname, place.port), timeout=SECONDS_TO_ANSWER):
            return ""
    except (OSError, ValueError) as error:
        return first_line(error)


def _check_answers(address: str) -> None:
    """SourceError if nobody listens at an address: Ray itself tries for minutes."""
    if reason := _why_silent(address):
        raise SourceError(f"no Ray cluster answers at {address}: {reason}", hint=_NO_CLUSTER_HINT)


def _join(address: str, quiet: dict[str, Any]) -> None:
    if address != _AUTO:
        _check_answers(address)
    try:
        with warnings.catch_warnings(action="ignore"), _few_tries(), _interrupted_afterwards():
            ray.init(address=address, **quiet)
    except (ConnectionError, RuntimeError, ValueError) as error:
        if "Version mismatch" in str(error):
            raise StaleError(
                f"the Ray cluster at {address} has another Ray or Python: {' '.join(str(error).split())}",
                hint="install the same versions here and on all nodes",
            ) from error
        reason = first_line(error)
        raise SourceError(f"no Ray cluster answers at {address}: {reason}", hint=_NO_CLUSTER_HINT) from error


def is_alive() -> bool:
    """Whether this process is still connected to the cluster.

    If the node of this process is gone, Ray ends the process without a word when it next reads a large object. If a
    connection as ray:// is gone, Ray tries for minutes to find or start another cluster.
    """
    from ray._private import worker

    if not ray.is_initialized():
        return False
    node = worker._global_node
    if node is None:  # ray://
        return True
    with socket.socket(socket.AF_UNIX) as store:
        return store.connect_ex(node.plasma_store_socket_name) == 0


@contextmanager
def answering() -> Iterator[None]:
    """SourceError if the cluster ends before the block or in it."""
    message = "the Ray cluster no longer answers: its head, or Ray on this machine, has ended"
    if not is_alive():
        raise SourceError(message, hint=RUN_AGAIN)
    try:
        yield
    except (ConnectionError, failures.LocalRayletDiedError) as error:
        if isinstance(error, failures.RayTaskError):  # of a worker, which has lost another connection
            raise
        raise SourceError(message, hint=RUN_AGAIN) from error


@contextmanager
def _interrupted_afterwards() -> Iterator[None]:
    """Let the first Ctrl-C wait for the end of the block: a Ray that is interrupted while it starts ends the process
    with a segmentation fault. A second one does not wait."""
    if threading.current_thread() is not threading.main_thread():  # no other thread can be interrupted
        yield
        return
    interrupts: list[int] = []

    def note(number: int, frame: object) -> None:
        if interrupts:
            raise KeyboardInterrupt
        interrupts.append(number)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before or signal.SIG_DFL)
    if interrupts:
        raise KeyboardInterrupt


@contextmanager
def _few_tries() -> Iterator[None]:
    """Let Ray try a head that accepts connections and is none, or ends just now, for a minute and not for a quarter of
    an hour."""
    from ray._private import ray_constants

    tries = ray_constants.NUM_REDIS_GET_RETRIES
    ray_constants.NUM_REDIS_GET_RETRIES = 1
    try:
        yield
    finally:
        ray_constants.NUM_REDIS_GET_RETRIES = tries


def has_room(choice: EngineChoice) -> bool:
    """Whether some node is large enough for a worker."""
    for node in ray.nodes():
        resources = node.get("Resources", {}) if node.get("Alive") else {}
        cpus, gpus = resources.get("CPU", 0), resources.get("GPU", 0)
        if cpus >= (choice.cpus) and gpus >= gpus_of_worker(choice):
            return True
    return False


def gpus_of_worker(choice: EngineChoice) -> float:
    """The GPUs that each worker gets."""
    if choice.gpus is not None:
        return choice.gpus
    return 1.0 if ray.cluster_resources().get("GPU", 0) else 0.0


def num_workers(choice: EngineChoice) -> int:
    """The number of workers that the user names, else as many as the nodes have room for, at least one."""
    if choice.workers is not None:
        return choice.workers
    resources, gpus = ray.cluster_resources(), gpus_of_worker(choice)
    by_cpus = resources.get("CPU", 0) / (choice.cpus)
    by_gpus = resources.get("GPU", 0) / gpus if gpus else by_cpus
    return max(1, int(min(by_cpus, by_gpus)))


def room_of_cluster() -> str:
    """What the nodes have, in words."""
    resources = ray.cluster_resources()
    nodes = sum(bool(node.get("Alive")) for node in ray.nodes())
    room = _amounts(resources.get("CPU", 0), resources.get("GPU", 0))
    return f"{room} on {counted(nodes, 'nodes')}"


def free_room() -> str:
    """What of it no other command uses now, in words."""
    free = ray.available_resources()
    return f"{_amounts(free.get('CPU', 0), free.get('GPU', 0))} free"


def room_of_worker(choice: EngineChoice) -> str:
    """What a worker takes of a node, in words."""
    return _amounts(choice.cpus, gpus_of_worker(choice))


def _amounts(cpus: float, gpus: float) -> str:
    return f"{cpus:g} CPU{'' if cpus == 1 else 's'} and {gpus:g} GPU{'' if gpus == 1 else 's'}"
