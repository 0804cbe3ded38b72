"""Batches: teacher and student columns are of the same pairs, and a step has one batch."""

from __future__ import annotations

import dataclasses
import pickle
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
from batches import Indices, list_batches, pair_batches, recipe_batches
from made_caches import build_cache
from tiny import make_corpus

from dcdctl.core.data import Corpus, RaggedArray
from dcdctl.core.errors import ConfigError, MissingError
from dcdctl.core.scoring import CorpusSource
from dcdctl.core.teacher import CandidateConfig, Candidates, TeacherCache, false_negative_filter
from dcdctl.core.training import load_recipe
from dcdctl.core.training.batches.all_pairs import find_neighbors, image_batches
from dcdctl.core.training.batches.batch import Batch, MicroBatchPlan
from dcdctl.core.training.recipe import BatchConfig


@pytest.fixture(scope="module")
def drawn(corpus, teacher, tmp_path_factory) -> TeacherCache:
    return build_cache(corpus, teacher, tmp_path_factory.mktemp("random") / "cache", CandidateConfig(per_query=9))


@pytest.fixture(scope="module")
def blocks(corpus, teacher, tmp_path_factory) -> TeacherCache:
    config = CandidateConfig(kind="blocks", block_size=8)
    return build_cache(corpus, teacher, tmp_path_factory.mktemp("blocks") / "cache", config)


class Named:
    """Stands for a preprocessor: says which pictures and captions it was given, so that a test can tell the pairs of a
    batch."""

    def images(self, images: list[Any]) -> Any:
        return Things([image.tobytes() for image in images])

    def texts(self, texts: list[str]) -> Any:
        return Things(texts)


class Things(list[Any]):
    def to(self, device: object) -> Things:
        return self


class Known:
    """The pairs of a batch as indices of the corpus."""

    def __init__(self, corpus: Corpus) -> None:
        self._image = {corpus.image(i).tobytes(): i for i in range(corpus.num_images)}
        self._captions = corpus.captions

    def __call__(self, batch: Batch) -> tuple[np.ndarray, list[list[str]]]:
        images: Any = batch.images
        texts: Any = batch.texts
        image_RC = np.array([self._image[data] for data in images])[batch.image_ix_RC.numpy()]
        return image_RC, [[texts[i] for i in row] for row in batch.text_ix_RC.tolist()]


@pytest.fixture(scope="module")
def known(corpus) -> Known:
    return Known(corpus)


def scores_of(cache: TeacherCache, corpus: Corpus, image: int, text: str) -> set[float]:
    """The teacher's scores of an image and any caption with this text."""
    same = [i for i, caption in enumerate(corpus.captions) if caption == text]
    return {float(score) for score in cache.lookup(np.full(len(same), image), np.array(same)) if score == score}


def is_own(corpus: Corpus, image: int, text: str) -> bool:
    return text in {corpus.captions[i] for i in corpus.captions_of(image)}


LISTS = BatchConfig(size=10, random_negatives=9, hard_negatives=4)


def test_the_teachers_column_j_is_the_score_of_the_pair_in_column_j(corpus, drawn, known):
    batches = list_batches(CorpusSource(corpus, Named()), LISTS, 0, drawn)
    for step in range(6):
        batch = batches[step]
        image_BN, text_BN = known(batch)
        assert image_BN.shape == (10, 5)
        for b in range(10):
            assert is_own(corpus, image_BN[b, 0], text_BN[b][0])
            for n in range(5):
                assert float(batch.teacher_RC[b, n]) in scores_of(drawn, corpus, image_BN[b, n], text_BN[b][n])
                assert n == 0 or not is_own(corpus, image_BN[b, n], text_BN[b][n])


def test_the_hardest_of_the_drawn_are_kept_hardest_first(corpus, drawn, known):
    # Nine are drawn of nine cached, so that the hardest of the query's whole list are known.
    batch = list_batches(CorpusSource(corpus, Named()), LISTS, 0, drawn)[0]
    image_BN, text_BN = known(batch)
    for b in range(0, 10, 2):
        image = int(image_BN[b, 0])
        assert set(image_BN[b].tolist()) == {image}
        texts = drawn.candidates.texts_of_image[image]
        hardest = np.sort(drawn.lookup(np.full(9, image), texts))[::-1][:4]
        assert batch.teacher_RC[b, 1:].tolist() == hardest.tolist()
    for b in range(1, 10, 2):
        assert len(set(text_BN[b])) == 1
        assert len(set(image_BN[b].tolist())) == 5
        assert (batch.teacher_RC[b, 1:].diff() <= 0).all()


