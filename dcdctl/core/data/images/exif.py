"""What cameras write into image files: when, with what and where a photo was taken. Damaged EXIF data count as
missing."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any, BinaryIO, Literal

import pyarrow as pa
from PIL import Image
from PIL.ExifTags import GPS, IFD, Base
from PIL.JpegImagePlugin import jpeg_factory

from dcdctl.core.data.columns import MOMENT
from dcdctl.core.data.images.formats import HEAD_BYTES, HEIF, JPEG, PILLOW_FORMATS, RAW, TIFF, ImageError, recognize
from dcdctl.core.data.images.opened import DECODE_ERRORS, ignore_pillow_warnings, open_heif

CAMERA_COLUMNS = {"taken": MOMENT, "year": pa.int64(), "camera": pa.string()}
PLACE_COLUMNS = {"latitude": pa.float64(), "longitude": pa.float64()}
"""Degrees, north and east positive."""
_FUJIFILM = b"FUJIFILMCCD-RAW"
_CANON = b"ftypcrx "
_LARGE_TIFF = (b"+\0", b"\0+")
_BYTE_ORDERS: dict[bytes, Literal["little", "big"]] = {b"II": "little", b"MM": "big"}
MAX_EXIF_BYTES = 1 << 18
"""EXIF data of a preview, and those of a CR3, stand near the beginning and have at most 64 KB."""
_TIMES = (Base.DateTimeOriginal, Base.DateTimeDigitized, Base.DateTime)
"""The tags of a moment, the best first; the last one is when the file was changed."""

_MOMENT = re.compile(r"(\d{4})[:/-](\d\d)[:/-](\d\d)[ T](\d\d):(\d\d):(\d\d)", re.ASCII)
"""The standard has colons in a date; some programs write it otherwise, or an offset behind the time."""


def read_exif(file: BinaryIO, *, place: bool) -> dict[str, Any]:
    """The values of `CAMERA_COLUMNS`, and with `place` of `PLACE_COLUMNS`; None for those that the file lacks. Reads no
    pixels."""
    names = [*CAMERA_COLUMNS, *PLACE_COLUMNS] if place else CAMERA_COLUMNS
    values: dict[str, Any] = dict.fromkeys(names)
    # Pillow warns about damaged data, which are expected here.
    ignore_pillow_warnings()
    try:
        tags, position = _find_tags(file)
    # ImageError: pi-heif is not installed.
    except (*DECODE_ERRORS, Image.DecompressionBombError, ImageError):
        return values
    values["taken"], values["year"] = _taken(tags)
    # The model often begins with the maker.
    make, model = _text(tags.get(Base.Make)), _text(tags.get(Base.Model))
    values["camera"] = (model if model.lower().startswith(make.lower()) else f"{make} {model}".strip()) or None
    if place:
        latitude = _degrees(position, GPS.GPSLatitude, GPS.GPSLatitudeRef, "S", 90)
        longitude = _degrees(position, GPS.GPSLongitude, GPS.GPSLongitudeRef, "W", 180)
        # Half a place is none, and programs that remove places write zeros.
        if None not in (latitude, longitude) and (latitude or longitude):
            values |= {"latitude": latitude, "longitude": longitude}
    return values


def read_orientation(file: BinaryIO) -> int:
    """The EXIF orientation by which the pixels that a file stores are turned upright, 1 to 8; 1 if it says none. Reads
    no pixels."""
    ignore_pillow_warnings()
    try:
        # Every decoder of HEIF turns its images upright, by a setting that is not EXIF.
        is_turned = recognize(file.read(HEAD_BYTES)) is HEIF
        file.seek(0)
        value = 1 if is_turned else _find_tags(file)[0].get(Base.Orientation, 1)
    except (*DECODE_ERRORS, Image.DecompressionBombError):
        return 1
    return value if value in range(1, 9) else 1


_Tags = Mapping[int, Any]


def _find_tags(file: BinaryIO) -> tuple[_Tags, _Tags]:
    """The EXIF tags of an image file, of a photo and of its place; empty if it has none."""
    head = file.read(HEAD_BYTES)
    file.seek(0)
    if head.startswith(_CANON, 4):
        # Three directories in boxes of their own: of the camera, of the photo, and of the place.
        start = file.read(MAX_EXIF_BYTES)
        camera, photo, position = (_in_box(start, name) for name in (b"CMT1", b"CMT2", b"CMT4"))
        return {**camera, **photo}, position
    exif = _find_exif(file, head)
    return {**exif, **exif.get_ifd(IFD.Exif)}, exif.get_ifd(IFD.GPSInfo)


def _in_box(data: bytes, name: bytes) -> Image.Exif:
    exif = Image.Exif()
    if (at := data.find(name)) >= 4:
        size = int.from_bytes(data[at - 4 : at], "big")
        exif.load(data[at + len(name) : at - 4 + size])
    return exif


def _find_exif(file: BinaryIO, head: bytes) -> Image.Exif:
    exif = Image.Exif()
    format = recognize(head)
    if format is HEIF:
        exif.load(open_heif(file.read()).info.get("exif") or b"")
        return exif
    if head.startswith(_FUJIFILM):
        # Its preview is a JPEG with the EXIF data of the photo; the header says where.
        file.seek(int.from_bytes(head[84:88], "big"))
        return jpeg_factory(io.BytesIO(file.read(MAX_EXIF_BYTES))).getexif()
    if format in (TIFF, RAW) and head[:2] in _BYTE_ORDERS and head[2:4] not in _LARGE_TIFF:
        # Read as a directory of tags: Pillow knows neither the marks of Olympus and Panasonic in place of 42, nor the
        # compression of the pixels in most RAW photos.
        order = _BYTE_ORDERS[head[:2]]
        exif.endian = "<" if order == "little" else ">"
        exif.load_from_fp(file, int.from_bytes(head[4:8], order))
        return exif
    # JPEG apart, because `Image.open` refuses large photos.
    if format is JPEG:
        return jpeg_factory(file).getexif()
    with Image.open(file, formats=PILLOW_FORMATS) as image:
        if image.format != "PNG":
            return image.getexif()
        # Pillow would decode a PNG to its end, to look for EXIF data behind the pixels.
        if "exif" in image.info:
            exif.load(image.info["exif"])
    return exif


def _text(value: object) -> str:
    """A text of a tag without the zeros and blanks that fill it up; empty if it is none."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    text = value if isinstance(value, str) else ""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text.partition("\0")[0]).split())


def _taken(tags: Mapping[int, Any]) -> tuple[datetime | None, int | None]:
    """The moment on the camera's clock, and its year: what people remember of a day far from home. The offset from UTC
    is ignored, which most cameras do not write."""
    for tag in _TIMES:
        if (match := _MOMENT.match(_text(tags.get(tag)))) is None:
            continue
        try:
            year, month, day, hour, minute, second = map(int, match.groups())
            local = datetime(year, month, day, hour, minute, second)
        except ValueError:  # such as February 31
            continue
        return local, local.year
    return None, None


def _degrees(position: Mapping[int, Any], tag: int, reference: int, negative: str, most: float) -> float | None:
    """Degrees, minutes and seconds as degrees; None if they are damaged."""
    try:
        degrees, minutes, seconds = (float(part) for part in position[tag])
    except (LookupError, TypeError, ValueError, ArithmeticError):
        return None
    value = degrees + minutes / 60 + seconds / 3600
    if not math.isfinite(value) or not 0 <= value <= most:
        return None
    # Seven digits are a centimeter; more are rounding errors of minutes and seconds.
    return round(-value if _text(position.get(reference)).upper() == negative else value, 7)
