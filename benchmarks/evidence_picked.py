"""The plan `picked`: what a teacher brings where a student proposes what it scores, on scenes and on photos, with all
captions, few, and none.

Scenes: 1,024 training scenes with 5 captions each, of which all, the first 128 or none have captions; the others are a
pool, 896 or 1,024 scenes and their texts in another order. Dual students start from the built-in CLIP, late-interaction
students with positions from random weights. Photos: 1,000 of Flickr8k, of which 200 or none have captions, and dual
encoders as teachers, which know less than the ViLT of the scenes: of 2,000 photos, and of 5,000.

Two rows of skeptics beside each teacher: the same proposals and batches with labels alone, and with random scores.

Expected, written on 2026-12-01 before the runs, from trials with one seed on other scenes: the rows of `EXPECTED`.
"""

from __future__ import annotations

import json
import random
from itertools import islice
from pathlib import Path

import evidence_pools
import scenes_clip
from evidence_steps import SEEDS, Step, sets

from dcdctl.core.data import scenes

DUAL, LATE = "Dual, from a small CLIP, 500 test scenes", "Late interaction with positions, 500 test scenes"
MORE = "Late interaction with positions, 2,000 scenes"
TEACHER, START = "scenes-vilt", "scenes-clip"
ALL, FEW, POOL, NONE = ("--data", "data/scenes"), ("--max-images", "128"), ("--pool", "data/pool"), "data/unpaired"
TEST = (*ALL, "--split", "test")
DRAWN = ("scenes", "--image-size", str(scenes_clip.SIDE_PX))
BY_TEACHER, ALONE = ("--teacher", TEACHER), sets(loss__terms="{infonce=1.0}", loss__temperature=1.0)
NO_POOL = sets(pool__pseudo_positive_above="none", pool__rounds="none")
FROM_CLIP = sets(
    model__start=START,
    model__average_with_start=0,
    batch__size=64,
    optimizer__lr=1e-3,
    optimizer__weight_decay=0.05,
    optimizer__steps=192,
    optimizer__max_grad_norm=1.0,
)
"""The settings of the plan clip-scenes, as `pool-picked` is for a CLIP of full size."""
PICKED = sets(pool__pseudo_positive_above="auto", pool__weight=0.88)
RANDOM = "random_scores:score"
ZERO_SHOT = "the start, zero-shot"
OF_128, OF_NONE, OF_ALL = "128 captioned scenes", "no caption", "1,024 captioned scenes"
WITHOUT = "without its other scores"
CHANCE = "random scores of the same proposals"
TAUGHT = f"{OF_ALL}, and the teacher's scores of its proposals"
PICKS, ITS_PICKS = "and the teacher's picks of a pool", "the teacher's picks of a pool"
EXPECTED = {
    (DUAL, ZERO_SHOT): 170,
    (DUAL, f"{OF_128}, no teacher"): 325,
    (DUAL, f"{OF_128}, {PICKS}"): 428,
    (DUAL, f"{OF_128}, {PICKS}, {WITHOUT}"): 424,
    (DUAL, f"{OF_NONE}, {ITS_PICKS}"): 415,
    (DUAL, f"{OF_NONE}, {ITS_PICKS}, {WITHOUT}"): 412,
    (DUAL, f"{OF_ALL}, no teacher"): 434,
    (DUAL, TAUGHT): 440,
    (LATE, f"{OF_128}, no teacher"): 30,
    (LATE, f"{OF_128}, {PICKS}"): 588,
    (LATE, f"{OF_NONE}, {ITS_PICKS}"): 577,
    (LATE, f"{OF_NONE}, {ITS_PICKS}, {WITHOUT}"): 585,
    (LATE, f"{OF_ALL}, no teacher, random batches"): 500,
    (LATE, f"{OF_ALL}, no teacher, the same proposals"): 588,
    (LATE, f"{OF_ALL}, {CHANCE}"): 570,
    (LATE, TAUGHT): 592,
    (LATE, f"{OF_ALL}, its first 2 by the teacher"): 594,
}
"""RSUM of each row, a mean of three seeds. Within 6 of these, a row is as expected. The teacher has 590.9 over all
pairs of the same test scenes (the plan `students`)."""


