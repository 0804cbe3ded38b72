"""Building and changing an index, one change after the other: each is planned, filled and committed.

A commit replaces index.json atomically, so an index can be searched at any moment of a change, and after a killed one.
A killed run resumes with any number of processes. Its files of vectors, segments and words have the bytes of a run that
was not killed, and every search has the same answers. index.json and the names of files may have other numbers: a
killed change that is run again counts as a change more where its first steps were committed.
"""

from __future__ import annotations

import itertools
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dcdctl.core import artifacts, distributed, files, models
from dcdctl.core import config as configs
from dcdctl.core.artifacts import Build
from dcdctl.core.data import ImageColumns
from dcdctl.core.engines import Compute
from dcdctl.core.errors import ConfigError, InputError, ModelError, require_extra
from dcdctl.core.progress import Track, silent
from dcdctl.core.search import (
    ann,
    commit,
    copies,
    embed,
    image_files,
    keywords,
    part_files,
    plan,
    segments,
    sources,
    storage,
    upkeep,
    vector_files,
)
from dcdctl.core.search.background import probe_texts
from dcdctl.core.search.changes import Changes, IndexChange, followed
from dcdctl.core.search.columns import change
from dcdctl.core.search.embed import IN_SMALL_BATCHES, EmbeddingTask
from dcdctl.core.search.index import FolderIndex
from dcdctl.core.search.index_config import IndexConfig
from dcdctl.core.search.part_files import PlannedParts, SourceImage
from dcdctl.core.search.storage import (
    INDEX,
    INDEX_FILE,
    TEXT,
    ImageSource,
    IndexDocument,
    IndexedModel,
    SealedFile,
    TextSide,
)
from dcdctl.core.search.stored import STORED, StoredTokens, StoredType


def run_index_job(
    target: str,
    changes: Changes,
    *,
    images: Path | None = None,
    out: Path | None = None,
    compute: Compute = IN_SMALL_BATCHES,
    track: Track = silent,
) -> IndexChange:
    """Build an index of `images` in `out` with the model `target` (`build_index`), or change the index `target`
    (`change_index`). ConfigError for a mix of both."""
    if images is None and out is None:
        return change_index(target, changes, compute=compute, track=track)
    is_change = (
        changes.add or changes.remove or changes.remove_gone or changes.drop_columns or changes.sync or changes.moved
    )
    if images is None or out is None or is_change:
        raise ConfigError(
            "--images and --out are for a new index only, and belong together",
            hint="a new index: dcdctl index RUN --images DIR --out INDEX; a change: dcdctl index INDEX --add DIR, "
            "--sync or --remove NAME",
        )
    return build_index(target, images, out, changes, compute=compute, track=track)


def build_index(
    ref: str,
    images: Path,
    out: Path,
    changes: Changes,
    *,
    compute: Compute = IN_SMALL_BATCHES,
    track: Track = silent,
) -> IndexChange:
    """Build an index of `images` in the folder `out`; without a split all images of a corpus are read. A killed run
    resumes.

    StaleError if `out` holds another index, and for a query encoder of another model; InputError if there is no image.
    """
    folder = out.expanduser()
    metadata = _check_inputs(changes)
    source = _source(folder, images, changes.split)
    # Vectors that are given may be of formats that are not read here, and a finished index needs no images.
    if not changes.vectors and not (folder / INDEX_FILE).exists():
        sources.check_has_image(source, [folder])
    empty, model = _new_index(ref, folder, source, changes, track)
    query = _load_query(empty.document, changes.query_model)
    with distributed.lock(folder):
        build, planned = plan.plan_images(empty, source, model, are_given=bool(changes.vectors), track=track)
        if planned is None:  # the same build has ended before
            index = FolderIndex.open(folder)
        else:
            index = _fill(empty, build, planned, changes, compute, track, model=model)
        # Last, because added images get values too.
        index, notes = _set_columns(index, changes, metadata, track, first_row=0)
        if query is not None:
            index = _set_query_model(index, query, str(changes.query_model))
    return IndexChange(index, storage.skipped_of(folder, index.document), notes=notes)


