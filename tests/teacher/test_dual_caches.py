"""A dual encoder as the teacher of a cache and as a re-ranker, by command line: scale x cosine of its own vectors."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import QUICK_BENCH, document_of, error_of, run
from encoders import save_text, save_vision
from made_caches import build_cache
from plain_scores import plain_score
from tiny import make_teacher, make_wide_dual

from dcdctl.core import models, scoring
from dcdctl.core.data import Corpus
from dcdctl.core.engines import Compute
from dcdctl.core.errors import ModelError
from dcdctl.core.models import DualScorer, ImageBatch, States
from dcdctl.core.scoring import CorpusSource, score_pairs
from dcdctl.core.teacher import CandidateConfig, embed_corpus, read_cache, read_caches
from dcdctl.core.teacher.make import verify_scores

FOUR = "--recipe tiny-student --set candidates.per_query=4 --device cpu"
CONFIG = CandidateConfig(per_query=4)


def spread(model: Any, seed: int) -> Any:
    """The model with weights that give vectors far from each other."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter += (
                0 if name.startswith("calibration.") else 0.3 * torch.randn(parameter.shape, generator=generator)
            )
    return model


@pytest.fixture(scope="module")
def folders(corpus, tmp_path_factory) -> dict[str, Path]:
    """Saved models: a dual encoder trained as a whole, one over frozen encoders, and a fusion scorer."""
    folder = tmp_path_factory.mktemp("duals")
    refs = save_vision("tokens", folder / "vision"), save_text("bert", corpus.captions, folder / "text")
    frozen = models.new_frozen_dual(*refs, models.ProjectionSize(projection_dim=6), max_text_len=20)
    spread(frozen.network.projections, 2)
    made = {
        "whole": spread(make_wide_dual(corpus.captions), 1),
        "frozen": frozen,
        "fusion": make_teacher(corpus.captions),
    }
    for name, model in made.items():
        models.save(model, folder / name)
    return {name: folder / name for name in made}


@torch.no_grad()
def logits_of(ref: Path, corpus: Corpus) -> np.ndarray:
    """The logits of all images with all captions, by one forward pass of the dual encoder and one product."""
    model = models.load_dual(ref)
    source = CorpusSource(corpus, model.preprocess)
    images_ID, texts_TD = (
        model.embed_images(source.images(range(corpus.num_images))),
        model.embed_texts(source.texts(range(corpus.num_captions))),
    )
    return (model.logit_scale.double() * images_ID.double() @ texts_TD.double().T).numpy()


@pytest.fixture(scope="module")
def cached(folders, scenes_corpus_dir, tmp_path_factory) -> dict[str, Path]:
    """A cache of each dual encoder."""
    caches = {}
    for name in ("whole", "frozen"):
        caches[name] = tmp_path_factory.mktemp("caches") / name
        result = run(f"cache-teacher --data {scenes_corpus_dir} --teacher {folders[name]} --out {caches[name]} {FOUR}")
        assert re.search(r"pairs, .* to score: .*pairs/s in a trial", result.stderr)
        assert "encode captions: " in result.stderr
    return caches


@pytest.mark.parametrize("name", ["whole", "frozen"])
def test_a_cache_holds_scale_times_cosine_of_the_teachers_vectors(name, folders, cached, corpus):
    cache, logits_IT = read_cache(cached[name], corpus=corpus), logits_of(folders[name], corpus)
    assert logits_IT.std() > 0.5
    expected = logits_IT[cache.image_P, cache.text_P]
    assert (np.abs(cache.score_P - expected) <= 1e-6 * np.maximum(1, np.abs(expected))).all()
    assert cache.plan["teacher"] == models.load_dual(folders[name]).digest
    assert (cache.plan["image_size_px"], cache.plan["max_text_len"]) == ((48, 12) if name == "whole" else (32, 20))


def test_verify_with_another_dual_teacher_is_refused(folders, cached, scenes_corpus_dir):
    error = error_of(
        f"verify {cached['whole']} --scores 50 --data {scenes_corpus_dir} --teacher {folders['frozen']} --device cpu"
    )
    assert "another max_text_len" in error or "another teacher" in error


def test_stored_features_give_the_scores_of_their_vectors(folders, corpus, cached, tmp_path):
    scorer = models.load_scorer(folders["frozen"])
    cache = build_cache(corpus, scorer, tmp_path / "cache", CONFIG, compute=Compute(features=tmp_path / "features"))
    rounded = np.abs(cache.score_P - read_cache(cached["frozen"]).score_P).max()
    assert 0 < rounded < 0.05
    assert cache.plan["features"] == "float16"
    worst = verify_scores(cache.folder, corpus, scorer, 50, compute=Compute(features=tmp_path / "features"))
    assert worst < 1e-5


