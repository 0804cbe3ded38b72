"""Teacher ensembles: scores on one scale, weighted, and only for pairs that all teachers scored."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from made_caches import build_cache
from open_inputs import OpenInputs
from tiny import make_teacher

from dcdctl.core import training
from dcdctl.core.errors import ConfigError, StaleError
from dcdctl.core.teacher import CandidateConfig, read_caches
from dcdctl.core.teacher import cache as teacher_cache
from dcdctl.core.teacher.cache import TeacherEnsemble
from dcdctl.core.training import TrainingJob, TrainingOptions


@pytest.fixture(scope="module")
def folders(corpus, teacher, tmp_path_factory):
    """Caches of two teachers; the second has scored fewer pairs."""
    root = tmp_path_factory.mktemp("caches")
    build_cache(corpus, teacher, root / "first", CandidateConfig(per_query=12))
    build_cache(corpus, make_teacher(corpus.captions, seed=3), root / "second", CandidateConfig(per_query=9, seed=5))
    return root / "first", root / "second"


@pytest.fixture
def caches(folders):
    return [teacher_cache.read_cache(folder) for folder in folders]


def test_scores_are_standardized_averaged_and_rescaled_to_the_mean_scale_of_the_teachers(caches):
    ensemble = TeacherEnsemble(caches)
    everything = np.indices((32, 160)).reshape(2, -1)
    first, second = (cache.lookup(*everything).astype(np.float64) for cache in caches)
    shared = ~np.isnan(first) & ~np.isnan(second)
    assert 160 < shared.sum() < min(cache.num_pairs for cache in caches)
    expected = sum((scores - scores[shared].mean()) / scores[shared].std() for scores in (first, second)) / 2
    mean, spread = ((statistic(first[shared]) + statistic(second[shared])) / 2 for statistic in (np.mean, np.std))
    np.testing.assert_allclose(
        ensemble.lookup(*everything), np.where(shared, expected * spread + mean, np.nan), rtol=1e-5, atol=1e-6
    )
    assert set(zip(*map(np.ndarray.tolist, ensemble.scored_pairs), strict=True)) == set(
        zip(*everything[:, shared].tolist(), strict=True)
    )


def test_an_ensemble_of_one_teacher_twice_equals_that_teacher(caches):
    cache = caches[0]
    np.testing.assert_allclose(
        TeacherEnsemble([cache, cache]).lookup(cache.image_P, cache.text_P),
        cache.lookup(cache.image_P, cache.text_P),
        rtol=1e-4,
        atol=1e-5,
    )


def test_a_teacher_whose_scores_are_all_equal_counts_with_a_spread_of_1(caches, monkeypatch):
    first, second = caches
    lookup = second.lookup
    monkeypatch.setattr(second, "lookup", lambda *pair: np.where(np.isnan(lookup(*pair)), np.nan, 2))
    pairs = TeacherEnsemble(caches).scored_pairs
    scores = first.lookup(*pairs).astype(np.float64)
    expected = (scores - scores.mean()) / scores.std() / 2 * (scores.std() + 1) / 2 + (scores.mean() + 2) / 2
    np.testing.assert_allclose(TeacherEnsemble(caches).lookup(*pairs), expected, rtol=1e-5, atol=1e-6)


def test_candidates_are_those_of_the_first_cache_that_all_teachers_scored(caches):
    ensemble = TeacherEnsemble(caches)
    for image in range(32):
        expected = [
            text
            for text in caches[0].candidates.texts_of_image[image].tolist()
            if not np.isnan(caches[1].lookup(image, text))
        ]
        assert ensemble.candidates.texts_of_image[image].tolist() == expected
    for text in range(160):
        expected = [
            image
            for image in caches[0].candidates.images_of_text[text].tolist()
            if not np.isnan(caches[1].lookup(image, text))
        ]
        assert ensemble.candidates.images_of_text[text].tolist() == expected


def test_one_cache_is_returned_unchanged(caches):
    assert read_caches(caches[:1]) is caches[0]
    assert read_caches([]) is None


@pytest.mark.parametrize("how", ["same path", "spelling", "link", "copy"])
def test_a_cache_named_twice_is_refused_however_it_is_named(folders, tmp_path, how):
    first, second = folders
    (tmp_path / "link").symlink_to(first, target_is_directory=True)
    shutil.copytree(first, tmp_path / "copy")
    again = {
        "same path": first,
        "spelling": first / ".." / "first",
        "link": tmp_path / "link",
        "copy": tmp_path / "copy",
    }[how]
    with pytest.raises(
        ConfigError, match=r"first and .* are one cache, by the checksums of their files; name each cache once"
    ):
        read_caches([teacher_cache.read_cache(folder) for folder in (first, second, again)])


def test_caches_of_different_corpora_are_refused(corpus, teacher, caches, tmp_path):
    few = build_cache(corpus.subset(8), teacher, tmp_path / "few", CandidateConfig(per_query=3))
    with pytest.raises(StaleError, match="of different corpora"):
        TeacherEnsemble([caches[0], few])


def test_a_student_learns_from_two_teachers(scenes_corpus_dir, corpus, teacher, folders, tmp_path):
    inputs = OpenInputs(corpus, [teacher_cache.read_cache(folder) for folder in folders], teacher)
    sets = [
        "model.layers=[0, 2]",
        "batch.size=4",
        "batch.random_negatives=2",
        "batch.hard_negatives=1",
        "optimizer.steps=2",
    ]
    run = training.train_model(
        TrainingJob("distill", "tiny-student", sets, tmp_path / "run"), inputs, options=TrainingOptions()
    )
    assert run.is_finished
    assert [plan["teacher"] for plan in run.facts()["inputs"]["cache"]] == [
        cache.plan["teacher"] for cache in inputs.caches
    ]
