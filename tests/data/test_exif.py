"""EXIF data of image files: the values that cameras wrote, and damaged data."""

from __future__ import annotations

import io
import random
from datetime import datetime

import pytest
from heif_files import heic
from PIL import Image
from PIL.ExifTags import GPS, IFD, Base
from raw_files import dng

from dcdctl.core.data import decode_image, read_exif, read_orientation, turned_back


def photo(kind="JPEG", size=(8, 8), **parts):
    """A file with EXIF tags; `detail` are those of the Exif block and `place` of the GPS block."""
    exif = Image.Exif()
    exif.update(parts.get("tags", {}))
    for block, name in ((IFD.Exif, "detail"), (IFD.GPSInfo, "place")):
        if name in parts:
            exif[block] = parts[name]
    stream = io.BytesIO()
    Image.new("RGB", size, "red").save(stream, kind, exif=exif.tobytes())  # Pillow drops the blocks of a TIFF otherwise
    return stream.getvalue()


def read(data, *, place=True):
    return read_exif(io.BytesIO(data), place=place)


NOTHING = dict.fromkeys(["taken", "year", "camera", "latitude", "longitude"])
BERLIN = {
    GPS.GPSLatitudeRef: "N",
    GPS.GPSLatitude: (52.0, 31.0, 12.0),
    GPS.GPSLongitudeRef: "E",
    GPS.GPSLongitude: (13.0, 24.0, 18.0),
}
RIO = {
    GPS.GPSLatitudeRef: "S",
    GPS.GPSLatitude: (22.0, 54.0, 0.0),
    GPS.GPSLongitudeRef: "W",
    GPS.GPSLongitude: (43.0, 12.0, 0.0),
}

FARTHEST = {
    GPS.GPSLatitudeRef: "S",
    GPS.GPSLatitude: (90.0, 0.0, 0.0),
    GPS.GPSLongitudeRef: "E",
    GPS.GPSLongitude: (180.0, 0.0, 0.0),
}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_what_a_camera_wrote_is_read_in_every_format(kind):
    data = photo(
        kind,
        tags={Base.Make: "NIKON CORPORATION", Base.Model: "NIKON D70\0  ", Base.DateTime: "2021:01:01 00:00:00"},
        detail={Base.DateTimeOriginal: "2019:12:31 23:30:00", Base.OffsetTimeOriginal: "-02:00"},
        place=BERLIN,
    )
    assert read(data) == {
        "taken": datetime(2019, 12, 31, 23, 30),  # on the camera's clock, not in UTC
        "year": 2019,
        "camera": "NIKON CORPORATION NIKON D70",
        "latitude": 52.52,
        "longitude": 13.405,
    }
    assert set(read(data, place=False)) == {"taken", "year", "camera"}


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ({"tags": {Base.Make: "Canon", Base.Model: "Canon EOS 5D"}}, {"camera": "Canon EOS 5D"}),
        ({"tags": {Base.Make: "Fuji"}}, {"camera": "Fuji"}),
        (
            {"tags": {Base.DateTime: "2021:02:03 04:05:06"}, "detail": {Base.DateTimeOriginal: "0000:00:00 00:00:00"}},
            {"taken": datetime(2021, 2, 3, 4, 5, 6), "year": 2021},
        ),
        ({"detail": {Base.DateTimeOriginal: "2021:02:31 04:05:06"}}, {}),
        (
            {"detail": {Base.DateTimeOriginal: "2021:02:03 04:05:06", Base.OffsetTimeOriginal: "   :  "}},
            {"taken": datetime(2021, 2, 3, 4, 5, 6), "year": 2021},
        ),
        (
            {"detail": {Base.DateTimeOriginal: "0001:01:01 00:00:00", Base.OffsetTimeOriginal: "+05:00"}},
            {"taken": datetime(1, 1, 1), "year": 1},
        ),
        (
            {
                "tags": {Base.DateTime: "2023:01:01 00:00:00"},
                "detail": {
                    Base.DateTimeDigitized: "2022:01:01 00:00:00",  # of a scanned print
                    Base.DateTimeOriginal: "1999:01:01 00:00:00",
                },
            },
            {"taken": datetime(1999, 1, 1), "year": 1999},
        ),
        (
            {
                "tags": {Base.DateTime: "2023:01:01 00:00:00"},
                "detail": {Base.DateTimeDigitized: "2022:01:01 00:00:00"},
            },
            {"taken": datetime(2022, 1, 1), "year": 2022},
        ),
        ({"place": RIO}, {"latitude": -22.9, "longitude": -43.2}),
        # Seven digits of a degree: a centimeter.
        (
            {"place": {**BERLIN, GPS.GPSLatitude: (52.0, 31.0, 12.001), GPS.GPSLongitude: (13.0, 24.0, 18.123457)}},
            {"latitude": 52.5200003, "longitude": 13.4050343},
        ),
        ({"place": FARTHEST}, {"latitude": -90.0, "longitude": 180.0}),
        ({"place": {**FARTHEST, GPS.GPSLongitude: (180.0, 0.0, 0.1)}}, {}),
        ({"place": {**FARTHEST, GPS.GPSLatitude: (90.0, 0.0, 0.1)}}, {}),
        ({"place": {**RIO, GPS.GPSLatitude: (95.0, 0.0, 0.0)}}, {}),
        ({"place": {GPS.GPSLatitude: (0.0, 0.0, 0.0), GPS.GPSLongitude: (0.0, 0.0, 0.0)}}, {}),
        ({"place": {**RIO, GPS.GPSLatitude: (22.0, 54.0)}}, {}),
    ],
)
def test_odd_values_are_missing_or_put_right(parts, expected):
    assert read(photo(**parts)) == NOTHING | expected


