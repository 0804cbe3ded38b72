"""Scripts of benchmarks/ as modules, for their tests."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

from paths import ROOT


def load(name: str) -> ModuleType:
    """The script of this name."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
