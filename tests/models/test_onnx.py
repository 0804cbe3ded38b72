"""Dual encoders exported to ONNX, compared with torch."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from encoders import save_text, save_vision
from families import late

from dcdctl.core import models
from dcdctl.core.errors import MissingError, ModelError
from dcdctl.core.models import OnnxTowers, onnx_towers
from dcdctl.core.models import onnx as models_onnx

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def dual(dual_run):
    return models.load_dual(dual_run)


@pytest.fixture(scope="module")
def towers(onnx_student):
    return onnx_student.folder


def texts_of(model, corpus, count):
    return model.preprocess.texts(corpus.captions[:count])


@pytest.mark.parametrize("count", [1, 2, 5])
def test_embeddings_equal_those_of_torch_for_any_number_of_images_and_captions(corpus, dual, towers, count):
    onnx = OnnxTowers(towers, device=CPU)
    images = dual.preprocess.images(corpus.images(range(count)))
    texts = texts_of(dual, corpus, count)
    assert models_onnx.check_onnx(onnx, dual, images, texts) < 5e-6


def test_caption_embeddings_do_not_depend_on_padding(corpus, dual, towers):
    onnx = OnnxTowers(towers, device=CPU)
    shortest, longest = dual.preprocess.texts([""]), dual.preprocess.texts([" ".join(corpus.captions[:3])])
    assert (shortest.input_ids.shape[1], longest.input_ids.shape[1]) == (2, dual.preprocess.max_text_len)
    together = onnx.embed_texts(dual.preprocess.texts(["", " ".join(corpus.captions[:3])]))
    torch.testing.assert_close(
        together, torch.cat([onnx.embed_texts(shortest), onnx.embed_texts(longest)]), atol=1e-6, rtol=0
    )
    assert together.norm(dim=1) == pytest.approx([1, 1], abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "finish",
    [lambda dual: dual, late, partial(late, position_norm=0.7)],
    ids=["dual", "late with its vectors", "late with positions too"],
)
def test_a_model_over_two_frozen_encoders_exports(corpus, tmp_path, finish):
    refs = save_vision("map", tmp_path / "vision"), save_text("bert", corpus.captions, tmp_path / "text")
    dual = finish(models.new_frozen_dual(*refs, models.ProjectionSize(projection_dim=16), max_text_len=30))
    models_onnx.export_onnx(dual, tmp_path / "towers")
    onnx = OnnxTowers(tmp_path / "towers", device=CPU)
    images = dual.preprocess.images(corpus.images(range(3)))
    assert models_onnx.check_onnx(onnx, dual, images, texts_of(dual, corpus, 4)) < 1e-5
    assert len(onnx.outputs(images)) == (1 if dual.kind == "dual" else 3)


def test_embeddings_that_differ_from_torch_are_an_error(corpus, dual, towers):
    other = models.new_dual(
        models.DualSize(
            hidden_size=16,
            num_vision_layers=1,
            num_text_layers=1,
            num_attention_heads=2,
            projection_dim=8,
            image_size=32,
        ),
        dual.preprocess.tokenizer,
        seed=1,
    )
    onnx = OnnxTowers(towers, device=CPU)
    images = dual.preprocess.images(corpus.images(range(2)))
    with pytest.raises(ModelError, match=r"vectors differ from torch's by .*, expected at most 1e-04"):
        models_onnx.check_onnx(onnx, other, images, texts_of(dual, corpus, 2))


def test_int8_embeddings_are_close_to_float32_ones(corpus, dual, towers, tmp_path):
    models_onnx.quantize_dynamic(towers, tmp_path)
    exact, quantized = (OnnxTowers(folder, device=CPU) for folder in (towers, tmp_path))
    texts = texts_of(dual, corpus, 6)
    cosines = (exact.embed_texts(texts) * quantized.embed_texts(texts)).sum(dim=1)
    assert 0.98 < cosines.min() < 1 - 1e-6  # close but not equal
    assert b"MatMulInteger" in (tmp_path / "text.onnx").read_bytes()
    assert b"MatMulInteger" not in (towers / "text.onnx").read_bytes()


def test_small_columns_of_a_matrix_keep_their_digits_in_int8(tmp_path):
    import onnx
    import onnxruntime

    weights = np.random.default_rng(0).standard_normal((8, 2)).astype(np.float32) * np.float32([1, 1e-4])
    row = np.linspace(0.5, 1.5, 8, dtype=np.float32)[None]
    inputs, outputs = (
        [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, size])]
        for name, size in (("row", 8), ("product", 2))
    )
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["row", "weights"], ["product"])],
        "product",
        inputs,
        outputs,
        [onnx.numpy_helper.from_array(weights, "weights")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    for name in models.TOWERS:
        onnx.save(model, tmp_path / name)
    models_onnx.quantize_dynamic(tmp_path, tmp_path / "int8")
    session = onnxruntime.InferenceSession(str(tmp_path / "int8" / "text.onnx"))
    (found,) = session.run(None, {"row": row})
    assert found == pytest.approx(row @ weights, rel=0.05)


def test_a_fusion_model_is_refused_without_a_file_written(teacher, tmp_path):
    with pytest.raises(ModelError, match="this fusion model does not export to ONNX: its shapes depend on the data"):
        models_onnx.export_onnx(teacher, tmp_path / "towers")
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_torch_cannot_export_is_an_error_without_a_file_written(dual, tmp_path, monkeypatch):
    was_training = []

    def failing_embed_images(images):
        was_training.append(dual.training)
        raise RuntimeError("no such operator")

    monkeypatch.setattr(dual, "embed_images", failing_embed_images)
    dual.train()
    with pytest.raises(
        ModelError, match="torch cannot export this model's image side to ONNX: RuntimeError: no such operator"
    ):
        models_onnx.export_onnx(dual, tmp_path / "towers")
    assert list(tmp_path.iterdir()) == []
    # A model in train mode is exported in eval mode, without dropout.
    assert was_training[0] is False


def test_a_folder_that_is_not_empty_is_refused_and_not_changed(dual, tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(ModelError, match="is not empty"):
        models_onnx.export_onnx(dual, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_a_gpu_without_a_provider_is_an_error_that_lists_the_providers():
    with pytest.raises(MissingError, match=r"no provider for cuda \(it has CPUExecutionProvider\)"):
        onnx_towers._providers(torch.device("cuda"), ["CPUExecutionProvider"])
    both = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    assert onnx_towers._providers(torch.device("cuda"), both) == both
    assert onnx_towers._providers(CPU, both) == ["CPUExecutionProvider"]
