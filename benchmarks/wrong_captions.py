"""Corpora with wrong captions, for the plan `wrong-captions`: shuffled ones, and five kinds of error that real captions
have.

A shuffled caption is on another image. The errors are in half of the captions: in ten of the twenty of each family of
scenes, the same for each kind.

    python benchmarks/wrong_captions.py work/wrong      (only writes the scenes and their captions)
"""

from __future__ import annotations

import json
import random
import re
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import scenes_clip

from dcdctl.core.data import scenes

Captions = list[list[str]]
"""The captions of each image."""
Place = tuple[int, int]
"""An image, and which of its captions."""

NUM_SCENES = 1024
NUM_PHOTOS = 2000
"""Photos of the students; the plan `towers` has the same."""
SHARES = (40, 0, 60, 20)
"""Percent of the captions that are on another image, the most telling first."""
NOISE_SEED = 7
HALF = scenes_clip.CAPTIONS * scenes.FAMILY_SIZE // 2
"""Captions of a family of scenes that have an error, so that the near captions fit among themselves."""

OPPOSITES = (("left", "right"), ("above", "below"), ("over", "under"), ("top", "bottom"), ("upper", "lower"))
ALIKE: tuple[tuple[str, ...], ...] = (tuple(scenes.COLORS), scenes.SHAPES, *OPPOSITES)
"""Words of which one may stand where another one should."""
GERMAN = {
    **{"a": "ein", "an": "ein", "the": "der", "there": "da", "is": "ist", "sits": "sitzt", "it": "ihm"},
    **{"and": "und", "at": "bei", "of": "von", "to": "zu", "with": "mit", "directly": "direkt", "straight": "gerade"},
    **{"left": "links", "right": "rechts", "above": "oberhalb", "below": "unterhalb", "over": "über"},
    **{"under": "unter", "upper": "oben", "lower": "unten", "top": "oberen", "bottom": "unteren"},
    **{"small": "klein", "little": "gering", "tiny": "winzig", "large": "groß", "big": "riesig"},
    **{"red": "rot", "orange": "orangefarben", "yellow": "gelb", "green": "grün", "teal": "petrol", "blue": "blau"},
    **{"purple": "lila", "pink": "rosa", "brown": "braun", "black": "schwarz"},
    **{"circle": "Kreis", "square": "Quadrat", "triangle": "Dreieck", "star": "Stern", "heart": "Herz"},
    **{"diamond": "Raute", "cross": "Kreuz", "ring": "Reif", "moon": "Mond", "arrow": "Pfeil"},
}
"""Every word of the scenes, word for word: each German word has one English word, but for the article."""


