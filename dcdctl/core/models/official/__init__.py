"""What the readers of official checkpoints share (`vilt`, `meter`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

from torch import Tensor
from transformers import BaseImageProcessor, PreTrainedConfig

from dcdctl.core.errors import ModelError
from dcdctl.core.models.overrides import Overrides
from dcdctl.core.models.preprocess import Preprocess, fitted_preprocess
from dcdctl.core.models.protocols import Table
from dcdctl.core.models.tokenizer import TOKENIZER_HINT, load_tokenizer

MATCH_ROW = 1
"""The row of the two-way matching head that stands for "match"."""
BASE_WIDTH, BASE_HEADS = 768, 12
"""Base sizes of ViLT, METER and RoBERTa, for a file without its configuration: no tensor shows the number of heads."""
MAX_TEXT_LEN = 40
"""Tokens of a caption in the official retrieval configurations, for a file without its configuration."""


def unpack(loaded: object, path: Path) -> tuple[dict[str, Tensor], Table]:
    """The weights and the run's configuration in a checkpoint's contents; the configuration is empty if the file has
    none."""
    state = {}
    weights = loaded.get("state_dict", loaded) if isinstance(loaded, Mapping) else None
    if isinstance(weights, Mapping):
        state = {key: value for key, value in weights.items() if isinstance(value, Tensor)}
    if not state:
        raise ModelError(
            f"{path} holds no weights", hint="a checkpoint is {'state_dict': ...}, or the weights themselves"
        )
    assert isinstance(loaded, Mapping)
    # Lightning keeps the run's configuration in hyper_parameters, under "config".
    hyper = loaded.get("hyper_parameters") or {}
    return state, hyper.get("config", hyper) if isinstance(hyper, Mapping) else {}


def renamed(
    state: Mapping[str, Tensor], rename: Callable[[str, Tensor], dict[str, Tensor]]
) -> tuple[dict[str, Tensor], list[str]]:
    """The weights under their new names, the ranking head among them, and the official names without a new one, which
    scoring does not need."""
    new = {name: rename(name, tensor) for name, tensor in state.items()}
    weights = {name: tensor for each in new.values() for name, tensor in each.items()}
    return weights | ranking_head(state), [name for name, each in new.items() if not each]


def by_prefix(name: str, tensor: Tensor, prefixes: Mapping[str, str]) -> dict[str, Tensor]:
    """The tensor under the name with its new prefix; empty if no prefix fits."""
    # A buffer of older versions of transformers, not a weight.
    if name.endswith("position_ids"):
        return {}
    prefix = next((official for official in prefixes if name.startswith(official)), None)
    return {} if prefix is None else {prefixes[prefix] + name.removeprefix(prefix): tensor}


def ranking_head(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The head that ranks: `rank_output`. A pre-training checkpoint has none, and the "match" row of its matching head
    is used."""
    # In a fine-tuned checkpoint the two heads differ: `rank_output` started as that row and was trained on its own.
    head = {name: state[name] for name in ("rank_output.weight", "rank_output.bias") if name in state}
    for part in ("weight", "bias"):
        matching = state.get(f"itm_score.fc.{part}")
        if matching is not None:
            # A copy: the released code shares the storage of both heads, and on a CPU loading one overwrites the other.
            head.setdefault(f"rank_output.{part}", matching[MATCH_ROW : MATCH_ROW + 1].clone())
    return head


def num_heads(given: int | None, width: int, name: str, path: Path) -> int:
    """The number of attention heads at a width, as given, or that of the base size; ModelError if it is unknown or does
    not divide the width."""
    hint = f"set it with `--model-set {name}=N`"
    if given is None and width != BASE_WIDTH:
        raise ModelError(f"{path} does not give {name}, and its width is {width}", hint=hint)
    count = given or BASE_HEADS
    if width % count:
        raise ModelError(f"{path}: the width {width} is not a multiple of {name} {count}", hint=hint)
    return count


def num_layers(names: Iterable[str], prefix: str) -> int:
    """The number of layers among the names of tensors, PREFIX0.part to PREFIXn.part."""
    return 1 + max(int(name.removeprefix(prefix).partition(".")[0]) for name in names if name.startswith(prefix))


def make_preprocess(
    overrides: Overrides,
    hyper: Table,
    text_config: PreTrainedConfig,
    image_processor: BaseImageProcessor,
    *,
    tokenizer: str,
    image_transform: Literal["", "meter"] = "",
) -> Preprocess:
    """The preprocessing of a checkpoint: the user's overrides come first, then the run's configuration, then the
    official defaults.

    `tokenizer` is the official one; `text_config` gives the size of the model's vocabulary and its number of text
    positions.
    """
    loaded = load_tokenizer(overrides.tokenizer or tokenizer, use=TOKENIZER_HINT)
    length = overrides.max_text_len or int(hyper.get("max_text_len") or 0)
    preprocess = fitted_preprocess(
        loaded, image_processor, text_config, max_text_len=length or None, default=MAX_TEXT_LEN
    )
    return replace(preprocess, image_transform=image_transform)
