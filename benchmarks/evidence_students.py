"""The plan `students`: a cross-encoder and every kind of student that dcdctl makes of it, on the same 500 test scenes;
the plan `queries`: query students of a dual encoder of photos; and the plan `elsewhere`: the same of fewer photos, on
photos that are in neither train nor val.

Expected, written on 2026-11-29 before the runs, from earlier ones of single parts: the rows of `EXPECTED`.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from evidence_steps import SEEDS, Step, sets

TABLE = "A teacher and its students, 500 test scenes"
TEACHER = "scenes-vilt"
DATA, MORE = ("--data", "data"), ("--data", "data/more")
FROZEN = ("--features", "features", *sets(model__vision="vision", model__text="text"))
TEST = (*DATA, "--split", "test")
CACHE, FAMILIES, FUSION_CACHE = "caches/scenes", "caches/families", "caches/fusion"
BY_DUAL = sets(candidates__model="runs/dual-0/model", candidates__group_size=4, candidates__block_size=8)
"""Blocks of whole families of scenes, which a dual encoder finds: without them nothing asks for left and right."""
QUERY = "--query-model"
BENCH = sets(budget_s=2, num_repeats=20, batch_sizes="[32]")
BENCH += sets(gallery_sizes="[2,5,20,100,1000]", is_onnx_timed="false")
"""As a study times queries. The teacher's times over the few images of a cascade are those of its re-ranking."""
INFONCE = sets(loss__terms="{infonce=1.0}")
ALL, DUAL, LATE, PLACED = (
    "teacher, all pairs",
    "dual",
    "late interaction",
    "late interaction with positions and families",
)
PHOTOS, BIG = "Query students, 6,000 photos", "dual, 288 px, its own MiniLM for texts"
HELD = "Query students, 4,000 photos, on 1,000 further ones of train"
HELD_TEST = ("--data", "held", "--split", "test", "--features", "features")
STATIC = f"{BIG}, a static query student"
MANY_TEXTS = sets(batch__size=512, optimizer__epochs=10)
LONGER = sets(batch__size=512, optimizer__epochs=20)
EXPECTED = {
    ALL: 591,
    DUAL: 240,
    f"{DUAL}, no teacher": 209,
    f"{DUAL}, its first 20 by the teacher": 467,
    f"{DUAL}, its first 100 by the teacher": 576,
    f"{DUAL}, a static query student": 235,
    LATE: 495,
    f"{LATE}, no teacher": 494,
    f"{LATE}, its first 5 by the teacher": 592,
    PLACED: 581,
    f"{PLACED}, its first 2 by the teacher": 593,
    f"{PLACED}, a query student of one layer": 575,
    "fusion, 4 of 6 layers": 579,
    BIG: 315,
    STATIC: 313,
    f"{STATIC} with token vectors of its own": 301,
}
"""RSUM of each row, a mean of three seeds; the teacher's and the fusion student's of one. Within 6 of these, a row is
as expected."""


def students() -> list[Step]:
    """The corpora, the caches, and the students of each seed; then what takes long to measure, the models that read
    pairs."""
    size = sets(counts__train=1024, counts__val=300, counts__test=500)
    more = sets(counts__train=2048, counts__val=300, counts__test=500)
    scores = ("--teacher", TEACHER, "--recipe")
    steps = [
        Step("data", "prepare", ("scenes", "--image-size", "64", *size)),
        Step("data/more", "prepare", ("scenes", "--image-size", "64", *more), ("data",)),
        Step(CACHE, "cache-teacher", (*DATA, *scores, "demo-late"), ("data",)),
        Step(FUSION_CACHE, "cache-teacher", (*DATA, *scores, "demo-fusion"), ("data",)),
        Step(FAMILIES, "cache-teacher", (*MORE, *scores, "demo-late", *BY_DUAL), ("data/more", "runs/dual-0")),
    ]
    steps += [step for seed in SEEDS for step in _dual(seed) + _late(seed)]
    steps += [step for seed in SEEDS for step in _cascades(seed)]
    fusion = ("demo-fusion", *DATA, "--teacher", TEACHER, "--cache", FUSION_CACHE)
    steps += [
        _run("fusion-0", fusion, (FUSION_CACHE,), "fusion, 4 of 6 layers", ""),
        Step("runs/teacher", "eval", (TEACHER, *TEST), ("data",), TABLE, ALL),
    ]
    return [*steps, *_times(steps)]


