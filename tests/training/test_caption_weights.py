"""Captions are drawn in proportion to their weights, on all pairs and in lists, and reported by source."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import make_corpus, model_contents
from training_steps import KilledError, distill, killed_after

from dcdctl.core import models
from dcdctl.core.data import Corpus, PrepareJob, PrepareOptions, choose_manifest, prepare_corpus
from dcdctl.core.evaluation import evaluate, evaluation_tables
from dcdctl.core.teacher import false_negative_filter
from dcdctl.core.training.batches.all_pairs import AllPairs
from dcdctl.core.training.batches.lists import CandidateLists
from dcdctl.core.training.recipe import BatchConfig, Recipe

CAPTIONS = [["a dog", "grass", "a brown dog"], ["a cat"], ["a bird", "sky"], ["a cow", "a field"]]
WEIGHTS = np.array([3, 0.5, 0.5, 1, 1, 1, 0.25, 0.75])
ALL_PAIRS = Recipe(seed=3, batch=BatchConfig(size=4))
LISTS = Recipe(seed=3, batch=BatchConfig(size=4, random_negatives=1, hard_negatives=1))
DUAL = [
    *("model.kind=dual", "model.start=new", "model.layers=[]", "model.hidden_size=16", "model.num_layers=1"),
    *("model.num_text_layers=1", "model.projection_dim=8", "model.vocab_size=100", "batch.size=4"),
    *("optimizer.steps=12", "optimizer.lr=1e-2", "optimizer.warmup_share=0.0", "optimizer.save_every=5"),
]
TERMS = {
    "all pairs": ["loss.terms={ infonce = 1.0 }"],
    "lists": ["loss.terms={ ranking = 1.0 }", "batch.random_negatives=1", "batch.hard_negatives=1"],
}


@pytest.fixture
def corpus(tmp_path) -> Corpus:
    return make_corpus(tmp_path / "corpus", CAPTIONS)


def pairs_of(kind, corpus: Corpus, recipe: Recipe):
    return kind(corpus, recipe, None, false_negative_filter(corpus, None))


def weighted(corpus: Corpus, weights=WEIGHTS) -> Corpus:
    corpus.caption_weights = weights
    return corpus


def drawn(pairs, steps) -> np.ndarray:
    """How often each caption is the positive of an image."""
    counts = np.zeros(pairs.corpus.num_captions, dtype=int)
    for step in steps:
        of_step = pairs.of_step(step)
        texts = of_step.text_RC[0] if isinstance(pairs, AllPairs) else of_step.text_RC[:, 0]
        np.add.at(counts, texts, 1)
    return counts


def test_the_caption_is_the_one_whose_stretch_has_the_random_point(corpus):
    pairs = pairs_of(AllPairs, weighted(corpus), ALL_PAIRS)
    for step in range(20):
        points = np.random.default_rng([3, 1, step]).random(4)
        first = 0 if points[0] < 0.75 else 1 if points[0] < 0.875 else 2
        last = 6 if points[3] < 0.25 else 7
        assert pairs.of_step(step).text_RC[0].tolist() == [first, 3, 4 if points[2] < 0.5 else 5, last]


def test_an_epoch_of_lists_has_each_caption_as_often_as_its_weight_says(corpus):
    pairs = pairs_of(CandidateLists, weighted(corpus), LISTS)
    epochs = np.array([drawn(pairs, [2 * epoch, 2 * epoch + 1]) for epoch in range(600)])
    assert (epochs.sum(axis=1) == 8).all()
    # The mean weight is 1. A caption has its weight in lists: a whole number of them exactly, else the next or the
    # previous whole number.
    assert (np.abs(epochs - WEIGHTS) < 1).all()
    assert epochs.mean(axis=0) == pytest.approx(WEIGHTS, abs=0.06)


@pytest.mark.parametrize("weights", [np.array([1e9, 1e-9, 1e-9, 1, 1e-300, 1, 5e8, 5e8]), np.full(8, 1e-320)])
@pytest.mark.parametrize(("make", "config"), [(AllPairs, ALL_PAIRS), (CandidateLists, LISTS)])
def test_weights_of_any_size_draw_captions_of_the_image(corpus, make, config, weights):
    pairs = pairs_of(make, weighted(corpus, weights), config)
    for step in range(50):
        of_step = pairs.of_step(step)
        image, text = (of_step.image_RC[:, 0], of_step.text_RC[0] if make is AllPairs else of_step.text_RC[:, 0])
        assert (corpus.caption_image[text] == image).all()


SOURCES = ["human", "alt text", "synthetic"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Twelve images to train on, and six of val, whose captions are of two sources."""
    folder, rng = tmp_path_factory.mktemp("table"), np.random.default_rng(0)
    rows = []
    for image in range(18):
        pixels = rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{image}.png")
        rows += [
            {
                "image": f"{image}.png",
                "caption": f"a {source} view of thing {image}",
                "source": source,
                "language": f"language {number}",
                "weight": 1 + number,
                "split": "train" if image < 12 else "val",
            }
            for number, source in enumerate(SOURCES if image < 12 else SOURCES[:2])
        ]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    manifest = choose_manifest(PrepareJob(jsonl=folder / "rows.jsonl", images=[folder], out=folder / "data"))
    prepare_corpus(manifest, folder / "data", options=PrepareOptions(workers=1))
    return folder / "data"


