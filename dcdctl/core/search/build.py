"""Building an index, adding images to it and following its folders, by the same four steps.

    open      the index in the folder; a new one has its model and its settings, and no image yet
    compare   each source with what the index knows of it; what differs is written down (`comparison`)
    embed     what is new; an image of known bytes takes the vectors that are there
    commit    index.json is replaced, and what changed is counted

A commit replaces index.json atomically, so an index can be searched at any moment of a change, and after a killed one.
A killed run resumes. Its files of vectors, segments and words have the bytes of a run that
was not killed, and every search has the same answers. index.json and the names of files may have other numbers: a
killed change that is run again counts as a change more where its first steps were committed.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dcdctl.core import config as configs
from dcdctl.core import files, models
from dcdctl.core.arguments import optional_ref, path
from dcdctl.core.data import ImageColumns
from dcdctl.core.engines import Compute
from dcdctl.core.errors import ConfigError, InputError, ModelError
from dcdctl.core.progress import Say, Track, silent, unsaid
from dcdctl.core.search import (
    alter,
    copies,
    embed,
    image_files,
    named,
    part_files,
    sources,
    storage,
    vector_files,
)
from dcdctl.core.search.changes import IndexChange, followed, rows_changed
from dcdctl.core.search.commit import commit
from dcdctl.core.search.comparison import Comparison, compare
from dcdctl.core.search.embed import IN_SMALL_BATCHES, EmbedWorker
from dcdctl.core.search.entries import TEXT, ImageSource, IndexedModel, TextSide
from dcdctl.core.search.index import FolderIndex
from dcdctl.core.search.index_config import IndexConfig
from dcdctl.core.search.job import IndexJob, table_or_path
from dcdctl.core.search.part_files import SourceImage
from dcdctl.core.search.storage import INDEX, INDEX_FILE, IndexDocument
from dcdctl.core.search.stored import STORED, StoredTokens
from dcdctl.core.toml import apply_sets, assignments

LoadModel = Callable[[], models.Searchable]
"""Loads the model of an index when it is first called."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What an index is asked to have, and how its images are embedded."""

    folder: Path
    source: ImageSource | None = None
    """The images to have; None to follow the image folders of the index."""
    vectors: Sequence[str] = ()
    """Files of the vectors of the new images, in place of embedding."""
    compute: Compute
    track: Track
    new: FolderIndex | None = None
    """An index without images, to be made in the folder."""
    model: models.Searchable | None = None
    """The model of a new index."""
    metadata: ImageColumns | None = None
    query: Any = None
    """The query encoder of a new index, and what the user called it."""
    query_ref: str | None = None


def build_index(
    job: IndexJob, *, compute: Compute | None = None, track: Track = silent, say: Say = unsaid
) -> IndexChange:
    """Build an index in a folder; without a split all images of a corpus are read. A killed run resumes.
    `compute` takes the place of what the job says about it.

    StaleError if the folder holds another index, and for a query encoder of another model; InputError if there is no
    image.
    """
    folder, vectors, query_ref = path(job.out), job.vectors or (), optional_ref(job.query_model)
    compute = compute or job.compute(say, job.precision)
    # A typing error would come out hours later, after everything is embedded.
    if vectors:
        vector_files.find(vectors)
    metadata = alter.read_inputs(table_or_path(job.metadata), query_ref)
    source = _source(folder, path(job.images), job.split)
    # Vectors that are given may be of formats that are not read here, and a finished index needs no images.
    if not vectors and not (folder / INDEX_FILE).exists():
        sources.check_has_image(source, [folder])
    new, model = _new_index(job, folder, source, compute.precision, track)
    query = alter.load_query(new.document, query_ref)
    return _change(
        Asked(
            folder=folder,
            source=source,
            vectors=vectors,
            compute=compute,
            track=track,
            new=new,
            model=model,
            metadata=metadata,
            query=query,
            query_ref=query_ref,
        )
    )


def add_images(
    place: str,
    images: Path,
    *,
    split: str | None = None,
    vectors: Sequence[str] = (),
    compute: Compute = IN_SMALL_BATCHES,
    track: Track = silent,
) -> IndexChange:
    """Add the images of a folder or a corpus that an index lacks; the folder is followed from then on. A killed run
    resumes.

    With `vectors`, files of the vectors of these images, the model embeds none. InputError for a new folder without an
    image.
    """
    if vectors:
        vector_files.find(vectors)
    before = named.open_to_change(place)
    folder = before.folder
    # Before a model is loaded, and by its own name: a user does not know the files that a change writes first.
    files.check_output_folder(folder)
    source = _source(folder, images, split)
    # A folder that is followed may be empty for a while. One without images would not be followed, so it is an error.
    # Vectors that are given may be of formats that are not read here.
    if source not in before.document.sources and not vectors:
        sources.check_has_image(source, [folder])
    return _change(Asked(folder=folder, source=source, vectors=vectors, compute=compute, track=track))


