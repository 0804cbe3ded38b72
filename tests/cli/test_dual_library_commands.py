"""Dual encoders of open_clip and sentence-transformers in every command that takes one, from their own folders."""

from __future__ import annotations

import re

import numpy as np
import open_clip
import pytest
import torch
from command_line import QUICK_BENCH, document_of, error_of, run
from duals import save_dual, save_sentence_transformer
from open_clips import save_open_clip
from paths import DOCS
from PIL import Image
from sentence_transformers import SentenceTransformer

from dcdctl.core import models
from dcdctl.core.data import Corpus
from dcdctl.core.teacher import cache

STUDENT = "distill tiny-student --set model.kind=dual --set model.layers=[] --set optimizer.steps=2 --set batch.size=4"
KINDS = ["open_clip", "sentence-transformers"]


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


@pytest.fixture(scope="module")
def data(scenes_corpus_dir):
    return f"--data {scenes_corpus_dir} --device cpu"


@pytest.mark.parametrize("kind", KINDS)
def test_it_chooses_candidates_and_teaches(kind, folders, scenes_corpus_dir, data, tmp_path):
    folder, data = folders[kind], f"{data} --max-images 6"
    sets = f"--set candidates.kind=embedding --set candidates.model={folder} --set candidates.per_query=3"
    run(f"cache-teacher --recipe tiny-student --teacher {folder} --out {tmp_path}/cache {data} {sets}")
    corpus = Corpus.open(scenes_corpus_dir, "train", 6)
    scored = cache.read_cache(tmp_path / "cache", corpus=corpus, teacher=models.load_scorer(folder).digest)
    scores_IT = own_scores(kind, folder, [corpus.image(index) for index in range(6)], corpus.captions)
    np.testing.assert_allclose(scored.score_P, scores_IT[scored.image_P, scored.text_P], rtol=1e-4, atol=1e-4)
    run(
        f"{STUDENT} --set model.start=new --teacher {folder} --out {tmp_path}/run {data} --set model.hidden_size=16 "
        "--set model.num_heads=2 --set model.num_layers=1"
    )


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


def test_an_export_is_a_folder_of_the_library_with_a_card(folders, tmp_path, monkeypatch):
    for kind, to in (("open_clip", "open-clip"), ("sentence-transformers", "sentence-transformers")):
        run(f"export {folders[kind]} --out {tmp_path}/{to} --to {to}")
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
        refused = error_of(f"export {folders[kind]} --out {tmp_path}/out --to {wrong}")
        assert f"is a model of {to}, and cannot be exported to {wrong}" in refused


def test_a_model_of_transformers_is_no_folder_of_open_clip(corpus, tmp_path):
    clip = save_dual("CLIP", corpus.captions[:20], tmp_path / "clip")
    refused = error_of(f"export {clip} --out {tmp_path}/out --to open-clip")
    assert "clip is no model of open_clip, which cannot read it; export it with --to transformers" in refused
