"""What `dcdctl models` lists: the model families that load, with the packages that they need, and the teachers that
have a name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Literal

from dcdctl.core.errors import DcdError, install_command, is_installed
from dcdctl.core.models.load_save import BUILT_IN, FAMILIES, Kind
from dcdctl.core.models.references import plugins, published
from dcdctl.core.models.references.published import PublishedTeacher


@dataclass(frozen=True)
class FamilyEntry:
    """A model family in a list."""

    name: str
    """The type of its models (`model_type` in config.json), or the library that saves them."""
    kind: Kind | Literal["unknown"]
    """unknown: of a package that cannot be imported."""
    needs: str
    """Extra of dcdctl or other package that it needs; empty for none."""
    loads: bool
    """Whether what it needs is installed."""
    hint: str
    """How to install what it needs, or the error of the other package; empty if it loads."""


@dataclass(frozen=True)
class TeacherEntry:
    """A teacher that has a name."""

    name: str
    summary: str
    weights: str
    source: str
    """Where its weights come from: an address, hf://OWNER/NAME, or "built in"."""
    license: str
    reported: tuple[str, ...]
    """The recalls that its authors report, by protocol."""


def list_families() -> list[FamilyEntry]:
    """All families: dcdctl's, then other packages' (`plugins`)."""
    ours = []
    for name, family in FAMILIES.items():
        loads = not family.extra or is_installed(family.module)
        hint = "" if loads else install_command(family.extra)
        ours.append(FamilyEntry(name, family.kind, f"extra {family.extra}" if family.extra else "", loads, hint))
    return [*ours, *_of_other_packages()]


def _of_other_packages() -> Iterator[FamilyEntry]:
    for name in sorted({point.name for point in entry_points(group=plugins.GROUP)} - FAMILIES.keys()):
        try:
            plugin = plugins.find(name)
        except DcdError as error:
            yield FamilyEntry(name, "unknown", "another package", False, str(error))
        else:
            assert plugin is not None
            yield FamilyEntry(name, plugin.kind, f"package {plugin.package}", True, "")


def list_teachers() -> list[TeacherEntry]:
    """All teachers that have a name: built in, or published by others."""
    built_in = [
        TeacherEntry(
            name,
            "A small ViLT that grades generated scenes, for the demo.",
            "1.34 M parameters",
            "built in",
            "Apache-2.0",
            (),
        )
        for name in BUILT_IN
    ]
    named = [
        TeacherEntry(name, teacher.summary, teacher.weights, teacher.source, teacher.license, tuple(_reported(teacher)))
        for name, teacher in published.known().items()
    ]
    return [*built_in, *named]


def _reported(teacher: PublishedTeacher) -> Iterator[str]:
    for protocol, recalls in teacher.published.items():
        text, image = ("/".join(map(str, each)) for each in (recalls.text_retrieval, recalls.image_retrieval))
        yield f"{protocol}: text retrieval {text}, image retrieval {image}"