def test_files_without_exif_data_or_without_an_image_have_none():
    assert [read(data) for data in (photo(), b"", b"a text", photo()[:40])] == [NOTHING] * 4


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF", "DNG"])
def test_an_image_that_is_turned_back_is_as_its_file_stores_it(kind, orientation):
    size = 200, 150
    if kind == "DNG":
        data = dng(Image.new("RGB", size, "red"), orientation=orientation)
    else:
        data = photo(kind, size=size, tags={Base.Orientation: orientation})
    upright = decode_image(data)
    assert read_orientation(io.BytesIO(data)) == orientation
    assert upright.size == (size if orientation < 5 else size[::-1])
    assert turned_back(upright, orientation).size == size


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turning_back_undoes_every_turn(orientation):
    pixels = Image.frombytes("L", (3, 2), bytes(range(6)))
    stream = io.BytesIO()
    exif = Image.Exif()
    exif[Base.Orientation] = orientation
    pixels.convert("RGB").save(stream, "PNG", exif=exif.tobytes())
    assert turned_back(decode_image(stream.getvalue()), orientation).convert("L").tobytes() == pixels.tobytes()


def test_a_file_that_says_no_turn_has_none():
    turned = heic("heic_turned.heic")
    odd = photo(tags={Base.Orientation: 9})
    assert [read_orientation(io.BytesIO(data)) for data in (photo(), odd, b"", b"a text", photo()[:40], turned)] == [
        1
    ] * 6


def test_damaged_exif_data_never_fail():
    data = photo(
        tags={Base.Make: "Canon", Base.Model: "EOS"}, detail={Base.DateTimeOriginal: "2019:12:31 23:30:00"}, place=RIO
    )
    rng = random.Random(0)
    for _ in range(300):
        damaged = bytearray(data)
        for _ in range(rng.randint(1, 8)):
            damaged[rng.randrange(20, 400)] = rng.randrange(256)
        assert set(read(bytes(damaged))) == set(NOTHING)


def test_the_pixels_of_a_png_are_not_decoded(monkeypatch):
    data, without = photo("PNG", tags={Base.Model: "EOS"}), io.BytesIO()
    Image.new("RGB", (8, 8)).save(without, "PNG")
    for name in ("Image.Image", "ImageFile.ImageFile", "PngImagePlugin.PngImageFile"):
        monkeypatch.setattr(f"PIL.{name}.load", lambda image: pytest.fail("it was decoded"))
    assert read(data)["camera"] == "EOS"
    # Pillow would look for EXIF data behind the pixels.
    assert read(without.getvalue()) == NOTHING