def write_inputs(work: Path) -> None:
    """Write the scenes of the pools, their texts, and a teacher that knows nothing."""
    if (work / "random_scores.py").exists():
        return
    described = list(islice(scenes.describe_scenes(0, "train", scenes_clip.CAPTIONS), evidence_pools.NUM_SCENES))
    for name, first in (("pool", evidence_pools.NUM_CAPTIONED), ("unpaired", 0)):
        folder, texts = work / "photos" / f"scenes-{name}", []
        folder.mkdir(parents=True, exist_ok=True)
        for number, item in enumerate(described[first:], start=first):
            drawn = scenes.draw_scene(item.scene, scenes_clip.SIDE_PX)
            (folder / f"{number:04}.png").write_bytes(scenes.to_png(drawn))
            texts += [statement.text for statement in item.statements]
        random.Random(1).shuffle(texts)
        (work / f"scenes-{name}.txt").write_text("\n".join(texts) + "\n")
    (work / "random_scores.py").write_text(
        "import zlib\n\n\ndef score(images, texts):\n"
        "    # As far apart as those of the teacher, and equal for equal pairs.\n"
        "    pairs = zip(images, texts, strict=True)\n"
        "    return [zlib.crc32(image.tobytes() + text.encode()) / 2**32 * 8 - 3 for image, text in pairs]\n"
    )


def picked() -> list[Step]:
    """The scenes, seed by seed, then the photos."""
    steps = corpora()
    more = sets(counts__train=16, counts__val=0, counts__test=2000)
    steps.append(Step("data/more", "prepare", (*DRAWN, *more)))
    steps.append(_eval("start", START, DUAL, ZERO_SHOT, f"{OF_128}, no teacher", ("data/scenes",)))
    for seed in SEEDS:
        steps += [*_dual(seed), *_late(seed)]
    return [*steps, *photos()]


def corpora() -> list[Step]:
    """The captioned scenes, and the pools."""
    size = sets(counts__train=1024, counts__val=0, counts__test=500)
    steps = [Step("data/scenes", "prepare", (*DRAWN, *size))]
    for name in ("pool", "unpaired"):
        words = ("--images", f"photos/scenes-{name}", "--queries", f"scenes-{name}.txt", "--hold-out", "0")
        steps.append(Step(f"data/{name}", "prepare", words))
    return steps


def _eval(
    name: str, run: str, table: str, label: str, base: str, after: tuple[str, ...], words: tuple[str, ...] = TEST
) -> Step:
    return Step(f"runs/{name}", "eval", (run, *words), after, table, label, base)


def _train(name: str, words: tuple[str, ...], after: tuple[str, ...], table: str, label: str, base: str) -> Step:
    return Step(f"runs/{name}", "distill", words, after, table, label, base, TEST)


def _dual(seed: int) -> list[Step]:
    own = (*FROM_CLIP, *sets(seed=seed))
    alone = f"{OF_128}, no teacher"
    few, none, every = f"dual-128-{seed}", f"dual-0-{seed}", f"dual-all-{seed}"

    def scored(run: str, *names: str) -> tuple[str, ...]:
        return tuple(word for name in names for word in ("--cache", f"runs/{run}-rounds/{name}"))

    few_words = ("pool-picked", *ALL, *FEW, *POOL, *sets(pool__rounds=2, candidates__per_query=6))
    none_words = ("pool-picked", "--data", NONE)
    data, pools = ("data/scenes",), ("data/scenes", "data/pool", "data/unpaired")
    return [
        _train(few, (*few_words, *BY_TEACHER, *own), pools, DUAL, f"{OF_128}, {PICKS}", alone),
        _eval(f"{few}-alone", f"runs/{few}-rounds/run-0", DUAL, alone, "", (f"runs/{few}",)),
        _train(none, (*none_words, *BY_TEACHER, *own), pools, DUAL, f"{OF_NONE}, {ITS_PICKS}", alone),
        _train(
            f"{few}-picks",
            (*few_words, *scored(few, "cache-2", "cache-captions"), *own, *ALONE),
            (f"runs/{few}",),
            DUAL,
            f"{OF_128}, {PICKS}, {WITHOUT}",
            alone,
        ),
        _train(
            f"{none}-picks",
            (*none_words, *scored(none, "cache-3"), *own, *ALONE),
            (f"runs/{none}",),
            DUAL,
            f"{OF_NONE}, {ITS_PICKS}, {WITHOUT}",
            alone,
        ),
        _train(
            every,
            ("pool-picked", *ALL, *BY_TEACHER, *own, *NO_POOL),
            data,
            DUAL,
            TAUGHT,
            alone,
        ),
        _eval(f"{every}-alone", f"runs/{every}-rounds/run-0", DUAL, f"{OF_ALL}, no teacher", alone, (f"runs/{every}",)),
    ]


