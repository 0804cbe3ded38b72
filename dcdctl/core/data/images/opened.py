"""Image files opened by what reads their format, and not decoded yet. Memory is bounded: an image of too many pixels is
refused, and files that take much are decoded one at a time.
"""

from __future__ import annotations

import io
import os
import re
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

from PIL import Image, ImageFile, UnidentifiedImageError, features
from PIL.JpegImagePlugin import JpegImageFile, jpeg_factory

from dcdctl.core.data.images.formats import (
    AVIF,
    FORMATS,
    HEIF,
    JPEG,
    NOT_IMAGE,
    PILLOW_FORMATS,
    RAW,
    TOO_LARGE,
    VIDEO,
    Format,
    ImageError,
    Unread,
    damage_of_boxes,
    recognize,
    what_else,
)
from dcdctl.core.data.images.raw_previews import extract_preview

MAX_PIXELS = 2**27
"""134 megapixels. A larger image counts as a decompression bomb, unless it is a JPEG of one scan: in other formats,
phones write at most 108 megapixels."""
MAX_JPEG_PIXELS = 2**30
"""1,074 megapixels, for a JPEG of one scan (not a progressive one), which is decoded at a fraction of its size, row by
row."""
LARGE_PIXELS = 2**25
"""34 megapixels. Larger images are halved until they have fewer: no model looks at more, and the memory of one is at
most 134 MB."""
# The tag of the EXIF standard; Pillow names it only in an enum of its plug-ins.
EXIF_ORIENTATION = 0x0112
UPRIGHT = {
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
    # Of the decoders of AVIF and HEIF.
    RuntimeError,
    MemoryError,
)
_one_large = threading.Lock()
"""Held while a file is decoded that takes more memory than `LARGE_PIXELS`: many threads may read images."""


def _renew_lock() -> None:
    """In a forked process, nobody releases a lock that a thread of its parent held."""
    global _one_large
    _one_large = threading.Lock()


os.register_at_fork(after_in_child=_renew_lock)
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""The markers of a JPEG that begin a frame: its size and its kind of coding."""
# Baseline, extended and progressive. Only their blocks have a least size; arithmetic coding has none.
_HUFFMAN_FRAMES = (0xC0, 0xC1, 0xC2)
_SEQUENTIAL_FRAMES = (0xC0, 0xC1)
"""Baseline and extended: decoded row by row, unless their colors come in several scans."""
# In the data of a scan, 255 is followed by 0 or begins a restart marker.
_END_OF_SCAN = re.compile(rb"\xff+[^\x00\xd0-\xd7\xff]", re.DOTALL)
_SMALLER_THAN_HEADER = "the image is truncated or damaged (its data ends before the last pixels of its header)"
_PADDING = bytes(16)
"""The decoder of a complete JPEG looks at most 8 bytes past the end of its data."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Opened:
    """An image file that is not decoded yet."""

    format: Format
    image: Image.Image
    data: bytes
    """What `image` is read from: the file, or the preview in a RAW photo."""
    known_orientation: int | None = None
    """The orientation if the image itself does not say it: that of a RAW photo, which its preview lacks, and 1 for
    HEIF, whose decoder has turned it."""

    def load(self) -> None:
        """Decode the image to its end; ImageError if its data ends before the last pixels of its header, which Pillow
        fills in."""
        self.image.load()
        if self.image.format in ("JPEG", "MPO"):
            # Filled pixels are at the end. The second look takes as long as decoding, so images whose end is of another
            # color are spared it.
            last = self.image.getpixel((self.image.width - 1, self.image.height - 1))
            is_filled = {127, 128}.issuperset(last if isinstance(last, tuple) else (last,))
            if is_filled and not _is_complete_jpeg(self.data):
                raise ImageError(_SMALLER_THAN_HEADER)

    @property
    def orientation(self) -> int:
        """The EXIF orientation, 1 to 8, once the image is decoded: a PNG may have it behind its pixels."""
        return orientation_of(self.image) if self.known_orientation is None else self.known_orientation


@contextmanager
def open_image(data: bytes, max_pixels: int | None = None) -> Iterator[Opened]:
    """The image in a file, not yet decoded; in the block, the many errors of decoders become ImageError."""
    # A setting of the whole process: another library may have switched it on, and gray would then replace what is
    # missing.
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    ignore_pillow_warnings()
    try:
        if not data:
            raise ImageError("the image file is empty (0 bytes)", NOT_IMAGE)
        opened = _opened(data)
        with opened.image, _one_large if _is_heavy(opened, max_pixels) else nullcontext():
            yield opened
    except ImageError:
        raise
    except Image.DecompressionBombError as error:  # more than twice as many pixels as its warning is about
        raise _too_many_pixels(min(max_pixels or MAX_PIXELS, MAX_PIXELS)) from error
    # Before the errors of decoders, because it is an OSError.
    except UnidentifiedImageError as error:
        raise _not_an_image(what_else(data)) from error
    except DECODE_ERRORS as error:
        raise ImageError(f"the image is truncated or damaged ({error})", what_else(data)) from error


def ignore_pillow_warnings() -> None:
    """Ignore Pillow's warnings from now on, for the whole process: its threads share their filters.

    Most are about odd metadata, and the number of pixels is compared here.
    """
    warnings.filterwarnings("ignore", module="PIL")


