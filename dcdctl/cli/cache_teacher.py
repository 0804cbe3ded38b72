"""`dcdctl cache-teacher`: score candidates with the teacher, once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dcdctl.cli.options import (
    Data,
    Device,
    Features,
    MaxImages,
    ModelSet,
    Out,
    PairBatchSize,
    Precision,
    Sets,
    Split,
    Teacher,
    check_overrides,
    check_recipe,
)

if TYPE_CHECKING:
    from dcdctl.core.teacher import Estimate

RecipeName = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        help="Recipe of the student, whose [candidates] say what to score: a name or a .toml file. Required except with --verify.",
        callback=check_recipe,
        metavar="RECIPE",
    ),
]
Extend = Annotated[Path | None, typer.Option("--extend", help="Finished cache whose scores are reused.", metavar="CACHE")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show the number of pairs, the time and the disk space, then stop.")]
Verify = Annotated[
    int | None, typer.Option("--verify", help="Compute N scores of a finished cache again and compare them.", min=1, metavar="N")
]


def cache_teacher(
    data: Data,
    teacher: Teacher,
    out: Out,
    recipe: RecipeName = None,
    sets: Sets = None,
    split: Split = "train",
    max_images: MaxImages = None,
    model_set: ModelSet = None,
    features: Features = None,
    extend: Extend = None,
    dry_run: DryRun = False,
    verify: Verify = None,
    batch_size: PairBatchSize = None,
    device: Device = "auto",
    precision: Precision = "fp32",
) -> None:
    """Score each query's candidates with the teacher, once. Training reads the scores and never runs the teacher."""
    _check_recipe(recipe, sets, verify)
    from dcdctl.cli.views.terminal import bar, show
    from dcdctl.core import devices, training
    from dcdctl.core.devices import Compute
    from dcdctl.core.teacher import CacheJob, cache_scores, verify_cache

    numbers = devices.precision(precision)
    job = CacheJob(
        teacher=teacher, model_set=model_set or (), data=data, split=split, max_images=max_images, out=out,
        candidates=None if recipe is None else training.load_recipe(recipe, sets or ()).candidates, extend=extend,
        compute=Compute(device=devices.choose(device), precision=numbers, batch_size=batch_size, features=features),
    )  # fmt: skip
    if verify is not None:
        difference = verify_cache(job, verify, track=bar)
        return show(f"{out}: {verify:,} pairs scored again, the largest difference is {difference:.1e}")
    cache = cache_scores(job, dry_run=dry_run, track=bar, on_estimate=_show_estimate)
    if cache is not None:
        show(f"{cache.num_pairs:,} scored pairs of {cache.num_images:,} images and {cache.num_texts:,} captions -> {out}")


def _check_recipe(recipe: str | None, sets: list[str] | None, verify: int | None) -> None:
    """An error, before any import of a model, for a missing recipe or an override that it does not take."""
    if recipe is not None:
        return check_overrides(recipe, sets)
    # The cache that is verified has its own plan.
    if verify is None or sets:
        from dcdctl.core.training import require_recipe_of_cache

        require_recipe_of_cache()


def _show_estimate(estimate: Estimate) -> None:
    from dcdctl.cli.views.terminal import clock, note

    rate = f"{estimate.pairs_per_s:,.0f} pairs/s in a trial, about {clock(estimate.seconds)}" if estimate.num_to_score else "nothing to do"
    note(f"{estimate.num_pairs:,} pairs, {estimate.num_to_score:,} to score: {rate}; at most {estimate.disk_bytes / 1e6:,.1f} MB on disk")
