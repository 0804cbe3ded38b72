"""Image files of every kind: decoded to the pixels a person would see, or refused with the reason, by `check` and
`decode` alike."""

from __future__ import annotations

import io
import random
import struct
import sys
import zlib

import numpy as np
import processes
import pytest
from PIL import Image
from PIL.ExifTags import Base
from typer.testing import CliRunner

from dcdctl.cli.app import app
from dcdctl.core.data import Corpus, ImageError, decode_image, difference_hash, images
from dcdctl.core.data.images import check_image

CELL = 8
COLORS = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
"""4 x 6 cells of one color each: whole blocks of a JPEG, so that even a JPEG keeps them."""
UPRIGHT = np.kron(COLORS, np.ones((CELL, CELL, 1), np.uint8))
"""48 pixels wide, 32 high."""
GRAY_RAMP = np.tile(np.linspace(0, 65535, 48).astype(np.uint16), (32, 1))


def image_file(pixels, form="PNG", **options):
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def assert_shows(data, expected_YXC, *, within=0):
    """`decode_image` gives these pixels in RGB; `check_image` gives the same size and nearly the same hash."""
    image, checked = decode_image(data), check_image(data)
    assert (image.mode, image.size) == ("RGB", (expected_YXC.shape[1], expected_YXC.shape[0]))
    assert np.abs(np.asarray(image).astype(int) - expected_YXC).max() <= within
    assert (checked.width, checked.height, checked.data) == (*image.size, data)
    assert (checked.hash ^ difference_hash(image)).bit_count() <= 2
    shrunk = check_image(data, 16)
    assert decode_image(shrunk.data).size == (shrunk.width, shrunk.height) == (24, 16)


def assert_rejected(data, message):
    for read in (check_image, decode_image, lambda data: check_image(data, 4)):
        with pytest.raises(ImageError, match=message):
            read(data)


# EXIF: how the pixels are stored for each orientation, by the words of its specification: where row 0 and column 0 are
# in the scene.

STORED = {
    1: UPRIGHT,  # top, left
    2: UPRIGHT[:, ::-1],  # top, right
    3: UPRIGHT[::-1, ::-1],  # bottom, right
    4: UPRIGHT[::-1],  # bottom, left
    5: UPRIGHT.transpose(1, 0, 2),  # left, top
    6: UPRIGHT[:, ::-1].transpose(1, 0, 2),  # right, top
    7: UPRIGHT[::-1, ::-1].transpose(1, 0, 2),  # right, bottom
    8: UPRIGHT[::-1].transpose(1, 0, 2),  # left, bottom
}
EXACT = {
    "JPEG": {"quality": 95, "subsampling": 0},
    "MPO": {"quality": 95, "subsampling": 0},
    "WEBP": {"lossless": True},
}


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "MPO"])
@pytest.mark.parametrize("orientation", STORED)
def test_exif_orientation_is_undone(form, orientation):
    exif = Image.Exif()
    exif[Base.Orientation] = orientation
    data = image_file(np.ascontiguousarray(STORED[orientation]), form, exif=exif, **EXACT.get(form, {}))
    assert_shows(data, UPRIGHT, within=3)


@pytest.mark.parametrize("orientation", STORED)
def test_a_thumbnail_is_upright(orientation):
    exif = Image.Exif()
    exif[Base.Orientation] = orientation
    data = image_file(np.ascontiguousarray(STORED[orientation]), "PNG", exif=exif)
    small = np.asarray(Image.open(io.BytesIO(images.thumbnail(data, max(UPRIGHT.shape)))))
    assert small.shape == UPRIGHT.shape
    assert np.abs(small.astype(int) - UPRIGHT).mean() < 20  # a JPEG; turned otherwise, it is off by far more


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_there_is_not_is_upright(orientation):
    exif = Image.Exif()
    exif[Base.Orientation] = orientation
    assert_shows(image_file(UPRIGHT, exif=exif), UPRIGHT)


