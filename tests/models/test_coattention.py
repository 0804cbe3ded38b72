"""METER checkpoints and students, and scores of pairs.

Batched pairs score as each pair alone. tests/training/test_official.py compares the numbers with those of the official
code.
"""

from __future__ import annotations

import copy

import official
import pytest
import torch
from byte_level import byte_level_bpe
from plain_scores import plain_score
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import CLIPVisionConfig, RobertaConfig

from dcdctl.core import models
from dcdctl.core.config import to_table
from dcdctl.core.errors import ConfigError, ModelError
from dcdctl.core.models import CoAttentionScorer, FusionSize, ImageBatch, TextBatch
from dcdctl.core.models.families.coattention import CoAttentionNetwork
from dcdctl.core.models.official.meter import to_network
from dcdctl.core.models.preprocess import Preprocess
from dcdctl.core.training.loop import make_optimizer
from dcdctl.core.training.recipe import OptimizerConfig

TEXT_HEADS = 2
"""Attention heads of the text encoder in dcd_step_a; tests of other fixtures give theirs."""


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bpe")
    byte_level_bpe(["a large red circle", "the small blue star"], 60).save_pretrained(folder)
    return str(folder)


def _load(path, tokenizer_folder, **overrides):
    return models.load_fusion(
        path, {"tokenizer": tokenizer_folder, "text.num_attention_heads": TEXT_HEADS, **overrides}
    )


def _inputs(tensors):
    return tensors["in.pixel_values"], tensors["in.input_ids"], tensors["in.attention_mask"]


@pytest.mark.parametrize("name", ["meter_full_384_keys", "meter_full_288_keys"])
def test_a_full_size_checkpoint_has_no_unused_weights_except_known_ones(name):
    state = {key: torch.empty(shape, device="meta") for key, shape in official.fixture_json(name)["keys"].items()}
    weights, unused = to_network(state)
    assert {key.split(".")[0] for key in unused} == {"itm_score", "text_transformer", "vit_model"}
    assert sum(tensor.numel() for tensor in weights.values()) == pytest.approx(318.8e6, abs=3e5)


def test_a_student_checkpoint_loads_with_the_layers_of_the_student():
    student = official.load("dcd_step_a_student", image_size=24, **{"text.num_attention_heads": TEXT_HEADS})
    assert len(student.layers) == 3
    assert any(name.startswith("cross_modal_text_layers") for name in student.unused_keys)


def test_a_student_copies_trainable_weights_and_shares_frozen_ones():
    teacher = official.load_meter("dcd_step_a_teacher")
    before = copy.deepcopy(teacher.network.state_dict())
    student = teacher.student([0, 3, 5])
    assert student.network.vision is teacher.network.vision
    trained = {id(parameter) for parameter in student.parameters() if parameter.requires_grad}
    assert not trained & {id(parameter) for parameter in teacher.parameters()}
    assert {
        name.split(".")[0] for name, parameter in student.network.named_parameters() if parameter.requires_grad
    } == {
        *("text_layers", "image_layers", "text_pooler", "image_pooler", "rank_output"),
    }
    with torch.no_grad():
        student.network.rank_output.weight.add_(1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.network.state_dict().items())
    student.train()
    assert not student.network.vision.training
    assert not student.network.text.training
    assert student.network.text_layers.training


def test_a_learning_rate_factor_for_an_unknown_part_is_refused():
    with pytest.raises(ConfigError, match=r"lr_factors\.cross_modal is no part of the model"):
        make_optimizer(official.load_meter("meter_tiny_a"), OptimizerConfig(lr_factors={"cross_modal": 5.0}))


@pytest.fixture
def tiny():
    return torch.load(official.FIXTURES / "meter_tiny_a.ckpt", weights_only=True)


def _reload(content, path, tokenizer_folder, **overrides):
    torch.save(content, path)
    return _load(path, tokenizer_folder, **{"text.num_attention_heads": 3, **overrides})


def test_settings_are_read_from_the_checkpoint():
    scorer = official.load_meter("meter_tiny_a")
    assert (scorer.preprocess.max_text_len, scorer.preprocess.image_size_px) == (16, 64)
    assert to_table(scorer.network.size) == {
        "hidden_size": 64,
        "num_layers": 2,
        "num_heads": 4,
        "mlp_ratio": 4,
        "dropout": 0.1,
    }
    assert scorer.network.text.config.layer_norm_eps == 1e-5
    assert scorer.network.text_layers[0].self_attention.norm.eps == 1e-12


def test_a_pretraining_checkpoint_ranks_by_the_match_row_of_its_itm_head(tiny, tokenizer_folder, tmp_path):
    state = {name: tensor for name, tensor in tiny["state_dict"].items() if not name.startswith("rank_output")}
    scorer = _reload(
        {**tiny, "state_dict": {**state, "mlm_score.bias": torch.zeros(3)}},
        tmp_path / "pretrained.ckpt",
        tokenizer_folder,
    )
    assert torch.equal(scorer.network.rank_output.weight, state["itm_score.fc.weight"][1:])
    assert torch.equal(scorer.network.rank_output.bias, state["itm_score.fc.bias"][1:])
    assert "mlm_score.bias" in scorer.unused_keys


