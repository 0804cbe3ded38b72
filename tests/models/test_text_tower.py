"""The text side of a dual encoder for ONNX Runtime: its tokens, vectors and limits are those of the model."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from families import FAMILIES, READ_ONLY, with_noise
from open_clips import OPEN_CLIPS, save_open_clip
from tiny import make_models

from dcdctl.core import artifacts, models
from dcdctl.core.errors import ModelError, StaleError
from dcdctl.core.models import TextTower, onnx, onnx_towers

CAPTIONS = ["a red circle left of a blue square", "a small green triangle"]
LONG = " ".join(["a small green triangle"] * 30)
TEXTS = ["a red", "the GREEN triangle, left!", "unknown [MASK] words \u72d7", LONG, "a red circle left of a square"]
"""None of them is one of `onnx.PROBES`."""


@pytest.fixture(scope="module")
def dual():
    return make_models(CAPTIONS)[1]


@pytest.fixture(scope="module")
def folder(dual, tmp_path_factory):
    path = tmp_path_factory.mktemp("side") / "text"
    onnx.export_text_tower(dual, path)
    return path


def copied(folder, tmp_path, **changes):
    """A copy of a text side whose text.json has other entries, and a checksum that fits."""
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    document = artifacts.read_document(tmp_path / "text.json", 1)
    artifacts.write_document(tmp_path / "text.json", document | changes)
    return tmp_path


KINDS = ("dual", "frozen dual", "CLIP", "SigLIP", "SigLIP 2", "Chinese-CLIP", "ALIGN", "late from SigLIP 2")


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_and_vectors_are_those_of_the_model(kind, tmp_path):
    model = with_noise(FAMILIES[kind](CAPTIONS, tmp_path))
    onnx.export_text_tower(model, tmp_path / "text")
    tower = TextTower.open(tmp_path / "text", model.digest)
    for texts in (*([text] for text in TEXTS), TEXTS):
        batch, (inputs, ids_T) = model.preprocess.texts(texts), tower.tokenize(texts)
        assert inputs["input_ids"].tolist() == batch.input_ids.tolist()
        assert ids_T == [
            ids[mask.bool()].tolist() for ids, mask in zip(batch.input_ids, batch.attention_mask, strict=True)
        ]
        with torch.no_grad():
            np.testing.assert_allclose(tower.vectors(inputs), model.embed_texts(batch).numpy(), atol=1e-5)
    tokenizer = model.preprocess.tokenizer
    assert [tower.num_tokens(text) for text in TEXTS] == [len(ids) for ids in tokenizer(TEXTS)["input_ids"]]
    assert (tower.max_text_len, tower.unknown_id) == (model.preprocess.max_text_len, tokenizer.unk_token_id)
    assert tower.special_ids == set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}


def test_exporting_leaves_the_tokenizer_of_a_model_as_it_was(dual, tmp_path):
    models.save(dual, tmp_path / "before")
    dual.train()
    onnx.export_text_tower(dual, tmp_path / "text")
    models.save(dual, tmp_path / "after")
    assert (tmp_path / "after" / "tokenizer.json").read_bytes() == (tmp_path / "before" / "tokenizer.json").read_bytes()


MESSY = [
    "don\u00e2\u20ac\u2122t &amp;amp; <b>WON'T</b>",
    "  a\n\tred_circle, left!  ",
    "",
    "12,5 \u00bd\ufb01\u0130",
    *TEXTS,
]
"""Texts that open_clip cleans: a wrong encoding, HTML entities, spaces, punctuation, nothing."""


@pytest.mark.parametrize("kind", OPEN_CLIPS)
def test_tokens_and_vectors_of_open_clip_are_its_own(kind, tmp_path):
    model = models.load_dual(save_open_clip(kind, CAPTIONS, tmp_path, num_layers=1))
    onnx.export_text_tower(model, tmp_path / "text")
    tower, tokenizer = TextTower.open(tmp_path / "text", model.digest), model.preprocess.tokenizer
    for texts in (*([text] for text in MESSY), MESSY):
        (inputs, ids_T), expected = tower.tokenize(texts), tokenizer.tokenizer(texts)
        assert inputs["input_ids"].tolist() == expected.tolist() == ids_T
        with torch.no_grad():
            vectors = torch.nn.functional.normalize(model.network.encode_text(expected), dim=-1).numpy()
        np.testing.assert_allclose(tower.vectors(inputs), vectors, atol=1e-5)
    assert [tower.num_tokens(text) for text in MESSY] == [len(tokenizer(text)["input_ids"]) for text in MESSY]
    assert (tower.max_text_len, tower.unknown_id) == (tokenizer.model_max_length, tokenizer.unk_token_id)
    assert tower.special_ids == set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}


def test_a_text_side_with_an_unknown_cleaning_is_refused(dual, folder, tmp_path):
    settings = artifacts.read_document(folder / "text.json", 1)["settings"]
    changed = copied(folder, tmp_path, settings=settings | {"cleaning": "thorough"})
    with pytest.raises(StaleError, match="cleaning"):
        TextTower.open(changed, dual.digest)


def test_models_whose_texts_python_code_prepares_are_refused_with_the_reason(tmp_path):
    clip, sentences = (
        (FAMILIES | READ_ONLY)[kind](CAPTIONS, tmp_path / kind[:4])
        for kind in ("open_clip SigLIP", "SentenceTransformer")
    )
    clip.preprocess.tokenizer.tokenizer.strip_sep_token = True
    for model, reason in (
        (clip, "its tokenizer, OpenClipTokenizer, is Python code"),
        (sentences, "no graph of tensors"),
    ):
        with pytest.raises(ModelError, match=reason):
            onnx.export_text_tower(model, tmp_path / "text")
    assert not (tmp_path / "text").exists()


def test_a_graph_that_computes_something_else_is_not_kept(dual, tmp_path, monkeypatch):
    def wrong(tower, example, free, path):
        trained = tower.train()
        onnx_trace(
            trained,
            {name: tensor[:, :5] for name, tensor in example.items()},
            {name: {0: "texts"} for name in example},
            path,
        )

    onnx_trace = onnx._trace
    monkeypatch.setattr(onnx, "_trace", wrong)
    monkeypatch.setattr(onnx_towers, "PACKAGES", ("no_such_package",))
    with pytest.raises(ModelError, match="ONNX Runtime does not run its text side"):
        onnx.export_text_tower(dual, tmp_path / "text")
    assert not (tmp_path / "text").exists()


def test_vectors_that_differ_by_more_than_rounding_are_not_kept(dual, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx, "LARGEST_DIFFERENCE", 1e-12)
    monkeypatch.setattr(onnx_towers, "PACKAGES", ("no_such_package",))  # of the slower exporter
    with pytest.raises(ModelError, match=r"vectors of texts differ from torch's by .*, more than 1e-12"):
        onnx.export_text_tower(dual, tmp_path / "text")


def test_the_text_side_of_another_model_is_refused(dual, folder):
    with pytest.raises(
        StaleError,
        match=f"the text side of the model {dual.digest[:8]}, and the vectors are those of the model aaaaaaaa",
    ):
        TextTower.open(folder, "a" * 64)


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json", "text.json"])
def test_a_damaged_file_is_refused(dual, folder, tmp_path, name):
    path = copied(folder, tmp_path) / name
    content = path.read_bytes()
    # Another digit of the fingerprint in text.json, another byte in the middle of the others.
    place = content.find(dual.digest.encode()) if name == "text.json" else len(content) // 2
    path.write_bytes(content[:place] + (b"1" if content[place : place + 1] == b"0" else b"0") + content[place + 1 :])
    with pytest.raises(StaleError, match=f"{name} is damaged"):
        TextTower.open(tmp_path, dual.digest)


def test_settings_of_a_later_version_are_refused(dual, folder, tmp_path):
    settings = json.loads((folder / "text.json").read_text())["settings"]
    with pytest.raises(StaleError, match="not as this dcdctl writes it"):
        TextTower.open(copied(folder, tmp_path, settings=settings | {"case": "lower"}), dual.digest)


def test_the_threads_are_those_given_or_those_of_the_environment(dual, folder, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    used = [
        TextTower.open(folder, dual.digest, threads)._session.get_session_options().intra_op_num_threads
        for threads in (2, None)
    ]
    assert used == [2, 3]