def test_a_damaged_exif_block_is_no_reason_to_refuse():
    data = image_file(UPRIGHT, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xffrubbish", **EXACT["JPEG"])
    assert_shows(data, UPRIGHT, within=3)


def with_alpha():
    """The upright colors, every other cell fully transparent."""
    alpha = np.kron(np.indices((4, 6)).sum(axis=0) % 2 * 255, np.ones((CELL, CELL))).astype(np.uint8)
    return np.dstack([UPRIGHT, alpha])


def palette():
    image = Image.new("P", (48, 32))
    image.putpalette(COLORS.tobytes())
    image.putdata(np.kron(np.arange(24).reshape(4, 6), np.ones((CELL, CELL))).astype(int).ravel().tolist())
    return image


LIGHT = np.kron(np.indices((4, 6)).sum(axis=0) % 2 * 255, np.ones((CELL, CELL)))
IN_GRAY = np.dstack([np.kron(COLORS[..., 0], np.ones((CELL, CELL), np.uint8))] * 3)
OTHERS = [Image.fromarray(255 - UPRIGHT)]

PIXELS = {
    "an interlaced gif": (image_file(palette(), "GIF", interlace=1), UPRIGHT),
    "bmp": (image_file(UPRIGHT, "BMP"), UPRIGHT),
    "ppm": (image_file(UPRIGHT, "PPM"), UPRIGHT),
    "tiff with lzw": (image_file(UPRIGHT, "TIFF", compression="tiff_lzw"), UPRIGHT),
    "gray": (image_file(IN_GRAY[..., 0]), IN_GRAY),
    "rgb with transparency": (image_file(with_alpha()), UPRIGHT),
    "rgb with one transparent color": (image_file(UPRIGHT, transparency=tuple(COLORS[0, 0].tolist())), UPRIGHT),
    "a palette": (image_file(palette()), UPRIGHT),
    "a palette with one transparent color": (image_file(palette(), transparency=3), UPRIGHT),
    "a palette with an alpha for each color": (image_file(palette(), transparency=bytes(range(24))), UPRIGHT),
    "one bit": (image_file(Image.fromarray(LIGHT > 0)), np.dstack([LIGHT] * 3)),
    "a gif that moves": (image_file(palette(), "GIF", save_all=True, append_images=OTHERS), UPRIGHT),
    "a png that moves": (image_file(UPRIGHT, save_all=True, append_images=OTHERS), UPRIGHT),
    "a color profile that is none": (image_file(UPRIGHT, icc_profile=b"nonsense"), UPRIGHT),
}


@pytest.mark.parametrize("case", PIXELS)
def test_a_lossless_file_is_decoded_to_the_pixel(case):
    assert_shows(*PIXELS[case])


JPEGS = {
    "progressive": image_file(UPRIGHT, "JPEG", progressive=True, **EXACT["JPEG"]),
    "with restart markers": image_file(UPRIGHT, "JPEG", restart_marker_blocks=2, **EXACT["JPEG"]),
    "in RGB": image_file(UPRIGHT, "JPEG", keep_rgb=True, quality=95),
    "of two images": image_file(UPRIGHT, "MPO", save_all=True, append_images=OTHERS, **EXACT["JPEG"]),
    "with a color profile of half a megabyte": image_file(
        UPRIGHT, "JPEG", icc_profile=b"nonsense" * 65_000, **EXACT["JPEG"]
    ),
    "with bytes behind its end": image_file(UPRIGHT, "JPEG", **EXACT["JPEG"]) + b"\0" * 99,
}


@pytest.mark.parametrize("case", JPEGS)
def test_a_jpeg_is_decoded_nearly_to_the_pixel(case):
    assert_shows(JPEGS[case], UPRIGHT, within=3)


@pytest.mark.parametrize("form", ["JPEG", "TIFF"])
def test_cmyk_red_is_red(form):
    inks = np.zeros((32, 48, 4), np.uint8)
    inks[..., 1:3] = 255  # magenta and yellow
    inks[:, 24:] = (0, 0, 0, 255)  # the right half is black
    expected = np.zeros((32, 48, 3), int)
    expected[:, :24] = (255, 0, 0)
    image = Image.frombytes("CMYK", (48, 32), inks.tobytes())
    data = image_file(image, form, quality=100)
    # Adobe stores the inks of a JPEG upside down, and so does Pillow; the marker says that it is of that kind.
    assert (b"Adobe" in data) == (form == "JPEG")
    assert_shows(data, expected, within=2)


def big_endian_tiff(pixels_YX):
    """16-bit gray as Photoshop writes it: Motorola byte order, one strip, uncompressed."""
    height, width = pixels_YX.shape
    entries = [(256, 3, width), (257, 3, height), (258, 3, 16), (259, 3, 1), (262, 3, 1), (277, 3, 1), (278, 3, height)]
    body = pixels_YX.astype(">u2").tobytes()
    fields = b"".join(struct.pack(">HHIHH", tag, kind, 1, value, 0) for tag, kind, value in entries)
    fields += struct.pack(">HHII", 273, 4, 1, 8) + struct.pack(">HHII", 279, 4, 1, len(body))
    return (
        b"MM\0*" + struct.pack(">I", 8 + len(body)) + body + struct.pack(">H", len(entries) + 2) + fields + b"\0\0\0\0"
    )


SIXTEEN_BITS = {
    "png": image_file(GRAY_RAMP),
    "tiff": image_file(GRAY_RAMP, "TIFF"),
    "big-endian tiff": big_endian_tiff(GRAY_RAMP),
    "pgm": b"P5 48 32 65535\n" + GRAY_RAMP.astype(">u2").tobytes(),
}


@pytest.mark.parametrize("form", SIXTEEN_BITS)
def test_a_ramp_of_16_bits_stays_a_ramp(form):
    assert_shows(SIXTEEN_BITS[form], np.dstack([GRAY_RAMP >> 8] * 3))


@pytest.mark.parametrize(("dtype", "kind"), [(np.float32, "floating-point"), (np.int32, "32-bit")])
def test_pixels_of_which_white_is_not_known_are_refused(dtype, kind):
    assert_rejected(
        image_file((GRAY_RAMP / 65535).astype(dtype), "TIFF"), f"its pixels are {kind} numbers without a known white"
    )


@pytest.mark.parametrize("side", [(1, 1), (1, 9000), (10_000, 3), (10_000, 700)])
@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_odd_sizes_are_taken(form, side):
    data = image_file(Image.new("RGB", side, "red"), form)
    checked = check_image(data)
    assert (checked.width, checked.height) == decode_image(data).size == side
    assert checked.hash == 0


# Rejected files


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


PNG = image_file(UPRIGHT)
JPEG = image_file(UPRIGHT, "JPEG", quality=95)
FRAME = JPEG.index(b"\xff\xc0") + 5
UNPACKS_TO_MUCH = zlib.compress(bytes(80 << 20), 9)
NOT_READ = r"not an image file of a supported format \(JPEG, PNG, WEBP, GIF, BMP, TIFF, PPM, AVIF, HEIF, RAW\)"


def png_of_size(width, height):
    return PNG[:8] + chunk(b"IHDR", struct.pack(">II", width, height) + PNG[24:29]) + PNG[33:]


REJECTED = {
    "nothing": (b"", r"the image file is empty \(0 bytes\)"),
    "a web page": (b"\n<!DOCTYPE html><html><h1>404", NOT_READ),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", NOT_READ),
    "heic without its boxes": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "the image is truncated or damaged"),
    "a tga, which has no sign to know it by": (image_file(UPRIGHT, "TGA"), NOT_READ),
    "a png of no pixels": (png_of_size(0, 0), NOT_READ),
    "a png that says it is 60,000 pixels wide and high": (
        png_of_size(60_000, 60_000),
        r"too many pixels, it may be a decompression bomb \(the limit is 134,217,728\)",
    ),
    "a png of 144 million": (png_of_size(12_000, 12_000), r"decompression bomb \(the limit"),
    "a png with far less in it than it says": (png_of_size(9_000, 9_000), "the image is truncated or damaged"),
    "a jpeg that says it is 65,000 pixels wide and high": (
        JPEG[:FRAME] + struct.pack(">HH", 65_000, 65_000) + JPEG[FRAME + 4 :],
        r"decompression bomb \(the limit",
    ),
    "a text that unpacks to 80 MB": (
        PNG[:33] + chunk(b"zTXt", b"k\0\0" + UNPACKS_TO_MUCH) + PNG[33:],
        "the image is truncated or damaged",
    ),
    "a color profile that does": (
        PNG[:33] + chunk(b"iCCP", b"k\0\0" + UNPACKS_TO_MUCH) + PNG[33:],
        "the image is truncated or damaged",
    ),
    "a png with a flipped bit": (PNG[:60] + bytes([PNG[60] ^ 1]) + PNG[61:], "the image is truncated or damaged"),
}


