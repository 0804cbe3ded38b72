"""Settings of a model that the user may set where its files lack them or differ (`--model-set NAME=VALUE`,
`--rerank-set`)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated, Literal

from dcdctl.core import config
from dcdctl.core.arguments import Settings
from dcdctl.core.artifacts import Document
from dcdctl.core.config import MOST, Count, Key, between
from dcdctl.core.errors import ConfigError, ModelError
from dcdctl.core.models.protocols import Table
from dcdctl.core.toml import assignments, parse_value

IMAGE_FIRST: Literal["image-first"] = "image-first"
OF_TEXTS = ("max_text_len", "tokenizer")
"""Settings that leave the network as it is."""
OF_VILT = ("image_size", *OF_TEXTS, "num_attention_heads")
OF_METER = (*OF_VILT, "text.num_attention_heads")
OF_CROSS_ENCODERS = ("dtype", "prompt", "order", "max_pixels", "max_text_len")
"""Those of a CrossEncoder of sentence-transformers."""


@dataclass(frozen=True, kw_only=True)
class Overrides:
    """None keeps the setting of the model's files."""

    image_size: Count | None = None
    """Shorter side of the resized image, in pixels."""
    max_text_len: Annotated[int, between(3, MOST)] | None = None  # [CLS], a word, [SEP]
    """Maximum number of tokens of a caption, including [CLS] and [SEP]; a cross-encoder of sentence-transformers adds
    none of these."""
    tokenizer: str | None = None
    """Folder or Hub id of a tokenizer."""
    num_attention_heads: Count | None = None
    """Attention heads (METER: of the fusion layers); an official checkpoint without its configuration does not give
    their number."""
    text_num_attention_heads: Annotated[Count | None, Key("text.num_attention_heads")] = None
    """Attention heads of a separate text encoder, such as METER's."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Number type of the weights; float32 if None."""
    prompt: str | None = None
    """The instruction before a pair; if None, the default prompt that is saved with the model."""
    order: Literal["image-first", "text-first"] | None = None
    """Which of image and caption is the query, and so comes first in the prompt. Only image-first, the default, shares
    the image's part."""
    max_pixels: Count | None = None
    """Largest number of pixels of a resized image; fewer make fewer tokens."""

    def __post_init__(self) -> None:
        config.settle_fields(self, "model-set")


def read_overrides(table: Table, option: str = "model-set") -> Overrides:
    """The overrides in a table. ConfigError for an unknown name of the option lists the known ones."""
    return config.build(Overrides, table, option)


def check_taken(table: Table, takes: Collection[str], ref: object) -> None:
    """ModelError if a setting is given that the model of a reference does not take; ConfigError for a wrong one."""
    read_overrides(table)
    for name in table:
        if name not in takes:
            known = ", ".join(takes) or "no setting"
            raise ModelError(f"{ref} takes no {name}", hint=f"it takes {known}")


def parse_overrides(settings: Settings | None, option: str = "model-set") -> Document:
    """The table of settings, checked; `option` is the one of the command line that has them.

    >>> parse_overrides(["image_size=384", "tokenizer=words/bert"])
    {'image_size': 384, 'tokenizer': 'words/bert'}
    """
    table = {}
    for assignment in assignments(settings):
        name, equals, value = assignment.partition("=")
        if not equals or not name.strip():
            raise ConfigError(
                f"--{option} expects NAME=VALUE, got {assignment!r}", hint=f"for example --{option} image_size=384"
            )
        table[name.strip()] = parse_value(value)
    read_overrides(table, option)
    return table
