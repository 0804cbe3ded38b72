"""The examples of docstrings give what they say."""

from __future__ import annotations

import doctest
import importlib

import pytest
from paths import ROOT

MODULES = sorted(path for path in (ROOT / "dcdctl").rglob("*.py") if ">>> " in path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT / "dcdctl")))
def test_examples_of_docstrings(path):
    module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    results = doctest.testmod(module)
    assert results.attempted
    assert not results.failed
