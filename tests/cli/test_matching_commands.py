"""BLIP, BLIP-2 and BridgeTower in `cache-teacher`, `distill`, `eval` and `export`."""

from __future__ import annotations

import json

import pytest
import torch
from families import with_noise
from huggingface_hub import constants
from matching import make_blip, make_blip2, make_bridgetower
from typer.testing import CliRunner

from dcdctl.cli.app import app
from dcdctl.core import models
from dcdctl.core.data import Corpus
from dcdctl.core.teacher import cache
from dcdctl.core.training import runs

MAKERS = {"BLIP": make_blip, "BLIP-2": make_blip2, "BridgeTower": make_bridgetower}
CPU = ["--device", "cpu"]
STEPS = ["batch.size=4", "batch.random_negatives=4", "batch.hard_negatives=2", "optimizer.steps=3"]


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def run_cli(*words):
    return CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)


def sets(*assignments):
    return [word for one in assignments for word in ("--set", one)]


@pytest.fixture
def teacher(request, corpus, tmp_path):
    models.save(with_noise(MAKERS[request.param](corpus.captions)), tmp_path / "teacher")
    return tmp_path / "teacher"


def cached(teacher, corpus_dir, out):
    words = ["--teacher", teacher, "--data", corpus_dir, "--out", out, "--recipe", "tiny-student", *sets("candidates.per_query=4"), *CPU]
    result = run_cli("cache-teacher", *words)
    assert result.exit_code == 0, result.stderr
    return out


@pytest.mark.parametrize(("teacher", "recipe"), [("BLIP", "blip-itm"), ("BridgeTower", "bridgetower")], indirect=["teacher"])
def test_a_student_of_fewer_layers_is_distilled_from_the_cache_and_exported(teacher, recipe, scenes_corpus_dir, tmp_path):
    scores = cached(teacher, scenes_corpus_dir, tmp_path / "cache")
    assert cache.read_cache(scores, corpus=Corpus.open(scenes_corpus_dir, "train"), teacher=models.load(teacher).digest)
    words = ["--teacher", teacher, "--cache", scores, "--data", scenes_corpus_dir, "--out", tmp_path / "run", *CPU]
    distilled = run_cli("distill", recipe, *words, *sets("model.layers=[0, 2]", *STEPS))
    assert distilled.exit_code == 0, distilled.stderr
    assert runs.open_run(tmp_path / "run").metrics()[-1]["dcd"] > 0
    student = models.load(tmp_path / "run")
    assert student.num_layers == 2
    before = models.load(teacher).student([0, 2]).state_dict()
    changed = {name for name, weight in student.state_dict().items() if not torch.equal(weight, before[name])}
    assert changed == {name for name, parameter in student.named_parameters() if parameter.requires_grad}
    exported = run_cli("export", tmp_path / "run", tmp_path / "export", "--to", "transformers", "--data", scenes_corpus_dir)
    assert exported.exit_code == 0, exported.stderr  # transformers alone gave the same logits
    card = (tmp_path / "export" / "README.md").read_text()
    assert "return match - no_match" in card
    assert f"import {student.export_spec().model_class}, " in card
    assert models.load(tmp_path / "export").num_layers == 2


@pytest.mark.parametrize("teacher", ["BLIP-2"], indirect=True)
def test_a_blip2_teaches_a_dual_student_and_has_no_student_of_its_own(teacher, scenes_corpus_dir, tmp_path):
    scores = cached(teacher, scenes_corpus_dir, tmp_path / "cache")
    words = ["--teacher", teacher, "--cache", scores, "--data", scenes_corpus_dir, *CPU]
    refused = run_cli("distill", "blip-itm", *words, "--out", tmp_path / "fusion", *sets("model.layers=[0, 2]", *STEPS))
    assert refused.exit_code == 1
    assert "a BLIP-2 has no student of fewer layers" in refused.stderr
    assert "dual student" in refused.stderr
    distilled = run_cli("distill", "demo-dual", *words, "--out", tmp_path / "dual", *sets(*STEPS))
    assert distilled.exit_code == 0, distilled.stderr
    assert models.load(tmp_path / "dual").kind == "dual"
    evaluated = run_cli("eval", teacher, "--data", scenes_corpus_dir, "--max-images", 4, "--json", *CPU)
    assert evaluated.exit_code == 0, evaluated.stderr
    assert json.loads(evaluated.stdout)["pairs_scored"] == 4 * 20
    exported = run_cli("export", teacher, tmp_path / "export", "--to", "transformers", "--data", scenes_corpus_dir)
    assert exported.exit_code == 0, exported.stderr