def change_index(
    place: str, changes: Changes, *, compute: Compute = IN_SMALL_BATCHES, track: Track = silent
) -> IndexChange:
    """Change the index in a folder; without changes it is only opened. A killed run resumes.

    StaleError for a query encoder of another model, InputError if a name to remove matches none or a folder to add has
    no image.
    """
    metadata = _check_inputs(changes)
    if changes.vectors and changes.add is None:
        hint = "name the images with --images and --out, or with --add"
        raise ConfigError("--vectors are the vectors of images that are new", hint=hint)
    if changes.vectors and changes.sync:
        raise ConfigError(
            "--vectors has the vectors of the images to add, and --sync embeds what is new in all folders",
            hint="leave --sync out, and follow the folders in a second command",
        )
    before = upkeep.open_to_change(place)
    folder = before.folder
    if not upkeep.has_changes(before, changes):
        return IndexChange(before, [])
    # Before a model is loaded, and by its own name: a user does not know the files that a change writes first.
    files.check_output_folder(folder)
    source = None if changes.add is None else _source(folder, changes.add, changes.split)
    # A folder that is followed may be empty for a while. One without images would not be followed, so it is an error.
    # Vectors that are given may be of formats that are not read here.
    if source is not None and source not in before.document.sources and not changes.vectors:
        sources.check_has_image(source, [folder])
    query = _load_query(before.document, changes.query_model)
    notes: list[str] = []
    with distributed.lock(folder):
        # Read again, because another run may have changed the index before this one had the lock.
        before = FolderIndex.open(folder)
        skipped_before = storage.skipped_of(folder, before.document) if changes.sync else []
        index = _alter(before, changes, track)
        for was, now in zip(before.document.sources, index.document.sources, strict=True):
            if was.path != now.path:
                notes.append(f"moved: the images of {was.path} are now looked for in {now.path}")
        folders = [each for each in index.document.sources if not each.is_corpus] if changes.sync else []
        for each in folders if source is None or source in folders else [*folders, source]:
            build, planned = plan.plan_images(index, each, are_given=bool(changes.vectors), follow=each in folders)
            assert planned is not None, "only the build of a new index can have ended before"
            index = _fill(index, build, planned, changes, compute, track)
            notes += planned.notes
        # All files that were indexed without a look at their EXIF data are read only when the user asks for it.
        reads_all = changes.sync or index.config.exif != before.config.exif
        first_row = 0 if reads_all else before.num_rows
        index, more_notes = _set_columns(index, changes, metadata, track, first_row=first_row)
        notes += more_notes
        if query is not None:
            index = _set_query_model(index, query, str(changes.query_model))
        skipped = storage.skipped_of(folder, index.document) if folders or source is not None else []
    if changes.sync:
        return followed(before, index, skipped=skipped, skipped_before=skipped_before, notes=tuple(notes))
    origins = index.image_files.table.column("copied_from")[before.num_rows :]
    num_taken = len(origins) - origins.null_count
    if num_taken:
        files_in = "file has" if num_taken == 1 else "files have"
        notes.append(f"{num_taken:,} {files_in} the bytes of an image of the index, whose vectors were taken")
    num_removed = index.document.removed.count - before.document.removed.count
    return IndexChange(index, skipped, added=index.num_rows - before.num_rows, removed=num_removed, notes=tuple(notes))


def _check_inputs(changes: Changes) -> ImageColumns | None:
    """The columns of the metadata, and an error for files and models that are not there: a typing error would come out
    hours later, after everything is embedded."""
    if changes.vectors:
        vector_files.find(changes.vectors)
    if changes.query_model:
        models.check_ref(changes.query_model, kind="query")
    return change.read_metadata(changes.metadata)


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
    ref: str, folder: Path, source: ImageSource, changes: Changes, track: Track
) -> tuple[FolderIndex, models.Searchable]:
    """An index without images, whose generation of 0 is never written, and its model."""
    model_kind, model = models.check_ref(ref, kind="searchable"), None
    if model_kind is None:  # what a Hub id names is known when it is loaded
        model = _loaded(ref, track)
        model_kind = model.kind
    stored_type = STORED[model_kind]
    settings = configs.build(IndexConfig, configs.apply_sets({}, (*stored_type.defaults, *changes.sets)))
    _check_kind(settings, stored_type)
    if stored_type is StoredTokens and changes.vectors:
        raise ConfigError(f"--vectors has a vector per image, and {ref} one per token", hint="leave --vectors out")
    # Before the model is loaded, which takes seconds. As many images are counted as decide whether a graph is made.
    first = itertools.islice(sources.list_images(source, [folder]), settings.flat_up_to + 1)
    _check_packages(settings, sum(isinstance(item, SourceImage) for item in first))
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
        precision=changes.precision or "float32",
        settings=settings,
        sources=(),
    )
    return FolderIndex(folder, document), model


