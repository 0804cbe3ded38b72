"""Candidates: the pairs that the teacher scores."""

from __future__ import annotations

import numpy as np
import pytest
from tiny import make_corpus

from dcdctl.core.data import Corpus, Direction
from dcdctl.core.teacher import CandidateConfig, candidates, false_negatives, miners


@pytest.fixture(scope="module")
def twins(tmp_path_factory) -> Corpus:
    """Twelve images with one to three captions each; images 0, 1 and 2 share a text that differs only in case and
    spaces."""
    texts = [["A dog  runs", "one"], ["a dog runs"], ["two", "three", "a DOG runs"]]
    texts += [[f"text {i} {k}" for k in range(1 + i % 3)] for i in range(3, 12)]
    return make_corpus(tmp_path_factory.mktemp("twins") / "corpus", texts)


@pytest.fixture(scope="module")
def scenes(scenes_corpus_dir) -> Corpus:
    return Corpus.open(scenes_corpus_dir, "train")


def test_random_candidates_are_all_negatives_when_there_are_fewer_than_requested(twins):
    drawn = candidates.draw_candidates(twins, CandidateConfig(per_query=1000))
    # Three captions share a text, so they are positives of images 0 to 2 and are excluded along with each image's own
    # captions.
    assert len(drawn.texts_of_image[1]) == twins.num_captions - 3
    assert len(drawn.texts_of_image[5]) == twins.num_captions - len(twins.captions_of(5))
    assert drawn.images_of_text[0].tolist() == list(range(3, 12))


@pytest.mark.parametrize(
    ("settings", "num_equal"),
    [
        ({"per_query": 4, "directions": ("text",)}, 24 + 12 * 4),
        ({"per_query": 4}, None),
        ({"per_query": 1000}, 12 * 24),
        # Three whole blocks, each of eight captions; with two of each image at most, of seven.
        ({"kind": "blocks", "block_size": 4, "group_size": 1}, 24 * 4),
        ({"kind": "blocks", "block_size": 4, "group_size": 1, "captions_per_image": 2}, None),
        # The third block has three images again, of six captions.
        ({"kind": "blocks", "block_size": 5, "group_size": 1}, None),
        ({"kind": "blocks", "block_size": 4, "rounds": 3}, None),
    ],
)
def test_the_most_pairs_are_those_of_a_plan_unless_something_is_proposed_twice(tmp_path, settings, num_equal):
    corpus = make_corpus(tmp_path / "corpus", [[f"text {i} {k}" for k in range(1 + i % 3)] for i in range(12)])
    config = CandidateConfig(**settings)
    drawn = candidates.draw_candidates(corpus, config)
    own = corpus.caption_image * corpus.num_captions + np.arange(corpus.num_captions)
    planned = set(own.tolist()).union(*(drawn.keys(direction).tolist() for direction in Direction))
    most = candidates.most_pairs(corpus, config)
    assert most == len(planned) == num_equal or (num_equal is None and len(planned) < most <= 12 * 24)


@pytest.mark.parametrize("kind", ["random", "blocks"])
def test_a_draw_depends_on_the_seed_alone(scenes, kind):
    def draw(seed: int) -> list[int]:
        return candidates.draw_candidates(
            scenes, CandidateConfig(kind=kind, block_size=8, group_size=1, seed=seed)
        ).texts_of_image.values.tolist()

    assert draw(3) == draw(3)
    assert draw(3) != draw(4)


def test_random_candidates_are_uniform_over_captions(scenes):
    counts = np.zeros(scenes.num_captions)
    for seed in range(30):
        drawn = candidates.draw_candidates(scenes, CandidateConfig(per_query=15, seed=seed))
        counts += np.bincount(drawn.texts_of_image.values, minlength=scenes.num_captions)
    expected = 30 * 32 * 15 / scenes.num_captions
    assert abs(counts - expected).max() < 6 * expected**0.5  # six standard deviations of a binomial count


def test_every_pair_of_a_block_is_scored(scenes):
    drawn = candidates.draw_candidates(scenes, CandidateConfig(kind="blocks", block_size=8, captions_per_image=5))
    for image in range(scenes.num_images):
        block = {image, *(int(scenes.caption_image[text]) for text in drawn.texts_of_image[image])}
        assert len(block) == 8
        others = {text for other in block - {image} for text in scenes.captions_of(other)}
        classes = false_negatives.text_classes(scenes.captions)
        own = {classes[text] for text in scenes.captions_of(image)}
        assert set(drawn.texts_of_image[image].tolist()) == {text for text in others if classes[text] not in own}
        for text in drawn.texts_of_image[image]:
            assert image in drawn.images_of_text[int(text)]


def test_the_last_block_is_as_large_as_the_others(twins):
    drawn = candidates.draw_candidates(twins, CandidateConfig(kind="blocks", block_size=11, group_size=1))
    assert min(len(drawn.images_of_text[text]) for text in range(twins.num_captions)) >= 11 - 3


def test_blocks_use_the_set_number_of_captions_per_image(scenes):
    drawn = candidates.draw_candidates(scenes, CandidateConfig(kind="blocks", block_size=8, captions_per_image=2))
    used_captions = np.flatnonzero(np.diff(drawn.images_of_text.offsets))
    assert np.bincount(scenes.caption_image[used_captions]).tolist() == [2] * 32


def test_more_rounds_give_more_candidates(scenes):
    one_round, three_rounds = (
        candidates.draw_candidates(scenes, CandidateConfig(kind="blocks", block_size=8, rounds=rounds))
        for rounds in (1, 3)
    )
    assert len(three_rounds.texts_of_image.values) > 1.5 * len(one_round.texts_of_image.values)


def test_clusters_group_similar_scenes(scenes):
    groups = miners.clusters(scenes, 4)
    assert sorted(np.concatenate(groups).tolist()) == list(range(32))
    assert [len(group) for group in groups] == [4] * 8
    # Scenes come in families of four that differ in a single attribute.
    pairs = [(int(a) // 4, int(b) // 4) for group in groups for a in group for b in group if a < b]
    # By chance, 3 of 31 pairs would be of one family.
    assert sum(a == b for a, b in pairs) / len(pairs) > 0.6


def test_clusters_do_not_depend_on_the_chunk_size(twins, monkeypatch):
    expected = [group.tolist() for group in miners.clusters(twins, 3)]
    monkeypatch.setattr(miners, "_SEEDS_PER_CHUNK", 2)
    assert [group.tolist() for group in miners.clusters(twins, 3)] == expected
    assert expected[0] == [0, 1, 2]
    assert [len(group) for group in expected] == [3, 3, 3, 3]


def test_pairs_are_unique_sorted_and_include_every_positive(twins):
    drawn = candidates.draw_candidates(twins, CandidateConfig(per_query=6))
    image, text, _ = drawn.pairs(twins.caption_image)
    pairs = list(zip(image.tolist(), text.tolist(), strict=True))
    assert pairs == sorted(set(pairs))
    assert {(int(twins.caption_image[t]), t) for t in range(twins.num_captions)} <= set(pairs)
    assert {(i, int(t)) for i in range(12) for t in drawn.texts_of_image[i]} <= set(pairs)
    assert {(int(i), t) for t in range(twins.num_captions) for i in drawn.images_of_text[t]} <= set(pairs)
