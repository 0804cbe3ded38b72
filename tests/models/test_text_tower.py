"""The text side of a dual encoder for ONNX Runtime: its tokens, vectors and limits are those of the model."""

from __future__ import annotations

import copy
import errno
import json
import shutil

import numpy as np
import pytest
import torch
from families import FAMILIES, READ_ONLY, late, with_noise
from onnx import TensorProto
from onnx import load as load_onnx
from open_clips import OPEN_CLIPS, save_open_clip
from tiny import make_models

from dcdctl.core import artifacts, models
from dcdctl.core.errors import InputError, ModelError, StaleError
from dcdctl.core.models import TextTower, onnx_towers, text_export, text_tower

CAPTIONS = ["a red circle left of a blue square", "a small green triangle"]
LONG = " ".join(["a small green triangle"] * 30)
TEXTS = ["a red", "the GREEN triangle, left!", "unknown [MASK] words \u72d7", LONG, "a red circle left of a square"]
"""None of them is one of `text_export.PROBES`."""


@pytest.fixture(scope="module")
def dual():
    return make_models(CAPTIONS)[1]


@pytest.fixture(scope="module")
def folder(dual, tmp_path_factory):
    """A text side beside its model."""
    path = tmp_path_factory.mktemp("side") / "text"
    models.save(dual, path.with_name("model"))
    text_export.export_text_tower(dual, path, saved=path.with_name("model"))
    return path


def copied(folder, tmp_path, **changes):
    """A copy of a text side and its model; its text.json has other entries, and a checksum that fits."""
    shutil.copytree(folder.parent, tmp_path / "copy")
    path = tmp_path / "copy" / "text" / "text.json"
    artifacts.write_document(path, artifacts.read_document(path, text_tower.FORMAT) | changes)
    return path.parent


def weights_in(graph):
    """The large tensors that a graph holds, and the number of those that it reads from another file."""
    tensors = load_onnx(graph, load_external_data=False).graph.initializer
    held = [tensor.name for tensor in tensors if len(tensor.raw_data) >= text_export.SHARED_FROM_BYTES]
    return held, sum(tensor.data_location == TensorProto.EXTERNAL for tensor in tensors)


KINDS = ("dual", "frozen dual", "CLIP", "SigLIP", "SigLIP 2", "Chinese-CLIP", "ALIGN", "late from SigLIP 2")


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_and_vectors_are_those_of_the_model(kind, tmp_path):
    model = with_noise(FAMILIES[kind](CAPTIONS, tmp_path / "made"))
    models.save(model, tmp_path / "model")
    text_export.export_text_tower(model, tmp_path / "text", saved=tmp_path / "model")
    held, num_shared = weights_in(tmp_path / "text" / "model.onnx")
    assert (held, num_shared > 0) == ([], True)
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


def test_exporting_changes_neither_the_mode_nor_the_tokenizer_of_a_model(dual, tmp_path):
    models.save(dual, tmp_path / "before")
    dual.train()
    text_export.export_text_tower(dual, tmp_path / "text")
    assert dual.training
    dual.eval()
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
    saved = save_open_clip(kind, CAPTIONS, tmp_path, num_layers=1)
    model = models.load_dual(saved)
    text_export.export_text_tower(model, tmp_path / "text", saved=saved)
    assert weights_in(tmp_path / "text" / "model.onnx")[0] == []
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
    settings = artifacts.read_document(folder / "text.json", text_tower.FORMAT)["settings"]
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
            text_export.export_text_tower(model, tmp_path / "text")
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

    onnx_trace = text_export._trace
    monkeypatch.setattr(text_export, "_trace", wrong)
    monkeypatch.setattr(onnx_towers, "PACKAGES", ("no_such_package",))
    with pytest.raises(ModelError, match="ONNX Runtime does not run its text side"):
        text_export.export_text_tower(dual, tmp_path / "text")
    assert not (tmp_path / "text").exists()


@pytest.mark.parametrize("writer", ["torch.onnx.export", "pathlib.Path.write_bytes"])
def test_a_full_disk_is_no_property_of_the_model(dual, tmp_path, monkeypatch, writer):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    saved = tmp_path / "model"
    models.save(dual, saved)
    monkeypatch.setattr(writer, full)
    with pytest.raises(InputError, match="no room left"):
        text_export.export_text_tower(dual, tmp_path / "text", saved=saved)
    assert not (tmp_path / "text").exists()


def test_the_text_side_of_another_model_is_refused(dual, folder):
    with pytest.raises(
        StaleError,
        match=f"the text side of the model {dual.digest[:8]}, and the vectors are those of the model aaaaaaaa",
    ):
        TextTower.open(folder, "a" * 64)


