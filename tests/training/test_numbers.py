"""The numbers of a recipe: each has a range with two ends, and what is too large for the memory is refused in a dry run
and in the run, before anything is made."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pytest
import torch
from tiny import make_corpus, make_pool
from training_steps import TINY_DUAL

from dcdctl.core import config, machine, models
from dcdctl.core.config import Range
from dcdctl.core.data import StreamConfig
from dcdctl.core.errors import ConfigError
from dcdctl.core.teacher import CandidateConfig, false_negative_filter
from dcdctl.core.training import (
    InputRefs,
    TrainingJob,
    TrainingOptions,
    initial_model,
    load_recipe,
    preview,
    train_model,
)
from dcdctl.core.training.losses import weights
from dcdctl.core.training.losses.table import LossConfig
from dcdctl.core.training.recipe import (
    BatchConfig,
    CaptionsConfig,
    DualConfig,
    FusionConfig,
    LateConfig,
    OptimizerConfig,
    PoolConfig,
    QueryConfig,
    Recipe,
    ValidationConfig,
)
from dcdctl.core.training.settled import choose_pairs

CAPTIONS = [[f"a {color} {thing} {place}" for place in ("here", "there")] for color in ("red", "blue", "tan")
            for thing in ("car", "dog", "hat")]  # fmt: skip
NEW_FUSION = ["model.hidden_size=32", "model.num_layers=1", "model.image_size=32", "batch.size=4"]
LISTS = [*TINY_DUAL, "loss.terms={ infonce-hard = 1.0 }"]
LATE = [*TINY_DUAL, "model.kind=late"]
QUERY = ["model.text=", "model.num_text_layers=1"]
TABLES: dict[str, tuple[Any, list[str]]] = {
    "": (Recipe, TINY_DUAL),
    "candidates.": (CandidateConfig, LISTS),
    "model. of fusion": (FusionConfig, NEW_FUSION),
    "model. of dual": (DualConfig, TINY_DUAL),
    "model. of late": (LateConfig, LATE),
    "model. of query": (QueryConfig, QUERY),
    "loss.": (LossConfig, TINY_DUAL),
    "batch.": (BatchConfig, LISTS),
    "captions.": (CaptionsConfig, TINY_DUAL),
    "pool.": (PoolConfig, TINY_DUAL),
    "stream.": (StreamConfig, TINY_DUAL),
    "optimizer.": (OptimizerConfig, TINY_DUAL),
    "validation.": (ValidationConfig, TINY_DUAL),
}
RECIPES = {FusionConfig: "tiny-teacher", QueryConfig: "query-static"}
ODD = ["-1", "0", "1e308", "nan", "inf", str(10**20), str(10**330), str(2**63), str(2**31)]


def numbers_in(hint: Any, constraints: tuple[Any, ...] = ()) -> Iterator[tuple[Any, str, Range | None]]:
    """Each type of number in an annotation, how a recipe writes it, and its range."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint in (int, float):
        yield hint, "{}", next((each for each in constraints if isinstance(each, Range)), None)
    elif origin is Annotated:
        yield from numbers_in(arguments[0], arguments[1:])
    elif origin in (types.UnionType, typing.Union):
        for kind in arguments:
            yield from numbers_in(kind)
    elif origin is tuple:
        for kind, _, found in numbers_in(arguments[0]):
            yield kind, "[{}, 0.9]" if len(arguments) == 2 and arguments[1] is not Ellipsis else "[{}]", found
    elif origin is dict:
        for kind, _, found in numbers_in(arguments[1]):
            yield kind, "{{ infonce = {} }}", found


def fields_of(table: str) -> list[tuple[str, Any, str, Range | None]]:
    """The numbers of a table: their dotted names, types and forms, and their ranges."""
    cls, _ = TABLES[table]
    hints = typing.get_type_hints(cls, include_extras=True)
    return [
        (f"{table.partition(' ')[0]}{field.name}", *number)
        for field in dataclasses.fields(cls)
        for number in numbers_in(hints[field.name])
    ]


def test_all_tables_of_a_recipe_are_here():
    named = {table.partition(".")[0] for table in TABLES if table}
    assert named == {name for name, value in vars(Recipe()).items() if dataclasses.is_dataclass(value)}
    assert len([field for table in TABLES for field in fields_of(table)]) > 90


@pytest.mark.parametrize("table", TABLES)
def test_every_number_has_a_range_with_two_ends_that_integers_of_64_bits_hold(table):
    for name, kind, _, found in fields_of(table):
        assert found is not None, name
        assert found.low < found.high, name
        assert np.isfinite([found.low, found.high]).all(), name
        assert kind is float or -(2**62) < found.low < found.high < 2**62, name


@pytest.fixture(scope="module")
def refs(tmp_path_factory) -> InputRefs:
    return InputRefs(data=make_corpus(tmp_path_factory.mktemp("numbers") / "corpus", CAPTIONS, has_colors=True).folder)


def job_of(recipe: str, sets: list[str], out: Path = Path("unused")) -> TrainingJob:
    return TrainingJob("finetune-teacher" if recipe == "tiny-teacher" else "distill", recipe, sets, out)


