"""Building an index, adding images to it and following its folders: each is planned, filled and committed.

A commit replaces index.json atomically, so an index can be searched at any moment of a change, and after a killed one.
A killed run resumes. Its files of vectors, segments and words have the bytes of a run that
was not killed, and every search has the same answers. index.json and the names of files may have other numbers: a
killed change that is run again counts as a change more where its first steps were committed.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from dcdctl.core import config as configs
from dcdctl.core import files, models
from dcdctl.core.arguments import optional_ref, path
from dcdctl.core.artifacts import Build
from dcdctl.core.engines import Compute
from dcdctl.core.errors import ConfigError, InputError, ModelError
from dcdctl.core.progress import Say, Track, silent, unsaid
from dcdctl.core.search import (
    alter,
    commit,
    copies,
    embed,
    image_files,
    part_files,
    plan,
    sources,
    storage,
    upkeep,
    vector_files,
)
from dcdctl.core.search.changes import IndexChange, followed
from dcdctl.core.search.embed import IN_SMALL_BATCHES, EmbeddingTask
from dcdctl.core.search.index import FolderIndex
from dcdctl.core.search.index_config import IndexConfig
from dcdctl.core.search.job import IndexJob, table_or_path
from dcdctl.core.search.part_files import PlannedParts, SourceImage
from dcdctl.core.search.storage import (
    INDEX,
    INDEX_FILE,
    TEXT,
    ImageSource,
    IndexDocument,
    IndexedModel,
    TextSide,
)
from dcdctl.core.search.stored import STORED, StoredTokens
from dcdctl.core.toml import apply_sets, assignments


def build_index(
    job: IndexJob, *, compute: Compute | None = None, track: Track = silent, say: Say = unsaid
) -> IndexChange:
    """Build an index in a folder; without a split all images of a corpus are read. A killed run resumes.
    `compute` takes the place of what the job says about it.

    StaleError if the folder holds another index, and for a query encoder of another model; InputError if there is no
    image.
    """
    folder, vectors, query_model = path(job.out), job.vectors or (), optional_ref(job.query_model)
    compute = compute or job.compute(say, job.precision)
    # A typing error would come out hours later, after everything is embedded.
    if vectors:
        vector_files.find(vectors)
    metadata = alter.read_inputs(table_or_path(job.metadata), query_model)
    source = _source(folder, path(job.images), job.split)
    # Vectors that are given may be of formats that are not read here, and a finished index needs no images.
    if not vectors and not (folder / INDEX_FILE).exists():
        sources.check_has_image(source, [folder])
    empty, model = _new_index(job, folder, source, compute.precision, track)
    query = alter.load_query(empty.document, query_model)
    with files.lock(folder):
        build, planned = plan.plan_images(empty, source, model, are_given=bool(vectors), track=track)
        if planned is None:  # the same build has ended before
            index = FolderIndex.open(folder)
        else:
            index = _fill(
                empty,
                build,
                planned,
                compute,
                track,
                vectors=vectors,
                model=model,
                has_query_model=query is not None,
            )
        # Last, because added images get values too.
        index, notes = alter.set_columns(index, track, metadata=metadata)
        if query is not None:
            index = alter.set_query_model(index, query, str(query_model))
    return IndexChange(index, storage.skipped_of(folder, index.document), notes=notes)


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
    before = upkeep.open_to_change(place)
    folder = before.folder
    # Before a model is loaded, and by its own name: a user does not know the files that a change writes first.
    files.check_output_folder(folder)
    source = _source(folder, images, split)
    # A folder that is followed may be empty for a while. One without images would not be followed, so it is an error.
    # Vectors that are given may be of formats that are not read here.
    if source not in before.document.sources and not vectors:
        sources.check_has_image(source, [folder])
    with files.lock(folder):
        # Read again, because another run may have changed the index before this one had the lock.
        before = FolderIndex.open(folder)
        build, planned = plan.plan_images(before, source, are_given=bool(vectors))
        assert planned is not None, "only the build of a new index can have ended before"
        index = _fill(before, build, planned, compute, track, vectors=vectors)
        index, notes = alter.set_columns(index, track, first_row=before.num_rows)
        skipped = storage.skipped_of(folder, index.document)
    origins = index.image_files.table.column("copied_from")[before.num_rows :]
    taken: tuple[str, ...] = ()
    if num_taken := len(origins) - origins.null_count:
        files_in = "file has" if num_taken == 1 else "files have"
        taken = (f"{num_taken:,} {files_in} the bytes of an image of the index, whose vectors were taken",)
    return alter.rows_changed(before, index, skipped, (*planned.notes, *notes, *taken))


def follow_folders(place: str, *, compute: Compute = IN_SMALL_BATCHES, track: Track = silent) -> IndexChange:
    """Follow the image folders of an index: add what is new, read again what changed, remove what is gone, and fill
    columns. A killed run resumes."""
    folder = upkeep.open_to_change(place).folder
    files.check_output_folder(folder)
    notes: list[str] = []
    with files.lock(folder):
        before = index = FolderIndex.open(folder)
        skipped_before = storage.skipped_of(folder, before.document)
        for source in before.document.sources:
            if source.is_corpus:
                continue
            build, planned = plan.plan_images(index, source, follow=True)
            assert planned is not None, "only the build of a new index can have ended before"
            index = _fill(index, build, planned, compute, track)
            notes += planned.notes
        index, more_notes = alter.set_columns(index, track)
        skipped = storage.skipped_of(folder, index.document)
    return followed(before, index, skipped=skipped, skipped_before=skipped_before, notes=(*notes, *more_notes))


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
    alter.check_kind(settings, stored_type)
    if stored_type is StoredTokens and job.vectors:
        raise ConfigError(f"--vectors has a vector per image, and {ref} one per token", hint="leave --vectors out")
    # Before the model is loaded, which takes seconds. As many images are counted as decide whether a graph is made.
    first = itertools.islice(sources.list_images(source, [folder]), settings.flat_up_to + 1)
    alter.check_packages(settings, sum(isinstance(item, SourceImage) for item in first))
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
    document = IndexDocument(
        generation=0,
        model=IndexedModel(kind=model.kind, dim=settings.dims or dim, fingerprint=model.digest),
        precision=precision,
        settings=settings,
        sources=(),
    )
    return FolderIndex(folder, document), model


def _fill(
    index: FolderIndex,
    build: Build,
    planned: PlannedParts,
    compute: Compute,
    track: Track,
    *,
    vectors: Sequence[str] = (),
    model: models.Searchable | None = None,
    has_query_model: bool = False,
) -> FolderIndex:
    """Add the planned images of a source, and remove the planned rows. The model of the index is loaded if it is needed
    and not given."""
    folder, document, source = index.folder, index.document, build.plan["source"]
    alter.check_packages(document.settings, document.num_rows + sum(planned.rows))
    # An index that was made without the packages of a text side gets one later.
    lacks_text_side = document.text is None and models.exports_text_towers() and not has_query_model
    if planned.num_embedded or lacks_text_side:
        if model is None:
            model = _loaded(str(index.model), track)
            index.expect(model.digest)
        if planned.num_embedded:
            task = EmbeddingTask(
                build=build,
                source=ImageSource(**build.plan["sources"][source]),
                planned=planned,
                model=model,
                document=document,
                # All vectors of an index have one precision, whatever --precision says now.
                compute=replace(compute, precision=document.precision),
            )
            if vectors:
                vector_files.take(task, vectors, track)
            else:
                embed.embed(task, track)
    copies.copy_known(index, build, planned)
    parts, skipped_now = part_files.describe_parts(build, planned, document.vector_type)
    if not (parts or document.parts):
        # An index without images would be in the way of the one of another folder, with its copy of the model.
        shutil.rmtree(folder)
        raise sources.no_image_error(ImageSource(**build.plan["sources"][source]), skipped_now)
    before = storage.skipped_of(folder, document)
    skipped = [file for file in before if file["source"] != source]
    skipped += [{**asdict(file), "source": source} for file in skipped_now]
    removed, touched = image_files.read_changed_rows(build.written(image_files.CHANGED_ROWS))
    if not (parts or len(removed) or len(touched) or skipped != before or lacks_text_side):
        build.clean(document.files)
        return index
    text = document.text
    # A large model's text side is not exported if a query encoder's is about to follow.
    if lacks_text_side and model is not None:
        text = _text_side(folder, document, model, track)
    changed = replace(
        document,
        generation=build.plan["generation"],
        sources=tuple(ImageSource(**entry) for entry in build.plan["sources"]),
        parts=(*document.parts, *parts),
        text=text,
    )
    facts = [image_files.changed_facts(index.image_files.table, touched)]
    facts += [image_files.read_facts_of(build, part_files.part_number(part.file)) for part in parts]
    return FolderIndex(
        folder,
        commit.commit(
            folder,
            changed,
            removed=np.union1d(np.flatnonzero(index.is_removed), removed) if len(removed) else None,
            skipped=skipped,
            facts=pa.concat_tables(facts),
            track=track,
        ),
    )


def _text_side(folder: Path, document: IndexDocument, model: models.Searchable, track: Track) -> TextSide:
    """The entry of the text side of the model, which is written. It holds the reason why a model has none, so that it
    is not tried again."""
    try:
        with track("write the text side", total=None, unit=""):
            return alter.write_text_side(folder / TEXT, model, fingerprint=document.model.fingerprint)
    except ModelError as error:
        return TextSide(refused=str(error.args[0]))
