"""Bootstrap and sign flips over images: by hand, against plain loops, and from files."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from tiny import make_corpus

from dcdctl.core.data import Direction
from dcdctl.core.errors import InputError, StaleError
from dcdctl.core.evaluation import Estimate, RankTable, compare_ranks, files, measures
from dcdctl.core.evaluation import bootstrap as evaluation_bootstrap
from dcdctl.core.evaluation.agreement import Agreements, QueryAgreement
from dcdctl.core.evaluation.estimates import (
    Estimates,
    Interval,
)
from dcdctl.core.evaluation.files import read_ranks
from dcdctl.core.evaluation.ranking import Ranking
from dcdctl.core.evaluation.significance import (
    bootstrap,
    compare_agreements,
    compare_all,
)


def table(owner: Sequence[int], text_ranks: Sequence[int], image_ranks: Sequence[int]) -> RankTable:
    ids = tuple(f"i{image}" for image in range(len(text_ranks)))
    return RankTable(ids, np.arange(len(owner)) + 7, np.array(owner), np.array(text_ranks), np.array(image_ranks))


def random_table(seed: int, owner: Sequence[int], hardest: int = 14) -> RankTable:
    rng = np.random.default_rng(seed)
    return table(
        owner, rng.integers(1, hardest, max(owner) + 1).tolist(), rng.integers(1, hardest, len(owner)).tolist()
    )


RSUM = 6
"""Its place among the figures."""


@st.composite
def sides(draw: st.DrawFn, min_runs: int = 1) -> tuple[list[RankTable], list[RankTable]]:
    """Up to three runs a side on images with any numbers of captions, in any order."""
    counts = draw(st.lists(st.integers(1, 4), min_size=1, max_size=8))
    owner = draw(st.permutations([image for image, count in enumerate(counts) for _ in range(count)]))
    seeds = st.lists(st.integers(0, 10_000), min_size=min_runs, max_size=3)
    ours, base = draw(seeds), draw(seeds)
    return [random_table(seed, owner) for seed in ours], [random_table(seed, owner) for seed in base]


def figures(estimates: Estimates) -> list[Estimate]:
    """Recalls of text retrieval, those of image retrieval, RSUM, mean reciprocal ranks."""
    text, image = (estimates.of(way) for way in Direction)
    recalls = [side[name] for side in (text, image) for name in measures.RECALL_NAMES]
    return [*recalls, estimates.rsum, text["MRR"], image["MRR"]]


def figures_of(tables: Sequence[RankTable], images: Sequence[int]) -> list[float]:
    """The definition: each run's recalls of these images and their captions, as often as they are drawn; then the mean
    over runs."""
    runs = []
    for run in tables:
        captions = [text for image in images for text in np.flatnonzero(run.caption_image == image)]
        ranks = run.text_ranks[list(images)], run.image_ranks[captions]
        text, image = map(measures.recall_at_k, ranks)
        reciprocal = [np.mean([100 / rank for rank in some]) for some in ranks]
        runs.append([*text.values(), *image.values(), measures.rsum(text, image), *reciprocal])
    return np.mean(runs, axis=0).tolist()


def drawn(num_images: int, resamples: int, seed: int) -> list[list[int]]:
    return np.random.default_rng(seed).integers(num_images, size=(resamples, num_images)).tolist()


def test_the_observed_difference_by_hand():
    # Three images with 1, 2 and 1 captions. Ours: both runs' hits, averaged; base: one run.
    ours = [table([0, 1, 1, 2], [1, 2, 6], [1, 1, 3, 20]), table([0, 1, 1, 2], [1, 1, 12], [1, 2, 1, 9])]
    base = [table([0, 1, 1, 2], [2, 2, 30], [4, 1, 1, 11])]
    comparison = compare_ranks(ours, base, resamples=10)
    # R@1 of text retrieval: 1 and 2 hits of 3, 50 % on average, less none. R@5: 2 of 3 for all. R@10: 3 and 2 of 3,
    # less 2.
    text, image = (
        {name: estimate.value for name, estimate in comparison.difference.of(way).items()} for way in Direction
    )
    assert [text[name] for name in measures.RECALL_NAMES] == pytest.approx([50, 0, 100 / 6])
    # Image retrieval, of 4 captions: 2 and 2 less 2; 3 and 3 less 3; 3 and 4 less 3.
    assert [image[name] for name in measures.RECALL_NAMES] == pytest.approx([0, 0, 12.5])
    assert comparison.difference.rsum.value == pytest.approx(50 + 100 / 6 + 12.5)
    assert list(text) == list(image) == [name for name, _ in measures.COMPARED]


@given(sides=sides(), seed=st.integers(0, 100), block_images=st.integers(1, 40))
@settings(max_examples=30, deadline=None)
def test_counts_and_products_equal_a_loop_over_the_same_draws(sides, seed, block_images):
    ours, base = sides
    num_images, resamples = len(ours[0].image_ids), 23
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation_bootstrap, "BLOCK_IMAGES", block_images)
        comparison, alone = (
            compare_ranks(ours, base, resamples=resamples, seed=seed),
            bootstrap(ours, resamples=resamples, seed=seed),
        )
    draws = drawn(num_images, resamples, seed)
    ours_R9, base_R9 = (np.array([figures_of(tables, images) for images in draws]) for tables in (ours, base))
    for estimates, draws_R9, observed_9 in (
        (
            comparison.difference,
            ours_R9 - base_R9,
            np.subtract(*(figures_of(tables, range(num_images)) for tables in (ours, base))),
        ),
        (alone, ours_R9, figures_of(ours, range(num_images))),
    ):
        assert [estimate.value for estimate in figures(estimates)] == pytest.approx(list(observed_9), abs=1e-9)
        low_9, high_9 = np.percentile(draws_R9, [2.5, 97.5], axis=0)
        assert [estimate.interval.low for estimate in figures(estimates)] == pytest.approx(low_9.tolist(), abs=1e-9)
        assert [estimate.interval.high for estimate in figures(estimates)] == pytest.approx(high_9.tolist(), abs=1e-9)
    rsum_R = (ours_R9 - base_R9)[:, RSUM].round(9)
    rarer = min(sum(rsum_R <= 0), sum(rsum_R >= 0))
    assert comparison.p_value == pytest.approx(min(1, 2 * (rarer + 1) / (resamples + 1)))


@pytest.mark.parametrize(("num_ours", "num_base"), [(2, 2), (3, 3), (2, 5), (5, 3)])
def test_intervals_over_images_and_runs_are_students(num_ours, num_base):
    owner = np.repeat(np.arange(80), 2).tolist()
    # Runs with easier and harder ranks.
    ours = [random_table(seed, owner, hardest=14 + 2 * seed) for seed in range(num_ours)]
    base = [random_table(10 + seed, owner, hardest=15 + 3 * seed) for seed in range(num_base)]
    averaged, found = (compare_ranks(ours, base, resamples=20_000, draw_seeds=draws) for draws in (False, True))
    runs = [[figures_of([run], range(80)) for run in tables] for tables in (ours, base)]
    for name, sides in (("ours", runs[:1]), ("base", runs[1:]), ("difference", runs)):
        variance_S9 = np.stack([np.var(side, axis=0, ddof=1) / len(side) for side in sides])
        counts_S1 = np.array([[len(side)] for side in sides])
        for number, (alone, both) in enumerate(
            zip(figures(getattr(averaged, name)), figures(getattr(found, name)), strict=True)
        ):
            # The interval over images has a normal distribution's width.
            over_images = ((alone.interval.high - alone.interval.low) / 2 / stats.norm.ppf(0.975)) ** 2
            over_runs_S = variance_S9[:, number]
            if not over_runs_S.any():
                assert both == alone
                continue
            total = over_images + over_runs_S.sum()
            freedom = total**2 / (over_runs_S**2 / (counts_S1[:, 0] - 1)).sum()
            half = stats.t.ppf(0.975, freedom) * np.sqrt(total)
            assert both.value == alone.value
            highest = 600 if number == RSUM else 100
            lowest = -highest if name == "difference" else 0
            expected = np.clip([both.value - half, both.value + half], lowest, highest)
            # A tail of 20,000 draws, and the draws of images are only nearly normal.
            assert both.interval == pytest.approx(tuple(expected), abs=0.12 * half)
    assert found.sign_flip_p_value == averaged.sign_flip_p_value
    assert found.runs == averaged.runs


@given(sides=sides(), copies=st.integers(2, 4), seed=st.integers(0, 100))
@settings(max_examples=40, deadline=None)
def test_drawn_seeds_change_nothing_if_all_runs_are_equal(sides, copies, seed):
    ours, base = ([tables[0]] * copies for tables in sides)
    with_seeds, averaged = (
        compare_ranks(ours, base, resamples=50, seed=seed, draw_seeds=draws) for draws in (True, False)
    )
    assert with_seeds.p_value == averaged.p_value
    for estimates in ("difference", "ours", "base"):
        assert_alike(getattr(with_seeds, estimates), getattr(averaged, estimates))


@given(sides=sides(), seed=st.integers(0, 100))
@settings(max_examples=40, deadline=None)
def test_swapped_sides_negate_everything_but_the_p_value(sides, seed):
    ours, base = sides
    forward, backward = (
        compare_ranks(ours, base, resamples=50, seed=seed),
        compare_ranks(base, ours, resamples=50, seed=seed),
    )
    assert (forward.p_value, forward.sign_flip_p_value) == (backward.p_value, backward.sign_flip_p_value)
    assert_alike(forward.ours, backward.base)
    for mine, theirs in zip(figures(forward.difference), figures(backward.difference), strict=True):
        assert mine.value == -theirs.value
        assert [mine.interval.low, mine.interval.high] == pytest.approx(
            [-theirs.interval.high, -theirs.interval.low], abs=1e-9
        )


@pytest.mark.parametrize("num_runs", [1, 3])
def test_a_side_against_itself_is_zero_to_the_bit(num_runs):
    runs = [random_table(seed, [0, 0, 1, 2, 2, 2, 3]) for seed in range(num_runs)]
    # The base has each run twice: the same averages from other sums.
    comparison = compare_ranks(runs, [*runs, *runs], resamples=200)
    assert all(estimate == Estimate(0.0, Interval(0.0, 0.0)) for estimate in figures(comparison.difference)[: RSUM + 1])
    assert comparison.p_value == comparison.sign_flip_p_value == 1


def test_signs_of_three_images_by_hand():
    # Hits of ours less those of the base: the first image all three of text retrieval, 3 of 3 images; the second all
    # three for one of its two captions, 3 of 4 captions; the third one hit at 10 of text retrieval too little, 1 of 3.
    # So 1 + 3/4 - 1/3 is as far from 0 as 1 + 3/4 + 1/3, and further than 1 - 3/4 + 1/3 and 1 - 3/4 - 1/3: half of the
    # patterns of signs.
    ours, base = table([0, 1, 1, 2], [1, 20, 20], [20, 1, 20, 20]), table([0, 1, 1, 2], [20, 20, 6], [20, 20, 20, 20])
    comparison = compare_ranks([ours], [base], resamples=100)
    assert comparison.difference.rsum.value == pytest.approx(100 * (1 + 3 / 4 - 1 / 3))
    assert (comparison.sign_flip_p_value, comparison.sign_flip_is_exact) == (0.5, True)


def test_captions_share_the_sign_of_their_image():
    # Eight captions that all gained would be 2 / 2^8 if each had a sign of its own; of one image there are two
    # patterns, both as far.
    ours, base = (table([0] * 8, [50], [rank] * 8) for rank in (1, 50))
    assert compare_ranks([ours], [base], resamples=100).sign_flip_p_value == 1


@given(sides=sides())
@settings(max_examples=25, deadline=None)
def test_exact_signs_equal_a_loop_that_swaps_the_models_image_by_image(sides):
    ours, base = sides
    num_images, rsums = len(ours[0].image_ids), []
    for is_swapped in itertools.product([False, True], repeat=num_images):
        swapped_ours, swapped_base = (swapped(*pair, is_swapped) for pair in ((ours, base), (base, ours)))
        rsums.append(
            abs(np.subtract(*(figures_of(tables, range(num_images))[RSUM] for tables in (swapped_ours, swapped_base))))
        )
    comparison = compare_ranks(ours, base, resamples=100)
    assert comparison.sign_flip_is_exact
    assert comparison.sign_flip_p_value == pytest.approx(np.mean([rsum >= rsums[0] - 1e-9 for rsum in rsums]))


def swapped(ours: Sequence[RankTable], base: Sequence[RankTable], is_swapped: Sequence[bool]) -> list[RankTable]:
    """Ours with the base's ranks where an image is swapped; each of our runs with each of the base's, so that both
    count equally."""
    swap_I = np.array(is_swapped)
    swap_T = swap_I[ours[0].caption_image]
    return [
        dataclasses.replace(
            run,
            text_ranks=np.where(swap_I, base_run.text_ranks, run.text_ranks),
            image_ranks=np.where(swap_T, base_run.image_ranks, run.image_ranks),
        )
        for run in ours
        for base_run in base
    ]


def test_sides_compared_together_are_compared_as_each_alone():
    owner = [0, 0, 1, 2, 2, 2, 3]
    base, *others = ([random_table(seed, owner) for seed in seeds] for seeds in ([0], [1], [2, 3], [4]))
    together = compare_all({str(i): side for i, side in enumerate(others)}, base, resamples=300, seed=5)
    for comparison, alone in zip(
        together, [compare_ranks(ours, base, resamples=300, seed=5) for ours in others], strict=True
    ):
        assert (comparison.p_value, comparison.sign_flip_p_value) == (alone.p_value, alone.sign_flip_p_value)
        assert_alike(comparison.difference, alone.difference)


def assert_alike(estimates: Estimates, expected: Estimates) -> None:
    """Equal but for the rounding of sums of reciprocal ranks, which is the processor's."""
    for mine, theirs in zip(figures(estimates), figures(expected), strict=True):
        assert mine.value == pytest.approx(theirs.value, abs=1e-9)
        assert [mine.interval.low, mine.interval.high] == pytest.approx(
            [theirs.interval.low, theirs.interval.high], abs=1e-9
        )


