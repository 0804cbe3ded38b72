"""Which images an addition brings, and which new parts they become.

All is planned before anything is embedded, so a killed run resumes.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from dcdctl.core import artifacts, models
from dcdctl.core import config as configs
from dcdctl.core.artifacts import Build
from dcdctl.core.data import share_split
from dcdctl.core.errors import InputError, StaleError
from dcdctl.core.search import part_files, sources, storage
from dcdctl.core.search.index import FolderIndex
from dcdctl.core.search.part_files import PlannedParts, SkippedFile, SourceImage
from dcdctl.core.search.storage import INDEX, PLANNED, ImageSource, IndexDocument

# A graph takes some 150 bytes per image besides its codes (405 for 256 numbers, docs/scaling.md), and names and levels
# take a few; the rest is room.
BYTES_PER_IMAGE = 200
"""On disk, besides three bytes per number of a vector: two in the file of vectors, one in a graph."""


def with_source(
    folder: Path, listed: tuple[ImageSource, ...], source: ImageSource
) -> tuple[int, tuple[ImageSource, ...]]:
    """The number of a source among the sources of an index, and these, with it.

    StaleError for another corpus at the place of one, InputError if the index has some of its splits, whose images
    would be there twice.
    """
    # A folder is known by its place, whatever images it has now; a corpus by its fingerprint too.
    places = [(other.path, other.split) for other in listed]
    if (source.path, source.split) in places:
        number = places.index((source.path, source.split))
        if listed[number] != source:
            message = f"{source.path} holds another corpus than the one that was indexed"
            raise StaleError(message, hint="make a new index")
        return number, listed
    for path, split in places:
        if source.split is not None and path == source.path and share_split(source.split, str(split)):
            message = f"{folder} has split {split} of {source.path}, and split {source.split} was to be added"
            raise InputError(message, hint="name the splits that are missing with --split, such as --split val+test")
    return len(listed), (*listed, source)


def plan_images(build: Build, document: IndexDocument, new: models.DualEncoder | None) -> None:
    """Write which images become which parts, unless a killed run has; and `new`, the model of a new index.

    The plan of another change is replaced; for a new index, only if none of its images is embedded.
    """
    folder, kept = build.folder, document.files
    if new is not None and build.is_sealed:
        built = storage.read_document(folder)
        _expect(build, built)
        if (folder / INDEX.plan_file).exists() and INDEX.read_plan(folder)["generation"] <= built.generation:
            build.clean(built.files)  # killed when everything else was done
        return
    notes = build.begin(restart=new is None or not any(folder.glob("vectors/part-*.parquet")), kept=kept)
    if "rows" in notes:
        if all(map(build.is_written, map(part_files.planned_name, configs.build(PlannedParts, notes).numbers))):
            return
        # The files of vectors too: the images may be others by now.
        build.clean(kept)
        build.note()
    planned = _plan_parts(build, document)
    if new is not None:
        if not planned.rows:
            shutil.rmtree(folder)
            message = f"there is no image in {build.plan['sources'][0]['path']}"
            raise InputError(message, hint="--images takes a folder of images or a corpus")
        # Before the notes: a plan without `rows` is one that was killed here, and starts over.
        models.save(new, folder / "model")
    build.note(**configs.to_table(planned))


def _expect(build: Build, document: IndexDocument) -> None:
    """StaleError if a finished index is not the planned one; images that were added later are no difference."""
    found = configs.to_table(replace(document, sources=document.sources[:1]))
    for keys, hint in (
        (("model", "sources", "precision"), "name another folder with --out"),
        (("settings",), f"change them with `dcdctl index {build.folder} --set ...`"),
    ):
        artifacts.expect(build.folder, found, {key: build.plan[key] for key in keys}, hint=hint)


def _plan_parts(build: Build, document: IndexDocument) -> PlannedParts:
    """Write into the folder which images each new part has, without those that the index has."""
    folder, number = build.folder, build.plan["source"]
    known: set[str] = set()
    if number < len(document.sources):
        index = FolderIndex(folder, document)
        ids = index.values("image_id").to_pylist()
        known = {ids[row] for row in np.flatnonzero(index.source_R == number).tolist() if not index.is_gone(row)}
    skipped: list[SkippedFile] = []

    def new_images() -> Iterator[SourceImage]:
        for item in sources.list_images(ImageSource(**build.plan["sources"][number]), folder):
            if isinstance(item, SkippedFile):
                skipped.append(item)
            elif item.image_id not in known:
                yield item

    shutil.rmtree(folder / PLANNED, ignore_errors=True)
    (folder / PLANNED).mkdir(parents=True)
    # After the highest number in use (part-00003.parquet), because files of an index are never overwritten.
    first = 1 + max((int(part.file[5:-8]) for part in document.parts), default=-1)
    rows: list[int] = []
    for images in sources.in_parts(new_images(), part_files.ROWS_PER_PART):
        with build.write(part_files.planned_name(first + len(rows))) as partial:
            part_files.write_planned(partial, images)
        rows.append(len(images))
    # A full disk is an error here, not after the images were embedded.
    needed = sum(rows) * (BYTES_PER_IMAGE + 3 * document.model.dim)
    if (free := shutil.disk_usage(folder).free) < needed:
        raise InputError(
            f"{sum(rows):,} images need {needed / 1e9:,.2f} GB in {folder}, and {free / 1e9:,.2f} GB are free"
        )
    return PlannedParts(first_part=first, rows=tuple(rows), skipped=tuple(skipped))
