"""What the tests of the code's conventions ask of every source file, from one parse of each for all processes of a test
run."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import processes
import pytest
from paths import ROOT


@dataclass
class SourceFacts:
    """What one Python file says."""

    imports: set[str] = field(default_factory=set)
    """Dotted names that it imports, wherever in it; `from a import b` is a.b."""
    top_imports: set[str] = field(default_factory=set)
    """The imported names at its top level."""
    attributes: set[tuple[str, str]] = field(default_factory=set)
    """The `name.attribute` that it reads or writes."""
    calls: set[str] = field(default_factory=set)
    """The expressions that it calls, where they are a name or dotted names."""
    strings: list[tuple[int, str]] = field(default_factory=list)
    """Line number and text of its string literals."""
    filled_strings: list[list[str | None]] = field(default_factory=list)
    """The parts of its f-strings; None is filled in."""


def facts_of(tree: ast.Module, name: str = "") -> SourceFacts:
    """The facts of a syntax tree."""
    facts = SourceFacts()
    for node in _walk(tree):
        if isinstance(node, ast.Constant):
            if isinstance(node.value, str):
                facts.strings.append((node.lineno, node.value))
        elif isinstance(node, ast.JoinedStr):
            facts.filled_strings.append(
                [
                    part.value if isinstance(part, ast.Constant) and isinstance(part.value, str) else None
                    for part in node.values
                ]
            )
        elif isinstance(node, ast.Attribute):
            if isinstance(node.value, ast.Name):
                facts.attributes.add((node.value.id, node.attr))
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            facts.imports |= _names(node, name)
        elif isinstance(node, ast.Call) and (called := _dotted(node.func)):
            facts.calls.add(called)
    for node in tree.body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            facts.top_imports |= _names(node, name)
    return facts


def all_facts(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, SourceFacts]:
    """The facts of every Python file of the package, the tests and the benchmarks."""
    paths = [path for folder in ("dcdctl", "tests", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    return processes.make_once(tmp_path_factory, "source-facts", lambda _: _facts_of_files(paths))


def _facts_of_files(paths: Iterable[Path]) -> dict[Path, SourceFacts]:
    return {path: facts_of(ast.parse(path.read_text(encoding="utf-8")), str(path)) for path in paths}


def _walk(tree: ast.AST) -> Iterator[ast.AST]:
    """`ast.walk` in another order, without contexts of names, in half of its time."""
    nodes = [tree]
    while nodes:
        node = nodes.pop()
        yield node
        for name in node._fields:
            if name != "ctx":
                value = getattr(node, name)
                if isinstance(value, list):
                    nodes += [part for part in value if isinstance(part, ast.AST)]
                elif isinstance(value, ast.AST):
                    nodes.append(value)


def _names(node: ast.Import | ast.ImportFrom, file: str) -> set[str]:
    """The dotted names of an import."""
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    assert node.level == 0, f"{file} imports relatively"
    return {f"{node.module}.{alias.name}" for alias in node.names}


def _dotted(node: ast.expr) -> str:
    """The code of a name or of dotted names, and nothing for any other expression."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{before}.{node.attr}" if (before := _dotted(node.value)) else ""
    return ""
