"""Which captions are equal: by their words, and by their exact text where they have none."""

from __future__ import annotations

import numpy as np
import pytest

from dcdctl.core.data.captions import text_key, tokens_of, words_of
from dcdctl.core.teacher import false_negatives, miners

EQUAL = {
    "case, spacing and punctuation": [
        "A  man's_hat",
        "a man s hat!",
        "\u00a1a (man\u2019s)\u00a0hat\u2026",
        "a\tman`s\nhat",
        "a man\u00b4s hat",
    ],
    "dashes and quotation marks of Unicode": ["red-white", "red \u2014 white", "\u201cred\u201d white\u3002"],
    "case that lower() does not fold": ["Stra\u00dfe", "STRASSE", "stra\u017f\u017fe"],
    "composed, decomposed and full-width letters": ["caf\u00e9", "cafe\u0301", "\uff23\uff21\uff26\u00c9"],
    "invisible characters": ["air\u00adport", "\ufeffairport", "air\u200bport", "\u202aairport\u202c", "air\u200dport"],
    "the way an emoji is drawn": ["I \u2764 it", "I \u2764\ufe0f it"],
    "spaces around a symbol": ["5\u20ac a dog\U0001f600", "5 \u20ac, a dog \U0001f600"],
    "the vowel signs of Arabic stay": ["\u0643\u064e\u062a\u064e\u0628\u064e.", "\u0643\u064e\u062a\u064e\u0628\u064e"],
}
DIFFERENT = {
    "Hindi: boy, girl": ["\u0932\u0921\u093c\u0915\u093e", "\u0932\u0921\u093c\u0915\u0940"],
    "Thai: near, far": ["\u0e43\u0e01\u0e25\u0e49", "\u0e44\u0e01\u0e25"],
    "Spanish: year, anus": ["a\u00f1o", "ano"],
    "emoji": [
        "\U0001f600",
        "\U0001f622",
        "\U0001f600\U0001f600",
        "\U0001f44d\U0001f3fb",
        "\U0001f44d\U0001f3ff",
        "\u2764",
        "\U0001f90d",
    ],
    "emoji after words": ["a dog \U0001f600", "a dog \U0001f622", "a dog"],
    "flags of England and Scotland": [
        "\U0001f3f4" + "".join(chr(0xE0000 + ord(letter)) for letter in name) + "\U000e007f"
        for name in ("gbeng", "gbsct")
    ],
    "signs": ["c", "c+", "c++", "5 $", "5 \u20ac", "a < b", "a > b"],
    "punctuation alone": ["!", "?", "...", "\u2014", "!!"],
    "numbers": ["1", "2", "\u0967", "10"],
}


@pytest.mark.parametrize("texts", EQUAL.values(), ids=EQUAL)
def test_texts_that_read_alike_are_equal(texts):
    assert len({text_key(text) for text in texts}) == 1
    assert set(false_negatives.text_classes(texts)) == {0}


@pytest.mark.parametrize("texts", DIFFERENT.values(), ids=DIFFERENT)
def test_texts_that_say_something_else_are_different(texts):
    assert len({text_key(text) for text in texts}) == len(texts)
    assert false_negatives.text_classes(texts).tolist() == list(range(len(texts)))


def test_a_caption_without_letters_is_its_exact_text_and_no_caption_of_words():
    assert text_key("  ?! ") == "?!"
    assert false_negatives.text_classes(["?!", "? !", "", "?!\n", "a", "!a?"]).tolist() == [0, 1, 2, 0, 3, 3]


def test_a_vowel_sign_is_part_of_its_word_and_an_emoji_a_token():
    assert tokens_of("\u0935\u0939 \u0932\u0921\u093c\u0915\u0940, \U0001f600!") == [
        "\u0935\u0939",
        "\u0932\u0921\u093c\u0915\u0940",
        "\U0001f600",
    ]
    assert words_of("\U0001f600 c++") == ["c"]
    assert tokens_of("...") == tokens_of(" \u200b ") == []


def test_lexical_mining_finds_the_word_of_the_query_with_its_vowel_signs():
    boy, girl, fruit = "\u0932\u0921\u093c\u0915\u093e", "\u0932\u0921\u093c\u0915\u0940", "\u092b\u0932"
    mine = miners.lexical_miner([girl, "\U0001f622"], [boy, fruit, girl + ".", "\U0001f600", "\U0001f622"])
    assert mine(np.array([0, 1]), 1).tolist() == [[2], [4]]
