"""Changing an index without embedding: its settings, its columns, its query encoder, the place of its images, and which
of them it has; and what a new index does in the same way.

A commit replaces index.json atomically, as in `build`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from dcdctl.core import artifacts, files, models
from dcdctl.core import config as configs
from dcdctl.core.arguments import optional_ref
from dcdctl.core.artifacts import Build
from dcdctl.core.data import ImageColumns
from dcdctl.core.errors import ConfigError, require_extra
from dcdctl.core.progress import Track, silent
from dcdctl.core.search import commit, keywords, named, proposers, segments
from dcdctl.core.search.background import probe_texts
from dcdctl.core.search.changes import IndexChange, rows_changed
from dcdctl.core.search.columns import change
from dcdctl.core.search.entries import TEXT, SealedFile, TextSide
from dcdctl.core.search.index import FolderIndex
from dcdctl.core.search.index_config import IndexConfig
from dcdctl.core.search.job import Changes, table_or_path
from dcdctl.core.search.storage import INDEX, IndexDocument
from dcdctl.core.search.stored import StoredTokens, StoredType
from dcdctl.core.toml import apply_sets


def change_index(place: str, changes: Changes, *, track: Track = silent) -> IndexChange:
    """Change the settings, the columns or the query encoder of the index in a folder, or remove images; without changes
    it is only opened. Nothing is embedded. A killed run resumes.

    StaleError for a query encoder of another model, InputError if a name to remove matches none.
    """
    query_model = optional_ref(changes.query_model)
    metadata = read_inputs(table_or_path(changes.metadata), query_model)
    before = named.open_to_change(place)
    folder = before.folder
    if changes.is_empty and not change.has_columns_to_fill(before, first_row=before.num_rows):
        return IndexChange(before, [])
    files.check_output_folder(folder)
    query = load_query(before.document, query_model)
    with files.lock(folder):
        before = FolderIndex.open(folder)
        index = _alter(before, changes, track)
        # All files that were indexed without a look at their EXIF data are read only when the user asks for it.
        first_row = 0 if index.config.exif != before.config.exif else before.num_rows
        dropped = changes.drop_columns or ()
        index, notes = set_columns(index, track, metadata=metadata, dropped=dropped, first_row=first_row)
        if query is not None:
            index = set_query_model(index, query, str(query_model))
    return rows_changed(before, index, [], notes)


def move_images(place: str, old: Path, new: Path) -> IndexChange:
    """Let an index look for the images of a folder, or of the folders in one, at another place. Nothing is embedded.

    InputError if no image folder was there, or if the images are not at the new place.
    """
    folder = named.open_to_change(place).folder
    files.check_output_folder(folder)
    with files.lock(folder):
        before = FolderIndex.open(folder)
        document = before.document
        moved = named.moved_sources(before, old, new)
        commit.seal(folder, replace(document, generation=document.generation + 1, sources=moved))
        index = FolderIndex.open(folder)
    notes = []
    for was, now in zip(document.sources, index.document.sources, strict=True):
        if was.path != now.path:
            notes.append(f"moved: the images of {was.path} are now looked for in {now.path}")
    return rows_changed(before, index, [], notes)


def _alter(index: FolderIndex, changes: Changes, track: Track) -> FolderIndex:
    """Change settings, and remove images."""
    folder, document = index.folder, index.document
    if not (changes.sets or changes.remove):
        return index
    settings = configs.build(IndexConfig, apply_sets(configs.to_table(document.settings), changes.sets or ()))
    if settings.dims != document.settings.dims:
        raise ConfigError(
            f"the vectors of {folder} have {document.model.dim} numbers, and dims is fixed when an index is made",
            hint="make a new index with --set dims=N",
        )
    if replace(settings.tokens, centroids=1) != replace(document.settings.tokens, centroids=1):
        raise ConfigError(
            f"tokens.codes and tokens.pooling of {folder} are fixed when an index is made",
            hint="make a new index with --set",
        )
    check_dims(settings, document.stored_type)
    check_packages(settings, document.model.kind, document.num_rows)
    removed = named.rows_to_remove(index, changes.remove or ())
    # Segments are named by their rows only: those that a killed change to other settings left must not be taken.
    generation = document.generation + 1
    entries = {"format": INDEX.format, "generation": generation, "settings": configs.to_table(settings)}
    Build(folder, {**entries, "changes": "settings"}, INDEX).begin(restart=True, kept=document.files)
    changed = replace(
        document,
        generation=generation,
        settings=settings,
        segments=document.segments if settings.builds_as(document.settings) else (),
    )
    return FolderIndex(folder, commit.commit(folder, changed, removed=removed, track=track))


def read_inputs(metadata: Path | pa.Table | None, query_model: str | None) -> ImageColumns | None:
    """The columns of the metadata, and an error for a query encoder that is not there."""
    if query_model:
        models.check_ref(query_model, kind="query")
    return change.read_metadata(metadata)


def check_dims(settings: IndexConfig, stored_type: StoredType) -> None:
    """ConfigError for settings of the other kind of model."""
    if stored_type is StoredTokens and settings.dims is not None:
        raise ConfigError(
            "dims shortens the vectors of a dual encoder, and this is a late-interaction model",
            hint="train it with another model.token_dim, or set tokens.codes=int8",
        )


def check_packages(settings: IndexConfig, model_kind: str, num_rows: int) -> None:
    """MissingError if a package is not installed that an index of so many rows needs; few are searched exactly."""
    if settings.keywords:
        keywords.require()
    if segments.segment_ranges(num_rows, [], settings):
        proposers.require(model_kind)


def write_text_side(
    folder: Path, model: models.Searchable, space: str | None = None, fingerprint: str | None = None
) -> TextSide:
    """The entry of a text side that is written to a folder; see `models.export_text_tower`."""
    # A query encoder's stands by itself: to answer, the files of a large model need not be read.
    weights = None if space else folder.with_name("model")
    models.export_text_tower(model, folder, space, weights, probes=probe_texts(), fingerprint=fingerprint)
    sealed = tuple(SealedFile(file=path.name, **artifacts.seal_of(path)) for path in sorted(folder.iterdir()))
    return TextSide(folder=folder.name, files=sealed)


def load_query(document: IndexDocument, ref: str | None) -> Any:
    """A query encoder of the model of an index, None without a name; StaleError for one of another model, MissingError
    without the packages that export it."""
    if not ref:
        return None
    require_extra("index", *models.TEXT_PACKAGES, needed_by="--query-model")
    indexed = document.model
    query: Any = models.load(ref, kind="query")
    # Of an index of short vectors, the length of the model's is not known here; its fingerprint is.
    dim = indexed.dim if document.settings.dims is None else query.space.dim
    teacher = indexed.space_of or indexed.fingerprint
    query.space.check(replace(query.space, kind=indexed.kind, dim=dim, teacher=teacher), ref)
    return query


def set_query_model(index: FolderIndex, query: Any, ref: str) -> FolderIndex:
    """Let a query encoder embed the texts of an index; the index as it is then."""
    document, generation = index.document, index.document.generation + 1
    # Beside the former one, which searches until index.json names this one.
    text = write_text_side(index.folder / f"{TEXT}-{generation}", query, index.fingerprint)
    text = replace(text, query_model=query.digest, query_ref=ref)
    commit.seal(index.folder, replace(document, generation=generation, text=text))
    return FolderIndex.open(index.folder)


def set_columns(
    index: FolderIndex,
    track: Track,
    *,
    metadata: ImageColumns | None = None,
    dropped: Sequence[str] = (),
    first_row: int = 0,
) -> tuple[FolderIndex, tuple[str, ...]]:
    """Change the columns of the images; the same index then, and notes for the user."""
    if not (dropped or metadata is not None or change.has_columns_to_fill(index, first_row=first_row)):
        return index, ()
    notes: list[str] = []
    table, facts = change.changed_table(index, dropped, metadata, first_row=first_row, notes=notes, track=track)
    stored = index.stored_columns
    if stored.num_covered not in (0, index.num_rows) or not table.equals(stored.table()) or facts is not None:
        # No column would be left to remember that.
        drops_all = change.drops_all_of_files(index, dropped, table)
        settings = replace(index.config, exif="none") if drops_all else index.config
        commit.seal_columns(index, table, facts, settings)
    return FolderIndex.open(index.folder), tuple(notes)
