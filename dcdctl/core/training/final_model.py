"""The model that a training leaves in its run folder."""

from __future__ import annotations

from collections.abc import Sequence

from dcdctl.core import distributed
from dcdctl.core.models import FusionScorer, Model
from dcdctl.core.training import initial_model, runs
from dcdctl.core.training.recipe import Recipe
from dcdctl.core.training.runs import Run
from dcdctl.core.training.validation import Validation


def save_model(
    run: Run,
    model: Model,
    recipe: Recipe,
    validate: Validation | None,
    captions: Sequence[str] = (),
    teacher: FusionScorer | None = None,
) -> None:
    """Save the trained model, or the best one by validation, in the run folder, averaged with its start if the recipe
    says so.

    `captions` and `teacher` are those that the initial model was made from.
    """
    with distributed.main_first():
        if distributed.is_main():
            if validate is not None:
                validate.choose(model)
            if model.kind == "dual":
                model.merge_adapters()
            initial_model.average_with_start(model, recipe, captions, teacher, run.facts()["inputs"]["start"])
            runs.finish(run, model)
