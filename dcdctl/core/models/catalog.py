"""What `dcdctl models` lists beside the teachers that have a name (`published`): the model families that load, with the
packages that they need."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Literal

from dcdctl.core.errors import DcdError, install_command, is_installed
from dcdctl.core.models.references import plugins
from dcdctl.core.models.references.family_table import FAMILIES
from dcdctl.core.models.references.plugins import Kind


@dataclass(frozen=True, kw_only=True)
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
    """How to install what it needs, or the error of the other package; for the dual encoders of transformers without a
    family of their own, that they are not tested."""


def list_families() -> list[FamilyEntry]:
    """All families: dcdctl's, then other packages' (`plugins`)."""
    ours = []
    for name, family in FAMILIES.items():
        loads = not family.extra or is_installed(family.module)
        hint = "" if loads else install_command(family.extra)
        needs = f"extra {family.extra}" if family.extra else ""
        ours.append(FamilyEntry(name=name, kind=family.kind, needs=needs, loads=loads, hint=hint))
    others = FamilyEntry(
        name="other dual encoders of transformers", kind="dual", needs="", loads=True, hint="family not tested"
    )
    return [*ours, others, *_of_other_packages()]


def _of_other_packages() -> Iterator[FamilyEntry]:
    for name in sorted({point.name for point in entry_points(group=plugins.GROUP)} - FAMILIES.keys()):
        try:
            family = plugins.find(name)
        # Listed with its error, because the user asks why it does not load.
        except DcdError as error:
            yield FamilyEntry(name=name, kind="unknown", needs="another package", loads=False, hint=str(error))
        else:
            assert family is not None
            yield FamilyEntry(name=name, kind=family.kind, needs=f"package {family.package}", loads=True, hint="")
