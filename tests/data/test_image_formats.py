"""The formats of phones and cameras: recognized by content, upright, in bounded memory; and what is left out, by
kind."""

from __future__ import annotations

import builtins
import io
import os
import random
import signal
import struct
import tracemalloc
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from heif_files import COLORS, halves, heic
from hostile_images import encoded, jpeg_of_size
from PIL import Image, ImageFile
from raw_files import dng

from dcdctl.core.data import FolderImageFile, ImageError, RowError, decode_image, images, read_exif
from dcdctl.core.data.images import archives, check_image, for_browser, formats, kind_of, opened, thumbnail

HALVES = halves(("red", "blue"))
UPRIGHT = {
    "avif": encoded("AVIF", HALVES),
    "heic": heic("heic_a.heic"),
    "heic on its side": heic("heic_turned.heic"),
    "heic in tiles": heic("heic_tiles.heic"),
    "dng": dng(HALVES),
    "a heic of the brand mif1": heic("heic_a.heic").replace(b"ftypheic", b"ftypmif1"),
}
QUARTERS = Image.fromarray(
    np.array([[[250, 0, 0], [0, 250, 0]], [[0, 0, 250], [250, 250, 250]]], np.uint8).repeat(40, 0).repeat(60, 1)
)


def assert_halves(image):
    assert image.size == HALVES.size
    for x, color in ((10, (255, 0, 0)), (85, (0, 0, 255))):
        assert np.abs(np.subtract(image.getpixel((x, 30)), color)).max() < 20


