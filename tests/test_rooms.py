"""The rooms of dcdctl/core: what may import what, and through which door."""

from __future__ import annotations

import ast
import functools
import importlib
import sys
from pathlib import Path

import processes
import pytest
import room_table
from paths import ROOT
from room_rules import GROUND, MAY_IMPORT, WHOLE

PACKAGE = ROOT / "dcdctl"
CORE, CLI, API = PACKAGE / "core", PACKAGE / "cli", PACKAGE / "api"


@functools.cache
def parsed(path: Path) -> ast.Module:
    """The syntax tree of a file, parsed once for all tests."""
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def nodes_of(path: Path) -> dict[type[ast.AST], list[ast.AST]]:
    """The nodes of a file by their class, found once for all tests."""
    found: dict[type[ast.AST], list[ast.AST]] = {}
    for node in ast.walk(parsed(path)):
        found.setdefault(type(node), []).append(node)
    return found


@functools.cache
def imported(path: Path, *, top_only: bool = False) -> frozenset[str]:
    """Dotted names a file imports, wherever in it; `from a import b` is a.b."""
    names: set[str] = set()
    for node in parsed(path).body if top_only else [*nodes_of(path).get(ast.Import, ()), *nodes_of(path).get(ast.ImportFrom, ())]:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(names)


def core_names(path: Path) -> set[tuple[str, ...]]:
    """What a file imports of core, without the `dcdctl.core`."""
    return {tuple(name.split(".")[2:]) for name in imported(path) if name.startswith("dcdctl.core.")}


def face(room: str) -> set[str]:
    """The names that a room offers to other rooms."""
    return set(importlib.import_module(f"dcdctl.core.{room}").__all__)


@functools.cache
def read_attributes(path: Path) -> frozenset[tuple[str, str]]:
    """The `name.attribute` of a file."""
    nodes = nodes_of(path).get(ast.Attribute, ())
    return frozenset((node.value.id, node.attr) for node in nodes if isinstance(node.value, ast.Name))


def used_by_name(path: Path, room: str) -> set[str]:
    """The attributes of a room that a file reads, where it imports the room itself."""
    return {attribute for name, attribute in read_attributes(path) if name == room}


def test_core_holds_these_rooms_and_ground_files():
    assert {path.parent.name for path in CORE.glob("*/__init__.py")} == set(MAY_IMPORT)
    assert {path.stem for path in CORE.glob("*.py")} == {"__init__", *WHOLE, *GROUND}


def test_the_order_of_the_rooms_has_no_cycle():
    rooms = list(MAY_IMPORT)
    for room, earlier in MAY_IMPORT.items():
        assert set(earlier) <= set(rooms[: rooms.index(room)])


@pytest.mark.parametrize("name", GROUND)
def test_ground_files_import_earlier_ground_files(name):
    assert {names[0] for names in core_names(CORE / f"{name}.py")} <= set(GROUND[: GROUND.index(name)])


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_earlier_rooms_through_their_faces(room):
    for path in (CORE / room).rglob("*.py"):
        for first, *rest in core_names(path):
            if first in (room, *GROUND):
                continue
            assert first in MAY_IMPORT[room], f"{path} imports {first}"
            names = set(rest) or used_by_name(path, first)
            assert names <= face(first), f"{path} imports {names - face(first)} of {first}"
            assert len(rest) <= 1, f"{path} imports a file of {first}"


@pytest.mark.parametrize(
    "path", sorted([*CLI.rglob("*.py"), *API.rglob("*.py"), *(CORE / f"{name}.py" for name in WHOLE)]), ids=lambda path: path.stem
)
def test_commands_import_rooms_through_their_faces(path):
    for first, *rest in core_names(path):
        if first in MAY_IMPORT:
            assert len(rest) <= 1, f"{path} imports a file of {first}"
            assert (set(rest) or used_by_name(path, first)) <= face(first), path


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_every_name_of_a_face_is_there_and_is_used_outside_its_room(room):
    module = importlib.import_module(f"dcdctl.core.{room}")
    assert module.__doc__
    for name in face(room):
        assert getattr(module, name) is not None or name in vars(module)
    outside = [path for path in [*PACKAGE.rglob("*.py"), *(ROOT / "tests").rglob("*.py")] if CORE / room not in path.parents]
    used: set[str] = set()
    for path in outside:
        used |= {name.rpartition(".")[2] for name in imported(path) if name.startswith(f"dcdctl.core.{room}.")} | used_by_name(path, room)
    assert not face(room) - used, "names that nobody outside the room uses"


