"""Image files: decoded to upright RGB, checked, shrunk, and hashed. Memory is bounded: a large photo is decoded at a
fraction of its size, what cannot be is refused above a number of pixels, and files that take much are decoded one at a
time.
"""

from __future__ import annotations

import io
import itertools
import os
import re
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
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
"""The same for a JPEG of one scan (not a progressive one), which is decoded at a fraction of its size, row by row."""
LARGE_PIXELS = 2**25
"""34 megapixels. Larger images are halved until they have fewer: no model looks at more, and the memory of one is at
most 134 MB."""
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
    with _open_image(data, max_pixels) as opened:
        image = opened.image
        fraction = _fraction(image)
        # A JPEG is decoded at that fraction; other formats have no such thing.
        image.draft(None, (image.width // fraction, image.height // fraction))
        opened.load()
        whole = _to_rgb(image)
        if (fraction := _fraction(whole)) > 1:
            whole = whole.reduce(fraction)
        return _apart(_rotate_upright(whole, opened.orientation), image)


def upright_rgb(image: Image.Image) -> Image.Image:
    """An opened image as `decode_image` gives it: upright and RGB; ImageError if its pixels cannot be decoded or
    converted."""
    try:
        return _apart(_rotate_upright(_to_rgb(image), _orientation(image)), image)
    except ImageError:
        raise
    except DECODE_ERRORS as error:
        raise ImageError(f"it is damaged: {error}") from error


def thumbnail(data: bytes, side_px: int) -> bytes:
    """A JPEG of the upright image, its longer side at most that long, without metadata."""
    with _open_image(data) as opened:
        image = opened.image
        # A large JPEG is decoded at a fraction of its size.
        scale = SHRINK_REDUCING_GAP * side_px / max(image.size)
        image.draft(None, (round(scale * image.width), round(scale * image.height)))
        opened.load()
        small = _fit(_to_rgb(image), side_px)
        return _as_jpeg(_rotate_upright(small, opened.orientation), THUMBNAIL_QUALITY)


def for_browser(data: bytes) -> tuple[bytes, str]:
    """A file that browsers show, and its media type: an image file itself, or a JPEG of one that they do not show."""
    with _open_image(data) as opened:
        if opened.format.media_type:
            return data, opened.format.media_type
    return _as_jpeg(_fit(decode_image(data), MAX_JPEG_SIDE), JPEG_QUALITY), JPEG.media_type


def check_image(data: bytes, max_side_px: int | None = None) -> CheckedImage:
    """Decode a file to its end, measure and hash it. With `max_side_px`, an image with a longer shorter side is shrunk
    to that.

    The bytes stay those of the file, but for formats that Pillow alone does not read (HEIF, RAW): they become a JPEG.
    """
    with _open_image(data) as opened:
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


def ignore_pillow_warnings() -> None:
    """Ignore Pillow's warnings from now on, for the whole process: its threads share their filters.

    Most are about odd metadata, and the number of pixels is compared here.
    """
    warnings.filterwarnings("ignore", module="PIL")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Opened:
    """An image file that is not decoded yet."""

    format: Format
    image: Image.Image
    data: bytes
    """What `image` is read from: the file, or the preview in a RAW photo."""
    raw_orientation: int | None = None
    """The orientation of a RAW photo, which its preview lacks."""

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
        return _orientation(self.image) if self.raw_orientation is None else self.raw_orientation


@contextmanager
def _open_image(data: bytes, max_pixels: int | None = None) -> Iterator[_Opened]:
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


def _is_heavy(opened: _Opened, max_pixels: int | None) -> bool:
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


def _opened(data: bytes) -> _Opened:
    """An image file opened by what reads its format; ImageError if that is not installed."""
    format = recognize(data)
    if format is JPEG:
        # Not by `Image.open`, which refuses large photos.
        return _Opened(format=format, image=jpeg_factory(io.BytesIO(data)), data=data)
    if format is HEIF:
        return _Opened(format=format, image=open_heif(data), data=data)
    if format is RAW:
        return _open_preview(data)
    if format is AVIF:
        if not features.check("avif"):
            raise ImageError("an AVIF image, which this version of Pillow does not read", AVIF.missing)
        _check_boxes(data)
    image = Image.open(io.BytesIO(data), formats=PILLOW_FORMATS)
    return _Opened(format=FORMATS[str(image.format)], image=image, data=data)


def _open_preview(data: bytes) -> _Opened:
    """The preview in a RAW photo."""
    preview = extract_preview(data)
    if isinstance(preview.content, bytes):
        image: Image.Image = jpeg_factory(io.BytesIO(preview.content))
        content = preview.content
    else:
        image, content = Image.fromarray(preview.content), b""
    return _Opened(format=RAW, image=image, data=content, raw_orientation=preview.orientation)


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


def _fraction(image: Image.Image) -> int:
    """1, 2, 4 or 8: by which a large image is divided."""
    fraction = 1
    while fraction < 8 and image.width * image.height > LARGE_PIXELS * fraction**2:
        fraction *= 2
    return fraction


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


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 if the EXIF block is missing, or damaged as in some COCO images."""
    try:
        value = image.getexif().get(EXIF_ORIENTATION, 1)
    except DECODE_ERRORS:
        return 1
    return value if value in _UPRIGHT else 1


def turned_back(upright: Image.Image, orientation: int) -> Image.Image:
    """An upright image as its file stores it: the EXIF orientation is undone."""
    # A quarter turn is undone by the other one, and everything else by itself.
    return _rotate_upright(upright, {6: 8, 8: 6}.get(orientation, orientation))


def _rotate_upright(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


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


def _convert(opened: _Opened) -> CheckedImage:
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


def _shrink(opened: _Opened, side_px: int) -> CheckedImage:
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