@pytest.mark.parametrize("form", UPRIGHT)
def test_a_format_of_phones_is_read_by_every_reader(form):
    data = UPRIGHT[form]
    assert_halves(decode_image(data))
    with Image.open(io.BytesIO(thumbnail(data, 48))) as small:
        assert (small.format, small.size) == ("JPEG", (48, 32))
    shown, shown_type = for_browser(data)
    assert shown_type == ("image/avif" if form == "avif" else "image/jpeg")
    assert_halves(decode_image(shown))
    checked = check_image(data)
    assert (checked.width, checked.height) == HALVES.size
    # Whoever reads a corpus with Pillow alone reads these bytes.
    with Image.open(io.BytesIO(checked.data)) as kept:
        assert (kept.format, checked.suffix) == (("AVIF", None) if form == "avif" else ("JPEG", ".jpg"))
    assert_halves(decode_image(checked.data))
    shrunk = check_image(data, 32)
    assert (shrunk.width, shrunk.height, shrunk.suffix) == (48, 32, ".png" if form == "avif" else ".jpg")
    assert checked.hash == shrunk.hash


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_raw_photo_is_turned_as_its_camera_says(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    expected = decode_image(encoded("JPEG", QUARTERS, exif=exif.tobytes(), quality=95))
    for data in (dng(QUARTERS, orientation=orientation), check_image(dng(QUARTERS, orientation=orientation)).data):
        found = decode_image(data)
        assert found.size == expected.size
        assert np.abs(np.asarray(found, int) - np.asarray(expected, int)).mean() < 6


@pytest.mark.parametrize(
    ("of_photo", "of_preview", "turn"), [(6, 1, 6), (1, 6, 6), (1, 1, 1), (8, 6, 8), (1, None, 1), (6, None, 6)]
)
def test_the_turn_of_a_raw_photo_is_its_own_and_else_that_of_its_preview(of_photo, of_preview, turn):
    exif = Image.Exif()
    if of_preview is not None:
        exif[0x0112] = of_preview
    preview = encoded("JPEG", QUARTERS, exif=exif.tobytes() if of_preview else b"", quality=95)
    if of_preview is not None:
        # Without the JFIF segment: cameras begin with the EXIF data, and LibRaw adds its own before others.
        preview = preview[:2] + preview[20:]
        assert preview[6:10] == b"Exif"
    exif[0x0112] = turn
    expected = decode_image(encoded("JPEG", QUARTERS, exif=exif.tobytes(), quality=95))
    found = decode_image(dng(QUARTERS, orientation=of_photo, preview=preview))
    assert found.size == expected.size
    assert np.abs(np.asarray(found, int) - np.asarray(expected, int)).mean() < 6


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_avif_is_turned_as_its_camera_says(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    expected = decode_image(encoded("JPEG", QUARTERS, exif=exif.tobytes(), quality=95))
    found = decode_image(encoded("AVIF", QUARTERS, exif=exif.tobytes()))
    assert found.size == expected.size
    assert np.abs(np.asarray(found, int) - np.asarray(expected, int)).mean() < 6


def test_a_heic_is_turned_once_whatever_its_decoder_leaves_in_its_exif_data(monkeypatch):
    """pi-heif turns an image by its boxes, and puts 1 into the EXIF data, where phones say the turn once more."""
    monkeypatch.setattr("pi_heif.as_plugin.set_orientation", lambda info: None)
    data = heic("heic_turned.heic")
    assert opened.orientation_of(opened.open_heif(data)) == 6
    assert_halves(decode_image(data))
    assert_halves(decode_image(check_image(data).data))
    with Image.open(io.BytesIO(thumbnail(data, 48))) as small:
        assert small.size == (48, 32)
    assert images.read_orientation(io.BytesIO(data)) == 1


def test_what_the_camera_says_is_read_and_kept():
    found = read_exif(io.BytesIO(heic()), place=True)
    assert found == {
        "taken": datetime(2021, 6, 1, 12, 34, 56),
        "year": 2021,
        "camera": "Apple iPhone 12 mini",
        "latitude": 52.52,
        "longitude": 13.405,
    }
    assert read_exif(io.BytesIO(check_image(heic("heic_turned.heic")).data), place=True) == found
    raw = {"taken": datetime(2022, 7, 8, 9, 10, 11), "year": 2022, "camera": "Apple iPhone 13 Pro"}
    assert read_exif(io.BytesIO(dng()), place=False) == raw
    assert read_exif(io.BytesIO(check_image(dng(orientation=6)).data), place=False) == raw


def raf(data):
    """A Fujifilm photo as far as its EXIF data go: a header that says where its preview is."""
    return b"FUJIFILMCCD-RAW ".ljust(84, b"\0") + struct.pack(">II", 100, len(data)) + bytes(8) + data


@pytest.mark.parametrize("mark", [b"IIRO", b"IIU\0", b"FUJI"])
def test_exif_data_are_read_behind_the_marks_of_makers(mark):
    exif = Image.Exif()
    exif.update({0x010F: "Apple", 0x0110: "iPhone 13 Pro"})
    exif[0x8769] = {0x9003: "2022:07:08 09:10:11"}
    data = raf(encoded("JPEG", exif=exif.tobytes())) if mark == b"FUJI" else mark + dng()[4:]
    assert read_exif(io.BytesIO(data), place=False)["taken"] == datetime(2022, 7, 8, 9, 10, 11)
    assert formats.recognize(data) is formats.RAW


def box(kind, *content):
    body = b"".join(content)
    return (8 + len(body)).to_bytes(4, "big") + kind + body


def cr3():
    """A Canon photo as far as its EXIF data go: a directory for the camera, one for the photo, one for the place."""

    def directory(tags):
        exif = Image.Exif()
        exif.update(tags)
        return exif.tobytes().removeprefix(b"Exif\0\0")

    boxes = [
        box(b"CMT1", directory({0x010F: "Canon", 0x0110: "Canon EOS R6"})),
        box(b"CMT2", directory({0x9003: "2022:07:08 09:10:11"})),
        box(b"CMT4", directory({1: "S", 2: (22.0, 54.0, 0.0), 3: "W", 4: (43.0, 12.0, 0.0)})),
    ]
    return box(b"ftyp", b"crx ", bytes(4), b"crx isom") + box(b"moov", box(b"uuid", bytes(16), *boxes))


def test_exif_data_of_a_canon_photo_are_read_from_its_boxes():
    assert formats.recognize(cr3()) is formats.RAW
    assert read_exif(io.BytesIO(cr3()), place=True) == {
        "taken": datetime(2022, 7, 8, 9, 10, 11),
        "year": 2022,
        "camera": "Canon EOS R6",
        "latitude": -22.9,
        "longitude": -43.2,
    }
    nothing = box(b"ftyp", b"crx ", bytes(4), b"crx isom")
    assert set(read_exif(io.BytesIO(nothing), place=False).values()) == {None}


MISSING = {
    "pi_heif": (heic(), "heif", "the package pi-heif is not installed"),
    "rawpy": (dng(), "raw", "the package rawpy is not installed"),
}


@pytest.mark.parametrize("package", MISSING)
def test_a_missing_package_is_named_and_only_needed_for_its_format(package, monkeypatch):
    data, kind, message = MISSING[package]
    import_module = builtins.__import__

    def refuse(name, *args, **options):
        if name == package:
            raise ImportError(name)
        return import_module(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    for read in (decode_image, check_image, for_browser, lambda data: thumbnail(data, 32)):
        with pytest.raises(ImageError, match=message) as refused:
            read(data)
        assert refused.value.kind == kind
    if package == "pi_heif":
        assert read_exif(io.BytesIO(data), place=False) == {"taken": None, "year": None, "camera": None}
    assert_halves(decode_image(UPRIGHT["avif"]))


def test_an_avif_that_this_pillow_does_not_read_is_named(monkeypatch):
    monkeypatch.setattr("PIL.features.check", lambda name: name != "avif")
    for read in (decode_image, check_image, for_browser, lambda data: thumbnail(data, 32)):
        with pytest.raises(ImageError, match="an AVIF image, which this version of Pillow does not read") as refused:
            read(UPRIGHT["avif"])
        assert refused.value.kind == "avif"


def in_three_scans(data):
    """The start of a JPEG whose first scan has one of its three colors: libjpeg would keep all pixels in memory."""
    return data.replace(b"\xff\xda\0\x0c\x03\1\0\2\x11\3\x11", b"\xff\xda\0\x08\x01\1\0")


LEFT_OUT = {
    "video": [
        ("a.mov", box(b"ftyp", b"qt  ", bytes(4), b"qt  ") + box(b"mdat")),
        ("a.mp4", box(b"ftyp", b"isom", bytes(4), b"isomavc1")),
        ("a.MOV", box(b"moov", bytes(40))),
        ("a.avi", b"RIFF\0\0\0\0AVI LIST"),
        ("a.mkv", b"\x1aE\xdf\xa3" + bytes(40)),
        ("a.mts", (b"G" + bytes(187)) * 4),
        ("named as an image.jpg", box(b"ftyp", b"mp42", bytes(4), b"isom")),
    ],
    "not-image": [
        ("a.txt", b"a text"),
        ("Thumbs.db", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"),
        ("a.pdf", b"%PDF-1.7"),
        ("a.aae", b'<?xml version="1.0"?><plist></plist>'),
        ("a.m4a", box(b"ftyp", b"M4A ", bytes(4), b"M4A mp42")),
        ("empty", b""),
        ("BMW.txt", b"BMW is a maker of cars"),
        ("P1.txt", b"P1 is a text"),
    ],
    "other-format": [
        ("a.svg", b"<?xml version='1.0'?>\n<svg xmlns='http://www.w3.org/2000/svg'></svg>"),
        ("a.jxl", b"\xff\x0a" + bytes(40)),
        ("a.jxl", b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(40)),
        ("a.psd", b"8BPS\0\1" + bytes(40)),
        ("a.jp2", b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(40)),
        ("a.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n"),
    ],
    "damaged": [
        ("a.jpg", encoded("JPEG")[:300]),
        ("a.png", encoded("PNG")[:300]),
        ("a.png", encoded("PNG")[:20]),
        ("a.heic", heic()[:600]),
        ("a.avif", encoded("AVIF")[:-400]),
        ("a.dng", dng()[:600]),
        ("zeros.jpg", bytes(300)),
        ("empty.heic", b""),
    ],
    "no-preview": [("a.dng", dng(preview=b""))],
    "too-large": [
        ("a.ppm", b"P6 20000 20000 255\n"),
        ("a.jpg", jpeg_of_size(60_000, 60_000)),
        ("a.jpg", jpeg_of_size(20_000, 20_000, encoded("JPEG", progressive=True))),
        ("a.jpg", in_three_scans(jpeg_of_size(20_000, 20_000))),
    ],
}
CASES = [(kind, name, data) for kind, files in LEFT_OUT.items() for name, data in files]


@pytest.mark.parametrize(("kind", "name", "data"), CASES, ids=[f"{kind} {name}" for kind, name, _ in CASES])
def test_a_file_that_is_left_out_has_a_kind(kind, name, data):
    for read in (decode_image, check_image, lambda data: thumbnail(data, 32)):
        with pytest.raises(ImageError) as refused:
            read(data)
        assert kind_of(refused.value, Path(name)) == kind


def test_the_video_of_a_live_photo_is_told_by_the_picture_beside_it(tmp_path):
    (tmp_path / "IMG_1.HEIC").write_bytes(heic())
    (tmp_path / "IMG_3.jpg").write_bytes(LEFT_OUT["video"][0][1])  # no photo of its own
    for name, kind in (("IMG_1.MOV", "live-video"), ("IMG_2.MOV", "video"), ("IMG_3.jpg", "video")):
        with pytest.raises(ImageError) as refused:
            decode_image(LEFT_OUT["video"][0][1])
        assert kind_of(refused.value, tmp_path / name) == kind


def test_a_video_is_told_by_its_first_bytes_and_not_read_to_its_end(tmp_path):
    # Of any size: one that is too large for an image is a video all the same.
    path = tmp_path / "large.mov"
    path.write_bytes(LEFT_OUT["video"][0][1])
    os.truncate(path, archives.MAX_FILE_BYTES + 1)
    for size in (archives.MAX_FILE_BYTES + 1, 10_000_000):
        os.truncate(path, size)
        tracemalloc.start()
        with pytest.raises(RowError, match="it is a video") as refused:
            FolderImageFile(tmp_path, "large.mov").read()
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
        tracemalloc.stop()
        assert refused.value.kind == "video"


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_large_images_are_decoded_one_at_a_time_also_after_a_fork(monkeypatch):
    monkeypatch.setattr(opened, "LARGE_PIXELS", 2000)
    with opened._one_large:
        # A JPEG of one scan takes little memory, so it does not wait.
        assert decode_image(encoded("JPEG")).size == (48, 32)
        if (child := os.fork()) == 0:
            signal.alarm(5)  # ends a child that waits
            try:
                width = decode_image(encoded("PNG")).width
            finally:
                os._exit(width)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 48


def test_a_summary_has_one_line_for_each_kind_with_the_next_step():
    counts = images.count_kinds(["damaged", "heif", *["video"] * 1200, "heif"])
    assert list(counts.items()) == [("heif", 2), ("video", 1200), ("damaged", 1)]
    assert images.left_out_lines(counts) == [
        "left out: 2 HEIC photos: `pip install 'pi-heif>=1.0'` reads HEIC",
        "left out: 1,200 videos: save frames as images",
        "left out: 1 damaged image: copy again from the camera or a backup",
    ]


def large_jpeg(width, height):
    return encoded("JPEG", Image.new("L", (width, height), 200))


def test_a_large_jpeg_is_decoded_at_a_fraction_of_its_size(monkeypatch):
    data = large_jpeg(10_000, 4_000)
    loaded, load = [], ImageFile.ImageFile.load
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: (loaded.append(image.size), load(image))[1])
    assert decode_image(data).size == (5_000, 2_000)
    assert set(loaded) == {(5_000, 2_000)}
    checked = check_image(data)
    assert (checked.width, checked.height, checked.data is data) == (10_000, 4_000, True)
    # Gray at its end too, where a second look tells whether it is complete.
    assert decode_image(encoded("JPEG", Image.new("L", (20_000, 10_000), 128))).size == (5_000, 2_500)
    with pytest.raises(ImageError, match="the limit is 39,999,999"):
        decode_image(data, max_pixels=39_999_999)


def test_tables_between_the_frame_and_the_scan_of_a_jpeg_are_no_frame(monkeypatch):
    """A JPEG of one scan may have more pixels than others, because it is decoded row by row."""
    monkeypatch.setattr(opened, "MAX_PIXELS", 40 * 30 - 1)
    data = large_jpeg(40, 30)
    assert decode_image(data).size == (40, 30)
    frame = data.index(b"\xff\xc0")
    scan = data.index(b"\xff\xda")
    assert frame < scan
    for marker in (0xC4, 0xC8, 0xCC):  # Huffman tables, reserved, and those of arithmetic coding
        table = bytes([0xFF, marker, 0, 12]) + bytes(10)
        found = opened._find_scan(data[:scan] + table + data[scan:])
        assert (found.frame, found.has_all_colors) == (0xC0, True)
        assert data[found.start - len(table) :] == data[opened._find_scan(data).start :]
    for marker in {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}:
        found = opened._find_scan(data[:frame] + bytes([0xFF, marker]) + data[frame + 2 :])
        assert (found.frame, found.has_all_colors) == (marker, True)


def test_every_large_image_is_halved_until_it_has_fewer_pixels(monkeypatch):
    monkeypatch.setattr(opened, "LARGE_PIXELS", 96 * 64 // 4)
    for data in (encoded("PNG", HALVES), encoded("JPEG", HALVES), *UPRIGHT.values()):
        found = decode_image(data)
        assert found.size == (48, 32)
        assert np.abs(np.subtract(found.getpixel((5, 15)), (255, 0, 0))).max() < 20


@pytest.mark.parametrize("form", ["AVIF", "HEIF"])
def test_an_image_in_boxes_that_is_larger_than_the_limit_is_refused_undecoded(form, monkeypatch):
    data = UPRIGHT["avif" if form == "AVIF" else "heic"]
    monkeypatch.setattr(opened, "MAX_PIXELS", 96 * 64 - 1)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("it was decoded"))
    with pytest.raises(ImageError, match="decompression bomb") as refused:
        decode_image(data)
    assert refused.value.kind == "too-large"


@pytest.mark.parametrize(
    ("tag", "value", "is_raw"),
    [
        (262, 2, False),  # RGB
        (262, 32803, True),  # a color filter array
        (262, 34892, True),  # a sensor without one
        *((259, number, False) for number in (1, 5, 7, 32773, 32769)),  # none, LZW, JPEG, PackBits
        *((259, number, True) for number in (262, 32767, 32770, 34713, 65000, 65535)),  # of makers of cameras
    ],
)
def test_a_tiff_with_data_of_a_sensor_is_a_raw_photo(tag, value, is_raw):
    data = b"II*\0" + struct.pack("<IHHHIHH", 8, 1, tag, 3, 1, value, 0)
    assert formats.recognize(data) is (formats.RAW if is_raw else formats.TIFF)


@pytest.mark.parametrize("order", "<>")
def test_what_follows_a_directory_of_a_tiff_is_none_of_its_tags(order):
    def tiff(num_tags):
        width, dng_version = (struct.pack(f"{order}HHII", tag, 4, 1, 8) for tag in (256, 0xC612))
        header = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, num_tags)
        return header + 12 * width + dng_version

    assert [formats.recognize(tiff(count)) for count in (12, 13)] == [formats.TIFF, formats.RAW]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.jpg", None),
        ("sub/IMG_1.HEIC", None),
        ("IMG_1.NEF", None),
        ("scan.PSD", "other-format"),
        ("a.svg", "other-format"),
        ("IMG_1.MOV", "live-video"),
        ("sub/IMG_1.mp4", "live-video"),
        ("IMG_2.MOV", "video"),
        ("film.MKV", "video"),
        ("a.md", "not-image"),
        ("jpg", None),
        ("noending", "not-image"),
    ],
)
def test_the_name_of_a_file_tells_its_kind(name, kind):
    names = {"a.jpg", "IMG_1.JPG", "sub/IMG_1.heic", "IMG_2.png", name}
    assert formats.kind_of_name(name, names) == kind


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_a_browser_gets_the_file_itself_of_what_it_shows(form):
    data = encoded(form)
    assert for_browser(data) == (data, f"image/{form.lower()}")


