"""The rooms of dcdctl/core: what may import what, and through which door."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import processes
import pytest
from paths import ROOT
from room_rules import GROUND, GROUND_ROOMS, MAY_IMPORT, ROOMS
from source_facts import SourceFacts, all_facts

import dcdctl

PACKAGE = ROOT / "dcdctl"
CORE, CLI, API = PACKAGE / "core", PACKAGE / "cli", PACKAGE / "api"


@pytest.fixture(scope="session")
def facts(tmp_path_factory):
    """What every source file says."""
    return all_facts(tmp_path_factory)


def core_names(file: SourceFacts) -> set[tuple[str, ...]]:
    """What a file imports of core, without the `dcdctl.core`."""
    return {tuple(name.split(".")[2:]) for name in file.imports if name.startswith("dcdctl.core.")}


def face(room: str) -> set[str]:
    """The names that a room offers to other rooms."""
    return set(importlib.import_module(f"dcdctl.core.{room}").__all__)


def used_by_name(file: SourceFacts, room: str) -> set[str]:
    """The attributes of a room that a file reads, where it imports the room itself."""
    return {attribute for name, attribute in file.attributes if name == room}


def check_face(path: Path, file: SourceFacts, room: str, names: list[str]) -> None:
    """A file imports `names` of a room, or the room itself, whose attributes it reads: all must be in its face."""
    assert len(names) <= 1, f"{path} imports a file of {room}"
    outside = (set(names) or used_by_name(file, room)) - face(room)
    assert not outside, f"{path} imports {outside} of {room}"


def test_core_holds_these_rooms_and_ground_files():
    assert {path.parent.name for path in CORE.glob("*/__init__.py")} == set(ROOMS)
    assert {path.stem for path in CORE.glob("*.py")} == {"__init__", *GROUND} - set(GROUND_ROOMS)


def test_ground_files_are_at_most_twelve():
    assert len(GROUND) - len(GROUND_ROOMS) <= 12


def test_the_order_of_the_rooms_has_no_cycle():
    rooms = list(MAY_IMPORT)
    for room, earlier in MAY_IMPORT.items():
        assert set(earlier) <= set(rooms[: rooms.index(room)])


@pytest.mark.parametrize("name", GROUND)
def test_the_ground_imports_the_ground_before_it(name, facts):
    for path in (CORE / name).rglob("*.py") if name in GROUND_ROOMS else [CORE / f"{name}.py"]:
        for first, *rest in core_names(facts[path]):
            if first != name:
                assert first in GROUND[: GROUND.index(name)], f"{path} imports {first}"
                if first in GROUND_ROOMS:
                    check_face(path, facts[path], first, rest)


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_earlier_rooms_through_their_faces(room, facts):
    for path in (CORE / room).rglob("*.py"):
        for first, *rest in core_names(facts[path]):
            if first == room or first in set(GROUND) - set(GROUND_ROOMS):
                continue
            assert first in (*GROUND_ROOMS, *MAY_IMPORT[room]), f"{path} imports {first}"
            check_face(path, facts[path], first, rest)


@pytest.mark.parametrize("path", sorted([*CLI.rglob("*.py"), *API.rglob("*.py")]), ids=lambda path: path.stem)
def test_commands_import_rooms_through_their_faces(path, facts):
    for first, *rest in core_names(facts[path]):
        if first in ROOMS:
            check_face(path, facts[path], first, rest)


@pytest.mark.parametrize("room", ROOMS)
def test_every_name_of_a_face_is_there_and_is_used_outside_its_room(room, facts):
    module = importlib.import_module(f"dcdctl.core.{room}")
    assert module.__doc__
    for name in face(room):
        assert getattr(module, name) is not None or name in vars(module)
    outside = [
        path for path in [*PACKAGE.rglob("*.py"), *(ROOT / "tests").rglob("*.py")] if CORE / room not in path.parents
    ]
    used = set(dcdctl.__all__)  # its stub takes them from the faces
    for path in outside:
        used |= {name.rpartition(".")[2] for name in facts[path].imports if name.startswith(f"dcdctl.core.{room}.")}
        used |= used_by_name(facts[path], room)
    assert sorted(face(room) - used) == [], "names that nobody outside the room uses"


def test_opening_a_room_imports_none_of_its_files():
    code = (
        f"import sys; {'; '.join(f'import dcdctl.core.{room}' for room in ROOMS)}; print(*(set(sys.modules) "
        f"& {{'torch', 'numpy'}}))"
    )
    done = processes.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize("path", sorted(API.rglob("*.py")), ids=lambda path: path.stem)
def test_python_functions_know_no_command_line(path, facts):
    assert not any(name.startswith("dcdctl.cli") for name in facts[path].imports)


@pytest.mark.parametrize("path", sorted(CORE.rglob("*.py")), ids=lambda path: str(path.relative_to(CORE)))
def test_core_neither_prints_nor_exits(path, facts):
    roots = {name.split(".")[0] for name in facts[path].imports}
    assert not roots & {"typer", "click", "rich"}
    assert not any(name.startswith("dcdctl.cli") for name in facts[path].imports)
    assert not {"print", "exit", "sys.exit"} & facts[path].calls


LIGHT = {"arguments", "errors", "options", "places", "progress"}
"""The ground files that --help reads."""


def test_the_commands_import_what_jobs_declare_and_nothing_else_of_core():
    code = "import sys, dcdctl.cli.app; print(*sys.modules)"
    done = processes.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    names = done.stdout.split()
    heavy = {"torch", "transformers", "numpy", "pandas", "pyarrow", "PIL", "rich", "tomllib"}
    assert not {name.split(".")[0] for name in names} & heavy
    of_core = [name.split(".")[2:] for name in names if name.startswith("dcdctl.core.")]
    assert {name for name, *files in of_core if not files} <= {*LIGHT, *ROOMS}
    assert {file for _, *files in of_core for file in files} == {"job", "options", "requests"}


@pytest.mark.parametrize("path", sorted(CLI.rglob("*.py")), ids=lambda path: str(path.relative_to(CLI)))
def test_commands_import_heavy_packages_in_their_bodies(path, facts):
    heavy = {"torch", "transformers", "numpy", "pandas", "pyarrow", "PIL", "click"} | (
        {"rich"} if "views" not in path.parts else set()
    )
    assert not {name.split(".")[0] for name in facts[path].top_imports} & heavy
