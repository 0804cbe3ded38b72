"""Official checkpoints of METER (meter_clip16_288_roberta_flickr.ckpt and similar) and of DCD: parameter names, and
sizes from tensors.

There are three kinds. A retrieval checkpoint has `rank_output`. A pre-training checkpoint has none, and row 1 ("match")
of its matching head is used. The checkpoint of a DCD student also holds its teacher; the parts named `stu_` are the
student.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor
from transformers import CLIPVisionConfig, RobertaConfig

from dcdctl.core.errors import ModelError
from dcdctl.core.models.families.coattention import CoAttentionNetwork, FusionSize
from dcdctl.core.models.families.coattention_scorer import (
    POSITIONS,
    CoAttentionScorer,
    check_image_size,
    resize_positions,
)
from dcdctl.core.models.networks.over_encoders import load_weights
from dcdctl.core.models.official import by_prefix, make_preprocess, num_heads, num_layers, renamed
from dcdctl.core.models.overrides import Overrides
from dcdctl.core.models.preprocess import METER, meter_image_processor
from dcdctl.core.models.protocols import Table

TOKENIZER = "roberta-base"
IMAGE_SIZE = 384
"""Image size of the released retrieval models, used if a file lacks its configuration."""
CLIP_HEAD_WIDTH = 64
"""Width of a head in CLIP; METER's code computes the number of heads from it."""
PAD_TOKEN = 1
"""RoBERTa's padding id, from which its positions are counted."""
STUDENT = "stu_"
"""Prefix of the student's own parts in a DCD checkpoint."""
_FUSION = (
    "cross_modal_text_layers.",
    "cross_modal_image_layers.",
    "cross_modal_text_pooler.",
    "cross_modal_image_pooler.",
    "rank_output.",
)
_PREFIXES = {
    "cross_modal_text_transform.": "text_transform.",
    "cross_modal_image_transform.": "image_transform.",
    "cross_modal_text_pooler.dense.": "text_pooler.",
    "cross_modal_image_pooler.dense.": "image_pooler.",
    "rank_output.": "rank_output.",
    "vit_model.visual.class_embedding": "vision.embeddings.class_embedding",
    "vit_model.visual.conv1.": "vision.embeddings.patch_embedding.",
    "vit_model.visual.positional_embedding": POSITIONS,
    "vit_model.visual.ln_pre.": "vision.pre_layrnorm.",
    "vit_model.visual.ln_post.": "vision.post_layernorm.",
    "text_transformer.embeddings.": "text.embeddings.",
    "text_transformer.encoder.": "text.encoder.",
}
_LAYER = re.compile(r"cross_modal_(text|image)_layers\.(\d+)\.(.+)\.(weight|bias)")
_LAYER_PARTS = {
    "attention.self.query": "self_attention.query",
    "attention.self.key": "self_attention.key",
    "attention.self.value": "self_attention.value",
    "attention.output.dense": "self_attention.dense",
    "attention.output.LayerNorm": "self_attention.norm",
    "crossattention.self.query": "cross_attention.query",
    "crossattention.self.key": "cross_attention.key",
    "crossattention.self.value": "cross_attention.value",
    "crossattention.output.dense": "cross_attention.dense",
    "crossattention.output.LayerNorm": "cross_attention.norm",
    "intermediate.dense": "feed_forward.up",
    "output.dense": "feed_forward.down",
    "output.LayerNorm": "feed_forward.norm",
}
_BLOCK = re.compile(r"vit_model\.visual\.transformer\.resblocks\.(\d+)\.(.+?)[._](weight|bias)")
_BLOCK_PARTS = {
    "attn.out_proj": "self_attn.out_proj",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_NEEDED = {
    POSITIONS,
    "vision.embeddings.patch_embedding.weight",
    "vision.encoder.layers.0.mlp.fc1.weight",
    "text.embeddings.word_embeddings.weight",
    "text.embeddings.position_embeddings.weight",
    "text.embeddings.token_type_embeddings.weight",
    "text.encoder.layer.0.intermediate.dense.weight",
    "text_layers.0.feed_forward.up.weight",
}
"""Tensors that give the sizes."""


def from_state(state: Mapping[str, Tensor], hyper: Table, overrides: Overrides, path: Path) -> CoAttentionScorer:
    """The scorer of an official checkpoint's weights and configuration. ModelError names what is missing."""
    weights, unused = to_network(state)
    if not weights.keys() >= _NEEDED:
        raise ModelError(f"{path} is not a METER with CLIP and RoBERTa: it lacks {min(_NEEDED - weights.keys())}")
    image_size = overrides.image_size or int(hyper.get("image_size") or IMAGE_SIZE)
    vision, text, size = _configs(weights, hyper, overrides, image_size=image_size, path=path)
    # Always, as in METER's code: at the same size this changes nothing.
    weights[POSITIONS] = resize_positions(weights[POSITIONS], image_size // vision.patch_size)
    network = CoAttentionNetwork.from_configs(vision, text, size)
    unknown = load_weights(network, weights, path, "a co-attention scorer")
    processor = meter_image_processor(image_size)
    preprocess = make_preprocess(overrides, hyper, text, processor, tokenizer=TOKENIZER, image_transform=METER)
    return CoAttentionScorer(network, preprocess, tuple(sorted([*unused, *unknown])))


def to_network(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The weights under the network's names, and the official names that scoring does not need."""
    unused = []
    if any(name.startswith(STUDENT) for name in state):
        unused = [name for name in state if name.startswith(_FUSION)]
        state = {name.removeprefix(STUDENT): tensor for name, tensor in state.items() if not name.startswith(_FUSION)}
    weights, others = renamed(state, _rename)
    return weights, [*unused, *others]


def _rename(name: str, tensor: Tensor) -> dict[str, Tensor]:
    if layer := _LAYER.fullmatch(name):
        part = _LAYER_PARTS.get(layer[3])
        return {} if part is None else {f"{layer[1]}_layers.{layer[2]}.{part}.{layer[4]}": tensor}
    if block := _BLOCK.fullmatch(name):
        prefix, part = f"vision.encoder.layers.{block[1]}", block[2]
        if part == "attn.in_proj":
            # CLIP stacks the three projections in the order query, key, value.
            thirds = zip("qkv", tensor.chunk(3), strict=True)
            return {f"{prefix}.self_attn.{letter}_proj.{block[3]}": third for letter, third in thirds}
        return {f"{prefix}.{_BLOCK_PARTS[part]}.{block[3]}": tensor} if part in _BLOCK_PARTS else {}
    if name == "token_type_embeddings.weight":
        # NLVR2 checkpoints have a third row, for a second image.
        return {"modality.weight": tensor[:2]}
    return by_prefix(name, tensor, _PREFIXES)


def _configs(
    weights: Mapping[str, Tensor], hyper: Table, overrides: Overrides, *, image_size: int, path: Path
) -> tuple[CLIPVisionConfig, RobertaConfig, FusionSize]:
    """Sizes from the tensors. Heads, which no tensor shows, come from METER's rule, the configuration or the user."""
    shape = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    width, _, _, patch_size = shape["vision.embeddings.patch_embedding.weight"]
    check_image_size(image_size, patch_size)
    vision = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=shape["vision.encoder.layers.0.mlp.fc1.weight"][0],
        # METER drops CLIP's last block when it builds the model, so the checkpoint already has one block fewer.
        num_hidden_layers=num_layers(shape, "vision.encoder.layers."),
        num_attention_heads=width // CLIP_HEAD_WIDTH,
        image_size=image_size,
        patch_size=patch_size,
        # METER's vision encoder is OpenAI's CLIP, which was trained with this approximation of GELU.
        hidden_act="quick_gelu",
        layer_norm_eps=1e-5,
    )
    vocab_size, text_width = shape["text.embeddings.word_embeddings.weight"]
    text = RobertaConfig(
        vocab_size=vocab_size,
        hidden_size=text_width,
        intermediate_size=shape["text.encoder.layer.0.intermediate.dense.weight"][0],
        num_hidden_layers=num_layers(shape, "text.encoder.layer."),
        num_attention_heads=num_heads(overrides.text_num_attention_heads, text_width, "text.num_attention_heads", path),
        max_position_embeddings=shape["text.embeddings.position_embeddings.weight"][0],
        type_vocab_size=shape["text.embeddings.token_type_embeddings.weight"][0],
        # That of roberta-base; the fusion layers differ (FUSION_EPS).
        layer_norm_eps=1e-5,
        pad_token_id=PAD_TOKEN,
    )
    up, fusion_width = shape["text_layers.0.feed_forward.up.weight"]
    size = FusionSize(
        hidden_size=fusion_width,
        # Counted: `num_layers` in METER's configuration is not used for the fusion.
        num_layers=num_layers(shape, "text_layers."),
        num_heads=num_heads(
            overrides.num_attention_heads or hyper.get("num_heads"), fusion_width, "num_attention_heads", path
        ),
        mlp_ratio=up // fusion_width,
        dropout=float(hyper.get("drop_rate", 0.1)),
    )
    return vision, text, size
