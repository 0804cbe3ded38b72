"""Settings as objects: the tables of a recipe, of a benchmark and of an index."""

from __future__ import annotations

import os

from dcdctl.cli.declare import Overrides, Ref, assignments
from dcdctl.core import training
from dcdctl.core.bench import BenchConfig
from dcdctl.core.data import StreamConfig
from dcdctl.core.search import IndexConfig
from dcdctl.core.teacher import CandidateConfig
from dcdctl.core.training import (
    BatchConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    Recipe,
    TeachersConfig,
    ValidationConfig,
)

__all__ = [
    "BatchConfig",
    "BenchConfig",
    "CandidateConfig",
    "IndexConfig",
    "LossConfig",
    "ModelConfig",
    "OptimizerConfig",
    "Recipe",
    "StreamConfig",
    "TeachersConfig",
    "ValidationConfig",
    "load_recipe",
]


def load_recipe(ref: Ref | Recipe, overrides: Overrides | None = None) -> Recipe:
    """A recipe by name, from a .toml file or in memory, with fields overridden: {"optimizer.steps": 20}.

    ConfigError for an unknown name, field or value.
    """
    return training.load_recipe(ref if isinstance(ref, Recipe) else os.fspath(ref), assignments(overrides))
