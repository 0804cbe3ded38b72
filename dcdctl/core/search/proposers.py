"""What proposes candidates among the rows of a segment, by the kind of model: codes of vectors, centroids of tokens.

Each has the members of `Codes`: `build` writes its file, and `candidates` reads it.
"""

from __future__ import annotations

from pathlib import Path

from dcdctl.core.errors import require_extra
from dcdctl.core.search.centroids import Centroids
from dcdctl.core.search.codes import Codes
from dcdctl.core.search.entries import IndexedModel, Segment
from dcdctl.core.search.storage import INDEX

PROPOSERS: dict[str, type[Codes] | type[Centroids]] = {"dual": Codes, "late": Centroids}


def require(model_kind: str) -> None:
    """MissingError if the package is not installed that reads the segments of an index."""
    if package := PROPOSERS[model_kind].package:
        or_else = "search all images exactly with --set flat_up_to=1000000000"
        require_extra("index", package, needed_by="an index of so many images", or_else=or_else)


def open_segment(folder: Path, segment: Segment, model: IndexedModel) -> Codes | Centroids:
    """A memory-mapped segment, which several threads may search at once; StaleError if its file is damaged."""
    path = INDEX.checked(folder / "ann" / segment.file, segment.sha256)
    return PROPOSERS[model.kind](path, segment.rows, model.dim)
