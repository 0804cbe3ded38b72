"""The plans `fresh-flickr8k` and `fresh-scenes`: does it matter how many different negatives an image meets?

All students of a plan draw equally many candidates for a list and keep the hardest 7. Their caches hold as many
candidates as are drawn (1x), 3 times or 10 times as many. With 1x an image has the same negatives in all its lists.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

from evidence_steps import SEEDS, Step, sets

DRAWN = 15
LISTS_PER_IMAGE = 50
"""As in 10 epochs of the released code: an epoch has a list for each caption, and an image has five."""
TIMES = (1, 3, 10)
"""Cached candidates for each drawn one. The first is the base of the tables."""
# The released code trains images against captions only; a cache of both directions would have six times the pairs.
DIRECTION = '["text"]'
PHOTOS, SCENES = 400, 100
FLICKR8K_TABLE = "Fusion students, 400 photos, 50 lists per photo"
SCENES_TABLE = "Fusion students, 100 scenes, 50 lists per scene"


def label(times: int) -> str:
    """The row of students whose cache holds `times` the drawn candidates."""
    return f"{times}x: {times * DRAWN} cached, {DRAWN} drawn, 7 kept"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What the students of a plan have in common."""

    recipe: str
    teacher: str
    data: tuple[str, ...]
    """Arguments that name the corpus."""
    num_images: int
    batch_size: int
    after: str
    """`out` of the step that the caches need."""
    table: str
    measure: tuple[str, ...]
    measured: str = ""
    changes: tuple[str, ...] = ()
    """Recipe fields of the students besides those of their lists."""


def fresh_flickr8k() -> list[Step]:
    """Students of recipe photos-fusion on 400 photos; the teacher was trained on 6,000. They re-rank the results of a
    dual encoder."""
    features = ("--data", "data", "--features", "features")
    encoders = (*features, *sets(model__vision="vision", model__text="text"))
    val = (*features, "--split", "val")
    large = Step("runs/large-0", "distill", ("photos-large", *encoders, *sets(seed=0)), ("data",), measure=val)
    words = ("photos-teacher", *encoders, *sets(seed=0, model__dual_init=large.out))
    first = (*val, "--depth", "20")
    pair = Step("runs/pair-0", "finetune-teacher", words, (large.out,), measure=first, measured=large.out)
    subset = (*features, "--max-images", str(PHOTOS))
    setting = Setting(
        recipe="photos-fusion",
        teacher=pair.out,
        data=subset,
        num_images=PHOTOS,
        batch_size=32,
        after=pair.out,
        table=FLICKR8K_TABLE,
        measure=first,
        measured=large.out,
    )
    return [
        Step("data", "prepare", ("--karpathy", "karpathy.json", "--images", "images")),
        large,
        pair,
        *_students(setting),
    ]


def fresh_scenes() -> list[Step]:
    """Students of recipe demo-fusion on 100 scenes, measured on 100 new ones."""
    data = ("--data", "data")
    setting = Setting(
        recipe="demo-fusion",
        teacher="scenes-vilt",
        data=data,
        num_images=SCENES,
        batch_size=24,
        after="data",
        table=SCENES_TABLE,
        measure=data,
        changes=sets(model__layers="[0, 3, 5]"),
    )
    size = sets(counts__train=SCENES, counts__val=0, counts__test=100)
    return [Step("data", "prepare", ("scenes", "--image-size", "64", *size)), *_students(setting)]


def _students(setting: Setting) -> list[Step]:
    """The caches of one teacher, and a student of each seed for each of them."""
    lists = sets(
        batch__size=setting.batch_size,
        batch__directions=DIRECTION,
        batch__random_negatives=DRAWN,
        batch__hard_negatives=7,
        optimizer__steps=setting.num_images * LISTS_PER_IMAGE // setting.batch_size,
    )
    caches, runs = [], []
    # One seed after the other, so that the rows of a killed plan can be compared.
    for seed, times in product(SEEDS, TIMES):
        candidates = sets(
            candidates__kind="random", candidates__directions=DIRECTION, candidates__per_query=times * DRAWN
        )
        words = (*setting.data, "--teacher", setting.teacher, "--recipe", setting.recipe, *candidates)
        cache = Step(f"caches/random-{times}x", "cache-teacher", words, (setting.after,))
        own = (setting.recipe, *setting.data, "--teacher", setting.teacher, "--cache", cache.out)
        own += (*candidates, *lists, *setting.changes, *sets(seed=seed))
        row = (setting.table, label(times), label(TIMES[0]), setting.measure, setting.measured)
        caches += [cache] if seed == SEEDS[0] else []
        runs.append(Step(f"runs/fresh{times}x-{seed}", "distill", own, (cache.out,), *row))
    return [*caches, *runs]
