"""WiSE-FT: the weights of a trained model averaged with the weights of its start (Wortsman et al., CVPR 2022, arXiv
2109.01903)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from dcdctl.core.errors import StaleError
from dcdctl.core.models import Model
from dcdctl.core.training.initial_model import Start, make_model
from dcdctl.core.training.recipe import LORA, Recipe, TwoTowerConfig


def averages_with_start(
    model: Model, recipe: Recipe, captions: Sequence[str], teacher: Start, start_digest: str
) -> Callable[[float], None]:
    """A function that gives a trained model of weights w the weights (1 - s) w + s w_0 for a share s, with the weights
    w_0 of its start. Both stay in memory on the CPU.

    The start is made again; StaleError if its digest is not that of the run's start, because the reference names
    another model now.
    """
    # Adapters are modules of other names, so the start is made without them.
    unadapted = recipe
    if isinstance(recipe.model, TwoTowerConfig):
        config = replace(recipe.model, trained="all", trained_layers=None, lora_rank=LORA.rank, lora_alpha=LORA.alpha)
        unadapted = replace(recipe, model=config)
    start = make_model(unadapted, captions, teacher)
    if start.digest != start_digest:
        raise StaleError(
            f"{recipe.model.start} has changed since the run started ({start.digest[:8]}, not {start_digest[:8]})",
            hint="restore it, and resume with --resume to average with it",
        )
    initial = start.network.state_dict()
    # Whole numbers, such as positions, are equal in both.
    averaged = {name: tensor for name, tensor in model.network.state_dict().items() if tensor.is_floating_point()}
    # On the CPU in float32, so that the result does not depend on the device.
    trained = {name: tensor.to("cpu", copy=True) for name, tensor in averaged.items()}

    def average(share: float) -> None:
        for name, tensor in averaged.items():
            tensor.copy_((1 - share) * trained[name] + share * initial[name].cpu())

    return average
