"""The plan `towers`: what a trained image tower takes from better teachers, on Flickr8k.

The teachers are dual encoders over frozen EfficientNet-Lite0, EfficientNet-Lite2 at 320 px and ResNet-50; the mean of
their scores teaches. Each student starts from the EfficientNet-Lite0 teacher of its seed, and trains the last two
blocks of that tower and the last two layers of MiniLM, from stored states. A query and an image cost what they cost
with the start.

- 2,000 captioned photos; and for some students a pool of 3,000 others without captions, whose texts are the captions of
  the 2,000. Half of the images of a step are then of the pool, so all students of a table read as many images.
- The same, of which each photo is also there mirrored, and as a random part of it: a stored state has no other
  augmentation.
- 6,000 captioned photos, one seed: a teacher has seen the photos of its student.

Learning rate, epochs and losses were chosen on the last 1,000 photos of train with seed 0, by students of the 5,000 or
2,000 before them.
"""

from __future__ import annotations

import io
import json
import random
import zipfile
from collections.abc import Iterator
from pathlib import Path

from evidence_steps import SEEDS, Step, sets
from PIL import Image, ImageOps

ENCODERS = {
    "lite0": ("EfficientNet-Lite0", sets(model__vision="vision")),
    "lite2": ("EfficientNet-Lite2, 320 px", sets(model__vision="lite2", model__vision_size=320)),
    "resnet": ("ResNet-50", sets(model__vision="resnet50")),
}
"""Label and settings of the teachers' image encoders."""
FEATURES = ("--features", "features")
LAST_LAYERS = (*sets(model__trained="last-layers", model__trained_layers=2, optimizer__lr=3e-4), "--precision", "bf16")
SMOOTHING = sets(loss__label_smoothing=0.1)
LENGTHS = {"all": sets(optimizer__epochs=10), "few": sets(optimizer__steps=150)}
A_TEACHER, NO_TEACHER, POOLED = "a teacher", "no teacher", ", and the pool"
ITSELF = f"its start as the teacher{POOLED}"
CAPTIONED, POOL = 2000, 3000
TABLES = {
    "all": "6,000 captioned photos, val",
    "few": "2,000 captioned photos, val",
    "further": "2,000 captioned photos, 1,000 further photos",
}


def write_inputs(karpathy: Path, images: Path, work: Path) -> None:
    """Divide Flickr8k's train: 2,000 photos with captions, 3,000 whose captions are not read, and a further test
    set."""
    if (work / "unpaired.txt").exists():
        return
    document = json.loads(karpathy.read_text())
    train = [image for image in document["images"] if image["split"] == "train"]
    val = [image for image in document["images"] if image["split"] == "val"]
    random.Random(0).shuffle(train)
    captioned, others, further = train[:CAPTIONED], train[CAPTIONED : CAPTIONED + POOL], train[CAPTIONED + POOL :]
    listed = [{**image, "split": "train"} for image in captioned] + [{**image, "split": "test"} for image in further]
    (work / "few.json").write_text(json.dumps({**document, "images": [*listed, *val]}))
    (work / "photos").mkdir(exist_ok=True)
    with zipfile.ZipFile(images) as archive:
        names = {Path(name).name: name for name in archive.namelist()}
        for image in others:
            (work / "photos" / image["filename"]).write_bytes(archive.read(names[image["filename"]]))
    lines = [sentence["raw"].strip() for image in captioned for sentence in image["sentences"]]
    random.Random(1).shuffle(lines)
    (work / "unpaired.txt").write_text("\n".join(lines) + "\n")


def write_augmented(images: Path, work: Path) -> None:
    """The 2,000 photos with captions, each also mirrored and in part with the same captions, and val."""
    if (work / "augmented.json").exists():
        return
    document, rng = json.loads((work / "few.json").read_text()), random.Random(2)
    (work / "augmented").mkdir(exist_ok=True)
    listed = []
    with zipfile.ZipFile(images) as archive:
        names = {Path(name).name: name for name in archive.namelist()}
        for image in document["images"]:
            if image["split"] == "test":
                continue
            data = archive.read(names[image["filename"]])
            (work / "augmented" / image["filename"]).write_bytes(data)
            listed.append(image)
            if image["split"] == "train":
                photo = Image.open(io.BytesIO(data)).convert("RGB")
                for number, form in enumerate((ImageOps.mirror(photo), part_of(photo, rng))):
                    name = f"{number}-{image['filename']}"
                    form.save(work / "augmented" / name, quality=95)
                    listed.append({**image, "filename": name, "imgid": len(listed) + 100_000})
    (work / "augmented.json").write_text(json.dumps({**document, "images": listed}))


def part_of(photo: Image.Image, rng: random.Random) -> Image.Image:
    """A random part, of 60 % of the area or more and nearly the same shape; every second one mirrored."""
    area, shape = rng.uniform(0.6, 1), rng.uniform(3 / 4, 4 / 3) ** 0.5
    width = min(photo.width, round(photo.width * area**0.5 * shape))
    height = min(photo.height, round(photo.height * area**0.5 / shape))
    left, top = rng.randint(0, photo.width - width), rng.randint(0, photo.height - height)
    part = photo.crop((left, top, left + width, top + height))
    return ImageOps.mirror(part) if rng.random() < 1 / 2 else part