def test_directions_alternate_or_are_the_one_that_is_set(corpus, drawn, known):
    config = BatchConfig(size=6, random_negatives=9, hard_negatives=4, directions=("image",))
    image_BN, text_BN = known(list_batches(CorpusSource(corpus, Named()), config, 0, drawn)[0])
    assert all(len(set(row)) == 1 for row in text_BN)
    assert all(len(set(row.tolist())) == 5 for row in image_BN)


@pytest.mark.parametrize("kind", [list_batches, pair_batches])
def test_a_batch_is_a_function_of_seed_and_step(kind, corpus, teacher, drawn):
    config = BatchConfig(size=8, random_negatives=5, hard_negatives=4)
    batches = kind(CorpusSource(corpus, teacher.preprocess), config, 5, drawn)
    later = batches[41]
    _ = batches[0]
    fresh = pickle.loads(pickle.dumps(kind(CorpusSource(corpus, teacher.preprocess), config, 5, drawn)))[41]
    second = kind(CorpusSource(corpus, teacher.preprocess), config, 6, drawn)[41]
    assert torch.equal(later.images.pixel_values, fresh.images.pixel_values)
    assert torch.equal(later.texts.input_ids, fresh.texts.input_ids)
    assert torch.equal(later.teacher_RC.nan_to_num(7), fresh.teacher_RC.nan_to_num(7))
    assert not torch.equal(later.teacher_RC.nan_to_num(7), second.teacher_RC.nan_to_num(7))


def test_without_a_cache_all_drawn_are_kept_and_none_is_the_querys_own(corpus, known):
    config = BatchConfig(size=10, random_negatives=12)
    batch = list_batches(CorpusSource(corpus, Named()), config, 0, None)[0]
    image_BN, text_BN = known(batch)
    assert image_BN.shape == (10, 13)
    assert batch.teacher_RC.isnan().all()
    for b in range(10):
        assert [is_own(corpus, image_BN[b, n], text_BN[b][n]) for n in range(13)] == [True] + [False] * 12


def test_more_negatives_than_cached_are_an_error_and_not_fewer(corpus, drawn):
    with pytest.raises(
        ConfigError, match=r"is 10, the cache has at most 9 candidates for a query; --set batch\.random_negatives=9, or"
    ):
        list_batches(CorpusSource(corpus, Named()), BatchConfig(random_negatives=10), 0, drawn)


def test_more_negatives_than_the_split_has_images_are_those_that_are_cached(corpus, drawn):
    most, larger = (
        list_batches(CorpusSource(corpus, Named()), BatchConfig(random_negatives=n, hard_negatives=kept), 0, drawn)
        for n, kept in ((9, 9), (32, 12))
    )
    assert larger.pairs.adapted == {"batch.random_negatives": 9, "batch.hard_negatives": 9}
    np.testing.assert_array_equal(larger.pairs.of_step(1).text_RC, most.pairs.of_step(1).text_RC)


def test_captions_that_are_in_no_block_are_no_query(corpus, teacher, known, tmp_path):
    config = CandidateConfig(kind="blocks", block_size=16, captions_per_image=2)
    cache = build_cache(corpus, teacher, tmp_path / "cache", config)
    batches = list_batches(
        CorpusSource(corpus, Named()), BatchConfig(size=8, random_negatives=9, hard_negatives=4), 0, cache
    )
    assert batches.pairs.batches_per_epoch == 8
    assert not any(batches[step].teacher_RC.isnan().any() for step in range(8))


def test_each_step_reads_the_caption_that_its_seed_draws(tmp_path):
    texts = [[f"text {image} {k}" for k in range(1 + image % 5)] for image in range(13)]
    corpus = make_corpus(tmp_path / "corpus", texts, has_colors=True)
    batches, known = pair_batches(CorpusSource(corpus, Named()), BatchConfig(size=6), 5, None), Known(corpus)
    for step in range(9):
        image_QG, text_QG = known(batches[step])
        images = sorted(image_QG[:, 0].tolist())
        draws = np.random.default_rng([5, 1, step]).integers(0, [len(texts[image]) for image in images])
        expected = {image: texts[image][k] for image, k in zip(images, draws, strict=True)}
        assert [text_QG[q][q] for q in range(6)] == [expected[image] for image in image_QG[:, 0].tolist()]


def test_the_positives_of_lists_are_the_captions_in_the_order_that_the_seed_gives(corpus, known):
    batches = list_batches(CorpusSource(corpus, Named()), BatchConfig(size=30, random_negatives=3), 5, None)
    orders = [np.random.default_rng([5, 0, epoch]).permutation(corpus.num_captions) for epoch in range(2)]
    expected = [corpus.captions[text] for text in np.concatenate(orders)[:270]]
    assert [row[0] for step in range(9) for row in known(batches[step])[1]] == expected


