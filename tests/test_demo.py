"""The demo, on a few scenes and a few steps; its full size is a benchmark."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast, get_args

import numpy as np
import pytest
import typed_commands
from processes import make_once

from dcdctl.cli import demo as demo_command
from dcdctl.core import demo, files, models
from dcdctl.core.bench import BenchConfig, ModelTimes, footprint
from dcdctl.core.config import to_table
from dcdctl.core.data import Corpus, Direction
from dcdctl.core.data.scenes import FAMILY_SIZE
from dcdctl.core.demo import DemoJob
from dcdctl.core.evaluation import EvalOptions, Evaluation, cascade, evaluate_model
from dcdctl.core.report import report
from dcdctl.core.teacher import read_cache
from dcdctl.core.training import load_recipe

QUICK = BenchConfig(
    num_images=4,
    batch_size=4,
    batch_sizes=(4,),
    num_warmup=1,
    num_repeats=2,
    min_rounds=2,
    budget_s=0.01,
    gallery_sizes=(20, 40),
    reference_gallery=20,
    num_fresh_processes=0,
    is_onnx_timed=False,
)
PAGE_ROWS: tuple[demo.RowName, ...] = ("teacher", "dual", "cascade", "fusion", "dual alone")
SETS = ("batch.size=8", "candidates.block_size=8", "candidates.captions_per_image=2")
DEPTHS = (2, 3)


@pytest.fixture(scope="module", autouse=True)
def _few_rounds() -> Iterator[None]:
    """Times of a cascade and operations of a model are measured on few queries and pairs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cascade, "MAX_ROUNDS", 3)
        patch.setattr(footprint, "NUM_COUNTED", 1)
        yield


def small(out: Path) -> DemoJob:
    return DemoJob(
        out=out, train_images=32, val_images=4, test_images=6, depths=DEPTHS, steps=2, sets=SETS, bench=QUICK
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, demo.DemoResult]:
    return make_once(tmp_path_factory, "demo", lambda out: (out, demo.run_demo(small(out))))


def test_the_table_has_teacher_cascades_students_and_baseline(finished: tuple[Path, demo.DemoResult]) -> None:
    _, result = finished
    assert [row.name for row in result.rows] == ["teacher", "cascade", "dual", "dual alone", "fusion", "fusion cascade"]
    assert [row.model for row in result.rows[:2]] == ["teacher (ViLT, 6 layers)", "dual, top 3 by the teacher"]
    assert (result.rows[0].query.speed_up, result.rows[0].large_query.speed_up) == (1.0, 1.0)
    for row in result.rows:
        assert (row.query.num_images, row.large_query.num_images) == (20, 40)
        assert row.query.speed_up == pytest.approx(result.rows[0].query.ms / row.query.ms)
        assert row.large_query.speed_up == pytest.approx(result.rows[0].large_query.ms / row.large_query.ms)
        assert row.evaluation.images == 6


@pytest.mark.parametrize(("name", "scorer"), [("cascade", demo.BUILT_IN_TEACHER), ("fusion cascade", "fusion")])
def test_a_cascade_orders_its_candidates_by_the_scores_of_its_re_ranker(
    finished: tuple[Path, demo.DemoResult], name: demo.RowName, scorer: str
) -> None:
    out, result = finished
    reranker = models.load_scorer(scorer if scorer == demo.BUILT_IN_TEACHER else str(out / scorer))
    options = EvalOptions(depths=(0, *DEPTHS))
    corpus = Corpus.open(out / "data", "test")
    again = evaluate_model(models.load(str(out / "dual")), corpus, rerank=reranker, options=options)
    assert result.row(name).evaluation.text_retrieval == again.text_retrieval
    assert result.row(name).evaluation.image_retrieval == again.image_retrieval
    assert result.row(name).evaluation.reranker == (scorer if scorer == demo.BUILT_IN_TEACHER else str(out / scorer))


