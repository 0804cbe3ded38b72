"""The plan `images`: what a small image tower keeps of a large model's images, on Flickr8k.

The large model is a dual encoder over frozen ResNet-50 and MiniLM, trained on 1,000 captioned photos. It embeds 5,000
other photos, whose captions are not read, and EfficientNet-Lite0 learns its vectors (recipe `image-student`). Val has
1,000 photos that neither has seen: it measures, and chose nothing.

Settings were chosen by students of seed 0 that learn from the first 4,000 of the 5,000: dev.json has the captions of
the last 1,000.
"""

from __future__ import annotations

import io
import json
import random
import zipfile
from collections.abc import Iterator
from pathlib import Path

from evidence_steps import SEEDS, Step, sets
from evidence_towers import part_of
from PIL import Image

CAPTIONED, FOLDER, DEV = 1000, 5000, 1000
FEATURES = ("--features", "features")
BF16 = ("--precision", "bf16")
VAL = ("--data", "data/few", "--split", "val", *FEATURES)
TABLE = "Photos that no model has seen, val"
LARGE = "the large model, over frozen ResNet-50"
IMAGES = "its image student over EfficientNet-Lite0, from 5,000 photos without captions"
PARTS = f"{IMAGES}, each also in part"
LINEAR = "frozen EfficientNet-Lite0, from the 1,000 captioned photos alone"
ALONE = "EfficientNet-Lite0, its last layers trained too, from these alone"


def write_inputs(karpathy: Path, images: Path, work: Path) -> None:
    """Divide Flickr8k's train: 1,000 photos with captions, and a folder of the 5,000 others, each also in part."""
    if (work / "dev.json").exists():
        return
    document = json.loads(karpathy.read_text())
    train = [image for image in document["images"] if image["split"] == "train"]
    val = [image for image in document["images"] if image["split"] == "val"]
    random.Random(0).shuffle(train)
    captioned, folder = train[:CAPTIONED], train[CAPTIONED : CAPTIONED + FOLDER]
    (work / "folder").mkdir(exist_ok=True)
    rng = random.Random(2)
    with zipfile.ZipFile(images) as archive:
        names = {Path(name).name: name for name in archive.namelist()}
        for number, image in enumerate(folder):
            data = archive.read(names[image["filename"]])
            # Whole photos first, so that --max-images takes them alone.
            (work / "folder" / f"0-{number:04}.jpg").write_bytes(data)
            part = part_of(Image.open(io.BytesIO(data)).convert("RGB"), rng)
            part.save(work / "folder" / f"1-{number:04}.jpg", quality=95)
    (work / "few.json").write_text(json.dumps({**document, "images": [*captioned, *val]}))
    listed = [{**image, "split": "test"} for image in folder[-DEV:]]
    (work / "dev.json").write_text(json.dumps({**document, "images": listed}))


def images() -> list[Step]:
    """For each seed the large model, its image student, and the students of captions alone."""
    return [
        Step("data/few", "prepare", ("--karpathy", "few.json", "--images", "images")),
        Step("data/folder", "prepare", ("--images", "folder")),
        *(step for seed in SEEDS for step in _of_seed(seed)),
        # Last, because the large model embeds the 5,000 parts for it. As many steps as without them.
        _image_student(SEEDS[0], "parts", PARTS, sets(optimizer__epochs=4)),
    ]


def _of_seed(seed: int) -> Iterator[Step]:
    yield _on_captions("large", "resnet50", LARGE, seed)
    yield _image_student(seed, "image", IMAGES, ("--max-images", str(FOLDER)))
    linear = _on_captions("linear", "vision", LINEAR, seed)
    yield linear
    # The layers and the learning rate of the plan `towers`.
    trained = sets(model__trained="last-layers", model__trained_layers=2, optimizer__lr=3e-4, optimizer__epochs=15)
    words = ("photos", "--data", "data/few", *FEATURES, *sets(model__start=linear.out, seed=seed), *trained, *BF16)
    yield Step(f"runs/alone-{seed}", "distill", words, (linear.out,), TABLE, ALONE, LARGE, VAL)


def _on_captions(name: str, vision: str, label: str, seed: int) -> Step:
    settings = sets(model__vision=vision, model__text="text", seed=seed)
    words = ("photos", "--data", "data/few", *settings, *FEATURES)
    base = "" if label == LARGE else LARGE
    return Step(f"runs/{name}-{seed}", "distill", words, ("data/few",), TABLE, label, base, VAL)


def _image_student(seed: int, name: str, label: str, some: tuple[str, ...]) -> Step:
    large = f"runs/large-{seed}"
    settings = (*sets(model__vision="vision", seed=seed), *BF16)
    words = ("image-student", "--data", "data/folder", *some, "--teacher", large, *settings, *FEATURES)
    return Step(f"runs/{name}-{seed}", "distill", words, ("data/folder", large), TABLE, label, LARGE, VAL)
