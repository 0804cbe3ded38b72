"""Dual encoders of open_clip and sentence-transformers in every command that takes one, from their own folders."""

from __future__ import annotations

import open_clip
import pytest
import torch
from command_line import QUICK_BENCH, document_of, error_of, run
from duals import save_dual, save_sentence_transformer
from open_clips import save_open_clip

from dcdctl.core import models

STUDENT = "distill tiny-student --set model.kind=dual --set model.layers=[] --set optimizer.steps=2 --set batch.size=4"


@pytest.fixture(scope="module")
def folders(corpus, tmp_path_factory):
    """A folder of each library."""
    captions, root = corpus.captions[:20], tmp_path_factory.mktemp("duals")
    return {
        "open_clip": save_open_clip("open_clip SigLIP", captions, root),
        "sentence-transformers": save_sentence_transformer(captions, root / "st", with_dense=True),
    }


@pytest.fixture(scope="module")
def data(scenes_corpus_dir):
    return f"--data {scenes_corpus_dir} --device cpu"


def test_a_student_of_open_clip_is_trained_and_read_by_open_clip(folders, data, tmp_path):
    folder, out = folders["open_clip"], tmp_path / "run"
    run(f"{STUDENT} --set model.start={folder} --teacher {folder} --out {out} {data} --max-images 6")
    trained = models.load_dual(out)
    assert trained.digest != models.load_dual(folder).digest
    network = open_clip.create_model_from_pretrained(f"local-dir:{out / 'model'}", return_transform=False)
    assert torch.equal(network.logit_scale, trained.network.logit_scale)
    assert document_of(f"bench {out} --teacher {folder} {data} {QUICK_BENCH}")


def test_a_student_of_sentence_transformers_is_refused_by_name(folders, data, tmp_path):
    folder = folders["sentence-transformers"]
    error = error_of(f"{STUDENT} --set model.start={folder} --teacher {folder} --out {tmp_path}/run {data}")
    said = "a model of sentence-transformers, cannot be trained here; use it as a teacher or to re-rank"
    assert said in error


def test_a_model_of_transformers_is_no_folder_of_open_clip(corpus, tmp_path):
    clip = save_dual("CLIP", corpus.captions[:20], tmp_path / "clip")
    refused = error_of(f"export {clip} --out {tmp_path}/out --to open-clip")
    assert "clip is no model of open_clip, which cannot read it; export it with --to transformers" in refused
