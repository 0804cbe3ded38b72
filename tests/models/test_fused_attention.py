"""Attention that transformers computes in steps, by the fused kernel: the same outputs and gradients."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close
from transformers import AlignTextConfig, AlignTextModel, BlipVisionConfig
from transformers.models.align.modeling_align import AlignTextSelfAttention
from transformers.models.blip.modeling_blip import BlipAttention

from dcdctl.core.models.families.blip import FusedAttention
from dcdctl.core.models.families.clip import FusedTextAttention


def test_the_attention_of_blips_vision_encoder():
    torch.manual_seed(0)
    attention = BlipAttention(BlipVisionConfig(hidden_size=12, num_attention_heads=3))
    tokens = torch.randn(2, 5, 12, requires_grad=True)

    def outputs():
        output = attention(tokens)[0]
        return output, *torch.autograd.grad(output.square().sum(), [tokens, *attention.parameters()])

    expected = outputs()
    attention.__class__ = FusedAttention
    for found, wanted in zip(outputs(), expected, strict=True):
        assert_close(found, wanted)
    assert wanted.abs().max() > 0.01


@pytest.mark.parametrize(
    "mask", [torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]), torch.ones(2, 5, dtype=torch.int64)]
)
def test_the_attention_of_aligns_text_encoder_with_and_without_padding(mask):
    torch.manual_seed(0)
    config = AlignTextConfig(
        hidden_size=12,
        num_attention_heads=3,
        num_hidden_layers=2,
        intermediate_size=16,
        vocab_size=30,
        initializer_range=0.5,
    )
    encoder = AlignTextModel(config).eval()
    ids = torch.randint(3, 30, (2, 5))
    expected = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
    for module in encoder.modules():
        if isinstance(module, AlignTextSelfAttention):
            module.__class__ = FusedTextAttention
    found = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
    assert_close(found[mask.bool()], expected[mask.bool()])
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(
            encoder(input_ids=ids, attention_mask=mask).last_hidden_state[mask.bool()],
            expected[mask.bool()],
            rtol=0,
            atol=0.1,
        )
