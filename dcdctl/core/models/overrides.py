"""What a user may set about a model that its files do not say, or say otherwise (`--model-set NAME=VALUE`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dcdctl.core import config
from dcdctl.core.errors import ConfigError, ModelError


@dataclass(frozen=True, kw_only=True)
class TextOverrides:
    """Of a text encoder of its own, as METER has one."""

    num_attention_heads: int | None = None

    def __post_init__(self) -> None:
        if self.num_attention_heads is not None and self.num_attention_heads < 1:
            raise ConfigError(f"model setting text.num_attention_heads must be at least 1, got {self.num_attention_heads}")


@dataclass(frozen=True, kw_only=True)
class Overrides:
    """None leaves a setting as the model's files have it."""

    image_size: int | None = None
    """Shorter side of the resized image, in pixels."""
    max_text_len: int | None = None
    """Tokens of a caption that are read, [CLS] and [SEP] counted."""
    tokenizer: str | None = None
    """Folder or Hub id of a tokenizer."""
    num_attention_heads: int | None = None
    """Heads of each attention (METER: of the fusion); stored nowhere in an official checkpoint without its configuration."""
    text: TextOverrides = TextOverrides()

    def __post_init__(self) -> None:
        for name in ("image_size", "max_text_len", "num_attention_heads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"model setting {name} must be at least 1, got {value}")
        if self.max_text_len is not None and self.max_text_len < 3:
            raise ConfigError(f"model setting max_text_len must be at least 3 ([CLS], a word, [SEP]), got {self.max_text_len}")


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
