"""`dcdctl cache-teacher`: score candidates with the teacher, once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dcdctl.cli.options import Data, Device, Features, MaxImages, ModelSet, Out, Precision, Sets, Split, Teacher

RecipeName = Annotated[str, typer.Option("--recipe", help="Recipe whose [candidates] say what to score.", metavar="NAME")]
BatchSize = Annotated[int, typer.Option("--batch-size", help="Pairs scored at a time.", min=1)]
Extend = Annotated[Path | None, typer.Option("--extend", help="Finished cache whose scores are taken over.", metavar="CACHE")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say how many pairs, how long and how large, and stop.")]
Verify = Annotated[int | None, typer.Option("--verify", help="Score N pairs of a finished cache anew and compare.", min=1, metavar="N")]


def cache_teacher(
    data: Data,
    teacher: Teacher,
    out: Out,
    recipe: RecipeName = "vilt-flickr30k",
    sets: Sets = None,
    split: Split = "train",
    max_images: MaxImages = None,
    model_set: ModelSet = None,
    features: Features = None,
    extend: Extend = None,
    dry_run: DryRun = False,
    verify: Verify = None,
    batch_size: BatchSize = 256,
    device: Device = "auto",
    precision: Precision = "fp32",
) -> None:
    """Score each query's candidates with the teacher once, so that training never runs it."""
    from dcdctl.cli.views.terminal import bar, show
    from dcdctl.core import models, training
    from dcdctl.core.data import Corpus
    from dcdctl.core.teacher import claimed, estimate_cost, plan_cache, score_planned, scoring_options, verify_scores

    config, corpus = training.load_recipe(recipe, sets or []).candidates, Corpus.open(data, split, max_images)
    model = models.load_fusion(teacher, models.parse_overrides(model_set or []), bar)
    options = scoring_options(corpus, model, device, batch_size, precision, features, bar)
    if verify is not None:
        worst = verify_scores(out, corpus, model, verify, options=options)
        return show(f"{out}: {verify:,} pairs scored anew, the largest difference is {worst:.1e}")
    with claimed(out):
        job = plan_cache(corpus, model, out, config, options=options, extend=extend, track=bar)
        _tell(estimate_cost(job))
        if not dry_run:
            cache = score_planned(job, track=bar)
            show(f"{cache.num_pairs:,} scored pairs of {corpus.num_images:,} images and {corpus.num_captions:,} captions -> {out}")


def _tell(estimate: Any) -> None:
    from dcdctl.cli.views.terminal import clock, note

    rate = f"{estimate.pairs_per_s:,.0f} pairs/s in a trial, about {clock(estimate.seconds)}" if estimate.num_to_score else "nothing to do"
    note(f"{estimate.num_pairs:,} pairs, {estimate.num_to_score:,} to score: {rate}; at most {estimate.disk_bytes / 1e6:,.1f} MB on disk")
