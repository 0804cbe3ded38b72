"""Captions of the built-in scenes in German, French and Spanish, by rule: a corpus whose captions have languages.

    dcdctl prepare scenes --out data/scenes
    python benchmarks/translate_scenes.py data/scenes --out translated [--cache cache/english]
    dcdctl prepare --jsonl translated/captions.jsonl --images translated/images.zip --out data/languages

Every caption is followed by its three translations, with the articles, cases and endings that the nouns ask for. Words
of one meaning, such as little and small, become one word. With a cache of a teacher's vectors of the English captions
(`dcdctl cache-teacher --texts data/scenes`), `vectors.parquet` has every text and its translations with the vector of
the English one: what `dcdctl cache-teacher --vectors` takes, so that a query student learns languages that its teacher
does not know.
"""

from __future__ import annotations

import argparse
import json
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dcdctl.core.data import Corpus, read_corpus_json
from dcdctl.core.data.scenes import COLORS, RELATIONS, SHAPES, SIZES, TEMPLATES
from dcdctl.core.teacher import read_text_cache

QUARTERS = ("top left", "top right", "bottom left", "bottom right")
PHRASES = {phrase: name for name, relation in RELATIONS.items() for phrase in relation.phrases}
_ANY = "|".join


def _mention(role: str) -> str:
    sizes = _ANY(word for words in SIZES.values() for word in words)
    return (
        f"(?:(?P<{role}_size>{sizes}) )?(?P<{role}_color>{_ANY(COLORS)}) (?P<{role}_shape>{_ANY(SHAPES)})"
        f"(?: at the (?P<{role}_quarter>{_ANY(QUARTERS)}))?"
    )


# Longest first, because "left of" ends "above and left of".
_RELATION = f"(?P<relation>{_ANY(sorted(PHRASES, key=len, reverse=True))})"
PATTERNS = [
    re.compile(
        template.replace("a {", "an? {").format(
            subject=_mention("subject"), object=_mention("object"), relation=_RELATION
        )
    )
    for template in TEMPLATES
]


@dataclass(frozen=True)
class Language:
    """How a language says what a caption says."""

    nouns: Mapping[str, tuple[str, str]]
    """The noun of each shape, and its gender: m, f or n."""
    colors: Mapping[str, str]
    sizes: Mapping[str, str]
    quarters: Mapping[str, str]
    """Where an object is in the image, such as at the top left."""
    relations: Mapping[str, tuple[str, str]]
    """Before the other object, and without it: left of, to its left."""
    templates: tuple[str, ...]
    """In the order of `TEMPLATES`, with `a_subject`, `the_subject`, `a_object`, `relation` and `alone`, and with
    `to_a_object`, `to_the_object` and `to_a_subject` after a preposition."""
    phrase: Callable[[Language, Mapping[str, str], str], str]
    """An object with its article, which is `a`, `the`, `to_a` or `to_the`."""
    articles: tuple[str, str] = ("", "")
    """For a and the, if no case changes them: un/une, le/la."""
    contractions: tuple[tuple[str, str], ...] = ()
    """What words become beside each other, as patterns: de el, del."""

    def translate(self, caption: str) -> str:
        """A caption in this language; ValueError for a caption that is not one of the scenes."""
        template, words = parse(caption)
        slots = {}
        for role in ("subject", "object"):
            mention = {name.partition("_")[2]: word for name, word in words.items() if name.startswith(role) and word}
            for article in ("a", "the", "to_a", "to_the"):
                slots[f"{article}_{role}"] = self.phrase(self, mention, article)
        slots["relation"], slots["alone"] = self.relations[PHRASES[words["relation"]]]
        text = self.templates[template].format(**slots)
        for pattern, contracted in self.contractions:
            text = re.sub(pattern, contracted, text)
        return text


def parse(caption: str) -> tuple[int, dict[str, str]]:
    """The number of a caption's template, and its words; ValueError for a caption that is not one of the scenes.

    >>> parse("a red star is above an orange ring")[1]["relation"]
    'above'
    """
    for number, pattern in enumerate(PATTERNS):
        if match := pattern.fullmatch(caption):
            return number, match.groupdict()
    raise ValueError(f"{caption!r} is no caption of the scenes")