@pytest.mark.parametrize("case", REJECTED)
def test_a_file_that_is_not_an_image_is_rejected_with_the_reason(case):
    assert_rejected(*REJECTED[case])


def test_the_file_extension_is_ignored(tmp_path):
    (tmp_path / "a.png").write_bytes(JPEG)
    (tmp_path / "b.jpg").write_bytes(PNG)
    (tmp_path / "pairs.csv").write_text("image,caption\na.png,x\nb.jpg,y\n")
    assert run_cli("--csv", tmp_path / "pairs.csv", "--images", tmp_path, "--out", tmp_path / "out").exit_code == 0
    assert Corpus.open(tmp_path / "out", "train").image_bytes(0) == JPEG


WHOLE = {
    "jpeg": image_file(UPRIGHT, "JPEG"),
    "progressive jpeg": image_file(UPRIGHT, "JPEG", progressive=True),
    "cmyk jpeg": image_file(Image.fromarray(UPRIGHT).convert("CMYK"), "JPEG"),
    "png": PNG,
    "16-bit png": SIXTEEN_BITS["png"],
    "webp": image_file(UPRIGHT, "WEBP"),
    "gif": PIXELS["a gif that moves"][0],
    "bmp": image_file(UPRIGHT, "BMP"),
    "tiff": image_file(UPRIGHT, "TIFF"),
}