def test_the_fusion_student_meets_scenes_of_the_same_family_as_negatives(
    finished: tuple[Path, demo.DemoResult],
) -> None:
    out, _ = finished
    corpus = Corpus.open(out / "data", "train")

    def share_with_sibling(folder: str) -> float:
        """The share of images with a candidate caption of another scene of their family."""
        candidates = read_cache(out / folder, corpus=corpus).candidates.texts_of_image
        family = corpus.caption_image // FAMILY_SIZE
        return float(
            np.mean([(family[candidates[image]] == image // FAMILY_SIZE).any() for image in range(corpus.num_images)])
        )

    assert share_with_sibling("cache-fusion") > 0.8


def test_each_cache_has_the_candidates_of_its_students_recipe_with_the_settings(
    finished: tuple[Path, demo.DemoResult],
) -> None:
    out, _ = finished
    for name, folder in demo.CACHES.items():
        assert read_cache(out / folder).plan["candidates"] == to_table(load_recipe(name, SETS).candidates)


@pytest.mark.parametrize(
    ("student_extrapolated", "teacher_extrapolated", "flags"),
    [(False, False, (False, False)), (False, True, (False, True)), (True, False, (True, True))],
)
def test_a_time_and_its_speed_up_tell_whether_they_were_extrapolated(
    student_extrapolated: bool, teacher_extrapolated: bool, flags: tuple[bool, bool]
) -> None:
    def times(seconds: float, extrapolated: bool) -> ModelTimes:
        """Made-up times: measured over 20 images, and over 40 as given."""
        durations = {
            20: SimpleNamespace(seconds=seconds, extrapolated=False),
            40: SimpleNamespace(seconds=2 * seconds, extrapolated=extrapolated),
        }
        return cast(ModelTimes, SimpleNamespace(query=lambda size, is_cached: durations[size] if is_cached else None))

    depths = (SimpleNamespace(ms_per_query=1.0), SimpleNamespace(ms_per_query=31.0))
    measured = cast(Evaluation, SimpleNamespace(depths=depths))
    row = demo._row(
        "cascade", "", measured, times(0.010, student_extrapolated), times(4.0, teacher_extrapolated), QUICK
    )
    assert (row.query.ms, row.query.speed_up) == pytest.approx((40.0, 100.0))
    assert (row.large_query.ms, row.large_query.speed_up) == pytest.approx((50.0, 160.0))
    assert (row.query.ms_extrapolated, row.query.speed_up_extrapolated) == (False, False)
    assert (row.large_query.ms_extrapolated, row.large_query.speed_up_extrapolated) == flags


def test_the_built_in_teacher_knows_more_than_chance(finished: tuple[Path, demo.DemoResult]) -> None:
    """Six pictures: four siblings and two of another family; by chance the sum of the R@1 is a third of 200 at most."""
    _, result = finished
    recalls = result.rows[0].evaluation
    assert recalls.text_retrieval["R@1"] + recalls.image_retrieval["R@1"] > 100


def test_what_it_leaves_behind_is_what_the_commands_leave(finished: tuple[Path, demo.DemoResult]) -> None:
    out, result = finished
    assert json.loads((out / "demo.json").read_text(encoding="utf-8"))["rows"] == result.to_json()["rows"]
    assert (out / "data" / "corpus.json").exists()
    assert all((out / folder / "cache.json").exists() for folder in ("cache", "cache-fusion"))
    assert {path.name for path in out.iterdir() if (path / "run.json").exists()} == {"fusion", "dual", "dual-alone"}


def test_it_ends_with_a_page_on_all_five(finished: tuple[Path, demo.DemoResult]) -> None:
    out, result = finished
    page = result.page.read_text(encoding="utf-8")
    assert result.page == out / "report.html"
    found = report.read_report([out / "dual", out / "fusion"], teacher=out / "teacher", baseline=out / "dual-alone")
    assert [one.role for one in found.models] == ["teacher", "student", "student", "student", "baseline"]
    for system in found.models:
        assert f'<th scope="row">{system.label}' in page
    assert [one.result.rsum for one in found.models if one.result] == [
        result.row(name).evaluation.rsum for name in PAGE_ROWS
    ]


def test_its_page_names_the_commands_that_train_the_same_students(finished: tuple[Path, demo.DemoResult]) -> None:
    out, _ = finished
    found = report.read_report([out / "dual", out / "fusion"], teacher=out / "teacher", baseline=out / "dual-alone")
    commands = {training.label: training.command for training in found.trainings}
    chosen = ["validation.every=50", "validation.keep=last", "optimizer.steps=2", *SETS]
    sets = [word for assignment in chosen for word in ("--set", assignment)]
    named = ["--data", str(out / "data"), "--cache", str(out / "cache-fusion"), "--teacher", "scenes-vilt"]
    assert commands["fusion"] == ["dcdctl", "distill", "demo-fusion", *named, *sets, "--out", str(out / "fusion")]
    assert "--cache" not in commands["dual-alone"]
    for command in commands.values():
        typed_commands.parse(shlex.join(command))


def test_its_page_has_a_time_for_every_model_and_a_measured_training(finished: tuple[Path, demo.DemoResult]) -> None:
    out, result = finished
    found = report.read_report([out / "dual", out / "fusion"], teacher=out / "teacher", baseline=out / "dual-alone")
    assert [one.label for one in found.models if one.times is None] == []
    # The page says of the cascade what the terminal says, in one gallery.
    (cascade,) = (one for one in found.models if one.is_cascade)
    shown = result.row("cascade").query
    assert cascade.gallery_size == shown.num_images == 20
    assert (cascade.query_ms[-1], cascade.times.speed_up) == pytest.approx((shown.ms, shown.speed_up))
    assert all("val_rsum" in one.metrics[-1] for one in found.trainings)


def test_a_second_demo_trains_nothing_again(finished: tuple[Path, demo.DemoResult], tmp_path: Path) -> None:
    first, result = finished
    out = shutil.copytree(first, tmp_path / "again")
    weights = out / "dual" / "model" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    again = demo.run_demo(small(out))
    assert weights.stat().st_mtime_ns == before
    measured = [
        [[row.evaluation.measures(way) for way in Direction] for row in found.rows] for found in (again, result)
    ]
    assert measured[0] == measured[1]


def test_the_built_in_teacher_is_small_enough_to_ship() -> None:
    folder = files.packaged("teachers") / demo.BUILT_IN_TEACHER
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 4 * 2**20


def made_up(tmp_path: Path) -> demo.DemoResult:
    """R@1 in both directions and times in milliseconds over 1,000 and 10,000 images; the latter is extrapolated for the
    teacher."""
    values = {
        "teacher": (100.0, 100.0, 600.0, 6000.0),
        "cascade": (96.9, 97.8, 15.0, 20.0),
        "dual": (25.0, 20.0, 2.0, 6.0),
        "dual alone": (30.0, 20.0, 2.0, 6.0),
        "fusion": (58.0, 100.0, 1200.0, 12000.0),
        "fusion cascade": (59.0, 52.0, 8.5, 13.0),
    }

    def cost(name: str, place: int) -> demo.QueryCost:
        return demo.QueryCost(
            num_images=(1000, 10000)[place],
            ms=values[name][2 + place],
            speed_up=values["teacher"][2 + place] / values[name][2 + place],
            ms_extrapolated=place == 1 and name == "teacher",
            speed_up_extrapolated=place == 1,
        )

    def measured(name: str) -> Evaluation:
        recalls = {way: {f"R@{k}": values[name][i] for k in (1, 5, 10)} for i, way in enumerate(Direction)}
        rsum, protocol = 3 * sum(values[name][:2]), SimpleNamespace(depth=20)
        return cast(Evaluation, SimpleNamespace(measures=recalls.get, rsum=rsum, protocol=protocol, images=64))

    rows = [
        demo.Row(name=name, model=name, evaluation=measured(name), query=cost(name, 0), large_query=cost(name, 1))
        for name in get_args(demo.RowName)
    ]
    return demo.DemoResult(rows, {"cpu": "Made-up CPU", "threads": 2}, tmp_path / "report.html")


def test_the_summary_says_what_was_won_and_lost(tmp_path: Path) -> None:
    found = made_up(tmp_path)
    large = "times as fast as the teacher alone over 10,000 images (extrapolated)"
    assert found.summary.splitlines() == [
        "With the dual student's first 20 re-ranked by the teacher, a search is 40.0 times as fast as the teacher "
        f"alone over 1,000 images and 300.0 {large}. "
        "R@1 changes by -3.1 points in text retrieval and -2.2 points in image retrieval.",
        "Without re-ranking, the dual student is 300.0 times as fast as the teacher alone over 1,000 images "
        f"and 1,000.0 {large}. R@1 changes by -75.0 points in text retrieval and -80.0 points in image retrieval.",
        "The teacher's scores changed the dual student's RSUM by -15.0.",
        f"The fusion student is 0.5 times as fast as the teacher alone over 1,000 images and 0.5 {large}. "
        "R@1 changes by -42.0 points in text retrieval and +0.0 points in image retrieval.",
    ]


def test_the_command_shows_the_table_its_extrapolated_times_and_the_summary(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = made_up(tmp_path)
    demo_command._show(result, tmp_path)
    shown = capsys.readouterr().out
    assert "64 new scenes, Made-up CPU, 2 threads" in shown
    head, cascade = (next(line for line in shown.splitlines() if word in line) for word in ("RSUM", "15.0 ms"))
    assert [cell.strip() for cell in head.strip("┃").split("┃")][-3:] == ["query", "speed-up", "10,000 images"]
    assert [cell.strip() for cell in cascade.strip("│").split("│")][-3:] == ["15.0 ms", "40x", "300x*"]
    assert "* extrapolated" in shown
    assert result.summary in shown