@pytest.mark.parametrize("table", TABLES)
def test_an_odd_number_is_refused_by_name_or_the_dry_run_works_with_it(table, refs):
    cls, sets = TABLES[table]
    recipe, outcomes = RECIPES.get(cls, "tiny-student"), []
    for name, _, form, found in fields_of(table):
        for odd in ODD:
            given = [*sets, f"{name}={form.format(odd)}"]
            value = float(odd) if len(odd) < 300 else np.inf
            assert found is not None
            is_inside = found.admits(value)
            try:
                load_recipe(recipe, given)
                # A query student has no images.
                outcome = "" if cls is QueryConfig else str(preview(job_of(recipe, given), refs, TrainingOptions()))
                assert is_inside, f"{name}={odd} is outside {found.demand}"
            except ConfigError as error:
                outcome = str(error)
                assert name in outcome, outcome
                assert is_inside or found.demand in outcome or "must be" in outcome, outcome
            outcomes.append(outcome)
    assert outcomes


TOO_LARGE = {
    "layers of a fusion model": ("tiny-teacher", [*NEW_FUSION, "model.hidden_size=65536"], "the weights of this model"),
    "layers of a dual": ("tiny-student", [*TINY_DUAL, "model.hidden_size=65536"], "the weights of this model"),
    "text layers": (
        "tiny-student",
        [*TINY_DUAL, "model.hidden_size=8192", "model.num_text_layers=1000"],
        "the weights",
    ),
    "a late model's layers": ("tiny-student", [*LATE, "model.hidden_size=65536"], "the weights of this model"),
    "positions of an image": ("tiny-teacher", [*NEW_FUSION, "model.image_size=65536", "model.patch_size=1"], "the wei"),
    "pixels of a batch": ("tiny-student", [*TINY_DUAL, "model.image_size=32768", "model.patch_size=512"], "images of"),
    "drawn pairs": ("tiny-student", [*LISTS, "batch.size=1048576", "batch.random_negatives=1048576"], "pairs of a st"),
}


@pytest.mark.parametrize("case", TOO_LARGE)
def test_what_is_larger_than_the_memory_is_refused_with_both_sizes_before_it_is_made(case, refs, tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "memory_bytes", lambda: 8 * 10**9)
    recipe, sets, what = TOO_LARGE[case]
    message = rf"{what}.* take at least [\d,.]+ GB, and there are 8\.00 GB of memory; set "
    with pytest.raises(ConfigError, match=message):
        preview(job_of(recipe, sets), refs, TrainingOptions())
    with pytest.raises(ConfigError, match=message):
        train_model(job_of(recipe, sets, tmp_path / "run"), refs, options=TrainingOptions())
    assert not (tmp_path / "run").exists()


def test_the_images_and_texts_of_a_pool_are_counted_as_its_batches_have_them(tmp_path, monkeypatch):
    pool = make_pool(tmp_path / "pool", CAPTIONS)
    recipe = load_recipe("tiny-student", [*TINY_DUAL, "loss.terms={ kl = 1.0 }", "pool.images=7", "pool.texts=500"])
    monkeypatch.setattr(machine, "memory_bytes", lambda: 7 * 12 * 64**2)
    pairs = choose_pairs(pool, recipe, None, false_negative_filter(pool, None))
    assert pairs.size_of_step == (7, 7 * 18)
    monkeypatch.setattr(machine, "memory_bytes", lambda: 7 * 12 * 64**2 - 1)
    with pytest.raises(
        ConfigError, match=r"the 7 images of a step take at least 344\.1 KB, and there are 344\.1 KB of"
    ):
        pairs.check_memory()


@pytest.mark.parametrize(
    ("recipe", "sets"),
    [
        ("tiny-teacher", NEW_FUSION),
        ("tiny-student", TINY_DUAL),
        ("tiny-student", LATE),
        ("query-static", [*QUERY, "model.hidden_size=32"]),
    ],
)
def test_the_counted_weights_are_most_of_a_new_model_and_no_more_than_it_has(recipe, sets):
    loaded = load_recipe(recipe, [*sets, "model.vocab_size=50"])
    captions = [text for texts in CAPTIONS for text in texts]
    space = models.QuerySpace(kind="dual", dim=8, logit_scale=1.0, teacher_name="another program")
    model = initial_model.make_model(loaded, captions, space if recipe == "query-static" else None)
    assert 0.6 < loaded.model.num_weights / sum(each.numel() for each in model.parameters()) <= 1
    pretrained = load_recipe("clip-finetune").model
    assert (pretrained.num_weights, pretrained.bytes_per_image) == (0, 0)


def test_the_memory_of_a_limit_counts(monkeypatch, tmp_path):
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(machine, "_CGROUP_LIMITS", (limit,))
    whole = machine.memory_bytes()
    limit.write_text("max\n")
    assert machine.memory_bytes() == whole > 10**8
    limit.write_text("123456\n")
    assert machine.memory_bytes() == 123456


def test_weights_of_a_group_take_the_memory_of_the_batch():
    """Whatever number of lists the recipe says; padding to it took 20 GB for a group of 2^31."""
    scores = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    whole = weights.dcd_weights(scores, ~scores.isnan())
    for group in (4, 5, config.MOST):
        found = weights.dcd_weights(scores, ~scores.isnan(), group=group)
        assert torch.equal(found.nll_B, whole.nll_B)
        assert torch.equal(found.kd_B, whole.kd_B)
