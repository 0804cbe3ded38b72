"""One `dcdctl index`: from what is named to an index and what became of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcdctl.core import config as configs
from dcdctl.core import index_building
from dcdctl.core.errors import ConfigError
from dcdctl.core.index import Index
from dcdctl.core.index_building import Changes
from dcdctl.core.index_config import IndexConfig
from dcdctl.core.index_embedding import ON_CPU, EmbeddingOptions
from dcdctl.core.index_files import INDEX_FILE
from dcdctl.core.index_removal import skipped_of
from dcdctl.core.progress import Track, silent


@dataclass(frozen=True)
class Outcome:
    """An index as it is now."""

    index: Index
    skipped: list[dict[str, Any]]
    """Files among the pictures that are none, with the reasons."""
    added: int = 0
    removed: int = 0


def run(
    target: str,
    changes: Changes,
    *,
    images: Path | None = None,
    out: Path | None = None,
    options: EmbeddingOptions = ON_CPU,
    track: Track = silent,
) -> Outcome:
    """Build an index in `out` of `images` with the model `target`, or change the index `target`; without a change only look at it.

    ConfigError if what is named is neither the one nor the other.
    """
    is_change = bool(changes.add or changes.remove or changes.remove_gone)
    if images is None and out is None:
        return _changed(Path(target).expanduser(), changes, options, track)
    if images is None or out is None or is_change:
        hint = "a new index: dcdctl index RUN --images DIR --out INDEX; a change: dcdctl index INDEX --add DIR or --remove NAME"
        raise ConfigError("--images and --out belong together, and to a new index alone", hint=hint)
    config = configs.build(IndexConfig, configs.apply_sets({}, changes.sets))
    built = index_building.build(target, images, out.expanduser(), config, split=changes.split, options=options, track=track)
    return Outcome(built, skipped_of(built.folder, built.document))


def _changed(folder: Path, changes: Changes, options: EmbeddingOptions, track: Track) -> Outcome:
    if not (folder / INDEX_FILE).exists() and (folder / "run.json").exists():
        raise ConfigError(f"{folder} is a run, not an index", hint=f"make one: dcdctl index {folder} --images DIR --out INDEX")
    before = Index.open(folder)
    if changes == Changes(split=changes.split):
        return Outcome(before, [])
    after = index_building.update(folder, changes, options=options, track=track)
    gone_before, gone = (0 if one.is_removed is None else int(one.is_removed.sum()) for one in (before, after))
    added = after.num_rows - before.num_rows
    return Outcome(after, skipped_of(folder, after.document) if changes.add else [], added=added, removed=gone - gone_before)
