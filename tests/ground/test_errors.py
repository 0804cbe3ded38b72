"""Errors with hints, and errors for missing packages of optional extras."""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
import tomllib
from pathlib import Path

import pytest
from paths import ROOT

from dcdctl.core.errors import DcdError, MissingError, require_extra
from dcdctl.core.models import onnx
from dcdctl.core.serve import server


def test_the_hint_follows_the_message():
    assert str(DcdError("no run", hint="make one")) == "no run; make one"
    assert str(DcdError("no run")) == "no run"


def test_missing_packages_are_named_with_the_install_command(monkeypatch):
    with pytest.raises(MissingError) as error:
        require_extra("serve", "json", "no_such_package", needed_by="serving")
    assert str(error.value) == "serving needs no-such-package, which is not installed; pip install 'dcdctl[serve]'"
    monkeypatch.setitem(sys.modules, "blocked", None)
    with pytest.raises(MissingError) as error:
        require_extra("index", "blocked", "no_such_package", needed_by="a graph", or_else="--set kind=flat")
    assert str(error.value) == (
        "a graph needs blocked, no-such-package, which are not installed; pip install 'dcdctl[index]', or --set kind=flat"
    )


def test_the_check_for_packages_does_not_import_them():
    assert importlib.util.find_spec("this") is not None
    require_extra("serve", "this", "json", needed_by="serving")
    assert "this" not in sys.modules


def calls_of_require_extra() -> list[tuple[Path, ast.Call]]:
    paths = sorted((ROOT / "dcdctl").rglob("*.py"))
    nodes = [(path, node) for path in paths for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
    return [(path, node) for path, node in nodes if isinstance(node, ast.Call) and ast.unparse(node.func) == "require_extra"]


def test_every_required_extra_lists_its_packages_in_pyproject():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    packages = {extra: {re.split(r"[>=<\[]", package)[0] for package in extras[extra]} for extra in extras}
    constants = {"*PACKAGES": {"onnx.py": onnx.PACKAGES, "server.py": server.PACKAGES}}
    required = set()
    for path, call in calls_of_require_extra():
        first, *rest = call.args
        if isinstance(first, ast.Constant):
            names = constants.get(ast.unparse(rest[0]), {}).get(path.name) or [ast.literal_eval(name) for name in rest]
            assert {name.replace("_", "-") for name in names} <= packages[first.value]
            required.add(first.value)
    assert required == {"timm", "mine", "wandb", "onnx", "eccv", "serve"}


def test_only_errors_py_contains_the_install_command():
    assert [path.name for path in (ROOT / "dcdctl").rglob("*.py") if "pip install 'dcdctl" in path.read_text(encoding="utf-8")] == [
        "errors.py"
    ]
