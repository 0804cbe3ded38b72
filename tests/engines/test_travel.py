"""What travels between a driver and its workers, and which errors come back; without a cluster."""

from __future__ import annotations

import importlib
import sys

import pytest
from ray import exceptions as failures
from ray._private import worker

from dcdctl.core.engines import cluster, travel
from dcdctl.core.engines.ray_worker import versions
from dcdctl.core.errors import DcdError, InputError, MissingError, ModelError, StaleError


def of_task(cause: Exception) -> failures.RayTaskError:
    return failures.RayTaskError("run", "its traceback", cause)


def test_an_error_of_a_worker_is_that_of_the_user_if_they_can_put_it_right():
    mine = ModelError("no such model", hint="name another")
    assert travel.cause_of(of_task(mine), "node-3") is mine
    full = travel.cause_of(of_task(failures.ObjectStoreFullError("2 GB")), "node-3")
    assert isinstance(full, InputError)
    assert str(full).startswith("Ray's object store is too small: 2 GB")
    lacks = travel.cause_of(of_task(ModuleNotFoundError("No module named 'timm'")), "node-3")
    assert isinstance(lacks, MissingError)
    assert "the node node-3 lacks a package: No module named 'timm'; install the same" in str(lacks)
    bug = of_task(ZeroDivisionError("by zero"))
    assert travel.cause_of(bug, "node-3") is bug


def test_a_node_with_other_software_is_an_error_that_names_all_that_differs():
    ours = versions()
    travel.check_versions("here", dict(ours))
    # What a node has besides is of no matter.
    travel.check_versions("here", {**ours, "more": "1"})
    theirs = {**ours, "torch": "1.0", "machine": "z80"}
    with pytest.raises(
        StaleError, match=r"the node there would compute with other software: torch 1\.0 there and"
    ) as other:
        travel.check_versions("there", theirs)
    assert f"machine z80 there and {ours['machine']} here; install the same versions" in str(other.value)
    assert "numpy" not in str(other.value)
    with pytest.raises(StaleError, match="numpy None there"):
        travel.check_versions("there", {name: value for name, value in ours.items() if name != "numpy"})


def test_modules_of_the_current_folder_travel_and_installed_ones_do_not(tmp_path, monkeypatch):
    (tmp_path / "my_teacher.py").write_text("def load():\n    return 7\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    importlib.invalidate_caches()
    mine = importlib.import_module("my_teacher")
    try:
        assert travel._own_modules() == [mine]
        monkeypatch.chdir("/")
        found = travel._own_modules()
        assert travel not in found
        assert sys.modules["torch"] not in found
    finally:
        del sys.modules["my_teacher"]


def test_lines_of_workers_go_nowhere(monkeypatch, capsys):
    monkeypatch.setattr(worker, "print_to_stdstream", None)
    cluster._keep_stdout_free()
    worker.print_to_stdstream({"pid": 12, "lines": ["one", "two"]}, ignore_prefix=True)
    worker.print_to_stdstream({"lines": ["three"]})
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("error", [DcdError("x"), ValueError("x")])
def test_an_error_in_a_block_that_asks_a_cluster_stays_what_it_is(monkeypatch, error):
    monkeypatch.setattr(cluster, "is_alive", lambda: True)
    with pytest.raises(type(error)) as raised, cluster.answering():
        raise error
    assert raised.value is error
