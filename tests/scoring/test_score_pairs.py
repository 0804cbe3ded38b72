"""Scoring many pairs equals scoring each."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dcdctl.core.devices import Compute
from dcdctl.core.scoring import CorpusSource
from dcdctl.core.scoring import pairs as scoring_pairs


@pytest.fixture(scope="module")
def pairs() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.integers(0, 32, 60), rng.integers(0, 160, 60)


@torch.inference_mode()
def one_by_one(teacher, corpus, image_ix, text_ix) -> np.ndarray:
    scores = []
    for image, text in zip(image_ix.tolist(), text_ix.tolist(), strict=True):
        pixels, words = teacher.preprocess.images([corpus.image(image)]), teacher.preprocess.texts([corpus.captions[text]])
        scores.append(float(teacher.score(pixels.pixel_values, words.input_ids, words.attention_mask, pixels.pixel_mask)))
    return np.array(scores, dtype=np.float32)


@pytest.mark.parametrize(("batch_size", "chunk"), [(7, 512), (64, 9)])
def test_scores_equal_the_plain_way_pair_by_pair(teacher, corpus, pairs, batch_size, chunk, monkeypatch):
    monkeypatch.setattr(scoring_pairs, "TEXT_CHUNK", chunk)
    monkeypatch.setattr(scoring_pairs, "IMAGE_CHUNK", chunk)
    scores = scoring_pairs.score_pairs(teacher, CorpusSource(corpus, teacher.preprocess), *pairs, compute=Compute(batch_size=batch_size))
    assert scores.dtype == np.float32
    assert scores.std() > 0.05
    np.testing.assert_allclose(scores, one_by_one(teacher, corpus, *pairs), atol=1e-5)


def test_every_pair_is_counted_once(teacher, corpus, pairs):
    done: list[int] = []
    scoring_pairs.score_pairs(
        teacher, CorpusSource(corpus, teacher.preprocess), *pairs, compute=Compute(batch_size=16), advance=done.append
    )
    assert sum(done) == 60


def test_precision_is_what_scores_are_computed_in(teacher, corpus, pairs):
    full, half = (
        scoring_pairs.score_pairs(
            teacher, CorpusSource(corpus, teacher.preprocess), *pairs, compute=Compute(batch_size=16, precision=precision)
        )
        for precision in ("float32", "bfloat16")
    )
    difference = np.abs(full - half).max()
    assert 1e-5 < difference < 0.1 * np.abs(full).max()
