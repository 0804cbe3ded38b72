"""The demo, on a few scenes and a few steps; its full size is a benchmark."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from processes import make_once
from speed_ups import check_speed_ups

from dcdctl.cli import demo as demo_command
from dcdctl.core import models
from dcdctl.core.bench import BenchConfig, footprint
from dcdctl.core.config import to_table
from dcdctl.core.data import Corpus, Direction
from dcdctl.core.evaluation import EvalOptions, Evaluation, cascade, evaluate_model
from dcdctl.core.report import report
from dcdctl.core.study import DemoJob, demo
from dcdctl.core.teacher import read_cache
from dcdctl.core.training import Run, load_recipe

QUICK = BenchConfig(
    num_images=4,
    batch_size=4,
    batch_sizes=(4,),
    num_warmup=1,
    num_repeats=2,
    min_rounds=1,
    budget_s=0.01,
    gallery_sizes=(8,),
    reference_gallery=8,
    is_onnx_timed=False,
)
PAGE_ROWS = ("picked", "cascade", "all", "few")
SETS = ("batch.size=8", "candidates.per_query=3")


@pytest.fixture(scope="module", autouse=True)
def _few_rounds() -> Iterator[None]:
    """Times of a cascade and operations of a model are measured on few queries and pairs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cascade, "MAX_ROUNDS", 3)
        patch.setattr(footprint, "NUM_COUNTED", 1)
        yield


def small(out: Path) -> DemoJob:
    return DemoJob(
        out=out,
        train_images=32,
        few_images=8,
        val_images=4,
        test_images=8,
        num_queries=4,
        depth=3,
        steps=2,
        sets=SETS,
        bench=QUICK,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, demo.DemoResult]:
    return make_once(tmp_path_factory, "demo", lambda out: (out, run_in(out)))


def run_in(out: Path) -> demo.DemoResult:
    """A demo in a folder that is named from beside it, as one types it; a copy of it is then the same demo."""
    with contextlib.chdir(out.parent):
        return demo.run_demo(small(Path(out.name)))


def test_the_table_has_the_teacher_the_cascade_and_three_students(finished: tuple[Path, demo.DemoResult]) -> None:
    _, result = finished
    assert [(row.name, row.model) for row in result.rows] == [
        ("teacher", "teacher (ViLT, 6 layers)"),
        ("cascade", "captions of 8 scenes and the teacher's picks, top 3 by the teacher"),
        ("picked", "captions of 8 scenes and the teacher's picks"),
        ("few", "captions of 8 scenes"),
        ("all", "captions of 32 scenes"),
    ]
    assert result.gallery_size == 8
    for row in result.rows:
        assert row.speed_up == result.rows[0].query_ms / row.query_ms
        assert (row.evaluation is None) == (row.name == "teacher")
        assert row.evaluation is None or row.evaluation.images == 8


def test_the_cascade_orders_its_candidates_by_the_scores_of_the_teacher(
    finished: tuple[Path, demo.DemoResult],
) -> None:
    out, result = finished
    corpus = Corpus.open(out / "data", "test")
    teacher, picked = models.load_scorer(demo.BUILT_IN_TEACHER), models.load(str(out / "picked"))
    again = evaluate_model(picked, corpus, rerank=teacher, options=EvalOptions(depths=(0, 3)))
    row = result.row("cascade")
    assert row.evaluation.text_retrieval == again.text_retrieval
    assert row.evaluation.image_retrieval == again.image_retrieval
    assert row.evaluation.reranker == demo.BUILT_IN_TEACHER


def test_the_recall_over_the_gallery_is_that_of_its_captions_among_all_images(
    finished: tuple[Path, demo.DemoResult],
) -> None:
    out, result = finished
    gallery = Corpus.open(out / "data", "test")
    # The image of a caption, and with it the rank, does not depend on how many captions are asked.
    ranks = evaluate_model(models.load(str(out / "picked")), gallery).rankings.image.positions_QR[:4, 0]
    assert result.row("picked").gallery_recall == 100 * np.mean(ranks == 1)


def test_the_student_of_few_captions_proposes_and_the_others_learn_from_what_they_are_named_for(
    finished: tuple[Path, demo.DemoResult],
) -> None:
    out, _ = finished
    cache = read_cache(out / "picked-rounds" / "cache-1")
    assert cache.plan["candidates"] == to_table(
        replace(load_recipe(demo.RECIPE, SETS).candidates, model=f"{out.name}/few")
    )
    corpus, pool = Corpus.open(out / "data", "train"), Corpus.open(out / "pool", "train")
    # The pool has the scenes and the captions that the first student does not know, each caption once.
    known = set(corpus.captions[: 5 * 8])
    assert pool.num_images == 24
    assert set(pool.captions) == set(corpus.captions[5 * 8 :])
    assert pool.captions != corpus.captions[5 * 8 :]
    assert not known & set(pool.captions) - set(corpus.captions[5 * 8 :])
    runs = {name: Run(out / name).facts() for name in demo.STUDENTS}
    assert {name: run["inputs"]["images"] for name, run in runs.items()} == {"few": 8, "picked": 8, "all": 32}
    terms = {name: set(run["recipe"]["loss"]["terms"]) for name, run in runs.items()}
    assert terms == {"few": {"infonce"}, "picked": {"infonce", "kl"}, "all": {"infonce"}}
    assert runs["picked"]["inputs"]["pool"]["corpus"] == pool.fingerprint
    assert len(runs["picked"]["rounds"]) == 1


