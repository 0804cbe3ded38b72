"""FLOPs and bytes of models, worked out by hand."""

from __future__ import annotations

import families
import pytest
import torch
from bench_fakes import bench
from tiny import SIZE, make_teacher
from torch import nn
from torch.nn import functional

from dcdctl.core import models
from dcdctl.core.bench import BenchConfig, footprint
from dcdctl.core.bench.footprint import count_flops
from dcdctl.core.bench.steps import prepare_model


def test_a_linear_layer_costs_two_flops_per_weight_and_row():
    assert count_flops(lambda: nn.Linear(8, 16)(torch.ones(5, 7, 8))) == 2 * 5 * 7 * 8 * 16


def test_a_patch_embedding_costs_one_product_per_patch():
    assert count_flops(lambda: nn.Conv2d(3, 6, 4, 4)(torch.ones(2, 3, 8, 12))) == 2 * 2 * (2 * 3) * 6 * (3 * 4 * 4)


@pytest.mark.parametrize("mask", [None, torch.ones(2, 1, 1, 12, dtype=torch.bool)])
def test_flops_of_attention_on_a_cpu_are_counted(mask):
    """The counter of torch omits both products: queries with keys, and attention weights with values."""
    query, source = torch.ones(2, 4, 10, 8), torch.ones(2, 4, 12, 8)
    counted = count_flops(lambda: functional.scaled_dot_product_attention(query, source, source, attn_mask=mask))
    assert counted == 2 * (2 * 4) * (10 * 8 * 12 + 10 * 12 * 8)


def test_flops_of_a_query_against_an_index_are_counted():
    assert count_flops(lambda: torch.ones(1000, 32) @ torch.ones(32)) == 2 * 1000 * 32


def test_flops_are_counted_in_inference_mode():
    with torch.inference_mode():
        assert count_flops(lambda: nn.Linear(2, 3)(torch.ones(5, 2))) == 2 * 5 * 2 * 3


@pytest.fixture(scope="module")
def tiny_dual(corpus):
    size = models.DualSize(
        hidden_size=16,
        num_vision_layers=1,
        num_text_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
        projection_dim=8,
        image_size=32,
    )
    return models.new_dual(size, models.word_piece(corpus.captions, 200))


def bench_model(model, corpus):
    return prepare_model(model, corpus, BenchConfig(num_images=2, batch_size=2, batch_sizes=(2,)))


def test_the_product_of_a_dual_encoder_is_in_float32_under_autocast(corpus, tiny_dual):
    timed = bench_model(tiny_dual, corpus)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        gallery, texts = timed.gallery(5), timed.encoded_texts
        row, block = timed.steps.rank(gallery, texts), timed.steps.block(gallery, texts)
    assert gallery.dtype == texts.dtype == torch.float32
    torch.testing.assert_close(block, gallery @ texts.T, rtol=0, atol=0)
    torch.testing.assert_close(row, gallery @ texts[0], rtol=0, atol=0)


def test_the_score_of_a_pair_is_the_product_of_its_vectors(corpus, tiny_dual):
    timed = bench_model(tiny_dual, corpus)
    with torch.inference_mode():
        images, texts = timed.steps.encode_images(timed.images[2]), timed.steps.encode_texts(timed.texts[2])
    torch.testing.assert_close(timed.steps.score_matching(images, texts), (images @ texts.T).diagonal())


def block(num_tokens: int, width: int, inner: int) -> int:
    """Multiply-adds of a transformer block: four projections, attention, feed-forward."""
    return num_tokens * (4 * width * width + 2 * width * inner) + 2 * num_tokens * num_tokens * width


def test_the_flops_of_a_dual_encoder_equal_those_worked_out_by_hand(corpus, tiny_dual):
    timed = bench_model(tiny_dual, corpus)
    flops = footprint.measure_footprint(tiny_dual, timed).flops
    num_patches = (32 // 16) ** 2
    image = num_patches * (3 * 16 * 16) * 16 + block(num_patches + 1, 16, 24) + 16 * 8
    assert flops.per_image == 2 * image
    lengths = [text.input_ids.shape[1] for _, text in timed.singles]
    # BERT's pooler, then the projection
    captions = [block(length, 16, 24) + 16 * 16 + 16 * 8 for length in lengths]
    assert flops.per_caption == 2 * sum(captions) / len(captions)
    assert flops.per_pair == flops.per_image + flops.per_caption
    assert flops.per_ranked_image == 2 * 8


def test_the_flops_of_a_vilt_pair_equal_those_worked_out_by_hand(corpus):
    """ViLT has three layers here. The last one computes the class token only, with keys and values folded into its
    query and output."""
    teacher = make_teacher(corpus.captions)
    timed = bench_model(teacher, corpus)
    flops = footprint.measure_footprint(teacher, timed).flops
    width, inner, heads, num_images = SIZE.hidden_size, SIZE.intermediate_size, SIZE.num_attention_heads, 16 + 1
    assert flops.per_image == 2 * 16 * (3 * 16 * 16) * width
    assert flops.per_caption == 0  # encoding a caption is an embedding lookup
    pairs = []
    for _, text in timed.singles:
        tokens = text.input_ids.shape[1] + num_images
        query_and_output, folding = 2 * width * width, 2 * width * width
        last = query_and_output + folding + 2 * heads * tokens * width + 2 * width * inner + heads * (width // heads)
        pairs.append(2 * block(tokens, width, inner) + last + width * width + width)
    assert flops.per_pair - flops.per_image == pytest.approx(2 * sum(pairs) / len(pairs), rel=1e-3)


def test_the_index_of_a_dual_encoder_holds_embeddings(corpus, tiny_dual):
    result = footprint.measure_footprint(tiny_dual, bench_model(tiny_dual, corpus))
    assert result.index_bytes_per_million_images == {"float32": 8 * 4 * 1_000_000, "float16": 8 * 2 * 1_000_000}


def test_the_index_of_a_fusion_model_holds_encoded_images(corpus):
    teacher = make_teacher(corpus.captions)
    result = footprint.measure_footprint(teacher, bench_model(teacher, corpus))
    assert result.index_bytes_per_million_images["float16"] == (1 + 16) * 32 * 2 * 1_000_000


@pytest.mark.parametrize(("is_pooled", "num_numbers"), [(False, 5 * 6), (True, 5 * 6 + 8)])
def test_the_index_of_late_interaction_holds_tokens_and_whole_vectors_only_if_they_count(
    corpus, tiny_dual, is_pooled, num_numbers
):
    model = families.late(tiny_dual, is_pooled=is_pooled)
    result = footprint.measure_footprint(model, bench_model(model, corpus))
    assert result.index_bytes_per_million_images["float32"] == num_numbers * 4 * 1_000_000


def test_weights_exclude_parameters_used_only_in_training(corpus, tiny_dual):
    result = footprint.measure_footprint(tiny_dual, bench_model(tiny_dual, corpus))
    num_parameters = sum(parameter.numel() for parameter in tiny_dual.network.parameters())
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tiny_dual.network.state_dict().values())
    assert (result.num_parameters, result.weight_bytes) == (num_parameters, num_bytes)
    assert any(name.startswith("calibration.") for name, _ in tiny_dual.named_parameters())


def test_a_benchmark_reports_the_footprints_of_both_models():
    result = bench()
    assert result.teacher.footprint.index_bytes_per_million_images["float32"] == 4_000_000
    assert result.student.footprint.index_bytes_per_million_images["float32"] == 16_000_000
    assert (result.teacher.footprint.weight_bytes, result.student.footprint.weight_bytes) == (28, 20)