def _check_kind(settings: IndexConfig, stored_type: StoredType) -> None:
    """ConfigError for settings of the other kind of model."""
    if settings.kind not in stored_type.kinds:
        *others, last = stored_type.kinds
        raise ConfigError(
            f"kind {settings.kind} does not search the index of a {stored_type.made_by}",
            hint=f"set kind to {', '.join(others)} or {last}",
        )
    if stored_type is StoredTokens and settings.dims is not None:
        raise ConfigError(
            "dims shortens the vectors of a dual encoder, and this is a late-interaction model",
            hint="train it with another model.token_dim, or set tokens.codes=int8",
        )


def _check_packages(config: IndexConfig, num_rows: int) -> None:
    """MissingError if a package is not installed that the settings need for so many rows; few rows are searched without
    a graph."""
    if config.keywords:
        keywords.require()
    if segments.segment_ranges(num_rows, [], config):
        ann.require(config.kind)


def _alter(index: FolderIndex, changes: Changes, track: Track) -> FolderIndex:
    """Change settings and places of image folders, and remove images."""
    folder, document = index.folder, index.document
    if changes.precision not in (None, document.precision):
        raise ConfigError(
            f"the index {folder} is of precision {document.precision}, not {changes.precision}",
            hint="leave --precision out",
        )
    if changes.moved is not None:
        index = _move(index, changes)
        document = index.document
    if not (changes.sets or changes.remove or changes.remove_gone):
        return index
    settings = configs.build(IndexConfig, configs.apply_sets(configs.to_table(document.settings), changes.sets))
    if settings.dims != document.settings.dims:
        raise ConfigError(
            f"the vectors of {folder} have {document.model.dim} numbers, and dims is fixed when an index is made",
            hint="make a new index with --dims",
        )
    if replace(settings.tokens, centroids=1) != replace(document.settings.tokens, centroids=1):
        raise ConfigError(
            f"tokens.codes and tokens.pooling of {folder} are fixed when an index is made",
            hint="make a new index with --set",
        )
    _check_kind(settings, document.stored_type)
    _check_packages(settings, document.num_rows)
    removed = upkeep.rows_to_remove(index, changes.remove, gone=changes.remove_gone)
    # Segments are named by their rows only: those that a killed change to other settings left must not be taken.
    generation = document.generation + 1
    entries = {"format": INDEX.format, "generation": generation, "settings": configs.to_table(settings)}
    with distributed.main_first():
        if distributed.is_main():
            Build(folder, {**entries, "changes": "settings"}, INDEX).begin(restart=True, kept=document.files)
    changed = replace(
        document,
        generation=generation,
        settings=settings,
        segments=document.segments if settings.builds_as(document.settings) else (),
    )
    return FolderIndex(folder, commit.commit(folder, changed, removed=removed, track=track))


def _move(index: FolderIndex, changes: Changes) -> FolderIndex:
    """The same index, whose image folder is at another place."""
    assert changes.moved is not None
    old, new = changes.moved
    with distributed.main_first():
        if distributed.is_main():
            document = index.document
            is_alone = not upkeep.has_changes(index, replace(changes, moved=None))
            sources = upkeep.moved_sources(index, old, new, is_alone=is_alone)
            if sources != document.sources:
                commit.seal(index.folder, replace(document, generation=document.generation + 1, sources=sources))
    return FolderIndex.open(index.folder)


