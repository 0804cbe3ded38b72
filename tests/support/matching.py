"""Tiny BLIP, BLIP-2 and BridgeTower scorers with random weights."""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from byte_level import byte_level_bpe
from transformers import (
    Blip2Config,
    Blip2ForImageTextRetrieval,
    BlipConfig,
    BlipForImageTextRetrieval,
    BlipImageProcessorPil,
    BridgeTowerConfig,
    BridgeTowerForImageAndTextRetrieval,
    BridgeTowerImageProcessorPil,
    OPTConfig,
)

from dcdctl.core import models
from dcdctl.core.models.families.blip import BlipScorer
from dcdctl.core.models.families.blip2 import Blip2Scorer
from dcdctl.core.models.families.bridgetower import BridgeTowerScorer

SIDE, PATCH, LENGTH = 32, 8, 24
_TEXT: dict[str, Any] = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 16}
# Narrower than the text, so that keys and values of an image are no square projections.
_VISION = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "image_size": SIDE,
    "patch_size": PATCH,
}


def blip_config(vocab_size: int, **text: Any) -> BlipConfig:
    text = {
        **_TEXT,
        "vocab_size": vocab_size,
        "max_position_embeddings": 48,
        "layer_norm_eps": 1e-6,
        "bos_token_id": 2,
        "sep_token_id": 3,
        **text,
    }
    return BlipConfig(text_config=text, vision_config=_VISION, image_text_hidden_size=8)


def blip2_config(vocab_size: int, **settings: Any) -> Blip2Config:
    qformer = {**_TEXT, "vocab_size": vocab_size, "max_position_embeddings": 48, "use_qformer_text_input": True}
    small = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "ffn_dim": 8,
        "vocab_size": 8,
        "word_embed_proj_dim": 8,
    }
    text = OPTConfig(**small, max_position_embeddings=8, bos_token_id=1, eos_token_id=1, pad_token_id=0)
    return Blip2Config(
        vision_config=_VISION,
        qformer_config=qformer,
        text_config=text,
        num_query_tokens=5,
        image_text_hidden_size=8,
        **settings,
    )


def bridgetower_config(
    vocab_size: int, num_layers: int = 3, num_encoder_layers: int = 4, **settings: Any
) -> BridgeTowerConfig:
    # The vision encoder has one attention head per 64 channels.
    vision = {"hidden_size": 64, "num_hidden_layers": num_encoder_layers, "image_size": SIDE, "patch_size": PATCH}
    text = {
        **_TEXT,
        "num_hidden_layers": num_encoder_layers,
        "vocab_size": vocab_size,
        "max_position_embeddings": 50,
        "pad_token_id": 1,
    }
    sizes = {"hidden_size": 24, "num_hidden_layers": num_layers, "num_attention_heads": 3}
    return BridgeTowerConfig(vision_config=vision, text_config=text, **sizes, **settings)


def square_processor() -> Any:
    return BlipImageProcessorPil(size={"height": SIDE, "width": SIDE})


def crop_processor() -> Any:
    return BridgeTowerImageProcessorPil(
        size={"shortest_edge": SIDE}, crop_size={"shortest_edge": SIDE}, size_divisor=PATCH
    )


def make_blip(captions: list[str], **text: Any) -> BlipScorer:
    tokenizer = models.word_piece(captions, 120)
    network = _random(BlipForImageTextRetrieval, blip_config(len(tokenizer), **text))
    return BlipScorer(network, _preprocess(tokenizer, square_processor()))


def make_blip2(captions: list[str], **settings: Any) -> Blip2Scorer:
    tokenizer = models.word_piece(captions, 120)
    network = _random(Blip2ForImageTextRetrieval, blip2_config(len(tokenizer), **settings))
    return Blip2Scorer(network, _preprocess(tokenizer, square_processor()))


def make_bridgetower(captions: list[str], num_layers: int = 3, **settings: Any) -> BridgeTowerScorer:
    tokenizer = _reloaded(byte_level_bpe(captions, 120))
    network = _random(BridgeTowerForImageAndTextRetrieval, bridgetower_config(len(tokenizer), num_layers, **settings))
    return BridgeTowerScorer(network, _preprocess(tokenizer, crop_processor()))


def _reloaded(tokenizer: Any) -> Any:
    """The tokenizer as transformers reads it from files, where it gets the special tokens of RoBERTa."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return models.load_tokenizer(folder)


def _random(network_class: Any, config: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return network_class(config)


def _preprocess(tokenizer: Any, processor: Any) -> models.Preprocess:
    return models.Preprocess(tokenizer=tokenizer, image_processor=processor, max_text_len=LENGTH)