def test_the_built_in_teacher_knows_more_than_chance(finished: tuple[Path, demo.DemoResult]) -> None:
    """It finds more than half of four captions first among eight scenes, which are two families of siblings."""
    _, result = finished
    assert result.rows[0].gallery_recall > 50


def test_what_it_leaves_behind_is_what_the_commands_leave(finished: tuple[Path, demo.DemoResult]) -> None:
    out, result = finished
    assert json.loads((out / "demo.json").read_text(encoding="utf-8"))["rows"] == result.to_json()["rows"]
    assert (out / "data" / "corpus.json").exists()
    assert {path.name for path in out.iterdir() if (path / "run.json").exists()} == set(demo.STUDENTS)


def test_it_ends_with_a_page_on_all_that_were_evaluated(finished: tuple[Path, demo.DemoResult]) -> None:
    out, result = finished
    page = (out / "report.html").read_text(encoding="utf-8")
    assert result.page == Path(out.name) / "report.html"
    found = report.read_report([out / "picked", out / "all"], baseline=out / "few")
    assert [one.role for one in found.models] == ["student", "student", "student", "baseline"]
    for system in found.models:
        assert f'<th scope="row">{system.label}' in page
    assert [one.result.rsum for one in found.models if one.result] == [
        result.row(name).evaluation.rsum for name in PAGE_ROWS
    ]


def test_its_page_has_a_time_for_every_model_and_a_measured_training(finished: tuple[Path, demo.DemoResult]) -> None:
    out, result = finished
    found = report.read_report([out / "picked", out / "all"], baseline=out / "few")
    assert [one.label for one in found.models if one.times is None] == []
    # The page says of the cascade what the terminal says, in one gallery.
    (cascade,) = (one for one in found.models if one.is_cascade)
    shown = result.row("cascade")
    assert cascade.gallery_size == 8
    assert (cascade.query_ms[-1], cascade.times.speed_up) == pytest.approx((shown.query_ms, shown.speed_up))
    # Every student was timed with a teacher of its own; page and terminal divide by one.
    table = re.findall(
        r"<td[^>]*>(~?[\d,.]+)<br><small>among 8 images</small></td><td[^>]*>(\S+)\N{MULTIPLICATION SIGN}",
        (out / "report.html").read_text(encoding="utf-8"),
    )
    assert len(table) == 4
    check_speed_ups([*table, (f"{result.rows[0].query_ms:.3f}", "1")])
    assert all("val_rsum" in one.metrics[-1] for one in found.trainings)


def test_a_second_demo_trains_nothing_again(
    finished: tuple[Path, demo.DemoResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The page, which takes seconds, is that of the first demo.
    monkeypatch.setattr(demo.report, "write_report_page", lambda *_: None)
    first, result = finished
    out = shutil.copytree(first, tmp_path / first.name)
    weights = out / "picked" / "model" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    again = run_in(out)
    assert weights.stat().st_mtime_ns == before
    measured = [
        [[row.evaluation.measures(way) for way in Direction] for row in found.rows[1:]] for found in (again, result)
    ]
    assert measured[0] == measured[1]


def test_the_built_in_teacher_is_small_enough_to_ship() -> None:
    folder = models.path_of(demo.BUILT_IN_TEACHER)
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 4 * 2**20


def made_up(tmp_path: Path) -> demo.DemoResult:
    """R@1 in both directions, over the gallery, and milliseconds."""
    values = {
        "teacher": (100.0, 100.0, 97.0, 600.0),
        "cascade": (96.9, 97.8, 96.0, 4.0),
        "picked": (50.0, 50.0, 45.0, 1.5),
        "few": (25.0, 20.0, 8.0, 1.5),
        "all": (50.0, 51.0, 46.0, 1.5),
    }

    def measured(name: str) -> Evaluation:
        recalls = {way: {f"R@{k}": values[name][i] for k in (1, 5, 10)} for i, way in enumerate(Direction)}
        rsum = 3 * sum(values[name][:2])
        return cast(Evaluation, SimpleNamespace(measures=recalls.get, rsum=rsum))

    rows = [
        demo.Row(
            name=name,
            model=name,
            evaluation=None if name == "teacher" else measured(name),
            gallery_recall=values[name][2],
            query_ms=values[name][3],
            speed_up=values["teacher"][3] / values[name][3],
        )
        for name in demo.LABELS
    ]
    return demo.DemoResult(rows, 1000, 32, 5, {"cpu": "Made-up CPU", "threads": 2}, tmp_path / "report.html")


def test_the_command_shows_the_table_and_the_summary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = made_up(tmp_path)
    demo_command._show(result, tmp_path)
    shown = capsys.readouterr().out
    assert "New scenes; Made-up CPU, threads: 2" in shown
    assert "of 32 captions" in shown
    # Beside the column of all captions, which has R@1 too.
    assert "image R@1, 32 captions" in shown
    cascade = next(line for line in shown.splitlines() if line.startswith("│ cascade"))
    assert [cell.strip() for cell in cascade.strip("│").split("│")][-3:] == ["96.0", "4.00 ms", "150x"]
    assert result.summary in shown


def test_the_summary_says_in_one_sentence_what_the_teacher_brought(tmp_path: Path) -> None:
    first, second = made_up(tmp_path).summary.splitlines()
    assert first == (
        "The teacher's picks brought +165.0 RSUM to a student of the few, which then has 99% of the RSUM of a student "
        "of the all."
    )
    assert second.startswith(
        "Over 1,000 images, this student is 400 times as fast as the teacher; with its first 5 re-ranked "
    )