def test_an_image_brings_all_its_captions():
    # One image with a caption that is found and one with three that are not: a draw of both has 1 of 4.
    estimates = bootstrap([table([0, 1, 1, 1], [1, 1], [1, 50, 50, 50])], resamples=1000)
    assert estimates.image_retrieval["R@1"] == Estimate(25.0, Interval(0.0, 100.0))
    assert estimates.text_retrieval["R@1"] == Estimate(100.0, Interval(100.0, 100.0))


def test_the_seed_alone_decides():
    ours, base = (random_table(seed, np.repeat(np.arange(50), 2).tolist()) for seed in (1, 2))
    first, again, other = (compare_ranks([ours], [base], resamples=500, seed=seed) for seed in (3, 3, 4))
    assert first == again
    assert first.difference.rsum.value == other.difference.rsum.value
    assert first.difference.rsum.interval != other.difference.rsum.interval


@pytest.fixture
def written(tmp_path):
    """Ranks on a corpus whose images have 2, 1 and 3 captions, as `dcdctl eval` writes them."""
    corpus = make_corpus(tmp_path / "corpus", [["a", "b"], ["c"], ["d", "e", "f"]])
    text, image = (
        Ranking(
            positions_QR=np.array(ranks)[:, None],
            positive_score_Q=np.ones(len(ranks)),
            top_QK=np.zeros((len(ranks), 1), int),
            top_score_QK=scores,
        )
        for ranks, scores in (([1, 3, 12], np.ones((3, 1))), ([1, 2, 7, 1, 30, 5], np.ones((6, 1))))
    )
    rank_table = RankTable(
        tuple(corpus.image_ids),
        corpus.caption_ids,
        corpus.caption_image,
        text.ranks,
        image.ranks,
        tuple(corpus.captions),
        {Direction.TEXT: text.positive_score_Q, Direction.IMAGE: image.positive_score_Q},
    )
    files.write_ranks(tmp_path / "ranks.parquet", rank_table)
    return tmp_path / "ranks.parquet", (text, image), corpus


