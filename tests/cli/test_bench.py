"""`dcdctl bench` on the command line, and its tables."""

from __future__ import annotations

import json
import re
import shutil
from typing import Any

import pytest
from speed_ups import check_speed_ups
from typer.testing import CliRunner

from dcdctl.cli.app import app
from dcdctl.core import artifacts, models
from dcdctl.core.training import runs

SMALL = [
    "--set", "batch_size=2", "--set", "num_images=2", "--set", "batch_sizes=[1, 2]",
    "--set", "gallery_sizes=[10, 1000000]", "--set", "reference_gallery=10", "--set", "budget_s=0.02",
    "--set", "num_repeats=4",
]  # fmt: skip


@pytest.fixture(scope="module")
def folders(teacher, dual_run, tmp_path_factory):
    """A teacher, and a dual student in a run folder."""
    root = tmp_path_factory.mktemp("bench")
    models.save(teacher, root / "teacher")
    artifacts.write_document(root / "run" / "run.json", {"seed": 0})
    runs.finish(runs.Run(root / "run"), models.load(dual_run))
    return root


def run_cli(data, folders, *words: object) -> Any:
    arguments = ["bench", folders / "run", "--teacher", folders / "teacher", "--data", data, "--device", "cpu", *words]
    return CliRunner().invoke(app, [str(word) for word in arguments], catch_exceptions=False)


def test_bench_leaves_bench_json_and_prints_the_same(scenes_corpus_dir, folders, onnx_student, monkeypatch):
    def copied(model, folder):
        """The towers of the same model, which take seconds to make."""
        shutil.copytree(onnx_student.folder, folder)

    monkeypatch.setattr(models, "export_onnx", copied)
    result = run_cli(scenes_corpus_dir, folders, *SMALL, "--json")
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    written = artifacts.read_document(folders / "run" / "bench.json")
    assert written == {**document, **models.run_of(folders / "run")}
    assert (document["student_model"], document["teacher_model"]) == (str(folders / "run"), str(folders / "teacher"))
    assert document["settings"]["gallery_sizes"] == [10, 1000000]
    assert (document["settings"]["num_repeats"], document["settings"]["budget_s"]) == (4, 0.02)
    assert [item["label"] for item in document["speed_ups"]] == [
        "one pair, everything encoded", "one query over 10 images, encoded before", "whole test set, all pairs",
    ]  # fmt: skip
    for item in document["speed_ups"]:
        low, high = item["interval"]
        assert 0 < low <= high
    onnx = document["onnx"]
    assert (onnx["note"], len(onnx["speed_ups"])) == ("", 3)
    assert onnx["largest_difference"] < 1e-5
    assert onnx["times"]["runtime"].startswith("onnxruntime ")
    assert document["student"]["kind"] == onnx["times"]["kind"] == "dual"


def test_bench_shows_tables_that_mark_extrapolated_times(scenes_corpus_dir, folders):
    result = run_cli(scenes_corpus_dir, folders, *SMALL, "--set", "is_onnx_timed=false")
    assert result.exit_code == 0, result.stderr
    (million,) = [line for line in result.stdout.splitlines() if "1,000,000 encoded with it" in line]
    assert million.count("~") == 3  # teacher, student, speed-up
    # The teacher's time in the row is the other two multiplied.
    rows = [line.split("│")[2:5] for line in result.stdout.splitlines() if re.match(r"│ [\d,]+ encoded ", line)]
    for teacher, student, speed_up in rows:
        check_speed_ups([(teacher.strip(), "1"), (student.strip(), speed_up.strip())])
    assert len(rows) > 1
    assert ">= 129x" in result.stdout
    assert "ONNX Runtime: not asked for" in result.stdout


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["--set", "gallery_sizes=[10, 20]"], 1, "reference_gallery must be one of the gallery sizes 10, 20, got 1000"),
        (["--set", "batch_sizes=1;8"], 1, "batch_sizes must be a list, got '1;8'"),
        (["--set", "budget_s=0"], 1, "budget_s must lie in (0, 1000000000], got 0.0"),
        (["--precision", "int3"], 1, "precision must be one of"),
        (["--set", "clock=moon"], 1, "clock must be one of wall, processor, got 'moon'"),
    ],
)
def test_a_wrong_setting_is_an_error_before_anything_is_timed(scenes_corpus_dir, folders, words, status, message):
    result = run_cli(scenes_corpus_dir, folders, *words)
    assert result.exit_code == status
    assert message in " ".join(result.stderr.replace("│", " ").split())
    assert result.stdout == ""
