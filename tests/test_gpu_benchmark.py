"""benchmarks/gpu.py on a CPU at toy size: every part runs, and a part of a device that computes wrongly fails."""

from __future__ import annotations

import importlib
import json
import sys
from functools import partial

import pytest
import torch
from paths import ROOT

from dcdctl.core import scoring
from dcdctl.core.models.families.shared_prefix import SharedPrefix
from dcdctl.core.models.families.vilt import ViltScorer
from dcdctl.core.models.networks import maxsim
from dcdctl.core.search import exact
from dcdctl.core.training import grad_cache


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


def without_gradient(backward):
    def wrong(model, *arguments):
        values = backward(model, *arguments)
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad.zero_()
        return values

    return wrong


def third_caption_higher(scores):
    return lambda *arguments: (found := scores(*arguments)) + (torch.arange(len(found)) == 2)


def twice(function):
    return lambda *arguments, **options: 2 * function(*arguments, **options)


VECTORS = (scoring, "finite_vectors", twice)
BACKWARD = (grad_cache, "backward", without_gradient)
SCORES = (ViltScorer, "score_pairs", twice)
QUERY = "query student of clip"
WRONG = {
    "late": (BACKWARD, "distill", lambda gpu: partial(gpu.students.trained, name="late")),
    "query, vectors": (
        (scoring, "finite_vectors", twice),
        "cache",
        lambda gpu: partial(gpu.students.encoded, name=QUERY),
    ),
    "query, losses": (BACKWARD, "distill", lambda gpu: partial(gpu.students.trained, name=QUERY)),
    "pool, cache": (SCORES, "cache", lambda gpu: partial(gpu.students.scored, name="pool")),
    "pool, losses": (BACKWARD, "distill", lambda gpu: partial(gpu.students.trained, name="pool")),
    "maxsim": ((maxsim, "_over_tokens", twice), "all_maxsims", lambda gpu: gpu.parts.maxsim),
    "maxsim, search": ((exact, "maxsims", twice), "search", lambda gpu: gpu.parts.maxsim),
    "vlm": ((SharedPrefix, "_continue", third_caption_higher), "one prefix", lambda gpu: gpu.parts.vlm),
}


@pytest.mark.parametrize(("wrong", "what", "part"), WRONG.values(), ids=WRONG)
def test_a_device_that_computes_wrongly_fails_the_row(gpu, finished, monkeypatch, wrong, what, part):
    owner, name, change = wrong
    right = gpu.students.with_peak

    def on_the_device_only(machine, work):
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(owner, name, change(getattr(owner, name)))
            return right(machine, work)

    for module in (sys.modules["gpu_machine"], gpu.students, gpu.parts):
        monkeypatch.setattr(module, "with_peak", on_the_device_only)
    machine = gpu.Machine(finished[1], torch.device("cpu"), gpu.SIZES["toy"])
    checks = {row.what: row.check for row in part(gpu)(machine)}
    failed = {each for each, check in checks.items() if check == "FAIL"}
    assert failed == {each for each in checks if each.startswith(what)} != set()
