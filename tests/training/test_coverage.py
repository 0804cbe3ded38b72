"""The different negatives of a training, counted as a loop over all its batches counts them; and what is said about
them."""

from __future__ import annotations

from math import comb
from typing import Any

import numpy as np
import pytest
from batches import Indices, list_batches, recipe_batches
from made_caches import build_cache
from open_inputs import OpenInputs

from dcdctl.core import training
from dcdctl.core.data import Corpus, Direction
from dcdctl.core.teacher import CandidateConfig, TeacherCache
from dcdctl.core.training import TrainingJob, TrainingOptions, coverage, initial_model, runs
from dcdctl.core.training.batches.lists import CandidateLists
from dcdctl.core.training.batches.step_pairs import CorpusBatches, Coverage
from dcdctl.core.training.recipe import BatchConfig, load_recipe

DRAWN, KEPT, STEPS = 3, 2, 64
OPTIONS = TrainingOptions()
TINY = ["model.layers=[0, 2]", "batch.size=10", f"batch.random_negatives={DRAWN}", f"batch.hard_negatives={KEPT}"]


@pytest.fixture(scope="module")
def caches(corpus, teacher, tmp_path_factory) -> dict[int, TeacherCache]:
    """Caches with as many candidates as are drawn, and ten times as many."""
    folder = tmp_path_factory.mktemp("caches")
    return {
        times: build_cache(corpus, teacher, folder / str(times), CandidateConfig(per_query=times * DRAWN))
        for times in (1, 10)
    }


def batches_of(corpus: Corpus, cache: TeacherCache | None, **settings: Any) -> CorpusBatches:
    config = BatchConfig(**{"size": 10, "random_negatives": DRAWN, "hard_negatives": KEPT, **settings})
    return list_batches(Indices(corpus), config, 0, cache)  # type: ignore[arg-type]


def count_by_hand(
    batches: CorpusBatches, queries: dict[Direction, Any], num_steps: int = STEPS
) -> dict[Direction, tuple[float, float]]:
    """Lists and different negatives per query, from the first batches of the training."""
    met: dict[Direction, dict[int, list[int]]] = {
        direction: {int(query): [] for query in queries[direction]} for direction in queries
    }
    lists = dict.fromkeys(queries, 0)
    for step in range(num_steps):
        batch: Any = batches[step]
        image_BN, text_BN = batch.images[batch.image_ix_RC.numpy()], batch.texts[batch.text_ix_RC.numpy()]
        for images, texts in zip(image_BN.tolist(), text_BN.tolist(), strict=True):
            direction = Direction.TEXT if len(set(images)) == 1 else Direction.IMAGE
            query, negatives = (images[0], texts[1:]) if direction == Direction.TEXT else (texts[0], images[1:])
            if direction in met and query in met[direction]:
                met[direction][query] += negatives
                lists[direction] += 1
    return {
        direction: (
            lists[direction] / len(found),
            float(np.mean([len(set(negatives)) for negatives in found.values()])),
        )
        for direction, found in met.items()
    }


def expected_different(cached: int, num_lists: float, drawn: int = DRAWN, kept: int = KEPT) -> float:
    """Different negatives in lists of the `kept` hardest of `drawn`: the sum over ranks of the chance to be kept at
    least once."""
    total = 0.0
    for better in range(cached):
        # Drawn, with fewer than `kept` of the better ones.
        ways = sum(comb(better, n) * comb(cached - 1 - better, drawn - 1 - n) for n in range(kept))
        total += 1 - (1 - ways / comb(cached, drawn)) ** num_lists
    return total


@pytest.mark.parametrize("directions", [("text", "image"), ("text",)])
def test_different_negatives_are_those_of_all_batches(corpus, caches, directions, monkeypatch):
    monkeypatch.setattr(coverage, "MAX_QUERIES", 1000)
    found = {}
    for times, cache in caches.items():
        batches = batches_of(corpus, cache, directions=directions)
        counted = found[times] = coverage.count_different_negatives(batches.pairs, STEPS)
        by_hand = count_by_hand(
            batches, {direction: batches.pairs.queries(direction) for direction in batches.pairs.config.directions}
        )
        for direction, count in counted.items():
            assert (count.lists, count.different) == pytest.approx(by_hand[direction], abs=0.01)
            assert (count.candidates, count.drawn, count.kept) == (times * DRAWN, DRAWN, KEPT)
            assert count.queries == {Direction.TEXT: 32, Direction.IMAGE: 160}[direction]
    assert set(found[1]) == set(directions)
    # Four epochs of 160 captions, in turn for image and caption.
    num_lists = 4 * 5 / len(directions)
    assert (found[1]["text"].lists, found[1]["text"].different) == (num_lists, KEPT)
    assert found[10]["text"].different == pytest.approx(expected_different(30, num_lists), rel=0.1)


