"""Scoring many pairs equals scoring each."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from plain_scores import plain_score
from tiny import make_wide_dual

from dcdctl.core import models
from dcdctl.core.engines import Compute
from dcdctl.core.scoring import CorpusSource, encode_corpus
from dcdctl.core.scoring import pairs as scoring_pairs


@pytest.fixture(scope="module")
def pairs() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.integers(0, 32, 60), rng.integers(0, 160, 60)


@torch.inference_mode()
def one_by_one(teacher, corpus, image_ix, text_ix) -> np.ndarray:
    scores = []
    for image, text in zip(image_ix.tolist(), text_ix.tolist(), strict=True):
        pixels, words = (
            teacher.preprocess.images([corpus.image(image)]),
            teacher.preprocess.texts([corpus.captions[text]]),
        )
        scores.append(
            float(plain_score(teacher, pixels.pixel_values, words.input_ids, words.attention_mask, pixels.pixel_mask))
        )
    return np.array(scores, dtype=np.float32)


@pytest.mark.parametrize(("batch_size", "chunk"), [(7, 512), (64, 9)])
def test_scores_equal_the_plain_way_pair_by_pair(teacher, corpus, pairs, batch_size, chunk, monkeypatch):
    monkeypatch.setattr(scoring_pairs, "TEXT_CHUNK", chunk)
    monkeypatch.setattr(scoring_pairs, "IMAGE_CHUNK", chunk)
    done: list[int] = []
    source = CorpusSource(corpus, teacher.preprocess)
    scores = scoring_pairs.score_pairs(
        teacher, source, *pairs, compute=Compute(batch_size=batch_size), advance=done.append
    )
    assert (scores.dtype, sum(done)) == (np.float32, 60)
    assert scores.std() > 0.05
    np.testing.assert_allclose(scores, one_by_one(teacher, corpus, *pairs), atol=1e-5)


def test_precision_is_what_scores_are_computed_in(teacher, corpus, pairs):
    full, half = (
        scoring_pairs.score_pairs(
            teacher,
            CorpusSource(corpus, teacher.preprocess),
            *pairs,
            compute=Compute(batch_size=16, precision=precision),
        )
        for precision in ("float32", "bfloat16")
    )
    difference = np.abs(full - half).max()
    assert 1e-5 < difference < 0.1 * np.abs(full).max()


class Small:
    """A device that has memory for a few items at a time: the methods of a scorer that fail for more, as torch does on
    a GPU."""

    def __init__(self, scorer, **most: int) -> None:
        self._scorer, self._most = scorer, most
        self.refused: list[tuple[str, int]] = []

    def __getattr__(self, name: str):
        method = getattr(self._scorer, name)
        if name not in self._most:
            return method

        def limited(*inputs):
            if len(inputs[-1]) > self._most[name]:
                self.refused.append((name, len(inputs[-1])))
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return method(*inputs)

        return limited


def test_a_batch_of_pairs_that_does_not_fit_is_halved_and_scores_are_those_of_the_half(teacher, corpus, pairs):
    source = CorpusSource(corpus, teacher.preprocess)
    small = Small(teacher, score_pairs=4)
    scores = scoring_pairs.score_pairs(small, source, *pairs, compute=Compute(batch_size=8))
    expected = scoring_pairs.score_pairs(teacher, source, *pairs, compute=Compute(batch_size=4))
    assert scores.tobytes() == expected.tobytes()
    # Once for all of the 60 pairs, not once per batch.
    assert small.refused == [("score_pairs", 8)]


def test_only_a_batch_size_that_the_user_did_not_set_grows_on_a_gpu(teacher):
    gpu = torch.device("cuda:0")
    free, given = (
        scoring_pairs._fitting(teacher, "pairs", Compute(device=gpu, batch_size=size)) for size in (None, 64)
    )
    assert (free.memory is None, given.memory is None) == (False, True)
    free.grown = 2048
    assert (free.size(256), given.size(64)) == (2048, 64)
    others = [("pairs", Compute()), ("images", Compute(device=gpu)), ("captions", Compute(device=gpu))]
    assert all(scoring_pairs._fitting(teacher, kind, compute).memory is None for kind, compute in others)


def test_images_and_captions_that_do_not_fit_are_encoded_in_halves(teacher, corpus, pairs, monkeypatch):
    source = CorpusSource(corpus, teacher.preprocess)
    small = Small(teacher, encode_images=8, encode_texts=30)
    expected = scoring_pairs.score_pairs(teacher, source, *pairs, compute=Compute(batch_size=8))
    scores = scoring_pairs.score_pairs(small, source, *pairs, compute=Compute(batch_size=8))
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    assert {name for name, _ in small.refused} == {"encode_images", "encode_texts"}


def test_a_corpus_that_is_encoded_once_is_encoded_in_halves(corpus):
    scorer = models.DualScorer(make_wide_dual(corpus.captions))
    source, small = CorpusSource(corpus, scorer.preprocess), Small(scorer, encode_images=20, encode_texts=100)
    small.to = lambda device: small
    small.eval = lambda: small
    encoded, expected = (encode_corpus(each, source, Compute()) for each in (small, scorer))
    torch.testing.assert_close(encoded.of_images.vectors, expected.of_images.vectors)
    torch.testing.assert_close(encoded.of_texts.vectors, expected.of_texts.vectors)
    assert small.refused == [("encode_images", 32), ("encode_texts", 160)]
