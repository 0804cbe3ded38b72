"""Building and changing an index: images are planned, embedded and made searchable, and then index.json is replaced
atomically.

So an index can be searched at any moment of a change, and after a killed one. A killed run resumes with any number of
processes and gives the same bytes.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from dcdctl.core import artifacts, distributed, files, models
from dcdctl.core import config as configs
from dcdctl.core.artifacts import Build
from dcdctl.core.data import share_split
from dcdctl.core.devices import Compute
from dcdctl.core.errors import ConfigError, InputError, MissingError, StaleError
from dcdctl.core.files import refuse_url
from dcdctl.core.progress import Track, silent
from dcdctl.core.search import ann, commit, embed, keywords, part_files, storage, text_side, vector_files
from dcdctl.core.search.columns.change import ColumnChanges, change_columns, has_new_corpus_columns
from dcdctl.core.search.commit import skipped_of
from dcdctl.core.search.config import IndexConfig
from dcdctl.core.search.embed import IN_SMALL_BATCHES, EmbeddingTask
from dcdctl.core.search.index import Index
from dcdctl.core.search.part_files import SkippedFile, SourceImage
from dcdctl.core.search.storage import INDEX, PLANNED, ImageSource, Listed
from dcdctl.core.search.vector_files import VectorFiles

BYTES_PER_IMAGE = 200
"""On disk, besides three bytes per number of a vector: two in the file of vectors, one in a graph."""
Document = dict[str, Any]
"""The content of index.json."""


@dataclass(frozen=True, kw_only=True)
class Changes:
    """Changes of an index, made in this order."""

    sets: tuple[str, ...] = ()
    """Settings such as "kind=flat"."""
    remove: tuple[str, ...] = ()
    """Image ids, or patterns of them such as "2019/*"."""
    remove_gone: bool = False
    """Remove the images whose files are gone."""
    add: Path | None = None
    """A folder of images or a corpus to add; if it is indexed already, only its new images."""
    split: str | None = None
    """The split of a corpus to add, or several joined; None for all."""
    precision: str | None = None
    """Torch name of the precision of a new index; an index that is changed must have it already. None: float32, or that
    of the index."""
    vectors: VectorFiles | None = None
    """The vectors of the images of a new index, or of those to add; None: the model embeds them."""
    columns: ColumnChanges = field(default_factory=ColumnChanges)
    """Made last, for a new index too."""


def build(
    ref: str,
    images: Path,
    folder: Path,
    config: IndexConfig,
    *,
    split: str | None = None,
    given: VectorFiles | None = None,
    compute: Compute = IN_SMALL_BATCHES,
    track: Track = silent,
) -> Index:
    """Embed the images of a folder or a corpus with a dual encoder and make them searchable; resumes a killed run.

    Without `split`, all splits of a corpus are read as one. `given` are vectors that another engine computed with this
    dual encoder. StaleError if the folder holds an index of other images, another model or other settings; InputError
    if there is no image.
    """
    folder, source = Path(folder), embed.find_source(Path(images), split)
    _refuse_inside(folder, source)
    _check_packages(
        config, lambda: sum(1 for _ in itertools.islice(embed.list_images(source, folder), config.flat_up_to + 1))
    )
    models.check_ref(ref, kind="dual")
    INDEX.check_folder(folder)
    model = _loaded(ref, compute)
    plan = {
        "format": INDEX.format,
        "generation": 1,
        "model": {"kind": "dual", "dim": _stored_width(config, model), "fingerprint": model.digest},
        "sources": [asdict(source)],
        "precision": compute.precision,
        "settings": configs.to_table(config),
        "vectors": _origin(given),
    }
    planned = Build(folder, plan, INDEX)
    with distributed.lock(folder):
        with distributed.main_first():
            if distributed.is_main():
                _begin(planned, model)
        if not planned.is_sealed:
            nothing = asdict(Listed())
            empty = {**plan, "removed": nothing, "skipped": nothing, "parts": [], "segments": []}
            _fill(_Filling(folder, empty, model, given, compute), track)
    return Index.open(folder)


def _loaded(ref: str | Path, compute: Compute) -> models.DualEncoder:
    model = models.load_dual(ref)
    if compute.compile:
        models.require_compiled_sides(model)
    return model


def _origin(given: VectorFiles | None) -> str:
    """What a plan says of its vectors, so that a killed run is not resumed with vectors from elsewhere."""
    return "embedded" if given is None else "given"


def _stored_width(config: IndexConfig, model: models.DualEncoder) -> int:
    """Numbers of a stored vector; ConfigError if the model has fewer."""
    if config.dims is not None and config.dims > model.embedding_dim:
        message = f"dims is {config.dims}, and the vectors of the model have {model.embedding_dim} numbers"
        raise ConfigError(message, hint=f"set it to at most {model.embedding_dim}, or leave it out")
    return config.dims or model.embedding_dim


def update(folder: Path, changes: Changes, *, compute: Compute = IN_SMALL_BATCHES, track: Track = silent) -> Index:
    """Change the settings or the images of an index. Rows keep their images. InputError if a name to remove matches no
    image."""
    storage.read_document(folder)  # an error, before a lock file is written next to another folder
    with distributed.lock(folder):
        # Again, because another run may have changed the index before this one had the lock.
        document = storage.read_document(folder)
        if changes.precision not in (None, document["precision"]):
            message = f"the index {folder} is of precision {document['precision']}, not {changes.precision}"
            raise ConfigError(message, hint="leave --precision out")
        if changes.sets or changes.remove or changes.remove_gone:
            document = _changed(folder, document, changes, track)
        if changes.add is not None:
            source = embed.find_source(changes.add, changes.split)
            _refuse_inside(folder, source)
            with distributed.main_first():
                if distributed.is_main():
                    _begin_adding(folder, document, source, _origin(changes.vectors))
            index = Index(folder, document)
            model = _loaded(index.model, compute)
            index.expect(model.digest)
            _fill(_Filling(folder, document, model, changes.vectors, compute), track)
    return Index.open(folder)


def _refuse_inside(folder: Path, source: ImageSource) -> None:
    out, images = folder.resolve(), Path(source.path)
    if images.is_relative_to(out):
        raise InputError(f"the images {images} are inside the index {folder}", hint="keep the two apart")
    files.check_output_folder(folder)


def _begin(build: Build, model: models.DualEncoder) -> None:
    """Make the folder this plan's: the model, and the images of each part. Another plan is replaced if none of it is
    embedded."""
    folder, source = build.folder, build.plan["sources"][0]
    if build.is_sealed:
        document = storage.read_document(folder)
        _expect(build, document)
        if (folder / INDEX.plan_file).exists() and INDEX.read_plan(folder)["generation"] <= document["generation"]:
            build.clean(storage.files_of(document))  # killed when everything else was done
        return
    if _is_planned(build, build.begin(restart=not any(folder.glob("vectors/part-*.parquet"))), kept=()):
        return
    notes = _plan_parts(build, source=0, first_part=0, known=set())
    if not notes["rows"]:
        shutil.rmtree(folder)
        raise InputError(f"there is no image in {source['path']}", hint="--images takes a folder of images or a corpus")
    # Before the notes: a plan without `rows` is one that was killed here, and starts over.
    models.save(model, folder / "model")
    build.note(**notes)


def _begin_adding(folder: Path, document: Document, source: ImageSource, origin: str) -> None:
    """Plan which images of a source are new, unless a killed run has."""
    sources = list(document["sources"])
    number = next(
        (number for number, entry in enumerate(sources) if ImageSource(**entry).key == source.key), len(sources)
    )
    if number == len(sources):
        _refuse_overlap(folder, source, sources)
        sources.append(asdict(source))
    elif sources[number] != asdict(source):
        raise StaleError(f"{source.path} holds another corpus than the one that was indexed", hint="make a new index")
    plan = {key: document[key] for key in ("format", "model", "precision", "settings")}
    plan |= {"generation": document["generation"] + 1, "sources": sources, "source": number, "vectors": origin}
    build = Build(folder, plan, INDEX)
    kept = storage.files_of(document)
    if _is_planned(build, build.begin(restart=True, kept=kept), kept):
        return
    # After the highest number in use (part-00003.parquet), because files of an index are never overwritten.
    first = 1 + max((int(part["file"][5:-8]) for part in document["parts"]), default=-1)
    known = commit.ids_of(Index(folder, document), number)
    build.note(**_plan_parts(build, source=number, first_part=first, known=known))


def _refuse_overlap(folder: Path, source: ImageSource, sources: Sequence[Mapping[str, Any]]) -> None:
    """InputError if the index has some of the splits of a corpus, whose images would be there twice."""
    for entry in sources:
        if source.split is not None and entry["path"] == source.path and share_split(source.split, str(entry["split"])):
            found = f"{folder} has split {entry['split']} of {source.path}, and split {source.split} was to be added"
            raise InputError(found, hint="name the splits that are missing with --split, such as --split val+test")


def _is_planned(build: Build, notes: Document, kept: Collection[str]) -> bool:
    """Whether a killed run has planned the parts; if its plan is damaged, all of its files are removed, and planning
    starts over."""
    if "rows" not in notes:
        return False
    parts = range(notes["first_part"], notes["first_part"] + len(notes["rows"]))
    if all(build.is_written(part_files.planned_name(part)) for part in parts):
        return True
    # The files of vectors too: the images may be others by now.
    build.clean(kept)
    build.note()
    return False


def _plan_parts(build: Build, *, source: int, first_part: int, known: set[str]) -> Document:
    """Write into the folder which images each part has, without those that are known. Returns the notes for the
    plan."""
    folder, plan = build.folder, build.plan
    shutil.rmtree(folder / PLANNED, ignore_errors=True)
    (folder / PLANNED).mkdir(parents=True)
    skipped: list[SkippedFile] = []

    def new_images() -> Iterator[SourceImage]:
        for item in embed.list_images(ImageSource(**plan["sources"][source]), folder):
            if isinstance(item, SkippedFile):
                skipped.append(item)
            elif item.image_id not in known:
                yield item

    rows: list[int] = []
    for images in embed.in_parts(new_images(), part_files.ROWS_PER_PART):
        with build.write(part_files.planned_name(first_part + len(rows))) as partial:
            part_files.write_planned(partial, images)
        rows.append(len(images))
    # A full disk is an error here, not after the images were embedded.
    needed = sum(rows) * (BYTES_PER_IMAGE + 3 * plan["model"]["dim"])
    if (free := shutil.disk_usage(folder).free) < needed:
        raise InputError(
            f"{sum(rows):,} images need {needed / 1e9:,.2f} GB in {folder}, and {free / 1e9:,.2f} GB are free"
        )
    return {"source": source, "first_part": first_part, "rows": rows, "skipped": [asdict(file) for file in skipped]}


def _expect(build: Build, document: Document) -> None:
    """StaleError if a finished index is not the planned one; images that were added later are no difference."""
    # Built and written again, so that an index of a version without a setting has its default.
    settings = configs.to_table(configs.build(IndexConfig, document["settings"]))
    found = {**document, "sources": document["sources"][:1], "settings": settings}
    for keys, hint in (
        (("model", "sources", "precision"), "name another folder with --out"),
        (("settings",), f"change them with `dcdctl index {build.folder} --set ...`"),
    ):
        artifacts.expect(build.folder, found, {key: build.plan[key] for key in keys}, hint=hint)


@dataclass(frozen=True)
class _Filling:
    """Planned images, and the index that a document describes, which they are added to."""

    folder: Path
    document: Document
    model: models.DualEncoder
    given: VectorFiles | None
    compute: Compute


def _fill(filling: _Filling, track: Track) -> None:
    """Embed the planned images, or take their given vectors, and add them to the index."""
    folder, document, model = filling.folder, filling.document, filling.model
    plan = INDEX.read_plan(folder)
    num_rows = sum(part["rows"] for part in document["parts"]) + sum(plan["rows"])
    _check_packages(configs.build(IndexConfig, plan["settings"]), lambda: num_rows)
    task = EmbeddingTask(folder, plan, model, replace(filling.compute, precision=plan["precision"]))
    embed.embed(task, track) if filling.given is None else vector_files.take(task, filling.given, track)
    described = [
        part_files.describe_part(task.build.written(task.name(part)), plan["source"], task.dim) for part in task.parts
    ]
    parts = [asdict(part) for part, _ in described if part.rows]
    skipped_now = [*plan["skipped"], *(asdict(file) for _, files_of_part in described for file in files_of_part)]
    if not (parts or document["parts"]):
        first = "; ".join(f"{file['path']}: {file['reason']}" for file in skipped_now[:2])
        raise InputError(
            f"none of {len(skipped_now):,} files in {task.source.path} is an image that can be read: {first}"
        )
    before = commit.skipped_of(folder, document)
    skipped = [file for file in before if file["source"] != plan["source"]] + [
        {**file, "source": plan["source"]} for file in skipped_now
    ]
    document = text_side.added(folder, document, model)
    planned = {key: plan[key] for key in ("generation", "sources", "model", "precision", "settings")}
    # Nothing is new, so the index keeps its generation and its sources.
    if not parts and skipped == before:
        planned = {}
    document = {**document, **planned, **filling.compute.compiled_fact, "parts": [*document["parts"], *parts]}
    commit.commit(folder, document, skipped=skipped, track=track)


def _check_packages(config: IndexConfig, count_rows: Callable[[], int]) -> None:
    """MissingError if a package is not installed that the settings need for so many rows; few rows are searched without
    a graph."""
    if config.keywords:
        keywords.packages()
    try:
        ann.packages(config.kind)
    except MissingError:
        if ann.segment_ranges(count_rows(), [], config):
            raise


def _changed(folder: Path, document: Document, changes: Changes, track: Track) -> Document:
    """index.json after the settings were changed and images removed."""
    table = configs.apply_sets(document["settings"], changes.sets)
    config = configs.build(IndexConfig, table)
    before = configs.build(IndexConfig, document["settings"])
    if config.dims != before.dims:
        message = (
            f"the vectors of {folder} have {document['model']['dim']} numbers, and dims is fixed when an index is made"
        )
        raise ConfigError(message, hint="make a new index with --dims")
    _check_packages(config, lambda: sum(part["rows"] for part in document["parts"]))
    removed = commit.rows_to_remove(Index(folder, document), changes.remove, gone=changes.remove_gone)
    settings, kept = configs.to_table(config), storage.files_of(document)
    # Segments are named by their rows only: those that a killed change to other settings left must not be taken.
    plan = {
        "format": INDEX.format,
        "generation": document["generation"] + 1,
        "settings": settings,
        "changes": "settings",
    }
    with distributed.main_first():
        if distributed.is_main():
            Build(folder, plan, INDEX).begin(restart=True, kept=kept)
    changed = {**text_side.added(folder, document), "generation": document["generation"] + 1, "settings": settings}
    if not config.builds_as(before):
        changed["segments"] = []
    return commit.commit(folder, changed, removed=removed, track=track)


@dataclass(frozen=True)
class IndexChange:
    """An index after a command, and what the command changed."""

    index: Index
    skipped: list[dict[str, Any]]
    """Files that could not be indexed, with the reasons."""
    added: int = 0
    removed: int = 0
    notes: tuple[str, ...] = ()
    """What the user should know about columns: images of the metadata that the index lacks, and the other way round."""

    def __repr__(self) -> str:
        return (
            f"IndexChange({self.index!r}: {self.added:,} added, {self.removed:,} removed, {len(self.skipped):,} "
            "skipped)"
        )


def run_index_job(
    target: str,
    changes: Changes,
    *,
    images: Path | None = None,
    out: Path | None = None,
    compute: Compute = IN_SMALL_BATCHES,
    track: Track = silent,
) -> IndexChange:
    """Build an index of `images` in `out` with the model `target`, or change the index `target`. Without changes the
    index is only opened.

    ConfigError for a mix of both.
    """
    is_change = bool(changes.add or changes.remove or changes.remove_gone or changes.columns.drop)
    if changes.vectors is not None:
        vector_files.check_use(changes.vectors, embeds=changes.add is not None or images is not None)
    # Before anything is embedded, because a typing error in a table would come out hours later.
    read = changes.columns.read()
    if images is None and out is None:
        refuse_url(
            Path(target),
            "and the index to change is a folder of this machine",
            "copy it to this machine, and name the copy",
        )
        change = _change_open_index(Path(target).expanduser(), changes, compute, track)
    elif images is None or out is None or is_change:
        hint = (
            "a new index: dcdctl index RUN --images DIR --out INDEX; a change: dcdctl index INDEX --add DIR or "
            "--remove NAME"
        )
        raise ConfigError("--images and --out are for a new index only, and belong together", hint=hint)
    else:
        config = configs.build(IndexConfig, configs.apply_sets({}, changes.sets))
        compute = replace(compute, precision=changes.precision or "float32")
        how: dict[str, Any] = {"split": changes.split, "given": changes.vectors, "compute": compute, "track": track}
        built = build(target, images, out.expanduser(), config, **how)
        change = IndexChange(built, skipped_of(built.folder, built.document))
    if changes.columns == ColumnChanges() and not has_new_corpus_columns(change.index):
        return change
    notes = change_columns(change.index.folder, changes.columns, read, track)
    return replace(change, index=Index.open(change.index.folder), notes=tuple(notes))


def _change_open_index(folder: Path, changes: Changes, compute: Compute, track: Track) -> IndexChange:
    if artifacts.kind_of_folder(folder) == "a run":
        raise ConfigError(
            f"{folder} is a run, not an index", hint=f"make one: dcdctl index {folder} --images DIR --out INDEX"
        )
    before = Index.open(folder)
    if changes == Changes(split=changes.split, precision=changes.precision, columns=changes.columns):
        return IndexChange(before, [])
    after = update(folder, changes, compute=compute, track=track)
    removed_before, removed = (
        0 if index.is_removed is None else int(index.is_removed.sum()) for index in (before, after)
    )
    added = after.num_rows - before.num_rows
    return IndexChange(
        after, skipped_of(folder, after.document) if changes.add else [], added=added, removed=removed - removed_before
    )