def _late(seed: int) -> list[Step]:
    own, recipe = sets(seed=seed), "late-mined"
    few, none, every = f"late-128-{seed}", f"late-0-{seed}", f"late-all-{seed}"
    base = f"{OF_ALL}, no teacher, the same proposals"
    rounds = f"runs/{every}-rounds"
    same = sets(candidates__model=f"{rounds}/run-0")
    by_random = f"caches/random-{seed}"

    def proposed_by(dual: str) -> tuple[str, ...]:
        return (*PICKED, *BY_TEACHER, *own, *sets(candidates__model=f"runs/{dual}-{seed}", pool__rounds=1))

    by_teacher, data = (recipe, *ALL, *BY_TEACHER, *own), ("data/scenes",)
    by_labels = (recipe, *ALL, "--cache", f"{rounds}/cache-1", *own, *same, *ALONE)
    by_picks = (recipe, *ALL, *FEW, *POOL, *proposed_by("dual-128"))
    without = (recipe, "--data", NONE, *proposed_by("dual-0"))
    random_teacher = (*ALL, "--teacher", RANDOM, "--recipe", recipe, *same)
    by_chance = (recipe, *ALL, "--cache", by_random, *own, *same)
    alone = f"{OF_ALL}, no teacher, random batches"
    first_2 = (*TEST, "--rerank", TEACHER, "--depth", "2")
    more = ("--data", "data/more", "--split", "test")
    after = (f"runs/{every}",)
    steps = [
        _train(every, by_teacher, data, LATE, TAUGHT, base),
        _train(f"{every}-labels", by_labels, after, LATE, base, ""),
        _train(few, by_picks, (f"runs/dual-128-{seed}",), LATE, f"{OF_128}, {PICKS}", base),
        _train(none, without, (f"runs/dual-0-{seed}",), LATE, f"{OF_NONE}, {ITS_PICKS}", base),
        _train(
            f"{none}-picks",
            (recipe, "--data", NONE, "--cache", f"runs/{none}-rounds/cache-1", *PICKED, *own, *ALONE),
            (f"runs/{none}",),
            LATE,
            f"{OF_NONE}, {ITS_PICKS}, {WITHOUT}",
            base,
        ),
        _eval(f"{every}-alone", f"{rounds}/run-0", LATE, alone, base, after),
        _eval(f"{every}-first-2", f"runs/{every}", LATE, f"{OF_ALL}, its first 2 by the teacher", base, after, first_2),
        _eval(f"{every}-more", f"runs/{every}", MORE, TAUGHT, "", (*after, "data/more"), more),
        Step(by_random, "cache-teacher", random_teacher, after),
        _train(
            f"{every}-random", by_chance, (by_random,), LATE, f"{OF_ALL}, random scores of the same proposals", base
        ),
    ]
    if seed == 0:  # it learns nothing: one run shows it
        words = (recipe, *ALL, *FEW, *own, *ALONE)
        steps.append(_train(f"{few}-alone", words, data, LATE, f"{OF_128}, no teacher", base))
    return steps


def write_photos(work: Path) -> None:
    """Write the captions of the stronger teachers' photos: all of Flickr8k's train but the students' 1,000."""
    # As `evidence_pools` divides them: after 2,000 photos of the weaker teachers come those of the students.
    document = json.loads((work / "karpathy.json").read_text())
    train = [image for image in document["images"] if image["split"] == "train"]
    val = [image for image in document["images"] if image["split"] == "val"]
    random.Random(0).shuffle(train)
    listed = [{**image, "split": "train"} for image in train[:2000] + train[3000:]]
    (work / "strong.json").write_text(json.dumps({**document, "images": [*listed, *val]}))


