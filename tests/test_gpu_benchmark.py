"""benchmarks/gpu.py on a CPU at toy size: every part runs, and its checks hold."""

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


@pytest.fixture(scope="module")
def finished(gpu, tmp_path_factory):
    """The exit code of all parts, and their folder: a part that breaks is noticed here and not on a rented machine."""
    folder = tmp_path_factory.mktemp("gpu")
    return gpu.main(["--out", str(folder), "--device", "cpu"]), folder


def test_all_checks_hold_on_a_cpu(gpu, finished):
    code, folder = finished
    rows = json.loads((folder / "gpu.json").read_text())["rows"]
    assert code == 0
    assert list(dict.fromkeys(row["part"] for row in rows)) == list(gpu.PARTS)
    assert {row["part"] for row in rows if row["check"] == "NOT RUN"} == {"processes"}
    checked = [row for row in rows if row["check"] == "PASS"]
    assert {row["part"] for row in checked} == gpu.PARTS.keys() - {"processes", "eval", "bench"}
    # The device and the reference are one CPU, so only another precision differs.
    exact = {row["what"].split(", ")[1] for row in checked if row["part"] == "parity" and row["difference"] == 0}
    assert exact == {"fp32"}
    assert all(row["difference"] == 0 for row in checked if row["part"] == "resume")
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
