"""How the vectors of a dual encoder are compared in an evaluation: their width and their codes."""

from __future__ import annotations

from dataclasses import dataclass

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


FULL_VECTORS = VectorForm()
