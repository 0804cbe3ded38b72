"""How the vectors of a dual encoder are compared in an evaluation: their width and their codes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dcdctl.core.config import Count, check_fields
from dcdctl.core.errors import ConfigError
from dcdctl.core.scoring import VectorKind


@dataclass(frozen=True, kw_only=True)
class VectorForm:
    """How the vectors of a dual encoder are compared."""

    dims: Count | None = None
    """Only the first numbers of each vector, divided by their length; None for all."""
    kind: VectorKind = "float32"
    rescore: Count | None = None
    """int8, binary: first candidates of each query that are scored again by their float32 vectors; None for none."""

    def __post_init__(self) -> None:
        check_fields(self, "vectors")
        if self.rescore is not None and self.kind == "float32":
            raise ConfigError(
                f"--rescore {self.rescore} scores candidates again by float32 vectors, and --codes is float32",
                hint="add --codes int8 or --codes binary, or leave --rescore out",
            )

    def to_document(self) -> dict[str, Any]:
        """The form as plain values, for JSON."""
        return {"dims": self.dims, "kind": self.kind, "rescore": self.rescore}


@dataclass(frozen=True, kw_only=True)
class FormChoice:
    """The form that the user asks for, or the widths of a table."""

    dims: str | None = None
    """A width, or for a table several: "64,128"; None for the full width."""
    kind: VectorKind = "float32"
    rescore: int | None = None

    @property
    def widths(self) -> tuple[int, ...]:
        """The numbers in `dims`, ascending; ConfigError if they are not numbers above 0."""
        words = [] if self.dims is None else [word.strip() for word in self.dims.split(",")]
        if not all(word.isdecimal() and int(word) for word in words):
            raise ConfigError(
                f"--dims must be a number, or for --vector-table a list, got {self.dims}",
                hint="for example --dims 64,128",
            )
        return tuple(sorted(set(map(int, words))))

    @property
    def single(self) -> VectorForm:
        """How the vectors are compared; ConfigError for several widths."""
        if len(self.widths) > 1:
            raise ConfigError(
                f"--dims {self.dims} names several widths, and one is measured", hint="add --vector-table for a table"
            )
        return VectorForm(dims=next(iter(self.widths), None), kind=self.kind, rescore=self.rescore)