def test_a_tiff_with_more_directories_is_no_raw_photo():
    pages = [Image.new("RGB", (8, 6), color) for color in ("red", "blue")]
    data = encoded("TIFF", pages[0], save_all=True, append_images=pages[1:])
    assert formats.recognize(data) is formats.TIFF
    assert decode_image(data).getpixel((0, 0)) == (255, 0, 0)


def test_pillow_s_list_of_formats_stays_as_it_is():
    before = dict(Image.OPEN)
    decode_image(heic())
    assert before == Image.OPEN


def test_colors_of_the_fixtures_are_told_apart():
    assert len({decode_image(heic(name)).getpixel((5, 30))[0] // 50 for name in COLORS}) == 2


def test_an_image_longer_than_a_jpeg_may_be_is_shrunk_for_a_browser():
    shown, media_type = for_browser(encoded("TIFF", Image.new("L", (70_000, 20), 90), compression="tiff_lzw"))
    assert media_type == "image/jpeg"
    assert decode_image(shown).size == (65_500, 19)


READERS = {
    "decode": decode_image,
    "check": check_image,
    "thumbnail": lambda data: thumbnail(data, 32),
    "browser": for_browser,
    "exif": lambda data: read_exif(io.BytesIO(data), place=True),
}


def answers(data):
    """How many readers read a file; AssertionError for another error than ImageError."""
    num_read = 0
    for read in READERS.values():
        try:
            read(data)
            num_read += 1
        except ImageError:
            pass
    return num_read


@pytest.mark.parametrize("form", ["avif", "heic", "heic on its side", "heic in tiles", "dng"])
def test_damaged_files_of_phones_are_an_error_and_nothing_worse(form):
    data, rng = UPRIGHT[form], random.Random(0)
    for _ in range(60):
        damaged = bytearray(data)
        for _ in range(rng.choice([1, 2, 5, 20])):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        answers(bytes(damaged))
    for keep in range(0, len(data) - 4, len(data) // 40):
        # EXIF data are missing at worst, and a browser shows what is left of an AVIF.
        assert answers(data[:keep]) <= (2 if form == "avif" else 1)


@pytest.mark.parametrize("size", [(60_000, 60_000), (2**32 - 1, 1), (11_000, 11_000), (97, 64), (0, 0)])
@pytest.mark.parametrize("form", ["heic", "heic on its side"])
def test_a_heif_header_that_lies_about_the_size_is_refused(form, size):
    data = bytearray(UPRIGHT[form])
    at = data.index(b"ispe") + 8
    data[at : at + 8] = struct.pack(">II", *size)
    with pytest.raises(ImageError):
        decode_image(bytes(data))


def test_a_photo_with_damaged_exif_data_becomes_a_jpeg_without_them():
    tag = struct.pack(">HH", 0x0110, 2)
    data = UPRIGHT["heic"].replace(tag, struct.pack(">HH", 0x0110, 11))
    assert data != UPRIGHT["heic"]
    with Image.open(io.BytesIO(check_image(data).data)) as image:
        assert dict(image.getexif()) == {}


@pytest.mark.parametrize("letter", range(4))
def test_a_heif_item_whose_type_is_no_text_is_refused(letter):
    # pi-heif 1.4 ends the process.
    data = bytearray(UPRIGHT["heic"])
    data[data.index(b"Exif") + letter] = 0x8F
    with pytest.raises(ImageError, match="the types of its items are no text"):
        decode_image(bytes(data))


def test_the_items_of_a_heif_file_are_found_in_boxes_of_every_length():
    data = bytearray(UPRIGHT["heic"])
    data[data.index(b"Exif")] = 0x8F
    at = data.index(b"meta") - 4
    size = int.from_bytes(data[at : at + 4], "big")
    body = bytes(data[at + 8 : at + size])
    to_the_end = struct.pack(">I", 0) + b"meta" + body
    large = struct.pack(">I", 1) + b"meta" + struct.pack(">Q", 16 + len(body)) + body
    for box_ in (to_the_end, large):
        assert formats.damage_of_boxes(bytes(data[:at]) + box_) == "the types of its items are no text"
    # Data behind the last box, as in motion photos, are no damage.
    assert formats.damage_of_boxes(UPRIGHT["heic"] + b"more than one byte, which is no box") == ""


def test_images_in_boxes_are_no_videos():
    assert [formats.is_video(box(b"ftyp", brand, bytes(4))) for brand in (b"heic", b"avif", b"M4A ", b"qt  ")] == [
        *(False, False, False),
        True,
    ]


def test_a_kind_that_lacked_a_package_is_read_once_the_package_is_there(monkeypatch):
    kinds = [formats.NO_HEIF.kind, formats.NO_RAW.kind]
    installed = {"pi_heif": True, "rawpy": False}
    monkeypatch.setattr(formats.importlib.util, "find_spec", lambda name: object() if installed[name] else None)
    assert [formats.is_read_now(kind) for kind in kinds] == [True, False]
    assert not formats.is_read_now(formats.DAMAGED.kind)


@pytest.mark.parametrize(("version", "number"), [(2, b"\xff\x80"), (3, b"\0\0\xff\x80")])
def test_the_type_of_a_heif_item_follows_a_number_of_two_or_of_four_bytes(version, number):
    """And two more, of its protection. Neither needs to be text."""

    def file(kind: bytes) -> bytes:
        entry = b"infe" + bytes([version, 0, 0, 0]) + number + b"\xff\x80" + kind + b"\0"
        meta = b"meta" + bytes(4) + struct.pack(">I", 4 + len(entry)) + entry
        return struct.pack(">I", 4 + len(meta)) + meta

    assert formats.damage_of_boxes(file(b"hvc1")) == ""
    for place in range(4):
        kind = bytearray(b"hvc1")
        kind[place] = 0x8F
        assert formats.damage_of_boxes(file(bytes(kind))) == "the types of its items are no text"
