"""A logit scale above 100, as published SigLIPs have (about 117): no step from the file to a search clamps or refuses
it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from made_index import build, searcher_of
from origins import ORIGINS
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from training_steps import distill

from dcdctl.core import models
from dcdctl.core.engines import ON_CPU
from dcdctl.core.export import ExportJob, export
from dcdctl.core.teacher import embed_corpus

SCALE, BIAS = 117.3308, -12.9323
"""Those of google/siglip-base-patch16-224."""
KINDS = {"SigLIP": "transformers", "SigLIP 2": "transformers", "open_clip": "open-clip"}
"""The models that keep a scale above 100, and the format of their own library."""
TRAINING = ["model.kind=dual", "model.layers=[]", "model.trained=projections", "batch.size=8"]
TRAINING += ["loss.terms={ infonce = 1.0 }", "optimizer.steps=2", "optimizer.lr=0.01", "optimizer.warmup_share=0.0"]


@pytest.fixture(scope="module", params=KINDS)
def published(request, corpus, tmp_path_factory) -> tuple[str, Path]:
    """A tiny model with the scale and the offset of a published one."""
    folder = Path(ORIGINS[request.param].save(corpus.captions, tmp_path_factory.mktemp("published")))
    (path,) = folder.glob("*.safetensors")
    weights = load_file(path)
    weights["logit_scale"].fill_(math.log(SCALE))
    # open_clip's tiny model is saved without one of its own.
    weights.setdefault("logit_bias", torch.zeros(()))
    weights["logit_bias"].fill_(BIAS)
    save_file(weights, path, metadata={"format": "pt"})
    return request.param, folder


@pytest.fixture(scope="module")
def expected_IT(published, corpus) -> torch.Tensor:
    """The logits of the model's own library."""
    name, folder = published
    vectors = ORIGINS[name].vectors
    assert vectors is not None
    own = vectors(str(folder), corpus.images(range(corpus.num_images)), corpus.captions)
    assert_close((float(own.scale), float(own.bias)), (SCALE, BIAS), rtol=1e-5, atol=0)
    return own.logits_IT


@torch.no_grad()
def test_loaded_as_a_dual_encoder_a_scorer_and_a_teacher_it_gives_the_logits_of_its_library(
    published, corpus, expected_IT
):
    model = models.load_dual(published[1])
    assert float(model.logit_scale) == pytest.approx(SCALE, rel=1e-5)
    rows, columns = np.indices(expected_IT.shape)
    teacher = embed_corpus([("dual", model)], corpus, ON_CPU)
    np.testing.assert_allclose(teacher.lookup(rows, columns), expected_IT, rtol=1e-4, atol=1e-3)
    scorer = models.load_scorer(published[1])
    images, texts = scorer.preprocess.images(corpus.images(range(4))), scorer.preprocess.texts(corpus.captions[:4])
    states = scorer.encode_images(images), scorer.encode_texts(texts)
    everything = torch.tensor(rows[:4, :4].ravel()), torch.tensor(columns[:4, :4].ravel())
    assert_close(scorer.score_pairs(*states, *everything).view(4, 4), expected_IT[:4, :4], rtol=1e-4, atol=1e-3)


def test_a_training_starts_from_it_and_changes_it(published, corpus, tmp_path):
    run = distill(corpus, tmp_path / "run", *TRAINING, f"model.start={published[1]}")
    scale = float(models.load_dual(run.model_folder).logit_scale.detach())
    # A clamped scale would have no gradient. AdamW changes its logarithm by about the rate in each step.
    assert scale > 100
    assert 0.005 < abs(math.log(scale / SCALE)) < 0.03


def test_exports_keep_it(published, corpus, tmp_path):
    name, folder = published
    export.export_model(ExportJob(model=str(folder), out=tmp_path / "own", to=KINDS[name], data=corpus.folder))
    assert models.load(tmp_path / "own").digest == models.load(folder).digest
    (path,) = (tmp_path / "own").glob("*.safetensors")
    assert float(load_file(path)["logit_scale"].exp()) == pytest.approx(SCALE, rel=1e-5)


def test_an_index_searches_in_the_order_of_its_logits(published, corpus, expected_IT, tmp_path):
    (tmp_path / "images").mkdir()
    for image in range(6):
        corpus.image(image).save(tmp_path / "images" / f"{image}.png")
    build(published[1], tmp_path / "images", tmp_path / "index")
    hits = searcher_of(tmp_path / "index").by_text(corpus.captions[0], 6).hits
    order = expected_IT[:6, 0].argsort(descending=True).tolist()
    assert [int(Path(hit.image_id).stem) for hit in hits] == order
