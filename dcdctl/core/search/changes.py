"""What a change of an index brought."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from dcdctl.core.search.exact import Rows
from dcdctl.core.search.index import FolderIndex


@dataclass(frozen=True)
class IndexChange:
    """An index after a command, and what the command changed, in images."""

    index: FolderIndex
    skipped: list[dict[str, Any]]
    """Files that could not be indexed, with the reasons."""
    newly_skipped: list[dict[str, Any]] = field(default_factory=list)
    """Those of them that following the folders found this time."""
    added: int = 0
    removed: int = 0
    changed: int = 0
    """Followed files with other bytes under the same name."""
    moved: int = 0
    """Followed new files with the bytes of one that is gone."""
    copied: int = 0
    """Other followed new files with the bytes of an image that the index has or had."""
    unchanged: int = 0
    """Followed files that are as they were."""
    notes: tuple[str, ...] = ()
    """What the user should know: images of the metadata that the index lacks and the other way round, a folder that is
    gone, images whose vectors were there already."""

    @property
    def is_nothing(self) -> bool:
        """Whether following the folders changed no image."""
        return not (self.added or self.removed or self.changed or self.moved)


def rows_changed(
    before: FolderIndex, after: FolderIndex, skipped: list[dict[str, Any]], notes: Sequence[str]
) -> IndexChange:
    """What a change of rows brought."""
    return IndexChange(
        after,
        skipped,
        added=after.num_rows - before.num_rows,
        removed=after.document.removed.count - before.document.removed.count,
        notes=tuple(notes),
    )


def followed(
    before: FolderIndex,
    after: FolderIndex,
    *,
    skipped: list[dict[str, Any]],
    skipped_before: list[dict[str, Any]],
    notes: Sequence[str],
) -> IndexChange:
    """What following the folders did, by the names that rows were added and removed for."""
    new = _names(after, np.arange(before.num_rows, after.num_rows))
    gone_rows = np.flatnonzero(before.is_live & after.is_removed[: before.num_rows])
    gone = _names(before, gone_rows)
    changed = new.keys() & gone.keys()
    origins = after.image_files.table.column("copied_from").to_pylist()
    known = [origins[row] for name, row in new.items() if name not in changed and origins[row] is not None]
    known_skipped = {frozenset(file.items()) for file in skipped_before}
    # A file moves to one place; a second one with its bytes is a copy.
    num_moved = len(set(known) & {row for name, row in gone.items() if name not in changed})
    return IndexChange(
        after,
        skipped,
        newly_skipped=[file for file in skipped if frozenset(file.items()) not in known_skipped],
        added=len(new) - len(changed) - num_moved,
        removed=len(gone) - len(changed) - num_moved,
        changed=len(changed),
        moved=num_moved,
        copied=len(known) - num_moved,
        unchanged=before.num_images - len(gone_rows),
        notes=tuple(notes),
    )


def _names(index: FolderIndex, rows: Rows) -> dict[tuple[int, str], int]:
    """The row of each image, by its source and its name there."""
    places = pa.array(rows)
    names = index.values("image_id").take(places).to_pylist()
    return dict(zip(zip(index.source_R[rows].tolist(), names, strict=True), rows.tolist(), strict=True))