def test_weights_of_a_saved_model_are_not_written_again(dual, folder, tmp_path):
    models.save(dual, tmp_path / "model")
    text_export.export_text_tower(dual, tmp_path / "alone")  # nothing looks for a model beside it
    assert artifacts.read_document(tmp_path / "alone" / "text.json")["weights"] == {}
    towers = [TextTower.open(path, dual.digest) for path in (folder, tmp_path / "alone")]
    vectors, alone = (tower.vectors(tower.tokenize(TEXTS)[0]) for tower in towers)
    np.testing.assert_array_equal(vectors, alone)
    held, _ = weights_in(tmp_path / "alone" / "model.onnx")
    assert weights_in(folder / "model.onnx") == ([], len(held))
    # Another model's weights are not taken for its own, and a stranger's text.json names no file elsewhere.
    models.save(with_noise(copy.deepcopy(dual)), tmp_path / "other")
    text_export.export_text_tower(dual, tmp_path / "text", saved=tmp_path / "other")
    assert weights_in(tmp_path / "text" / "model.onnx") == (held, 0)
    with pytest.raises(StaleError, match="a file outside of its folder"):
        TextTower.open(copied(folder, tmp_path, weights={"/dev/zero": {"bytes": 1, "sha256": ""}}), dual.digest)


def test_probes_are_read_where_they_are_asked_for_and_written(dual, folder, tmp_path):
    text_export.export_text_tower(dual, tmp_path / "text", probes=TEXTS)
    with torch.no_grad():
        expected = dual.embed_texts(dual.preprocess.texts(TEXTS)).numpy()
    np.testing.assert_allclose(TextTower.open(tmp_path / "text", dual.digest, probes=TEXTS).probes, expected, atol=1e-5)
    assert TextTower.open(tmp_path / "text", dual.digest).probes is None
    assert TextTower.open(folder, dual.digest, probes=TEXTS).probes is None
    for others in (TEXTS[:-1], TEXTS[::-1]):
        with pytest.raises(StaleError, match=r"is damaged|another vector for a text than when it was written"):
            TextTower.open(tmp_path / "text", dual.digest, probes=others)


@pytest.mark.parametrize("is_late", [False, True])
def test_the_text_side_of_a_query_encoder_is_for_the_images_of_its_teacher(dual, tmp_path, is_late):
    teacher = late(dual, is_pooled=False) if is_late else dual
    size = models.QuerySize(text="teacher", layers=[0])
    query = models.new_query(models.QuerySpace.of(teacher), size, teacher=teacher)
    text_export.export_text_tower(query, tmp_path / "text", space=teacher.digest)
    tower = TextTower.open(tmp_path / "text", teacher.digest)
    with torch.no_grad():
        expected = query.embed_texts(query.preprocess.texts(TEXTS)).numpy()
    np.testing.assert_allclose(tower.vectors(tower.tokenize(TEXTS)[0]), expected, atol=1e-5)
    document = artifacts.read_document(tmp_path / "text" / "text.json")
    assert (document["model"], document["query_model"]) == (teacher.digest, query.digest)


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json", "text.json", "../model/model.safetensors"])
def test_a_damaged_file_is_refused(dual, folder, tmp_path, name):
    path = copied(folder, tmp_path) / name
    content = path.read_bytes()
    # Another digit of the fingerprint in text.json, another byte in the middle of the others.
    place = content.find(dual.digest.encode()) if name == "text.json" else len(content) // 2
    path.write_bytes(content[:place] + (b"1" if content[place : place + 1] == b"0" else b"0") + content[place + 1 :])
    with pytest.raises(StaleError, match=f"{path.name} is damaged"):
        TextTower.open(tmp_path / "copy" / "text", dual.digest)


def test_settings_of_a_later_version_are_refused(dual, folder, tmp_path):
    settings = json.loads((folder / "text.json").read_text())["settings"]
    with pytest.raises(StaleError, match="not as this dcdctl writes it"):
        TextTower.open(copied(folder, tmp_path, settings=settings | {"case": "lower"}), dual.digest)


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json"])
def test_a_file_that_is_not_listed_is_not_read(dual, folder, tmp_path, name):
    files = json.loads((folder / "text.json").read_text())["files"]
    del files[name]
    with pytest.raises(StaleError, match=rf"text\.json does not list {name}"):
        TextTower.open(copied(folder, tmp_path, files=files), dual.digest)


def test_the_threads_are_those_of_the_environment(dual, folder, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    session = TextTower.open(folder, dual.digest)._session
    assert session.get_session_options().intra_op_num_threads == 3


@pytest.mark.parametrize("place", ["../../etc/passwd", "/etc/passwd", "absent"])
def test_a_graph_of_a_stranger_reads_no_weights_outside_its_folder(tmp_path, place):
    onnx = pytest.importorskip("onnx")
    weight = onnx.helper.make_tensor("w", onnx.TensorProto.FLOAT, [4], [0.0] * 4)
    weight.raw_data, weight.float_data[:] = bytes(16), []
    onnx.external_data_helper.set_external_data(weight, place, 0, 16)
    weight.ClearField("raw_data")
    output = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [4])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["w"], ["y"])], "g", [], [output], [weight])
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "model.onnx").write_bytes(onnx.helper.make_model(graph).SerializeToString())
    with pytest.raises(StaleError, match=r"ONNX Runtime cannot open .*model\.onnx: .*; delete the index"):
        text_tower.open_session(tmp_path / "text" / "model.onnx", 1, ["CPUExecutionProvider"], tmp_path)