def _times(steps: list[Step]) -> list[Step]:
    """The times of the students of seed 0, one after another when all else is done."""
    times: list[Step] = []
    for step in steps:
        if not (step.trains and step.table and step.short.endswith("-0")):
            continue
        model = (step.out,) if not step.measured else (step.measured, step.role, step.out)
        words = (*model, "--teacher", TEACHER, *TEST, *BENCH)
        times.append(Step(f"times/{step.short}", "bench", words, tuple(each.out for each in [*steps, *times])))
    return times


def _run(name: str, words: tuple[str, ...], after: tuple[str, ...], label: str, base: str) -> Step:
    return Step(f"runs/{name}", "distill", words, after, TABLE if label else "", label, base, TEST)


def _dual(seed: int) -> list[Step]:
    own, alone = sets(seed=seed), f"{DUAL}, no teacher"
    run, texts, query = f"runs/dual-{seed}", f"caches/texts-dual-{seed}", f"{DUAL}, a static query student"
    static = (
        "query-static",
        "--cache",
        texts,
        *own,
        *sets(model__text="", model__hidden_size=256, model__vocab_size=16_000, optimizer__epochs=40),
    )
    return [
        _run(f"dual-{seed}", ("demo-dual", *DATA, "--cache", CACHE, *own), (CACHE,), DUAL, alone),
        _run(f"dual-alone-{seed}", ("demo-dual-alone", *DATA, *own), ("data",), alone, ""),
        Step(texts, "cache-texts", ("--teacher", run, "--texts", "data"), (run,)),
        Step(f"runs/query-dual-{seed}", "distill", static, (texts,), TABLE, query, DUAL, TEST, run, QUERY),
    ]


def _late(seed: int) -> list[Step]:
    own, alone, late = sets(seed=seed), f"{LATE}, no teacher", ("demo-late", *DATA, "--cache", CACHE)
    first, placed, texts = f"runs/first-{seed}", f"runs/placed-{seed}", f"caches/texts-placed-{seed}"
    positions = sets(model__position_norm=0.7, model__num_text_layers=2, optimizer__steps=600)
    families = ("demo-late", *MORE, "--cache", FAMILIES, *BY_DUAL, *sets(model__start=f"{first}/model"))
    layer = ("query-static", "--cache", texts, "--teacher", placed, *own)
    layer += sets(model__text="teacher", model__num_text_layers=2, optimizer__lr=1e-3, optimizer__epochs=8)
    query = f"{PLACED}, a query student of one layer"
    return [
        _run(f"late-{seed}", (*late, *own), (CACHE,), LATE, DUAL),
        _run(f"late-alone-{seed}", ("demo-late", *DATA, *INFONCE, *own), ("data",), alone, LATE),
        _run(f"first-{seed}", (*late, *own, *positions), (CACHE,), "", ""),
        _run(f"placed-{seed}", (*families, *own), (FAMILIES, first), PLACED, LATE),
        Step(texts, "cache-texts", ("--teacher", placed, "--texts", "data"), (placed,)),
        Step(f"runs/query-placed-{seed}", "distill", layer, (texts,), TABLE, query, PLACED, TEST, placed, QUERY),
    ]


def _cascades(seed: int) -> list[Step]:
    """Students whose first candidates the teacher orders."""
    depths = ((DUAL, "dual", 20), (DUAL, "dual", 100), (LATE, "late", 5), (PLACED, "placed", 2))
    return [
        Step(
            f"runs/{name}-first-{depth}-{seed}",
            "eval",
            (f"runs/{name}-{seed}", *TEST, "--rerank", TEACHER, "--depth", str(depth)),
            (f"runs/{name}-{seed}",),
            TABLE,
            f"{label}, its first {depth} by the teacher",
            label,
        )
        for label, name, depth in depths
    ]