def _fill(
    index: FolderIndex,
    build: Build,
    planned: PlannedParts,
    changes: Changes,
    compute: Compute,
    track: Track,
    *,
    model: models.Searchable | None = None,
) -> FolderIndex:
    """Add the planned images of a source, and remove the planned rows. The model of the index is loaded if it is needed
    and not given."""
    folder, document, source = index.folder, index.document, build.plan["source"]
    _check_packages(document.settings, document.num_rows + sum(planned.rows))
    # An index that was made without the packages of a text side gets one later.
    lacks_text_side = document.text is None and models.exports_text_towers() and not changes.query_model
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
            if changes.vectors:
                vector_files.take(task, changes.vectors, track)
            else:
                embed.embed(task, track)
    copies.copy_known(index, build, planned)
    parts, skipped_now = part_files.describe_parts(build, planned, document.vector_type)
    if not (parts or document.parts):
        # An index without images would be in the way of the one of another folder, with its copy of the model.
        distributed.barrier()
        if distributed.is_main():
            shutil.rmtree(folder)
        raise sources.no_image_error(ImageSource(**build.plan["sources"][source]), skipped_now)
    before = storage.skipped_of(folder, document)
    skipped = [file for file in before if file["source"] != source]
    skipped += [{**asdict(file), "source": source} for file in skipped_now]
    removed, touched = image_files.read_changed_rows(build.written(image_files.CHANGED_ROWS))
    if not (parts or len(removed) or len(touched) or skipped != before or lacks_text_side):
        with distributed.main_first():
            if distributed.is_main():
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


def _text_side(folder: Path, document: IndexDocument, model: models.Searchable, track: Track) -> TextSide | None:
    """The entry of the text side of the model, which the main process writes if the index has none.

    None without the packages that export it. The entry holds the reason why a model has no text side, so that it is not
    tried again.
    """
    if document.text is not None or not models.exports_text_towers() or not distributed.is_main():
        return document.text
    try:
        with track("write the text side", total=None, unit=""):
            return _write_text_side(folder / TEXT, model, fingerprint=document.model.fingerprint)
    except ModelError as error:
        return TextSide(refused=str(error.args[0]))


def _write_text_side(
    folder: Path, model: models.Searchable, space: str | None = None, fingerprint: str | None = None
) -> TextSide:
    """The entry of a text side that is written to a folder; see `models.export_text_tower`."""
    # A query encoder's stands by itself: to answer, the files of a large model need not be read.
    weights = None if space else folder.with_name("model")
    models.export_text_tower(model, folder, space, weights, probes=probe_texts(), fingerprint=fingerprint)
    sealed = tuple(SealedFile(file=path.name, **artifacts.seal_of(path)) for path in sorted(folder.iterdir()))
    return TextSide(folder=folder.name, files=sealed)


def _load_query(document: IndexDocument, ref: str | None) -> Any:
    """A query encoder of the model of an index, None without a name; StaleError for one of another model, MissingError
    without the packages that export it."""
    if not ref:
        return None
    require_extra("index", *models.TEXT_PACKAGES, needed_by="--query-model")
    indexed = document.model
    query: Any = models.load(ref, kind="query")
    # Of an index of short vectors, the length of the model's is not known here; its fingerprint is.
    dim = indexed.dim if document.settings.dims is None else query.space.dim
    query.space.check(replace(query.space, kind=indexed.kind, dim=dim, teacher=indexed.fingerprint), ref)
    return query


def _set_query_model(index: FolderIndex, query: Any, ref: str) -> FolderIndex:
    """The same index, whose texts a query encoder embeds."""
    document, generation = index.document, index.document.generation + 1
    with distributed.main_first():
        if distributed.is_main():
            # Beside the former one, which searches until index.json names this one.
            text = _write_text_side(index.folder / f"{TEXT}-{generation}", query, index.fingerprint)
            text = replace(text, query_model=query.digest, query_ref=ref)
            commit.seal(index.folder, replace(document, generation=generation, text=text))
    return FolderIndex.open(index.folder)


def _set_columns(
    index: FolderIndex, changes: Changes, metadata: ImageColumns | None, track: Track, *, first_row: int
) -> tuple[FolderIndex, tuple[str, ...]]:
    """Change the columns of the images; the same index then, and notes for the user."""
    is_asked = changes.drop_columns or metadata is not None
    if not (is_asked or change.has_columns_to_fill(index, first_row=first_row)):
        return index, ()
    notes: list[str] = []
    with distributed.main_first():
        if distributed.is_main():
            table, facts = change.changed_table(index, changes, metadata, first_row=first_row, notes=notes, track=track)
            stored = index.stored_columns
            if stored.num_covered not in (0, index.num_rows) or not table.equals(stored.table()) or facts is not None:
                # No column would be left to remember that.
                drops_all = change.drops_all_of_files(index, changes, table)
                settings = replace(index.config, exif="none") if drops_all else index.config
                commit.seal_columns(index, table, facts, settings)
    return FolderIndex.open(index.folder), tuple(notes)
