"""`loss.dims`: losses of several widths of the same vectors (Matryoshka)."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from batches import pair_batches, recipe_batches
from tiny import make_wide_dual
from torch.testing import assert_close
from training_steps import distill

from dcdctl.core import models
from dcdctl.core.engines import Compute
from dcdctl.core.errors import ConfigError
from dcdctl.core.scoring import CorpusSource
from dcdctl.core.teacher import embed_corpus
from dcdctl.core.training import load_recipe
from dcdctl.core.training.batches.batch import Batch
from dcdctl.core.training.losses.table import LossConfig
from dcdctl.core.training.objective import PairObjective
from dcdctl.core.training.recipe import BatchConfig

DIMS = (2, 3, 8)
DUAL = ["model.kind=dual", "model.start=new", "model.layers=[]"]


@pytest.fixture(scope="module")
def dual(corpus) -> models.DualEncoder:
    """A dual encoder whose vectors have eight numbers."""
    return make_wide_dual(corpus.captions)


@pytest.fixture(scope="module")
def batch(corpus, dual) -> Batch:
    return pair_batches(CorpusSource(corpus, dual.preprocess), BatchConfig(size=6), 0, None)[0]


def infonce_by_loops(images_ID: np.ndarray, texts_TD: np.ndarray, scale: float) -> float:
    """InfoNCE of vectors of any length, pair by pair."""
    count, total = len(images_ID), 0.0
    logits = [[scale * (i @ t) / math.sqrt((i @ i) * (t @ t)) for t in texts_TD] for i in images_ID]
    for query in range(count):
        for row in (logits[query], [logits[other][query] for other in range(count)]):
            total += math.log(sum(map(math.exp, row))) - row[query]
    return total / (2 * count)


def test_the_loss_is_the_mean_over_the_widths_of_the_loss_of_prefixes(dual, batch):
    value = PairObjective(LossConfig(terms={"infonce": 2.0}, dims=DIMS))(dual, batch)["infonce"]
    images_ID, texts_TD = (side.detach().double().numpy() for side in dual.outputs(batch))
    assert not batch.same_RC.any()
    of_each = [
        infonce_by_loops(images_ID[:, :dims], texts_TD[:, :dims], float(dual.logit_scale.detach())) for dims in DIMS
    ]
    assert value.item() == pytest.approx(2 * sum(of_each) / 3, rel=1e-5)
    assert max(of_each) - min(of_each) > 0.01


def test_the_full_width_alone_is_the_loss_without_widths_bit_for_bit(dual, batch):
    with_dims, without = (
        PairObjective(LossConfig(terms={"infonce": 1.0}, dims=dims))(dual, batch) for dims in ((8,), ())
    )
    assert torch.equal(with_dims["infonce"], without["infonce"])


def test_numbers_beyond_the_widest_prefix_get_no_gradient_and_earlier_ones_get_more(dual, batch):
    objective = PairObjective(LossConfig(terms={"infonce": 1.0}, dims=(2, 3)))
    leaves = [side.detach().requires_grad_() for side in dual.outputs(batch)]
    objective.loss(dual, leaves, batch)["infonce"].backward()
    norms_D = torch.cat([leaf.grad for leaf in leaves]).norm(dim=0)
    assert (norms_D[:3] > 0).all()
    assert (norms_D[3:] == 0).all()


def test_losses_of_vectors_see_the_full_width(corpus, dual):
    teacher = embed_corpus([("dual", dual)], corpus, Compute())
    sets = [*DUAL, "loss.terms={ infonce = 1.0, embedding-cosine = 1.0 }", "batch.size=8", "model.projection_dim=8"]
    values = []
    for more in ([], ["loss.dims=[2, 8]"]):
        recipe = load_recipe("tiny-student", [*sets, *more])
        batches = recipe_batches(CorpusSource(corpus, dual.preprocess), recipe, teacher, vectors=teacher)
        dual.add_projection(8)
        values.append(PairObjective(recipe.loss)(dual, batches[0]))
    assert_close(values[0]["embedding-cosine"], values[1]["embedding-cosine"], rtol=0, atol=0)
    assert values[0]["infonce"] != values[1]["infonce"]


def test_a_width_above_that_of_the_model_is_refused_before_a_run_folder_is_made(corpus, tmp_path):
    sets = [*DUAL, "loss.terms={ infonce = 1.0 }", "model.projection_dim=8", "loss.dims=[4, 9]"]
    with pytest.raises(ConfigError, match=r"loss\.dims ends with 9, and the vectors of the model have 8 numbers"):
        distill(corpus, tmp_path / "run", *sets)
    assert not (tmp_path / "run").exists()
