"""`dcdctl prepare` of photos as phones write them, in every kind of source, and of files that it cannot read."""

from __future__ import annotations

import builtins
import io
import json
import tarfile
import zipfile

import pyarrow.parquet as pq
import pytest
from captioned_photos import jpeg
from command_line import document_of, error_of, run
from heif_files import halves, heic
from hostile_images import encoded
from image_files import put
from PIL import Image
from raw_files import dng

from dcdctl.core.data import Corpus

PHOTOS = {
    "IMG_1.HEIC": heic("heic_turned.heic"),
    "IMG_2.avif": encoded("AVIF", halves(("green", "white"))),
    "IMG_3.DNG": dng(orientation=6),
    "IMG_4.jpg": jpeg(4),
}
OTHERS = {
    "IMG_1.MOV": b"a video",
    "party.mp4": b"a video",
    "IMG_1.AAE": b"edits",
    ".DS_Store": b"hidden",
    "logo.svg": b"<svg/>",
}
FORMATS = {"IMG_1.HEIC": "JPEG", "IMG_2.avif": "AVIF", "IMG_3.DNG": "JPEG", "IMG_4.jpg": "JPEG"}
SIZES = {"IMG_1.HEIC": (96, 64), "IMG_2.avif": (96, 64), "IMG_3.DNG": (80, 120)}


def packed(place, form):
    """The photos and the other files in a folder, a zip or a tar."""
    files = PHOTOS | OTHERS
    if form == "folder":
        return put(place / "phone", files)
    path = place / f"phone.{form}"
    if form == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)
        return path
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def without_packages(monkeypatch):
    import_module = builtins.__import__

    def refuse(name, *args, **options):
        if name in ("pi_heif", "rawpy"):
            raise ImportError(name)
        return import_module(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)


def assert_readable_with_pillow_alone(folder, split="train"):
    corpus = Corpus.open(folder, split)
    assert sorted(corpus.image_ids) == sorted(PHOTOS)
    for number, name in enumerate(corpus.image_ids):
        with Image.open(io.BytesIO(corpus.image_bytes(number))) as image:
            assert image.format == FORMATS[name]
            # Upright already, so nobody turns it again.
            assert image.getexif().get(0x0112, 1) == 1
        assert corpus.image(number).size == SIZES.get(name, corpus.image(number).size)


@pytest.mark.parametrize("form", ["folder", "zip", "tar"])
def test_a_pool_has_all_photos_of_a_phone_and_counts_its_other_files(tmp_path, form):
    place = packed(tmp_path, form)
    found = document_of("prepare --workers 1 --images", place, "--out", tmp_path / "pool")
    assert_readable_with_pillow_alone(tmp_path / "pool")
    assert found["left_out_by_kind"] == {"live-video": 1, "video": 1, "other-format": 1, "not-image": 1}
    again = run("prepare --workers 1 --images", place, "--out", tmp_path / "pool").stdout
    assert "  left out: 1 video of a Live Photo: nothing to do, the photo is a file of its own\n" in again
    assert "  left out: 1 video: save frames as images\n" in again


def test_a_table_names_photos_of_a_phone(tmp_path):
    put(tmp_path / "phone", PHOTOS)
    rows = "".join(f"{name},The photo {name}.\n" for name in PHOTOS)
    (tmp_path / "photos.csv").write_text("image,caption\n" + rows)
    words = ["--csv", tmp_path / "photos.csv", "--images", tmp_path / "phone", "--out", tmp_path / "photos"]
    run("prepare --workers 1 --hold-out 0", *words)
    assert_readable_with_pillow_alone(tmp_path / "photos")
    paths = pq.read_table(next((tmp_path / "photos").glob("train*.parquet")))["image"].to_pylist()
    assert [image["path"] for image in paths] == ["IMG_1.jpg", "IMG_2.avif", "IMG_3.jpg", "IMG_4.jpg"]


def test_tars_of_captioned_photos_of_a_phone_are_read(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, data in PHOTOS.items():
            for member, content in ((name.lower(), data), (f"{name.lower().partition('.')[0]}.txt", b"a photo")):
                info = tarfile.TarInfo(member)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    (tmp_path / "phone.toml").write_text('name = "phone"\nformat = "webdataset"\nshards = { train = "a.tar" }\n')
    run("prepare --workers 1", tmp_path / "phone.toml", "--out", tmp_path / "corpus")
    corpus = Corpus.open(tmp_path / "corpus", "train")
    assert [corpus.image(number).size for number in range(3)] == list(SIZES.values())


def test_photos_whose_package_is_missing_are_counted_with_the_next_step(tmp_path, without_packages):
    put(tmp_path / "phone", PHOTOS | {"IMG_5.HEIC": heic(), "IMG_6.jpg": jpeg(6)})
    words = ("--images", tmp_path / "phone", "--out", tmp_path / "pool")
    message = error_of("prepare --workers 1", *words)
    assert '"IMG_1.HEIC": a HEIC photo, and the package pi-heif is not installed' in message
    assert "`pip install 'pi-heif>=1.0'` reads HEIC, or skip such rows with --on-error skip" in message
    skipping = run("prepare --workers 1 --on-error skip", *words).stdout
    assert "  left out: 2 HEIC photos: `pip install 'pi-heif>=1.0'` reads HEIC\n" in skipping
    assert "  left out: 1 RAW photo: `pip install 'rawpy>=0.24'` reads RAW previews\n" in skipping
    document = document_of("prepare --workers 1 --on-error skip", *words)
    assert document["left_out_by_kind"] == {"heif": 2, "raw": 1}
    listed = json.loads((tmp_path / "pool" / "corpus.json").read_text())["skipped"]
    assert [(row["image"], row["kind"]) for row in listed] == [
        ("IMG_1.HEIC", "heif"),
        ("IMG_3.DNG", "raw"),
        ("IMG_5.HEIC", "heif"),
    ]


def test_a_pool_of_nothing_that_can_be_read_names_the_package(tmp_path, without_packages):
    put(tmp_path / "phone", {f"{number}.heic": heic() for number in range(3)})
    message = error_of("prepare --workers 1 --on-error skip --images", tmp_path / "phone", "--out", tmp_path / "pool")
    assert "left out: 3 HEIC photos: `pip install 'pi-heif>=1.0'` reads HEIC" in message
