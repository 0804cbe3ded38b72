"""A vision-language cross-encoder as the teacher and the re-ranker, from the cache to the evaluation of its student."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder
from typer.testing import CliRunner
from vlm import save_reranker

from dcdctl.cli.app import app
from dcdctl.core import models
from dcdctl.core.data import Corpus
from dcdctl.core.teacher import cache

CPU = ["--device", "cpu"]


def run_cli(*words):
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    return result


@pytest.fixture(scope="module")
def reranker(corpus, tmp_path_factory):
    return save_reranker(tmp_path_factory.mktemp("vlm") / "reranker", corpus.captions[:20])


def test_a_student_of_a_cross_encoder_is_trained_and_re_ranked(reranker, scenes_corpus_dir, tmp_path):
    prompt = ["--model-set", "prompt=Is it right?"]
    data = ["--data", scenes_corpus_dir, "--max-images", 6, *CPU]
    teacher = ["--teacher", reranker, *prompt, "--out", tmp_path / "cache", *data]
    recipe = ["--recipe", "tiny-student", "--set", "candidates.per_query=3"]
    cached = run_cli("cache-teacher", *teacher, *recipe)
    assert "scored pairs of 6 images and 30 captions" in cached.stdout

    corpus = Corpus.open(scenes_corpus_dir, "train", 6)
    scored = cache.read_cache(tmp_path / "cache", corpus=corpus, teacher=models.load(reranker, {"prompt": "Is it right?"}).digest)
    chosen = slice(0, None, 17)
    library, options = CrossEncoder(str(reranker), device="cpu"), {"prompt": "Is it right?", "activation_fn": torch.nn.Identity()}
    pairs = zip(scored.image_P[chosen].tolist(), scored.text_P[chosen].tolist(), strict=True)
    expected = [library.predict((corpus.image(image), corpus.captions[text]), **options) for image, text in pairs]
    np.testing.assert_allclose(scored.score_P[chosen], expected, rtol=0, atol=5e-5)
    assert np.std(expected) > 0.1

    assert "5 pairs scored again, the largest difference is" in run_cli("cache-teacher", *teacher, "--verify", 5).stdout
    sets = ["optimizer.steps=2", "batch.size=4", "batch.random_negatives=2", "batch.hard_negatives=1", "candidates.per_query=3"]
    sets += ["model.kind=dual", "model.start=new", "model.layers=[]", "model.hidden_size=16", "model.num_heads=2", "model.num_layers=1"]
    changes = [word for one in sets for word in ("--set", one)]
    run_cli("distill", "tiny-student", "--cache", tmp_path / "cache", "--out", tmp_path / "run", *changes, *data)

    rerank = ["--rerank", reranker, "--depth", 2, "--max-images", 4, "--json", *CPU]
    document = json.loads(run_cli("eval", tmp_path / "run", "--data", scenes_corpus_dir, *rerank).stdout)
    assert document["reranker"] == str(reranker)
