"""RAW photos as cameras write them, but small: a TIFF whose directories hold a thumbnail, the data of the sensor, the
preview, and what the camera says."""

from __future__ import annotations

import io
import struct

import numpy as np
from PIL import Image

BYTE, ASCII, SHORT, LONG, SIGNED = 1, 2, 3, 4, 10
"""Types of the values of tags."""
_LETTERS = {BYTE: "B", SHORT: "H", LONG: "I", SIGNED: "ii"}
UNIT_MATRIX = (1, 1, 0, 1, 0, 1, 0, 1, 1, 1, 0, 1, 0, 1, 0, 1, 1, 1)
"""Nine fractions."""


class Tiff:
    """A TIFF that is written from its inner directories outwards."""

    def __init__(self) -> None:
        self._data = bytearray(b"II*\0" + bytes(4))

    def put(self, block: bytes) -> int:
        """Append a block; gives its place."""
        self._data += bytes(len(self._data) % 2)
        self._data += block
        return len(self._data) - len(block)

    def directory(self, tags: dict) -> int:
        """Append a directory of tags, a number -> its type and values; gives its place."""
        entries = b""
        for tag in sorted(tags):
            type_, values = tags[tag]
            if type_ == ASCII:
                packed = values.encode() + b"\0"
                count = len(packed)
            else:
                count = len(values) // len(_LETTERS[type_])
                packed = struct.pack("<" + _LETTERS[type_] * count, *values)
            value = packed.ljust(4, b"\0") if len(packed) <= 4 else struct.pack("<I", self.put(packed))
            entries += struct.pack("<HHI", tag, type_, count) + value
        return self.put(struct.pack("<H", len(tags)) + entries + bytes(4))

    def file(self, first: int) -> bytes:
        """The file, with the place of its first directory."""
        self._data[4:8] = struct.pack("<I", first)
        return bytes(self._data)

    def image(self, width, height, block, *, kind, compression, photometric, bits) -> dict:
        """The tags of an image whose data are a block."""
        return {
            254: (LONG, (kind,)),
            256: (LONG, (width,)),
            257: (LONG, (height,)),
            258: (SHORT, bits),
            259: (SHORT, (compression,)),
            262: (SHORT, (photometric,)),
            273: (LONG, (self.put(block),)),
            277: (SHORT, (len(bits),)),
            278: (LONG, (height,)),
            279: (LONG, (len(block),)),
        }


def dng(
    picture=None, *, orientation=1, taken="2022:07:08 09:10:11", make="Apple", model="iPhone 13 Pro", preview=None
) -> bytes:
    """A DNG whose first image is a gray thumbnail, where a TIFF has its image; then the data of the sensor and the
    preview, a JPEG of `picture` unless its bytes are given; none if they are empty."""
    picture, tiff = picture or Image.new("RGB", (120, 80), "red"), Tiff()
    if preview is None:
        stream = io.BytesIO()
        picture.save(stream, "JPEG", quality=90)
        preview = stream.getvalue()
    sensor = np.full((48, 64), 1000, np.uint16).tobytes()
    raw = tiff.image(64, 48, sensor, kind=0, compression=1, photometric=32803, bits=(16,))
    raw |= {33421: (SHORT, (2, 2)), 33422: (BYTE, (0, 1, 1, 2)), 50717: (LONG, (65535,))}
    inner = [tiff.directory(raw)]
    if preview:
        seen = tiff.image(*picture.size, preview, kind=1, compression=7, photometric=6, bits=(8, 8, 8))
        inner.append(tiff.directory(seen))
    thumbnail = np.full((6, 8, 3), 128, np.uint8).tobytes()
    first = tiff.image(8, 6, thumbnail, kind=1, compression=1, photometric=2, bits=(8, 8, 8))
    first |= {
        271: (ASCII, make),
        272: (ASCII, model),
        274: (SHORT, (orientation,)),
        330: (LONG, inner),
        34665: (LONG, (tiff.directory({36867: (ASCII, taken)}),)),
        50706: (BYTE, (1, 4, 0, 0)),
        50708: (ASCII, f"{make} {model}"),
        50721: (SIGNED, UNIT_MATRIX),
    }
    return tiff.file(tiff.directory(first))