def test_opening_a_room_imports_none_of_its_files():
    code = (
        f"import sys; {'; '.join(f'import dcdctl.core.{room}' for room in MAY_IMPORT)}; print(*(set(sys.modules) & {{'torch', 'numpy'}}))"
    )
    done = processes.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def model_classes() -> set[str]:
    """The classes of core/models that are networks, models or protocols of models."""
    trees = [parsed(path) for path in (CORE / "models").rglob("*.py")]
    bases = {
        node.name: {ast.unparse(base) for base in node.bases} for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)
    }
    found = {"nn.Module", "Protocol"}
    while more := {name for name, parents in bases.items() if parents & found} - found:
        found |= more
    return found & set(bases)


def questions_about_kind(tree: ast.AST, classes: set[str]) -> list[str]:
    """The code that asks for the class of a model, or whether it has a member."""
    found = []
    for node in ast.walk(tree):
        asked: set[str] = set()
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("isinstance", "issubclass"):
            asked = {ast.unparse(part).rpartition(".")[2] for part in ast.walk(node.args[1])} & classes
        elif isinstance(node, ast.MatchClass):
            asked = {ast.unparse(node.cls).rpartition(".")[2]} & classes
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("hasattr", "getattr"):
            asked = {ast.unparse(node.args[0]).rpartition(".")[2]} & {"model", "scorer", "student", "teacher", "dual", "fusion"}
        if asked:
            found.append(ast.unparse(node))
    return found


def test_nothing_outside_models_asks_for_the_class_of_a_model():
    classes = model_classes()
    assert {"ViltScorer", "CoAttentionScorer", "VisionTextDual", "FrozenDual", "FusionModel", "DualEncoder", "FusionScorer"} <= classes
    for code in ("isinstance(x, models.DualModel | A)", "isinstance(x, (A, FrozenDual))", "hasattr(run.student, 'layers')"):
        assert questions_about_kind(ast.parse(code), classes) == [code]
    outside = [path for path in PACKAGE.rglob("*.py") if CORE / "models" not in path.parents]
    found = {str(path.relative_to(PACKAGE)): questions_about_kind(parsed(path), classes) for path in outside}
    assert {name: code for name, code in found.items() if code} == {}, "add a member to the protocols in core/models/protocols.py instead"


@pytest.mark.parametrize("path", sorted(CORE.rglob("*.py")), ids=lambda path: str(path.relative_to(CORE)))
def test_core_neither_prints_nor_exits(path):
    roots = {name.split(".")[0] for name in imported(path)}
    assert not roots & {"typer", "click", "rich"}
    assert not any(name.startswith("dcdctl.cli") for name in imported(path))
    calls = [ast.unparse(node.func) for node in nodes_of(path).get(ast.Call, ())]
    assert not {"print", "exit", "sys.exit"} & set(calls)


@pytest.mark.parametrize("path", sorted(CLI.rglob("*.py")), ids=lambda path: str(path.relative_to(CLI)))
def test_commands_import_core_in_their_bodies(path):
    light = {f"dcdctl.core.{name}" for name in ("errors.DcdError", "errors.as_user_error", "progress.Advance")}
    at_top = imported(path, top_only=True)
    assert {name for name in at_top if name.startswith("dcdctl.core")} <= light
    heavy = {"torch", "transformers", "numpy", "pandas", "pyarrow", "PIL", "click"} | ({"rich"} if "views" not in path.parts else set())
    assert not {name.split(".")[0] for name in at_top} & heavy


def test_the_tables_of_the_architecture_page_are_those_of_the_docstrings():
    assert room_table.parts(room_table.PAGE.read_text(encoding="utf-8"))[1] == room_table.tables(), "run python tests/support/room_table.py"
