"""The house: what may import what."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import dcdctl

PACKAGE = Path(dcdctl.__file__).parent
CORE, CLI = PACKAGE / "core", PACKAGE / "cli"

ORDER = [
    "errors",
    "files",
    "progress",
    "config",
    "devices",
    "machine",
    "distributed",
    "scenes",
    "drawing",
    "formats",
    "manifest",
    "http_files",
    "hub_files",
    "download",
    "pictures",
    "pages",
    "charts",
    "corpus",
    "leakage",
    "corpus_inspection",
    "contact_sheet",
    "archives",
    "image_store",
    "sources",
    "data_files",
    "protocol",
    "named_teachers",
    "catalogue",
    "picture_pool",
    "prepare_shards",
    "prepare",
    "models",
    "features",
    "tally",
    "retrieval",
    "vectors",
    "guards",
    "miners",
    "near_groups",
    "candidates",
    "scoring",
    "resampling",
    "comparison",
    "reranking",
    "pair_scoring",
    "cascade",
    "ranking",
    "evaluation",
    "eccv",
    "evaluation_files",
    "evaluation_job",
    "answers",
    "results",
    "sides",
    "rank_shifts",
    "contest",
    "contest_tables",
    "contest_page",
    "cache_files",
    "teacher_cache",
    "teacher_ensemble",
    "inspection",
    "cache_extension",
    "cache_building",
    "cache_trials",
    "losses",
    "loss_config",
    "recipe",
    "neighbourhoods",
    "slices",
    "negatives",
    "batches",
    "runs",
    "wandb_log",
    "validation",
    "gradients",
    "training",
    "objectives",
    "starts",
    "refresh",
    "pretraining",
    "grading",
    "distillation",
    "bench_config",
    "timing",
    "timed_models",
    "footprint",
    "first_query",
    "onnx_export",
    "rates",
    "bench_results",
    "bench_onnx",
    "benchmark",
    "report",
    "report_tables",
    "report_charts",
    "showcase",
    "report_gallery",
    "report_page",
    "report_text",
    "export_check",
    "export_transformers",
    "export_sentence_transformers",
    "export_onnx",
    "export_usage",
    "export_hub",
    "model_card",
    "export",
    "nearest",
    "index_config",
    "index_files",
    "index_segments",
    "index",
    "index_images",
    "index_embedding",
    "index_removal",
    "index_sealing",
    "index_building",
    "index_job",
    "search_query",
    "search_answers",
    "search_reranking",
    "search",
    "search_sheet",
    "service_config",
    "service_index",
    "service_metrics",
    "service_work",
    "service_limits",
    "service_pictures",
    "service_pages",
    "service_app",
    "service",
    "demo",
]
"""The modules and families of core; each imports only what stands before it."""


def sources(name: str) -> list[Path]:
    """The files of a module or of a family."""
    return [CORE / f"{name}.py"] if (CORE / f"{name}.py").exists() else sorted((CORE / name).glob("*.py"))


def imported(path: Path, *, top_only: bool = False) -> set[str]:
    """Dotted names a file imports, wherever in it; `from a import b` is a.b."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names: set[str] = set()
    for node in tree.body if top_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def core_modules(names: set[str]) -> set[str]:
    return {name.split(".")[2] for name in names if name.startswith("dcdctl.core.")}


def test_the_order_names_every_module_of_core():
    there = {path.stem for path in CORE.glob("*.py")} | {path.parent.name for path in CORE.glob("*/__init__.py")}
    assert sorted(ORDER) == sorted(there - {"__init__"})


@pytest.mark.parametrize("name", ORDER)
def test_imports_point_one_way(name):
    later = set(ORDER[ORDER.index(name) + 1 :])
    for path in sources(name):
        assert not core_modules(imported(path)) & later, path


@pytest.mark.parametrize("path", sorted(CORE.rglob("*.py")), ids=lambda path: str(path.relative_to(CORE)))
def test_core_neither_talks_nor_exits(path):
    roots = {name.split(".")[0] for name in imported(path)}
    assert not roots & {"typer", "click", "rich"}
    assert not any(name.startswith("dcdctl.cli") for name in imported(path))
    calls = [ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    assert not {"print", "exit", "sys.exit"} & set(calls)


@pytest.mark.parametrize("path", sorted(CLI.glob("*.py")), ids=lambda path: path.name)
def test_commands_import_core_in_their_bodies(path):
    light = {"dcdctl.core.errors.DcdError", "dcdctl.core.progress.Advance"}
    at_top = imported(path, top_only=True)
    assert {name for name in at_top if name.startswith("dcdctl.core")} <= light
    assert not {name.split(".")[0] for name in at_top} & {"torch", "transformers", "numpy", "pandas", "pyarrow", "PIL", "rich", "click"}
