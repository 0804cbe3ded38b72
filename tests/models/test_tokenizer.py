"""The WordPiece tokenizer: special tokens as in BERT, and a reproducible vocabulary. Captions in capitals: the tokens
of each family's own library."""

from __future__ import annotations

import open_clip
import pytest
import torch
from duals import DUALS, gemma, save_dual
from open_clips import OPEN_CLIPS, save_open_clip
from tiny import contents
from transformers import AutoProcessor, AutoTokenizer, Siglip2Tokenizer, SiglipTokenizer

from dcdctl.core import models
from dcdctl.core.errors import MissingError, ModelError, is_installed
from dcdctl.core.models import TextTower, text_export

CAPTIONS = ["a dog. runs over grass", "two people", "a dog"]
CAPITALS = ["A DOG.", "a dog.", "A dog, over Grass"]


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


def test_a_vocabulary_without_room_for_words_is_refused(captions):
    letters = set().union(*captions) - {" "}
    with pytest.raises(
        ModelError, match=rf"1 tokens have no room for words; raise model\.vocab_size above {5 + len(letters)}"
    ):
        models.word_piece(captions, 1)


def test_a_saved_tokenizer_loads_unchanged(tokenizer, tokenizer_dir, captions):
    reloaded = AutoTokenizer.from_pretrained(tokenizer_dir)
    assert reloaded(captions)["input_ids"] == tokenizer(captions)["input_ids"]
    assert reloaded.get_vocab() == tokenizer.get_vocab()


@pytest.mark.parametrize("kind", DUALS)
def test_what_a_tokenizer_has_read_changes_no_saved_byte(kind, tmp_path):
    preprocess = models.load_dual(save_dual(kind, CAPTIONS, tmp_path, num_layers=1)).preprocess
    preprocess.save(tmp_path / "before")
    preprocess.texts([" ".join(CAPTIONS * 40)])
    preprocess.save(tmp_path / "after")
    assert contents(tmp_path / "after") == contents(tmp_path / "before")


@pytest.mark.parametrize("kind", DUALS)
def test_captions_in_capitals_have_the_tokens_of_transformers(kind, tmp_path):
    folder = save_dual(kind, CAPTIONS, tmp_path, num_layers=1)
    preprocess = models.load_dual(folder).preprocess
    processor, length = AutoProcessor.from_pretrained(folder, backend="pil"), preprocess.max_text_len
    padding = "max_length" if preprocess.pads_texts else True
    own = processor(text=CAPITALS, padding=padding, max_length=length, truncation=True, return_tensors="pt")
    assert torch.equal(preprocess.texts(CAPITALS).input_ids, own["input_ids"])


@pytest.mark.parametrize("kind", OPEN_CLIPS)
def test_captions_in_capitals_have_the_tokens_of_open_clip(kind, tmp_path):
    folder = save_open_clip(kind, CAPTIONS, tmp_path, num_layers=1)
    own = open_clip.get_tokenizer(f"local-dir:{folder}")
    assert torch.equal(models.load_dual(folder).preprocess.texts(CAPITALS).input_ids, own(CAPITALS))


def test_siglip_2_of_one_resolution_reads_lower_case_as_in_its_training(tmp_path):
    """It has the type of SigLIP and names Gemma's tokenizer, so transformers keeps the capitals; its variant of many
    resolutions has a tokenizer class of its own, which does not."""
    tokenizer = gemma(CAPTIONS)
    folder = save_dual("SigLIP", CAPTIONS, tmp_path / "saved", 1, tokenizer)
    kept, own = AutoTokenizer.from_pretrained(folder), Siglip2Tokenizer.from_pretrained(folder)
    assert kept("A DOG.")["input_ids"] != kept("a dog.")["input_ids"] == own("A DOG.")["input_ids"]
    model, lower = models.load_dual(folder), [text.lower() for text in CAPITALS]
    expected = kept(lower, padding="max_length", max_length=24, return_tensors="pt")["input_ids"]
    assert torch.equal(model.preprocess.texts(CAPITALS).input_ids, expected)
    assert model.preprocess.texts(["a dog " * 30]).input_ids[0, -1] == tokenizer.eos_token_id

    models.save(model, tmp_path / "model")
    assert models.load_dual(tmp_path / "model").digest == model.digest
    processor = AutoProcessor.from_pretrained(tmp_path / "model", backend="pil")
    assert processor(text=CAPITALS, padding="max_length", max_length=24)["input_ids"] == expected.tolist()
    text_export.export_text_tower(model, tmp_path / "text")
    assert TextTower.open(tmp_path / "text", model.digest).tokenize(CAPITALS)[1] == expected.tolist()


def test_gemma_of_another_model_keeps_its_capitals(tmp_path):
    tokenizer = gemma(CAPTIONS)
    del tokenizer.init_kwargs["do_lower_case"]
    tokenizer.save_pretrained(tmp_path)
    assert models.load_tokenizer(str(tmp_path))("A DOG.")["input_ids"] == tokenizer("A DOG.")["input_ids"]


def test_the_tokenizer_of_siglip_removes_case_and_punctuation(tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece", reason="the extra siglip is not installed")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CAPTIONS * 20),
        model_prefix=str(tmp_path / "words"),
        vocab_size=40,
        minloglevel=2,
        **{"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1, "hard_vocab_limit": False},
    )
    own = SiglipTokenizer(str(tmp_path / "words.model"), model_max_length=24)
    model = models.load_dual(save_dual("SigLIP", CAPTIONS, tmp_path / "saved", 1, own))
    expected = own(["a dog", "a dog", "a dog over grass"], padding="max_length", max_length=24)["input_ids"]
    assert model.preprocess.texts(CAPITALS).input_ids.tolist() == own(CAPITALS, padding="max_length")["input_ids"]
    assert model.preprocess.texts(CAPITALS).input_ids.tolist() == expected
    with pytest.raises(ModelError, match="its tokenizer, SiglipTokenizer, is Python code"):
        text_export.export_text_tower(model, tmp_path / "text")


@pytest.mark.skipif(is_installed("sentencepiece"), reason="the extra siglip is installed")
def test_the_tokenizer_of_siglip_without_sentencepiece_names_the_packages(tmp_path):
    folder = save_dual("SigLIP", CAPTIONS, tmp_path, num_layers=1)
    config = (folder / "tokenizer_config.json").read_text()
    (folder / "tokenizer_config.json").write_text(config.replace("BertTokenizer", "SiglipTokenizer"))
    with pytest.raises(MissingError, match=r"needs sentencepiece, .*; pip install 'sentencepiece>=0.2' 'protobuf>=4'"):
        models.load_dual(folder)
