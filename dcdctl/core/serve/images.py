"""Images of an index as HTTP responses, and uploaded images."""

from __future__ import annotations

import hashlib
from typing import Literal

from PIL import Image
from starlette.exceptions import HTTPException
from starlette.responses import Response

from dcdctl.core.data import ImageError, decode_image, for_browser, thumbnail
from dcdctl.core.errors import DcdError
from dcdctl.core.search import ImageIndex
from dcdctl.core.serve.service_config import ServiceConfig
from dcdctl.core.stores import UnavailableError

Size = Literal["thumbnail", "preview", "original"]
PREVIEW_PX = 1600
"""Longer side of a preview, which browsers show whatever the file is: they read neither HEIC nor TIFF."""
START_OF_SCAN = b"\xff\xda"
# Short, because a row may be another image in the next index, and a removed image should not stay visible for long.
CACHE_S = 300
"""Seconds for which a browser shows an image again without asking; later it asks, and loads only what has changed."""


def uploaded(data: bytes, config: ServiceConfig) -> Image.Image:
    """An uploaded image, upright and RGB; ImageError if it is not an image, or would take too long or too much memory
    to decode."""
    # In the compressed data of a JPEG a byte of 255 is followed by 0, so each of these marks a scan over the whole
    # image.
    if data[:2] == b"\xff\xd8" and (num_scans := data.count(START_OF_SCAN)) > config.max_scans:
        raise ImageError(f"a JPEG of {num_scans:,} scans, at most {config.max_scans} are decoded")
    return decode_image(data, max_pixels=config.max_pixels)


def image_of(index: ImageIndex, row: int) -> Image.Image:
    """The image of a row, upright and RGB; 404 if it is gone or damaged."""
    data = _image_bytes(index, row)
    try:
        return decode_image(data)
    except ImageError as error:
        raise _gone(row) from error


def respond(index: ImageIndex, row: int, size: Size, if_none_match: str, *, config: ServiceConfig) -> Response:
    """The image of a row, as a JPEG without metadata, small or to fill a screen, or as the original file, which becomes
    a JPEG if browsers do not show its format; 304 if the client has it already (`if_none_match`, the header of the
    request), 404 if it is gone or damaged."""
    data = _image_bytes(index, row)
    # The size too: after a change of the settings browsers must not keep the old thumbnails.
    longer_side = {"thumbnail": config.thumbnail_px, "preview": PREVIEW_PX, "original": None}[size]
    form = "original" if longer_side is None else f"thumbnail {longer_side}"
    tag = f'"{hashlib.sha256(form.encode() + data).hexdigest()[:32]}"'
    headers = {"ETag": tag, "Cache-Control": f"private, max-age={CACHE_S}"}
    # Proxies that compress mark a tag as weak.
    if tag in [known.strip().removeprefix("W/") for known in if_none_match.split(",")]:
        return Response(status_code=304, headers=headers)
    try:
        if longer_side is None:
            shown, media_type = for_browser(data)
            return Response(shown, media_type=media_type, headers=headers)
        return Response(thumbnail(data, longer_side), media_type="image/jpeg", headers=headers)
    except ImageError as error:
        raise _gone(row) from error


def _image_bytes(index: ImageIndex, row: int) -> bytes:
    try:
        return index.image_bytes(row)
    except UnavailableError:
        raise
    except DcdError as error:  # its message contains paths of this machine
        raise _gone(row) from error


def _gone(row: int) -> HTTPException:
    return HTTPException(404, f"image {row} is not in this index, or not where it was")