def test_a_sample_of_queries_is_counted_as_by_hand_and_the_same_one_each_time(corpus, caches, monkeypatch):
    monkeypatch.setattr(coverage, "MAX_QUERIES", 7)
    chosen = []

    class Seen(CandidateLists):
        def samples_of(self, direction: Direction, queries: Any, num_steps: int) -> Any:
            chosen.append((direction, queries))
            return super().samples_of(direction, queries, num_steps)

    batches = batches_of(corpus, caches[10])
    batches.pairs = Seen(corpus, batches.pairs.recipe, caches[10], batches.pairs.false_negatives)
    counted = coverage.count_different_negatives(batches.pairs, STEPS)
    assert [len(set(queries.tolist())) for _, queries in chosen] == [7, 7]
    by_hand = count_by_hand(batches, dict(chosen))
    for direction, count in counted.items():
        assert (count.lists, count.different) == tuple(round(number, 2) for number in by_hand[direction])
    assert coverage.count_different_negatives(batches.pairs, STEPS) == counted
    # Long trainings count fewer queries, so that the count stays cheap: an image has 10 lists here.
    monkeypatch.setattr(coverage, "MAX_LISTS", 30)
    assert coverage.count_different_negatives(batches.pairs, STEPS)["text"].queries == 3
    # Of more lists than may be counted one query has the first ones: those of 5 x 32 captions in two directions.
    for name, limit in (("MAX_LISTS", 5), ("MAX_DRAWN", 5 * DRAWN)):
        monkeypatch.setattr(coverage, "MAX_LISTS", 30)
        monkeypatch.setattr(coverage, name, limit)
        chosen.clear()
        count = coverage.count_different_negatives(batches.pairs, STEPS)[Direction.TEXT]
        first_ones = count_by_hand(batches, dict(chosen[:1]), num_steps=2 * 5 * 32 // 10)[Direction.TEXT]
        assert (count.queries, count.lists, count.different) == (1, 10, first_ones[1])


def test_without_a_cache_lists_are_drawn_from_the_whole_corpus(corpus):
    count = coverage.count_different_negatives(batches_of(corpus, None, random_negatives=4).pairs, STEPS)
    assert (count["text"].candidates, count["image"].candidates) == (155, 31)
    assert count["text"].kept == 4
    assert 30 < count["text"].different <= 40
    assert not count["text"].is_drained


def test_a_cache_that_is_drawn_empty_is_a_warning_with_the_way_out(corpus, caches, monkeypatch):
    monkeypatch.setattr(coverage, "MAX_QUERIES", 1000)

    def lines(cache: TeacherCache, *sets: str) -> list[str]:
        settings = load_recipe("tiny-student", [*TINY, f"optimizer.steps={STEPS}", *sets])
        batches = recipe_batches(Indices(corpus), settings, cache)  # type: ignore[arg-type]
        preview = coverage.measure_preview(settings, [cache], batches.pairs)
        return [*preview.lines(), *preview.warnings()]

    random = ["candidates.kind=random", "candidates.per_query=3"]
    *_, met, first, second = lines(caches[1], *random)
    # Queries take turns by the number of the list, so that some captions have none.
    assert met == (
        "each image meets 2 different negatives in 10 lists (3 of 3 candidates drawn, 2 kept); "
        "each caption meets 1.8 different negatives in 2 lists (3 of 3 candidates drawn, 2 kept)"
    )
    found = (
        "warning: 3 of the 3 cached candidates of each {} are drawn for every list, so all {} lists have nearly "
        "the same negatives; {}"
    )
    more = "cache 10 for each drawn one, --set candidates.per_query=30"
    assert [first, second] == [found.format("image", 10, more), found.format("caption", 2, more)]
    for_blocks = lines(caches[1], "candidates.kind=blocks", "candidates.captions_per_image=5")[-2:]
    assert all(line.endswith("by a larger candidates.block_size") for line in for_blocks)
    assert len(lines(caches[10], *random)) == 3
    # A query with one list meets nothing twice.
    assert len(lines(caches[1], *random, "batch.directions=['image']")) == 3
    few = load_recipe("tiny-student", [*TINY, "optimizer.steps=16", "batch.directions=['image']"])
    batches = recipe_batches(Indices(corpus), few, caches[1])  # type: ignore[arg-type]
    assert not list(coverage.measure_preview(few, [caches[1]], batches.pairs).warnings())


@pytest.mark.parametrize(
    ("num_lists", "drawn", "candidates", "is_drained"),
    [(2, 4, 5, True), (1.99, 4, 5, False), (2, 3, 4, False), (50, 3, 3, True), (50, 79, 100, False)],
)
def test_a_query_is_drained_by_two_lists_that_draw_four_fifths(num_lists, drawn, candidates, is_drained):
    count = coverage.DifferentNegatives(
        queries=1, lists=num_lists, candidates=candidates, drawn=drawn, kept=1, different=1
    )
    assert count.is_drained == is_drained


def test_negatives_are_counted_for_lists_alone(corpus, caches):
    def num_counted(*sets: str) -> int:
        settings = load_recipe("tiny-student", [*TINY, f"optimizer.steps={STEPS}", *sets])
        batches = recipe_batches(Indices(corpus), settings, caches[10])  # type: ignore[arg-type]
        return len(coverage.measure_preview(settings, [caches[10]], batches.pairs).negatives)

    assert (num_counted(), num_counted("loss.terms={kl=1.0}")) == (2, 0)


def test_a_preview_names_each_of_several_caches_that_differs(corpus, caches):
    settings = load_recipe("tiny-student", [*TINY, "candidates.per_query=3", "optimizer.epochs=1.5"])
    batches = recipe_batches(Indices(corpus), settings, caches[1])  # type: ignore[arg-type]

    def differences(*times: int) -> list[str]:
        preview = coverage.measure_preview(settings, [caches[each] for each in times], batches.pairs)
        return [line for line in preview.differences if "per_query" in line]

    assert differences(1, 10) == ["candidates.per_query is 3 in the recipe and 30 in cache 2"]
    assert differences(10) == ["candidates.per_query is 3 in the recipe and 30 in the cache"]


def test_a_dual_teacher_covers_every_pair(corpus):
    settings = load_recipe("tiny-student", [*TINY, "optimizer.steps=48"])
    batches = recipe_batches(Indices(corpus), settings, None)  # type: ignore[arg-type]
    plain, taught = (
        coverage.measure_preview(settings, [], batches.pairs, dual_teachers=kind)  # type: ignore[arg-type]
        for kind in ("none", "embedded")
    )
    assert (plain.inputs(), taught.inputs()) == ({}, {"covered_queries": 1.0, "scored_share": 1.0})
    line = "the dual teacher scores every pair, so batches are drawn as without a teacher"
    assert (line in plain.lines(), line in taught.lines()) == (False, True)
    # Lists of all 3 drawn negatives, and of the 2 that the teacher keeps.
    assert (plain.work_per_step, taught.work_per_step) == (("pairs", 10 * 4), ("pairs", 10 * 3))
    # 16 batches of 10 have the 160 captions.
    assert (taught.batches_per_epoch, taught.to_json()["epochs"]) == (16, 3)


def test_shares_in_run_json_have_four_digits(corpus):
    share = Coverage(queries=1 / 3, of_queries="the captions", scored=2 / 3, hint="")
    preview = coverage.Preview(recipe=load_recipe("tiny-student"), batches_per_epoch=None, coverage=share)
    assert preview.inputs() == {"covered_queries": 0.3333, "scored_share": 0.6667}
    assert preview.to_json()["epochs"] is None


@pytest.mark.parametrize(
    ("has_cache", "sets", "work"),
    [
        # Lists of a positive and 2 kept negatives, of a positive and all 3 drawn ones, and all pairs of the batch.
        (True, [], ("pairs", 10 * 3)),
        (False, [], ("pairs", 10 * 4)),
        (True, ["loss.terms={kl=1.0}"], ("pairs", 10 * 10)),
        (True, ["model.kind=dual", "model.start=new", "model.layers=[]"], ("images", 10)),
    ],
)
def test_a_fusion_student_computes_pairs_and_others_images(corpus, caches, has_cache, sets, work):
    settings = load_recipe("tiny-student", [*TINY, *sets])
    used = [caches[10]] if has_cache else []
    batches = recipe_batches(Indices(corpus), settings, *(used or [None]))  # type: ignore[arg-type]
    preview = coverage.measure_preview(settings, used, batches.pairs)
    assert preview.work_per_step == work
    assert preview.to_json()[f"{work[0]}_per_step"] == work[1]


def test_a_dry_run_gives_the_numbers_of_run_json_and_writes_and_loads_nothing(
    corpus, teacher, caches, tmp_path, monkeypatch
):
    sets = [*TINY, "optimizer.steps=4", "optimizer.save_every=2"]
    job = TrainingJob("distill", "tiny-student", sets, tmp_path / "run")
    inputs = OpenInputs(corpus, [caches[10]], teacher)
    with monkeypatch.context() as patched:
        patched.setattr(initial_model, "make_model", None)
        preview = training.preview(job, inputs, OPTIONS)
    assert not (tmp_path / "run").exists()
    lines: list[str] = []
    run = training.train_model(job, inputs, options=OPTIONS, say=lines.append)
    facts = run.facts()
    assert preview.measured() == {name: facts[name] for name in ("different_negatives", "captions")}
    assert facts["different_negatives"]["per_image"]["candidates"] == 30
    assert facts["inputs"].items() >= preview.inputs().items()
    assert (preview.num_steps, preview.batches_per_epoch, run.metrics()[-1]["step"]) == (4, 16, 3)
    assert f"each image meets {preview.negatives[Direction.TEXT]}" in lines[-1]
    assert next(preview.facts()) == "steps: 4"


def test_a_run_resumes_whatever_count_its_run_json_has(tmp_path):
    settings = load_recipe("tiny-student")
    runs.start_run(
        tmp_path / "run",
        settings,
        "distill",
        {"corpus": "a"},
        resume=False,
        measured={"different_negatives": {"per_image": 1}},
    )
    run = runs.start_run(tmp_path / "run", settings, "distill", {"corpus": "a"}, resume=True)
    assert run.facts()["different_negatives"] == {"per_image": 1}
