"""The built-in corpus: the same everywhere, disjoint splits, captions that need word order and binding."""

from __future__ import annotations

import sys
from collections import defaultdict
from itertools import islice

import numpy as np
import processes
import pytest
from paths import ROOT, SUPPORT
from PIL import ImageColor
from scene_digest import digest_of_scenes

from dcdctl.core.data import scenes

NUM_TEST = 500


def fits(mention: scenes.Mention, thing: scenes.SceneObject) -> bool:
    """Whether a mention describes an object."""
    return (
        (thing.shape, thing.color) == (mention.shape, mention.color)
        and mention.size in (None, thing.size)
        and mention.quarter in (None, thing.quarter)
    )


def holds(statement: scenes.Statement, scene: scenes.Scene) -> bool:
    """Whether a statement is true of a scene."""
    relation = scenes.RELATIONS[statement.relation]
    return any(
        fits(statement.subject, first) and fits(statement.object, second) and relation.holds(first, second)
        for first in scene.objects
        for second in scene.objects
    )


@pytest.fixture(scope="module")
def test_scenes():
    return list(islice(scenes.describe_scenes(0, "test"), NUM_TEST))


def test_images_and_captions_are_the_same_in_another_process():
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from scene_digest import digest_of_scenes; "
        "print(digest_of_scenes(12))"
    )
    environment = {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "7"}
    other = processes.run(
        [sys.executable, "-c", code, str(SUPPORT)], env=environment, check=True, capture_output=True, text=True
    )
    assert other.stdout.strip() == digest_of_scenes(12)


def test_the_first_scenes_are_the_same_whatever_the_number(test_scenes):
    assert list(islice(scenes.describe_scenes(0, "test"), 7)) == test_scenes[:7]


def test_another_seed_draws_other_scenes(test_scenes):
    assert next(scenes.describe_scenes(1, "test")).scene != test_scenes[0].scene


def family_key(scene):
    return tuple(sorted((thing.shape, thing.size) for thing in scene.objects)), tuple(
        sorted(thing.color for thing in scene.objects)
    )


def test_no_family_of_objects_is_in_two_splits_of_any_seed():
    families = defaultdict(set)
    for seed in (0, 1, 2):
        for split in scenes.SPLIT_BUCKETS:
            families[split] |= {family_key(item.scene) for item in islice(scenes.describe_scenes(seed, split), 400)}
    assert all(len(keys) >= 295 for keys in families.values())  # 3 seeds x 100 families, hardly any twice
    assert not families["train"] & families["val"]
    assert not families["train"] & families["test"]
    assert not families["val"] & families["test"]


def test_a_family_shares_its_words_and_nothing_else(test_scenes):
    for start in range(0, NUM_TEST, scenes.FAMILY_SIZE):
        family = [item.scene for item in test_scenes[start : start + scenes.FAMILY_SIZE]]
        assert len({family_key(scene) for scene in family}) == 1
        layouts = {
            frozenset((thing.shape, thing.color, thing.column, thing.row) for thing in scene.objects)
            for scene in family
        }
        assert len(layouts) == scenes.FAMILY_SIZE


def test_captions_of_an_image_are_distinct(test_scenes):
    assert all(len({statement.text for statement in item.statements}) == 5 for item in test_scenes)


def test_a_statement_is_true_of_its_scene_and_false_of_its_three_siblings(test_scenes):
    for i, item in enumerate(test_scenes):
        start = i - i % scenes.FAMILY_SIZE
        family = [other.scene for other in test_scenes[start : start + scenes.FAMILY_SIZE]]
        for statement in item.statements:
            assert [holds(statement, scene) for scene in family] == [scene is item.scene for scene in family], (
                statement.text
            )


def test_a_text_says_what_its_statement_says(test_scenes):
    for item in test_scenes[:100]:
        for statement in item.statements:
            assert any(phrase in statement.text for phrase in scenes.RELATIONS[statement.relation].phrases)
            for mention in (statement.subject, statement.object):
                assert f"{mention.color} {mention.shape}" in statement.text
                assert mention.quarter is None or mention.quarter in statement.text
                assert mention.size is None or any(
                    f"{word} {mention.color} {mention.shape}" in statement.text for word in scenes.SIZES[mention.size]
                )


@pytest.mark.parametrize("shape", scenes.SHAPES)
def test_a_shape_is_drawn_in_its_color_in_the_middle_of_its_cell(shape):
    thing = scenes.SceneObject(shape, "red", "large", column=1, row=2, shift=(0.0, 0.0))
    pixels = np.asarray(scenes.draw_scene(scenes.Scene((thing,), scenes.BACKGROUNDS[0]), 128)).astype(int)
    is_drawn = (np.abs(pixels - ImageColor.getrgb(scenes.BACKGROUNDS[0])) > 20).any(axis=2)
    rows, columns = np.nonzero(is_drawn)
    assert (rows.min() >= 64, rows.max() < 96, columns.min() >= 32, columns.max() < 64) == (True,) * 4
    above, below = rows.min() - 64, 95 - rows.max()
    assert abs(above - below) <= 3
    assert (pixels == ImageColor.getrgb(scenes.COLORS["red"])).all(axis=2).sum() > 100
    if shape not in ("moon", "arrow"):
        cell = is_drawn[64:96, 32:64]
        # Apart from a few pixels at the edges.
        assert (cell != cell[:, ::-1]).sum() < 0.1 * cell.sum()


def test_a_large_object_is_larger_than_a_small_one():
    def area(size):
        thing = scenes.SceneObject("circle", "blue", size, 0, 0, (0.0, 0.0))
        return (np.asarray(scenes.draw_scene(scenes.Scene((thing,), scenes.BACKGROUNDS[0]), 128))[..., 0] < 100).sum()

    assert area("large") > 2 * area("small")