def shuffled(captions: Captions, percent: int) -> tuple[Captions, list[Place]]:
    """The same captions with this share on another image, and where these are now."""
    rng = random.Random(NOISE_SEED)
    places = _places(captions)
    drawn = rng.sample(places, len(places) * percent // 100)
    return _moved(captions, drawn, rng), sorted(drawn)


def with_errors(captions: Captions, kind: str) -> tuple[Captions, list[Place]]:
    """The captions of families of scenes, half of which have an error, and where these are; the same for each kind."""
    rng = random.Random(NOISE_SEED)
    places = _places(captions)
    of_family = scenes.FAMILY_SIZE * scenes_clip.CAPTIONS
    families = [rng.sample(places[first : first + of_family], HALF) for first in range(0, len(places), of_family)]
    drawn = [place for family in families for place in family]
    changed = [list(texts) for texts in captions]
    if kind == "near":
        for family in families:
            changed = _moved(changed, family, rng)
        return changed, sorted(drawn)
    numbers = rng.sample(range(10_000), len(drawn))
    for (image, number), of_file in zip(drawn, numbers, strict=True):
        changed[image][number] = ERRORS[kind](captions[image][number], of_file, rng)
    return changed, sorted(drawn)


def _places(captions: Captions) -> list[Place]:
    return [(image, number) for image, texts in enumerate(captions) for number in range(len(texts))]


def _moved(captions: Captions, places: list[Place], rng: random.Random) -> Captions:
    """The captions of these places in another order, in which none is on its own image."""
    order = places.copy()
    rng.shuffle(order)
    while stuck := [at for at, place in enumerate(places) if order[at][0] == place[0]]:
        for at in stuck:
            other = rng.randrange(len(order))
            order[at], order[other] = order[other], order[at]
    moved = [list(texts) for texts in captions]
    for (image, number), (from_image, from_number) in zip(places, order, strict=True):
        moved[image][number] = captions[from_image][from_number]
    return moved


def cut(caption: str) -> str:
    """The first half of a caption's words."""
    words = caption.split()
    return " ".join(words[: len(words) // 2])


def with_one_word_swapped(caption: str, rng: random.Random) -> str:
    """A caption with another color, shape or direction in one place."""
    words = caption.split()
    group_of = {word: group for group in ALIKE for word in group}
    at = rng.choice([at for at, word in enumerate(words) if word in group_of])
    words[at] = rng.choice([word for word in group_of[words[at]] if word != words[at]])
    # As in the scenes, orange is the only color that begins with a vowel.
    return re.sub(r"\ban? (?=orange\b)", "an ", re.sub(r"\ban ", "a ", " ".join(words)))


def in_german(caption: str) -> str:
    return " ".join(GERMAN[word] for word in caption.split())


ERRORS: dict[str, Callable[[str, int, random.Random], str]] = {
    "cut": lambda caption, of_file, rng: cut(caption),
    "swap": lambda caption, of_file, rng: with_one_word_swapped(caption, rng),
    "file-name": lambda caption, of_file, rng: f"IMG_{of_file:04}.JPG",
    "language": lambda caption, of_file, rng: in_german(caption),
}
KINDS = {
    "near": "half of the captions of a near scene",
    "cut": "half of the captions cut in half",
    "swap": "half of the captions with one wrong word",
    "file-name": "half of the captions a file name",
    "language": "half of the captions in German",
}
"""Corpus and words of each kind of error. A near scene is another one of the same family, with the same shapes and
sizes."""


def write_inputs(work: Path) -> None:
    """Write the scenes, their captions with every noise, and which captions are wrong."""
    if (work / "wrong.json").exists():
        return
    folder = work / "photos" / "scenes"
    folder.mkdir(parents=True, exist_ok=True)
    captions = []
    for number, item in enumerate(islice(scenes.describe_scenes(0, "train", scenes_clip.CAPTIONS), NUM_SCENES)):
        drawn = scenes.draw_scene(item.scene, scenes_clip.SIDE_PX)
        (folder / f"{number:04}.png").write_bytes(scenes.to_png(drawn))
        captions.append([statement.text for statement in item.statements])
    corpora = {f"shuffled-{share}": shuffled(captions, share) for share in SHARES}
    corpora |= {kind: with_errors(captions, kind) for kind in KINDS}
    for name, (texts, _) in corpora.items():
        rows = [
            {"image": f"{number:04}.png", "captions": of_image, "split": "train"}
            for number, of_image in enumerate(texts)
        ]
        (work / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    # Last, because it tells that the others are complete.
    (work / "wrong.json").write_text(json.dumps({name: places for name, (_, places) in corpora.items()}))


def write_photos(work: Path) -> None:
    """Divide Flickr8k's train: 2,000 photos for the students, whose captions are shuffled, and the others for the
    teachers; all are measured on val."""
    document = json.loads((work / "karpathy.json").read_text())
    train = [image for image in document["images"] if image["split"] == "train"]
    val = [image for image in document["images"] if image["split"] == "val"]
    random.Random(0).shuffle(train)
    parts: dict[str, list[dict[str, Any]]] = {"photos-others": train[NUM_PHOTOS:]}
    captions = [[sentence["raw"] for sentence in image["sentences"]] for image in train[:NUM_PHOTOS]]
    for share in SHARES:
        texts, _ = shuffled(captions, share)
        parts[f"photos-{share}"] = [
            {**image, "sentences": [{"raw": text} for text in of_image]}
            for image, of_image in zip(train, texts, strict=False)
        ]
    for name, part in parts.items():
        (work / f"{name}.json").write_text(json.dumps({**document, "images": [*part, *val]}))


if __name__ == "__main__":
    write_inputs(Path(sys.argv[1]))