def test_ranks_come_back_from_their_file(written):
    path, rankings, corpus = written
    table = read_ranks(path)
    assert table.image_ids == tuple(corpus.image_ids) == ("i0", "i1", "i2")
    assert table.caption_ids.tolist() == corpus.caption_ids.tolist() == [0, 1, 10, 20, 21, 22]
    assert table.caption_image.tolist() == [0, 0, 1, 2, 2, 2]
    assert table.text_ranks.tolist() == [1, 3, 12]
    assert table.image_ranks.tolist() == [1, 2, 7, 1, 30, 5]
    values = bootstrap([table], resamples=10)
    by_direction = [measures.of_ranking(ranking) for ranking in rankings]
    for direction, expected in zip(Direction, by_direction, strict=True):
        for name in measures.RECALL_NAMES:
            assert values.of(direction)[name].value == pytest.approx(expected[name])
    assert values.rsum.value == pytest.approx(measures.rsum(*by_direction))


def test_runs_of_other_queries_are_not_compared():
    run = table([0, 1, 1], [1, 2], [1, 1, 1])
    odd = {
        "2 images and 2 captions, not 2 images and 3 captions": table([0, 1], [1, 2], [1, 1]),
        "image 'other', not image 'i1'": dataclasses.replace(run, image_ids=("i0", "other")),
        "caption 10 of 'i1', not caption 9 of 'i1'": dataclasses.replace(run, caption_ids=np.array([7, 8, 10])),
        "caption 8 of 'i0', not caption 8 of 'i1'": table([0, 0, 1], [1, 2], [1, 1, 1]),
    }
    for message, other in odd.items():
        with pytest.raises(StaleError, match=f"run 2 of the base has other queries than run 1 of ours: {message}"):
            compare_ranks([run], [run, other])
        with pytest.raises(StaleError, match=f"run 2 of this system .*: {message}"):
            bootstrap([run, other])


