"""Image files whose header promises more pixels than their data hold, and complete files that resemble them."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image

SIZE = 96, 64
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (SIZE[1], SIZE[0], 3), dtype=np.uint8))


def encoded(form, image=NOISE, **options):
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def jpeg_of_size(width, height, data=None):
    """A JPEG with another size in its header, ended as if it were complete."""
    data = bytearray(encoded("JPEG") if data is None else data)
    frame = next(at for marker in (b"\xff\xc0", b"\xff\xc1", b"\xff\xc2") if (at := data.find(marker)) > 0)
    data[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def png_of_size(width, height):
    data = bytearray(encoded("PNG"))
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


def gif_of_size(width, height):
    data = bytearray(encoded("GIF"))
    data[6:10] = struct.pack("<HH", width, height)
    frame = data.find(b"\x2c", 13 + 768)
    data[frame + 5 : frame + 9] = struct.pack("<HH", width, height)
    return bytes(data)


def bmp_of_size(width, height):
    data = bytearray(encoded("BMP"))
    data[18:26] = struct.pack("<ii", width, height)
    return bytes(data)


def ppm_of_size(width, height):
    return b"P6 %d %d 255\n" % (width, height) + NOISE.tobytes()


def webp_of_size(width, height):
    data = bytearray(encoded("WEBP"))
    frame = data.find(b"\x9d\x01\x2a")
    data[frame + 3 : frame + 7] = struct.pack("<HH", width, height)
    return bytes(data)


def tiff_of_size(width, height, compression=None):
    data = bytearray(encoded("TIFF", compression=compression))
    (directory,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, directory)
    for at in range(directory + 2, directory + 2 + 12 * count, 12):
        (tag,) = struct.unpack_from("<H", data, at)
        if tag in (256, 257):
            struct.pack_into("<HII", data, at + 2, 4, 1, width if tag == 256 else height)
    return bytes(data)


OF_SIZE = {
    "jpeg": jpeg_of_size,
    "gray jpeg": lambda width, height: jpeg_of_size(width, height, encoded("JPEG", NOISE.convert("L"))),
    "cmyk jpeg": lambda width, height: jpeg_of_size(width, height, encoded("JPEG", NOISE.convert("CMYK"))),
    "jpeg with restart markers": lambda width, height: jpeg_of_size(
        width, height, encoded("JPEG", restart_marker_rows=1)
    ),
    "jpeg with its own codes": lambda width, height: jpeg_of_size(width, height, encoded("JPEG", optimize=True)),
    "png": png_of_size,
    "gif": gif_of_size,
    "bmp": bmp_of_size,
    "ppm": ppm_of_size,
    "tiff": tiff_of_size,
    "lzw tiff": lambda width, height: tiff_of_size(width, height, "tiff_lzw"),
    "deflate tiff": lambda width, height: tiff_of_size(width, height, "tiff_adobe_deflate"),
    "packbits tiff": lambda width, height: tiff_of_size(width, height, "packbits"),
    "webp": webp_of_size,
    "progressive jpeg": lambda width, height: jpeg_of_size(width, height, encoded("JPEG", progressive=True)),
    "jpeg in a tiff": lambda width, height: tiff_of_size(width, height, "jpeg"),
}
"""The format -> a function that makes a file of 96 x 64 pixels whose header says another size."""
TALLER = (96, 128)
LARGER = [TALLER, (96, 72), (128, 64), (3000, 3000), (8000, 1200)]
UNNOTICED = {
    *(("webp", (128, 64)), ("jpeg in a tiff", (128, 64))),
    *(("progressive jpeg", size) for size in LARGER[:3]),
    *((form, size) for form in ("png", "tiff") for size in LARGER[:2]),
}
"""Their decoders invent the rest and do not say so: the sizes at which Pillow gives no sign."""


def interlaced_png(pixels_YX):
    """A gray PNG in the seven passes of Adam7, which Pillow cannot write."""
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    parts = [pixels_YX[top::down, left::across] for top, left, down, across in passes]
    rows = b"".join(b"\0" + row.tobytes() for part in parts if part.size for row in part)
    height, width = pixels_YX.shape
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 1),
        b"IDAT": zlib.compress(rows),
        b"IEND": b"",
    }
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks.items()
    )
