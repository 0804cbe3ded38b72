"""Operations and bytes, counted by hand."""

from __future__ import annotations

import pytest
import torch
from bench_fakes import bench
from tiny import SIZE, make_teacher
from torch import nn
from torch.nn import functional

from dcdctl.core import models
from dcdctl.core.bench import footprint
from dcdctl.core.bench.footprint import count_flops
from dcdctl.core.bench.steps import BenchModel, inputs_for, timed_model


def test_a_linear_layer_costs_two_operations_a_weight_and_row():
    assert count_flops(lambda: nn.Linear(8, 16)(torch.ones(5, 7, 8))) == 2 * 5 * 7 * 8 * 16


def test_patches_cost_a_product_each():
    assert count_flops(lambda: nn.Conv2d(3, 6, 4, 4)(torch.ones(2, 3, 8, 12))) == 2 * 2 * (2 * 3) * 6 * (3 * 4 * 4)


@pytest.mark.parametrize("mask", [None, torch.ones(2, 1, 1, 12, dtype=torch.bool)])
def test_attention_on_a_cpu_is_counted(mask):
    """Which torch's own counter leaves out: queries by keys, and shares by values."""
    query, source = torch.ones(2, 4, 10, 8), torch.ones(2, 4, 12, 8)
    counted = count_flops(lambda: functional.scaled_dot_product_attention(query, source, source, attn_mask=mask))
    assert counted == 2 * (2 * 4) * (10 * 8 * 12 + 10 * 12 * 8)


def test_a_query_against_an_index_is_counted():
    assert count_flops(lambda: torch.ones(1000, 32) @ torch.ones(32)) == 2 * 1000 * 32


def test_counting_works_in_inference_mode_too():
    with torch.inference_mode():
        assert count_flops(lambda: nn.Linear(2, 3)(torch.ones(5, 2))) == 2 * 5 * 2 * 3


@pytest.fixture(scope="module")
def tiny_dual(corpus):
    size = models.DualSize(
        hidden_size=16, num_vision_layers=1, num_text_layers=1, num_attention_heads=2, intermediate_size=24, projection_dim=8, image_size=32
    )
    return models.new_dual(size, models.word_piece(corpus.captions, 200))


def contestant(model, corpus):
    return BenchModel(timed_model(model, 2), inputs_for(model.preprocess, corpus, torch.device("cpu"), num_images=2, batch_size=2))


def block(num_tokens: int, width: int, inner: int) -> int:
    """Multiply-adds of a transformer block: four projections, attention, feed forward."""
    return num_tokens * (4 * width * width + 2 * width * inner) + 2 * num_tokens * num_tokens * width


def test_the_operations_of_a_dual_encoder_are_those_worked_out_by_hand(corpus, tiny_dual):
    one = contestant(tiny_dual, corpus)
    found = footprint.of_model(tiny_dual, one).flops
    num_patches = (32 // 16) ** 2
    image = num_patches * (3 * 16 * 16) * 16 + block(num_patches + 1, 16, 24) + 16 * 8
    assert found.per_image == 2 * image
    lengths = [text.input_ids.shape[1] for _, text in one.inputs.singles]
    # BERT's pooler, then the projection
    captions = [block(length, 16, 24) + 16 * 16 + 16 * 8 for length in lengths]
    assert found.per_caption == 2 * sum(captions) / len(captions)
    assert found.per_pair == found.per_image + found.per_caption
    assert found.per_ranked_image == 2 * 8


def test_the_operations_of_a_vilt_pair_are_those_worked_out_by_hand(corpus):
    """Three layers, of which the last follows the class token alone, its keys and values folded into it."""
    teacher = make_teacher(corpus.captions)
    one = contestant(teacher, corpus)
    found = footprint.of_model(teacher, one).flops
    width, inner, heads, num_images = SIZE.hidden_size, SIZE.intermediate_size, SIZE.num_attention_heads, 16 + 1
    assert found.per_image == 2 * 16 * (3 * 16 * 16) * width
    assert found.per_caption == 0  # an embedding is looked up
    pairs = []
    for _, text in one.inputs.singles:
        tokens = text.input_ids.shape[1] + num_images
        query_and_output, folding = 2 * width * width, 2 * width * width
        last = query_and_output + folding + 2 * heads * tokens * width + 2 * width * inner + heads * (width // heads)
        pairs.append(2 * block(tokens, width, inner) + last + width * width + width)
    assert found.per_pair - found.per_image == pytest.approx(2 * sum(pairs) / len(pairs), rel=1e-3)


def test_an_index_of_a_dual_encoder_is_its_vectors(corpus, tiny_dual):
    found = footprint.of_model(tiny_dual, contestant(tiny_dual, corpus))
    assert found.index_bytes_per_million_images == {"float32": 8 * 4 * 1_000_000, "float16": 8 * 2 * 1_000_000}


def test_an_index_of_a_fusion_model_is_its_encoded_images(corpus):
    teacher = make_teacher(corpus.captions)
    found = footprint.of_model(teacher, contestant(teacher, corpus))
    assert found.index_bytes_per_million_images["float16"] == (1 + 16) * 32 * 2 * 1_000_000


def test_weights_are_counted_without_what_serves_training_alone(corpus, tiny_dual):
    found = footprint.of_model(tiny_dual, contestant(tiny_dual, corpus))
    network = sum(parameter.numel() for parameter in tiny_dual.network.parameters())
    buffers = sum(tensor.numel() * tensor.element_size() for tensor in tiny_dual.network.state_dict().values())
    assert (found.num_parameters, found.weight_bytes) == (network, buffers)
    assert any(name.startswith("calibration.") for name, _ in tiny_dual.named_parameters())


def test_a_benchmark_tells_the_footprints_of_both():
    result = bench()
    assert result.teacher.footprint.index_bytes_per_million_images["float32"] == 4_000_000
    assert result.student.footprint.index_bytes_per_million_images["float32"] == 16_000_000
    assert (result.teacher.footprint.weight_bytes, result.student.footprint.weight_bytes) == (28, 20)
