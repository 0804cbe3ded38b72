"""Image files that promise more than they hold are refused by name, before memory is allocated for what they
promise."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hostile_images import LARGER, NOISE, OF_SIZE, UNNOTICED, encoded, interlaced_png
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from dcdctl.core.data import ImageError, decode_image, images
from dcdctl.core.data.images import check_image

READERS = {
    "check": check_image,
    "check and shrink": lambda data: check_image(data, 32),
    "decode": decode_image,
    "thumbnail": lambda data: images.thumbnail(data, 32),
}
TRUNCATED = "the image is truncated or damaged"
HOSTILE = [(form, size) for form in OF_SIZE for size in LARGER if (form, size) not in UNNOTICED]


@pytest.mark.parametrize(
    ("form", "size"), HOSTILE, ids=lambda value: value if isinstance(value, str) else "x".join(map(str, value))
)
def test_data_smaller_than_the_header_says_are_an_error(form, size):
    data = OF_SIZE[form](*size)
    for read in READERS.values():
        with pytest.raises(ImageError, match=TRUNCATED):
            read(data)


@pytest.mark.parametrize("form", OF_SIZE)
def test_a_header_of_60_000_squared_is_refused_before_memory_is_allocated(form):
    data = OF_SIZE[form](60000, 60000)
    tracemalloc.start()
    try:
        for read in READERS.values():
            with pytest.raises(
                ImageError,
                match=r"too many pixels, it may be a decompression bomb|not an image file|truncated or damaged",
            ):
                read(data)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_a_jpeg_of_few_bytes_is_refused_before_it_is_decoded(monkeypatch):
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("it was decoded"))
    for form in ("jpeg", "progressive jpeg"):
        with pytest.raises(ImageError, match="its data ends before the last pixels of its header"):
            decode_image(OF_SIZE[form](8000, 8000))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_every_truncation_is_an_error_even_if_another_library_allows_it(form, monkeypatch):
    data = encoded(form)
    for keep in range(0, len(data) - 20, len(data) // 40):  # a PNG without its end marker has all its pixels
        for read in READERS.values():
            monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
            with pytest.raises(ImageError):
                read(data[:keep])


FLAT = st.sampled_from([0, 127, 128, 129, 255])
SIDES = st.integers(1, 70)


@settings(max_examples=60, deadline=None)
@given(
    color=FLAT,
    width=SIDES,
    height=SIDES,
    mode=st.sampled_from(["L", "RGB", "CMYK"]),
    options=st.sampled_from(
        [
            {"quality": 5},
            {"quality": 95, "subsampling": 2},
            {"optimize": True},
            {"progressive": True},
            {"restart_marker_rows": 1},
            {"restart_marker_blocks": 3},
            {"subsampling": 1},
        ]
    ),
)
def test_complete_jpegs_of_one_color_are_accepted(color, width, height, mode, options):
    image = Image.new(mode, (width, height), color if mode == "L" else (color,) * len(mode))
    for read in READERS.values():
        read(encoded("JPEG", image, **options))


@settings(max_examples=60, deadline=None)
@given(
    color=FLAT,
    width=SIDES,
    height=SIDES,
    form=st.sampled_from(["PNG", "TIFF"]),
    mode=st.sampled_from(["1", "L", "P", "RGB", "RGBA", "LA"]),
)
def test_complete_images_of_one_color_are_accepted(color, width, height, form, mode):
    image = Image.new("L", (width, height), color).convert(mode)
    for read in READERS.values():
        read(encoded(form, image))


@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (8, 8), (13, 29)])
def test_an_interlaced_png_whose_last_row_is_black_is_accepted(shape):
    assert decode_image(interlaced_png(np.zeros(shape, np.uint8))).size == shape[::-1]


def test_a_gray_corner_is_no_reason_to_refuse_a_photo():
    photo = NOISE.copy()
    photo.paste((128, 128, 128), (64, 32, 96, 64))
    for data in (encoded("JPEG", photo), encoded("JPEG", photo) + b"junk after the end", encoded("MPO", photo)):
        assert decode_image(data).getpixel((95, 63)) == (128, 128, 128)