PHOTOS = "Photos of Flickr8k, val"
FROZEN = ("--features", "features", *sets(model__vision="vision", model__text="text"))
VAL = ("--data", "data/target", "--split", "val", "--features", "features")
TEACHERS = {"teach": "teachers of 2,000 photos", "strong": "teachers of 5,000 photos"}
OF_POOL = "800 photos and 3,990 texts without pairing"
LOSSES = {
    "kl": ("the scores alone", sets(loss__terms="{kl=4.0}")),
    "auto": ("auto", sets(loss__terms="{infonce=1.0,kl=4.0}", pool__pseudo_positive_above="auto")),
    "all": ("every pick", sets(loss__terms="{infonce=1.0,kl=4.0}", pool__pseudo_positive_above=-1000)),
}
"""What a student learns from the pool: label and settings. With captions beside it InfoNCE learns from these too."""
EXPECTED_PHOTOS = {
    ("none", "kl"): (228, 245),
    ("none", "auto"): (228, 245),
    ("none", "all"): (230, 248),
    ("few", "kl"): (230, 247),
    ("few", "auto"): (230, 247),
    ("few", "all"): (232, 250),
}
"""RSUM by the weaker and by the stronger teachers; 200 captioned photos alone have 117, the teachers 256 and 305."""


def photos() -> list[Step]:
    """Students of photos, of which 200 or none have captions, by teachers that are often wrong."""
    karpathy = ("teach", "strong", "target", "labelled")
    steps = [Step(f"data/{name}", "prepare", ("--karpathy", f"{name}.json", "--images", "images")) for name in karpathy]
    unpaired = ("--images", "photos/pool", "--queries", "pool.txt", "--hold-out", "0")
    steps.append(Step("data/photo-pool", "prepare", unpaired))
    for name, label in TEACHERS.items():
        for seed in SEEDS:
            words = ("photos", "--data", f"data/{name}", *FROZEN, *sets(seed=seed))
            after = (f"data/{name}", "data/target")
            steps.append(Step(f"runs/{name}-{seed}", "distill", words, after, PHOTOS, label, "", VAL))
    for seed in SEEDS:
        steps += _photo_students(seed)
    return steps


def _photo_students(seed: int) -> list[Step]:
    common = (*FROZEN, *sets(seed=seed))
    few, pool = ("--data", "data/labelled"), "data/photo-pool"
    alone = "200 captioned photos, no teacher"
    steps = [
        Step(
            f"runs/photos-few-{seed}",
            "distill",
            ("photos", *few, *common, *sets(batch__size=200)),
            ("data/labelled", "data/target"),
            PHOTOS,
            alone,
            "",
            VAL,
        )
    ]
    for name, teachers in TEACHERS.items():
        by_teachers = tuple(word for number in SEEDS for word in ("--teacher", f"runs/{name}-{number}"))
        learned = (*by_teachers, *common, *sets(optimizer__steps=400))
        after = (pool, "data/labelled", *(f"runs/{name}-{number}" for number in SEEDS))
        for key, (label, words) in LOSSES.items():
            if key == "auto" and seed:  # it takes no pick, and is the row of the scores alone to the bit
                continue
            mixed = (*words, *sets(loss__terms="{infonce=1.0,kl=4.0}", batch__size=200, pool__images=256))
            ways = {"none": (("--data", pool), words), "few": ((*few, "--pool", pool), mixed)}
            for place, (data, own) in ways.items():
                row = f"{OF_POOL}, {label}" if place == "none" else f"200 captioned photos, and {OF_POOL}, {label}"
                steps.append(
                    Step(
                        f"runs/{name}-{place}-{key}-{seed}",
                        "distill",
                        ("photos-distilled", *data, *own, *learned),
                        after,
                        f"{PHOTOS}, {teachers}",
                        row,
                        alone,
                        VAL,
                    )
                )
    return steps
