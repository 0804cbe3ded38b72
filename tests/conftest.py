"""Settings of a test run: none of its user's; in several processes one thread each, and more processes than cores,
because tests wait."""

from __future__ import annotations

import gc
import os
import sys

import forks
import pytest
from processes import IS_PLAIN, WORKER, clear_user_settings


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One and a half times the number of cores."""
    cores = os.cpu_count() or 1
    return cores + cores // 2


def pytest_addoption(pluginmanager: pytest.PytestPluginManager) -> None:
    """Remove the user's settings, and use one thread in each of several test processes; both also for the processes
    that they start.

    Libraries read the settings when they are imported, so a fixture would come too late, and `pytest_configure` too:
    the conftest.py of a folder that the command names is imported before it, and dcdctl with that.
    """
    clear_user_settings(os.environ)
    # Without compiled files, every process would compile the package and rewrite the tests again: seven seconds each.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False
    if WORKER in os.environ:
        os.environ["OMP_NUM_THREADS"] = "1"
    # Before torch: it decides how long threads spin, here and in all processes that tests start.
    import dcdctl  # noqa: F401

    # Some scripts run in forks of this process and check that nothing imports it.
    del sys.modules["dcdctl"]
    if WORKER in os.environ:
        import torch

        torch.set_num_threads(1)
    if IS_PLAIN:
        return
    # What tests write need not outlive a loss of power, and a disk takes milliseconds per file.
    os.fsync = os.fstat  # type: ignore[assignment]
    if _runs_tests(pluginmanager.get_plugin("pytestconfig")):
        # What is imported, and the list of tests, is a million objects that stay. `pytest_collection_finish` ends this.
        gc.disable()
        # The default, 700, was a twenty-fifth of the time of the tests, most of it for looking at all objects again.
        gc.set_threshold(20_000, 10, 10)
        if hasattr(os, "fork"):
            # dcdctl would import them right after this.
            from transformers import AutoImageProcessor, AutoModel, AutoTokenizer  # noqa: F401

            gc.freeze()
            forks.start(forks.LIBRARIES)


def pytest_configure(config: pytest.Config) -> None:
    """Fixtures for the processes that run tests."""
    if _runs_tests(config):
        config.pluginmanager.import_plugin("shared_fixtures")


def _runs_tests(config: pytest.Config) -> bool:
    """Whether this process does not only distribute the tests; that one needs no fixtures, and their imports take
    seconds."""
    return WORKER in os.environ or not getattr(config.known_args_namespace, "numprocesses", None)


def pytest_collection_finish(session: pytest.Session) -> None:
    """From here on, garbage is looked for among the objects of the tests only. A fork of the process as it is now runs
    scripts."""
    if IS_PLAIN:
        return
    gc.freeze()
    gc.enable()
    if session.items and hasattr(os, "fork"):
        forks.start(forks.TESTS)


def pytest_unconfigure() -> None:
    forks.stop()


@pytest.fixture(autouse=True)
def _environment_without_user_settings() -> None:
    """AssertionError if an earlier test left a setting behind that this one would depend on."""
    left = dict(os.environ)
    clear_user_settings(left)
    assert left == dict(os.environ)
