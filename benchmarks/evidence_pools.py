"""The plan `pools`: students of photos without captions and texts without photos, beside captioned ones."""

from __future__ import annotations

import json
import random
import zipfile
from pathlib import Path

from evidence_steps import SEEDS, Step, sets

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
ALL_PAIRS = "every pair (3,192,000)"
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
    steps += [step for seed in SEEDS for step in _wrong(seed)]
    return [*steps, *_budgets()]


POOLS = {
    "pool": ("pool", "pool"),
    "half": ("half", "half"),
    "half-other": ("half", "rest"),
    "no-photo": ("pool", "others"),
    "no-text": ("others", "pool"),
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
        "half": ("400 photos and their own texts", "half"),
        "half-other": ("400 photos and the texts of 400 others", "half-other"),
        "no-photo": ("800 photos, and texts that fit none of them", "no-photo"),
        "no-text": ("800 photos of the teacher's, and texts that fit none of them", "no-text"),
    }
    return [
        _run(name, seed, WRONG, label, ("photos-distilled", "--data", f"data/{pool}", *BY_TEACHERS, *KL, *STEPS))
        for name, (label, pool) in rows.items()
    ]


BLOCKS = {"blocks": sets(candidates__kind="blocks", candidates__group_size=1)}
LISTS = sets(candidates__directions="['image']")
BUDGETS: dict[str, tuple[str, tuple[str, ...]]] = {
    **{
        f"blocks-{rounds}": (
            f"blocks of 16 photos and 64 texts ({51_200 * rounds:,})",
            (
                *BLOCKS["blocks"],
                *sets(candidates__block_size=16, candidates__captions_per_image=4, candidates__rounds=rounds),
            ),
        )
        for rounds in (1, 4, 20)
    },
    "blocks-small": (
        "blocks of 8 photos and 16 texts (12,800)",
        (*BLOCKS["blocks"], *sets(candidates__block_size=8, candidates__captions_per_image=2)),
    ),
    **{
        f"random-{count}": (
            f"{count} random photos for each text ({3990 * count:,})",
            (*LISTS, *sets(candidates__kind="random", candidates__per_query=count)),
        )
        for count in (3, 12, 48, 192)
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
        for count in (12, 48, 192)
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
