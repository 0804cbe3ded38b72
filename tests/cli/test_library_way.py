"""The way of a photo library through the commands: indexed, changed as a person changes it, moved to another disk,
browsed, and compared at each station with an index that is made anew."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from command_line import document_of, error_of, run
from phone_library import CAMERAS, PhoneLibrary, camera_name, encoded, exif_of, make_library, scene
from raw_files import dng
from tiny import make_models

from dcdctl.core import models
from dcdctl.core.search import FolderIndex, find_copies

COLUMNS = ("taken", "year", "camera")
PLACE = ("latitude", "longitude", "city", "country")


@pytest.fixture
def library(tmp_path):
    return make_library(tmp_path / "photos")


def test_a_photo_library_from_its_first_index_to_another_disk(corpus, library, tmp_path):
    models.save(make_models(corpus.captions)[1], tmp_path / "tiny")
    index = index_a_folder(library, tmp_path)
    what_a_person_does(library)
    follow_it(library, index, tmp_path)
    move_it_to_another_disk(library, index, tmp_path / "disk" / "photos")
    list_its_duplicates(library, index)
    browse_it(library, index)
    ask_for_places(library, index, tmp_path)
    remove_by_name(library, index)


def index_a_folder(library: PhoneLibrary, place: Path) -> Path:
    made = run("photos", library.folder, "--out", place / "mine", "--model", place / "tiny")
    index = place / "mine" / "index"
    images = f"{len(library.read)} images, 8 numbers each, search by flat, columns {', '.join(COLUMNS)} -> {index}"
    assert made.stdout == f"{images}\nnext: dcdctl serve {index}\n"
    assert sum(line.startswith("left out: ") for line in made.stderr.splitlines()) == len(library.counts) + 1
    return index


def what_a_person_does(library: PhoneLibrary) -> None:
    """New photos, one of them with a RAW photo beside it; an edited photo; a renamed folder; deleted ones; a copy."""
    taken = datetime(2024, 5, 6, 7, 8)
    facts = {"taken": taken, "camera": camera_name(CAMERAS[1])}
    library.add("new/1.jpg", encoded(scene(950), exif=exif_of(taken=taken, camera=CAMERAS[1])), "new", **facts)
    taken = datetime(2024, 5, 7)
    raw = dng(scene(951), taken=f"{taken:%Y:%m:%d %H:%M:%S}")
    library.add("new/DSC_1.DNG", raw, "RAW", taken=taken, camera="Apple iPhone 13 Pro")
    library.add("new/DSC_1.JPG", encoded(scene(951), quality=80), "the JPEG of a RAW photo", like="new/DSC_1.DNG")
    edited = "DCIM/100APPLE/IMG_0012.JPG"
    library.add(edited, encoded(scene(952)), "edited, without EXIF data")
    (library.folder / "WhatsApp Images").rename(library.folder / "WhatsApp")
    for name in [name for name in library.files if name.startswith("WhatsApp Images/")]:
        new_name = name.replace("WhatsApp Images", "WhatsApp")
        library.files[new_name] = replace(library.files.pop(name), name=new_name)
    for name in ("Scans/scan 0.jpg", "100%.JPEG"):
        (library.folder / name).unlink()
        del library.files[name]
    library.copy("new/a second copy\n.avif", "Download/image-0.avif")


def follow_it(library: PhoneLibrary, index: Path, place: Path) -> None:
    """`photos` again, which says on one line what it did; and `sync`, which finds nothing more."""
    num_images = len(library.read)
    again = run("photos", library.folder, "--out", place / "mine")
    done = "3 added, 1 changed, 12 moved, 1 copied, 2 removed"
    assert f"{num_images} images, {done}, {num_images - 17} unchanged -> {index}\n" in again.stdout
    # What was left out before is not told again.
    assert "left out" not in again.stderr
    synced = document_of("sync", index)
    assert {name: synced[name] for name in ("added", "changed", "moved", "copied", "removed")} == dict.fromkeys(
        ("added", "changed", "moved", "copied", "removed"), 0
    )
    assert (synced["unchanged"], synced["left_out_by_kind"]) == (num_images, library.counts)
    assert_as_new(library, index, place, COLUMNS)


def move_it_to_another_disk(library: PhoneLibrary, index: Path, there: Path) -> None:
    there.parent.mkdir()
    shutil.move(library.folder, there)
    before, library.folder = library.folder, there
    gone = run("sync", index)
    assert f"note: {before} is gone, and nothing was removed: is its disk mounted?\n" in gone.stderr
    assert f", {len(library.read)} unchanged -> " in gone.stdout
    assert "0 of 100 images" in error_of("sync", index, "--moved", before, there.parent)
    document = index.joinpath("index.json").read_bytes()
    assert error_of("sync", index, "--moved", there, before).startswith(f"error: {before} is no folder")
    assert index.joinpath("index.json").read_bytes() == document
    assert run("sync", index, "--moved", before, there).stdout.startswith(f"{len(library.read)} images, 8 numbers")
    assert document_of("sync", index)["unchanged"] == len(library.read)


def list_its_duplicates(library: PhoneLibrary, index: Path) -> None:
    """As a table, as JSON and as CSV: the copies, and pictures that look alike."""
    groups = document_of("duplicates", index)["groups"]
    group_of = {image["image"]: number for number, group in enumerate(groups) for image in group["images"]}
    for name, file in library.read.items():
        original = file.same_as or file.like
        # The original of one was edited since.
        if original is not None and original != "DCIM/100APPLE/IMG_0012.JPG":
            assert group_of[name] == group_of[original], name
    for group in groups:
        assert group["same_bytes"] == (len({Path(image["path"]).read_bytes() for image in group["images"]}) == 1)
    table = run("duplicates", index)
    assert table.stdout.count("images that look alike") + table.stdout.count("files of the same bytes") == len(groups)
    assert "new/a second copy\\n.avif" in table.stdout
    found = document_of("search", index, "a dog", "-k", 99)["hits"]
    assert {len(hit["copies"]) for hit in found} >= {0, 1}
    shown = run("search", index, "a dog", "-k", 99).stdout
    assert shown.count(" copies") == sum(bool(hit["copies"]) for hit in found)
    num_more = len(group_of) - len(groups)
    assert table.stderr == f"{len(groups)} groups, {num_more} images beside the first of each; none is deleted\n"
    rows = list(csv.DictReader(io.StringIO(run("duplicates", index, "--csv").stdout, newline="")))
    assert [(row["image"], row["path"], int(row["bytes"])) for row in rows] == [
        (image["image"], image["path"], image["bytes"]) for group in groups for image in group["images"]
    ]


def browse_it(library: PhoneLibrary, index: Path) -> None:
    def taken(name: str) -> datetime:
        return library.read[name].taken

    of_2021 = {name for name, file in library.read.items() if file.taken is not None and file.taken.year == 2021}
    # With an order, stdin is not read.
    words = ("--where", "year = 2021", "--order", "taken desc", "--all-copies", "--k", 999)
    document = document_of("search", index, *words)
    shown = [hit["image_id"] for hit in document["hits"]]
    assert (set(shown), document["total"]) == (of_2021, len(of_2021))
    assert [*map(taken, shown)] == sorted(map(taken, shown), reverse=True)
    # Copies and look-alikes are one hit, with the names of the others.
    hits = document_of("search", index, *words[:4], "--k", 999)["hits"]
    assert len(hits) < len(shown)
    assert sum(1 + len(hit["copies"]) for hit in hits) >= len(shown)
    paths = run("search", index, "--order", "path", "--all-copies", "--k", 999, "--paths", "-0").stdout.split("\0")
    assert paths[-1] == ""
    assert sorted(paths[:-1]) == sorted(str(library.folder / name) for name in library.read)
    assert paths[:-1] == sorted(paths[:-1], key=os.fsencode)
    assert "has a line break" in error_of("search", index, "--order", "path", "--all-copies", "--k", 999, "--paths")


def ask_for_places(library: PhoneLibrary, index: Path, place: Path) -> None:
    run("change", index, "--set", "exif=place")
    assert_as_new(library, index, place, (*COLUMNS, *PLACE), "--set", "exif=place")
    in_paris = document_of("search", index, "--where", "city ilike 'PARIS%'", "--order", "path", "--k", 999)["hits"]
    assert len(in_paris) == 6
    assert {hit["columns"]["country"] for hit in in_paris} == {"France"}
    # Another setting leaves the columns that are there.
    assert ", country -> " in run("change", index, "--set", "exif=none").stdout
    library.add("new/no exif.jpg", encoded(scene(953), exif=exif_of(taken=datetime(2020, 1, 1))), "new")
    assert document_of("sync", index)["added"] == 1
    opened = FolderIndex.open(index)
    assert opened.values("year").to_pylist()[-1] is None


def remove_by_name(library: PhoneLibrary, index: Path) -> None:
    whole = library.folder / "new" / "DSC_1.JPG"
    removed = document_of("change", index, "--remove", "new/1.jpg", "--remove", whole, "--remove", "Screenshots/*")
    assert (removed["removed"], removed["images"]) == (10, len(library.read) - 10)
    assert "has no image 'IMG_0001.JPG'; nothing was removed" in error_of("change", index, "--remove", "IMG_0001.JPG")
    assert all((library.folder / name).exists() for name in ("new/1.jpg", "new/DSC_1.JPG"))


def assert_as_new(library: PhoneLibrary, index: Path, place: Path, columns: tuple[str, ...], *options: str) -> None:
    """The index has what one has that is made anew: images, vectors, columns, groups of copies, and what it lacks."""
    shutil.rmtree(place / "new", ignore_errors=True)
    run("index", place / "tiny", "--images", library.folder, "--out", place / "new", "--device", "cpu", *options)
    followed, new = FolderIndex.open(index), FolderIndex.open(place / "new")
    assert content(followed, columns).keys() == library.read.keys()
    assert content(followed, columns) == content(new, columns)
    assert groups_of(followed) == groups_of(new)
    assert skipped_of(followed) == skipped_of(new) == library.left_out


def content(index: FolderIndex, columns: tuple[str, ...]) -> dict[str, tuple[object, ...]]:
    rows = np.flatnonzero(index.is_live)
    values = [index.values(name).take(rows).to_pylist() for name in ("image_id", *columns)]
    vectors = index.stored(rows).data
    return {
        name: (vector.tobytes(), *more)
        for vector, (name, *more) in zip(vectors, zip(*values, strict=True), strict=True)
    }


def groups_of(index: FolderIndex) -> set[tuple[str, ...]]:
    return {tuple(sorted(group.images)) for group in find_copies(index)}


def skipped_of(index: FolderIndex) -> dict[str, str]:
    listed = json.loads(index.folder.joinpath(index.document.skipped.file).read_text(encoding="utf-8"))
    return {file["path"]: file["kind"] for file in listed}