def _german(language: Language, mention: Mapping[str, str], article: str) -> str:
    """Adjectives end in -en after a preposition (dative), in -e after der, die, das, and show the gender after ein."""
    noun, gender = language.nouns[mention["shape"]]
    before, ending = {
        "a": {"m": ("ein", "er"), "f": ("eine", "e"), "n": ("ein", "es")},
        "the": {"m": ("der", "e"), "f": ("die", "e"), "n": ("das", "e")},
        "to_a": {"m": ("einem", "en"), "f": ("einer", "en"), "n": ("einem", "en")},
        "to_the": {"m": ("dem", "en"), "f": ("der", "en"), "n": ("dem", "en")},
    }[article][gender]
    stems = [language.sizes[mention["size"]]] if "size" in mention else []
    adjectives = [stem + ending for stem in (*stems, language.colors[mention["color"]])]
    return " ".join([before, *adjectives, noun, *_quarter(language, mention)])


def _romance(language: Language, mention: Mapping[str, str], article: str) -> str:
    """The size before the noun and the color behind it; "petit/petite" has a form for each gender."""
    noun, gender = language.nouns[mention["shape"]]

    def agreeing(word: str) -> str:
        forms = word.split("/")
        return forms[-1] if gender == "f" else forms[0]

    sizes = [agreeing(language.sizes[mention["size"]])] if "size" in mention else []
    color = agreeing(language.colors[mention["color"]])
    return " ".join(
        [agreeing(language.articles[article.endswith("the")]), *sizes, noun, color, *_quarter(language, mention)]
    )


def _quarter(language: Language, mention: Mapping[str, str]) -> list[str]:
    return [language.quarters[mention["quarter"]]] if "quarter" in mention else []


def _by_name(words: str) -> dict[str, str]:
    """{"red": "rot"} of "red rot, ..."."""
    return dict(entry.split(maxsplit=1) for entry in words.split(", "))


def _nouns(words: str) -> dict[str, tuple[str, str]]:
    """{"star": ("Stern", "m")} of "star m Stern, ..."."""
    return {shape: (noun, gender) for shape, gender, noun in (entry.split(maxsplit=2) for entry in words.split(", "))}


def _relations(
    simple: Mapping[str, tuple[str, str]], directly: str, corner: Callable[[str, str], str]
) -> dict[str, tuple[str, str]]:
    """All relations, before the other object and alone, from the four simple ones: `directly` precedes one, and
    `corner` joins a row and a side."""
    exact = {f"directly {name}": tuple(f"{directly} {word}" for word in words) for name, words in simple.items()}
    corners = {
        f"{name} {side}": tuple(map(corner, simple[row], simple[side]))
        for name, row in (("upper", "above"), ("lower", "below"))
        for side in ("left", "right")
    }
    return {name: (words[0], words[1]) for name, words in {**simple, **exact, **corners}.items()}


