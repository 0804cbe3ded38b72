"""Recipes: those that come with the package, and what a wrong one says."""

from __future__ import annotations

import json
import re
import tomllib

import pytest

from dcdctl.core.config import build, flatten, to_table
from dcdctl.core.errors import ConfigError
from dcdctl.core.training import recipe, rounds
from dcdctl.core.training.losses.table import LossConfig
from dcdctl.core.training.recipe import Recipe, packaged, toml


@pytest.mark.parametrize("name", packaged.names())
def test_a_recipe_parses_goes_through_json_and_opens_with_its_command(name):
    loaded = recipe.load_recipe(name)
    assert build(Recipe, json.loads(json.dumps(to_table(loaded)))) == loaded
    assert loaded.description
    head = (packaged.RECIPES / f"{name}.toml").read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    comments = [line for line in head if line.startswith("#")]
    assert any(f"dcdctl {verb} {name} " in line for line in comments for verb in ("distill", "finetune-teacher"))
    assert len(comments) >= 3


@pytest.mark.parametrize("name", packaged.names())
def test_each_recipe_has_a_baseline_without_its_teacher(name):
    loaded = recipe.load_recipe(name)
    baseline = recipe.load_recipe(name, rounds.sets_of_own_loss(loaded))
    assert baseline.loss == LossConfig(
        terms=rounds.own_terms(loaded), label_smoothing=loaded.loss.label_smoothing, dims=loaded.loss.dims
    )
    assert not baseline.loss.needs_teacher


@pytest.fixture(scope="module")
def entries():
    """Read in a test and not while the tests are collected, so that an error fails these tests alone."""
    return {entry.name: entry for entry in packaged.list_recipes()}


@pytest.mark.parametrize("name", packaged.names())
def test_the_head_of_a_recipe_says_what_it_needs_takes_and_gives(name, entries):
    entry = entries[name]
    assert entry.needs
    assert re.match(r"[\d,.]+ |a few |not estimated", entry.minutes)
    assert "not measured" in entry.expected or re.search(r"docs/evidence/results\.md|poor recall", entry.expected)
    assert entry.commands


def test_facts_and_commands_of_a_recipe_are_lines_of_their_own(tmp_path, monkeypatch):
    head = [
        "Mine: a test",
        "Needs: two images: any",
        "needs: nothing",
        "Other: a line",
        "",
        "dcdctl distill mine --out run",
    ]
    text = "".join(f"# {line}\n" for line in head) + 'description = "one"\n# Minutes: 3\n'
    (tmp_path / "mine.toml").write_text(text, encoding="utf-8")
    monkeypatch.setattr(packaged, "RECIPES", tmp_path)
    assert packaged.list_recipes() == [
        packaged.RecipeEntry(
            name="mine",
            description="one",
            needs="two images: any",
            minutes="",
            expected="",
            commands=("dcdctl distill mine --out run",),
        )
    ]


@pytest.mark.parametrize("with_defaults", [True, False])
@pytest.mark.parametrize("name", packaged.names())
def test_a_recipe_as_toml_is_the_recipe(name, with_defaults, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(toml.recipe_text(name, with_defaults=with_defaults), encoding="utf-8")
    assert recipe.load_recipe(str(path)) == recipe.load_recipe(name)
    assert packaged.head_of(path) == packaged.head_of(packaged.RECIPES / f"{name}.toml")


def test_a_recipe_as_toml_has_every_field_below_its_sentences():
    text = toml.recipe_text("demo-dual")
    table = tomllib.loads(text)
    assert flatten(table) == flatten(with_none_as_text(to_table(recipe.load_recipe("demo-dual"))))
    assert (
        "# Share of the steps in which the learning rate rises from 0; then it falls to 0.\nwarmup_share = 0.1\n"
        in text
    )
    assert "# How the learning rate falls to 0 after the warm-up: linear, or cosine.\nschedule = " in text
    assert "\n# What is trained.\n[model]\n" in text


def with_none_as_text(table):
    if isinstance(table, dict):
        return {key: with_none_as_text(value) for key, value in table.items()}
    return "none" if table is None else table


@pytest.mark.parametrize("teacher", ["vilt", "meter"])
def test_the_papers_setting_is_the_papers(teacher):
    flickr, coco = recipe.load_recipe(f"{teacher}-flickr30k"), recipe.load_recipe(f"{teacher}-coco")
    assert (flickr.batch.random_negatives, coco.batch.random_negatives) == (63, 15)
    for loaded in (flickr, coco):
        assert (loaded.batch.hard_negatives, loaded.loss.alpha, loaded.loss.temperature) == (7, 0.2, 1.0)
        assert (loaded.optimizer.betas, loaded.optimizer.weight_decay, loaded.optimizer.warmup_share) == (
            (0.9, 0.98),
            0.01,
            0.1,
        )
        assert (loaded.optimizer.epochs, loaded.batch.size, loaded.seed) == (10, 512, 12345)
        # 512 lists in micro-batches of 8: on a whole batch r would be even within a percent.
        assert loaded.loss.weight_group == 8


def test_meters_recipes_boost_the_fusion_part_and_know_one_direction():
    for name in ("meter-flickr30k", "meter-coco"):
        loaded = recipe.load_recipe(name)
        assert (loaded.model.layers, loaded.loss.terms, loaded.batch.directions) == (
            (0, 3, 5),
            {"dcd-released": 1.0},
            ("text",),
        )
        assert loaded.optimizer.lr == 5e-6
        assert set(loaded.optimizer.lr_factors.values()) == {5.0}


def test_none_unsets_a_field_of_a_recipe():
    assert recipe.load_recipe("vilt-coco", ["loss.weight_group=none"]).loss.weight_group is None
    assert recipe.load_recipe("demo-fusion", ["optimizer.max_grad_norm=none"]).optimizer.max_grad_norm is None
    # A text may really be none, and other fields have no such value.
    assert recipe.load_recipe("tiny-teacher", ["description=none"]).description == "none"
    with pytest.raises(ConfigError, match=r"loss\.alpha must be float, got 'none'"):
        recipe.load_recipe("vilt-coco", ["loss.alpha=none"])
