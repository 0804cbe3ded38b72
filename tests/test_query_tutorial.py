"""From a dual encoder to a search by its query student, in four commands."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import document_of, run
from PIL import Image

import dcdctl
from dcdctl.core import models
from dcdctl.core.search import FolderIndex


def test_four_commands_lead_from_a_dual_encoder_to_a_search_by_its_query_student(
    dual_run: Path, scenes_corpus_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, query, index = tmp_path / "cache", tmp_path / "query", tmp_path / "index"
    run("cache-texts", "--teacher", dual_run, "--texts", scenes_corpus_dir, "--out", cache, "--device", "cpu")
    sets = [word for each in ("model.text=", "optimizer.steps=2", "batch.size=4") for word in ("--set", each)]
    steps = (*sets, "--device", "cpu", "--workers", "0")
    monkeypatch.setattr(sys, "argv", ["dcdctl", "distill", "--cache", str(cache)])  # for run.json
    trained = run("distill", "query-static", "--cache", cache, "--out", query, *steps)
    indexed = run("index", dual_run, "--images", scenes_corpus_dir, "--out", index, "--query-model", query)
    # Two steps are too few, and every search of the index would show it.
    for result in (trained, indexed):
        assert re.search(r"with a cosine of [\d.]+ % to its teacher's, under 80 %: it finds few", result.stderr)
    # Its texts beside the images of its teacher, in Python.
    white, teacher, student = Image.new("RGB", (64, 64)), models.load_dual(dual_run), models.load(query, kind="query")
    logits_IT = dcdctl.load(dual_run, query_model=query).score([white], ["a red circle", "a dog"])
    with torch.no_grad():
        image = teacher.embed_images(teacher.preprocess.images([white]))
        texts = student.embed_texts(student.preprocess.texts(["a red circle", "a dog"]))
    np.testing.assert_allclose(logits_IT, teacher.logit_scale.item() * image @ texts.T, rtol=1e-4)
    hits = document_of("search", index, "a red circle")["hits"]
    assert len(hits) == 10
    shutil.copytree(dual_run, tmp_path / "dual")
    run("eval", tmp_path / "dual", "--data", scenes_corpus_dir, "--device", "cpu")
    run("eval", tmp_path / "dual", "--query-model", query, "--data", scenes_corpus_dir, "--device", "cpu")
    run("export", query, "--to", "onnx", "--out", tmp_path / "onnx")
    card = (tmp_path / "onnx" / "README.md").read_text(encoding="utf-8")
    assert re.search(r"Trained on [\d,]+ texts; seed", card)
    assert "The teacher's own image R@1 is" in card
    assert "bench TEACHER --query-model" in card
    assert FolderIndex.open(index).query_model == models.load(query, kind="query").digest