def test_one_run_with_seeds_to_draw_is_an_error():
    run = table([0], [1], [1])
    for ours, base, name in (([run], [run, run], "ours"), ([run, run], [run], "the base")):
        with pytest.raises(InputError, match=f"{name} has 1 run, drawing its seeds needs 2 or more"):
            compare_ranks(ours, base, draw_seeds=True)


def agreements(text_Q: Sequence[float], image_Q: Sequence[float]) -> Agreements:
    """A run with this nDCG@10 of its queries."""
    by_direction = {}
    for direction, ndcg in zip(Direction, (text_Q, image_Q), strict=True):
        count = len(ndcg)
        by_direction[direction] = QueryAgreement(
            np.arange(count), np.full(count, 9), np.column_stack([np.zeros(count), ndcg, ndcg])
        )
    return Agreements("all", by_direction)


@pytest.mark.parametrize("draw_seeds", [False, True])
def test_agreements_are_the_means_of_all_queries_whatever_is_drawn(draw_seeds):
    # The mean of the means of two images and four captions, as (55 + 65) / 2 of the second run.
    ours = [agreements([0.2, 0.8], [0.1, 0.5, 0.6, 0.8]), agreements([0.4, 0.7], [0.5, 0.7, 0.9, 0.5])]
    base = [agreements([0.1, 1.0], [0.1, 0.2, 0.3, 0.8]), agreements([0.3, 0.4], [0.5, 0.6, 0.5, 0.6])]
    found = compare_agreements(ours, base, resamples=50, draw_seeds=draw_seeds)
    assert found.runs == (pytest.approx((50.0, 60.0)), pytest.approx((45.0, 45.0)))
    totals = [side.total.value for side in (found.ours, found.base, found.difference)]
    assert totals == pytest.approx([55.0, 45.0, 10.0])
    assert found.ours.total.interval.low < 55 < found.ours.total.interval.high
