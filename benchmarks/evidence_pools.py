"""The plan `pools`: students of photos without captions and texts without photos, beside captioned ones."""

from __future__ import annotations

import json
import random
import zipfile
from dataclasses import replace
from itertools import islice
from pathlib import Path

import evidence_clip
import scenes_clip
from evidence_steps import SEEDS, Step, sets

from dcdctl.core.data import scenes

FROZEN = ("--features", "features", *sets(model__vision="vision", model__text="text"))
TEACHERS = tuple(f"runs/teacher-{seed}" for seed in SEEDS)
BY_TEACHERS = tuple(word for teacher in TEACHERS for word in ("--teacher", teacher))
VAL = ("--data", "data/target", "--split", "val", "--features", "features")
FURTHER = {
    "1,000 further photos": ("--data", "data/target", "--split", "test", "--features", "features"),
    "2,000 further photos": ("--data", "data/more", "--split", "test", "--features", "features"),
}
KL, BOTH = sets(loss__terms="{kl=4.0}"), sets(loss__terms="{infonce=1.0,kl=4.0}")
STEPS = sets(optimizer__steps=400)
LABELS, PAIRS, WRONG = "With and without pairing, val", "Scored pairs of the pool, val", "Pools that fit less, val"
SCENES = "A small CLIP on scenes, a ViLT as the teacher, 500 test scenes"
ALL_SCENES = "1,024 captioned scenes, with the teacher's scores"
NUM_CAPTIONED, NUM_SCENES = 128, 1024
IMAGES = 800
"""Photos of the pool. Its texts are their captions, whose order says nothing."""


def write_inputs(karpathy: Path, images: Path, work: Path) -> None:
    """Divide Flickr8k's train: 2,000 photos for the teachers, 1,000 for the students (the first 200 with captions), and
    two further test sets; write the photos and the texts of the pools."""
    if (work / "pools.json").exists():
        return
    document = json.loads(karpathy.read_text())
    train = [image for image in document["images"] if image["split"] == "train"]
    val = [image for image in document["images"] if image["split"] == "val"]
    random.Random(0).shuffle(train)
    target = train[2000:3000]
    for name, splits in {
        "teach": {"train": train[:2000], "val": val},
        "target": {"train": target, "val": val, "test": train[3000:4000]},
        "labelled": {"train": target[:200]},
        "more": {"test": train[4000:6000]},
    }.items():
        listed = [{**image, "split": split} for split, part in splits.items() for image in part]
        (work / f"{name}.json").write_text(json.dumps({**document, "images": listed}))
    with zipfile.ZipFile(images) as archive:
        names = {Path(name).name: name for name in archive.namelist()}
        for name, part in {"pool": target[200:], "half": target[200:600], "others": train[:IMAGES]}.items():
            (work / "photos" / name).mkdir(parents=True, exist_ok=True)
            for image in part:
                (work / "photos" / name / image["filename"]).write_bytes(archive.read(names[image["filename"]]))
    for name, part in {
        "pool": target[200:],
        "half": target[200:600],
        "rest": target[600:],
        "others": train[:800],
    }.items():
        lines = [sentence["raw"].strip() for image in part for sentence in image["sentences"]]
        random.Random(1).shuffle(lines)
        (work / f"{name}.txt").write_text("\n".join(lines) + "\n")
    evidence_clip.write_inputs(work)
    (work / "photos" / "scenes").mkdir()
    texts = []
    described = scenes.describe_scenes(0, "train", scenes_clip.CAPTIONS)
    for number, item in enumerate(islice(described, NUM_CAPTIONED, NUM_SCENES)):
        drawn = scenes.to_png(scenes.draw_scene(item.scene, scenes_clip.SIDE_PX))
        (work / "photos" / "scenes" / f"{number:04}.png").write_bytes(drawn)
        texts += [statement.text for statement in item.statements]
    random.Random(1).shuffle(texts)
    (work / "scenes.txt").write_text("\n".join(texts) + "\n")
    (work / "pools.json").write_text("{}")


def pools() -> list[Step]:
    """All tables of the plan."""
    steps = [
        Step(f"data/{name}", "prepare", ("--karpathy", f"{name}.json", "--images", "images"))
        for name in ("teach", "target", "labelled", "more")
    ]
    for name, (photos, texts) in POOLS.items():
        words = ("--images", f"photos/{photos}", "--queries", f"{texts}.txt", "--hold-out", "0")
        steps.append(Step(f"data/{name}", "prepare", words))
    for seed in SEEDS:
        words = ("photos", "--data", "data/teach", *FROZEN, *sets(seed=seed))
        steps.append(
            Step(TEACHERS[seed], "distill", words, ("data/teach", "data/target"), "Teachers", "teacher", "", VAL)
        )
    steps += [step for seed in SEEDS for step in _labels(seed)]
    return [*steps, *_budgets(), *(step for seed in SEEDS for step in _wrong(seed)), *_scenes()]


