"""Dual encoders of open_clip and sentence-transformers in every command that takes one, from their own folders."""

from __future__ import annotations

import json
import re

import numpy as np
import open_clip
import pytest
import torch
from duals import save_dual, save_sentence_transformer
from open_clips import save_open_clip
from paths import DOCS
from PIL import Image
from sentence_transformers import SentenceTransformer
from typer.testing import CliRunner

from dcdctl.cli.app import app
from dcdctl.core import models
from dcdctl.core.data import Corpus
from dcdctl.core.teacher import cache

CPU = ["--device", "cpu"]
KINDS = ["open_clip", "sentence-transformers"]


def invoke(*words):
    return CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)


def run_cli(*words):
    result = invoke(*words)
    assert result.exit_code == 0, result.stderr
    return result


@pytest.fixture(scope="module")
def folders(corpus, tmp_path_factory):
    """A folder of each library."""
    captions, root = corpus.captions[:20], tmp_path_factory.mktemp("duals")
    return {
        "open_clip": save_open_clip("open_clip SigLIP", captions, root),
        "sentence-transformers": save_sentence_transformer(captions, root / "st", with_dense=True),
    }


@torch.no_grad()
def own_scores(kind, folder, images, texts):
    """All images with all texts, by the library alone: logits, or cosines."""
    if kind == "sentence-transformers":
        encoder = SentenceTransformer(str(folder), device="cpu")
        encoder.max_seq_length = 24  # it does not look up the positions of a CLIP
        both = (encoder.encode(inputs, normalize_embeddings=True, convert_to_tensor=True) for inputs in (images, texts))
        return torch.matmul(next(both), next(both).T).numpy()
    network, transform = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(texts)
    logits, _ = network.get_logits(torch.stack([transform(image) for image in images]), tokens)
    return logits.numpy()


@pytest.mark.parametrize("kind", KINDS)
def test_it_chooses_candidates_and_teaches(kind, folders, scenes_corpus_dir, tmp_path):
    folder, data = folders[kind], ["--data", scenes_corpus_dir, "--max-images", 6, *CPU]
    sets = ["candidates.kind=embedding", f"candidates.model={folder}", "candidates.per_query=3"]
    recipe = ["--recipe", "tiny-student", *(word for one in sets for word in ("--set", one))]
    run_cli("cache-teacher", "--teacher", folder, "--out", tmp_path / "cache", *data, *recipe)
    corpus = Corpus.open(scenes_corpus_dir, "train", 6)
    scored = cache.read_cache(tmp_path / "cache", corpus=corpus, teacher=models.load_scorer(folder).digest)
    scores_IT = own_scores(kind, folder, [corpus.image(index) for index in range(6)], corpus.captions)
    np.testing.assert_allclose(scored.score_P, scores_IT[scored.image_P, scored.text_P], rtol=1e-4, atol=1e-4)

    changes = [
        "optimizer.steps=2",
        "batch.size=4",
        "model.kind=dual",
        "model.start=new",
        "model.layers=[]",
        "model.hidden_size=16",
    ]
    changes += ["model.num_heads=2", "model.num_layers=1"]
    words = [word for one in changes for word in ("--set", one)]
    run_cli("distill", "tiny-student", "--teacher", folder, "--out", tmp_path / "run", *words, *data)


def test_a_student_of_open_clip_is_trained_and_read_by_open_clip(folders, scenes_corpus_dir, tmp_path):
    folder, run, data = folders["open_clip"], tmp_path / "run", ["--data", scenes_corpus_dir, "--max-images", 6, *CPU]
    changes = ["optimizer.steps=2", "batch.size=4", "model.kind=dual", f"model.start={folder}", "model.layers=[]"]
    words = [word for one in changes for word in ("--set", one)]
    run_cli("distill", "tiny-student", "--teacher", folder, "--out", run, *words, *data)
    trained = models.load_dual(run)
    assert trained.digest != models.load_dual(folder).digest
    network = open_clip.create_model_from_pretrained(f"local-dir:{run / 'model'}", return_transform=False)
    assert torch.equal(network.logit_scale, trained.network.logit_scale)
    timed = [
        "--num-images",
        2,
        "--batch-size",
        2,
        "--batch-sizes",
        1,
        "--gallery-sizes",
        10,
        "--reference-gallery",
        10,
        "--budget",
        0.02,
    ]
    bench = run_cli(
        "bench",
        run,
        "--teacher",
        folder,
        *timed,
        "--fresh-processes",
        0,
        "--repeats",
        2,
        "--no-onnx",
        "--json",
        *data[:2],
        *CPU,
    )
    assert json.loads(bench.stdout)


def test_a_student_of_sentence_transformers_is_refused_by_name(folders, scenes_corpus_dir, tmp_path):
    folder = folders["sentence-transformers"]
    words = ["--set", "model.kind=dual", "--set", f"model.start={folder}", "--set", "model.layers=[]"]
    result = invoke(
        "distill",
        "tiny-student",
        "--teacher",
        folder,
        "--out",
        tmp_path / "run",
        *words,
        "--data",
        scenes_corpus_dir,
        *CPU,
    )
    assert result.exit_code == 1
    assert (
        "is a model of sentence-transformers, which cannot be trained here; use it for eval, index, candidates.model"
        in result.stderr
    )


def test_an_export_is_a_folder_of_the_library_with_a_card(folders, tmp_path, monkeypatch):
    for kind, to in (("open_clip", "open-clip"), ("sentence-transformers", "sentence-transformers")):
        run_cli("export", folders[kind], "--out", tmp_path / to, "--to", to)
        images, texts = [Image.effect_noise((50, 40), 90).convert("RGB")], ["a red star", "a blue square"]
        np.testing.assert_allclose(
            own_scores(kind, tmp_path / to, images, texts), own_scores(kind, folders[kind], images, texts), atol=1e-5
        )
        assert "fp32 cosine at least 1.00000" in (tmp_path / to / "README.md").read_text()
        if kind == "open_clip":  # the code of the card, which docs/export.md shows too
            images[0].save(tmp_path / "photo.png")
            code = re.findall(r"```python\n(.*?)```", (tmp_path / to / "README.md").read_text(), re.DOTALL)[0]
            page = re.findall(r"```python\n(import open_clip.*?)```", (DOCS / "export.md").read_text(), re.DOTALL)[0]
            assert code == page.replace("dual-openclip", "open-clip")
            monkeypatch.chdir(tmp_path)
            exec(code, space := {})
            torch.testing.assert_close(
                space["images"],
                models.load_dual(to).embed_images(models.load_dual(to).preprocess.images(images)).detach(),
            )
        assert models.load_dual(tmp_path / to).digest == models.load_dual(folders[kind]).digest
        wrong = "transformers" if kind == "open_clip" else "onnx"
        result = invoke("export", folders[kind], "--out", tmp_path / "out", "--to", wrong)
        assert result.exit_code == 1
        assert f"is a model of {to}, and cannot be exported to {wrong}" in result.stderr


def test_a_model_of_transformers_is_no_folder_of_open_clip(corpus, tmp_path):
    result = invoke(
        "export",
        save_dual("CLIP", corpus.captions[:20], tmp_path / "clip"),
        "--out",
        tmp_path / "out",
        "--to",
        "open-clip",
    )
    assert result.exit_code == 1
    assert "clip is no model of open_clip, which cannot read it; export it with --to transformers" in result.stderr
