"""`dcdctl cache-teacher`: score candidates with the teacher, once."""

from __future__ import annotations

from typing import Annotated

import typer

from dcdctl.cli.options import Data, Device, Features, MaxImages, ModelSet, Out, Precision, Sets, Split, Teacher

RecipeName = Annotated[str, typer.Option("--recipe", help="Recipe whose [candidates] say what to score.", metavar="NAME")]
BatchSize = Annotated[int, typer.Option("--batch-size", help="Pairs scored at a time.", min=1)]


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
    batch_size: BatchSize = 256,
    device: Device = "auto",
    precision: Precision = "fp32",
) -> None:
    """Score each query's candidates with the teacher once, so that training never runs it."""
    from dcdctl.cli.terminal import bar, show
    from dcdctl.core import devices, models, teacher_cache
    from dcdctl.core import recipe as recipes
    from dcdctl.core.corpus import Corpus
    from dcdctl.core.features import open_or_build

    config = recipes.load(recipe, sets or []).candidates
    corpus = Corpus.open(data, split, max_images)
    options = teacher_cache.ScoringOptions(device=devices.choose(device), batch_size=batch_size, precision=devices.precision(precision))
    model = models.load_fusion(teacher, models.parse_overrides(model_set or []))
    kept = None if features is None else open_or_build(features, corpus, model, device=options.device, track=bar)
    cache = teacher_cache.build(corpus, model, out, config, options=options, features=kept, track=bar)
    show(f"{cache.num_pairs:,} scored pairs of {corpus.num_images:,} images and {corpus.num_captions:,} captions -> {out}")
