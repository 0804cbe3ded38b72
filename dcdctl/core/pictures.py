"""Image files: checked, measured, made smaller, and decoded to upright RGB."""

from __future__ import annotations

import io
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
JPEG_QUALITY = 95
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


class PictureError(ValueError):
    """An image file that cannot be used; the message says why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckedPicture:
    """An image file that decodes to its end; `width` and `height` are those of the upright picture."""

    data: bytes
    width: int
    height: int
    became_png: bool = False


def decode(data: bytes) -> Image.Image:
    """The picture of an image file, upright and RGB; transparency is dropped, 16 bits a channel become 8."""
    with _pillow_errors(), Image.open(io.BytesIO(data), formats=FORMATS) as image:
        image.load()
        return _turn(_to_rgb(image), _orientation(image))


def check(data: bytes, max_side_px: int | None = None) -> CheckedPicture:
    """Decode a file to its end and measure it; with `max_side_px`, shrink a larger one so that its shorter side is that long."""
    if not data:
        raise PictureError("the image file is empty (0 bytes)")
    with _pillow_errors(), Image.open(io.BytesIO(data), formats=FORMATS) as image:
        width, height = image.size
        if max_side_px is not None and min(width, height) > max_side_px:
            image.load()
            return _shrink(_turn(_to_rgb(image), _orientation(image)), max_side_px, keep_jpeg=image.format in ("JPEG", "MPO"))
        # A JPEG is read to its end at an eighth of its size too, in half the time.
        image.draft("L", (1, 1))
        image.load()
        turned = _orientation(image) >= 5
    return CheckedPicture(data=data, width=height if turned else width, height=width if turned else height)


@contextmanager
def _pillow_errors() -> Iterator[None]:
    """Pillow's many errors as PictureError; its warning about a decompression bomb is one, its warnings about odd metadata are none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            yield
        except PictureError:
            raise
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            raise PictureError(f"too many pixels, it may be a decompression bomb (the limit is {Image.MAX_IMAGE_PIXELS:,})") from error
        except UnidentifiedImageError as error:
            raise PictureError(f"not an image file that is read here ({', '.join(FORMATS)})") from error
        except _DECODE_ERRORS as error:
            raise PictureError(f"the image is truncated or damaged ({error})") from error


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
    if image.mode.startswith("I"):
        # Pillow would clip 16-bit gray at 255, that is to white.
        return Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def _shrink(image: Image.Image, side_px: int, *, keep_jpeg: bool) -> CheckedPicture:
    scale = side_px / min(image.size)
    width, height = (max(side_px, round(side * scale)) for side in image.size)
    buffer = io.BytesIO()
    smaller = image.resize((width, height), Image.Resampling.BICUBIC)
    if keep_jpeg:
        smaller.save(buffer, format="JPEG", quality=JPEG_QUALITY)
    else:
        smaller.save(buffer, format="PNG")
    return CheckedPicture(data=buffer.getvalue(), width=width, height=height, became_png=not keep_jpeg)


def difference_hash(picture: Image.Image) -> int:
    """64 bits that say where a small grey copy of a picture grows brighter from left to right: near for pictures that look alike.

    >>> difference_hash(Image.new("RGB", (40, 30), "red"))
    0
    """
    small = np.asarray(picture.convert("L").resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    bits = np.packbits(small[:, 1:] > small[:, :-1])
    return int.from_bytes(bits.tobytes(), "big")