def _is_heavy(opened: Opened, max_pixels: int | None) -> bool:
    """Whether an image takes much memory while it is decoded; ImageError if it takes too much, or if its data cannot
    hold the pixels of its header."""
    width, height = opened.image.size
    scan = _find_scan(opened.data) if opened.image.format in ("JPEG", "MPO") else _Scan()
    is_by_rows = scan.frame in _SEQUENTIAL_FRAMES and scan.has_all_colors
    limit = MAX_JPEG_PIXELS if is_by_rows else MAX_PIXELS
    limit = min(max_pixels or limit, limit)
    if width * height > limit:
        raise _too_many_pixels(limit)
    # Not even one bit for each block of 8 x 8 pixels, although every Huffman code has at least one: refused before any
    # memory for pixels is allocated.
    num_blocks = -(-width // 8) * -(-height // 8)
    if scan.frame in _HUFFMAN_FRAMES and 8 * len(opened.data) < num_blocks:
        raise ImageError(_SMALLER_THAN_HEADER)
    return width * height > LARGE_PIXELS and not is_by_rows


def fraction_of(image: Image.Image) -> int:
    """1, 2, 4 or 8: by which a large image is divided."""
    fraction = 1
    while fraction < 8 and image.width * image.height > LARGE_PIXELS * fraction**2:
        fraction *= 2
    return fraction


def _opened(data: bytes) -> Opened:
    """An image file opened by what reads its format; ImageError if that is not installed."""
    format = recognize(data)
    if format is JPEG:
        # Not by `Image.open`, which refuses large photos.
        return Opened(format=format, image=jpeg_factory(io.BytesIO(data)), data=data)
    if format is HEIF:
        return Opened(format=format, image=open_heif(data), data=data, known_orientation=1)
    if format is RAW:
        return _open_preview(data)
    if format is AVIF:
        if not features.check("avif"):
            raise ImageError("an AVIF image, which this version of Pillow does not read", AVIF.missing)
        _check_boxes(data)
    image = Image.open(io.BytesIO(data), formats=PILLOW_FORMATS)
    return Opened(format=FORMATS[str(image.format)], image=image, data=data)


def _open_preview(data: bytes) -> Opened:
    """The preview in a RAW photo."""
    preview = extract_preview(data)
    if isinstance(preview.content, bytes):
        image: Image.Image = jpeg_factory(io.BytesIO(preview.content))
        content = preview.content
    else:
        image, content = Image.fromarray(preview.content), b""
    return Opened(format=RAW, image=image, data=content, known_orientation=preview.orientation)


def open_heif(data: bytes) -> Image.Image:
    """A HEIF image, turned upright by its decoder."""
    try:
        # Here, because most folders have no such image. Its class is used as it is, so that Pillow's list of formats,
        # which other libraries read too, stays the same.
        from pi_heif import HeifImageFile
    except ImportError as error:
        raise ImageError("a HEIC photo, and the package pi-heif is not installed", HEIF.missing) from error
    _check_boxes(data)
    return HeifImageFile(io.BytesIO(data))


def _check_boxes(data: bytes) -> None:
    """ImageError for damage of a HEIF or AVIF file that its decoder does not refuse."""
    if damage := damage_of_boxes(data):
        raise ImageError(f"the image is truncated or damaged ({damage})")


def _too_many_pixels(limit: int) -> ImageError:
    return ImageError(f"too many pixels, it may be a decompression bomb (the limit is {limit:,})", TOO_LARGE)


def _not_an_image(unread: Unread) -> ImageError:
    if unread is VIDEO:
        return ImageError("it is a video, expected an image", VIDEO)
    return ImageError(f"not an image file of a supported format ({', '.join(FORMATS)})", unread)


@dataclass(frozen=True, slots=True)
class _Scan:
    """The first scan of a JPEG; zeros if it has none."""

    frame: int = 0
    """The marker of its frame."""
    start: int = 0
    """Of its data."""
    has_all_colors: bool = False
    """Else libjpeg keeps the whole image in memory until the other scans."""


def _find_scan(data: bytes) -> _Scan:
    frame, num_colors, position = 0, 0, 2
    while position + 10 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:  # a fill byte
            position += 1
            continue
        segment = position
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        if marker == 0xDA:
            return _Scan(frame, position, has_all_colors=data[segment + 4] == num_colors)
        if marker in _JPEG_FRAMES:
            # After the size of the segment, the bits of a color, and both sides.
            frame, num_colors = marker, data[segment + 9]
    return _Scan()


def _is_complete_jpeg(data: bytes) -> bool:
    """Whether the data of a JPEG of one sequential scan reach to its last block, apart from a few blocks; True for
    other JPEGs.

    libjpeg fills the rest with gray if it meets the end marker early. Without the marker it asks for more data.
    """
    scan = _find_scan(data)
    end = _END_OF_SCAN.search(data, scan.start)
    if scan.frame not in _SEQUENTIAL_FRAMES or end is None or end[0][-1] != 0xD9:
        return True
    with JpegImageFile(io.BytesIO(data[: end.start()] + _PADDING)) as image:
        image.draft("L", (1, 1))
        try:
            image.load()
        except OSError:
            return False
    return True


def orientation_of(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 if the EXIF block is missing, or damaged as in some COCO images."""
    try:
        value = image.getexif().get(EXIF_ORIENTATION, 1)
    except DECODE_ERRORS:
        return 1
    return value if value in UPRIGHT else 1
