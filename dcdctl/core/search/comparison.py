"""Comparing a source with what its index knows of it, before anything is embedded.

What was found is written into the folder of the index, and a killed run resumes from there.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dcdctl.core import artifacts, models
from dcdctl.core import config as configs
from dcdctl.core.artifacts import Build, Parts
from dcdctl.core.data import share_split
from dcdctl.core.errors import InputError, StaleError
from dcdctl.core.progress import Track, silent
from dcdctl.core.search import image_files, part_files, sources, storage, upkeep
from dcdctl.core.search.entries import ImageSource, Part
from dcdctl.core.search.image_files import CHANGED_ROWS
from dcdctl.core.search.index import FolderIndex
from dcdctl.core.search.part_files import SkippedFile, SourceImage
from dcdctl.core.search.storage import INDEX, PLANNED

PLANNED_ENTRIES = ("format", "generation", "model", "sources", "precision", "settings")
"""The entries of the next index.json that a plan is compared by."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What is to be done so that an index has what a source has, as it is written into the folder of the index.

    | a file | its row before | its row after |
    |---|---|---|
    | is new | none | in a part to embed |
    | has the bytes of a row | removed if its own file is gone | in a part to copy, from that row |
    | has other bytes | removed | in a part to embed, or to copy |
    | has another time alone | stays | the same, with other facts |
    | is gone | removed | none |
    | cannot be indexed | none | none; in `skipped` |
    """

    index: FolderIndex
    """The index before."""
    build: Build
    """The files of the change until it is committed: planned/ and the new parts."""
    sources: tuple[ImageSource, ...]
    """The sources of the index after the change."""
    number: int
    """The place of the compared source among them."""
    first_part: int
    rows: tuple[int, ...]
    """Files of each new part, some of which may turn out not to be images."""
    num_embedded: int
    """The first parts, whose images are embedded; those of the others take the vectors of rows (`copied_from`)."""
    skipped: tuple[SkippedFile, ...]
    """Files that are known before any part is made not to be images."""
    notes: tuple[str, ...]

    @property
    def source(self) -> ImageSource:
        """The compared source."""
        return self.sources[self.number]

    @property
    def part_numbers(self) -> range:
        """The numbers of the new parts."""
        return range(self.first_part, self.first_part + len(self.rows))

    @property
    def planned_names(self) -> list[str]:
        """The paths of the planned images of each part in the folder of the index."""
        return [part_files.planned_name(number) for number in self.part_numbers]

    @property
    def vectors_names(self) -> list[str]:
        """The paths of the files of vectors in the folder of the index."""
        return [part_files.vectors_name(number) for number in self.part_numbers]

    def images(self, part: int) -> list[SourceImage]:
        """The planned images of a part."""
        return part_files.read_planned(self.build.written(part_files.planned_name(part)))

    def written_parts(self) -> tuple[list[Part], list[SkippedFile]]:
        """The entries of the new parts that have images, after all are written, and all files that were skipped."""
        parts, skipped = [], list(self.skipped)
        for name in self.vectors_names:
            path = self.build.written(name)
            part, skipped_in_part = part_files.describe_part(path, self.number, self.index.document.vector_type)
            skipped += skipped_in_part
            if part.rows:
                parts.append(part)
        return parts, skipped


def compare(
    index: FolderIndex,
    source: ImageSource,
    *,
    follow: bool = False,
    are_given: bool = False,
    new: models.Searchable | None = None,
    track: Track = silent,
) -> Comparison | None:
    """What is new in a source, and with `follow` also what changed, moved or is gone in a folder; None if the same
    build of a new index has ended before.

    It is written, unless a killed run has, and with it `new`, the model of a new index. `are_given` says that the
    vectors are not embedded here. StaleError and InputError for a source that cannot be added.
    """
    folder, kept, listed = index.folder, index.document.files, _with_source(index, source)
    next_ = configs.to_table(replace(index.document, generation=index.document.generation + 1, sources=listed))
    # The origin of the vectors, so that a killed run is not resumed with vectors from elsewhere.
    origin = {
        "source": listed.index(source),
        "vectors": "given" if are_given else "embedded",
        "changes": "followed" if follow else "added",
    }
    build = Build(folder, {**{key: next_[key] for key in PLANNED_ENTRIES}, **origin}, INDEX)
    if new is not None and build.is_sealed:
        _check_ended(build)
        return None
    comparison = partial(Comparison, index=index, build=build, sources=listed, number=listed.index(source))
    # The plan of another change is replaced; for a new index, only if none of its images is embedded.
    noted = build.begin(restart=new is None or not any(folder.glob("vectors/part-*.parquet")), kept=kept)
    if "rows" in noted:
        found = comparison(**_of_notes(noted))
        if not Parts(build, found.planned_names).missing():
            return found
        # The files of vectors too: the images may be others by now.
        build.clean(kept)
        build.note()
    written = _write_changes(build, index, source, follow=follow, copies=not are_given)
    found = comparison(**written)
    if new is not None:
        if not found.rows:
            shutil.rmtree(folder)
            raise sources.no_image_error(source, found.skipped)
        # Before the notes: a plan without `rows` is one that was killed here, and starts over.
        with track("copy the model", total=None, unit=""):
            models.save(new, folder / "model", fingerprint=index.document.model.fingerprint)
    build.note(**configs.to_table(written))
    return found


def _of_notes(noted: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a `Comparison` that plan.json holds, as `_write_changes` gave them."""
    skipped = tuple(SkippedFile(**file) for file in noted["skipped"])
    lists = {"rows": tuple(noted["rows"]), "skipped": skipped, "notes": tuple(noted["notes"])}
    return {"first_part": noted["first_part"], "num_embedded": noted["num_embedded"], **lists}


