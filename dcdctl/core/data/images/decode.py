"""Image files decoded to upright RGB, checked, shrunk, and hashed; a large photo at a fraction of its size, to bound
memory. `opened` opens them."""

from __future__ import annotations

import io
import itertools
from dataclasses import dataclass

import numpy as np
from PIL import Image

from dcdctl.core.data.images.formats import HEIF, JPEG, RAW, ImageError
from dcdctl.core.data.images.opened import (
    DECODE_ERRORS,
    EXIF_ORIENTATION,
    UPRIGHT,
    Opened,
    fraction_of,
    open_image,
    orientation_of,
)

# The highest quality that Pillow recommends.
JPEG_QUALITY = 95
MAX_JPEG_SIDE = 65_500
"""The most that libjpeg writes."""
# At this size the blocks of JPEG do not show.
THUMBNAIL_QUALITY = 80
HASH_REDUCING_GAP = 4
"""Pillow's reducing_gap for the hash: images are first reduced to 4 pixels per cell by averaging blocks, then resized
smoothly. With blocks alone, the hashes of copies differ in three times as many bits."""
SHRINK_REDUCING_GAP = 2
"""Pillow's reducing_gap for smaller copies: averaging blocks to twice the size first is faster, and the smooth resize
hides it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckedImage:
    """An image file that decodes to its end; `width` and `height` belong to the upright image."""

    data: bytes
    width: int
    height: int
    hash: int
    """The `difference_hash` of the upright image, 64 bits; copies that were saved again or shrunk differ in at most a
    few bits."""
    suffix: str | None = None
    """Such as ".png", if the bytes were encoded again in another format: the name of the file needs it."""


def decode_image(data: bytes, *, max_pixels: int | None = None) -> Image.Image:
    """The image in a file, upright and RGB; the first frame of an animation, the preview in a RAW photo. ImageError if
    it has more than `max_pixels`.

    An image of more than `LARGE_PIXELS` is halved until it has fewer. Transparency and color profiles are ignored, as
    image processors of models do; 16 bits per channel become 8.
    """
    with open_image(data, max_pixels) as opened:
        image = opened.image
        fraction = fraction_of(image)
        # A JPEG is decoded at that fraction; other formats have no such thing.
        image.draft(None, (image.width // fraction, image.height // fraction))
        opened.load()
        whole = _to_rgb(image)
        if (fraction := fraction_of(whole)) > 1:
            whole = whole.reduce(fraction)
        return _apart(_rotate_upright(whole, opened.orientation), image)


def upright_rgb(image: Image.Image) -> Image.Image:
    """An opened image as `decode_image` gives it: upright and RGB; ImageError if its pixels cannot be decoded or
    converted."""
    try:
        return _apart(_rotate_upright(_to_rgb(image), orientation_of(image)), image)
    except ImageError:
        raise
    except DECODE_ERRORS as error:
        raise ImageError(f"it is damaged: {error}") from error


def thumbnail(data: bytes, side_px: int) -> bytes:
    """A JPEG of the upright image, its longer side at most that long, without metadata."""
    with open_image(data) as opened:
        image = opened.image
        # A large JPEG is decoded at a fraction of its size.
        scale = SHRINK_REDUCING_GAP * side_px / max(image.size)
        image.draft(None, (round(scale * image.width), round(scale * image.height)))
        opened.load()
        small = _fit(_to_rgb(image), side_px)
        return _as_jpeg(_rotate_upright(small, opened.orientation), THUMBNAIL_QUALITY)


def for_browser(data: bytes) -> tuple[bytes, str]:
    """A file that browsers show, and its media type: an image file itself, or a JPEG of one that they do not show."""
    with open_image(data) as opened:
        if opened.format.media_type:
            return data, opened.format.media_type
    return _as_jpeg(_fit(decode_image(data), MAX_JPEG_SIDE), JPEG_QUALITY), JPEG.media_type


def check_image(data: bytes, max_side_px: int | None = None) -> CheckedImage:
    """Decode a file to its end, measure and hash it. With `max_side_px`, an image with a longer shorter side is shrunk
    to that.

    The bytes stay those of the file, but for formats that Pillow alone does not read (HEIF, RAW): they become a JPEG.
    """
    with open_image(data) as opened:
        image = opened.image
        width, height = image.size
        if max_side_px is not None and min(width, height) > max_side_px:
            return _shrink(opened, max_side_px)
        if opened.format.package != "pillow":
            return _convert(opened)
        # A gray JPEG at an eighth of the size is decoded to its end too, in half the time, and is enough for the hash.
        image.draft("L", (9 * HASH_REDUCING_GAP, 8 * HASH_REDUCING_GAP))
        opened.load()
        orientation = opened.orientation
        # Gray is enough for the hash.
        whole = image if image.mode == "L" else _to_rgb(image)
        hash_bits = difference_hash(_rotate_upright(whole, orientation))
    if orientation >= 5:  # rotated by 90 degrees
        width, height = height, width
    return CheckedImage(data=data, width=width, height=height, hash=hash_bits)


def turned_back(upright: Image.Image, orientation: int) -> Image.Image:
    """An upright image as its file stores it: the EXIF orientation is undone."""
    # A quarter turn is undone by the other one, and everything else by itself.
    return _rotate_upright(upright, {6: 8, 8: 6}.get(orientation, orientation))


def _rotate_upright(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else image


def _apart(image: Image.Image, source: Image.Image) -> Image.Image:
    """An image that is not the source itself, which is closed or is the user's."""
    return image.copy() if image is source else image