def towers() -> list[Step]:
    """The teachers, then the students, seed by seed; then the other students, and those of all photos."""
    pool = ("--images", "photos", "--queries", "unpaired.txt", "--hold-out", "0")
    steps = [
        Step("data/all", "prepare", ("--karpathy", "karpathy.json", "--images", "images")),
        Step("data/few", "prepare", ("--karpathy", "few.json", "--images", "images")),
        Step("data/pool", "prepare", pool),
        Step("data/augmented", "prepare", ("--karpathy", "augmented.json", "--images", "augmented")),
    ]
    students = {seed: [*_with_pool(seed), *_on_captions("few", seed)] for seed in SEEDS}
    for seed in SEEDS:
        steps += [*_teachers("few", seed), *(step for step in students[seed] if not _is_late(step))]
    steps += [step for seed in SEEDS for step in students[seed] if _is_late(step)]
    return [*steps, *_teachers("all", SEEDS[0]), *_on_captions("all", SEEDS[0])]


def _is_late(step: Step) -> bool:
    """Whether a row is no answer to the plan's question, and so waits for all seeds of those that are."""
    return any(f"runs/few-{name}-" in step.out for name in ("linear", "own", "augmented"))


def _teacher(photos: str, encoder: str, seed: int) -> str:
    return f"runs/{photos}-{encoder}-{seed}"


def _teachers(photos: str, seed: int) -> Iterator[Step]:
    """Dual encoders over frozen towers; that of EfficientNet-Lite0 is the students' start."""
    for encoder, (label, settings) in ENCODERS.items():
        data, text = ("--data", f"data/{photos}"), sets(model__text="text", seed=seed)
        words = ("photos", *data, *FEATURES, *settings, *text)
        out, row = _teacher(photos, encoder, seed), f"{A_TEACHER} over frozen {label}"
        val = (*_val(photos), *FEATURES)
        yield from _measured(Step(out, "distill", words, data[1:], TABLES[photos], row, "", val), photos)


def _val(photos: str) -> tuple[str, ...]:
    return ("--data", f"data/{photos}", "--split", "val")


def _measured(step: Step, photos: str) -> Iterator[Step]:
    """A training, and its evaluation on the further photos where there are some."""
    yield step
    if photos == "few":
        # Only the features of a frozen tower are shared by all seeds.
        stored = FEATURES if step.label.startswith(A_TEACHER) else ()
        words = (step.out, "--data", "data/few", "--split", "test", *stored)
        yield Step(f"{step.out}-further", "eval", words, (step.out,), TABLES["further"], step.label, step.base)


def _with_pool(seed: int) -> Iterator[Step]:
    """The students of a teacher whose images are half of the pool: of their start, and of the better teachers."""
    halves = ("--pool", "data/pool", *sets(batch__size=128, pool__images=128))
    by_itself, by_better = _by_itself("few", seed), _by_better("few", seed)
    rows = {
        "itself": (ITSELF, (*by_itself, *halves, *LAST_LAYERS, *LENGTHS["few"])),
        "better": (f"three better teachers{POOLED}", (*by_better, *halves, *LAST_LAYERS, *LENGTHS["few"])),
        "linear": (
            f"three better teachers{POOLED}, frozen towers, twice as long",
            (*by_better, *halves, *sets(model__trained="projections", optimizer__steps=300)),
        ),
    }
    for name, (label, words) in rows.items():
        yield from _student("few", seed, name, label, ("photos-distilled", *words))


def _on_captions(photos: str, seed: int) -> Iterator[Step]:
    """The students of captioned photos alone, which read as many images in all: of no teacher, and of those."""
    words = (*LAST_LAYERS, *LENGTHS[photos])
    rows = {
        "alone": (NO_TEACHER, ("photos", *words)),
        "captions": ("three better teachers", ("photos-distilled", *_by_better(photos, seed), *words)),
        "own": ("its start as the teacher", ("photos-distilled", *_by_itself(photos, seed), *words)),
        "smooth": (f"{NO_TEACHER}, label smoothing", ("photos", *words, *SMOOTHING)),
    }
    for name, (label, recipe) in rows.items():
        yield from _student(photos, seed, name, label, recipe)
    if photos == "few":
        for name, like in {"augmented": "alone", "augmented-captions": "captions"}.items():
            label, recipe = rows[like]
            augmented = f"{label}, each photo also mirrored and in part"
            yield from _student(photos, seed, name, augmented, recipe, data="data/augmented")


def _by_itself(photos: str, seed: int) -> tuple[str, ...]:
    return ("--teacher", _teacher(photos, "lite0", seed))


def _by_better(photos: str, seed: int) -> tuple[str, ...]:
    return tuple(word for encoder in ENCODERS for word in ("--teacher", _teacher(photos, encoder, seed)))


def _student(photos: str, seed: int, name: str, label: str, words: tuple[str, ...], data: str = "") -> Iterator[Step]:
    data = data or f"data/{photos}"
    needs = (*(_teacher(photos, encoder, seed) for encoder in ENCODERS), data)
    if photos == "few":
        needs = (*needs, "data/pool")
    recipe, *rest = words
    started = sets(model__start=needs[0], seed=seed)
    arguments = (recipe, "--data", data, *FEATURES, *started, *rest)
    base = "" if label == NO_TEACHER else NO_TEACHER
    run = f"runs/{photos}-{name}-{seed}"
    yield from _measured(Step(run, "distill", arguments, needs, TABLES[photos], label, base, _val(photos)), photos)
