"""Official ViLT checkpoints (vilt_irtr_f30k.ckpt and similar): parameter names, and the sizes that the files do not
give."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor
from transformers import ViltConfig

from dcdctl.core.models.checkpoint import check_complete
from dcdctl.core.models.families.vilt import BLOCK_EPS, ViltScorer, build_network
from dcdctl.core.models.official import by_prefix, make_preprocess, num_heads, num_layers, renamed
from dcdctl.core.models.overrides import Overrides
from dcdctl.core.models.preprocess import vilt_image_processor
from dcdctl.core.models.protocols import Table

TOKENIZER = "bert-base-uncased"
_BLOCK = re.compile(r"transformer\.blocks\.(\d+)\.(.+)\.(weight|bias)")
_BLOCK_PARTS = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
_PREFIXES = {
    "text_embeddings.": "vilt.embeddings.text_embeddings.",
    "token_type_embeddings.": "vilt.embeddings.token_type_embeddings.",
    "transformer.cls_token": "vilt.embeddings.cls_token",
    "transformer.pos_embed": "vilt.embeddings.position_embeddings",
    "transformer.patch_embed.proj.": "vilt.embeddings.patch_embeddings.projection.",
    "transformer.norm.": "vilt.layernorm.",
    "pooler.": "vilt.pooler.",
    "rank_output.": "rank_output.",
}


def from_state(state: Mapping[str, Tensor], hyper: Table, overrides: Overrides, path: Path) -> ViltScorer:
    """The scorer of an official checkpoint's weights and configuration. ModelError names what is missing."""
    weights, unused = to_transformers(state)
    config = _config_of(weights, hyper, overrides.num_attention_heads, path)
    network = build_network(config)
    # Not strict, since unneeded entries are only reported; missing ones are an error.
    missing, unexpected = network.load_state_dict(weights, strict=False)
    check_complete(path, missing, "a ViLT scorer")
    processor = vilt_image_processor(overrides.image_size or hyper.get("image_size") or config.image_size)
    preprocess = make_preprocess(overrides, hyper, config, processor, tokenizer=TOKENIZER)
    return ViltScorer(network, preprocess, tuple(sorted([*unused, *unexpected])))


def to_transformers(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The weights under transformers' names, and the official names that scoring does not need.

    The head of a file without `rank_output` is row 1 of its matching head, as in the official code.
    """
    return renamed(state, _rename)


def _rename(key: str, tensor: Tensor) -> dict[str, Tensor]:
    block = _BLOCK.fullmatch(key)
    if block:
        layer, part, kind = f"vilt.encoder.layer.{block[1]}", block[2], block[3]
        if part == "attn.qkv":
            thirds = zip(("query", "key", "value"), tensor.chunk(3), strict=True)
            return {f"{layer}.attention.attention.{name}.{kind}": third for name, third in thirds}
        return {f"{layer}.{_BLOCK_PARTS[part]}.{kind}": tensor} if part in _BLOCK_PARTS else {}
    return by_prefix(key, tensor, _PREFIXES)


def _config_of(weights: Mapping[str, Tensor], hyper: Table, given_heads: int | None, path: Path) -> ViltConfig:
    """Sizes from the tensors. Heads and dropout, which no tensor shows, come from the configuration or the user."""
    text = "vilt.embeddings.text_embeddings"
    shapes = {name: tensor.shape for name, tensor in weights.items()}
    needed = ["vilt.embeddings.patch_embeddings.projection.weight", "vilt.encoder.layer.0.intermediate.dense.weight"]
    needed += [f"{text}.{name}_embeddings.weight" for name in ("word", "position", "token_type")]
    absent = [name for name in [*needed, "vilt.embeddings.token_type_embeddings.weight"] if name not in shapes]
    check_complete(path, absent, "a ViLT scorer")
    num_positions, width = shapes["vilt.embeddings.position_embeddings"][1:]
    patch_size = shapes[needed[0]][-1]
    return ViltConfig(
        vocab_size=shapes[f"{text}.word_embeddings.weight"][0],
        type_vocab_size=shapes[f"{text}.token_type_embeddings.weight"][0],
        modality_type_vocab_size=shapes["vilt.embeddings.token_type_embeddings.weight"][0],
        max_position_embeddings=shapes[f"{text}.position_embeddings.weight"][0],
        hidden_size=width,
        num_hidden_layers=num_layers(shapes, "vilt.encoder.layer."),
        num_attention_heads=num_heads(given_heads or hyper.get("num_heads"), width, "num_attention_heads", path),
        intermediate_size=shapes[needed[1]][0],
        # One position is that of the class token.
        image_size=math.isqrt(num_positions - 1) * patch_size,
        patch_size=patch_size,
        hidden_dropout_prob=hyper.get("drop_rate", 0.1),
        # The attention of timm, which the official code uses, applies no dropout to attention probabilities.
        attention_probs_dropout_prob=0.0,
        layer_norm_eps=BLOCK_EPS,
        # transformers 5 has no default. It decides only the gradient of the padding row.
        pad_token_id=0,
    )