def test_a_dual_teacher_counts_as_one_model_in_a_cache_and_in_memory(folders, cached, corpus):
    embedded = embed_corpus([("dual", models.load_dual(folders["whole"]))], corpus, Compute())
    cache = read_cache(cached["whole"])
    assert embedded.plan["teacher"] == cache.plan["teacher"]
    np.testing.assert_allclose(embedded.lookup(cache.image_P, cache.text_P), cache.score_P, rtol=1e-5, atol=1e-5)


def test_caches_of_a_fusion_and_a_dual_teacher_are_averaged(folders, cached, corpus, tmp_path):
    fusion = build_cache(corpus, models.load_scorer(folders["fusion"]), tmp_path / "fusion", CONFIG)
    both = read_caches([fusion, read_cache(cached["whole"])])
    image, text = fusion.image_P, fusion.text_P
    parts = [fusion.score_P.astype(np.float64), logits_of(folders["whole"], corpus)[image, text]]
    standard = sum((part - part.mean()) / part.std() for part in parts) / 2
    expected = standard * np.mean([part.std() for part in parts]) + np.mean([part.mean() for part in parts])
    np.testing.assert_allclose(both.lookup(image, text), expected, rtol=1e-4, atol=1e-4)


def test_half_precision_encodes_in_half_precision_and_multiplies_in_float32(folders, corpus):
    scorer = models.load_scorer(folders["whole"])
    compute = Compute(precision="bfloat16")
    image, text = np.divmod(np.arange(200), 160)
    found = score_pairs(
        scorer,
        scoring.encode_corpus(scorer, CorpusSource(corpus, scorer.preprocess), compute),
        image,
        text,
        compute=compute,
    )
    exact = logits_of(folders["whole"], corpus)[image, text]
    assert 1e-4 < np.abs(found - exact).max() < 1.0
    # Logits rounded to bfloat16 would have eight bits.
    assert len(np.unique(found)) > len(np.unique(torch.from_numpy(found).bfloat16().float().numpy()))


def test_scores_in_any_batches_equal_the_plain_way(folders, corpus):
    scorer = models.load_scorer(folders["whole"])
    images: ImageBatch = scorer.preprocess.images(corpus.images(range(3)))
    texts = scorer.preprocess.texts(corpus.captions[:3])
    with torch.no_grad():
        plain = plain_score(scorer, images.pixel_values, texts.input_ids, texts.attention_mask, images.pixel_mask)
        states = scorer.encode_images(images), scorer.encode_texts(texts)
        index = torch.tensor([0, 1, 2] * 200)
        torch.testing.assert_close(scorer.score_pairs(*states, index, index), plain.repeat(200), rtol=1e-6, atol=1e-6)
        again = scorer.encode_images(states[0])
    assert isinstance(again, States)
    assert torch.equal(again.vectors, states[0].vectors)


def test_a_dual_scorer_refuses_to_be_trained_and_saves_the_dual(folders, tmp_path):
    scorer = models.load_scorer(folders["whole"])
    assert isinstance(scorer, DualScorer)
    with pytest.raises(ModelError, match="no student of fewer layers") as error:
        scorer.student([0])
    assert "model.kind" in error.value.hint
    for change in (lambda: scorer.set_dropout(0.1), scorer.checkpoint_activations):
        with pytest.raises(ModelError, match="cannot be trained here"):
            change()
    models.save(scorer, tmp_path / "saved")
    assert models.load_dual(tmp_path / "saved").digest == scorer.digest


def test_a_fusion_student_starts_from_no_dual_teacher(folders, cached, scenes_corpus_dir, tmp_path):
    error = error_of(
        f"distill tiny-student --data {scenes_corpus_dir} --cache {cached['whole']} --teacher {folders['whole']} "
        f"--out {tmp_path}/run --device cpu"
    )
    assert "has no fusion layers" in error
    assert not (tmp_path / "run").exists()


def test_bench_times_two_dual_encoders_on_the_same_pairs(folders, scenes_corpus_dir):
    models_and_data = f"{folders['whole']} --teacher {folders['frozen']} --data {scenes_corpus_dir}"
    document = document_of(f"bench {models_and_data} {QUICK_BENCH}")
    assert (document["teacher"]["kind"], document["student"]["kind"]) == ("dual", "dual")
    vectors = {
        name: document[name]["footprint"]["index_bytes_per_million_images"]["float32"]
        for name in ("teacher", "student")
    }
    assert vectors == {"teacher": 6 * 4 * 10**6, "student": 8 * 4 * 10**6}