def follow_folders(place: str, *, compute: Compute = IN_SMALL_BATCHES, track: Track = silent) -> IndexChange:
    """Follow the image folders of an index: add what is new, read again what changed, remove what is gone, and fill
    columns. A killed run resumes."""
    folder = named.open_to_change(place).folder
    files.check_output_folder(folder)
    return _change(Asked(folder=folder, compute=compute, track=track))


def _change(asked: Asked) -> IndexChange:
    """Make an index have what is asked, in the four steps; returns it, and what changed."""
    folder, track, follow = asked.folder, asked.track, asked.source is None
    with files.lock(folder):
        # Here, because another run may have changed the index before this one had the lock.
        before = index = FolderIndex.open(folder) if asked.new is None else asked.new
        skipped_before = storage.skipped_of(folder, before.document)
        load_model = cache(lambda: _load_model(before, asked))
        notes: list[str] = []
        for source in _sources_to_compare(before, asked):
            found = compare(index, source, follow=follow, are_given=bool(asked.vectors), new=asked.model, track=track)
            if found is None:  # the same build of a new index has ended before
                index = FolderIndex.open(folder)
                continue
            _embed(found, asked, load_model)
            index = _commit(found, asked, load_model)
            notes += found.notes
        # Last, because new images get values too.
        first_row = 0 if follow else before.num_rows
        index, notes_on_columns = alter.set_columns(index, track, metadata=asked.metadata, first_row=first_row)
        notes += notes_on_columns
        if asked.query is not None:
            index = alter.set_query_model(index, asked.query, str(asked.query_ref))
        skipped = storage.skipped_of(folder, index.document)
    if asked.new is not None:
        return IndexChange(index, skipped, notes=tuple(notes))
    if follow:
        return followed(before, index, skipped=skipped, skipped_before=skipped_before, notes=notes)
    return rows_changed(before, index, skipped, [*notes, *_note_of_copies(before, index)])


def _sources_to_compare(index: FolderIndex, asked: Asked) -> list[ImageSource]:
    if asked.source is not None:
        return [asked.source]
    return [source for source in index.document.sources if not source.is_corpus]


def _note_of_copies(before: FolderIndex, after: FolderIndex) -> list[str]:
    """How many of the new rows took the vectors of another one."""
    origins = after.image_files.table.column("copied_from")[before.num_rows :]
    num_taken = len(origins) - origins.null_count
    if not num_taken:
        return []
    files_have = "file has" if num_taken == 1 else "files have"
    return [f"{num_taken:,} {files_have} the bytes of an image of the index, whose vectors were taken"]


def _source(folder: Path, images: Path, split: str | None) -> ImageSource:
    """The source to add to the index in a folder; InputError if it is inside the folder."""
    source = sources.find_source(images, split)
    if Path(source.path).is_relative_to(folder.resolve()):
        raise InputError(f"the images {source.path} are inside the index {folder}", hint="keep the two apart")
    files.check_output_folder(folder)
    return source


def _loaded(ref: str, track: Track) -> models.Searchable:
    with track("load the model", total=None, unit=""):
        return models.load_searchable(ref)


def _load_model(index: FolderIndex, asked: Asked) -> models.Searchable:
    """The model of an index; StaleError if another one is in its place."""
    if asked.model is not None:
        return asked.model
    model = _loaded(str(index.model), asked.track)
    index.expect(model.digest)
    return model


