"""What cameras write into image files: when, with what and where a photo was taken. Damaged EXIF data count as
missing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, BinaryIO

import pyarrow as pa
from PIL import Image
from PIL.ExifTags import GPS, IFD, Base

from dcdctl.core.data.columns import MOMENT
from dcdctl.core.data.images.decode import DECODE_ERRORS, FORMATS, ignore_pillow_warnings

CAMERA_COLUMNS = {"taken": MOMENT, "year": pa.int64(), "camera": pa.string()}
PLACE_COLUMNS = {"latitude": pa.float64(), "longitude": pa.float64()}
"""Degrees, north and east positive."""
_TIMES = (
    (Base.DateTimeOriginal, Base.OffsetTimeOriginal),
    (Base.DateTimeDigitized, Base.OffsetTimeDigitized),
    (Base.DateTime, Base.OffsetTime),
)
"""The tags of a moment and of its offset from UTC, the best first; the last one is when the file was changed."""


def read_exif(file: BinaryIO, *, place: bool) -> dict[str, Any]:
    """The values of `CAMERA_COLUMNS`, and with `place` of `PLACE_COLUMNS`; None for those that the file lacks. Reads no
    pixels."""
    names = [*CAMERA_COLUMNS, *PLACE_COLUMNS] if place else CAMERA_COLUMNS
    values: dict[str, Any] = dict.fromkeys(names)
    # Pillow warns about damaged data, which are expected here.
    ignore_pillow_warnings()
    try:
        with Image.open(file, formats=FORMATS) as image:
            exif = Image.Exif()
            if image.format != "PNG":
                exif = image.getexif()
            # Pillow would decode a PNG to its end, to look for EXIF data behind the pixels.
            elif "exif" in image.info:
                exif.load(image.info["exif"])
            tags = {**exif, **exif.get_ifd(IFD.Exif)}
            position = exif.get_ifd(IFD.GPSInfo) if place else {}
    except (*DECODE_ERRORS, Image.DecompressionBombError):
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


def _text(value: object) -> str:
    """A text of a tag without the zeros and blanks that fill it up; empty if it is none."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    text = value if isinstance(value, str) else ""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text.partition("\0")[0]).split())


def _taken(tags: Mapping[int, Any]) -> tuple[datetime | None, int | None]:
    """The moment in UTC and the year on the camera's clock. A clock without an offset, as of most cameras, is taken for
    one in UTC."""
    for time, offset in _TIMES:
        try:
            local = datetime.strptime(_text(tags.get(time)), "%Y:%m:%d %H:%M:%S")
        except ValueError:
            continue
        try:
            zone = datetime.strptime(_text(tags.get(offset)), "%z").tzinfo
            return local.replace(tzinfo=zone).astimezone(UTC).replace(tzinfo=None), local.year
        except (ValueError, OverflowError):
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
