"""Tiny random models of open_clip in folders as open_clip saves them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.push_to_hf_hub import save_config_for_hf, save_for_hf
from open_clip.tokenizer import SimpleTokenizer
from safetensors.torch import save_file
from transformers import BertConfig

from dcdctl.core import models

SIDE = 32
LENGTH = 12
_VISION = {"image_size": SIDE, "patch_size": 8, "width": 16, "head_width": 8}
_TEXT = {"width": 16, "heads": 2}
# As in the configurations of SigLIP in open_clip.
_SIGLIP_TEXT = {
    **{
        "context_length": LENGTH,
        "hf_tokenizer_name": "timm/ViT-B-16-SigLIP",
        "tokenizer_kwargs": {"clean": "canonicalize"},
    },
    **{"no_causal_mask": True, "proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6}},
}
OPEN_CLIPS: dict[str, dict[str, Any]] = {
    "open_clip ViT": {
        "embed_dim": 8,
        "quick_gelu": True,
        "vision_cfg": _VISION,
        "text_cfg": {"context_length": 77, **_TEXT},
    },
    "open_clip SigLIP": {
        **{"embed_dim": 8, "custom_text": True, "init_logit_bias": -10},
        "vision_cfg": _VISION,
        "text_cfg": _TEXT | _SIGLIP_TEXT,
    },
    # A convolutional image encoder of timm, as in MobileCLIP.
    "open_clip with timm": {
        **{"embed_dim": 8, "custom_text": True},
        "vision_cfg": {
            "timm_model_name": "test_efficientnet",
            "timm_pool": "avg",
            "timm_proj": "linear",
            "image_size": SIDE,
        },
        "text_cfg": {**_TEXT, "context_length": LENGTH, "hf_tokenizer_name": "bert-base-uncased"},
    },
    "open_clip with BERT": {
        "embed_dim": 8,
        "vision_cfg": _VISION,
        "text_cfg": {
            "hf_model_name": "",
            "hf_tokenizer_name": "",
            "hf_pooler_type": "mean_pooler",
            "context_length": LENGTH,
        },
    },
    "open_clip CoCa": {
        **{
            "embed_dim": 8,
            "vision_cfg": {**_VISION, "attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},
        },
        "text_cfg": {
            **_TEXT,
            "context_length": LENGTH,
            "hf_tokenizer_name": "bert-base-uncased",
            "embed_cls": True,
            "output_tokens": True,
        },
        "multimodal_cfg": {**_TEXT, "context_length": LENGTH, "vocab_size": 8, "attn_pooler_heads": 2},
        "custom_text": True,
    },
}
_TABLES: dict[str, dict[str, Any]] = {}


def _read_tables(self: Any, *args: Any, read: Any = SimpleTokenizer.__init__, **kwargs: Any) -> None:
    """Make CLIP's own tokenizer from the 49,000 tokens that were read for the first one, which takes a tenth of a
    second."""
    key = repr((args, kwargs))
    if key not in _TABLES:
        read(self, *args, **kwargs)
        _TABLES[key] = dict(vars(self))
    vars(self).update(_TABLES[key], cache=dict(_TABLES[key]["cache"]))


SimpleTokenizer.__init__ = _read_tables


def save_open_clip(kind: str, captions: list[str], folder: Path, num_layers: int = 2) -> Path:
    """A folder with weights large enough that vectors depend on their input; its tokenizer has learned the captions, or
    is CLIP's own."""
    config, tokenizer = copy.deepcopy(OPEN_CLIPS[kind]), models.word_piece(captions, 120)
    text, folder = config["text_cfg"], folder / kind.replace(" ", "-")
    for part in (config["vision_cfg"], text, config.get("multimodal_cfg", {})):
        if "width" in part:
            part["layers"] = num_layers
    if "hf_tokenizer_name" in text:
        text["vocab_size"] = len(tokenizer)
        tokenizer.save_pretrained(folder)
    if "hf_model_name" in text:
        small = {"hidden_size": 16, "num_hidden_layers": num_layers, "num_attention_heads": 2, "intermediate_size": 16}
        BertConfig(vocab_size=len(tokenizer), **small).save_pretrained(folder.parent / "bert")
        text |= {"hf_model_name": str(folder.parent / "bert"), "hf_tokenizer_name": "google-bert/bert-base-uncased"}
    is_custom = config.get("custom_text") or "hf_model_name" in text
    build = open_clip.CoCa if "multimodal_cfg" in config else open_clip.CustomTextCLIP if is_custom else open_clip.CLIP
    arguments = {name: value for name, value in copy.deepcopy(config).items() if name != "custom_text"}
    arguments["text_cfg"] = {**arguments["text_cfg"], "hf_model_pretrained": False}
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(7)
        network = build(**arguments)
        for name, parameter in network.named_parameters():
            if name not in ("logit_scale", "logit_bias"):
                # CoCa leaves a projection that is not initialized.
                parameter.nan_to_num_(0, 0, 0).clamp_(-1, 1).add_(0.2 * torch.randn(parameter.shape))
    network.visual.image_mean, network.visual.image_std = (0.5, 0.4, 0.45), (0.25, 0.3, 0.2)
    network.visual.preprocess_cfg = {
        "interpolation": "bicubic",
        "resize_mode": "squash" if "SigLIP" in kind else "shortest",
    }
    if "hf_tokenizer_name" in text:
        wrapped = open_clip.tokenizer.HFTokenizer(str(folder), context_length=LENGTH)
        save_for_hf(network, wrapped, config, str(folder), safe_serialization=True)
    else:
        folder.mkdir(parents=True)
        save_config_for_hf(network, folder / "open_clip_config.json", config)
        save_file(network.state_dict(), folder / "open_clip_model.safetensors")
    return folder
