"""The built-in corpus: drawn images of a few objects, with captions that state the relation of two of them.

A scene has three to five objects on a 4 x 4 grid, with different shapes and different colors. Scenes come in families
of four with the same shapes, colors and sizes: the first scene; the same with every position reflected through the
center, which inverts every relation; the same with each color moved to the next object; and both. A caption names two
objects and their relation. It is true of one member of the family only, although its words fit all four.

Everything is a function of (seed, split, index). A hash of a family's objects decides its split, so the train, val and
test scenes of any two seeds are disjoint.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

from PIL import Image, ImageDraw

# 16 cells for at most 5 objects, so that every relation of two of them occurs.
GRID = 4
FAMILY_SIZE = 4
COLORS = {
    "red": "#d62728",
    "orange": "#ff8c14",
    "yellow": "#f0cd14",
    "green": "#32a03c",
    "teal": "#14afb9",
    "blue": "#2850d2",
    "purple": "#7d3caa",
    "pink": "#fa82be",
    "brown": "#82552d",
    "black": "#1e1e1e",
}
# Pale, so that no color of an object is lost.
BACKGROUNDS = ("#f5f5f0", "#e4eef6", "#f0e6d6", "#e2f0e2", "#f0e4f0")
SHAPES = ("circle", "square", "triangle", "star", "heart", "diamond", "cross", "ring", "moon", "arrow")
SIZES: dict[str, tuple[str, ...]] = {"small": ("small", "little", "tiny"), "large": ("large", "big")}
ANY = None
"""For a relation that does not depend on an axis."""
EXACT_SHARE, SIZE_SHARE, QUARTER_SHARE = 0.85, 0.95, 0.5
"""Shares of captions with a relation in both axes, of objects named with their size, of subjects named with their
quarter. They are so high because captions must tell 500 test scenes apart: a model that understands everything reaches
at least 95 R@1."""
TEMPLATES = (
    "a {subject} is {relation} a {object}",
    "the {subject} sits {relation} the {object}",
    "there is a {subject} {relation} a {object}",
    "{relation} the {object} there is a {subject}",
    "a {object} with a {subject} {relation} it",
)
# Shares of the families: a family is in one split, so no test scene has a near copy in train.
SPLIT_BUCKETS = {"train": range(8), "val": range(8, 9), "test": range(9, 10)}
# Mostly few: with more objects, a caption of two of them fits other scenes more often.
OBJECT_COUNTS = (3, 3, 4, 4, 5)
# Below half a cell, so that neighbors never touch.
RADIUS_IN_CELLS = {"small": 0.28, "large": 0.46}


@dataclass(frozen=True)
class SceneObject:
    """One drawn object; `column` and `row` are its grid cell, `shift` its offset from the center of the cell, in
    cells."""

    shape: str
    color: str
    size: str
    column: int
    row: int
    shift: tuple[float, float]

    @property
    def quarter(self) -> str:
        """The quarter of the image in which it lies, such as "top left"."""
        vertical = "top" if self.row < GRID // 2 else "bottom"
        horizontal = "left" if self.column < GRID // 2 else "right"
        return f"{vertical} {horizontal}"


@dataclass(frozen=True)
class Scene:
    """The content of an image."""

    objects: tuple[SceneObject, ...]
    background: str


@dataclass(frozen=True)
class Relation:
    """The position of a subject relative to an object, as the sign of the difference in columns and in rows."""

    columns: int | None
    rows: int | None
    phrases: tuple[str, ...]

    def holds(self, subject: SceneObject, other: SceneObject) -> bool:
        signs = _sign(subject.column - other.column), _sign(subject.row - other.row)
        return all(expected in (ANY, sign) for expected, sign in zip((self.columns, self.rows), signs, strict=True))

    @property
    def is_exact(self) -> bool:
        """Whether it depends on both axes."""
        return self.columns is not ANY and self.rows is not ANY


RELATIONS: dict[str, Relation] = {
    "left": Relation(-1, ANY, ("left of", "to the left of")),
    "right": Relation(1, ANY, ("right of", "to the right of")),
    "above": Relation(ANY, -1, ("above", "over")),
    "below": Relation(ANY, 1, ("below", "under")),
    "directly left": Relation(-1, 0, ("directly left of", "straight left of")),
    "directly right": Relation(1, 0, ("directly right of", "straight right of")),
    "directly above": Relation(0, -1, ("directly above", "straight above")),
    "directly below": Relation(0, 1, ("directly below", "straight below")),
    "upper left": Relation(-1, -1, ("above and left of", "to the upper left of")),
    "upper right": Relation(1, -1, ("above and right of", "to the upper right of")),
    "lower left": Relation(-1, 1, ("below and left of", "to the lower left of")),
    "lower right": Relation(1, 1, ("below and right of", "to the lower right of")),
}


@dataclass(frozen=True)
class Mention:
    """An object as a caption names it; `size` and `quarter` are None if the caption does not give them."""

    shape: str
    color: str
    size: str | None
    quarter: str | None


@dataclass(frozen=True)
class Statement:
    """A caption and its meaning: `subject` is `relation` (such as left of) `object`."""

    text: str
    subject: Mention
    relation: str
    object: Mention


@dataclass(frozen=True)
class DescribedScene:
    """A scene with its captions: one image of the corpus."""

    scene: Scene
    statements: tuple[Statement, ...]


def describe_scenes(seed: int, split: str, num_captions: int = 5) -> Iterator[DescribedScene]:
    """An endless sequence of the scenes of a split, one family after the other."""
    for index in itertools.count():
        yield from describe_family(seed, split, index, num_captions)


def describe_family(seed: int, split: str, index: int, num_captions: int = 5) -> list[DescribedScene]:
    """The four scenes of one family."""
    # Random hashes a text seed with SHA-512, so scenes are equal in every process.
    rng = random.Random(f"scenes/{seed}/{split}/{index}")
    family = []
    for scene in _draw_family(rng, split):
        pairs = [(first, second) for first in scene.objects for second in scene.objects if first is not second]
        written: dict[str, Statement] = {}
        # Different captions, which use all pairs of objects before a pair is used again.
        while len(written) < num_captions:
            for subject, thing in rng.sample(pairs, min(len(pairs), num_captions - len(written))):
                statement = _write_statement(rng, subject, thing)
                written.setdefault(statement.text, statement)
        family.append(DescribedScene(scene, tuple(written.values())))
    return family


def split_of(scene: Scene) -> str:
    """The only split in which the family of this scene may appear."""
    # Without positions, and colors apart from shapes: the four members of a family have the same key.
    key = sorted((thing.shape, thing.size) for thing in scene.objects), sorted(thing.color for thing in scene.objects)
    # Not hash(), which differs between processes.
    bucket = int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8], "big") % 10
    return next(split for split, buckets in SPLIT_BUCKETS.items() if bucket in buckets)


def _draw_family(rng: random.Random, split: str) -> list[Scene]:
    first = _draw_scene(rng)
    while split_of(first) != split:
        first = _draw_scene(rng)
    last = GRID - 1
    reflected = tuple(replace(thing, column=last - thing.column, row=last - thing.row) for thing in first.objects)
    family = []
    for objects in (first.objects, reflected, _rotate_colors(first.objects), _rotate_colors(reflected)):
        # Off the centers of the cells, so that no two scenes have equal pixels.
        shifted = [replace(thing, shift=(rng.uniform(-0.06, 0.06), rng.uniform(-0.06, 0.06))) for thing in objects]
        family.append(Scene(tuple(shifted), rng.choice(BACKGROUNDS)))
    return family


def _draw_scene(rng: random.Random) -> Scene:
    count = rng.choice(OBJECT_COUNTS)
    cells = rng.sample(range(GRID * GRID), count)
    # Sorted, so that the order in which colors and sizes are listed above is no part of the corpus.
    shapes, colors = rng.sample(SHAPES, count), rng.sample(sorted(COLORS), count)
    objects = []
    for shape, color, cell in zip(shapes, colors, cells, strict=True):
        size, row, column = rng.choice(sorted(SIZES)), cell // GRID, cell % GRID
        objects.append(SceneObject(shape, color, size, column=column, row=row, shift=(0.0, 0.0)))
    return Scene(tuple(objects), BACKGROUNDS[0])


def _rotate_colors(objects: tuple[SceneObject, ...]) -> tuple[SceneObject, ...]:
    return tuple(replace(thing, color=objects[i - 1].color) for i, thing in enumerate(objects))


def _write_statement(rng: random.Random, subject: SceneObject, thing: SceneObject) -> Statement:
    exact = rng.random() < EXACT_SHARE
    precise = {name: relation for name, relation in RELATIONS.items() if relation.is_exact == exact}
    relation = rng.choice([name for name, relation in precise.items() if relation.holds(subject, thing)])
    subject_text, subject_mention = _mention(rng, subject, quarter_share=QUARTER_SHARE)
    object_text, object_mention = _mention(rng, thing, quarter_share=0.0)
    text = rng.choice(TEMPLATES).format(
        subject=subject_text, object=object_text, relation=rng.choice(RELATIONS[relation].phrases)
    )
    # The only color that begins with a vowel.
    text = text.replace("a orange", "an orange")
    return Statement(text, subject_mention, relation, object_mention)


def _mention(rng: random.Random, thing: SceneObject, *, quarter_share: float) -> tuple[str, Mention]:
    size = thing.size if rng.random() < SIZE_SHARE else None
    quarter = thing.quarter if rng.random() < quarter_share else None
    words = [rng.choice(SIZES[size])] if size else []
    words += [thing.color, thing.shape]
    words += [f"at the {quarter}"] if quarter else []
    return " ".join(words), Mention(thing.shape, thing.color, size, quarter)


def _sign(number: int) -> int:
    return (number > 0) - (number < 0)


def draw_scene(scene: Scene, side_px: int = 128) -> Image.Image:
    """A square RGB image of a scene, antialiased by drawing at twice the size."""
    scale = 2
    side = side_px * scale
    image = Image.new("RGB", (side, side), scene.background)
    canvas = ImageDraw.Draw(image)
    cell = side / GRID
    for thing in scene.objects:
        x = (thing.column + 0.5 + thing.shift[0]) * cell
        y = (thing.row + 0.5 + thing.shift[1]) * cell
        radius, color = RADIUS_IN_CELLS[thing.size] * cell, COLORS[thing.color]
        for dx, dy, share, is_filled in _DISCS.get(thing.shape, ()):
            center_x, center_y, size = x + dx * radius, y + dy * radius, share * radius
            box = (center_x - size, center_y - size, center_x + size, center_y + size)
            canvas.ellipse(box, fill=color if is_filled else scene.background)
        if outline := _POLYGONS.get(thing.shape):
            canvas.polygon([(x + radius * px, y + radius * py) for px, py in outline], fill=color)
    return image.reduce(scale)


def to_png(image: Image.Image) -> bytes:
    """An image as PNG bytes; equal bytes for equal images."""
    buffer = io.BytesIO()
    # The level explicitly, so that the bytes do not hang on a default of Pillow.
    image.save(buffer, format="PNG", compress_level=6)
    return buffer.getvalue()


# In units of an object's radius, from its center; x points right, y down.
_POLYGONS: dict[str, tuple[tuple[float, float], ...]] = {
    "square": ((-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)),
    "triangle": ((0, -0.95), (0.95, 0.8), (-0.95, 0.8)),
    "diamond": ((0, -1), (0.7, 0), (0, 1), (-0.7, 0)),
    "star": (
        (0, -1),
        (0.24, -0.33),
        (0.95, -0.31),
        (0.39, 0.13),
        (0.59, 0.81),
        (0, 0.42),
        (-0.59, 0.81),
        (-0.39, 0.13),
        (-0.95, -0.31),
        (-0.24, -0.33),
    ),
    "cross": (
        (-0.33, -0.95),
        (0.33, -0.95),
        (0.33, -0.33),
        (0.95, -0.33),
        (0.95, 0.33),
        (0.33, 0.33),
        (0.33, 0.95),
        (-0.33, 0.95),
        (-0.33, 0.33),
        (-0.95, 0.33),
        (-0.95, -0.33),
        (-0.33, -0.33),
    ),
    "arrow": ((-1, -0.3), (0.1, -0.3), (0.1, -0.85), (1, 0), (0.1, 0.85), (0.1, 0.3), (-1, 0.3)),
    "heart": ((-0.9, -0.13), (0.9, -0.13), (0, 0.95)),
}
_DISCS: dict[str, tuple[tuple[float, float, float, bool], ...]] = {
    "circle": ((0, 0, 0.95, True),),
    "ring": ((0, 0, 1, True), (0, 0, 0.55, False)),
    "moon": ((0, 0, 0.95, True), (0.45, -0.1, 0.75, False)),
    "heart": ((-0.45, -0.35, 0.5, True), (0.45, -0.35, 0.5, True)),
}
"""x, y, radius, and whether it has the color of the object, not of the background; drawn in this order."""
