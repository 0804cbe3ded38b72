"""Image files: decoded to upright RGB, checked, shrunk, hashed, and their formats."""

from __future__ import annotations

import io
import itertools
import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""The formats that are decoded. Pillow knows more, and starts another program for some of them (EPS)."""
# Pillow's limit is None if a program has switched it off.
MAX_PIXELS = Image.MAX_IMAGE_PIXELS or 2**26
"""A larger image counts as a decompression bomb: Pillow's own limit, 89 megapixels."""
# The highest quality that Pillow recommends.
JPEG_QUALITY = 95
# At this size the blocks of JPEG do not show.
THUMBNAIL_QUALITY = 80
HASH_REDUCING_GAP = 4
"""Pillow's reducing_gap for the hash: images are first reduced to 4 pixels per cell by averaging blocks, then resized
smoothly. With blocks alone, the hashes of copies differ in three times as many bits."""
SHRINK_REDUCING_GAP = 2
"""Pillow's reducing_gap for smaller copies: averaging blocks to twice the size first is faster, and the smooth resize
hides it."""
# The tag of the EXIF standard; Pillow names it only in an enum of its plug-ins.
EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Pillow's decoders raise all of these on damaged files.
DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    EOFError,
    ArithmeticError,
    struct.error,
    zlib.error,
)
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""The markers of a JPEG that begin a frame: its size and its kind of coding."""
# Baseline, extended and progressive. Only their blocks have a least size; arithmetic coding has none.
_HUFFMAN_FRAMES = (0xC0, 0xC1, 0xC2)
# In the data of a scan, 255 is followed by 0 or begins a restart marker.
_END_OF_SCAN = re.compile(rb"\xff+[^\x00\xd0-\xd7\xff]", re.DOTALL)
_SMALLER_THAN_HEADER = "the image is truncated or damaged (its data ends before the last pixels of its header)"
_PADDING = bytes(16)
"""The decoder of a complete JPEG looks at most 8 bytes past the end of its data."""


class ImageError(ValueError):
    """An image file that cannot be used; the message says why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckedImage:
    """An image file that decodes to its end; `width` and `height` belong to the upright image."""

    data: bytes
    width: int
    height: int
    hash: int
    """The `difference_hash` of the upright image, 64 bits; copies that were saved again or shrunk differ in at most a
    few bits."""
    became_png: bool = False
    """Whether the bytes were encoded again, as PNG: the name of the file needs another suffix."""


def decode_image(data: bytes, *, max_pixels: int | None = None) -> Image.Image:
    """The image in a file, upright and RGB; the first frame of an animation. ImageError if it has more than
    `max_pixels`.

    Transparency and color profiles are ignored, as image processors of models do; 16 bits per channel become 8.
    """
    with _open_image(data, max_pixels) as image:
        _load(image, data)
        return _rotate_upright(_to_rgb(image), _orientation(image))


def upright_rgb(image: Image.Image) -> Image.Image:
    """An opened image as `decode_image` gives it: upright and RGB; ImageError if its pixels cannot be decoded or
    converted."""
    try:
        return _rotate_upright(_to_rgb(image), _orientation(image))
    except ImageError:
        raise
    except DECODE_ERRORS as error:
        raise ImageError(f"it is damaged: {error}") from error


def thumbnail(data: bytes, side_px: int) -> bytes:
    """A JPEG of the upright image, its longer side at most that long, without metadata."""
    with _open_image(data) as image:
        # A large JPEG is decoded at a fraction of its size.
        scale = SHRINK_REDUCING_GAP * side_px / max(image.size)
        image.draft(None, (round(scale * image.width), round(scale * image.height)))
        _load(image, data)
        small = _rotate_upright(_to_rgb(image), _orientation(image))
    small.thumbnail((side_px, side_px), Image.Resampling.BICUBIC, reducing_gap=SHRINK_REDUCING_GAP)
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=THUMBNAIL_QUALITY)
    return stream.getvalue()


def media_type(data: bytes) -> str:
    """The media type of an image file by its content, whatever its name; ImageError if it is not an image."""
    with _open_image(data) as image:
        # MPO: several JPEGs in one file, as some cameras write; browsers show the first.
        return "image/jpeg" if image.format == "MPO" else Image.MIME[image.format or ""]


def check_image(data: bytes, max_side_px: int | None = None) -> CheckedImage:
    """Decode a file to its end, measure and hash it. With `max_side_px`, an image with a longer shorter side is shrunk
    to that."""
    with _open_image(data) as image:
        width, height = image.size
        if max_side_px is not None and min(width, height) > max_side_px:
            return _shrink(image, data, max_side_px)
        # A gray JPEG at an eighth of the size is decoded to its end too, in half the time, and is enough for the hash.
        image.draft("L", (9 * HASH_REDUCING_GAP, 8 * HASH_REDUCING_GAP))
        _load(image, data)
        orientation = _orientation(image)
        # Not converted if it is RGB, which would copy it.
        whole = image if image.mode in ("L", "RGB") else _to_rgb(image)
        hash_bits = difference_hash(_rotate_upright(whole, orientation))
    if orientation >= 5:  # rotated by 90 degrees
        width, height = height, width
    return CheckedImage(data=data, width=width, height=height, hash=hash_bits)