def test_a_corpus_of_one_picture_has_no_negatives(tmp_path):
    alone = make_corpus(tmp_path / "corpus", [["a", "b"]])
    with pytest.raises(MissingError, match="no negatives to draw"):
        list_batches(CorpusSource(alone, Named()), BatchConfig(size=2), 0, None)[0]


def test_all_pairs_have_positives_on_the_diagonal_and_their_own_scores(corpus, blocks, known):
    batch = pair_batches(CorpusSource(corpus, Named()), BatchConfig(size=6), 0, blocks)[2]
    image_QG, text_QG = known(batch)
    for q in range(6):
        assert is_own(corpus, image_QG[q, q], text_QG[q][q])
        for g in range(6):
            assert image_QG[q, g] == image_QG[q, 0]
            assert text_QG[q][g] == text_QG[0][g]
            score = float(batch.teacher_RC[q, g])
            assert score != score or score in scores_of(blocks, corpus, image_QG[q, g], text_QG[q][g])


def test_smaller_batches_are_parts_of_blocks_and_drawn_ones_are_better_than_chance(corpus, blocks, drawn):
    def share(size: int, cache: TeacherCache) -> float:
        batches = pair_batches(CorpusSource(corpus, Named()), BatchConfig(size=size), 0, cache)
        return float(np.mean([(~batches[step].teacher_RC.isnan()).float().mean() for step in range(8)]))

    assert share(8, blocks) == 1
    assert share(4, blocks) > 0.95
    by_chance = drawn.num_pairs / (32 * 160)
    assert share(8, drawn) > by_chance + 0.02


def test_the_scored_share_of_a_batch_counts_its_negatives_alone(corpus, blocks, drawn):
    for cache in (blocks, drawn):
        batches = pair_batches(CorpusSource(corpus, Named()), BatchConfig(size=8), 0, cache)
        parts = [batches[step] for step in range(16)]
        expected = [float((~part.teacher_RC.isnan()).sum() - 8) / 56 for part in parts]
        assert [part.scored_share for part in parts] == pytest.approx(expected)
        assert batches.pairs.coverage(99).scored == pytest.approx(np.mean(expected))
        assert batches.pairs.coverage(3).scored == pytest.approx(np.mean(expected[:3]))
        negatives = [~part.teacher_RC.isnan() & ~torch.eye(8, dtype=torch.bool) for part in parts]
        queries = [(scored.any(0).float().mean() + scored.any(1).float().mean()) / 2 for scored in negatives]
        assert batches.pairs.coverage(99).queries == pytest.approx(np.mean(queries))
    lists = list_batches(CorpusSource(corpus, Named()), LISTS, 0, drawn)
    assert (lists[0].scored_share, lists.pairs.coverage(1).queries) == (1.0, 1.0)
    hidden = lists[0].teacher_RC.clone()
    hidden[:, :2] = torch.nan
    assert dataclasses.replace(lists[0], teacher_RC=hidden).scored_share == 3 / 4


def test_an_epoch_of_all_pairs_has_every_image_once_in_another_order_each_time(corpus, blocks, known):
    batches = pair_batches(CorpusSource(corpus, Named()), BatchConfig(size=8), 0, blocks)
    first, second = (
        [known(batches[step])[0][:, 0].tolist() for step in steps_of] for steps_of in (range(4), range(4, 8))
    )
    assert sorted(chain(*first)) == sorted(chain(*second)) == list(range(32))
    assert first != second


def test_images_that_share_most_scored_pairs_come_together():
    # Images 0 and 3 share three pairs, 1 and 2 as well; every other two share one.
    counts = np.array([[0, 1, 1, 3], [1, 0, 3, 1], [1, 3, 0, 1], [3, 1, 1, 0]])
    image, other = np.nonzero(counts)
    neighbors = (RaggedArray.from_sorted(image, other, 4), counts[image, other])
    for seed in range(8):
        batches = image_batches(neighbors, np.ones(len(neighbors[0]), dtype=bool), 2, np.random.default_rng(seed))
        assert sorted(sorted(batch.tolist()) for batch in batches) == [[0, 3], [1, 2]]


