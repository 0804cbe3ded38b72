"""The plan `fair`: what part of a distilled student's gain is regularization, resolution, data and knowledge, on Flickr8k.

Teachers and students of a row see the same photos unless its label says otherwise. Settings were chosen on the last 1,000 photos of train
(tables "Chosen on train"), with students and teachers of the photos before them; results are reported on val.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from evidence_steps import Step, sets

FEATURES = ("--features", "features")
ENCODERS = (*FEATURES, *sets(model__vision="vision", model__text="text"))
ALL = 6000
SIZES = (500, 1500, ALL)
"""Numbers of photos: the first ones of train."""
NUM_CHOOSING = 5000
"""Photos before the last 1,000 of train: settings for 6,000 photos are chosen with students of these."""
RECIPES = {224: "dual-flickr8k", 288: "dual-flickr8k-large"}
TABLE, CHOOSING = "Flickr8k, {:,} photos", "Chosen on train, {:,} photos"

EPOCH_CHOICES = {500: (30, 60, 120, 240), 1500: (20, 40, 80, 160), ALL: (40, 70, 100)}
"""Epochs of undistilled students to choose from."""
DROPOUT_CHOICES = (0.4, 0.6)


def fair() -> list[Step]:
    """Every row of the fair tables, the most important first, after the steps that chose its settings."""
    steps = [
        Step("data", "prepare", ("--karpathy", "karpathy.json", "--images", "images")),
        Step("choosing", "prepare", ("--karpathy", "choosing.json", "--images", "images")),
    ]
    return [*steps, *(step for data in ("choosing", "data") for step in _features(data)), *_chosen()]


def write_choosing_split(karpathy: Path, target: Path) -> None:
    """Write Karpathy's JSON of train alone, whose last 1,000 photos are val."""
    document = json.loads(karpathy.read_text())
    train = [image for image in document["images"] if image["split"] == "train"]
    images = [{**image, "split": "train" if index < NUM_CHOOSING else "val"} for index, image in enumerate(train)]
    target.write_text(json.dumps({**document, "images": images}))


def _photos(data: str, size: int) -> tuple[str, ...]:
    """The first photos of train; all 6,000 are 5,000 while settings are chosen."""
    return ("--data", data, *(() if size == ALL else ("--max-images", str(size))))


def _val(data: str) -> tuple[str, ...]:
    return ("--data", data, *FEATURES, "--split", "val")


def _features(data: str) -> Iterator[Step]:
    """One training step for each set of features, so that their cost is charged to no row."""
    for size in SIZES:
        for pixels, recipe in RECIPES.items():
            words = (recipe, *_photos(data, size), *ENCODERS, *sets(optimizer__steps=1))
            yield Step(_features_of(data, size, pixels), "distill", words, (data,), measure=_val(data))


def _features_of(data: str, size: int, pixels: int) -> str:
    return f"runs/features-{data}-{size}-{pixels}"


def _undistilled(name: str, data: str, size: int, pixels: int, table: str, label: str, base: str, words: Iterable[str], seed: int) -> Step:
    arguments = (RECIPES[pixels], *_photos(data, size), *ENCODERS, *sets(seed=seed), *words)
    return Step(f"runs/{name}-{seed}", "distill", arguments, (_features_of(data, size, pixels),), table, label, base, _val(data))


def _chosen() -> Iterator[Step]:
    """Students of seed 0 on the photos before the last 1,000 of train, measured on these 1,000."""
    for pixels in RECIPES:
        for size in SIZES:
            table, base = CHOOSING.format(size), f"undistilled, 224 px, {EPOCH_CHOICES[size][0]} epochs"
            for epochs in EPOCH_CHOICES[size]:
                label = f"undistilled, {pixels} px, {epochs} epochs"
                words = sets(optimizer__epochs=epochs)
                yield _undistilled(f"choose{size}-{pixels}-{epochs}", "choosing", size, pixels, table, label, base, words, 0)
