"""Captions of the scenes in other languages: grammar by hand, and the corpus and the vectors that the script writes."""

from __future__ import annotations

import sys
from itertools import islice

import numpy as np
import pyarrow.parquet as pq
import pytest
import scripts
from tiny import make_wide_dual

from dcdctl.core import models
from dcdctl.core.data import Corpus, DataChoice, PrepareOptions, choose_manifest, prepare_corpus
from dcdctl.core.data.scenes import describe_scenes
from dcdctl.core.teacher import TextCacheJob, cache_texts, read_text_cache

translate = scripts.load("translate_scenes")


@pytest.mark.parametrize(
    ("english", "german", "french", "spanish"),
    [
        (
            "a tiny red star is above an orange ring",
            "ein winziger roter Stern ist oberhalb von einem orangefarbenen Ring",
            "une minuscule étoile rouge est au-dessus d'un anneau orange",
            "una diminuta estrella roja está encima de un anillo naranja",
        ),
        (
            "the green star at the top left sits directly left of the big purple cross",
            "der grüne Stern oben links befindet sich direkt links von dem großen violetten Kreuz",
            "l'étoile verte en haut à gauche se trouve juste à gauche de la grande croix violette",
            "la estrella verde en la parte superior izquierda se encuentra justo a la izquierda de la gran cruz morada",
        ),
        (
            "there is a small pink diamond below a blue arrow",
            "da ist eine kleine rosafarbene Raute unterhalb von einem blauen Pfeil",
            "il y a un petit losange rose au-dessous d'une flèche bleue",
            "hay un pequeño rombo rosa debajo de una flecha azul",
        ),
        (
            "to the lower right of the black ring there is a little yellow heart",
            "rechts unterhalb von dem schwarzen Ring ist ein kleines gelbes Herz",
            "au-dessous et à droite de l'anneau noir, il y a un petit cœur jaune",
            "debajo y a la derecha del anillo negro hay un pequeño corazón amarillo",
        ),
        (
            "a large brown moon with a teal square above and left of it",
            "ein großer brauner Mond mit einem türkisfarbenen Quadrat links darüber",
            "une grande lune marron avec un carré turquoise au-dessus et à sa gauche",
            "una gran luna marrón con un cuadrado turquesa encima y a su izquierda",
        ),
        (
            "under the green circle there is a yellow triangle",
            "unterhalb von dem grünen Kreis ist ein gelbes Dreieck",
            "au-dessous du cercle vert, il y a un triangle jaune",
            "debajo del círculo verde hay un triángulo amarillo",
        ),
    ],
)
def test_articles_cases_and_endings(english, german, french, spanish):
    assert translate.translations_of(english) == {"en": english, "de": german, "fr": french, "es": spanish}


@pytest.mark.parametrize("text", ["a dog", "the star sits above the ring", "a red star is above a red ring."])
def test_a_caption_of_something_else_is_an_error(text):
    with pytest.raises(ValueError, match="no caption of the scenes"):
        translate.translations_of(text)


def test_every_caption_is_translated_and_different_meanings_stay_different():
    statements = [statement for scene in islice(describe_scenes(0, "train"), 300) for statement in scene.statements]
    for language in translate.LANGUAGES.values():
        meanings = {}
        for statement in statements:
            template, _ = translate.parse(statement.text)
            meaning = template, statement.subject, statement.relation, statement.object
            meanings.setdefault(language.translate(statement.text), set()).add(repr(meaning))
        # One meaning may have several translations: tiny is small in a statement, and has a word of its own here.
        assert all(len(found) == 1 for found in meanings.values())


def test_the_script_writes_a_corpus_in_four_languages_and_the_vectors_of_english(
    scenes_corpus_dir, tmp_path, monkeypatch
):
    val = Corpus.open(scenes_corpus_dir, "val")
    models.save(make_wide_dual(val.captions), tmp_path / "teacher")
    cache_texts(
        TextCacheJob(teacher=str(tmp_path / "teacher"), texts=[str(scenes_corpus_dir)], split="val", out=tmp_path / "q")
    )
    words = ["translate_scenes", scenes_corpus_dir, "--out", tmp_path / "translated", "--cache", tmp_path / "q"]
    monkeypatch.setattr(sys, "argv", list(map(str, words)))
    translate.main()
    made = tmp_path / "translated"
    choice = DataChoice(jsonl=made / "captions.jsonl", images=[made / "images.zip"], folder=tmp_path / "out")
    prepare_corpus(choose_manifest(choice), tmp_path / "out", options=PrepareOptions(workers=1))
    translated = Corpus.open(tmp_path / "out", "val")
    assert translated.captions[::4] == val.captions
    assert translated.languages == ["en", "de", "fr", "es"] * val.num_captions
    assert translated.caption_image[::4].tolist() == val.caption_image.tolist()
    assert translated.image_bytes(1) == val.image_bytes(1)
    english = read_text_cache(tmp_path / "q").part(0)
    table = pq.read_table(made / "vectors.parquet").to_pydict()
    assert table["language"] == ["en", "de", "fr", "es"] * len(english)
    assert table["text"][2::4] == [translate.LANGUAGES["fr"].translate(text) for text, _, _ in english]
    np.testing.assert_array_equal(
        np.array(table["vector"])[1::4], np.array([vector for *_, vector in english], np.float64)
    )
    cache_texts(
        TextCacheJob(vectors=[str(made / "vectors.parquet")], teacher_name="teacher", out=tmp_path / "languages")
    )
    assert set(read_text_cache(tmp_path / "languages").plan["languages"]) == {"en", "de", "fr", "es"}
