"""A small BERT-style tokenizer for a corpus with its own few words."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer, normalizers, pre_tokenizers, trainers
from tokenizers.models import WordPiece
from transformers import BertTokenizer

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def word_piece(captions: Iterable[str], vocab_size: int = 2000) -> BertTokenizer:
    """A lower-casing WordPiece tokenizer of at most `vocab_size` tokens ([PAD] is 0); the same for the same captions."""
    texts = list(captions)
    trained = Tokenizer(WordPiece(unk_token="[UNK]"))
    trained.normalizer = normalizers.BertNormalizer(lowercase=True)
    trained.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    letters = sorted({letter for text in texts for letter in trained.normalizer.normalize_str(text) if not letter.isspace()})
    # The trainer numbers "##x" pieces in the order of a randomly seeded hash map, and equal counts are decided by number;
    # naming these pieces beforehand is what makes the vocabulary reproducible.
    pieces = [*SPECIALS, *(f"##{letter}" for letter in letters)]
    trainer = trainers.WordPieceTrainer(vocab_size=max(vocab_size, len(pieces)), special_tokens=pieces, show_progress=False)
    trained.train_from_iterator(texts, trainer)
    return BertTokenizer(vocab=trained.get_vocab(), do_lower_case=True)