def ignore_pillow_warnings() -> None:
    """Ignore Pillow's warnings from now on, for the whole process: its threads share their filters.

    Most are about odd metadata, and the number of pixels is compared here.
    """
    warnings.filterwarnings("ignore", module="PIL")


@contextmanager
def _open_image(data: bytes, max_pixels: int | None = None) -> Iterator[Image.Image]:
    """The image in a file, not yet decoded; in the block, Pillow's many errors become ImageError."""
    limit = min(max_pixels or MAX_PIXELS, MAX_PIXELS)
    # A setting of the whole process: another library may have switched it on, and gray would then replace what is
    # missing.
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    ignore_pillow_warnings()
    try:
        if not data:
            raise ImageError("the image file is empty (0 bytes)")
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > limit:
                raise _too_many_pixels(limit)
            # Not even one bit for each block of 8 x 8 pixels, although every Huffman code has at least one: refused
            # before any memory for pixels is allocated.
            num_blocks = -(-image.width // 8) * -(-image.height // 8)
            is_jpeg = image.format in ("JPEG", "MPO")
            if is_jpeg and 8 * len(data) < num_blocks and _find_scan(data)[0] in _HUFFMAN_FRAMES:
                raise ImageError(_SMALLER_THAN_HEADER)
            yield image
    except ImageError:
        raise
    except Image.DecompressionBombError as error:  # more than twice as many pixels as its warning is about
        raise _too_many_pixels(limit) from error
    # Before the errors of decoders, because it is an OSError.
    except UnidentifiedImageError as error:
        raise ImageError(f"not an image file of a supported format ({', '.join(FORMATS)})") from error
    except DECODE_ERRORS as error:
        raise ImageError(f"the image is truncated or damaged ({error})") from error


def _too_many_pixels(limit: int) -> ImageError:
    return ImageError(f"too many pixels, it may be a decompression bomb (the limit is {limit:,})")


def _load(image: Image.Image, data: bytes) -> None:
    """Decode an image to its end; ImageError if its data ends before the last pixels of its header, which Pillow fills
    in."""
    image.load()
    if image.format in ("JPEG", "MPO"):
        # Filled pixels are at the end. The second look takes as long as decoding, so images whose end is of another
        # color are spared it.
        last = image.getpixel((image.width - 1, image.height - 1))
        is_filled = {127, 128}.issuperset(last if isinstance(last, tuple) else (last,))
        if is_filled and not _is_complete_jpeg(data):
            raise ImageError(_SMALLER_THAN_HEADER)


def _find_scan(data: bytes) -> tuple[int, int]:
    """The marker of a JPEG's frame, and the position of the data of its first scan; zeros if it has none."""
    frame, position = 0, 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:  # a fill byte
            position += 1
            continue
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        if marker == 0xDA:
            return frame, position
        frame = marker if marker in _JPEG_FRAMES else frame
    return 0, 0


def _is_complete_jpeg(data: bytes) -> bool:
    """Whether the data of a JPEG of one sequential scan reach to its last block, apart from a few blocks; True for
    other JPEGs.

    libjpeg fills the rest with gray if it meets the end marker early. Without the marker it asks for more data.
    """
    frame, start = _find_scan(data)
    end = _END_OF_SCAN.search(data, start)
    if frame not in (0xC0, 0xC1) or end is None or end[0][-1] != 0xD9:
        return True
    with Image.open(io.BytesIO(data[: end.start()] + _PADDING), formats=("JPEG",)) as image:
        image.draft("L", (1, 1))
        try:
            image.load()
        except OSError:
            return False
    return True


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 if the EXIF block is missing, or damaged as in some COCO images."""
    try:
        value = image.getexif().get(EXIF_ORIENTATION, 1)
    except DECODE_ERRORS:
        return 1
    return value if value in _UPRIGHT else 1


def _rotate_upright(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _to_rgb(image: Image.Image) -> Image.Image:
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


def _shrink(image: Image.Image, data: bytes, side_px: int) -> CheckedImage:
    """Shrink an image that is not decoded yet: a JPEG to a JPEG, any other format to a PNG."""
    scale = side_px / min(image.size)
    # Rounding must not make a side shorter than was requested.
    width, height = (max(side_px, round(side * scale)) for side in image.size)
    is_jpeg = image.format in ("JPEG", "MPO")
    # Only a JPEG can be decoded at a fraction of its size.
    image.draft(None, (SHRINK_REDUCING_GAP * width, SHRINK_REDUCING_GAP * height))
    _load(image, data)
    # Not converted if it is RGB, which would copy it.
    whole = image if image.mode == "RGB" else _to_rgb(image)
    smaller = whole.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=SHRINK_REDUCING_GAP)
    smaller = _rotate_upright(smaller, _orientation(image))
    buffer = io.BytesIO()
    if is_jpeg:
        smaller.save(buffer, format="JPEG", quality=JPEG_QUALITY)
    else:
        # Lossless, because the errors of a JPEG show in drawings and text.
        smaller.save(buffer, format="PNG")
    return CheckedImage(
        data=buffer.getvalue(),
        width=smaller.width,
        height=smaller.height,
        hash=difference_hash(smaller),
        became_png=not is_jpeg,
    )


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
