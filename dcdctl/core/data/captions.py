"""The words of captions, and which captions have equal text: the one rule for false negatives, repeats in a corpus and
BM25.

Case, spacing, punctuation (Unicode categories P) and invisible format characters make no difference. Combining marks
and symbols do: the vowel signs of Hindi tell "boy" from "girl", and an emoji or a plus sign can be all that a caption
says.
"""

from __future__ import annotations

from unicodedata import category, normalize

_QUOTES = "`\N{ACUTE ACCENT}"
"""Symbols by category, but typed as quotation marks."""
# Flags of regions spell their name in tag characters, which are format characters from here on.
_FIRST_TAG = 0xE0000
_VARIATION_SELECTORS = range(0xFE00, 0xFE10)
"""Marks that choose how the character before them is drawn, such as a heart in color or in black."""


class _Replacements(dict[int, str]):
    """For `str.translate`: what each character becomes, computed when it is first seen."""

    def __missing__(self, code: int) -> str:
        letter = chr(code)
        kind = category(letter)
        if kind[0] in "PZ" or kind == "Cc" or letter in _QUOTES:
            replacement = " "
        elif (kind == "Cf" and code < _FIRST_TAG) or code in _VARIATION_SELECTORS:
            replacement = ""
        elif kind[0] == "S":
            replacement = f" {letter} "
        else:
            replacement = letter
        self[code] = replacement
        return replacement


_REPLACEMENTS = _Replacements()


def tokens_of(text: str) -> list[str]:
    """The words and symbols of a caption, case-folded.

    >>> tokens_of("A dog's tail_wags!"), tokens_of("I\\u2764C++")
    (['a', 'dog', 's', 'tail', 'wags'], ['i', '❤', 'c', '+', '+'])
    """
    # Before normalization too, which makes a space and a combining mark of an acute accent.
    text = text.translate(_REPLACEMENTS)
    if text.isascii():  # nothing to normalize: a third of the time
        return text.lower().split()
    # Folding can undo the composed form, as the standard says of NFKC_Casefold.
    return normalize("NFKC", normalize("NFKC", text).casefold()).translate(_REPLACEMENTS).split()


def words_of(text: str) -> list[str]:
    """The tokens of a caption that hold a letter or a digit.

    >>> words_of("I\\u2764C++")
    ['i', 'c']
    """
    return [token for token in tokens_of(text) if any(map(str.isalnum, token))]


def text_key(text: str) -> str:
    """A string that is equal for captions with equal tokens; a caption without words has its exact text, stripped.

    >>> text_key("Two dogs!") == text_key("two  DOGS"), text_key("!!") == text_key("??")
    (True, False)
    """
    key = " ".join(tokens_of(text))
    return key if any(map(str.isalnum, key)) else text.strip()
