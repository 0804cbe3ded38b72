"""Tiny random dual encoders as their own library saves them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from tokenizers import Tokenizer, normalizers, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import (
    Aimv2Config,
    AlignConfig,
    AltCLIPConfig,
    AutoModel,
    ChineseCLIPConfig,
    ChineseCLIPImageProcessorPil,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPSegConfig,
    EfficientNetImageProcessorPil,
    GemmaTokenizer,
    MetaClip2Config,
    Siglip2Config,
    Siglip2ImageProcessorPil,
    SiglipConfig,
    SiglipImageProcessorPil,
)

from dcdctl.core import models

SIDE = 32
_SMALL = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}
_ALIGN_VISION = {
    "image_size": SIDE,
    "width_coefficient": 1.0,
    "depth_coefficient": 1.0,
    "hidden_dim": 16,
    "kernel_sizes": [3],
    "strides": [2],
}
_ALIGN_VISION |= {
    "in_channels": [32],
    "out_channels": [16],
    "num_block_repeats": [1],
    "expand_ratios": [1],
    "depthwise_padding": [],
}
_CROP = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
_SQUARE = {"height": SIDE, "width": SIDE}


def _vision(text: dict[str, Any]) -> dict[str, Any]:
    return {**_SMALL, "num_hidden_layers": text["num_hidden_layers"], "image_size": SIDE, "patch_size": 8}


def _clip(config_class: Any, text: dict[str, Any], **settings: Any) -> tuple[Any, Any]:
    config = config_class(vision_config=_vision(text), text_config={**text, **settings}, projection_dim=8)
    processor = ChineseCLIPImageProcessorPil if config_class is ChineseCLIPConfig else CLIPImageProcessorPil
    return config, processor(**_CROP)


def _siglip(text: dict[str, Any]) -> tuple[Any, Any]:
    config = SiglipConfig(vision_config=_vision(text), text_config={**text, "projection_size": 16})
    return config, SiglipImageProcessorPil(size=_SQUARE)


def _siglip2(text: dict[str, Any]) -> tuple[Any, Any]:
    # The patches of the released models: their processor in transformers has these numbers in place of those that it
    # was saved with.
    vision = {**_SMALL, "num_hidden_layers": text["num_hidden_layers"], "patch_size": 16, "num_patches": 256}
    config = Siglip2Config(vision_config=vision, text_config={**text, "projection_size": 16})
    return config, Siglip2ImageProcessorPil(patch_size=16, max_num_patches=256)


def _align(text: dict[str, Any]) -> tuple[Any, Any]:
    config = AlignConfig(
        vision_config=_ALIGN_VISION, text_config={**text, "max_position_embeddings": 80}, projection_dim=16
    )
    return config, EfficientNetImageProcessorPil(size=_SQUARE, do_center_crop=False)


DUALS = {
    "CLIP": partial(_clip, CLIPConfig),
    "MetaCLIP 2": partial(_clip, MetaClip2Config),
    "SigLIP": _siglip,
    "SigLIP 2": _siglip2,
    "Chinese-CLIP": partial(_clip, ChineseCLIPConfig, max_position_embeddings=64),
    "ALIGN": _align,
}


OTHERS = {
    "AIMv2": partial(_clip, Aimv2Config),
    "AltCLIP": partial(_clip, AltCLIPConfig, project_dim=12),
    "CLIPSeg": partial(_clip, CLIPSegConfig),
}
"""Dual encoders that no code of dcdctl names."""


def save_sentence_transformer(captions: list[str], folder: Path, *, with_dense: bool) -> Path:
    """The folder of a SentenceTransformer over a CLIP, as that library saves it; with or without a layer behind the
    CLIP."""
    transformer = Transformer(
        str(save_dual("CLIP", captions, folder / "clip", num_layers=1)), processor_kwargs={"backend": "pil"}
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(9)
        modules = [transformer, *([Dense(in_features=8, out_features=6)] if with_dense else []), Normalize()]
    SentenceTransformer(modules=modules, device="cpu").save_pretrained(
        str(folder / "sentences"), create_model_card=False
    )
    return folder / "sentences"


def gemma(captions: list[str], length: int = 24) -> GemmaTokenizer:
    """A tokenizer as the files of SigLIP 2 describe it: Gemma's byte pairs with case, `do_lower_case`, which Gemma's
    class ignores, and an end that is never cut."""
    made = Tokenizer(BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    made.normalizer = normalizers.Replace(" ", "\u2581")
    made.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    specials = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=specials, show_progress=False)
    made.train_from_iterator([*captions, *map(str.upper, captions)], trainer)
    pairs = json.loads(made.to_str())["model"]
    settings = {"padding_side": "right", "add_bos_token": False, "add_eos_token": True, "do_lower_case": True}
    merges = list(map(tuple, pairs["merges"]))
    return GemmaTokenizer(vocab=pairs["vocab"], merges=merges, model_max_length=length, **settings)


def save_dual(kind: str, captions: list[str], folder: Path, num_layers: int = 2, tokenizer: Any = None) -> Path:
    """A folder with weights large enough that vectors depend on their input, a tokenizer that has learned the captions,
    and a processor."""
    tokenizer = tokenizer or models.word_piece(captions, 120)
    if kind in OTHERS:
        # Shorter than there are positions, as that of AltCLIP, whose RoBERTa has two positions less than its table.
        tokenizer.model_max_length = 20
    # transformers reads it as the tokenizer of SigLIP 2 there, which adds two tokens.
    text = {
        **_SMALL,
        "num_hidden_layers": num_layers,
        "vocab_size": len(tokenizer) + 2,
        "max_position_embeddings": 24,
        "bos_token_id": 2,
        "eos_token_id": 3,
        "pad_token_id": 0,
    }
    config, processor = (DUALS | OTHERS)[kind](text)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(5)
        network = AutoModel.from_config(config)
        for name, parameter in network.named_parameters():
            if name not in ("logit_scale", "logit_bias", "temperature"):
                parameter += 0.2 * torch.randn(parameter.shape)
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@torch.no_grad()
def vectors_of(model: Any, images: Sequence[Image.Image], texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
    return model.embed_images(model.preprocess.images(images)), model.embed_texts(model.preprocess.texts(texts))
