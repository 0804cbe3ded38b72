"""The plan `scenes-cascade`: the students of the demo for cascades over 500 test scenes, and a dual student with four
times the training.

`cascade_depths.py` measures them, alone and as the two halves of cascades.
"""

from __future__ import annotations

from evidence_steps import SEEDS, Step, sets

TEACHER = "scenes-vilt"
DUAL, ALONE, FUSION = "dual", "dual without a teacher", "fusion student"
LONG = "dual, 4,096 scenes and 3,600 steps"
STUDENTS = {DUAL: "dual", ALONE: "alone", LONG: "long"}
"""The dual students, with the names of their runs."""
DEPTHS = (5, 10, 20, 30, 50, 75, 100, 150, 200, 300)
TABLE = "Dual students of the cascades, 500 test scenes"
DATA = ("--data", "data")
MORE_DATA = ("--data", "more-data")
CACHE, FUSION_CACHE, MORE_CACHE = "caches/dual", "caches/fusion", "caches/more"


def run_name(label: str, seed: int) -> str:
    """`out` of a student."""
    return f"runs/{STUDENTS.get(label, 'fusion')}-{seed}"


def scenes_cascade() -> list[Step]:
    """The corpus, the caches, and three students of each seed."""
    size, more = (sets(counts__train=count, counts__val=0) for count in (1024, 4096))
    steps = [
        Step("data", "prepare", ("scenes", "--image-size", "64", *size)),
        Step(CACHE, "cache-teacher", (*DATA, "--teacher", TEACHER, "--recipe", "demo-dual"), ("data",)),
        Step(FUSION_CACHE, "cache-teacher", (*DATA, "--teacher", TEACHER, "--recipe", "demo-fusion"), ("data",)),
    ]
    steps += [step for seed in SEEDS for step in _students(seed)]
    steps.append(Step("more-data", "prepare", ("scenes", "--image-size", "64", *more)))
    steps.append(
        Step(MORE_CACHE, "cache-teacher", (*MORE_DATA, "--teacher", TEACHER, "--recipe", "demo-dual"), ("more-data",))
    )
    for seed in SEEDS:
        words = ("demo-dual", *MORE_DATA, *sets(seed=seed, optimizer__steps=3600), "--cache", MORE_CACHE)
        steps.append(Step(run_name(LONG, seed), "distill", words, (MORE_CACHE,), TABLE, LONG, ALONE, DATA))
    return steps


def _students(seed: int) -> list[Step]:
    """The students of one seed. `cascade_depths.py` measures the fusion student, which this plan only trains."""
    own = (*DATA, *sets(seed=seed))
    fusion = ("demo-fusion", *own, "--teacher", TEACHER, "--cache", FUSION_CACHE)
    few = (*DATA, "--max-images", "16")
    return [
        Step(
            run_name(DUAL, seed), "distill", ("demo-dual", *own, "--cache", CACHE), (CACHE,), TABLE, DUAL, ALONE, DATA
        ),
        Step(run_name(ALONE, seed), "distill", ("demo-dual-alone", *own), ("data",), TABLE, ALONE, ALONE, DATA),
        Step(run_name(FUSION, seed), "distill", fusion, (FUSION_CACHE,), measure=few),
    ]
