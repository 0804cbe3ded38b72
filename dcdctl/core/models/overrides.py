"""What a user may set about a model that its files do not say, or say otherwise (`--model-set NAME=VALUE`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from dcdctl.core import config
from dcdctl.core.config import AtLeast, Count
from dcdctl.core.errors import ConfigError, ModelError


@dataclass(frozen=True, kw_only=True)
class TextOverrides:
    """Of a text encoder of its own, as METER has one."""

    num_attention_heads: Count | None = None

    def __post_init__(self) -> None:
        config.check_fields(self, "model-set.text")


@dataclass(frozen=True, kw_only=True)
class Overrides:
    """None leaves a setting as the model's files have it."""

    image_size: Count | None = None
    """Shorter side of the resized image, in pixels."""
    max_text_len: Annotated[int, AtLeast(3)] | None = None  # [CLS], a word, [SEP]
    """Tokens of a caption that are read, [CLS] and [SEP] counted."""
    tokenizer: str | None = None
    """Folder or Hub id of a tokenizer."""
    num_attention_heads: Count | None = None
    """Heads of each attention (METER: of the fusion); stored nowhere in an official checkpoint without its configuration."""
    text: TextOverrides = TextOverrides()

    def __post_init__(self) -> None:
        config.check_fields(self, "model-set")


def read_overrides(table: Mapping[str, Any]) -> Overrides:
    """The overrides of a table, whose names may be dotted; an unknown name is a ConfigError that lists the known ones."""
    nested: dict[str, Any] = {}
    for name, value in table.items():
        outer, dot, inner = name.partition(".")
        if dot:
            nested.setdefault(outer, {})[inner] = value
        else:
            nested[name] = value
    return config.build(Overrides, nested, "model-set")


def check_no_text_encoder(wanted: Overrides, ref: object) -> None:
    """ModelError if something is set of a text encoder that the model does not have, or whose sizes its own files say."""
    if wanted.text != TextOverrides():
        raise ModelError(f"text.num_attention_heads is for METER checkpoints, and {ref} is none", hint="leave that setting out")


def parse_overrides(assignments: Sequence[str]) -> dict[str, Any]:
    """The table of `NAME=VALUE` assignments, checked.

    >>> parse_overrides(["image_size=384", "tokenizer=words/bert"])
    {'image_size': 384, 'tokenizer': 'words/bert'}
    """
    table = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals or not name.strip():
            raise ConfigError(f"--model-set expects NAME=VALUE, got {assignment!r}", hint="for example --model-set image_size=384")
        table[name.strip()] = config.parse_value(value)
    read_overrides(table)
    return table