def queries() -> list[Step]:
    """Flickr8k's train for the dual encoders and, of its captions alone, for the query students; its val to report
    on."""
    data, val = ("--data", "data", *FROZEN), ("--data", "data", "--split", "val")
    steps = [Step("data", "prepare", ("--karpathy", "karpathy.json", "--images", "images"))]
    for seed in SEEDS:
        big, texts, own = f"runs/big-{seed}", f"caches/texts-{seed}", sets(seed=seed)
        words = ("photos-large", *data, *own, *sets(optimizer__epochs=100))
        steps.append(Step(big, "distill", words, ("data",), PHOTOS, BIG, "", (*val, "--features", "features")))
        steps.append(Step(texts, "cache-texts", ("--teacher", big, "--texts", "data"), (big,)))
        for name, text, label in (("static", "text", ""), ("own", "", " with token vectors of its own")):
            words = ("query-static", "--cache", texts, *own, *sets(model__text=text))
            label, out = f"{BIG}, a static query student{label}", f"runs/{name}-{seed}"
            steps.append(Step(out, "distill", words, (texts,), PHOTOS, label, BIG, val, big, QUERY))
    return steps


def write_inputs(karpathy: Path, work: Path) -> None:
    """Divide Flickr8k's train by a fixed draw: 4,000 photos to learn from, 1,000 to choose settings on (the val of this
    file), and 1,000 to report on (its test)."""
    if (work / "held.json").exists():
        return
    document = json.loads(karpathy.read_text())
    images = [image for image in document["images"] if image["split"] == "train"]
    splits = [*["train"] * 4000, *["val"] * 1000, *["test"] * 1000]
    for row, split in zip(np.random.default_rng(53).permutation(len(images)), splits, strict=True):
        images[row]["split"] = split
    (work / "held.json").write_text(json.dumps({**document, "images": images}))


def elsewhere() -> list[Step]:
    """Dual encoders of 4,000 photos of Flickr8k's train and their query students.

    `query_recalls.py` measures these on 1,000 further photos of train and on Flickr8k's val: it embeds the photos once
    for all students of a teacher.
    """
    steps = [
        Step("held", "prepare", ("--karpathy", "held.json", "--images", "images")),
        Step("data", "prepare", ("--karpathy", "karpathy.json", "--images", "images")),
    ]
    for seed in SEEDS:
        big, texts = f"runs/big-{seed}", f"caches/texts-{seed}"
        outside, wordnet = f"caches/outside-{seed}", f"caches/wordnet-{seed}"
        words = ("photos-large", "--data", "held", *FROZEN, *sets(seed=seed, optimizer__epochs=100))
        more = ("--teacher", big, "--extend", texts, "--texts")
        steps += [
            Step(big, "distill", words, ("held",), HELD, BIG, "", HELD_TEST),
            Step(texts, "cache-texts", ("--teacher", big, "--texts", "held"), (big,)),
            Step(outside, "cache-texts", (*more, "outside.txt"), (texts,)),
            Step(wordnet, "cache-texts", (*more, "wordnet.txt"), (texts,)),
        ]
        students = {
            "static": (texts, ()),
            "outside": (outside, MANY_TEXTS),
            "longer": (outside, LONGER),
            "wordnet": (wordnet, LONGER),
        }
        for name, (cache, settings) in students.items():
            words = ("query-static", "--cache", cache, *sets(seed=seed, model__text="text"), *settings)
            steps.append(Step(f"runs/{name}-{seed}", "distill", words, (cache,)))
    words = ("query-minilm", "--cache", "caches/texts-0", *sets(model__text="text", model__text_layers="[0]"))
    return [*steps, Step("runs/layer-0", "distill", words, ("caches/texts-0",))]
