"""An index of a library as phones leave it: which files are read, which are left out as what, and what is known of each
photo."""

from __future__ import annotations

import io
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import served
from command_line import document_of, error_of, run
from heif_files import heic
from image_files import put
from PIL import Image
from raw_files import dng

from dcdctl.core.data import decode_image
from dcdctl.core.search import FolderIndex, IndexSearcher
from dcdctl.core.serve import ServiceConfig


@pytest.fixture(scope="module")
def phone(dual, phone_photos, tmp_path_factory):
    """The library, what `index` said of it, and the index with all columns of the EXIF data."""
    out = tmp_path_factory.mktemp("phone") / "index"
    said = run("index", dual, "--images", phone_photos.folder, "--out", out, "--set", "exif=place").stderr
    return SimpleNamespace(library=phone_photos, said=said, index=FolderIndex.open(out))


def test_all_images_are_read_and_all_other_files_are_left_out_by_kind(phone):
    library, index = phone.library, phone.index
    assert len(library.files) >= 150
    assert sorted(map(index.name, range(index.num_rows))) == sorted(library.read)
    listed = json.loads((index.folder / index.document.skipped.file).read_text())
    assert {file["path"]: file["kind"] for file in listed} == library.left_out


def test_what_is_left_out_is_summed_up_with_the_next_step(phone):
    lines = [line for line in phone.said.splitlines() if line.startswith(("left out", "  '"))]
    assert [line for line in lines[:12] if "IMG_0900" not in line] == [
        "left out: 1 RAW photo without a preview: export as JPEG",
        "left out: 5 videos of Live Photos: nothing to do, the photo is a file of its own",
        "left out: 2 videos: save frames as images",
        "left out: 2 images of other formats: save as JPEG or PNG",
        "left out: 1 strip that is too long: cut into pieces",
        "left out: 4 damaged images: copy again from the camera or a backup",
        "left out: 1 broken link: mend or remove",
        "left out: 2 links out of the folder or to folders: copy or add what the link leads to",
        "left out: 10 files that are no images: nothing to do",
        "  'DCIM/100APPLE/IMG_0901.JPG': the image file is empty (0 bytes)",
        "  'DCIM/100APPLE/IMG_0902.JPG': not an image file of a supported format "
        "(JPEG, PNG, WEBP, GIF, BMP, TIFF, PPM, AVIF, HEIF, RAW)",
    ]
    assert lines[-1] == f"left out: each is listed in {phone.index.folder / 'skipped-1.json'}"
    counts = document_of("sync", phone.index.folder, "--add", phone.library.folder)["left_out_by_kind"]
    assert counts == phone.library.counts


@pytest.mark.parametrize("column", ["taken", "year", "camera", "latitude", "longitude"])
def test_the_columns_are_what_the_cameras_wrote(phone, column):
    names = map(phone.index.name, range(phone.index.num_rows))
    found = dict(zip(names, phone.index.values(column).to_pylist(), strict=True))
    expected = {}
    for name, file in phone.library.read.items():
        latitude, longitude = file.place or (None, None)
        year = None if file.taken is None else file.taken.year
        facts = {"taken": file.taken, "year": year, "camera": file.camera, "latitude": latitude, "longitude": longitude}
        expected[name] = facts[column]
    assert found == expected


def test_every_image_is_upright(phone):
    library = phone.library
    for name, file in library.read.items():
        width, height = decode_image((library.folder / name).read_bytes()).size
        assert (width > height, width / height) == (
            file.size[0] > file.size[1],
            pytest.approx(file.size[0] / file.size[1], rel=0.01),
        )


def test_a_page_shows_every_photo(phone):
    client = served.client_of(IndexSearcher.for_index(phone.index, device=served.CPU), ServiceConfig())
    rows = {phone.index.name(row): row for row in range(phone.index.num_rows)}
    for name in ("DCIM/101APPLE/IMG_2000.HEIC", "Camera/RAW/DSC_2.DNG", "Download/image-0.avif"):
        for size in ("", "?size=original"):
            answer = client.get(f"/image/{rows[name]}{size}")
            assert answer.headers["content-type"] == ("image/avif" if size and "avif" in name else "image/jpeg")
            with Image.open(io.BytesIO(answer.content)) as shown:
                assert np.sign(shown.width - shown.height) == np.sign(np.subtract(*phone.library.files[name].size))


def test_a_folder_of_photos_whose_package_is_missing_says_what_to_install(dual, tmp_path, monkeypatch):
    put(tmp_path / "photos", {"1.heic": heic(), "2.heic": heic("heic_b.heic"), "3.dng": dng()})
    for package in ("pi_heif", "rawpy"):
        monkeypatch.setitem(sys.modules, package, None)
    message = error_of("index", dual, "--images", tmp_path / "photos", "--out", tmp_path / "new")
    assert "none of 3 files in" in message
    assert "left out: 2 HEIC photos: `pip install 'pi-heif>=1.0'` reads HEIC" in message
    assert "left out: 1 RAW photo: `pip install 'rawpy>=0.24'` reads RAW previews" in message
