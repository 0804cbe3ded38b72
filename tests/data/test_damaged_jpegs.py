"""The check of `prepare` decodes JPEGs at an eighth of their size: it refuses the same damaged files as a decode of all
pixels."""

from __future__ import annotations

import io
import random

import numpy as np
import pytest
from PIL import Image

from dcdctl.core.data import ImageError, decode_image
from dcdctl.core.data.images import check_image

SMALLER = "the image is truncated or damaged (its data ends before the last pixels of its header)"


def jpeg(mode: str, **options: object) -> bytes:
    """A JPEG of 136 x 104 pixels with detail."""
    pixels = np.random.default_rng(0).integers(0, 256, (13, 17, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).resize((136, 104), Image.Resampling.BICUBIC).convert(mode)
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=90, **options)
    return stream.getvalue()


def damaged(data: bytes, seed: int, count: int) -> list[bytes]:
    """Copies that are cut, have some bits flipped, or lack some bytes, at random places after the first marker."""
    rng, copies = random.Random(seed), []
    for number in range(count):
        copy, place = bytearray(data), rng.randrange(2, len(data))
        if number % 3 == 0:
            del copy[place:]
        elif number % 3 == 1:
            for _ in range(rng.randint(1, 4)):
                copy[rng.randrange(2, len(copy))] ^= 1 << rng.randrange(8)
        else:
            del copy[place : place + rng.randint(1, 40)]
        copies.append(bytes(copy))
    return copies


def refusal(decode: object, data: bytes) -> str | None:
    try:
        decode(data)
    except ImageError as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("RGB", {}),
        ("RGB", {"subsampling": 0}),
        ("RGB", {"progressive": True}),
        ("RGB", {"restart_marker_blocks": 4}),
        ("L", {}),
        ("L", {"progressive": True}),
        ("CMYK", {}),
        ("CMYK", {"progressive": True}),
    ],
)
def test_a_scaled_decode_refuses_the_same_damaged_files(mode, options):
    copies = damaged(jpeg(mode, **options), seed=len(options), count=150)
    found = [(refusal(check_image, copy), refusal(decode_image, copy)) for copy in copies]
    # The scaled copy may also show gray at the end where the last of all pixels happens to have another color: refused,
    # and rightly.
    assert all(by_check == by_decode for by_check, by_decode in found if by_decode is not None)
    assert {by_check for by_check, by_decode in found if by_decode is None} <= {None, SMALLER}
    assert 40 <= sum(by_check is not None for by_check, _ in found) < 150
