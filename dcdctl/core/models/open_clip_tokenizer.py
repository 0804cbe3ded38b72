"""A tokenizer of open_clip as dcdctl reads it, and the file of the library tokenizers that gives the same ids without
open_clip."""

from __future__ import annotations

import hashlib
from functools import cached_property
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Regex, Tokenizer, pre_tokenizers, processors
from tokenizers.models import BPE

from dcdctl.core.models.fingerprint import tokenizer_settings
from dcdctl.core.models.protocols import Table

if TYPE_CHECKING:  # transformers takes seconds
    from transformers import PreTrainedTokenizerBase


class OpenClipTokenizer:
    """A tokenizer of open_clip with the members of a tokenizer of transformers that dcdctl reads."""

    def __init__(self, tokenizer: Any) -> None:
        """`tokenizer` is one of open_clip's classes, which have no common base."""
        self.tokenizer = tokenizer
        self.hugging_face: PreTrainedTokenizerBase | None = getattr(tokenizer, "tokenizer", None)
        """The tokenizer of transformers inside; None for CLIP's own, which open_clip implements."""
        self.model_max_length = int(tokenizer.context_length)
        """Tokens of a caption, special ones and padding included."""
        self.cleaning = str(tokenizer.clean_fn.__name__.removeprefix("_clean_"))
        """How a text is cleaned before it is read as tokens: a key of `text_tower.CLEANINGS`."""
        inner = self.hugging_face
        # CLIP's own tokenizer pads with 0, and knows all bytes.
        self.all_special_ids = [0, *tokenizer.all_special_ids] if inner is None else list(inner.all_special_ids)
        self.unk_token_id: int | None = None if inner is None else inner.unk_token_id
        for name, of_clip in CLIP_PADDING.items():
            setattr(self, name, of_clip if inner is None else getattr(inner, name))

    def __call__(self, text: str, verbose: bool = True) -> dict[str, list[int]]:
        """All tokens of a text, neither cut nor padded."""
        if (inner := self.hugging_face) is not None:
            return {"input_ids": list(inner(self.tokenizer.clean_fn(text), verbose=verbose)["input_ids"])}
        # open_clip lists these two first, before special tokens that a configuration adds.
        start, end = self.tokenizer.all_special_ids[:2]
        return {"input_ids": [start, *self.tokenizer.encode(text), end]}

    @cached_property
    def settings(self) -> Table:
        """Everything that decides the ids of a caption, JSON-able."""
        shared = {
            "class": type(self.tokenizer).__name__,
            "length": self.model_max_length,
            "clean": self.tokenizer.clean_fn.__name__,
        }
        if (inner := self.hugging_face) is not None:
            how = {"mode": self.tokenizer.tokenizer_mode, "strips_sep": self.tokenizer.strip_sep_token}
            return {**shared, **how, "tokenizer": tokenizer_settings(inner)}
        # Tokens in the order of their ids, and merges in the order of their ranks.
        vocabulary = hashlib.sha256(
            "\n".join([*self.tokenizer.encoder, *map(" ".join, self.tokenizer.bpe_ranks)]).encode()
        )
        return {**shared, "tokenizer": vocabulary.hexdigest(), "pattern": self.tokenizer.pat.pattern}

    @property
    def is_fast(self) -> bool:
        """Whether a file of the library tokenizers gives the same ids, once a text is cleaned (`cleaning`)."""
        if self.hugging_face is None:
            return True
        changes_ids = self.tokenizer.tokenizer_mode or self.tokenizer.strip_sep_token
        return self.hugging_face.is_fast and not changes_ids

    @property
    def backend_tokenizer(self) -> Tokenizer:
        """The tokenizer of cleaned texts, by the library tokenizers."""
        inner = self.hugging_face
        return _byte_pairs(self.tokenizer) if inner is None else inner.backend_tokenizer


CLIP_PADDING = {
    "truncation_side": "right",
    "padding_side": "right",
    "pad_token_id": 0,
    "pad_token": "!",
    "pad_token_type_id": 0,
    "split_special_tokens": False,
}
"""Members of a tokenizer of transformers, for CLIP's own. It pads with 0, the id of an exclamation mark."""


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
