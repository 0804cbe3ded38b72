"""The connection to a Ray cluster, and what its nodes have room for."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

import ray

from dcdctl.core.engines.choice import EngineChoice
from dcdctl.core.errors import SourceError, first_line
from dcdctl.core.machine import num_cores
from dcdctl.core.progress import Say, counted


def connect(choice: EngineChoice, say: Say) -> None:
    """Connect to the cluster that the choice names; `ray` is the one that RAY_ADDRESS names or that runs on this
    machine, else one that is started here and ends with this process. SourceError if none answers."""
    if ray.is_initialized():
        return
    _keep_stdout_free(choice.verbose)
    quiet: dict[str, Any] = {"log_to_driver": choice.verbose}
    if not choice.verbose:
        quiet["logging_level"] = logging.ERROR
    if choice.engine != "ray":
        _join(str(choice.engine), quiet)
        return
    try:
        _join("auto", quiet)
    except SourceError:
        if os.environ.get("RAY_ADDRESS"):
            raise
        # Nothing of it is reported to Ray's makers, and no page is served.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(address="local", num_cpus=num_cores(), include_dashboard=False, **quiet)
        say(f"no Ray cluster runs here: one was started for this command, with {counted(num_cores(), 'cores')}")


def _keep_stdout_free(verbose: bool) -> None:
    """Let Ray write to stderr if the user asks for it, else nowhere: its messages about lost workers go to stdout,
    which is for results, and no setting changes that."""
    from ray._private import worker

    def write(data: dict[str, Any], **_: Any) -> None:
        if verbose:
            sys.stderr.writelines(f"({data.get('pid', 'ray')}) {line}\n" for line in data["lines"])

    worker.print_to_stdstream = write


def _join(address: str, quiet: dict[str, Any]) -> None:
    try:
        ray.init(address=address, **quiet)
    except (ConnectionError, RuntimeError, ValueError) as error:
        named = os.environ.get("RAY_ADDRESS", "here") if address == "auto" else address
        raise SourceError(
            f"no Ray cluster answers at {named}: {first_line(error)}",
            hint="`ray start --head` starts one, and `ray status` shows whether it runs",
        ) from error


def gpus_of_worker(choice: EngineChoice) -> float:
    """The GPUs that each worker gets."""
    if choice.worker_gpus is not None:
        return choice.worker_gpus
    return 1.0 if ray.cluster_resources().get("GPU", 0) else 0.0


def num_workers(choice: EngineChoice) -> int:
    """The number of workers that the user names, else as many as the nodes have room for, at least one."""
    if choice.workers is not None:
        return choice.workers
    resources, gpus = ray.cluster_resources(), gpus_of_worker(choice)
    by_cpus = resources.get("CPU", 0) / (choice.worker_cpus or 1)
    by_gpus = resources.get("GPU", 0) / gpus if gpus else by_cpus
    return max(1, int(min(by_cpus, by_gpus)))


def room_of_cluster() -> str:
    """What the nodes have, in words."""
    resources = ray.cluster_resources()
    nodes = sum(bool(node.get("Alive")) for node in ray.nodes())
    return f"{resources.get('CPU', 0):g} CPUs and {resources.get('GPU', 0):g} GPUs on {counted(nodes, 'nodes')}"
