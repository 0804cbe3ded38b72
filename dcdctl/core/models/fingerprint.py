"""The fingerprint of a model or of its encoders: a digest of all that decides a score outside training, for every
family.

Every setting counts unless it is named here, so a setting that a new version of a library adds counts too. What is
named here cannot change a score: names, places, versions, labels, dropout, initialization, and the number type of the
saved file, since a loaded model is float32. The implementation of attention and the device are not settings of a model,
so they do not count either.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from dcdctl.core import files
from dcdctl.core.models.protocols import Table

if TYPE_CHECKING:  # transformers takes seconds
    from transformers import BaseImageProcessor, PreTrainedTokenizerBase

VERSION = "dcdctl model 2"
"""The first bytes of the digest's input; a new rule gets a new number, so that an old fingerprint never equals a new
one."""
_NAMES = {
    "name_or_path",
    "_name_or_path",
    "transformers_version",
    "architectures",
    "auto_map",
    "processor_class",
    "_processor_class",
    # Labels of a classification.
    "id2label",
    "label2id",
    "num_labels",
    "num_classes",
    "label_names",
    "label_descriptions",
    "problem_type",
    "finetuning_task",
    # The number type of the file, and the implementation of attention.
    "dtype",
    "torch_dtype",
    "attn_implementation",
    "_attn_implementation",
    "_attn_implementation_autoset",
}
# Not every name with "drop" in it: ESM's token_dropout scales the embeddings in eval mode.
_TRAINING = {
    "dropout",
    "hidden_dropout",
    "hidden_dropout_prob",
    "activation_dropout",
    "classifier_dropout",
    "projection_dropout",
    "dropout_rate",
    "attention_dropout",
    "attention_probs_dropout_prob",
    "attn_dropout",
    "attn_pdrop",
    "embd_pdrop",
    "resid_pdrop",
    "drop_rate",
    "drop_path_rate",
    "attn_drop_rate",
    "proj_drop_rate",
    "pos_drop_rate",
    "layerdrop",
    "encoder_layerdrop",
    "initializer_range",
    "initializer_factor",
    "init_std",
    "use_cache",
    "gradient_checkpointing",
}
_CONFIG = frozenset(_NAMES | _TRAINING)
_TIMM_SOURCE = frozenset(
    {"url", "file", "hf_hub_id", "hf_hub_filename", "source", "tag", "custom_load", "state_dict"}
    | {"license", "description", "origin_url", "paper_name", "paper_ids", "notes"}
)
"""Entries of timm's `pretrained_cfg` that say where the weights come from."""
# `Preprocess` gives processors RGB images only.
_PROCESSOR = frozenset(_NAMES | {"do_convert_rgb"})
# A call sets truncation and padding of the backend, from its arguments and `_TOKENIZER_ATTRIBUTES`. No decoder is ever
# called.
_BACKEND = ("version", "truncation", "padding", "decoder")
_TOKENIZER_ATTRIBUTES = ("truncation_side", "padding_side", "pad_token_id", "split_special_tokens", "model_input_names")
"""All that decides token ids and mask besides the backend. `model_max_length` is never read, because `Preprocess` gives
a length."""
_SLOW_TOKENIZER = frozenset(
    _NAMES
    | {
        "model_max_length",
        "chat_template",
        "backend",
        "is_local",
        "local_files_only",
        "tokenizer_file",
        "special_tokens_map_file",
    }
)


def digest_of(
    network: nn.Module,
    *,
    config: Table,
    preprocess: Table,
    settings: Table | None = None,
    leave_out: str | tuple[str, ...] = "",
) -> str:
    """SHA-256, in hex, of the name, type, shape and bytes of every tensor of a network, and of all settings that change
    its scores.

    `config` is what config.json holds, `preprocess` is `Preprocess.settings`, and `settings` is what dcdctl.json holds.
    Tensors whose names start with `leave_out`, or with one of several, do not count, if it is not empty.
    """
    digest = hashlib.sha256(f"{VERSION}\n".encode())
    # Sorted, because a state dict has the order in which modules were created.
    for name, value in sorted(network.state_dict().items()):
        if leave_out and name.startswith(leave_out):
            continue
        tensor = value.cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        # Bytes, since NumPy has no bfloat16; flattened, since torch cannot view a scalar as several bytes.
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    parts = {"config": _plain(config, _CONFIG), "preprocess": preprocess, "settings": _plain(settings or {})}
    digest.update(files.digest_of(parts).encode())
    return digest.hexdigest()


def text_settings(preprocess: Table) -> Table:
    """The part of `Preprocess.settings` that decides the tokens of a caption: all but the settings of images."""
    return {name: value for name, value in preprocess.items() if name not in ("image", "image_transform")}


def processor_settings(processor: BaseImageProcessor) -> Any:
    """All settings of an image processor, with its class."""
    return _plain(processor.to_dict(), _PROCESSOR)


def tokenizer_settings(tokenizer: PreTrainedTokenizerBase) -> Table:
    """The class of a tokenizer, a digest of what it saves, and the attributes that a call reads. Use changes none of
    them.

    For 250,000 tokens this takes 0.7 s (WordPiece) to 1.4 s (BPE) on one core of a 2-core x86 VM, for 30,000 tokens
    0.03 s.
    """
    attributes = {name: _plain(getattr(tokenizer, name)) for name in _TOKENIZER_ATTRIBUTES}
    if tokenizer.is_fast:
        # The backend reads a number as up to one unit in the last place off, so numbers that are saved again differ
        # from those that were read.
        saved = json.loads(tokenizer.backend_tokenizer.to_str(), parse_float=lambda text: float(np.float32(text)))
        digest = files.digest_of({name: value for name, value in saved.items() if name not in _BACKEND})
    else:
        # A tokenizer in Python has no serialization but its files.
        saved_files: dict[str, object] = {}
        with tempfile.TemporaryDirectory() as folder:
            tokenizer.save_pretrained(folder)
            for path in Path(folder).iterdir():
                if path.name == "tokenizer_config.json":
                    saved_files[path.name] = _plain(files.read_json(path), _SLOW_TOKENIZER)
                else:
                    saved_files[path.name] = files.sha256_of(path)
        digest = files.digest_of(saved_files)
    return {"class": type(tokenizer).__name__, "digest": digest, **attributes}


def _plain(value: object, unseen: Set[str] = frozenset()) -> Any:
    """A JSON-able value without the entries of these names and those that are None; 1.0 is 1, as a file may hold
    either."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list | tuple):
        return [_plain(item, unseen) for item in value]
    if isinstance(value, Mapping):
        plain = {}
        for key, item in value.items():
            if key not in unseen and item is not None:
                unseen_inside = unseen | _TIMM_SOURCE if key == "pretrained_cfg" else unseen
                plain[str(key)] = _plain(item, unseen_inside)
        return plain
    return value
