"""The answers of a model read back from its tables."""

from __future__ import annotations

import numpy as np
import pytest
from made_runs import own_pairs, scores_of, write_evaluation

from dcdctl.core.evaluation.files import SavedEvaluation, TopCandidates


@pytest.fixture
def written(corpus, tmp_path):
    """An evaluation folder, and the scores that it is of."""
    scores_IT = scores_of(corpus, 2)
    return write_evaluation(tmp_path / "run", corpus, scores_IT), scores_IT


def test_best_positive_scores_are_those_of_the_matrix(written, corpus):
    folder, scores_IT = written
    scores = SavedEvaluation.load(folder).table.scores
    own_IT = np.where(own_pairs(corpus), scores_IT, -np.inf)
    np.testing.assert_array_equal(scores["text"], own_IT.max(axis=1))
    np.testing.assert_array_equal(scores["image"], own_IT.max(axis=0))


def test_first_answers_are_the_highest_of_the_matrix(written, corpus):
    folder, scores_IT = written
    top = SavedEvaluation.load(folder).top
    assert top["text"].candidate_QK.shape == (corpus.num_images, 10)
    np.testing.assert_array_equal(top["text"].candidate_QK[:, 0], scores_IT.argmax(axis=1))
    np.testing.assert_array_equal(top["image"].candidate_QK[:, 0], scores_IT.argmax(axis=0))
    np.testing.assert_array_equal(top["image"].is_positive_QK[:, 0], scores_IT.argmax(axis=0) == corpus.caption_image)


def test_captions_are_those_of_the_corpus_in_its_order(written, corpus):
    assert list(SavedEvaluation.load(written[0]).table.captions) == corpus.captions


def test_the_hardest_negative_is_the_highest_score_that_is_not_the_querys_own(written, corpus):
    folder, scores_IT = written
    expected = np.where(own_pairs(corpus), -np.inf, scores_IT).max(axis=1)
    np.testing.assert_array_equal(SavedEvaluation.load(folder).top["text"].hardest_negative_Q, expected)


def test_a_query_whose_first_answers_are_all_its_own_has_no_hardest_negative():
    top = TopCandidates(
        np.array([[0, 1], [4, 2]]),
        np.array([[3, 2], [9, 1]], dtype=np.float32),
        np.array([[True, True], [False, True]]),
    )
    np.testing.assert_array_equal(top.hardest_negative_Q, [np.nan, 9])