def test_missing_weights_are_named(tiny, tokenizer_folder, tmp_path):
    del tiny["state_dict"]["cross_modal_text_layers.1.output.LayerNorm.bias"]
    with pytest.raises(
        ModelError, match=r"lacks 1 parameters of a co-attention scorer: text_layers\.1\.feed_forward\.norm\.bias"
    ):
        _reload(tiny, tmp_path / "less.ckpt", tokenizer_folder)
    del tiny["state_dict"]["vit_model.visual.conv1.weight"]
    with pytest.raises(ModelError, match=r"it lacks vision\.embeddings\.patch_embedding\.weight"):
        _reload(tiny, tmp_path / "less.ckpt", tokenizer_folder)


def test_unknown_or_impossible_heads_and_image_sizes_are_errors(tiny, tokenizer_folder, tmp_path):
    with pytest.raises(
        ModelError,
        match=r"does not give text\.num_attention_heads, and its width is 48.*--model-set text\.num_attention_heads=N",
    ):
        models.load(official.FIXTURES / "meter_tiny_a.ckpt", {"tokenizer": tokenizer_folder})
    with pytest.raises(ModelError, match=r"width 48 is not a multiple of text\.num_attention_heads 5"):
        _load(official.FIXTURES / "meter_tiny_a.ckpt", tokenizer_folder, **{"text.num_attention_heads": 5})
    with pytest.raises(ModelError, match="image_size 65 is not a multiple of the patch size 16"):
        _load(official.FIXTURES / "meter_tiny_a.ckpt", tokenizer_folder, image_size=65)


def test_a_weight_of_another_shape_is_named(tiny, tokenizer_folder, tmp_path):
    tiny["state_dict"]["cross_modal_text_pooler.dense.bias"] = torch.zeros(3)
    with pytest.raises(ModelError, match=r"text_pooler\.bias is \(3,\), expected \(64,\)"):
        _reload(tiny, tmp_path / "other.ckpt", tokenizer_folder)


def test_a_model_without_a_text_encoder_refuses_its_settings(vilt, dual, tmp_path):
    for model in (vilt, dual):
        models.save(model, tmp_path / "saved")
        with pytest.raises(ModelError, match=r"saved takes no text\.num_attention_heads"):
            models.load(tmp_path / "saved", {"text.num_attention_heads": 4})


@pytest.mark.parametrize("name", ["meter_tiny_a", "meter_eps_a"])
@torch.no_grad()
def test_a_saved_scorer_loads_with_an_equal_digest_and_at_another_image_size(name, tmp_path):
    scorer = official.load_meter(name)
    models.save(scorer, tmp_path / "saved")
    reloaded = models.load(tmp_path / "saved")
    assert isinstance(reloaded, CoAttentionScorer)
    assert reloaded.digest == scorer.digest
    side = scorer.preprocess.image_size_px
    larger = models.load(tmp_path / "saved", {"image_size": side + 16})
    assert larger.preprocess.image_size_px == side + 16
    assert larger.network.vision.embeddings.position_embedding.weight.shape[0] == 1 + ((side + 16) // 16) ** 2


@pytest.mark.parametrize("num_layers", range(1, 7))
@pytest.mark.parametrize(("width", "num_heads"), [(32, 1), (48, 4), (96, 12)])
@pytest.mark.parametrize("image_size", [8, 48])
@torch.no_grad()
def test_pairs_score_as_each_alone_for_any_shape(num_layers, width, num_heads, image_size):
    torch.manual_seed(num_layers * width + image_size)
    vision = CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=1,
        image_size=image_size,
        patch_size=8,
    )
    text = RobertaConfig(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=20,
    )
    network = CoAttentionNetwork.from_configs(
        vision, text, FusionSize(hidden_size=width, num_layers=num_layers, num_heads=num_heads)
    )
    for parameter in network.parameters():
        parameter += 0.2 * torch.randn_like(parameter)
    # Nothing is tokenized or decoded here.
    scorer = CoAttentionScorer(network, Preprocess(tokenizer=None, image_processor=None, max_text_len=9))
    lengths = torch.tensor([9, 2, 5])
    mask = (torch.arange(9) < lengths[:, None]).long()
    ids = torch.randint(3, 40, (3, 9)).masked_fill(mask == 0, 1)
    pixels = torch.randn(2, 3, image_size, image_size)
    image_ix, text_ix = torch.tensor([1, 0, 1, 0, 1]), torch.tensor([2, 0, 1, 2, 0])
    expected = plain_score(scorer, pixels[image_ix], ids[text_ix], mask[text_ix])
    assert_close(scorer(ImageBatch(pixels), TextBatch(ids, mask), image_ix, text_ix), expected, rtol=1e-5, atol=1e-5)
    single = scorer(ImageBatch(pixels), TextBatch(ids, mask), image_ix[2:3], text_ix[2:3])
    assert_close(single, expected[2:3], rtol=1e-5, atol=1e-5)


def test_gradients_of_pairs_equal_those_of_the_reference_forward():
    tensors = load_file(official.FIXTURES / "meter_tiny_a.safetensors")
    pixels, ids, mask = _inputs(tensors)
    reference, paired = official.load_meter("meter_tiny_a"), official.load_meter("meter_tiny_a")
    plain_score(reference, pixels, ids, mask).square().sum().backward()
    paired(ImageBatch(pixels), TextBatch(ids, mask), torch.arange(4), torch.arange(4)).square().sum().backward()
    for (name, reference_weight), (_, weight) in zip(
        reference.named_parameters(), paired.named_parameters(), strict=True
    ):
        expected = torch.zeros_like(reference_weight) if reference_weight.grad is None else reference_weight.grad
        gradient = torch.zeros_like(weight) if weight.grad is None else weight.grad
        assert_close(gradient, expected, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")
