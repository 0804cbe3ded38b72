"""Tokenizers: loaded, trained, saved, and compared with the text encoder that reads their tokens."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, normalizers, pre_tokenizers, trainers
from tokenizers.models import WordPiece
from transformers import AutoTokenizer, BertTokenizer, PreTrainedConfig, PreTrainedTokenizerBase, Siglip2Tokenizer

from dcdctl.core.errors import ModelError, require_extra
from dcdctl.core.models.references import hub
from dcdctl.core.models.references.loading import hub_errors

AFTER_PADDING = ("roberta", "xlm-roberta", "bridgetower_text_model")
"""Text encoders whose positions are counted from their padding id, as in RoBERTa."""
SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
"""Special tokens of a new tokenizer, in the order of their ids."""
TOKENIZER_HINT = "name a tokenizer with `--model-set tokenizer=FOLDER`"


def load_tokenizer(
    ref: str, hint: str = TOKENIZER_HINT, use: str = "", config: PreTrainedConfig | None = None
) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or Hub id; ModelError if there is none.

    `use` is that of `hub.reading`. `config` is the configuration of transformers in the same place, if it has been
    read.
    """
    # A folder may hold code for transformers (`dcdctl export`). Without the second argument transformers would ask
    # whether to run it.
    source = {**hub.hub_source(ref), "trust_remote_code": False}
    with hub_errors(ref, hint=hint, use=use):
        try:
            tokenizer = AutoTokenizer.from_pretrained(**source, config=config)
        except ImportError:
            require_extra("siglip", "sentencepiece", needed_by=f"the tokenizer of {ref}")
            raise
        # A SigLIP 2 of one resolution has the type of SigLIP and names Gemma's tokenizer, which ignores do_lower_case.
        # The model has read lower case only, and loses 4 to 7 points of R@1 without (big_vision, issue 166).
        is_lower = getattr(config, "model_type", "") == "siglip" or tokenizer.init_kwargs.get("do_lower_case")
        if is_lower and type(tokenizer).__name__ == "GemmaTokenizer":
            tokenizer = Siglip2Tokenizer.from_pretrained(**source)
    check_words(tokenizer, ref, hint)
    return tokenizer


def check_words(tokenizer: PreTrainedTokenizerBase, ref: str, hint: str) -> None:
    """ModelError for a tokenizer without words, which transformers makes for a folder without a vocabulary."""
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise ModelError(f"{ref} holds no tokenizer's vocabulary", hint=hint)


def load_own_tokenizer(ref: str, config: PreTrainedConfig, other: str | None) -> PreTrainedTokenizerBase:
    """The tokenizer of a network's folder or Hub id, whose configuration is `config`, or that of `other`, if the user
    names another."""
    return load_tokenizer(ref, config=config) if not other else load_tokenizer(other)


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write the files of a tokenizer, which do not depend on what it has read."""
    if tokenizer.is_fast:
        # A call leaves its truncation and padding in the backend, and sets them again; the file would have those of the
        # last one.
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
    tokenizer.save_pretrained(folder)


def word_piece(captions: Iterable[str], vocab_size: int = 2000) -> BertTokenizer:
    """A lower-casing WordPiece tokenizer of at most `vocab_size` tokens, trained on these captions; [PAD] is 0.
    Repeatable. ModelError if there is no room for more than their letters: each word would be unknown."""
    texts = list(captions)
    trained = Tokenizer(WordPiece(unk_token="[UNK]"))
    trained.normalizer = normalizers.BertNormalizer(lowercase=True)
    trained.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    characters: set[str] = set().union(*map(trained.normalizer.normalize_str, texts))
    letters = sorted(character for character in characters if not character.isspace())
    # The trainer numbers "##x" pieces in the order of a randomly seeded hash map, and resolves equal counts by number.
    # Pieces that are given to it in advance have a fixed order, which makes the vocabulary reproducible.
    pieces = [*SPECIALS, *(f"##{letter}" for letter in letters)]
    if vocab_size <= len(pieces):
        raise ModelError(
            f"{vocab_size:,} tokens have no room for words", hint=f"raise model.vocab_size above {len(pieces):,}"
        )
    trainer = trainers.WordPieceTrainer(vocab_size=vocab_size, special_tokens=pieces, show_progress=False)
    trained.train_from_iterator(texts, trainer)
    return BertTokenizer(vocab=trained.get_vocab(), do_lower_case=True)


def check_text_length(max_text_len: int, num_positions: int) -> int:
    """`max_text_len`; ModelError if the model has fewer text positions, or if there is no room for a word."""
    # [CLS], a word, [SEP]; the settings of a saved model are not checked as those of --model-set are.
    if not isinstance(max_text_len, int) or max_text_len < 3:
        raise ModelError(f"max_text_len must be at least 3, got {max_text_len!r:.40}")
    if max_text_len > num_positions:
        raise ModelError(
            f"max_text_len is {max_text_len}, but the model has {num_positions} text positions",
            hint=f"use at most {num_positions}",
        )
    return max_text_len


def num_text_positions(config: PreTrainedConfig) -> int:
    """The number of tokens that a text encoder has positions for; ModelError if its configuration does not give it."""
    if not hasattr(config, "max_position_embeddings"):
        raise ModelError(
            f"the configuration of a {config.model_type} text encoder does not give its number of positions",
            hint="take one such as BERT or RoBERTa",
        )
    # RoBERTa's first position comes after its padding id.
    reserved = config.pad_token_id + 1 if config.model_type in AFTER_PADDING else 0
    return int(config.max_position_embeddings) - reserved


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> None:
    """ModelError if the tokenizer has more tokens than the model has embeddings."""
    if len(tokenizer) > vocab_size:
        problem = (
            f"the tokenizer has {len(tokenizer):,} tokens, but the model's embedding table has {vocab_size:,} rows"
        )
        raise ModelError(problem, hint="use the tokenizer the model was trained with: `--model-set tokenizer=FOLDER`")
