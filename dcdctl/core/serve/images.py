"""Pictures of an index as answers, and pictures that were uploaded."""

from __future__ import annotations

import hashlib
from typing import Literal

from PIL import Image
from starlette.exceptions import HTTPException
from starlette.responses import Response

from dcdctl.core.data import ImageError, decode_image, media_type, thumbnail
from dcdctl.core.errors import DcdError
from dcdctl.core.search import Index
from dcdctl.core.serve.config import ServiceConfig

Size = Literal["thumbnail", "original"]
START_OF_SCAN = b"\xff\xda"


def uploaded(data: bytes, config: ServiceConfig) -> Image.Image:
    """The picture of an uploaded file, upright and RGB; PictureError if it is none, or would take too long or too much memory to decode."""
    # In a JPEG's compressed data a byte of 255 is followed by 0, so each of these is a pass over the whole picture.
    if data[:2] == b"\xff\xd8" and (num_scans := data.count(START_OF_SCAN)) > config.max_scans:
        raise ImageError(f"a JPEG of {num_scans:,} passes, at most {config.max_scans} are decoded")
    return decode_image(data, max_pixels=config.max_pixels)


def picture_of(index: Index, row: int) -> Image.Image:
    """The picture of a row, upright and RGB; a 404 if it is not there."""
    data = _bytes_of(index, row)
    try:
        return decode_image(data)
    except ImageError as error:
        raise _gone(row) from error


def answer(index: Index, row: int, size: Size, known: str, config: ServiceConfig) -> Response:
    """The picture of a row: made small, as JPEG without metadata, or the file as it is; a 404 if it is not there or is no picture.

    `known` is the request's If-None-Match; a browser asks each time, since a row may be another picture in the next index.
    """
    data = _bytes_of(index, row)
    part = "original" if size == "original" else f"thumbnail {config.thumbnail_px}"
    tag = tag_of(data, part)
    if is_known(tag, known):
        return Response(status_code=304, headers=caching(tag))
    try:
        if size == "original":
            return Response(data, media_type=media_type(data), headers=caching(tag))
        return Response(thumbnail(data, config.thumbnail_px), media_type="image/jpeg", headers=caching(tag))
    except ImageError as error:
        raise _gone(row) from error


def tag_of(data: bytes, part: str = "") -> str:
    """The ETag of what is made of these bytes."""
    return f'"{hashlib.blake2b(data, digest_size=16, person=part.encode()[:16]).hexdigest()}"'


def is_known(tag: str, known: str) -> bool:
    """Whether an If-None-Match names an ETag; proxies that compress mark it as weak."""
    return tag in [one.strip().removeprefix("W/") for one in known.split(",")]


def caching(tag: str) -> dict[str, str]:
    """Headers of what may be kept, and is asked for again each time."""
    return {"ETag": tag, "Cache-Control": "private, no-cache"}


def _bytes_of(index: Index, row: int) -> bytes:
    try:
        return index.picture(row)
    except DcdError as error:  # its message names folders of this machine
        raise _gone(row) from error


def _gone(row: int) -> HTTPException:
    return HTTPException(404, f"picture {row} is not in this index, or not where it was")