POOLS = {
    "pool": ("pool", "pool"),
    "half": ("half", "half"),
    "half-other": ("half", "rest"),
    "no-photo": ("pool", "others"),
    "no-text": ("others", "pool"),
    "drawn": ("scenes", "pool"),
}
"""Photos and texts of each pool."""


def _run(name: str, seed: int, table: str, label: str, words: tuple[str, ...], *, base: str = "") -> Step:
    """A student of one seed."""
    data = tuple(word for word in words if word.startswith(("data/", "caches/")))
    words = (*words, *FROZEN, *sets(seed=seed))
    after = (*data, *TEACHERS, "data/target")
    return Step(f"runs/{name}-{seed}", "distill", words, after, table, label, base, VAL)


def _labels(seed: int) -> list[Step]:
    few, every, pool = ("--data", "data/labelled"), ("--data", "data/target"), ("--pool", "data/pool")
    size = sets(batch__size=200)
    alone = "200 captioned photos, no teacher"
    rows = {
        "few-alone": (alone, ("photos", *few, *size)),
        "few": ("the same, with the teacher's scores", ("photos-distilled", *few, *BY_TEACHERS, *BOTH, *STEPS, *size)),
        "mixed": (
            "the same, and 800 photos and 3,990 texts without pairing",
            ("photos-distilled", *few, *pool, *BY_TEACHERS, *BOTH, *STEPS, *size, *sets(pool__images=256)),
        ),
        "pool": (
            "only the 800 photos and 3,990 texts",
            ("photos-distilled", "--data", "data/pool", *BY_TEACHERS, *KL, *STEPS),
        ),
        "all-alone": ("1,000 captioned photos, no teacher", ("photos", *every)),
        "all": (
            "1,000 captioned photos, with the teacher's scores",
            ("photos-distilled", *every, *BY_TEACHERS, *BOTH, *STEPS),
        ),
    }
    steps = []
    for name, (label, words) in rows.items():
        steps.append(_run(name, seed, LABELS, label, words, base="" if label == alone else alone))
        for place, measure in FURTHER.items():
            run, table = f"runs/{name}-{seed}", LABELS.replace("val", place)
            out, base = f"{run}-{place.split(',')[0]}k", "" if label == alone else alone
            steps.append(Step(out, "eval", (run, *measure), (run, "data/more"), table, label, base))
    return steps


def _wrong(seed: int) -> list[Step]:
    rows = {
        "half": ("400 photos and their own texts", "half", BY_TEACHERS),
        "half-other": ("400 photos and the texts of 400 others", "half-other", BY_TEACHERS),
        "no-photo": ("800 photos, and texts that fit none of them", "no-photo", BY_TEACHERS),
        "no-text": ("800 photos of the teacher's, and texts that fit none of them", "no-text", BY_TEACHERS),
        "drawn": ("896 drawn scenes, and texts of photos", "drawn", BY_TEACHERS),
        "weak": (WEAK.format("of 200 captioned photos"), "pool", ("--teacher", f"runs/few-alone-{seed}")),
        "equal": (WEAK.format("of the same pool"), "pool", ("--teacher", f"runs/pool-{seed}")),
    }
    return [
        replace(
            _run(name, seed, WRONG, label, ("photos-distilled", "--data", f"data/{pool}", *teacher, *KL, *STEPS)),
            after=(f"data/{pool}", *TEACHERS, teacher[-1]),
        )
        for name, (label, pool, teacher) in rows.items()
    ]


