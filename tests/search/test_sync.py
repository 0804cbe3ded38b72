"""An index follows its image folders: what is new, changed, moved, copied or gone."""

from __future__ import annotations

import io
import os
import queue
import shutil
import sys
import threading
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from heif_files import heic
from image_files import png, put
from made_index import build, copied, killed_before, unit_vectors, update, write_index
from PIL import Image
from PIL.ExifTags import Base
from processes import TIMEOUT_S

from dcdctl.core import files
from dcdctl.core.data import FolderImageFile, RowError
from dcdctl.core.errors import DcdError, InputError
from dcdctl.core.search import (
    FolderIndex,
    IndexConfig,
    add_images,
    commit,
    copies,
    move_images,
    upkeep,
    watch,
)
from dcdctl.core.search.image_files import FileFacts, facts_table
from dcdctl.core.search.watch import sync_index, watch_index

pytestmark = pytest.mark.usefixtures("_duals_read_once", "small_parts")

FLAT = IndexConfig()


@pytest.fixture(scope="module")
def made(small_parts, dual, tmp_path_factory):
    """A folder of six photos, each with the year that it was taken in, and its index."""
    files = {f"{'sub/' if seed % 2 else ''}{seed}.jpg": photo(seed) for seed in range(6)}
    photos = put(tmp_path_factory.mktemp("made") / "photos", files)
    return photos, build(dual, photos, photos.parent / "index", FLAT)


@pytest.fixture
def photos(made, tmp_path):
    return Path(shutil.copytree(made[0], tmp_path / "photos"))


@pytest.fixture
def index(made, photos, tmp_path):
    return copied(made[1], tmp_path / "index", photos)


@pytest.fixture
def no_model(index):
    """Once the index is there, its model cannot be read."""
    with hidden(index.folder / "model" / "model.safetensors"):
        yield


@contextmanager
def hidden(file: Path):
    """Within the block a file is not there."""
    file.rename(file.with_suffix(".hidden"))
    yield
    file.with_suffix(".hidden").rename(file)


