"""The WordPiece tokenizer: special tokens as in BERT, and a reproducible vocabulary."""

from __future__ import annotations

import pytest
from transformers import AutoTokenizer

from dcdctl.core import models


def test_special_tokens_come_first_and_captions_are_lowercased(tokenizer):
    assert tokenizer.convert_ids_to_tokens(range(5)) == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert tokenizer.pad_token_id == 0
    assert tokenizer("A CROSS")["input_ids"] == tokenizer("a cross")["input_ids"]
    assert tokenizer.decode(tokenizer("a large red circle")["input_ids"]) == "[CLS] a large red circle [SEP]"


@pytest.mark.parametrize("vocab_size", [70, 120])
def test_the_vocabulary_is_the_same_every_time(captions, vocab_size):
    # The trainer seeds its hash maps differently on every call, so calls within one process would show a difference.
    first, *others = [models.word_piece(captions, vocab_size).get_vocab() for _ in range(8)]
    assert all(other == first for other in others)


@pytest.mark.parametrize("vocab_size", [60, 80, 500])
def test_the_vocabulary_is_no_larger_than_requested(captions, vocab_size):
    assert len(models.word_piece(captions, vocab_size)) <= vocab_size


def test_a_saved_tokenizer_loads_unchanged(tokenizer, tokenizer_dir, captions):
    reloaded = AutoTokenizer.from_pretrained(tokenizer_dir)
    assert reloaded(captions)["input_ids"] == tokenizer(captions)["input_ids"]
    assert reloaded.get_vocab() == tokenizer.get_vocab()
