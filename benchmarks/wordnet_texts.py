"""Texts by rule from WordNet, for query students that have no other source of texts: one a line.

    apt-get install wordnet-base
    python benchmarks/wordnet_texts.py templates --wordnet /usr/share/wordnet --most 37563 --out templates.txt
    python benchmarks/wordnet_texts.py paraphrases --wordnet /usr/share/wordnet --captions held.json --out para.txt

Templates name the nouns of WordNet that can be seen, in the words of a caption. Paraphrases are the captions of a
Karpathy file's train, each three times, with words replaced by synonyms of their most frequent meaning.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SEEN = {"05", "06", "08", "13", "14", "15", "17", "18", "20", "27"}
"""Files of the lexicographers for nouns that a photo can show: animals, artifacts, bodies, food, groups, places,
objects, persons, plants, substances."""
TEMPLATES = (
    "a photo of {}",
    "{} outdoors",
    "a person with {}",
    "a close-up of {}",
    "two people next to {}",
    "a dog next to {}",
    "{} in front of a building",
    "a child looks at {}",
)
VARIANTS = 3
REPLACED = 0.5
SHORTEST = 4
"""Paraphrases of a caption, the share of its words with synonyms that each replaces, and the letters of a word that can
be replaced: "a" is no angstrom."""


@dataclass(frozen=True)
class Meaning:
    """A synset of WordNet."""

    kind: str
    """n, v, a (s: an adjective near another), r."""
    file: str
    words: tuple[str, ...]


def read_meanings(wordnet: Path) -> dict[tuple[str, str], Meaning]:
    """The synsets by part of speech and offset."""
    meanings = {}
    for part in ("noun", "verb", "adj", "adv"):
        for line in (wordnet / f"data.{part}").read_text().splitlines():
            if line.startswith("  "):  # the license
                continue
            offset, file, kind, count, *rest = line.partition(" | ")[0].split()
            words = tuple(re.sub(r"\(.*\)", "", word).replace("_", " ") for word in rest[: 2 * int(count, 16) : 2])
            meanings[part, offset] = Meaning(kind, file, words)
    return meanings


def with_article(noun: str) -> str:
    if noun[0].isupper():
        return noun
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def templates(meanings: dict[tuple[str, str], Meaning], rng: random.Random) -> Iterator[str]:
    seen = [meaning for meaning in meanings.values() if meaning.kind == "n" and meaning.file in SEEN]
    for noun in dict.fromkeys(word for meaning in seen for word in meaning.words):
        yield rng.choice(TEMPLATES).format(with_article(noun))


def read_synonyms(wordnet: Path, meanings: dict[tuple[str, str], Meaning]) -> dict[str, tuple[str, ...]]:
    """The other words of the most frequent meaning of a word, where its part of speech is not in doubt."""
    first: dict[str, list[tuple[str, str]]] = {}
    for part in ("noun", "verb", "adj"):
        for line in (wordnet / f"index.{part}").read_text().splitlines():
            if not line.startswith("  "):
                fields = line.split()
                pointers = int(fields[3])
                first.setdefault(fields[0], []).append((part, fields[6 + pointers]))
    synonyms = {}
    for word, keys in first.items():
        others = tuple(other for other in meanings[keys[0]].words if other.lower() != word.replace("_", " "))
        if len(keys) == 1 and others:
            synonyms[word] = others
    return synonyms


def paraphrases(captions: list[str], synonyms: dict[str, tuple[str, ...]], rng: random.Random) -> Iterator[str]:
    def replaced(word: str) -> str:
        lower = word.lower()
        # A plural of a noun keeps its ending.
        stem = lower if lower in synonyms else lower.removesuffix("s")
        if len(word) < SHORTEST or stem not in synonyms or rng.random() > REPLACED:
            return word
        return rng.choice(synonyms[stem]) + lower[len(stem) :]

    for caption in captions:
        for _ in range(VARIANTS):
            text = re.sub(r"[A-Za-z]+", lambda match: replaced(match.group()), caption)
            if text != caption:
                yield text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["templates", "paraphrases"])
    parser.add_argument("--wordnet", type=Path, required=True, help="the folder of WordNet 3.0's data files")
    parser.add_argument("--captions", type=Path, help="paraphrases: a Karpathy file")
    parser.add_argument("--most", type=int, help="a random choice of this many texts")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    meanings, rng = read_meanings(args.wordnet), random.Random(0)
    if args.kind == "templates":
        texts = templates(meanings, rng)
    else:
        images = json.loads(args.captions.read_text())["images"]
        train = [sentence["raw"] for image in images if image["split"] == "train" for sentence in image["sentences"]]
        texts = paraphrases(train, read_synonyms(args.wordnet, meanings), rng)
    different = list(dict.fromkeys(texts))
    if args.most is not None:
        different = rng.sample(different, args.most)
    args.out.write_text("".join(f"{text}\n" for text in different))


if __name__ == "__main__":
    main()
