"""Image files: checked, measured, made smaller, and decoded to upright RGB."""

from __future__ import annotations

import io
import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from PIL import Image, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""What is decoded. Pillow knows more, and for some of it (EPS) would start another program."""
MAX_PIXELS = Image.MAX_IMAGE_PIXELS or 2**26
"""A picture of more is taken for a decompression bomb."""
JPEG_QUALITY = 95
THUMBNAIL_QUALITY = 80
HASH_GAP = 4
"""Pixels a cell of the hash that are left where a picture is made smaller the fast way first."""
SHRINK_GAP = 2
"""How much larger than wanted a picture is left where it is made smaller the fast way first, before the slow and smooth way."""
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
# What Pillow's decoders raise on damaged files.
_DECODE_ERRORS = (OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, ArithmeticError, struct.error, zlib.error)
_HEAD_BYTES = 512
_OTHER_FILES = {
    (b"<svg",): "an SVG drawing: save it as PNG",
    (b"<!doctype html", b"<html"): "a web page: the download may have failed",
    (b"%!ps",): "PostScript: save it as PNG",
    (b"%pdf-",): "a PDF: save its page as PNG",
    (b"ftypheic", b"ftypheix", b"ftypmif1"): "HEIC: save it as JPEG",
    (b"ftypavif", b"ftypavis"): "AVIF: save it as JPEG",
}


class ImageError(ValueError):
    """An image file that cannot be used; the message says why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckedImage:
    """An image file that decodes to its end; `width` and `height` are those of the upright picture."""

    data: bytes
    width: int
    height: int
    hash: int
    """The `difference_hash` of the upright picture, 64 bits: equal or a bit or two apart in copies saved again or made smaller."""
    became_png: bool = False


def decode_image(data: bytes, *, max_pixels: int | None = None) -> Image.Image:
    """The picture of an image file, upright and RGB; of a moving one the first frame. One of more than `max_pixels` is not decoded.

    Transparency and colour profiles are left out of account, as image processors of models do; 16 bits a channel become 8.
    """
    with _opened(data, max_pixels) as image:
        image.load()
        return _turn(_to_rgb(image), _orientation(image))


def thumbnail(data: bytes, side_px: int) -> bytes:
    """A JPEG of the upright picture, its longer side at most that long, without any metadata."""
    with _opened(data) as image:
        # A large JPEG is decoded at a fraction of its size.
        scale = SHRINK_GAP * side_px / max(image.size)
        image.draft(None, (round(scale * image.width), round(scale * image.height)))
        image.load()
        small = _turn(_to_rgb(image), _orientation(image))
    small.thumbnail((side_px, side_px), Image.Resampling.BICUBIC, reducing_gap=SHRINK_GAP)
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=THUMBNAIL_QUALITY)
    return stream.getvalue()


def media_type(data: bytes) -> str:
    """What the contents of an image file are, as browsers name it, whatever its name says; PictureError where it is none."""
    with _opened(data) as image:
        # Cameras put several JPEGs into one file, which browsers show as the first.
        return "image/jpeg" if image.format == "MPO" else Image.MIME[image.format or ""]


def check(data: bytes, max_side_px: int | None = None) -> CheckedImage:
    """Decode a file to its end and measure it; with `max_side_px`, shrink a larger one so that its shorter side is that long."""
    with _opened(data) as image:
        width, height = image.size
        if max_side_px is not None and min(width, height) > max_side_px:
            return _shrink(image, max_side_px)
        # A JPEG is read to its end at an eighth of its size too, in half the time, and is gray enough for the hash.
        image.draft("L", (9 * HASH_GAP, 8 * HASH_GAP))
        image.load()
        orientation = _orientation(image)
        hash_bits = difference_hash(_turn(_to_rgb(image), orientation))
    turned = orientation >= 5
    return CheckedImage(data=data, width=height if turned else width, height=width if turned else height, hash=hash_bits)


