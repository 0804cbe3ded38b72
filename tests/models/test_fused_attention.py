"""Attention that transformers computes in steps, by the fused kernel: the same outputs and gradients."""

from __future__ import annotations

import torch
from torch.testing import assert_close
from transformers import BlipVisionConfig
from transformers.models.blip.modeling_blip import BlipAttention

from dcdctl.core.models.families.blip import FusedAttention


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
