"""The plan `weights`: does it matter in groups of how many lists DCD's weights are normalized (`loss.weight_group`)?

All students are those of recipe photos-fusion and differ only in their loss. As in the released code they see images
against captions. At batch 32 they take the recipe's 250 steps; at batch 256 they take 60, which are twice as many
lists.
"""

from __future__ import annotations

from evidence_steps import SEEDS, Step, sets

FEATURES = ("--features", "features")
VAL = ("--data", "data", *FEATURES, "--split", "val", "--depth", "20")
CACHE = "caches/pair-0"
STEPS = {32: 250, 256: 60}
"""Batch size -> steps."""
TABLE = "Fusion students, images against captions, batch {}"
LOSSES = {"dcd": "DCD", "dcd-released": "DCD as released"}
ROWS = (("dcd", ("none", 8), (256, 32)), ("dcd-released", ("none", 8), (256,)), ("dcd", (4,), (256,)))
"""Losses, the groups of their weights, and batch sizes. All seeds of an entry come before the next, so a killed plan
has whole rows."""
DIRECTION = '["text"]'
CANDIDATES = sets(candidates__kind="random", candidates__per_query=30, candidates__directions=DIRECTION)
"""An image has 30 captions, of which 15 are drawn; in this training it comes up once to three times."""


def label(loss: str, group: int | str) -> str:
    """The row of a loss whose weights are normalized among `group` lists."""
    return f"{LOSSES[loss]}, {'whole batch' if group == 'none' else f'groups of {group}'}"


def weights() -> list[Step]:
    """One teacher, its cache, and the students of each seed."""
    encoders = ("--data", "data", *FEATURES, *sets(model__vision="vision", model__text="text"))
    large = Step("runs/large-0", "distill", ("photos-large", *encoders, *sets(seed=0)), ("data",), measure=VAL[:-2])
    words = ("photos-teacher", *encoders, *sets(seed=0, model__dual_init=large.out))
    pair = Step("runs/pair-0", "finetune-teacher", words, (large.out,), measure=VAL, measured=large.out)
    scoring = ("--data", "data", *FEATURES, "--teacher", pair.out, "--recipe", "photos-fusion", *CANDIDATES)
    cache = Step(CACHE, "cache-teacher", scoring, (pair.out,))
    return [
        Step("data", "prepare", ("--karpathy", "karpathy.json", "--images", "images")),
        large,
        pair,
        cache,
        *(
            _student(loss, group, size, seed, large.out, pair.out)
            for loss, groups, sizes in ROWS
            for seed in SEEDS
            for size in sizes
            for group in groups
        ),
    ]


def _student(loss: str, group: int | str, size: int, seed: int, first: str, teacher: str) -> Step:
    """A student that re-ranks the results of the dual encoder `first`."""
    changes = (
        *sets(seed=seed, batch__size=size, batch__directions=DIRECTION, optimizer__steps=STEPS[size]),
        *sets(loss__terms=f"{{{loss}=1.0}}", loss__weight_group=group),
    )
    words = (
        "photos-fusion",
        "--data",
        "data",
        *FEATURES,
        "--teacher",
        teacher,
        "--cache",
        CACHE,
        *CANDIDATES,
        *changes,
    )
    row = (TABLE.format(size), label(loss, group), label("dcd", "none"), VAL, first)
    return Step(f"runs/{loss}-{group}-{size}-{seed}", "distill", words, (CACHE,), *row)