@contextmanager
def _opened(data: bytes, max_pixels: int | None = None) -> Iterator[Image.Image]:
    """The image of a file, not yet decoded; in the block, Pillow's many errors become PictureError.

    Its warning about a decompression bomb is an error, its warnings about odd metadata are none.
    """
    limit = min(max_pixels or MAX_PIXELS, MAX_PIXELS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            if not data:
                raise ImageError("the image file is empty (0 bytes)")
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                # Asked here too: which warnings are errors is decided for all threads at once.
                if image.width * image.height > limit:
                    raise _too_many_pixels(f"{image.width * image.height:,}, ", limit)
                yield image
        except ImageError:
            raise
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            found = re.search(r"\d+", str(error))
            raise _too_many_pixels(f"{int(found[0]):,}, " if found else "", limit) from error
        except UnidentifiedImageError as error:
            raise ImageError(f"not an image file that is read here ({', '.join(FORMATS)}){_what_it_is(data)}") from error
        except _DECODE_ERRORS as error:
            if "MAX_TEXT" in str(error):
                raise ImageError("a text or a colour profile in it unpacks to too much, it may be a decompression bomb") from error
            raise ImageError(f"the image is truncated or damaged ({error})") from error


def _too_many_pixels(size: str, limit: int) -> ImageError:
    return ImageError(f"too many pixels, it may be a decompression bomb ({size}the limit is {limit:,})")


def _what_it_is(data: bytes) -> str:
    """What is often found under the name of an image, as the end of a message."""
    head = data[:_HEAD_BYTES].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for signs, what in _OTHER_FILES.items():
        if any(sign in head for sign in signs):
            return f"; it looks like {what}"
    return ""


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 where the EXIF block is damaged, as it is in some COCO images."""
    try:
        value = image.getexif().get(EXIF_ORIENTATION, 1)
    except _DECODE_ERRORS:
        return 1
    return value if value in _UPRIGHT else 1


def _turn(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _to_rgb(image: Image.Image) -> Image.Image:
    # Pillow would clip these at 255: 16-bit gray to white, floats in [0, 1] to black.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        kind = "floating-point" if image.mode == "F" else "32-bit"
        raise ImageError(f"its pixels are {kind} numbers of which white is not known; save it with 8 bits a channel")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def _shrink(image: Image.Image, side_px: int) -> CheckedImage:
    """An image that is not decoded yet, made smaller: a JPEG as JPEG, anything else as PNG."""
    scale = side_px / min(image.size)
    width, height = (max(side_px, round(side * scale)) for side in image.size)
    is_jpeg = image.format in ("JPEG", "MPO")
    # Only a JPEG can be decoded at a fraction of its size.
    image.draft(None, (SHRINK_GAP * width, SHRINK_GAP * height))
    image.load()
    smaller = _to_rgb(image).resize((width, height), Image.Resampling.BICUBIC, reducing_gap=SHRINK_GAP)
    smaller = _turn(smaller, _orientation(image))
    buffer = io.BytesIO()
    if is_jpeg:
        smaller.save(buffer, format="JPEG", quality=JPEG_QUALITY)
    else:
        smaller.save(buffer, format="PNG")
    hash_bits = difference_hash(smaller)
    return CheckedImage(data=buffer.getvalue(), width=smaller.width, height=smaller.height, hash=hash_bits, became_png=not is_jpeg)


def difference_hash(picture: Image.Image) -> int:
    """64 bits that say where a small grey copy of a picture grows brighter from left to right: near for pictures that look alike.

    >>> difference_hash(Image.new("RGB", (40, 30), "red"))
    0
    """
    # First by whole pixels to what a JPEG is decoded at for this, then smoothly: with boxes alone copies are three times as far apart.
    small = picture.convert("L").resize((9, 8), Image.Resampling.LANCZOS, reducing_gap=HASH_GAP)
    gray = np.asarray(small, dtype=np.int16)
    bits = np.packbits(gray[:, 1:] > gray[:, :-1])
    return int.from_bytes(bits.tobytes(), "big")
