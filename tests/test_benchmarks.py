"""Benchmarks find every name that they import and call it with known arguments, and the commands of the evidence plans
parse.

Nothing else reads these scripts: they take minutes to hours, so no test runs them.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import shlex
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from paths import DOCS, ROOT, SUPPORT
from typed_commands import parse

from dcdctl.core import artifacts
from dcdctl.core.training import load_recipe

BENCHMARKS = ROOT / "benchmarks"
SCRIPTS = sorted(BENCHMARKS.glob("*.py"))
PLANS = [
    "clip-scenes",
    "elsewhere",
    "fair",
    "flickr8k",
    "images",
    "pools",
    "queries",
    "scenes",
    "small",
    "students",
    "weights",
]


def imports(tree: ast.AST) -> Iterator[tuple[str, str, str]]:
    """Module, name and local alias of each `from dcdctl.x import y`; the name is empty for `import dcdctl.x`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "dcdctl":
            yield from ((node.module, alias.name, alias.asname or alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (
                (alias.name, "", alias.asname or "dcdctl")
                for alias in node.names
                if alias.name.split(".")[0] == "dcdctl"
            )


def member(owner: object, name: str) -> object:
    """An attribute of a module or class, or a submodule; None for other owners. MissingNameError if there is none."""
    if isinstance(owner, ModuleType) and not hasattr(owner, name):
        try:
            return importlib.import_module(f"{owner.__name__}.{name}")
        except ModuleNotFoundError as error:
            raise MissingNameError from error
    if isinstance(owner, type) and not hasattr(owner, name):
        raise MissingNameError
    return getattr(owner, name) if isinstance(owner, ModuleType | type) else None


class MissingNameError(Exception):
    """dcdctl has no such name."""


def imported(tree: ast.AST) -> tuple[dict[str, object], set[str]]:
    """What a script imports from dcdctl, by local name, and the imports that fail."""
    known: dict[str, object] = {}
    missing = set()
    for module, name, alias in imports(tree):
        try:
            found = importlib.import_module(module)
            known[alias] = member(found, name) if name else importlib.import_module(alias)
        except (MissingNameError, ModuleNotFoundError):
            missing.add(f"{module}.{name}".rstrip("."))
    return known, missing


def resolve(node: ast.expr, known: dict[str, object]) -> object:
    """What `a.b.c` is, where `a` was imported from dcdctl; None if it was not. MissingNameError if there is no such
    attribute."""
    if isinstance(node, ast.Attribute):
        return member(resolve(node.value, known), node.attr)
    return known.get(node.id) if isinstance(node, ast.Name) else None


def missing_names(tree: ast.AST) -> set[str]:
    """The imports, and the attributes of imported modules and classes, that dcdctl does not have."""
    known, missing = imported(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            try:
                resolve(node, known)
            except MissingNameError:
                missing.add(ast.unparse(node))
    return missing


def wrong_calls(tree: ast.AST) -> set[str]:
    """The calls of imported functions and classes with unknown keywords or with too many arguments."""
    known, _ = imported(tree)
    wrong = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and callable(called := resolve(node.func, known)):
            arguments = [argument for argument in node.args if not isinstance(argument, ast.Starred)]
            try:
                inspect.signature(called).bind_partial(
                    *arguments, **{word.arg: word.value for word in node.keywords if word.arg}
                )
            except TypeError as error:
                wrong.add(f"{ast.unparse(node.func)}: {error}")
    return wrong


def missing_local_names(tree: ast.Module) -> set[str]:
    """The names that other benchmarks and the modules of tests/support are asked for and do not define."""
    missing = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            for folder in (BENCHMARKS, SUPPORT):
                if (path := folder / f"{node.module}.py").exists():
                    missing |= {f"{node.module}.{alias.name}" for alias in node.names} - {
                        f"{node.module}.{name}" for name in defined(path)
                    }
    return missing


def defined(path: Path) -> set[str]:
    """The names at the top of a module."""
    names: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            names |= {
                part.id for part in ast.walk(node) if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)
            }
    return names


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_benchmark_finds_every_name_it_imports(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    compile(tree, path, "exec")
    assert missing_names(tree) == set()
    assert missing_local_names(tree) == set()
    assert wrong_calls(tree) == set()


@pytest.fixture(scope="module")
def evidence():
    """The script that runs the plans; its imports need the folder of the benchmarks on the path."""
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(BENCHMARKS)
        yield importlib.import_module("evidence")


@pytest.mark.parametrize("plan", PLANS)
def test_the_commands_of_a_plan_parse_and_their_recipes_load(evidence, plan):
    for step in evidence.PLANS[plan]():
        parse(shlex.join(["dcdctl", *step.arguments]))
        if step.trains:
            load_recipe(step.words[0], values_of("--set", step.words))
        if step.trains and step.table:
            model = [step.measured, "--rerank", step.out] if step.measured else [step.out]
            parse(shlex.join(["dcdctl", "eval", *model, *step.measure, "--out", step.out]))
        for recipe in values_of("--recipe", step.words):
            load_recipe(recipe, values_of("--set", step.words))


@pytest.mark.parametrize("plan", PLANS)
def test_the_measured_rows_of_a_plan_are_on_its_pages(evidence, plan):
    folder = DOCS / "evidence" / "results" / plan
    steps = [step for step in evidence.PLANS[plan]() if step.table]
    measured = [step for step in steps if (folder / step.out.split("/")[1] / "result.json").exists()]
    page = "".join(path.read_text(encoding="utf-8") for path in folder.glob("*.md"))
    for step in measured:
        assert f"### {step.table}\n" in page
        assert f"\n| {step.label} |" in page


def write_published(folder: Path, name: str, **documents: dict[str, Any]) -> None:
    """The small files that a plan publishes."""
    (folder / name).mkdir(parents=True)
    for kind, document in documents.items():
        artifacts.write_document(folder / name / f"{kind}.json", document)


def a_result(recall: float, rsum: float) -> dict[str, Any]:
    return {"text_retrieval": {"R@1": recall}, "image_retrieval": {"R@1": recall + 1}, "rsum": rsum}


def some_times(seconds: dict[int, float], num_bytes: int) -> dict[str, Any]:
    """A model of bench.json; images that are not encoded before take ten times as long."""
    queries = [
        {"num_images": size, "is_cached": is_cached, "seconds": each * (1 if is_cached else 10)}
        for is_cached in (True, False)
        for size, each in seconds.items()
    ]
    return {"queries": queries, "footprint": {"index_bytes_per_million_images": {"float32": num_bytes * 1_000_000}}}


def test_the_lead_table_has_means_over_seeds_and_the_costs_of_all_that_a_row_needs(evidence, tmp_path):
    write_published(tmp_path, "scenes", cache={"pairs": 80})
    write_published(tmp_path, "families", cache={"pairs": 100})
    times = {"student": some_times({1000: 0.002}, 1024), "teacher": some_times({20: 0.03, 1000: 0.7}, 64)}
    cost = {"train_seconds": 60}
    write_published(tmp_path, "dual-0", result=a_result(10, 200), cost=cost, bench=times)
    write_published(tmp_path, "dual-1", result=a_result(20, 204), cost={"train_seconds": 120})
    write_published(tmp_path, "dual-alone-0", result=a_result(9, 190), cost={"eval_seconds": 3})
    write_published(tmp_path, "query-dual-0", result=a_result(12, 210), cost={"train_seconds": 30})
    write_published(tmp_path, "first-0", cost={"train_seconds": 90})
    write_published(tmp_path, "placed-0", result=a_result(90, 580), cost={"train_seconds": 150})
    write_published(tmp_path, "dual-first-20-0", result=a_result(80, 470), cost={"eval_seconds": 3})
    write_published(tmp_path, "teacher", result=a_result(95, 590), cost={"eval_seconds": 3})
    table = evidence.evidence_lead.write(evidence.PLANS["students"](), tmp_path)
    assert table.splitlines()[2:] == [
        "| teacher, all pairs | 95.0, 96.0 | 590.0 | 700 | 1x | 64 |  |  |",
        "| dual | 15.0, 16.0 | 202.0 ± 2.8 | 2.00 | 350x | 1,024 | 1.5 | 80 |",
        "| dual, no teacher | 9.0, 10.0 | 190.0 |  |  |  |  | 0 |",
        "| dual, a static query student | 12.0, 13.0 | 210.0 |  |  |  | 1.5 | 80 |",
        "| late interaction with positions and families | 90.0, 91.0 | 580.0 |  |  |  | 5.0 | 180 |",
        "| dual, its first 20 by the teacher | 80.0, 81.0 | 470.0 | 32.0 | 22x | 1,024 | 1.0 | 80 |",
    ]
    assert (tmp_path / "lead.md").read_text() == f"### A teacher and its students, 500 test scenes\n\n{table}"
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {"lead.md", "time.png", "pairs.png"}


def test_times_come_last_and_are_published_beside_the_results_of_their_run(evidence, tmp_path):
    steps = evidence.PLANS["students"]()
    last = steps[-1]
    assert last.command == "bench"
    assert set(last.after) == {step.out for step in steps[:-1]}
    folder = tmp_path / "plan"
    workspace = evidence.Workspace("students", folder, published=tmp_path / "results")
    assert not workspace.is_done(last)
    write_published(folder / "runs", last.short, bench={"student": {}}, result={"data": str(folder / "data")})
    assert workspace.is_done(last)
    workspace.publish(last)
    workspace.publish(next(step for step in steps if step.out == f"runs/{last.short}"))
    published = tmp_path / "results" / "students" / last.short
    assert artifacts.read_document(published / "bench.json") == {"student": {}}
    assert artifacts.read_document(published / "result.json") == {"data": "data"}


def values_of(flag: str, words: tuple[str, ...]) -> list[str]:
    """The words behind each occurrence of a flag."""
    return [value for word, value in pairwise(words) if word == flag]
