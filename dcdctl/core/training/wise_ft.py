"""WiSE-FT: the weights of a trained model averaged with the weights of its start (Wortsman et al., CVPR 2022, arXiv
2109.01903)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from dcdctl.core.errors import StaleError
from dcdctl.core.models import FusionScorer, Model
from dcdctl.core.training.initial_model import make_model
from dcdctl.core.training.recipe import LORA, Recipe


def average_with_start(
    model: Model, recipe: Recipe, captions: Sequence[str], teacher: FusionScorer | None, start_digest: str
) -> None:
    """Replace the weights w of a trained model by (1 - s) w + s w_0, with the recipe's share s and the weights w_0 of
    its start.

    The start is made again; StaleError if its digest is not that of the run's start, because the reference names
    another model now.
    """
    share = recipe.model.average_with_start
    if not share:
        return
    # Adapters are modules of other names, so the start is made without them.
    unadapted = replace(recipe.model, trained="all", trained_layers=None, lora_rank=LORA.rank, lora_alpha=LORA.alpha)
    start = make_model(replace(recipe, model=unadapted), captions, teacher)
    if start.digest != start_digest:
        problem = f"{recipe.model.start} has changed since the run started ({start.digest[:8]}, not {start_digest[:8]})"
        raise StaleError(problem, hint="restore it, and resume with --resume to average with it")
    initial = start.network.state_dict()
    for name, tensor in model.network.state_dict().items():
        # Whole numbers, such as positions, are equal in both.
        if tensor.is_floating_point():
            # On the CPU in float32, so that the result does not depend on the device.
            tensor.copy_((1 - share) * tensor.cpu() + share * initial[name].cpu())
