"""benchmarks/gpu.py on a CPU at toy size: every part runs, and its checks hold. The part of Ray is a slow test."""

from __future__ import annotations

import importlib
import json

import pytest
from paths import ROOT


@pytest.fixture(scope="module")
def gpu():
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(ROOT / "benchmarks")
        yield importlib.import_module("gpu")


@pytest.fixture(scope="module", params=["fewer students", pytest.param("all", marks=pytest.mark.slow)])
def finished(request, gpu, tmp_path_factory):
    """The exit code of all parts but `ray`, and their folder: a part that breaks is noticed here and not on a rented
    machine. `fewer students` are one of each kind: `pool` scores a ViLT, `distill` makes the cache of a METER, `resume`
    trains a CLIP, and `picks` asks in rounds."""
    folder = tmp_path_factory.mktemp("gpu")
    with pytest.MonkeyPatch.context() as patched:
        if request.param == "fewer students":
            students = gpu.students
            patched.setitem(gpu.PARTS, "cache", students.each(students.scored, "clip"))
            patched.setitem(gpu.PARTS, "distill", students.each(students.trained, "meter"))
            patched.setitem(gpu.PARTS, "resume", students.each(students.resumed, "clip"))
            patched.delitem(gpu.PARTS, "rounds")
        parts = [part for part in gpu.PARTS if part != "ray"]
        return gpu.main(["--out", str(folder), "--device", "cpu", "--parts", *parts]), folder, parts


def test_all_checks_hold_on_a_cpu(gpu, finished):
    code, folder, parts = finished
    rows = json.loads((folder / "gpu.json").read_text())["rows"]
    assert code == 0
    assert list(dict.fromkeys(row["part"] for row in rows)) == parts
    assert {row["part"] for row in rows if row["check"] == "NOT RUN"} == {"processes"}
    checked = [row for row in rows if row["check"] == "PASS"]
    assert {row["part"] for row in checked} == {*parts} - {"processes", "eval", "bench"}
    # The device and the reference are one CPU, so only another precision differs.
    exact = {row["what"].split(", ")[1] for row in checked if row["part"] == "parity" and row["difference"] == 0}
    assert exact == {"fp32"}
    assert all(row["difference"] == 0 for row in checked if row["part"] == "resume")
    of_rounds = [row for row in checked if row["part"] in ("rounds", "picks")]
    assert all(row["difference"] == 0 for row in of_rounds if row["what"].endswith("fp32"))
    assert all(row["value"] > 0 for row in rows if row["unit"])
    assert all(row["peak_mib"] > 100 for row in rows if row["unit"] in ("pairs/s", "texts/s", "ms/step"))
    assert (folder / "gpu.md").read_text().count("\n| ") == len(rows) + 2


def test_a_machine_without_a_gpu_is_told_what_full_sizes_need(gpu, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "PARTS", {"processes": gpu.PARTS["processes"]})
    gpu.main(["--out", str(tmp_path), "--device", "cpu", "--parts", "processes"])
    assert json.loads((tmp_path / "gpu.json").read_text())["size"] == "toy"
    first = capsys.readouterr().err.splitlines()[0]
    assert "NVIDIA GPU with 24 GB" in first
    assert "say nothing about a GPU" in first


def test_ray_is_left_out_where_it_is_not_installed(gpu, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu.rounds, "find_spec", {"ray": None}.get)
    assert gpu.main(["--out", str(tmp_path), "--device", "cpu", "--parts", "ray"]) == 0
    (row,) = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert row["check"] == "NOT RUN"
    assert row["note"] == "the extra ray is not installed"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_worker_of_ray_scores_as_this_process(gpu, tmp_path):
    ray = pytest.importorskip("ray")
    assert gpu.main(["--out", str(tmp_path), "--device", "cpu", "--parts", "ray"]) == 0
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert [row["check"] for row in rows] == ["PASS", "PASS"]
    assert rows[0]["difference"] == 0
    assert not ray.is_initialized()
