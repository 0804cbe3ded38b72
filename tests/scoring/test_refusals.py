"""What scoring refuses: features of encoders that have none to store, and vectors that are no numbers."""

from __future__ import annotations

import pytest
import refusals
import torch
from encoders import make_pair
from open_inputs import OpenInputs
from refusals import Refusal

from dcdctl.core import training
from dcdctl.core.engines import Compute
from dcdctl.core.errors import ConfigError, ModelError
from dcdctl.core.scoring import open_or_build, topk
from dcdctl.core.training import TrainingJob, TrainingOptions, initial_model, recipe

QUERIES, GALLERY = torch.ones(5, 6), torch.ones(40, 6)


def of_numbers(side: int, number: float):
    """Search among vectors of which the last number is none."""

    def do(monkeypatch):
        monkeypatch.setattr(topk, "CHECKED", 3)
        vectors = [QUERIES.clone(), GALLERY.clone()]
        vectors[side][-1, -1] = number
        topk.top_k(*vectors, 3)

    return do


def of_trained_encoders(corpus, tmp_path):
    inputs = OpenInputs(corpus, [], make_pair(corpus.captions, tmp_path / "pair"))
    sets = ["loss.terms={ranking = 1.0}", "loss.weight_group=none", "model.layers=[]"]
    job = TrainingJob("finetune-teacher", "vilt-flickr30k", sets, tmp_path / "run")
    training.train_model(job, inputs, options=TrainingOptions(compute=Compute(features=tmp_path / "features")))


def of_frozen_encoders(corpus, teacher):
    config = recipe.load_recipe("vilt-flickr30k", ["model.frozen_encoders=true", "model.layers=[]"])
    initial_model.make_model(config, corpus.captions, teacher)


ROWS = [
    *(
        Refusal(
            f"{number} on side {side}",
            of_numbers(side, number),
            ModelError,
            r"vectors that are NaN or infinite; its training diverged: try a lower optimizer\.lr",
        )
        for side, number in ((0, float("nan")), (1, float("inf")))
    ),
    Refusal(
        "no encoders",
        lambda tmp_path, corpus, teacher: open_or_build(tmp_path, corpus, teacher),
        ModelError,
        "no encoders of its own whose features could be stored; leave --features out",
    ),
    Refusal(
        "trained encoders",
        of_trained_encoders,
        ConfigError,
        "--features stores the outputs of frozen encoders, and these encoders are trained; set",
    ),
    Refusal(
        "frozen_encoders",
        of_frozen_encoders,
        ConfigError,
        r"model\.frozen_encoders is set, and the model has no separate encoders",
    ),
]


@pytest.mark.parametrize("refusal", ROWS, ids=lambda row: row.what)
def test_a_refusal_names_what_is_wrong_and_what_would_be_right(refusal, request):
    refusals.check(refusal, request)