@pytest.mark.parametrize("kind", TERMS)
def test_a_resumed_training_on_weights_equals_an_uninterrupted_one(folder, tmp_path, kind):
    train, sets = Corpus.open(folder, "train"), [*DUAL, *TERMS[kind]]
    whole = distill(train, tmp_path / "whole", *sets)
    with pytest.raises(KilledError):
        distill(train, tmp_path / "parts", *sets, watch=killed_after(8))
    parts = distill(train, tmp_path / "parts", *sets, resume=True)
    assert model_contents(parts.model_folder) == model_contents(whole.model_folder)


def test_recalls_are_reported_for_the_captions_of_each_source(folder, tmp_path):
    sets = [*DUAL, *TERMS["all pairs"], "validation.every=12"]
    run, val = distill(Corpus.open(folder, "train"), tmp_path / "run", *sets), Corpus.open(folder, "val")
    measured = evaluate.evaluate_model(models.load(run.folder), val)
    logged = run.metrics()[-1]
    assert logged["val_image_r1_alt_text"] == measured.image_recalls_by_label["source"]["alt text"]["R@1"]
    assert logged["val_image_r1_language_1"] == logged["val_image_r1_alt_text"]
    assert logged["val_image_r5"] == (logged["val_image_r5_human"] + logged["val_image_r5_alt_text"]) / 2
    # The captions of an image: one by a person, then its alt text.
    table = replace(measured.table, image_ranks=np.array([1, 2, 1, 6, 1, 2, 1, 2, 1, 2, 11, 2]))
    measured = replace(measured, table=table)
    assert measured.image_recalls_by_label["source"] == {
        "human": {f"R@{k}": pytest.approx(100 * 5 / 6) for k in (1, 5, 10)},
        "alt text": {"R@1": 0, "R@5": pytest.approx(100 * 5 / 6), "R@10": 100},
    }
    of_language = measured.image_recalls_by_label["language"]
    assert [*of_language.values()] == [*measured.image_recalls_by_label["source"].values()]
    evaluation = measured.evaluation("m")
    assert evaluation.document["image_recalls_by_label"] == measured.image_recalls_by_label
    assert evaluation_tables(evaluation)[2].rows[1] == ["language 1", "0.00", "83.33", "100.00"]
    assert evaluation_tables(evaluation)[1].rows == [
        ["human", "83.33", "83.33", "83.33"],
        ["alt text", "0.00", "83.33", "100.00"],
    ]
