"""The plans `scenes` and `small`: students with and without a teacher on drawn scenes, with the built-in teacher."""

from __future__ import annotations

from collections.abc import Iterable

from evidence_steps import ALONE, SEEDS, Step, sets

SCENES = ("--data", "data")
SCENES_CACHE = "caches/scenes"
SCENES_LISTS = sets(batch__size=24, batch__random_negatives=15, batch__hard_negatives=7, loss__temperature=1.0)
SCENES_DUAL_LOSSES: dict[str, tuple[str, ...]] = {
    "InfoNCE + margin-MSE": sets(),
    "KL": sets(loss__terms="{kl=1.0}", loss__temperature=1.0),
    "DCD-KL": sets(loss__terms="{dcd-kl=1.0}", loss__temperature=1.0),
    "margin-MSE": sets(loss__terms="{margin-mse=1.0}"),
    "WSL, lists": sets(loss__terms="{wsl=1.0}") + SCENES_LISTS,
    "DCD as released, lists": sets(loss__terms="{dcd-released=1.0}", loss__alpha=0.5) + SCENES_LISTS,
    "DCD, lists": sets(loss__terms="{dcd=1.0}", loss__alpha=0.5, optimizer__lr_factors="{calibration=100}")
    + SCENES_LISTS,
}
"""Changes to recipe demo-dual for each label."""
SCENES_FUSION_LOSSES: dict[str, tuple[str, ...]] = {
    "ground truth (BCE)": sets(loss="{terms={ground-truth=1.0}}"),
    "InfoNCE": sets(loss="{terms={infonce=1.0}}", batch__size=12),
    "KL": sets(loss="{terms={kl=1.0}}", batch__size=12),
    "margin-MSE": sets(loss="{terms={margin-mse=0.1}}", batch__size=12),
    "WSL": sets(loss="{terms={wsl=1.0}}"),
    "DCD as released": sets(loss__terms="{dcd-released=1.0}", loss__alpha=0.5),
    "DCD": sets(),
}
"""Changes to recipe demo-fusion and `SCENES_FUSION` for each label."""
SCENES_FUSION = sets(
    candidates__block_size=16,
    candidates__group_size=1,
    candidates__captions_per_image=5,
    model__layers="[0,3,5]",
    batch__random_negatives=15,
    optimizer__steps=100,
)
"""What the fusion students of these tables have in common: the cache of the dual students, without families of scenes,
and 3 layers."""
SMALL_DUAL, SMALL_FUSION = ("InfoNCE + margin-MSE", "KL", "DCD, lists"), ("ground truth (BCE)", "KL", "DCD")


def scenes() -> list[Step]:
    """1,024 scenes to train on, and 500 new scenes (100 for fusion students) to report on."""
    return [
        *_scenes_teacher(),
        *(step for seed in SEEDS for step in _scenes_students(seed, SCENES_DUAL_LOSSES, SCENES_FUSION_LOSSES)),
    ]


def small() -> list[Step]:
    """A few rows of `scenes`, with two seeds."""
    students = (step for seed in SEEDS[:2] for step in _scenes_students(seed, SMALL_DUAL, SMALL_FUSION))
    return [*_scenes_teacher(), *(step for step in students if not step.out.startswith("runs/truth"))]


def _scenes_teacher() -> list[Step]:
    size = sets(counts__train=1024, counts__val=0)
    return [
        Step("data", "prepare", ("scenes", "--image-size", "64", *size)),
        Step(SCENES_CACHE, "cache-teacher", (*SCENES, "--teacher", "scenes-vilt", "--recipe", "demo-dual"), ("data",)),
    ]


def _scenes_students(seed: int, dual_losses: Iterable[str], fusion_losses: Iterable[str]) -> list[Step]:
    """Students of one seed."""
    own = (*SCENES, *sets(seed=seed))
    table = "Dual students, 1,024 scenes"
    alone = Step(f"runs/alone-{seed}", "distill", ("demo-dual-alone", *own), ("data",), table, ALONE, "", SCENES)
    truth = (
        "demo-dual-alone",
        *own,
        *sets(loss__terms="{ground-truth=1.0}", batch__size=24, batch__random_negatives=7),
    )
    steps = [
        alone,
        Step(
            f"runs/truth-{seed}",
            "distill",
            truth,
            ("data",),
            table,
            "ground truth (BCE), no teacher, lists",
            ALONE,
            SCENES,
        ),
    ]
    for index, label in enumerate(dual_losses):
        words = ("demo-dual", "--cache", SCENES_CACHE, *own, *SCENES_DUAL_LOSSES[label])
        steps.append(Step(f"runs/dual{index}-{seed}", "distill", words, (SCENES_CACHE,), table, label, ALONE, SCENES))
    table, base = "Fusion students, 6 layers to 3, 1,024 scenes", next(iter(SCENES_FUSION_LOSSES))
    for index, label in enumerate(fusion_losses):
        words = (
            "demo-fusion",
            "--teacher",
            "scenes-vilt",
            "--cache",
            SCENES_CACHE,
            *own,
            *SCENES_FUSION,
            *SCENES_FUSION_LOSSES[label],
        )
        measure = (*SCENES, "--max-images", "100")
        steps.append(Step(f"runs/fusion{index}-{seed}", "distill", words, (SCENES_CACHE,), table, label, base, measure))
    return steps