def photo(seed: int) -> bytes:
    """A JPEG of noise that was taken in the year 2000 + seed."""
    exif = Image.Exif()
    exif[Base.DateTime] = f"{2000 + seed}:01:01 00:00:00"
    stream = io.BytesIO()
    image = np.random.default_rng(seed).integers(0, 255, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(image).save(stream, "JPEG", exif=exif)
    return stream.getvalue()


def sync(folder: Path):
    return sync_index(str(folder))


def content(index: FolderIndex) -> dict[str, tuple[bytes, int | None]]:
    """The vector and the year of each image, by name; AssertionError if an image has two rows."""
    rows = np.flatnonzero(index.is_live).tolist()
    names = [index.name(row) for row in rows]
    assert len(set(names)) == len(names) == index.num_images
    years = index.values("year").to_pylist()
    vectors = index.stored(np.array(rows, dtype=np.int64)).data
    return {name: (vectors[i].tobytes(), years[row]) for i, (name, row) in enumerate(zip(names, rows, strict=True))}


def as_new(dual, photos, folder: Path) -> dict[str, tuple[bytes, int | None]]:
    """What an index has that is made of the folder now."""
    shutil.rmtree(folder, ignore_errors=True)
    return content(build(dual, photos, folder, FLAT))


def touch(path: Path) -> None:
    """Give a file another time, as a copy or a program that rewrites it does."""
    stamp = path.stat().st_mtime_ns + 10**9
    os.utime(path, ns=(stamp, stamp))


def rewrite(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    touch(path)


def test_everything_that_can_happen_to_a_file_is_followed_at_once(dual, photos, index, tmp_path):
    put(photos, {"new.jpg": photo(10), "copy.jpg": photo(2)})
    rewrite(photos / "0.jpg", photo(20))
    touch(photos / "2.jpg")
    (photos / "4.jpg").rename(photos / "sub" / "moved.jpg")
    (photos / "sub" / "1.jpg").unlink()
    change = sync(index.folder)
    assert (change.added, change.changed, change.moved, change.copied, change.removed) == (2, 1, 1, 1, 1)
    assert change.unchanged == 3
    assert content(change.index) == as_new(dual, photos, tmp_path / "new")
    again = sync(index.folder)
    assert (again.is_nothing, again.unchanged) == (True, 7)
    assert again.index.document == change.index.document


def test_a_file_is_read_again_if_its_time_or_its_size_is_another(dual, photos, index, tmp_path):
    def picture(seed: int, side: int) -> bytes:
        stream = io.BytesIO()
        Image.fromarray(np.random.default_rng(seed).integers(0, 255, (side, side, 3), dtype=np.uint8)).save(
            stream, "BMP"
        )
        return stream.getvalue()

    put(photos, {"by time.bmp": picture(1, 32), "by size.bmp": picture(2, 32)})
    sync(index.folder)
    # A BMP has as many bytes as its pixels say, whatever they are.
    rewrite(photos / "by time.bmp", picture(3, 32))
    stamp = (photos / "by size.bmp").stat().st_mtime_ns
    (photos / "by size.bmp").write_bytes(picture(4, 40))
    os.utime(photos / "by size.bmp", ns=(stamp, stamp))
    change = sync(index.folder)
    assert (change.changed, change.unchanged) == (2, 6)
    assert content(change.index) == as_new(dual, photos, tmp_path / "new")


@pytest.mark.usefixtures("no_model")
def test_what_needs_no_model_loads_none(dual, photos, index):
    touch(photos / "2.jpg")
    (photos / "4.jpg").rename(photos / "renamed.jpg")
    shutil.copy(photos / "0.jpg", photos / "copy.jpg")
    (photos / "sub" / "1.jpg").unlink()
    followed = sync(index.folder).index
    assert set(content(followed)) == {"0.jpg", "2.jpg", "renamed.jpg", "copy.jpg", "sub/3.jpg", "sub/5.jpg"}
    # Neither do these, of which nothing is new.
    update(index.folder, add=photos)
    update(index.folder, remove=("0.jpg",))


def test_random_changes_leave_what_a_new_index_has(dual, photos, index, tmp_path):
    rng = np.random.default_rng(0)
    seed = 100
    for _ in range(5):
        for _ in range(rng.integers(3, 9)):
            files = sorted(path for path in photos.rglob("*.jpg"))
            chosen = files[rng.integers(len(files))]
            action = rng.integers(6)
            seed += 1
            if action == 0:
                put(photos, {f"{'sub/' * int(rng.integers(2))}{seed}.jpg": photo(seed % 90)})
            elif action == 1:
                rewrite(chosen, photo(int(rng.integers(90))))
            elif action == 2:
                chosen.rename(photos / f"{seed}.jpg")
            elif action == 3:
                shutil.copy2(chosen, photos / f"{seed}.jpg")
            elif action == 4 and len(files) > 2:
                chosen.unlink()
            else:
                other = files[rng.integers(len(files))]
                data = chosen.read_bytes(), other.read_bytes()
                rewrite(other, data[0])
                rewrite(chosen, data[1])
        assert content(sync(index.folder).index) == as_new(dual, photos, tmp_path / "new")


def test_columns_go_with_a_file_that_moves_and_copies_read_their_own(photos, index):
    rows = "image,owner\n4.jpg,ann\n"
    (photos.parent / "owners.csv").write_text(rows, encoding="utf-8")
    update(index.folder, metadata=photos.parent / "owners.csv")
    (photos / "4.jpg").rename(photos / "sub" / "moved.jpg")
    shutil.copy(photos / "2.jpg", photos / "copy.jpg")
    followed = sync(index.folder).index
    owners, years = followed.values("owner").to_pylist(), followed.values("year").to_pylist()
    row_of = {followed.name(row): row for row in np.flatnonzero(followed.is_live).tolist()}
    assert owners[row_of["sub/moved.jpg"]] == "ann"
    assert (owners[row_of["copy.jpg"]], years[row_of["copy.jpg"]]) == (None, 2002)


def test_the_columns_that_a_user_gave_stay_when_a_photo_is_edited(photos, index, tmp_path):
    rows = "image,owner,year\n4.jpg,ann,1999\n2.jpg,bob,\n"
    (tmp_path / "owners.csv").write_text(rows, encoding="utf-8")
    update(index.folder, metadata=tmp_path / "owners.csv")
    rewrite(photos / "4.jpg", photo(20))
    rewrite(photos / "2.jpg", photo(21))
    # The bytes of a photo count more than its name: its owner goes with it, and another photo takes its name.
    (photos / "2.jpg").rename(photos / "sub" / "two.jpg")
    sync(index.folder)
    put(photos, {"2.jpg": photo(22)})
    followed = sync(index.folder).index
    found = {
        name: (owner, year)
        for name, owner, year in zip(*map(values_of(followed), ("image_id", "owner", "year")), strict=True)
    }
    assert found["4.jpg"] == ("ann", 1999)
    assert found["2.jpg"] == ("bob", 2022)
    assert found["sub/two.jpg"] == (None, 2021)


def values_of(index):
    live = np.flatnonzero(index.is_live)
    return lambda name: index.values(name).take(pa.array(live)).to_pylist()


def test_a_column_that_was_dropped_stays_so_when_all_photos_change(photos, index):
    update(index.folder, drop_columns=("year",))
    for number, path in enumerate(photos.rglob("*.jpg")):
        rewrite(path, photo(40 + number))
    assert sync(index.folder).index.columns.names == ["taken", "camera"]


def test_counts_say_what_became_of_each_name(photos, index):
    """Files that are swapped, that are moved over another, or that cannot be read any more, were counted twice."""
    swapped = [(photos / name).read_bytes() for name in ("0.jpg", "2.jpg")]
    rewrite(photos / "2.jpg", swapped[0])
    rewrite(photos / "0.jpg", swapped[1])
    (photos / "4.jpg").replace(photos / "sub" / "1.jpg")
    put(photos, {"sub/3.jpg": b"", "empty.jpg": b""})
    change = sync(index.folder)
    assert (change.added, change.removed) == (0, 2)
    assert (change.changed, change.moved, change.copied, change.unchanged) == (3, 0, 0, 1)


def test_a_photo_that_moves_to_another_image_folder_or_comes_back_keeps_all(photos, index, tmp_path, no_model):
    (tmp_path / "owners.csv").write_text("image,owner\n4.jpg,ann\n", encoding="utf-8")
    update(index.folder, metadata=tmp_path / "owners.csv")
    other = put(tmp_path / "other", {"0.jpg": photo(0)})
    update(index.folder, add=other)
    (photos / "4.jpg").rename(other / "four.jpg")
    change = sync(index.folder)
    assert (change.added, change.moved, change.removed) == (0, 1, 0)
    (other / "four.jpg").rename(tmp_path / "trash.jpg")
    assert sync(index.folder).removed == 1
    (tmp_path / "trash.jpg").rename(other / "four.jpg")
    followed = sync(index.folder).index
    assert dict(zip(*map(values_of(followed), ("image_id", "owner")), strict=True))["four.jpg"] == "ann"


def test_copies_that_are_renamed_take_a_row_each(photos, index, tmp_path, no_model):
    put(photos, {"a.jpg": photo(3), "b.jpg": photo(3)})
    sync(index.folder)
    (tmp_path / "owners.csv").write_text("image,owner\na.jpg,ann\nb.jpg,bob\nsub/3.jpg,eve\n", encoding="utf-8")
    update(index.folder, metadata=tmp_path / "owners.csv")
    for old, new in (("a.jpg", "y.jpg"), ("b.jpg", "z.jpg")):
        (photos / old).rename(photos / new)
    shutil.copy(photos / "sub" / "3.jpg", photos / "zz.jpg")
    change = sync(index.folder)
    assert (change.moved, change.copied) == (2, 1)
    owners = dict(zip(*map(values_of(change.index), ("image_id", "owner")), strict=True))
    # The third file is a copy, and no move: what a user says of an image is not said of its copies.
    assert {name: owners[name] for name in ("y.jpg", "z.jpg", "sub/3.jpg")} == {
        "y.jpg": "ann",
        "z.jpg": "bob",
        "sub/3.jpg": "eve",
    }


def test_an_index_whose_only_file_was_not_read_for_its_columns_is_not_up_to_date(dual, tmp_path):
    folder = build(
        dual, put(tmp_path / "one", {"0.jpg": photo(0)}), tmp_path / "of one", replace(FLAT, exif="none")
    ).folder
    document = sync(folder).index.document
    assert upkeep.up_to_date(FolderIndex.open(folder)) is not None
    # As a command leaves it that was killed after it had noted the setting.
    commit.commit(folder, replace(document, settings=replace(document.settings, exif="camera")))
    assert upkeep.up_to_date(FolderIndex.open(folder)) is None
    assert sync(folder).index.values("year").to_pylist() == [2000]


def test_a_folder_above_an_image_folder_takes_the_other_images(dual, photos, index, tmp_path):
    inner = build(dual, photos / "sub", tmp_path / "inner", FLAT)
    outer = update(inner.folder, add=photos)
    paths = [outer.images.path(*outer.source_image(row)) for row in range(outer.num_rows)]
    assert sorted(paths) == sorted(photos.rglob("*.jpg"))
    (photos / "0.jpg").rename(photos / "sub" / "0.jpg")
    assert (sync(inner.folder).moved, sync(inner.folder).is_nothing) == (1, True)


def test_what_becomes_of_a_file_that_is_no_photo_any_more(photos, index, tmp_path):
    (tmp_path / "outside.jpg").write_bytes(photo(30))
    for name in ("0.jpg", "2.jpg", "4.jpg"):
        (photos / name).unlink()
    (photos / "0.jpg").symlink_to(tmp_path / "outside.jpg")
    (photos / "2.jpg").write_bytes(b"\0\0\0\x14ftypqt  \0\0\0\0qt  \0\0\0\x08mdat")
    os.mkfifo(photos / "4.jpg")
    change = sync(index.folder)
    assert set(content(change.index)) == {"sub/1.jpg", "sub/3.jpg", "sub/5.jpg"}
    assert {file["path"]: file["kind"] for file in change.skipped} == {
        "0.jpg": "link",
        "2.jpg": "video",
        "4.jpg": "not-image",
    }
    assert sync(index.folder).index.document == change.index.document


@pytest.mark.parametrize("dropped", [("camera",), ("taken", "year", "camera")])
def test_a_column_that_was_dropped_stays_so(photos, index, dropped):
    update(index.folder, drop_columns=dropped)
    put(photos, {"new.jpg": photo(10)})
    followed = sync(index.folder).index
    assert followed.columns.names == [name for name in ("taken", "year", "camera") if name not in dropped]
    assert sync(index.folder).is_nothing
    if "year" not in dropped:
        assert followed.values("year").to_pylist()[-1] == 2010


@pytest.mark.parametrize("problem", ["is gone", "has no images now"])
def test_a_disk_that_is_not_mounted_removes_nothing(photos, index, problem):
    shutil.move(photos, photos.parent / "elsewhere")
    if problem == "has no images now":
        photos.mkdir()
    change = sync(index.folder)
    assert (change.is_nothing, change.index.num_images) == (True, 6)
    assert change.notes == (f"{photos} {problem}, and nothing was removed: is its disk mounted?",)


def test_what_was_left_out_stays_known_while_a_disk_is_not_mounted(photos, index, tmp_path):
    put(photos, {"bad.jpg": photo(7)[:300]})
    other = put(tmp_path / "other", {"0.jpg": photo(0)})
    update(index.folder, add=other)
    sync(index.folder)
    (index.folder / "model" / "model.safetensors").unlink()
    photos.rename(tmp_path / "elsewhere")
    put(other, {"1.jpg": photo(1)})
    assert [file["path"] for file in sync(index.folder).skipped] == ["bad.jpg"]
    (tmp_path / "elsewhere").rename(photos)
    assert sync(index.folder).is_nothing


@pytest.mark.parametrize("mode", [0o000, 0o444])
def test_images_in_a_folder_that_cannot_be_read_now_are_kept(photos, index, monkeypatch, mode):
    """A folder may give its names, and not its files and folders. The tests run as a user who may read everything."""
    put(photos, {"sub/deep/6.jpg": photo(6)})
    sync(index.folder)
    scandir, stat = os.scandir, Path.stat

    def denied(path):
        return PermissionError(13, "Permission denied", str(path))

    def refuse_names(path):
        if (str(path).endswith("/sub") and not mode) or str(path).endswith("/deep"):
            raise denied(path)
        return scandir(path)

    def refuse_files(path, **options):
        if path.parent.name in ("sub", "deep"):
            raise denied(path)
        return stat(path, **options)

    monkeypatch.setattr(os, "scandir", refuse_names)
    monkeypatch.setattr(Path, "stat", refuse_files)
    (photos / "0.jpg").unlink()
    followed = sync(index.folder).index
    assert set(content(followed)) == {"2.jpg", "4.jpg", "sub/1.jpg", "sub/3.jpg", "sub/5.jpg", "sub/deep/6.jpg"}


def test_a_file_that_may_be_read_by_now_is_tried_again(photos, index, monkeypatch):
    put(photos, {"new.jpg": photo(7)})
    read, access = FolderImageFile.read, os.access

    def refuse(file):
        if file.name == "new.jpg":
            raise RowError("its image cannot be read (Permission denied)")
        return read(file)

    with monkeypatch.context() as patch:
        patch.setattr(FolderImageFile, "read", refuse)
        assert [file["kind"] for file in sync(index.folder).skipped] == ["unreadable"]
        patch.setattr(os, "access", lambda path, mode: path.name != "new.jpg" and access(path, mode))
        with hidden(index.folder / "model" / "model.safetensors"):
            assert sync(index.folder).is_nothing
    assert sync(index.folder).added == 1


def test_an_index_of_given_vectors_notices_an_edited_photo(dual, photos, index, tmp_path):
    names = [index.name(row) for row in range(index.num_rows)]
    vectors = index.stored(np.arange(index.num_rows)).data.astype(np.float32)
    pq.write_table(pa.table({"image_id": names, "vector": vectors.tolist()}), tmp_path / "given.parquet")
    given = build(dual, photos, tmp_path / "of given", FLAT, given=tmp_path / "given.parquet")
    rewrite(photos / "0.jpg", photo(20))
    change = sync(given.folder)
    assert (change.changed, change.unchanged) == (1, 5)
    assert content(change.index) == as_new(dual, photos, tmp_path / "new")
    # By now the bytes of all files are known.
    (photos / "2.jpg").rename(photos / "two.jpg")
    assert sync(given.folder).moved == 1


def test_a_time_after_the_year_2262_is_a_time(photos, index):
    put(photos, {"late.jpg": photo(7)})
    os.utime(photos / "late.jpg", ns=(2**63 + 10**9,) * 2)
    if (photos / "late.jpg").stat().st_mtime_ns < 2**63:
        pytest.skip("this file system has no such time")
    assert (sync(index.folder).added, sync(index.folder).is_nothing) == (1, True)


def test_a_file_that_cannot_be_read_is_tried_again_when_it_changes(photos, index):
    put(photos, {"bad.jpg": photo(7)[:300]})
    assert [file["path"] for file in sync(index.folder).skipped] == ["bad.jpg"]
    with hidden(index.folder / "model" / "model.safetensors"):
        assert [file["path"] for file in sync(index.folder).skipped] == ["bad.jpg"]
        assert [file["path"] for file in add_images(str(index.folder), photos).skipped] == ["bad.jpg"]
    rewrite(photos / "bad.jpg", photo(7))
    change = sync(index.folder)
    assert (change.skipped, change.added) == ([], 1)


def test_a_file_that_lacked_a_package_is_tried_again_with_it(photos, index, monkeypatch):
    put(photos, {"new.heic": heic()})
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pi_heif", None)
        assert [file["path"] for file in sync(index.folder).skipped] == ["new.heic"]
        assert upkeep.up_to_date(FolderIndex.open(index.folder)) is not None
    assert sync(index.folder).added == 1


def test_an_index_that_knows_no_files_gets_to_know_them(dual, photos, index, no_model):
    """As one that an earlier version made."""
    document = index.document
    commit.seal(index.folder, replace(document, image_files=None, columns=None, generation=document.generation + 1))
    change = sync(index.folder)
    assert (change.unchanged, change.index.values("year").to_pylist()) == (
        6,
        [2000, 2002, 2004, 2001, 2003, 2005],
    )
    assert sync(index.folder).is_nothing


def test_a_folder_of_files_that_are_indexed_takes_their_vectors(photos, index, tmp_path, no_model):
    shutil.copytree(photos, tmp_path / "backup")
    change = add_images(str(index.folder), tmp_path / "backup")
    assert change.notes == ("6 files have the bytes of an image of the index, whose vectors were taken",)
    added = change.index
    rows = np.flatnonzero(added.is_live)
    vectors = added.stored(rows).data
    np.testing.assert_array_equal(vectors[:6], vectors[6:])
    # A name that two folders have is no name of one image.
    with pytest.raises(InputError, match=r"2\.jpg stands for 2 images"):
        update(index.folder, remove=("2.jpg",))
    assert update(index.folder, remove=(str(tmp_path / "backup" / "2.jpg"),)).num_images == 11


@pytest.mark.usefixtures("no_model")
def test_a_moved_folder_keeps_its_rows(photos, index, tmp_path):
    before = content(index)
    (tmp_path / "disk").mkdir()
    shutil.move(photos, tmp_path / "disk" / "photos")
    moved = move_images(str(index.folder), photos, tmp_path / "disk" / "photos").index
    assert content(moved) == before
    assert moved.image_bytes(0) == (tmp_path / "disk" / "photos" / "0.jpg").read_bytes()
    assert sync(index.folder).is_nothing
    # A folder above the image folder, as the place of a disk.
    shutil.move(tmp_path / "disk", tmp_path / "usb")
    assert content(move_images(str(index.folder), tmp_path / "disk", tmp_path / "usb").index) == before


@pytest.mark.usefixtures("no_model")
def test_a_folder_with_less_than_half_of_the_images_is_not_where_they_moved(photos, index, tmp_path):
    place = tmp_path / "new"
    shutil.copytree(photos, place)
    files = sorted(place.rglob("*.jpg"))
    for number, file in enumerate(files, 1):
        file.unlink()
        if number <= 3:
            assert move_images(str(index.folder), photos, place).index.document.sources[0].path == str(place)
            move_images(str(index.folder), place, photos)
            continue
        with pytest.raises(InputError, match=f"{6 - number} of 6 images"):
            move_images(str(index.folder), photos, place)
    assert FolderIndex.open(index.folder).document.sources == index.document.sources


def test_a_folder_does_not_move_to_another_image_folder_of_the_index(photos, index, tmp_path):
    other = shutil.copytree(photos, tmp_path / "other")
    two = update(index.folder, add=other)
    with pytest.raises(InputError, match="other"):
        move_images(str(index.folder), photos, other)
    assert FolderIndex.open(index.folder).document == two.document


def test_an_index_with_files_that_were_left_out_is_up_to_date_until_one_of_them_changes(photos, index, tmp_path):
    put(photos, {"note.txt": b"no image"})
    other = put(tmp_path / "other", {"9.jpg": photo(9), "broken.jpg": photo(9)[:100], "note.txt": b"no image"})
    update(index.folder, add=other)
    followed = sync(index.folder).index
    unchanged = upkeep.up_to_date(followed)
    assert unchanged is not None
    assert unchanged.unchanged == 7
    assert sorted((entry["source"], entry["path"]) for entry in unchanged.skipped) == [
        (0, "note.txt"),
        (1, "broken.jpg"),
        (1, "note.txt"),
    ]
    rewrite(other / "broken.jpg", photo(8))
    assert upkeep.up_to_date(followed) is None
    assert sync(index.folder).added == 1
    (other / "note.txt").unlink()
    assert upkeep.up_to_date(FolderIndex.open(index.folder)) is None


def test_an_open_index_answers_as_before_while_it_is_changed(photos, index):
    (photos / "0.jpg").unlink()
    queries = index.stored(np.arange(2)).data.astype(np.float32)
    sync(index.folder)
    # Nothing of it was read before the change.
    hits = index.search(queries, 6)[0]
    assert [hit.columns["year"] for hit in hits if hit.name == "0.jpg"] == [2000]


def test_a_sync_that_is_killed_at_any_change_of_a_file_goes_on(dual, photos, index, tmp_path, monkeypatch):
    vectors_before = {name: vector for name, (vector, _) in content(index).items()}
    put(photos, {"new.jpg": photo(10), "copy.jpg": photo(2)})
    rewrite(photos / "0.jpg", photo(20))
    (photos / "4.jpg").rename(photos / "sub" / "moved.jpg")
    (photos / "sub" / "1.jpg").unlink()
    expected = as_new(dual, photos, tmp_path / "new")
    vectors_after = {name: vector for name, (vector, _) in expected.items()}
    number, was_killed = 0, True
    while was_killed:
        victim = tmp_path / f"killed {number}"
        shutil.copytree(index.folder, victim)
        was_killed = killed_before(monkeypatch, number, lambda: sync(victim))  # noqa: B023
        # Searched at any moment: as it was, or with the new images, which get their columns last.
        found = FolderIndex.open(victim)
        found.search(np.ones((1, found.dim), np.float32), 3)
        vectors = {name: vector for name, (vector, _) in content(found).items()}
        assert vectors in (vectors_before, vectors_after)
        assert content(sync(victim).index) == expected, number
        number += 3
    assert number > 20


def test_watching_takes_what_comes_until_it_is_stopped(photos, index):
    stop, seen = threading.Event(), []
    came = threading.Event()

    def on_change(change) -> None:
        seen.append(change)
        came.set()

    errors: list[DcdError] = []
    thread = threading.Thread(
        target=watch_index, args=(str(index.folder), on_change, errors.append), kwargs={"stop": stop}
    )
    thread.start()
    try:
        assert came.wait(TIMEOUT_S)
        came.clear()
        put(photos, {"late.jpg": photo(2)})
        assert came.wait(TIMEOUT_S)
    finally:
        stop.set()
        thread.join(TIMEOUT_S)
    assert (seen[0].is_nothing, seen[1].copied, errors) == (True, 1, [])


def test_watching_begins_while_another_run_writes_and_goes_on_with_a_folder_that_is_at_another_place(
    photos, index, tmp_path, monkeypatch
):
    monkeypatch.setattr(watch, "TRY_AGAIN_S", 0.1)
    stop, seen, errors = threading.Event(), queue.Queue(), queue.Queue()
    thread = threading.Thread(target=watch_index, args=(str(index.folder), seen.put, errors.put), kwargs={"stop": stop})
    with files.lock(index.folder):
        put(photos, {"new.jpg": photo(2)})
        thread.start()
        assert "another run is writing" in str(errors.get(timeout=TIMEOUT_S))
    try:
        assert seen.get(timeout=TIMEOUT_S).copied == 1
        photos.rename(tmp_path / "moved")
        move_images(str(index.folder), photos, tmp_path / "moved")
        put(tmp_path / "moved", {"late.jpg": photo(2)})
        # The first look finds the new place, and after it each message is of that.
        found = 0
        while not found:
            change = seen.get(timeout=TIMEOUT_S)
            found = change.copied
    finally:
        stop.set()
        thread.join(TIMEOUT_S)
    assert errors.empty()


def test_folders_that_the_system_does_not_watch_are_compared_at_times(photos, index, monkeypatch):
    def refuse(*folders, **options):
        raise OSError("OS file watch limit reached.")

    monkeypatch.setattr("watchfiles.watch", refuse)
    monkeypatch.setattr(watch, "LOOK_AGAIN_S", 0.1)
    stop, seen, errors = threading.Event(), queue.Queue(), queue.Queue()
    thread = threading.Thread(target=watch_index, args=(str(index.folder), seen.put, errors.put), kwargs={"stop": stop})
    thread.start()
    try:
        assert seen.get(timeout=TIMEOUT_S).is_nothing
        assert "fs.inotify.max_user_watches" in str(errors.get(timeout=TIMEOUT_S))
        put(photos, {"late.jpg": photo(2)})
        assert seen.get(timeout=TIMEOUT_S).copied == 1
    finally:
        stop.set()
        thread.join(TIMEOUT_S)


# Copies and look-alikes


def near_pairs(hashes, bits):
    return {
        (one, other)
        for one in range(len(hashes))
        for other in range(one)
        if (hashes[one] ^ hashes[other]).bit_count() <= bits
    }


def test_near_hashes_are_those_of_comparing_all_pairs():
    rng = np.random.default_rng(0)
    hashes = [int(value) for value in rng.integers(0, 2**64, 300, dtype=np.uint64)]
    # Close ones at every distance up to five, in any bits; two of each, so that three have a block in common.
    for one in hashes[:200] * 2:
        flips = rng.choice(64, rng.integers(1, 6), replace=False)
        hashes.append(one ^ sum(1 << int(bit) for bit in flips))
    hashes = sorted(set(hashes))
    found = {
        (max(pair), min(pair))
        for ones, others in copies._near(np.array(hashes, np.uint64))
        for pair in zip(ones.tolist(), others.tolist(), strict=True)
    }
    assert found == near_pairs(hashes, 3)
    assert len(found) > 50


def test_copies_and_look_alikes_are_one_hit_and_listed(dual, tmp_path):
    smooth = Image.fromarray(np.random.default_rng(3).integers(0, 255, (9, 12, 3), dtype=np.uint8)).resize((240, 180))
    folder = tmp_path / "photos"
    folder.mkdir()
    smooth.save(folder / "a.jpg", quality=95)
    smooth.resize((200, 150)).save(folder / "b.jpg", quality=70)  # saved again, smaller
    shutil.copy(folder / "a.jpg", folder / "c.jpg")
    put(folder, {f"{seed}.png": png(seed) for seed in range(8)})
    index = build(dual, folder, tmp_path / "index", FLAT)
    (group,) = copies.find_copies(index)
    assert (group.images, group.same_bytes) == (("a.jpg", "b.jpg", "c.jpg"), False)
    assert [row["bytes"] for row in group.rows()] == [(folder / name).stat().st_size for name in group.images]
    query = index.stored(np.array([index.values("image_id").to_pylist().index("c.jpg")])).data.astype(np.float32)
    for count in (1, 3, 9, 99):
        hits = index.search(query, count)[0]
        assert [hit.name for hit in hits if hit.name in group.images] == ["a.jpg"]
        assert hits[0].copies == ("b.jpg", "c.jpg")
        assert len(hits) == min(count, 9)
    index.all_copies = True
    every = index.search(query, 99)[0]
    assert len(every) == 11
    assert {hit.copies for hit in every} == {()}
    # Without the first one, another is the hit.
    (folder / "a.jpg").unlink()
    hits = sync(index.folder).index.search(query, 99)[0]
    assert [(hit.name, hit.copies) for hit in hits if hit.copies] == [("c.jpg", ("b.jpg",))]


def test_look_alikes_are_closer_than_nearly_all_unlike_images(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    vectors = unit_vectors(60, dim=4)
    index = write_index(tmp_path / "index", [vectors])
    hashes = [int(value) for value in rng.integers(0, 2**64, 60, dtype=np.uint64)]
    hashes[1] = hashes[0] ^ 1  # a copy of 0, which does not count
    facts = facts_table([FileFacts(dhash=value) for value in hashes])
    wide = vectors.astype(np.float64)
    wide /= np.linalg.norm(wide, axis=1, keepdims=True)
    unlike = [
        wide[one] @ wide[other]
        for one in range(60)
        for other in range(one)
        if (hashes[one] ^ hashes[other]).bit_count() > 16
    ]
    monkeypatch.setattr(copies, "MOST_NEEDED", 2)
    assert copies.least_cosine(facts, index.stored) == pytest.approx(np.quantile(unlike, 0.999), abs=1e-6)
    # Without an image that is unlike another, and without any.
    same = facts_table([FileFacts(dhash=0) for _ in range(60)])
    assert copies.least_cosine(same, index.stored) == 2


def test_images_without_structure_look_alike_only_if_their_vectors_do(tmp_path):
    vectors = np.zeros((5, 8), np.float16)
    vectors[[0, 1, 2, 3, 4], [0, 1, 0, 1, 2]] = 1
    index = write_index(tmp_path / "index", [vectors])
    facts = [FileFacts(sha256=bytes([row] * 32), dhash=0) for row in range(4)]
    facts.append(FileFacts())  # nothing is known of it
    groups = copies.group_rows(index.folder, index.document, facts_table(facts))
    # Rows 1 and 3 are neither neighbors nor look like the first.
    assert groups.tolist() == [0, 1, 0, 3, 4]
    facts[3] = replace(facts[3], sha256=facts[1].sha256)
    assert copies.group_rows(index.folder, index.document, facts_table(facts)).tolist() == [0, 1, 0, 1, 4]


def test_a_group_of_copies_as_plain_values():
    same = copies.SameImages(
        images=("a.jpg", "b"), paths=(Path("photos/a.jpg"), None), num_bytes=(12, None), same_bytes=True
    )
    assert same.rows() == [
        {"image": "a.jpg", "path": str(Path("photos/a.jpg")), "bytes": 12, "same_bytes": True},
        {"image": "b", "path": None, "bytes": None, "same_bytes": True},
    ]
    assert same.document() == {
        "same_bytes": True,
        "images": [
            {"image": "a.jpg", "path": str(Path("photos/a.jpg")), "bytes": 12},
            {"image": "b", "path": None, "bytes": None},
        ],
    }
