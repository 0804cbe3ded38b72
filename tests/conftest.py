"""Settings for a test run in several processes: one thread each, and more processes than cores, because tests wait for subprocesses."""

from __future__ import annotations

import os

import pytest

WORKER = "PYTEST_XDIST_WORKER"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One and a half times the number of cores."""
    cores = os.cpu_count() or 1
    return cores + cores // 2


def pytest_configure(config: pytest.Config) -> None:
    """Use one thread in each of several test processes, and in the processes that they start.

    The process that only distributes the tests needs no fixtures, and their imports take seconds.
    """
    if WORKER in os.environ:
        import torch

        os.environ["OMP_NUM_THREADS"] = "1"
        torch.set_num_threads(1)
    if WORKER in os.environ or not config.getoption("numprocesses", default=None):
        config.pluginmanager.import_plugin("shared_fixtures")
