"""Studies in which nothing differs: how often a difference is claimed, and what the tests say in numbers worked out by
hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from scipy import stats

from dcdctl.core.evaluation import RankTable, compare_ranks
from dcdctl.core.evaluation.bootstrap import welch_test
from dcdctl.core.report.study_report import Difference, verdict

NUM_IMAGES, NUM_STUDIES = 60, 80


def run(rng: np.random.Generator, easy_I: np.ndarray, spread: float) -> RankTable:
    """A training: each query is hit or missed by chance, and all of them are easier or harder by its seed."""
    share_I = easy_I + rng.normal(0, spread)
    texts, images = (np.where(rng.random(NUM_IMAGES) < share_I, 1, 99) for _ in "ti")
    return RankTable(tuple(map(str, range(NUM_IMAGES))), np.arange(NUM_IMAGES), np.arange(NUM_IMAGES), texts, images)


def null_verdicts(num_seeds: int, spread: float) -> list[str]:
    """The verdicts of studies whose distilled models and two baselines are trainings of one distribution."""
    rng, verdicts = np.random.default_rng(0), []
    for _ in range(NUM_STUDIES):
        easy_I = rng.beta(2, 2, NUM_IMAGES)
        distilled, *baselines = ([run(rng, easy_I, spread) for _ in range(num_seeds)] for _ in range(3))
        differences = [
            Difference(
                "distilled", name, compare_ranks(distilled, base, resamples=200, draw_seeds=num_seeds > 1), "images"
            )
            for name, base in zip(("fine-tuned", "fine-tuned, random batches"), baselines, strict=True)
        ]
        verdicts.append(verdict(differences, 0.0))
    return verdicts


def claims(verdicts: Sequence[str]) -> int:
    return sum("Not shown to differ" not in text for text in verdicts)


@pytest.mark.parametrize(("num_seeds", "spread"), [(2, 0.2), (3, 0.2)])
def test_studies_of_several_seeds_claim_a_difference_no_more_often_than_the_level_says(num_seeds: int, spread: float):
    # Two standard errors of a share of 5 %.
    assert claims(null_verdicts(num_seeds, spread)) / NUM_STUDIES <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / NUM_STUDIES)


@pytest.mark.parametrize(("num_seeds", "spread"), [(2, 0.2), (2, 0.02)])
def test_intervals_over_few_seeds_contain_the_true_difference_as_often_as_they_say(num_seeds: int, spread: float):
    rng, covered, num_pairs = np.random.default_rng(1), 0, 150
    for _ in range(num_pairs):
        easy_I = rng.beta(2, 2, NUM_IMAGES)
        ours, base = ([run(rng, easy_I, spread) for _ in range(num_seeds)] for _ in range(2))
        low, high = compare_ranks(ours, base, resamples=200, draw_seeds=True).difference.rsum.interval
        covered += low <= 0 <= high
    assert covered / num_pairs >= 0.95 - 2 * np.sqrt(0.05 * 0.95 / num_pairs)


def test_studies_of_one_seed_claim_nothing():
    verdicts = null_verdicts(1, 0.2)
    assert all(text.startswith("Not tested: distilled against fine-tuned") for text in verdicts)
    assert all(
        text.endswith("Fewer than 3 seeds per system: a claim about methods needs at least 3.") for text in verdicts
    )


@pytest.mark.parametrize("counts", [(2, 2), (2, 9), (3, 3), (5, 3), (40, 30)])
def test_the_t_test_over_runs_is_welchs(counts: tuple[int, int]):
    rng = np.random.default_rng(0)
    for scale in (0.1, 1, 30):
        ours, base = rng.normal(301, 1, counts[0]), rng.normal(300, scale, counts[1])
        expected = stats.ttest_ind(ours, base, equal_var=False).pvalue
        assert welch_test(ours.tolist(), base.tolist()) == pytest.approx(expected, rel=1e-4)


def test_runs_that_are_all_equal_differ_surely_or_not_at_all():
    assert welch_test([300.0, 300.0], [300.0, 300.0, 300.0]) == 1
    assert welch_test([301.0, 301.0], [300.0, 300.0]) == 0
