"""The preview in a RAW photo: the image that the camera made of it, as large as the photo or a little smaller."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dcdctl.core.data.images.formats import NO_PREVIEW, NO_RAW, ImageError

_ORIENTATIONS = {0: 1, 1: 2, 2: 4, 3: 3, 4: 5, 5: 8, 6: 6, 7: 7}
"""LibRaw's `flip` -> the EXIF orientation of the same turn."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RawPreview:
    """The largest preview in a RAW photo."""

    content: bytes | NDArray[np.uint8]
    """A JPEG file, or the pixels: height x width x 3."""
    orientation: int | None
    """The EXIF orientation of the photo, 1 to 8; None if the preview says its own."""


def extract_preview(data: bytes) -> RawPreview:
    """The preview in a RAW photo; ImageError if it has none, or if rawpy is not installed."""
    try:
        import rawpy
    except ImportError as error:
        raise ImageError("a RAW photo, and the package rawpy is not installed", NO_RAW) from error
    # Not by `rawpy.imread`, which warns in forked processes of threads that only the sensor's data need.
    with rawpy.RawPy() as raw:
        try:
            raw.open_buffer(io.BytesIO(data))
            sizes = raw.sizes
            preview = raw.extract_thumb()
        except (rawpy.LibRawNoThumbnailError, rawpy.LibRawUnsupportedThumbnailError) as error:
            raise ImageError("a RAW photo without a preview", NO_PREVIEW) from error
        except rawpy.LibRawError as error:
            raise ImageError(f"the RAW photo is truncated, damaged or of an unknown camera ({error})") from error
    orientation = _ORIENTATIONS.get(sizes.flip, 1)
    # Without a turn of the photo, the preview may have one of its own.
    return RawPreview(content=preview.data, orientation=orientation if orientation > 1 else None)
