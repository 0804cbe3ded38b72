"""Recipes: those that come with the package, and what a wrong one says."""

from __future__ import annotations

import json
import re
import tomllib

import pytest

from dcdctl.core.config import build, flatten, to_table
from dcdctl.core.errors import ConfigError
from dcdctl.core.training import recipe
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


def test_a_term_in_place_of_the_table_of_terms_shows_the_table():
    with pytest.raises(ConfigError, match=r"must be a table, got 'kl'; for example --set 'loss.terms=\{ kl = 1.0 \}'"):
        recipe.load_recipe("photos", ["loss.terms=kl"])


def test_a_recipe_that_is_not_there_names_the_most_similar_ones(tmp_path):
    with pytest.raises(ConfigError, match=r"no recipe vilt-flicker; did you mean .*vilt-flickr30k.*\? `dcdctl"):
        recipe.load_recipe("vilt-flicker")
    with pytest.raises(ConfigError, match="no recipe x; `dcdctl recipes` lists all"):
        recipe.load_recipe("x")
    with pytest.raises(ConfigError, match=r"mine\.toml does not exist; `dcdctl recipes` lists all"):
        recipe.load_recipe(str(tmp_path / "mine.toml"))


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (
            ["loss.alhpa=0.5"],
            r"unknown key loss\.alhpa; did you mean loss\.alpha\? known keys here: terms, alpha, temperature",
        ),
        (["loss.alpha=1.5"], r"loss\.alpha must lie in \[0, 1\], got 1\.5"),
        (["loss.alpha=nan"], r"loss\.alpha must lie in \[0, 1\], got nan"),
        (["loss.temperature=0"], r"loss\.temperature must lie in .*, got 0"),
        (
            ["loss.temperature=inf"],
            r"loss\.temperature must lie in .*, got inf; or auto",
        ),
        (["loss.temperature=half"], r"loss\.temperature must be float, got 'half'"),
        (
            ["loss.temperature=auto", "loss.terms={ ranking = 1 }", "loss.weight_group=none"],
            r"loss\.temperature is auto, and no loss of the recipe has a teacher: loss\.terms has ranking; leave it "
            r"out, or add a loss",
        ),
        (["loss.terms.dcdd=1"], r"loss\.terms has dcdd; known losses: dcd, "),
        (["loss.terms={}"], r"loss\.terms has nothing"),
        (["loss.terms.dcd=-1"], r"loss\.terms\.dcd must lie in .*, got -1"),
        (["loss.terms.kl=1"], "mixes losses on candidate lists with losses on all pairs"),
        (
            ["loss.terms={ infonce = 1 }", "loss.label_smoothing=1"],
            r"loss\.label_smoothing must lie in \[0, 1\), got 1",
        ),
        (
            ["loss.label_smoothing=0.1"],
            r"loss\.label_smoothing is 0\.1, and no loss of the recipe reads it: loss\.terms has dcd; set it to 0.0, "
            r"or add one of infonce",
        ),
        (["loss.weight_group=0"], r"loss\.weight_group must lie in .*, got 0"),
        (["loss.weight_group=half"], r"loss\.weight_group must be int, got 'half'"),
        (
            ["loss.weight_group=8", "loss.terms={ mse = 1, ranking = 1 }"],
            r"loss\.weight_group is 8, and no loss .* loss\.terms has mse, ranking; set it to none, or add one of "
            r"dcd, dcd-released, wsl-r",
        ),
        (["batch.size=1"], r"batch\.size must lie in .*, got 1"),
        (["batch.hard_negatives=64"], r"hard_negatives must be at most batch\.random_negatives, got 64 of 63"),
        (["batch.directions=[]"], r"batch\.directions must not be empty, got \[\]"),
        (['batch.directions=["text", "text"]'], r"batch\.directions must not repeat an item, got \['text', 'text'\]"),
        (['batch.directions=["sideways"]'], r"batch\.directions\[0\] must be one of text, image, got 'sideways'"),
        (["optimizer.lr=0"], r"optimizer\.lr must lie in .*, got 0"),
        (["optimizer.lr=nan"], r"optimizer\.lr must lie in .*, got nan"),
        (["optimizer.epochs=-1"], r"optimizer\.epochs must lie in .*, got -1"),
        (["optimizer.max_grad_norm=0"], r"optimizer\.max_grad_norm must lie in"),
        (["optimizer.warmup_share=2"], r"optimizer\.warmup_share must lie in \[0, 1\], got 2"),
        (["optimizer.betas=[0.9]"], r"optimizer\.betas must have 2 items, got \[0\.9\]"),
        (["optimizer.weight_decay=-1"], r"optimizer\.weight_decay must lie in"),
        (["optimizer.steps=0"], r"optimizer\.steps must lie in .*, got 0"),
        (
            ["candidates.kind=near"],
            r"candidates\.kind must be one of random, lexical, embedding, blocks, got 'near'",
        ),
        (["seed=-1"], "seed must lie in .*, got -1"),
        (["model.hidden_size=0"], r"model\.hidden_size must lie in .*, got 0"),
        (["model.max_text_len=0"], r"model\.max_text_len must lie in .*, got 0"),
        (["model.dropout=1"], r"model\.dropout must lie in \[0, 1\), got 1"),
        (
            ["model.kind=dual", "model.start=new"],
            r"model\.layers is unknown in a dual model; a fusion model has it; leave it",
        ),
        (["model.kind=dual", "model.layers=[]"], r"cannot start from a fusion teacher; set model\.start to new"),
        (["model.vision=a/b", "model.start=new"], r"--vision and --text \(model\.vision and model\.text\) go together"),
        (["model.vision=a/b"], r"model\.vision is for model\.start new, and it is teacher; leave it out"),
        (["model.vision=a/b", "model.text=c/d"], r"model\.text is for model\.start new, and it is teacher"),
    ],
)
def test_a_wrong_recipe_names_the_field_and_the_value(sets, message):
    with pytest.raises(ConfigError, match=message):
        recipe.load_recipe("vilt-flickr30k", sets)


def test_an_error_names_the_recipe_file_and_that_a_set_may_be_wrong(tmp_path):
    path = tmp_path / "own.toml"
    path.write_text("[loss]\nalpha = 7\n")
    with pytest.raises(ConfigError, match=rf"^{re.escape(str(path))}: loss\.alpha must lie in "):
        recipe.load_recipe(str(path))
    path.write_text("[loss]\nalpha = 0.5\n")
    with pytest.raises(ConfigError, match=r"^own\.toml with --set: loss\.alpha must lie in .* got 7"):
        recipe.load_recipe(str(path), ["loss.alpha=7"])


def test_an_unknown_key_of_a_recipe_file_is_named_with_the_file(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("[gandidates]\n")
    with pytest.raises(
        ConfigError, match=r"mine\.toml: unknown key gandidates; did you mean candidates\? known keys here: description"
    ):
        recipe.load_recipe(str(path))
