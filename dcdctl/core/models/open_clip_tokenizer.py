"""The two kinds of tokenizers of open_clip as dcdctl reads them, and the file of the library tokenizers that gives the
same ids without open_clip."""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, pre_tokenizers, processors
from tokenizers.models import BPE

from dcdctl.core.models.fingerprint import tokenizer_settings
from dcdctl.core.models.protocols import Table


class _Tokens:
    """What both kinds of tokenizers of open_clip have; the class of each has the members of a tokenizer of transformers
    that dcdctl reads."""

    def __init__(self, tokenizer: Any) -> None:
        """`tokenizer` is one of open_clip's classes, which have no common base."""
        self.tokenizer = tokenizer
        self.model_max_length = int(tokenizer.context_length)
        """Tokens of a caption, special ones and padding included."""
        self.cleaning = str(tokenizer.clean_fn.__name__.removeprefix("_clean_"))
        """How a text is cleaned before it is read as tokens: a key of `text_tower.CLEANINGS`."""

    @property
    def _shared_settings(self) -> Table:
        return {
            "class": type(self.tokenizer).__name__,
            "length": self.model_max_length,
            "clean": self.tokenizer.clean_fn.__name__,
        }


class ClipTokens(_Tokens):
    """CLIP's own tokenizer, which open_clip implements. It knows all bytes, and pads with 0, the id of an exclamation
    mark."""

    unk_token_id = None
    truncation_side = "right"
    padding_side = "right"
    pad_token_id = 0
    pad_token = "!"
    pad_token_type_id = 0
    split_special_tokens = False
    is_fast = True
    """A file of the library tokenizers gives the same ids, once a text is cleaned (`cleaning`)."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__(tokenizer)
        self.all_special_ids = [self.pad_token_id, *tokenizer.all_special_ids]

    def __call__(self, text: str, verbose: bool = True) -> dict[str, list[int]]:
        """All tokens of a text, neither cut nor padded."""
        # open_clip lists these two first, before special tokens that a configuration adds.
        start, end = self.tokenizer.all_special_ids[:2]
        return {"input_ids": [start, *self.tokenizer.encode(text), end]}

    @cached_property
    def settings(self) -> Table:
        """Everything that decides the ids of a caption, JSON-able."""
        # Tokens in the order of their ids, and merges in the order of their ranks.
        vocabulary = hashlib.sha256(
            "\n".join([*self.tokenizer.encoder, *map(" ".join, self.tokenizer.bpe_ranks)]).encode()
        )
        return {
            **self._shared_settings,
            "tokenizer": vocabulary.hexdigest(),
            "pattern": self.tokenizer.pat.pattern,
        }

    @property
    def backend_tokenizer(self) -> Tokenizer:
        """The tokenizer of cleaned texts, by the library tokenizers."""
        return _byte_pairs(self.tokenizer)

    def save(self, folder: Path) -> None:
        """Write nothing: open_clip brings the files of CLIP's own tokenizer."""


class OpenClipTokenizer(_Tokens):
    """A tokenizer of transformers inside one of open_clip, which cleans the texts for it."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__(tokenizer)
        self._inner = inner = tokenizer.tokenizer
        self.all_special_ids = list(inner.all_special_ids)
        self.unk_token_id: int | None = inner.unk_token_id
        self.truncation_side, self.padding_side = inner.truncation_side, inner.padding_side
        self.pad_token_id, self.pad_token = inner.pad_token_id, inner.pad_token
        self.pad_token_type_id = inner.pad_token_type_id
        self.split_special_tokens = inner.split_special_tokens

    def __call__(self, text: str, verbose: bool = True) -> dict[str, list[int]]:
        """All tokens of a text, neither cut nor padded."""
        return {"input_ids": list(self._inner(self.tokenizer.clean_fn(text), verbose=verbose)["input_ids"])}

    @cached_property
    def settings(self) -> Table:
        """Everything that decides the ids of a caption, JSON-able."""
        return {
            **self._shared_settings,
            "mode": self.tokenizer.tokenizer_mode,
            "strips_sep": self.tokenizer.strip_sep_token,
            "tokenizer": tokenizer_settings(self._inner),
        }

    @property
    def is_fast(self) -> bool:
        """Whether a file of the library tokenizers gives the same ids, once a text is cleaned (`cleaning`)."""
        changes_ids = self.tokenizer.tokenizer_mode or self.tokenizer.strip_sep_token
        return bool(self._inner.is_fast and not changes_ids)

    @property
    def backend_tokenizer(self) -> Tokenizer:
        """The tokenizer of cleaned texts, by the library tokenizers."""
        return self._inner.backend_tokenizer

    def save(self, folder: Path) -> None:
        """Write the files of the tokenizer of transformers."""
        self._inner.save_pretrained(folder)


def read_tokenizer(tokenizer: Any) -> ClipTokens | OpenClipTokenizer:
    """A tokenizer of open_clip as dcdctl reads it."""
    return OpenClipTokenizer(tokenizer) if hasattr(tokenizer, "tokenizer") else ClipTokens(tokenizer)


def _byte_pairs(tokenizer: Any) -> Tokenizer:
    """CLIP's own tokenizer, without its cleaning, by the library tokenizers."""
    specials = [tokenizer.decoder[number] for number in tokenizer.all_special_ids]
    made = Tokenizer(BPE(tokenizer.encoder, list(tokenizer.bpe_ranks), end_of_word_suffix="</w>"))
    # The pattern of open_clip ignores case and keeps what it matches, so that spaces are left out.
    words = pre_tokenizers.Split(Regex(f"(?i){tokenizer.pat.pattern}"), "removed", invert=True)
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    start, end = specials[:2]
    ends = [(token, tokenizer.encoder[token]) for token in (start, end)]
    made.post_processor = processors.TemplateProcessing(single=f"{start} $A {end}", special_tokens=ends)
    made.add_special_tokens([AddedToken(token, normalized=False) for token in specials])
    return made