def test_shared_pairs_are_counted_from_both_sides(corpus, drawn):
    counts = np.zeros((32, 32), dtype=np.int64)
    for image, text in zip(drawn.image_P.tolist(), drawn.text_P.tolist(), strict=True):
        owner = int(corpus.caption_image[text])
        if owner != image:
            counts[image, owner] += 1
            counts[owner, image] += 1
    images, num_pairs = find_neighbors(drawn, corpus.caption_image, corpus.num_images)
    assert counts.max() > 1
    assert num_pairs.tolist() == counts[counts > 0].tolist()
    assert images.values.tolist() == np.nonzero(counts)[1].tolist()
    assert images.lengths.tolist() == (counts > 0).sum(axis=1).tolist()


def test_captions_that_say_the_same_are_marked(tmp_path):
    twins = make_corpus(tmp_path / "corpus", [["a dog"], ["A  dog"], ["a cat"]])
    batch = pair_batches(CorpusSource(twins, Named()), BatchConfig(size=3), 0, None)[0]
    known = Known(twins)
    image_QG, text_QG = known(batch)
    expected = [
        [q != g and {int(image_QG[q, g]), [*twins.captions].index(text_QG[q][g])} == {0, 1} for g in range(3)]
        for q in range(3)
    ]
    assert batch.same_RC.tolist() == expected
    assert batch.same_RC.sum() == 2


CLONES = [[f"{word} {i}" for word in ("one", "two", "three")] for i in range(6)]
"""Captions of six images, of which image 4 is a copy of image 1."""


@pytest.fixture(scope="module")
def clones(tmp_path_factory) -> Corpus:
    return make_corpus(tmp_path_factory.mktemp("clones") / "corpus", CLONES, copies={4: 1})


def batches_of(
    corpus: Corpus, bits: int | None, cache: TeacherCache | None = None, mined: Any = None, **config: Any
) -> Any:
    kind = list_batches if "random_negatives" in config else pair_batches
    more = {"false_negatives": false_negative_filter(corpus, bits), **({} if mined is None else {"mined": mined})}
    return kind(Indices(corpus), BatchConfig(**config), 0, cache, **more)  # type: ignore[arg-type]


def test_duplicate_images_are_marked_in_a_batch_of_all_pairs_if_the_recipe_looks_for_them(clones):
    batch = batches_of(clones, 0, size=6)[0]
    assert torch.nonzero(batch.same_RC).tolist() == [[1, 4], [4, 1]]
    assert not batches_of(clones, None, size=6)[0].same_RC.any()


def test_duplicate_images_are_matches_in_a_batch_of_lists(clones):
    batch = batches_of(clones, 0, size=8, random_negatives=3)[0]
    image_IT, text_IT = np.broadcast_arrays(batch.images[:, None], batch.texts // 3)
    expected_IT = (image_IT == text_IT) | (np.isin(image_IT, [1, 4]) & np.isin(text_IT, [1, 4]))
    assert batch.true_IT.tolist() == expected_IT.tolist()


def has_clone(batch: Batch, image: Any, text: Any) -> np.ndarray:
    """For each list, whether a negative is an image and a caption of the two equal images."""
    image_BN, text_BN = image[batch.image_ix_RC.numpy()], text[batch.text_ix_RC.numpy()] // 3
    return (np.isin(image_BN, [1, 4]) & np.isin(text_BN, [1, 4]))[:, 1:].any(axis=1)


@pytest.mark.parametrize("source", ["whole corpus", "mined", "cache"])
def test_no_list_has_a_duplicate_image_as_a_negative_wherever_its_negatives_come_from(
    clones, teacher, tmp_path, source
):
    # Neither the cache nor the mined lists are made with duplicate_bits.
    cache = (
        build_cache(clones, teacher, tmp_path / "cache", CandidateConfig(per_query=99)) if source == "cache" else None
    )
    for bits, is_found in ((None, True), (0, False)):
        config = {
            "size": 12,
            "random_negatives": 3,
            "hard_negatives": 3,
            "negatives": "mined" if source == "mined" else "random",
        }
        nothing = Candidates(RaggedArray.empty(6), RaggedArray.empty(18))
        batches = batches_of(clones, bits, cache, nothing if source == "mined" else None, **config)
        drawn = [batches[step] for step in range(6)]
        assert np.concatenate([has_clone(batch, batch.images, batch.texts) for batch in drawn]).any() == is_found


@pytest.mark.parametrize("count", [1, 3])
def test_a_training_takes_duplicate_bits_from_its_recipe_in_micro_batches_too(clones, count):
    plan, marked = MicroBatchPlan(count, range(count)), []
    for sets in ([], ["candidates.duplicate_bits=0"]):
        settings = load_recipe("demo-dual-alone", ["batch.size=6", *sets])
        marked.append(recipe_batches(CorpusSource(clones, Named()), settings, None, plan)[0].same_RC.sum())
    assert marked == [0, 2]
