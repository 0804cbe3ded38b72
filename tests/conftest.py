"""How the suite runs in several processes: one thread each, and somewhat more of them than there are cores, as tests wait for others."""

from __future__ import annotations

import os

import pytest

WORKER = "PYTEST_XDIST_WORKER"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Three where there are two cores."""
    cores = os.cpu_count() or 1
    return cores + cores // 2


def pytest_configure(config: pytest.Config) -> None:
    """One thread for each of several test processes, and for what they start. The one that only deals tests out needs no fixtures, whose
    imports take seconds."""
    if WORKER in os.environ:
        import torch

        os.environ["OMP_NUM_THREADS"] = "1"
        torch.set_num_threads(1)
    if WORKER in os.environ or not config.getoption("numprocesses", default=None):
        config.pluginmanager.import_plugin("shared_fixtures")
