"""The plan `images`: what a small image tower keeps of a large model's images, on Flickr8k."""

from __future__ import annotations

import io
import json
import random
import zipfile
from pathlib import Path

from evidence_towers import part_of
from PIL import Image

CAPTIONED, FOLDER, DEV = 1000, 5000, 1000


def write_inputs(karpathy: Path, images: Path, work: Path) -> None:
    """Divide Flickr8k's train: 1,000 photos with captions, and a folder of 5,000 whose captions are not read, each also
    in part. The last 1,000 of the folder have captions in dev.json, by which settings are chosen for students of the
    others."""
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
