"""Pictures of scenes."""

from __future__ import annotations

import io
from collections.abc import Callable

from PIL import Image, ImageDraw

from dcdctl.core.scenes import COLORS, GRID, Scene

RADIUS_IN_CELLS = {"small": 0.28, "large": 0.46}


def draw(scene: Scene, side_px: int = 128) -> Image.Image:
    """The picture of a scene, square, RGB, antialiased by drawing at twice the size."""
    scale = 2
    side = side_px * scale
    image = Image.new("RGB", (side, side), scene.background)
    canvas = ImageDraw.Draw(image)
    cell = side / GRID
    for thing in scene.objects:
        x = (thing.column + 0.5 + thing.shift[0]) * cell
        y = (thing.row + 0.5 + thing.shift[1]) * cell
        _PAINTERS[thing.shape](canvas, x, y, RADIUS_IN_CELLS[thing.size] * cell, COLORS[thing.color], scene.background)
    return image.reduce(scale)


def to_png(image: Image.Image) -> bytes:
    """The picture as PNG bytes, the same for the same picture."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=6)
    return buffer.getvalue()


Color = tuple[int, int, int]
Painter = Callable[[ImageDraw.ImageDraw, float, float, float, Color, Color], None]
# Outlines in a square from -1 to 1, x to the right and y down.
_POLYGONS: dict[str, tuple[tuple[float, float], ...]] = {
    "square": ((-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)),
    "triangle": ((0, -0.95), (0.95, 0.8), (-0.95, 0.8)),
    "diamond": ((0, -1), (0.7, 0), (0, 1), (-0.7, 0)),
    "star": (
        *((0, -1), (0.24, -0.33), (0.95, -0.31), (0.39, 0.13), (0.59, 0.81)),
        *((0, 0.42), (-0.59, 0.81), (-0.39, 0.13), (-0.95, -0.31), (-0.24, -0.33)),
    ),
    "cross": (
        *((-0.33, -0.95), (0.33, -0.95), (0.33, -0.33), (0.95, -0.33), (0.95, 0.33), (0.33, 0.33)),
        *((0.33, 0.95), (-0.33, 0.95), (-0.33, 0.33), (-0.95, 0.33), (-0.95, -0.33), (-0.33, -0.33)),
    ),
    "arrow": ((-1, -0.3), (0.1, -0.3), (0.1, -0.85), (1, 0), (0.1, 0.85), (0.1, 0.3), (-1, 0.3)),
}


def _paint_polygon(shape: str) -> Painter:
    def paint(canvas: ImageDraw.ImageDraw, x: float, y: float, radius: float, color: Color, _: Color) -> None:
        canvas.polygon([(x + radius * px, y + radius * py) for px, py in _POLYGONS[shape]], fill=color)

    return paint


def _paint_disc(canvas: ImageDraw.ImageDraw, x: float, y: float, radius: float, color: Color) -> None:
    canvas.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)


def _paint_circle(canvas: ImageDraw.ImageDraw, x: float, y: float, radius: float, color: Color, _: Color) -> None:
    _paint_disc(canvas, x, y, 0.95 * radius, color)


def _paint_ring(canvas: ImageDraw.ImageDraw, x: float, y: float, radius: float, color: Color, background: Color) -> None:
    _paint_disc(canvas, x, y, radius, color)
    _paint_disc(canvas, x, y, 0.55 * radius, background)


def _paint_moon(canvas: ImageDraw.ImageDraw, x: float, y: float, radius: float, color: Color, background: Color) -> None:
    _paint_disc(canvas, x, y, 0.95 * radius, color)
    _paint_disc(canvas, x + 0.45 * radius, y - 0.1 * radius, 0.75 * radius, background)


def _paint_heart(canvas: ImageDraw.ImageDraw, x: float, y: float, radius: float, color: Color, _: Color) -> None:
    for side in (-1, 1):
        _paint_disc(canvas, x + side * 0.45 * radius, y - 0.35 * radius, 0.5 * radius, color)
    canvas.polygon([(x - 0.9 * radius, y - 0.13 * radius), (x + 0.9 * radius, y - 0.13 * radius), (x, y + 0.95 * radius)], fill=color)


_PAINTERS: dict[str, Painter] = {
    **{shape: _paint_polygon(shape) for shape in _POLYGONS},
    "circle": _paint_circle,
    "ring": _paint_ring,
    "moon": _paint_moon,
    "heart": _paint_heart,
}