def _new_index(
    job: IndexJob, folder: Path, source: ImageSource, precision: str, track: Track
) -> tuple[FolderIndex, models.Searchable]:
    """An index without images, whose generation of 0 is never written, and its model."""
    ref = os.fspath(job.model)
    model_kind, model = models.check_ref(ref, kind="searchable"), None
    if model_kind is None:  # what a Hub id names is known when it is loaded
        model = _loaded(ref, track)
        model_kind = model.kind
    stored_type = STORED[model_kind]
    asked = job.sets if job.settings is None else assignments(configs.flatten(configs.to_table(job.settings)))
    settings = configs.build(IndexConfig, apply_sets({}, (*stored_type.defaults, *(asked or ()))))
    alter.check_dims(settings, stored_type)
    if stored_type is StoredTokens and job.vectors:
        raise ConfigError(f"--vectors has a vector per image, and {ref} one per token", hint="leave --vectors out")
    # Before the model is loaded, which takes seconds. As many images are counted as decide whether codes are made.
    first = itertools.islice(sources.list_images(source, [folder]), settings.flat_up_to + 1)
    alter.check_packages(settings, model_kind, sum(isinstance(item, SourceImage) for item in first))
    INDEX.check_folder(folder)
    model = model or _loaded(ref, track)
    if model.kind == "late":
        dim = model.token_dim
        if model.vectors_scale is not None:
            raise ModelError(
                f"the scores of {ref} add the cosine of whole vectors to MaxSim, and an index compares tokens alone",
                hint="train it with model.pooled=false, or re-rank with it: --rerank",
            )
    else:
        dim = model.embedding_dim
    if settings.dims is not None and settings.dims > dim:
        raise ConfigError(
            f"dims is {settings.dims}, and the vectors of the model have {dim} numbers",
            hint=f"set it to at most {dim}, or leave it out",
        )
    space_of = model.space_of if model.has_one_vector else None
    document = IndexDocument(
        generation=0,
        model=IndexedModel(kind=model.kind, dim=settings.dims or dim, fingerprint=model.digest, space_of=space_of),
        precision=precision,
        settings=settings,
        sources=(),
    )
    return FolderIndex(folder, document), model


def _embed(found: Comparison, asked: Asked, load_model: LoadModel) -> None:
    """Write the vectors of the images that were found. The model is loaded if one of them has no vector yet."""
    document = found.index.document
    alter.check_packages(document.settings, document.model.kind, document.num_rows + sum(found.rows))
    if found.num_embedded:
        # All vectors of an index have one precision, whatever --precision says now.
        compute = replace(asked.compute, precision=document.precision)
        worker = EmbedWorker(load_model(), compute, found.source, document.model.dim, document.settings)
        if asked.vectors:
            vector_files.take(found, worker, asked.vectors, asked.track)
        else:
            embed.embed(found, worker, asked.track)
    copies.copy_known(found)


def _commit(found: Comparison, asked: Asked, load_model: LoadModel) -> FolderIndex:
    """The index with the new parts, and without the rows of files that are gone or changed; the same index if nothing
    is to be written. InputError if it would have no image."""
    folder, document = asked.folder, found.index.document
    parts, skipped_now = found.written_parts()
    if not (parts or document.parts):
        # An index without images would be in the way of the one of another folder, with its copy of the model.
        shutil.rmtree(folder)
        raise sources.no_image_error(found.source, skipped_now)
    skipped_before = storage.skipped_of(folder, document)
    skipped = [file for file in skipped_before if file["source"] != found.number]
    skipped += [{**asdict(file), "source": found.number} for file in skipped_now]
    removed, touched = image_files.read_changed_rows(found.build.written(image_files.CHANGED_ROWS))
    # An index that was made without the packages of a text side gets one later. That of a large model is not exported
    # if a query encoder's is about to follow.
    lacks_text_side = document.text is None and models.exports_text_towers() and asked.query is None
    if not (parts or len(removed) or len(touched) or skipped != skipped_before or lacks_text_side):
        found.build.clean(document.files)
        return found.index
    changed = replace(
        document,
        generation=document.generation + 1,
        sources=found.sources,
        parts=(*document.parts, *parts),
        text=_text_side(folder, document, load_model(), asked.track) if lacks_text_side else document.text,
    )
    facts = [image_files.changed_facts(found.index.image_files.table, touched)]
    facts += [image_files.read_facts_of(found.build, part_files.part_number(part.file)) for part in parts]
    all_removed = np.union1d(np.flatnonzero(found.index.is_removed), removed) if len(removed) else None
    committed = commit(
        folder, changed, removed=all_removed, skipped=skipped, facts=pa.concat_tables(facts), track=asked.track
    )
    return FolderIndex(folder, committed)


def _text_side(folder: Path, document: IndexDocument, model: models.Searchable, track: Track) -> TextSide:
    """The entry of the text side of the model, which is written. It holds the reason why a model has none, so that it
    is not tried again."""
    try:
        with track("write the text side", total=None, unit=""):
            return alter.write_text_side(folder / TEXT, model, fingerprint=document.model.fingerprint)
    except ModelError as error:
        return TextSide(refused=str(error.args[0]))
