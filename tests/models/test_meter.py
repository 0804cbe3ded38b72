"""METER and DCD as released: scores, layers, gradients, learning rates, students, files."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from byte_level import byte_level_bpe
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import CLIPVisionConfig, RobertaConfig

from dcdctl.core import losses, models
from dcdctl.core.config import to_table
from dcdctl.core.errors import ConfigError, ModelError
from dcdctl.core.models import CoAttentionNetwork, CoAttentionScorer, FusionSize, ImageBatch, TextBatch
from dcdctl.core.models.coattention import network_from_table
from dcdctl.core.models.meter import resize_positions
from dcdctl.core.models.released_meter import to_network
from dcdctl.core.recipe import OptimizerConfig
from dcdctl.core.training import make_optimizer

FIXTURES = Path(__file__).parents[1] / "fixtures"
NAMES = ("meter_tiny_a", "meter_eps_a", "dcd_step_a_teacher")
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
TEXT_HEADS = 2
"""Of the encoder in dcd_step_a; the other fixtures' tests name their own."""
STEP = json.loads((FIXTURES / "dcd_step_a.json").read_text())


@pytest.fixture(scope="session")
def words(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bpe")
    byte_level_bpe(["a large red circle", "the small blue star"], 60).save_pretrained(folder)
    return str(folder)


def _told(name):
    return json.loads((FIXTURES / f"{name}.json").read_text())


def _load(path, words, **overrides):
    return models.load_fusion(path, {"tokenizer": words, "text.num_attention_heads": TEXT_HEADS, **overrides})


def _scorer(name, words):
    told = _told(name)
    heads, size = told["text"]["num_attention_heads"], told["model"]["image_size"]
    return _load(FIXTURES / f"{name}.ckpt", words, image_size=size, **{"text.num_attention_heads": heads})


@pytest.fixture(params=NAMES)
def released(request, words):
    return _scorer(request.param, words), load_file(FIXTURES / f"{request.param}.safetensors")


@pytest.fixture
def student(words):
    return _load(FIXTURES / "dcd_step_a_student.ckpt", words, image_size=24)


def _inputs(tensors):
    return tensors["in.pixel_values"], tensors["in.input_ids"], tensors["in.attention_mask"]


def _grid(num_images, num_texts):
    return torch.arange(num_images).repeat_interleave(num_texts), torch.arange(num_texts).repeat(num_images)


@torch.no_grad()
def test_scores_equal_the_released_ones(released):
    scorer, tensors = released
    pixels, ids, mask = _inputs(tensors)
    assert_close(scorer.score(pixels, ids, mask), tensors["out.rank_score"], **TOLERANCE)
    expected = tensors["out.score_matrix_images_by_texts"]
    assert_close(scorer(ImageBatch(pixels), TextBatch(ids, mask), *_grid(*expected.shape)).view_as(expected), expected, **TOLERANCE)


@torch.no_grad()
def test_padding_with_id_0_changes_no_score(released):
    scorer, tensors = released
    pixels, ids, mask = _inputs(tensors)
    assert_close(scorer.score(pixels, ids * mask, mask), tensors["out.rank_score_pad0"], **TOLERANCE)


@torch.no_grad()
def test_every_layer_gives_what_the_released_one_gives(released):
    scorer, tensors = released
    network, found = scorer.network, {}
    stages = {
        "vit_after_ln_pre": network.vision.pre_layrnorm,
        "text_embeddings": network.text.embeddings,
        "image_transformed": network.image_transform,
        "text_transformed": network.text_transform,
        **{f"vit_block_{i}": block for i, block in enumerate(network.vision.encoder.layers)},
        **{f"text_layer_{i}": layer for i, layer in enumerate(network.text.encoder.layer)},
        **{f"cross_text_{i}": layer for i, layer in enumerate(network.text_layers)},
        **{f"cross_image_{i}": layer for i, layer in enumerate(network.image_layers)},
    }
    for name, module in stages.items():
        module.register_forward_hook(
            lambda _, __, output, name=name: found.update({name: output[0] if isinstance(output, tuple) else output})
        )
    module = network.rank_output
    module.register_forward_hook(lambda _, inputs, __: found.update({"cls_feats": inputs[0]}))
    pixels, ids, mask = _inputs(tensors)
    scorer.score(pixels, ids, mask)
    expected = {name.removeprefix("out."): tensor for name, tensor in tensors.items()}
    assert stages.keys() <= expected.keys()
    for name, value in found.items():
        rows = mask.bool() if "text" in name else slice(None)
        assert_close(value[rows], expected[name][rows], rtol=1e-5, atol=2e-5, msg=lambda text, name=name: f"{name}: {text}")
    width = network.size.hidden_size
    assert_close(found["cls_feats"][:, :width], expected["pooled_text"], **TOLERANCE)
    assert_close(found["cls_feats"][:, width:], expected["pooled_image"], **TOLERANCE)
    assert_close(network.vision.embeddings.position_embedding.weight, expected["positional_embedding_used"], **TOLERANCE)


@pytest.mark.parametrize("name", ["meter_tiny_a", "meter_eps_a"])
def test_position_tables_are_resized_as_released(name):
    tables = load_file(FIXTURES / f"{name}_posinterp.safetensors")
    sides = [key for key in tables if key.startswith("out.table_")]
    assert len(sides) == 5
    for key in sides:
        side = int(key.rpartition("x")[2])
        assert_close(resize_positions(tables["in.table_4x4"], side), tables[key], rtol=0, atol=1e-6)


def test_the_full_size_keys_are_exactly_those_of_the_network():
    told = json.loads((FIXTURES / "meter_full_384_keys.json").read_text())["keys"]
    state = {name: torch.empty(shape, device="meta") for name, shape in told.items()}
    weights, unused = to_network(state)
    vision = CLIPVisionConfig(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=11, num_attention_heads=12, image_size=384, patch_size=16
    )
    text = RobertaConfig(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1)
    with torch.device("meta"):
        network = CoAttentionNetwork(vision, text, FusionSize())
    assert {name: tuple(tensor.shape) for name, tensor in weights.items() if name in dict(network.named_parameters())} == {
        name: tuple(parameter.shape) for name, parameter in network.named_parameters()
    }
    assert weights.keys() == dict(network.named_parameters()).keys()
    assert {name.split(".")[0] for name in unused} == {"itm_score", "text_transformer", "vit_model"}
    assert sum(parameter.numel() for parameter in network.parameters()) == pytest.approx(318.8e6, abs=1e5)


def test_a_student_checkpoint_gives_the_student(student):
    tensors = load_file(FIXTURES / "dcd_step_a.safetensors")
    assert len(student.layers) == 3
    images, texts = (
        ImageBatch(tensors["in.pixel_values"]),
        TextBatch(tensors["in.text_ids"].flatten(0, 1), tensors["in.text_masks"].flatten(0, 1)),
    )
    num_images, num_texts = tensors["in.text_ids"].shape[:2]
    image_ix = torch.arange(num_images).repeat_interleave(num_texts)
    with torch.no_grad():
        scores = student(images, texts, image_ix, torch.arange(num_images * num_texts))
    assert_close(scores.view(num_images, num_texts), tensors["out.eval_student_score_all"], **TOLERANCE)
    assert any(name.startswith("cross_modal_text_layers") for name in student.unused_keys)


def test_a_training_step_has_the_released_losses_and_gradients(student, words):
    tensors = load_file(FIXTURES / "dcd_step_a.safetensors")
    teacher = _load(FIXTURES / "dcd_step_a_teacher.ckpt", words, image_size=24)
    trained = models.fusion_student(teacher, [0, 3, 5])
    trained.network.load_state_dict(student.network.state_dict())
    for module in trained.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    trained.train()
    images, num_columns = ImageBatch(tensors["in.pixel_values"]), 8
    ids, mask = tensors["in.text_ids"].flatten(0, 1), tensors["in.text_masks"].flatten(0, 1)
    with torch.no_grad():
        everything = teacher(images, TextBatch(ids, mask), torch.arange(3).repeat_interleave(16), torch.arange(48)).view(3, 16)
    assert_close(everything, tensors["out.teacher_score_all"], **TOLERANCE)
    chosen, teacher_scores = losses.select_as_released(everything, STEP["hard_negative"])
    assert chosen.tolist() == STEP["selected"]
    text_ix = (chosen + 16 * torch.arange(3)[:, None]).flatten()
    scores = trained(images, TextBatch(ids, mask), torch.arange(3).repeat_interleave(num_columns), text_ix).view(3, num_columns)
    assert_close(scores, tensors["out.student_score"], **TOLERANCE)
    parts = losses.dcd_released_parts(scores, teacher_scores, alpha=STEP["alpha"])
    assert_close(torch.stack(parts), torch.tensor([STEP["total"], STEP["d_loss"], STEP["nll"]]), **TOLERANCE)
    parts.total.backward()
    own = {name: parameter.grad for name, parameter in trained.network.named_parameters() if parameter.requires_grad}
    norms, _ = to_network({name: torch.tensor(norm) for name, norm in STEP["grad_norms"].items()})
    assert own.keys() == norms.keys()
    for name, norm in norms.items():
        assert_close(own[name].norm(), norm, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")
    gradients, _ = to_network({name.removeprefix("grad."): tensor for name, tensor in tensors.items() if name.startswith("grad.")})
    assert len(gradients) == 14
    for name, gradient in gradients.items():
        assert_close(own[name], gradient, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


def test_a_student_starts_as_released_and_shares_what_is_frozen(words):
    teacher = _scorer("dcd_step_a_teacher", words)
    before = copy.deepcopy(teacher.network.state_dict())
    student = models.fusion_student(teacher, [0, 3, 5])
    for new, old in enumerate([0, 3, 5]):
        for stream in ("text_layers", "image_layers"):
            one, other = getattr(student.network, stream)[new], getattr(teacher.network, stream)[old]
            assert all(torch.equal(a, b) and a is not b for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert student.network.vision is teacher.network.vision
    assert {name.split(".")[0] for name, parameter in student.network.named_parameters() if parameter.requires_grad} == {
        *("text_layers", "image_layers", "text_pooler", "image_pooler", "rank_output"),
    }
    with torch.no_grad():
        student.network.rank_output.weight.add_(1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.network.state_dict().items())
    student.train()
    assert not student.network.vision.training
    assert not student.network.text.training
    assert student.network.text_layers.training


def test_learning_rates_and_decay_of_a_student_are_the_released_ones(words):
    student = models.fusion_student(_scorer("dcd_step_a_teacher", words), [0, 3, 5])
    factors = dict.fromkeys(("text_layers", "image_layers", "text_pooler", "image_pooler"), 5.0)
    optimizer = make_optimizer(student, OptimizerConfig(lr=5e-6, weight_decay=0.01, lr_factors=factors))
    name_of = {id(parameter): name.removeprefix("network.") for name, parameter in student.named_parameters()}
    found = {
        name_of[id(parameter)]: (5e-6 * group["lr_factor"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    told = {name: torch.tensor(values[:2]) for name, values in STEP["optimizer_lr_wd_trainable"].items() if values[2]}
    expected, unused = to_network(told)
    assert not unused
    assert found.keys() == expected.keys()
    assert all(found[name] == pytest.approx(expected[name].tolist()) for name in found)


def test_a_part_that_no_parameter_is_in_is_refused(words):
    with pytest.raises(ConfigError, match=r"lr_factors\.cross_modal is no part of the model"):
        make_optimizer(_scorer("meter_tiny_a", words), OptimizerConfig(lr_factors={"cross_modal": 5.0}))


@pytest.fixture
def tiny():
    return torch.load(FIXTURES / "meter_tiny_a.ckpt", weights_only=True)


def _reload(content, path, words, **overrides):
    torch.save(content, path)
    return _load(path, words, **{"text.num_attention_heads": 3, **overrides})


def test_settings_come_from_the_file(words):
    scorer = _scorer("meter_tiny_a", words)
    assert (scorer.preprocess.max_text_len, scorer.preprocess.image_size_px) == (16, 64)
    assert to_table(scorer.network.size) == {"hidden_size": 64, "num_layers": 2, "num_heads": 4, "mlp_ratio": 4, "dropout": 0.1}
    assert scorer.network.text_config.layer_norm_eps == 1e-5
    assert scorer.network.text_layers[0].self_attention.norm.eps == 1e-12


def test_a_pretraining_checkpoint_is_ranked_by_its_matching_row(tiny, words, tmp_path):
    state = {name: tensor for name, tensor in tiny["state_dict"].items() if not name.startswith("rank_output")}
    scorer = _reload({**tiny, "state_dict": {**state, "mlm_score.bias": torch.zeros(3)}}, tmp_path / "pretrained.ckpt", words)
    assert torch.equal(scorer.network.rank_output.weight, state["itm_score.fc.weight"][1:])
    assert torch.equal(scorer.network.rank_output.bias, state["itm_score.fc.bias"][1:])
    assert "mlm_score.bias" in scorer.unused_keys


def test_what_is_missing_is_named(tiny, words, tmp_path):
    del tiny["state_dict"]["cross_modal_text_layers.1.output.LayerNorm.bias"]
    with pytest.raises(ModelError, match=r"lacks 1 parameters of a co-attention scorer: text_layers\.1\.feed_forward\.norm\.bias"):
        _reload(tiny, tmp_path / "less.ckpt", words)
    del tiny["state_dict"]["vit_model.visual.conv1.weight"]
    with pytest.raises(ModelError, match=r"it lacks vision\.embeddings\.patch_embedding\.weight"):
        _reload(tiny, tmp_path / "less.ckpt", words)


def test_heads_that_nothing_tells_are_asked_for(tiny, words, tmp_path):
    with pytest.raises(ModelError, match=r"says text\.num_attention_heads, and the width is 48.*--model-set text\.num_attention_heads=N"):
        models.load(FIXTURES / "meter_tiny_a.ckpt", {"tokenizer": words})
    with pytest.raises(ModelError, match=r"width 48 is not a multiple of text\.num_attention_heads 5"):
        _load(FIXTURES / "meter_tiny_a.ckpt", words, **{"text.num_attention_heads": 5})
    with pytest.raises(ModelError, match="image_size 65 is not a multiple of the patch size 16"):
        _load(FIXTURES / "meter_tiny_a.ckpt", words, image_size=65)


def test_a_weight_of_another_shape_is_named(tiny, words, tmp_path):
    tiny["state_dict"]["cross_modal_text_pooler.dense.bias"] = torch.zeros(3)
    with pytest.raises(ModelError, match=r"text_pooler\.bias is \(3,\), but \(64,\) is wanted"):
        _reload(tiny, tmp_path / "other.ckpt", words)


def test_a_model_without_a_text_encoder_refuses_its_settings(vilt, dual, tmp_path):
    for model in (vilt, dual):
        models.save(model, tmp_path / "saved")
        with pytest.raises(ModelError, match=r"text\.num_attention_heads is for METER checkpoints"):
            models.load(tmp_path / "saved", {"text.num_attention_heads": 4})


@pytest.mark.parametrize("name", ["meter_tiny_a", "meter_eps_a"])
@torch.no_grad()
def test_a_saved_scorer_loads_the_same_and_at_another_size(name, words, tmp_path):
    scorer = _scorer(name, words)
    models.save(scorer, tmp_path / "saved")
    again = models.load(tmp_path / "saved")
    assert isinstance(again, CoAttentionScorer)
    assert again.digest == scorer.digest
    side = scorer.preprocess.image_size_px
    pixels = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    texts = scorer.preprocess.texts(["a red star", "the large circle"])
    assert_close(again.score(pixels, *_ids(texts)), scorer.score(pixels, *_ids(texts)), rtol=1e-6, atol=1e-6)
    larger = models.load(tmp_path / "saved", {"image_size": side + 16})
    assert larger.preprocess.image_size_px == side + 16
    assert larger.network.vision.embeddings.position_embedding.weight.shape[0] == 1 + ((side + 16) // 16) ** 2


def _ids(texts):
    return texts.input_ids, texts.attention_mask


@pytest.mark.parametrize("num_layers", [1, 2, 3, 6])
@pytest.mark.parametrize(("width", "num_heads"), [(32, 1), (48, 4), (96, 12)])
@pytest.mark.parametrize("image_size", [8, 48])
@torch.no_grad()
def test_pairs_of_any_shape_score_as_each_alone(num_layers, width, num_heads, image_size):
    torch.manual_seed(num_layers * width + image_size)
    vision = CLIPVisionConfig(
        hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=1, image_size=image_size, patch_size=8
    )
    text = RobertaConfig(
        vocab_size=40, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=20
    )
    network = CoAttentionNetwork(vision, text, FusionSize(hidden_size=width, num_layers=num_layers, num_heads=num_heads))
    for parameter in network.parameters():
        parameter += 0.2 * torch.randn_like(parameter)
    scorer = CoAttentionScorer(network, None)
    lengths = torch.tensor([9, 2, 5])
    mask = (torch.arange(9) < lengths[:, None]).long()
    ids = torch.randint(3, 40, (3, 9)).masked_fill(mask == 0, 1)
    pixels = torch.randn(2, 3, image_size, image_size)
    image_ix, text_ix = torch.tensor([1, 0, 1, 0, 1]), torch.tensor([2, 0, 1, 2, 0])
    expected = scorer.score(pixels[image_ix], ids[text_ix], mask[text_ix])
    assert_close(scorer(ImageBatch(pixels), TextBatch(ids, mask), image_ix, text_ix), expected, rtol=1e-5, atol=1e-5)
    short = scorer(ImageBatch(pixels), TextBatch(ids, mask), image_ix[2:3], text_ix[2:3])
    assert_close(short, expected[2:3], rtol=1e-5, atol=1e-5)


def test_gradients_of_pairs_are_those_of_the_plain_way(words):
    tensors = load_file(FIXTURES / "meter_tiny_a.safetensors")
    pixels, ids, mask = _inputs(tensors)
    one, other = _scorer("meter_tiny_a", words), _scorer("meter_tiny_a", words)
    one.score(pixels, ids, mask).square().sum().backward()
    other(ImageBatch(pixels), TextBatch(ids, mask), torch.arange(4), torch.arange(4)).square().sum().backward()
    for (name, plain), (_, pairs) in zip(one.named_parameters(), other.named_parameters(), strict=True):
        expected = torch.zeros_like(plain) if plain.grad is None else plain.grad
        found = torch.zeros_like(pairs) if pairs.grad is None else pairs.grad
        assert_close(found, expected, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


def test_a_table_describes_a_network(words):
    network = _scorer("meter_tiny_a", words).network
    again = network_from_table(json.loads(json.dumps(network.to_table())))
    assert {name: p.shape for name, p in again.named_parameters()} == {name: p.shape for name, p in network.named_parameters()}