def _to_rgb(image: Image.Image) -> Image.Image:
    """An image in RGB: itself if it is, because a copy of a large one takes much memory."""
    if image.mode == "RGB":
        return image
    # Pillow clips wider modes to [0, 255]: most of 16-bit gray would become white, floats in [0, 1] black.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        kind = "floating-point" if image.mode == "F" else "32-bit"
        raise ImageError(f"its pixels are {kind} numbers without a known white; save it with 8 bits per channel")
    if image.mode == "P" and "transparency" in image.info:
        # By way of RGBA, because Pillow warns where a palette has an alpha for each color.
        image = image.convert("RGBA")
    return image.convert("RGB")


def _convert(opened: Opened) -> CheckedImage:
    """A JPEG of a photo that Pillow alone does not read, upright and with its EXIF data."""
    opened.load()
    upright = _rotate_upright(_fit(_to_rgb(opened.image), MAX_JPEG_SIDE), opened.orientation)
    return CheckedImage(
        data=_as_jpeg(upright, JPEG_QUALITY, _upright_exif(opened.image)),
        width=upright.width,
        height=upright.height,
        hash=difference_hash(upright),
        suffix=".jpg",
    )


def _shrink(opened: Opened, side_px: int) -> CheckedImage:
    """Shrink an image that is not decoded yet: a photo to a JPEG, an image of any other format to a PNG."""
    image = opened.image
    scale = side_px / min(image.size)
    # Rounding must not make a side shorter than was requested.
    width, height = (max(side_px, round(side * scale)) for side in image.size)
    # Only a JPEG can be decoded at a fraction of its size.
    image.draft(None, (SHRINK_REDUCING_GAP * width, SHRINK_REDUCING_GAP * height))
    opened.load()
    smaller = _to_rgb(image).resize((width, height), Image.Resampling.BICUBIC, reducing_gap=SHRINK_REDUCING_GAP)
    smaller = _rotate_upright(smaller, opened.orientation)
    is_photo = opened.format in (JPEG, HEIF, RAW)
    suffix = None if opened.format is JPEG else ".jpg" if is_photo else ".png"
    buffer = io.BytesIO()
    if is_photo:
        smaller.save(buffer, format="JPEG", quality=JPEG_QUALITY)
    else:
        # Lossless, because the errors of a JPEG show in drawings and text.
        smaller.save(buffer, format="PNG")
    return CheckedImage(
        data=buffer.getvalue(),
        width=smaller.width,
        height=smaller.height,
        hash=difference_hash(smaller),
        suffix=suffix,
    )


def _fit(image: Image.Image, side_px: int) -> Image.Image:
    """An image, its longer side at most that long."""
    if max(image.size) <= side_px:
        return image
    scale = side_px / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    # Not `thumbnail`, which changes the image itself: that of a HEIF file is decoded again where it is used.
    return image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=SHRINK_REDUCING_GAP)


def _upright_exif(image: Image.Image) -> bytes:
    """The EXIF data of an image that was turned upright; empty if they are missing or damaged."""
    try:
        exif = image.getexif()
        exif[EXIF_ORIENTATION] = 1
        return exif.tobytes()
    # A number in place of a text has no method that encodes it.
    except (*DECODE_ERRORS, AttributeError):
        return b""


def _as_jpeg(image: Image.Image, quality: int, exif: bytes = b"") -> bytes:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality, exif=exif)
    return stream.getvalue()


def difference_hash(image: Image.Image) -> int:
    """The difference hash (dHash), 64 bits: where a 9 x 8 gray copy grows brighter from left to right. Few bits differ
    for like images.

    >>> difference_hash(Image.new("RGB", (40, 30), "red"))
    0
    """
    # The gap is the size at which `check_image` decodes a JPEG, so both give nearly the same hash.
    whole = image if image.mode == "L" else image.convert("L")
    gray = whole.resize((9, 8), Image.Resampling.LANCZOS, reducing_gap=HASH_REDUCING_GAP).tobytes()
    # A loop, because so few numbers take NumPy twice as long: a tenth of the check of a photo.
    bits = 0
    for start in range(0, len(gray), 9):
        for left, right in itertools.pairwise(gray[start : start + 9]):
            bits = bits << 1 | (left < right)
    return bits