def is_taken(read, data):
    try:
        read(data)
    except ImageError:
        return False
    return True


@pytest.mark.parametrize("form", WHOLE)
def test_check_takes_exactly_what_decode_can_read(form):
    rng = random.Random(form)
    taken = set()
    for _ in range(150):
        data = bytearray(WHOLE[form])
        for _ in range(rng.randrange(1, 5)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        if rng.random() < 0.3:
            del data[rng.randrange(len(data)) :]
        readings = {
            is_taken(read, bytes(data)) for read in (check_image, decode_image, lambda data: check_image(data, 16))
        }
        assert len(readings) == 1
        taken |= readings
    assert taken == {True, False}


def test_postscript_starts_no_program(tmp_path):
    script = tmp_path / "gs"
    script.write_text(f"#!/bin/sh\ntouch {tmp_path / 'started'}\n")
    script.chmod(0o755)
    (tmp_path / "a.jpg").write_bytes(REJECTED["postscript"][0] + b"showpage\n%%EOF\n")
    code = (
        "import sys; from pathlib import Path; from dcdctl.core.data import images; "
        "images.check_image(Path(sys.argv[1]).read_bytes())"
    )
    done = processes.run(
        [sys.executable, "-c", code, tmp_path / "a.jpg"],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "ImageError" in done.stderr
    assert not (tmp_path / "started").exists()


MEASURE = """
import re, sys
from pathlib import Path
from dcdctl.core.data import images

def peak_kb():
    # Not ru_maxrss, which begins with that of the process that started this one.
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

images.check_image(Path(sys.argv[2]).read_bytes())  # what a first image imports is not counted
data = Path(sys.argv[1]).read_bytes()
before = peak_kb()
images.check_image(data)
print(peak_kb() - before)
"""


def test_an_image_may_have_as_many_pixels_as_permitted():
    data = image_file(Image.new("RGB", (6, 4)))
    assert decode_image(data, max_pixels=24).size == (6, 4)
    with pytest.raises(ImageError, match=r"too many pixels.*\(the limit is 23\)"):
        decode_image(data, max_pixels=23)


@pytest.mark.skipif(sys.platform == "darwin", reason="there is no /proc")
@pytest.mark.parametrize(
    ("mode", "form", "limit_mb"),
    [
        ("RGB", "JPEG", 20),  # read at an eighth of its size
        ("RGB", "PNG", 300),  # 56 million pixels of four bytes
        ("I;16", "PNG", 500),
    ],
)
def test_an_image_10_000_pixels_wide_fits_into_memory(tmp_path, mode, form, limit_mb):
    # Its size once decoded is what counts; stronger compression takes seconds.
    quickly = {"compress_level": 1} if form == "PNG" else {}
    (tmp_path / "wide").write_bytes(image_file(Image.new(mode, (10_000, 5_600)), form, **quickly))
    (tmp_path / "small").write_bytes(image_file(Image.new(mode, (10, 10)), form))
    done = processes.run(
        [sys.executable, "-c", MEASURE, tmp_path / "wide", tmp_path / "small"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) / 1024 < limit_mb


# The hash


def photo_like(seed):
    """A smooth image of 320 x 240 with detail at every scale."""
    rng = np.random.default_rng(seed)
    layers = [
        np.asarray(
            Image.fromarray(rng.integers(0, 256, (side * 3, side * 4, 3), dtype=np.uint8)).resize(
                (320, 240), Image.Resampling.BICUBIC
            )
        )
        for side in (1, 3, 9, 27)
    ]
    return Image.fromarray(np.average(layers, axis=0, weights=[8, 4, 2, 1]).astype(np.uint8))


def test_copies_keep_their_hash_and_others_have_another():
    hashes = []
    for seed in range(10):
        photo = photo_like(seed)
        original = check_image(image_file(photo, "JPEG", quality=95)).hash
        half = photo.resize((160, 120), Image.Resampling.BICUBIC)
        copies = [
            image_file(photo, "JPEG", quality=50),
            image_file(half, "JPEG"),
            image_file(photo),
            image_file(photo.convert("L")),
        ]
        for data in copies:
            assert (check_image(data).hash ^ original).bit_count() <= 3
            assert (check_image(data, 100).hash ^ original).bit_count() <= 3
        hashes.append(original)
    apart = [(a ^ b).bit_count() for i, a in enumerate(hashes) for b in hashes[:i]]
    assert min(apart) > 10


def test_the_hash_says_where_it_grows_brighter():
    dark_to_light = np.tile(np.linspace(0, 255, 90).astype(np.uint8), (80, 1))
    assert difference_hash(Image.fromarray(dark_to_light)) == 2**64 - 1
    assert difference_hash(Image.fromarray(dark_to_light[:, ::-1].copy())) == 0
    upper_half = np.vstack([dark_to_light[:40], dark_to_light[:40, ::-1]])
    assert difference_hash(Image.fromarray(upper_half)) == (2**32 - 1) << 32


# The command


def run_cli(*arguments):
    return CliRunner().invoke(app, ["prepare", *map(str, arguments), "--workers", "1"])