LANGUAGES = {
    "de": Language(
        nouns=_nouns(
            "circle m Kreis, square n Quadrat, triangle n Dreieck, star m Stern, heart n Herz, diamond f Raute, "
            "cross n Kreuz, ring m Ring, moon m Mond, arrow m Pfeil"
        ),
        # Stems that take endings: lila and rosa would not.
        colors=_by_name(
            "red rot, orange orangefarben, yellow gelb, green grün, teal türkisfarben, blue blau, "
            "purple violett, pink rosafarben, brown braun, black schwarz"
        ),
        sizes=_by_name("small klein, little klein, tiny winzig, large groß, big groß"),
        quarters={"top left": "oben links", "top right": "oben rechts"}
        | {"bottom left": "unten links", "bottom right": "unten rechts"},
        relations=_relations(
            {
                **{"left": ("links von", "links davon"), "right": ("rechts von", "rechts davon")},
                **{"above": ("oberhalb von", "darüber"), "below": ("unterhalb von", "darunter")},
            },
            "direkt",
            lambda row, side: f"{side.partition(' ')[0]} {row}",
        ),
        templates=(
            "{a_subject} ist {relation} {to_a_object}",
            "{the_subject} befindet sich {relation} {to_the_object}",
            "da ist {a_subject} {relation} {to_a_object}",
            "{relation} {to_the_object} ist {a_subject}",
            "{a_object} mit {to_a_subject} {alone}",
        ),
        phrase=_german,
    ),
    "fr": Language(
        nouns=_nouns(
            "circle m cercle, square m carré, triangle m triangle, star f étoile, heart m cœur, diamond m losange, "
            "cross f croix, ring m anneau, moon f lune, arrow f flèche"
        ),
        colors=_by_name(
            "red rouge, orange orange, yellow jaune, green vert/verte, teal turquoise, blue bleu/bleue, "
            "purple violet/violette, pink rose, brown marron, black noir/noire"
        ),
        sizes=_by_name("small petit/petite, little petit/petite, tiny minuscule, large grand/grande, big grand/grande"),
        quarters={"top left": "en haut à gauche", "top right": "en haut à droite"}
        | {"bottom left": "en bas à gauche", "bottom right": "en bas à droite"},
        relations=_relations(
            {
                **{"left": ("à gauche de", "à sa gauche"), "right": ("à droite de", "à sa droite")},
                **{"above": ("au-dessus de", "au-dessus"), "below": ("au-dessous de", "au-dessous")},
            },
            "juste",
            lambda row, side: f"{row.removesuffix(' de')} et {side}",
        ),
        templates=(
            "{a_subject} est {relation} {to_a_object}",
            "{the_subject} se trouve {relation} {to_the_object}",
            "il y a {a_subject} {relation} {to_a_object}",
            "{relation} {to_the_object}, il y a {a_subject}",
            "{a_object} avec {to_a_subject} {alone}",
        ),
        phrase=_romance,
        articles=("un/une", "le/la"),
        contractions=((r"\bl[ea] (?=étoile|anneau)", "l'"), (r"\bde (?=une? )", "d'"), (r"\bde le ", "du ")),
    ),
    "es": Language(
        nouns=_nouns(
            "circle m círculo, square m cuadrado, triangle m triángulo, star f estrella, heart m corazón, "
            "diamond m rombo, cross f cruz, ring m anillo, moon f luna, arrow f flecha"
        ),
        colors=_by_name(
            "red rojo/roja, orange naranja, yellow amarillo/amarilla, green verde, teal turquesa, blue azul, "
            "purple morado/morada, pink rosa, brown marrón, black negro/negra"
        ),
        # Before a noun of either gender, grande is gran.
        sizes=_by_name("small pequeño/pequeña, little pequeño/pequeña, tiny diminuto/diminuta, large gran, big gran"),
        quarters={"top left": "en la parte superior izquierda", "top right": "en la parte superior derecha"}
        | {"bottom left": "en la parte inferior izquierda", "bottom right": "en la parte inferior derecha"},
        relations=_relations(
            {
                **{"left": ("a la izquierda de", "a su izquierda"), "right": ("a la derecha de", "a su derecha")},
                **{"above": ("encima de", "encima"), "below": ("debajo de", "debajo")},
            },
            "justo",
            lambda row, side: f"{row.removesuffix(' de')} y {side}",
        ),
        templates=(
            "{a_subject} está {relation} {to_a_object}",
            "{the_subject} se encuentra {relation} {to_the_object}",
            "hay {a_subject} {relation} {to_a_object}",
            "{relation} {to_the_object} hay {a_subject}",
            "{a_object} con {to_a_subject} {alone}",
        ),
        phrase=_romance,
        articles=("un/una", "el/la"),
        contractions=((r"\bde el ", "del "),),
    ),
}


def translations_of(caption: str) -> dict[str, str]:
    """A caption and its translations, by language."""
    return {"en": caption, **{name: language.translate(caption) for name, language in LANGUAGES.items()}}


def rows_of(corpus: Corpus) -> Iterator[dict[str, Any]]:
    """A row for each caption and each translation, as `dcdctl prepare --jsonl` reads them."""
    for caption, image in zip(corpus.captions, corpus.caption_image, strict=True):
        for language, text in translations_of(caption).items():
            image_id = f"{corpus.image_ids[image]}.png"
            yield {"image": image_id, "caption": text, "language": language, "split": corpus.split}


def write_vectors(path: Path, cache: Path) -> None:
    """Every text of a cache of English captions and its translations, each with the vector of the English text."""
    english, columns = read_text_cache(cache), {name: list[Any]() for name in ("text", "language", "vector")}
    for number in range(len(english.part_sizes)):
        for caption, _, vector in english.part(number):
            for language, text in translations_of(caption).items():
                for name, value in (("text", text), ("language", language), ("vector", vector.astype("float32"))):
                    columns[name].append(value)
    pq.write_table(pa.table(columns), path)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the captions of the scenes in four languages.")
    parser.add_argument("corpus", type=Path, help="folder of `dcdctl prepare scenes`")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--cache", type=Path, help="a dual encoder's vectors of the English captions")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with (
        (options.out / "captions.jsonl").open("w", encoding="utf-8") as captions,
        zipfile.ZipFile(options.out / "images.zip", "w") as images,
    ):
        for split in read_corpus_json(options.corpus).splits:
            corpus = Corpus.open(options.corpus, split)
            captions.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows_of(corpus))
            for number, image_id in enumerate(corpus.image_ids):
                images.writestr(f"{image_id}.png", corpus.image_bytes(number))
    if options.cache:
        write_vectors(options.out / "vectors.parquet", options.cache)


if __name__ == "__main__":
    main()