def _scenes() -> list[Step]:
    """A small CLIP on scenes, with the built-in ViLT as the teacher: settings as in the plan clip-scenes."""
    size = sets(counts__train=NUM_SCENES, counts__val=300, counts__test=500)
    pretraining = sets(**scenes_clip.SETTINGS, model__start="new-0")
    data, pool, few = ("--data", "data/scenes"), ("--data", "data/scene-pool"), ("--max-images", str(NUM_CAPTIONED))
    start, test = "runs/start", ("--data", "data/scenes", "--split", "test")
    teacher = ("--teacher", evidence_clip.TEACHER, "--recipe")
    words = ("--images", "photos/scenes", "--queries", "scenes.txt", "--hold-out", "0")
    steps = [
        Step("data/scenes", "prepare", ("scenes", "--image-size", str(scenes_clip.SIDE_PX), *size)),
        Step("data/scene-pool", "prepare", words),
        Step("data/web", "prepare", ("--jsonl", "web.jsonl", "--images", "web-images")),
        Step(
            start,
            "distill",
            (scenes_clip.RECIPE, "--data", "data/web", *pretraining),
            ("data/web", "data/scenes"),
            SCENES,
            "the start, zero-shot",
            "",
            test,
        ),
        Step("caches/scenes", "cache-teacher", (*data, *teacher, "demo-dual"), ("data/scenes",)),
        Step("caches/few", "cache-teacher", (*data, *few, *teacher, "demo-dual"), ("data/scenes",)),
        Step("caches/scene-pool", "cache-teacher", (*pool, *teacher, "pool-distilled"), ("data/scene-pool",)),
    ]
    of_few, of_pool = ("--cache", "caches/few"), ("--cache", "caches/scene-pool")
    kl = sets(loss__terms="{kl=1.0}", loss__temperature="auto")
    rows = {
        "scenes-few-alone": ("128 captioned scenes, no teacher", (*data, *few, *evidence_clip.INFONCE)),
        "scenes-few": ("the same, with the teacher's scores", (*data, *few, *of_few, *evidence_clip.KL)),
        "scenes-mixed": (
            "the same, and 896 scenes and their texts without pairing",
            (*data, *few, *of_few, "--pool", "data/scene-pool", *of_pool, *evidence_clip.KL),
        ),
        "scenes-pool": ("only the 896 scenes and their texts", (*pool, *of_pool, *kl)),
        "scenes-all-alone": ("1,024 captioned scenes, no teacher", (*data, *evidence_clip.INFONCE)),
        "scenes-all": (ALL_SCENES, (*data, "--cache", "caches/scenes", *evidence_clip.KL)),
    }
    for seed_number in SEEDS:
        for name, (label, words) in rows.items():
            own = sets(model__start=f"{start}/model", seed=seed_number, optimizer__steps=evidence_clip.STEPS)
            needs = tuple(word for word in words if word.startswith(("data/", "caches/")))
            out = f"runs/{name}-{seed_number}"
            run = ("demo-dual", *words, *own, *sets(optimizer__lr=1e-3))
            base = "" if name == "scenes-few-alone" else rows["scenes-few-alone"][0]
            steps.append(Step(out, "distill", run, (*needs, start), SCENES, label, base, test))
    return steps


WEAK = "800 photos and 3,990 texts, the teacher a student {}"
BLOCKS = sets(candidates__kind="blocks", candidates__group_size=1)
LISTS = sets(candidates__directions="['image']")
BUDGETS: dict[str, tuple[str, tuple[str, ...]]] = {
    **{
        f"blocks-{rounds}": (
            f"blocks of 16 photos and 64 texts ({51_200 * rounds:,})",
            (
                *BLOCKS,
                *sets(candidates__block_size=16, candidates__captions_per_image=4, candidates__rounds=rounds),
            ),
        )
        for rounds in (1, 4, 20)
    },
    "blocks-small": (
        "blocks of 8 photos and 16 texts (12,800)",
        (*BLOCKS, *sets(candidates__block_size=8, candidates__captions_per_image=2)),
    ),
    **{
        f"random-{count}": (
            f"{count} random photos for each text ({3990 * count:,})",
            (*LISTS, *sets(candidates__kind="random", candidates__per_query=count)),
        )
        for count in (3, 12, 48)
    },
    **{
        f"mined-{count}": (
            f"{count} photos for each text, {count // 6} random, the others mined by a student ({3990 * count:,})",
            (
                *LISTS,
                *sets(candidates__kind="embedding", candidates__per_query=count, candidates__model="runs/random-12-0"),
                *sets(candidates__random_per_query=count // 6),
            ),
        )
        for count in (12, 48)
    },
}
"""Label and `[candidates]` of each cache."""


def _budgets() -> list[Step]:
    steps = []
    for name, (label, words) in BUDGETS.items():
        first = ("runs/random-12-0",) if name.startswith("mined") else ()
        caches = [f"caches/{name}-{number}" for number in range(len(TEACHERS))]
        for cache, teacher in zip(caches, TEACHERS, strict=True):
            scoring = ("--data", "data/pool", "--features", "features", "--teacher", teacher)
            steps.append(
                Step(
                    cache,
                    "cache-teacher",
                    (*scoring, "--recipe", "photos-distilled", *words),
                    (teacher, "data/pool", *first),
                )
            )
        by_cache = tuple(word for cache in caches for word in ("--cache", cache))
        steps += [
            _run(name, seed, PAIRS, label, ("photos-distilled", "--data", "data/pool", *by_cache, *KL, *STEPS))
            for seed in SEEDS
        ]
    return steps