def _with_source(index: FolderIndex, source: ImageSource) -> tuple[ImageSource, ...]:
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


def _check_ended(build: Build) -> None:
    """StaleError if a finished index is not the planned one; images that were added later are no difference. Removes
    what a run has left that was killed when everything else was done."""
    built = storage.read_document(build.folder)
    actual = configs.to_table(replace(built, sources=built.sources[:1]))
    expected = {key: build.plan[key] for key in ("model", "sources", "precision", "settings")}
    hint = (
        f"name another folder with --out, add images with `dcdctl sync {build.folder} --add DIR`, or change settings "
        f"with `dcdctl change {build.folder} --set ...`"
    )
    artifacts.expect(build.folder, actual, expected, hint=hint)
    if (build.folder / INDEX.plan_file).exists() and INDEX.read_plan(build.folder)["generation"] <= built.generation:
        build.clean(built.files)


def _write_changes(
    build: Build, index: FolderIndex, source: ImageSource, *, follow: bool, copies: bool
) -> dict[str, Any]:
    """Write into the folder which images each new part has, and which rows change; returns the fields of a `Comparison`
    that plan.json will hold. Without `copies`, images of known bytes are embedded too."""
    look = upkeep.look_at(index, source, follow=follow)
    touched, changed = upkeep.tell_apart(index, source, look.suspects)
    known, new = upkeep.find_known(index, source, [*(image for _, image in changed), *look.new], look.gone)
    removed = sorted({*look.outdated, *look.gone, *(row for row, _ in changed)})
    shutil.rmtree(build.folder / PLANNED, ignore_errors=True)
    (build.folder / PLANNED).mkdir(parents=True)
    with build.write(CHANGED_ROWS) as partial_file:
        image_files.write_changed_rows(partial_file, np.array(removed, dtype=np.int64), touched)
    # Vectors that are given have their own way to an image of the same bytes.
    to_embed, to_copy = (new, known) if copies else ([*known, *new], [])
    embedded = list(sources.in_parts(iter(to_embed), part_files.ROWS_PER_PART))
    parts = [*embedded, *sources.in_parts(iter(to_copy), part_files.ROWS_PER_PART)]
    # After the highest number in use, because files of an index are never overwritten.
    first = 1 + max((part_files.part_number(part.file) for part in index.parts), default=-1)
    for number, images in enumerate(parts, start=first):
        with build.write(part_files.planned_name(number)) as partial_file:
            part_files.write_planned(partial_file, images)
    return {
        "first_part": first,
        "rows": tuple(map(len, parts)),
        "num_embedded": len(embedded),
        "skipped": tuple(look.skipped),
        "notes": look.notes,
    }
