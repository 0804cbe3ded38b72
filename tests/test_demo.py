"""The demo, on a few scenes and a few steps; its full size is a benchmark."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from processes import make_once

from dcdctl.core import demo, files
from dcdctl.core.bench import BenchConfig
from dcdctl.core.demo import DemoConfig
from dcdctl.core.report import report

QUICK = BenchConfig(
    num_images=4,
    batch_size=4,
    batch_sizes=(4,),
    num_warmup=1,
    num_repeats=2,
    budget_s=0.05,
    gallery_sizes=(20,),
    reference_gallery=20,
    num_fresh_processes=0,
    is_onnx_timed=False,
)
SMALL = DemoConfig(train_images=64, val_images=4, test_images=6, depths=(2, 3), steps=2, bench=QUICK)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, demo.DemoResult]:
    return make_once(tmp_path_factory, "demo", lambda out: (out, demo.run_demo(out, config=SMALL)))


def test_the_table_has_teacher_students_baseline_and_cascade(finished: tuple[Path, demo.DemoResult]) -> None:
    _, result = finished
    assert [row.model.split()[0] for row in result.rows] == ["teacher", "fusion", "dual", "the", "cascade:"]
    assert result.rows[0].speed_up == 1.0
    for row in result.rows:
        assert row.speed_up == pytest.approx(result.rows[0].query_ms / row.query_ms)
        assert len(row.evaluation.text_ranks) == 6


def test_the_built_in_teacher_knows_more_than_chance(finished: tuple[Path, demo.DemoResult]) -> None:
    """Six pictures: four siblings and two of another family; by chance the sum of the R@1 is a third of 200 at most."""
    _, result = finished
    recalls = result.rows[0].evaluation.recalls
    assert recalls.text_retrieval["R@1"] + recalls.image_retrieval["R@1"] > 100


def test_what_it_leaves_behind_is_what_the_commands_leave(finished: tuple[Path, demo.DemoResult]) -> None:
    out, result = finished
    assert json.loads((out / "demo.json").read_text(encoding="utf-8"))["rows"] == result.to_json()["rows"]
    assert (out / "data" / "corpus.json").exists()
    assert (out / "cache" / "cache.json").exists()
    assert {path.name for path in out.iterdir() if (path / "run.json").exists()} == {"fusion", "dual", "dual-alone"}


def test_it_ends_with_a_page_on_all_five(finished: tuple[Path, demo.DemoResult]) -> None:
    out, result = finished
    page = result.page.read_text(encoding="utf-8")
    assert result.page == out / "report.html"
    found = report.read_report([out / "dual", out / "fusion"], teacher=out / "teacher", baseline=out / "dual-alone")
    assert [one.role for one in found.models] == ["teacher", "student", "student", "student", "baseline"]
    for system in found.models:
        assert f'<th scope="row">{system.label}' in page
    assert [one.result.rsum.value for one in found.models if one.result] == [
        result.rows[place].evaluation.recalls.rsum for place in (0, 2, 4, 1, 3)
    ]


def test_its_page_has_a_time_for_every_model_and_a_measured_training(finished: tuple[Path, demo.DemoResult]) -> None:
    out, _ = finished
    found = report.read_report([out / "dual", out / "fusion"], teacher=out / "teacher", baseline=out / "dual-alone")
    assert [one.label for one in found.models if one.times is None] == ["dual + fusion, top 3"]
    assert all("val_rsum" in one.metrics[-1] for one in found.trainings)


def test_a_second_demo_trains_nothing_again(finished: tuple[Path, demo.DemoResult], tmp_path: Path) -> None:
    first, result = finished
    out = shutil.copytree(first, tmp_path / "again")
    weights = out / "dual" / "model" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    again = demo.run_demo(out, config=SMALL)
    assert weights.stat().st_mtime_ns == before
    assert [row.evaluation.recalls for row in again.rows] == [row.evaluation.recalls for row in result.rows]


def test_the_built_in_teacher_is_small_enough_to_ship() -> None:
    folder = files.packaged("teachers") / demo.BUILT_IN_TEACHER
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 4 * 2**20
