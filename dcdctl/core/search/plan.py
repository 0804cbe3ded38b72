"""Which images an addition brings, and which new parts they become.

All is planned before anything is embedded, so a killed run resumes.
"""

from __future__ import annotations

import shutil
from dataclasses import fields, replace
from pathlib import Path

from dcdctl.core import artifacts, models
from dcdctl.core import config as configs
from dcdctl.core.artifacts import Build, Parts
from dcdctl.core.data import share_split
from dcdctl.core.errors import InputError, StaleError
from dcdctl.core.progress import Track, silent
from dcdctl.core.search import image_files, part_files, sources, storage, upkeep
from dcdctl.core.search.image_files import CHANGED_ROWS
from dcdctl.core.search.index import FolderIndex
from dcdctl.core.search.part_files import PlannedParts
from dcdctl.core.search.storage import INDEX, PLANNED, ImageSource, IndexDocument

PLANNED_ENTRIES = ("format", "generation", "model", "sources", "precision", "settings")
"""The entries of the next index.json that a plan is compared by."""


def plan_images(
    index: FolderIndex,
    source: ImageSource,
    new: models.Searchable | None = None,
    *,
    are_given: bool = False,
    follow: bool = False,
    track: Track = silent,
) -> tuple[Build, PlannedParts | None]:
    """The build that adds a source, or with `follow` does what happened in a folder, and which of its images become
    which parts, None if the same build of a new index has ended before.

    The plan is written, unless a killed run has, and with it `new`, the model of a new index. `are_given`
    says that the vectors are not embedded here. StaleError and InputError for a source that cannot be added.
    """
    listed = with_source(index, source)
    table = configs.to_table(replace(index.document, generation=index.document.generation + 1, sources=listed))
    # The origin of the vectors, so that a killed run is not resumed with vectors from elsewhere.
    origin = {
        "source": listed.index(source),
        "vectors": "given" if are_given else "embedded",
        "changes": "followed" if follow else "added",
    }
    build = Build(index.folder, {**{key: table[key] for key in PLANNED_ENTRIES}, **origin}, INDEX)
    _write_plan(build, index, new, track)
    if new is not None and build.is_sealed:
        return build, None
    # From the disk, because a killed run may have made it.
    notes = INDEX.read_plan(index.folder)
    return build, configs.build(PlannedParts, {item.name: notes[item.name] for item in fields(PlannedParts)})


def with_source(index: FolderIndex, source: ImageSource) -> tuple[ImageSource, ...]:
    """The sources of an index, with this one.

    StaleError for another corpus at the place of one, InputError if the index has some of its splits, or a folder that
    it lies in: its images would be there twice.
    """
    # A folder is known by its place, whatever images it has now; a corpus by its fingerprint too.
    listed = index.document.sources
    places = [(other.path, other.split) for other in listed]
    if (source.path, source.split) in places:
        if source not in listed:
            raise StaleError(
                f"{source.path} holds another corpus than the one that was indexed", hint="make a new index"
            )
        return listed
    for path, split in places:
        if split is None and source.split is None and Path(source.path).is_relative_to(path):
            raise InputError(
                f"{source.path} lies in {path}, an image folder of {index.folder}, to which its images belong",
                hint=f"dcdctl sync {index.folder}, or with --add {path}, adds what is new in it",
            )
        if source.split is not None and path == source.path and share_split(source.split, str(split)):
            raise InputError(
                f"{index.folder} has split {split} of {source.path}, and split {source.split} was to be added",
                hint="name the splits that are missing with --split, such as --split val+test",
            )
    return (*listed, source)


def _write_plan(build: Build, index: FolderIndex, new: models.Searchable | None, track: Track) -> None:
    """The plan of another change is replaced; for a new index, only if none of its images is embedded."""
    folder, kept = build.folder, index.document.files
    if new is not None and build.is_sealed:
        built = storage.read_document(folder)
        _expect(build, built)
        if (folder / INDEX.plan_file).exists() and INDEX.read_plan(folder)["generation"] <= built.generation:
            build.clean(built.files)  # killed when everything else was done
        return
    notes = build.begin(restart=new is None or not any(folder.glob("vectors/part-*.parquet")), kept=kept)
    if "rows" in notes:
        earlier = configs.build(PlannedParts, notes)
        if not Parts(build, earlier.planned_names).missing():
            return
        # The files of vectors too: the images may be others by now.
        build.clean(kept)
        build.note()
    planned = _plan_parts(build, index)
    if new is not None:
        if not planned.rows:
            shutil.rmtree(folder)
            raise sources.no_image_error(ImageSource(**build.plan["sources"][0]), planned.skipped)
        # Before the notes: a plan without `rows` is one that was killed here, and starts over.
        with track("copy the model", total=None, unit=""):
            models.save(new, folder / "model", fingerprint=index.document.model.fingerprint)
    build.note(**configs.to_table(planned))


def _expect(build: Build, document: IndexDocument) -> None:
    """StaleError if a finished index is not the planned one; images that were added later are no difference."""
    actual = configs.to_table(replace(document, sources=document.sources[:1]))
    expected = {key: build.plan[key] for key in ("model", "sources", "precision", "settings")}
    hint = (
        f"name another folder with --out, add images with `dcdctl sync {build.folder} --add DIR`, or change settings "
        f"with `dcdctl change {build.folder} --set ...`"
    )
    artifacts.expect(build.folder, actual, expected, hint=hint)


def _plan_parts(build: Build, index: FolderIndex) -> PlannedParts:
    """Write into the folder which images each new part has, and which rows change."""
    folder, plan = build.folder, build.plan
    source = ImageSource(**plan["sources"][plan["source"]])
    changes = upkeep.compare_source(index, source, follow=plan["changes"] == "followed")
    shutil.rmtree(folder / PLANNED, ignore_errors=True)
    (folder / PLANNED).mkdir(parents=True)
    with build.write(CHANGED_ROWS) as partial:
        image_files.write_changed_rows(partial, changes.removed, changes.touched)
    # Vectors that are given have their own way to an image of the same bytes.
    is_taken = plan["vectors"] == "embedded"
    to_embed = changes.new if is_taken else [*changes.known, *changes.new]
    parts = list(sources.in_parts(iter(to_embed), part_files.ROWS_PER_PART))
    num_embedded = len(parts)
    if is_taken:
        parts += sources.in_parts(iter(changes.known), part_files.ROWS_PER_PART)
    # After the highest number in use, because files of an index are never overwritten.
    first = 1 + max((part_files.part_number(part.file) for part in index.parts), default=-1)
    for number, images in enumerate(parts, start=first):
        with build.write(part_files.planned_name(number)) as partial:
            part_files.write_planned(partial, images)
    return PlannedParts(
        first_part=first,
        rows=tuple(map(len, parts)),
        num_embedded=num_embedded,
        skipped=tuple(changes.skipped),
        notes=changes.notes,
    )
