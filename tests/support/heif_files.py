"""Small HEIC photos. The package that reads them writes none, so they lie in tests/fixtures; run this file in an
environment with pillow-heif 1.8, which has an encoder under the GPL, to write them again."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

FIXTURES = Path(__file__).parents[1] / "fixtures"
SIZE = 96, 64
"""Of the upright pictures: a left half and a right half of these colors."""
COLORS = {
    "heic_a.heic": ("red", "blue"),
    "heic_b.heic": ("green", "white"),
    "heic_turned.heic": ("red", "blue"),
    "heic_tiles.heic": ("red", "blue"),
}
"""`heic_turned` is stored on its side, with the turn both in its boxes and in its EXIF data, as phones do;
`heic_tiles` has two tiles, as large photos have many."""
TAKEN, MODEL = "2021:06:01 12:34:56", "iPhone 12 mini"


def heic(name="heic_a.heic", *, taken=TAKEN, model=MODEL) -> bytes:
    """The photo of a fixture, taken at that time with that camera: texts as long as those of the fixture, so that they
    can be put in their place."""
    data = (FIXTURES / name).read_bytes()
    for old, new in ((TAKEN, taken), (MODEL, model)):
        assert len(new.encode()) <= len(old)
        data = data.replace(old.encode(), new.encode().ljust(len(old), b"\0"))
    return data


def halves(colors, size=SIZE) -> Image.Image:
    """A picture whose left and right halves have these colors."""
    picture = Image.new("RGB", size, colors[1])
    picture.paste(colors[0], (0, 0, size[0] // 2, size[1]))
    return picture


def _write() -> None:
    import pillow_heif

    for name, colors in COLORS.items():
        exif = Image.Exif()
        exif.update({0x010F: "Apple", 0x0110: MODEL})
        exif[0x8769] = {0x9003: TAKEN}
        exif[0x8825] = {1: "N", 2: (52.0, 31.0, 12.0), 3: "E", 4: (13.0, 24.0, 18.0)}
        picture = halves(colors)
        if name == "heic_turned.heic":
            # 6: its first row is the right side, so it is turned by 90 degrees clockwise when it is shown.
            exif[0x0112] = 6
            picture = picture.transpose(Image.Transpose.ROTATE_90)
        file = pillow_heif.from_pillow(picture)
        stream = io.BytesIO()
        tiles = {"tile_size": 64} if name == "heic_tiles.heic" else {}
        file.save(stream, quality=60, exif=exif.tobytes(), **tiles)
        (FIXTURES / name).write_bytes(stream.getvalue())


if __name__ == "__main__":
    _write()
