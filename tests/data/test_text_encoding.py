"""Encodings of tables: recognized if they are of Unicode, named otherwise, and noted in corpus.json."""

from __future__ import annotations

import json

import pytest
from hostile_images import encoded

from dcdctl.core.data import Corpus, PrepareJob, PrepareOptions, choose_manifest, prepare_corpus
from dcdctl.core.data.text_encoding import describe_value, find_encoding
from dcdctl.core.errors import InputError


def test_another_encoding_needs_its_name(tmp_path):
    # All of it decodes as cp1252, in which the first line has a wrong letter.
    latin = "b.jpg,un café noir près de la forêt, où l'été est déjà passé"
    (tmp_path / "a.csv").write_bytes(b"\n".join([b"image,caption", "a.jpg,café".encode(), latin.encode("cp1252")]))
    with pytest.raises(
        InputError,
        match=r"a\.csv is not UTF-8 text \(invalid continuation byte on line 3\); .*tell `dcdctl prepare` its encoding",
    ):
        find_encoding(tmp_path / "a.csv")
    assert find_encoding(tmp_path / "a.csv", "cp1252") == "cp1252"


def test_a_mark_of_utf_16_before_other_bytes_is_an_error(tmp_path):
    (tmp_path / "a.csv").write_bytes("image,caption".encode("utf-16") + b"a")
    with pytest.raises(InputError, match=r"is not UTF-16 text \(truncated data on line 1\)"):
        find_encoding(tmp_path / "a.csv")


def test_a_named_encoding_is_taken_or_refused_with_the_line(tmp_path):
    (tmp_path / "a.csv").write_bytes("image,caption\na.jpg,größer\n".encode("cp1252"))
    assert find_encoding(tmp_path / "a.csv", "cp1251") == "cp1251"
    with pytest.raises(
        InputError,
        match=r"is not UTF-8 text \(invalid start byte on line 2\); .*tell `dcdctl prepare` its encoding",
    ):
        find_encoding(tmp_path / "a.csv", "utf-8")


def test_a_named_encoding_is_in_the_summary_and_in_corpus_json(tmp_path):
    (tmp_path / "a.jpg").write_bytes(encoded("JPEG"))
    (tmp_path / "rows.csv").write_bytes("image,caption\na.jpg,a dog\na.jpg,größer\n".encode("cp1252"))

    def prepare(folder, encoding):
        manifest = choose_manifest(
            PrepareJob(csv=tmp_path / "rows.csv", images=[tmp_path], overrides=[f"encoding={encoding}"])
        )
        return prepare_corpus(manifest, tmp_path / folder, options=PrepareOptions(workers=1))

    note = "rows.csv was read as cp1252; --set encoding=NAME names another"
    assert note in str(prepare("named", "cp1252"))
    assert note in str(prepare("named", "windows-1252"))  # the same corpus
    assert json.loads((tmp_path / "named" / "corpus.json").read_text())["source"]["encoding"] == {
        "file": "rows.csv",
        "name": "cp1252",
    }
    prepare("other", "cp1251")
    assert Corpus.open(tmp_path / "other", "train").captions == ["a dog", "grцЯer"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "missing or null"),
        (True, "a boolean (true)"),
        (5, "a number (5)"),
        (0.5, "a number (0.5)"),
        ("größer", 'a string ("größer")'),
        ([1, "два"], 'a list ([1, "два"])'),
        ({"a": None}, 'an object ({"a": null})'),
        ("x" * 38, f'a string ("{"x" * 38}")'),
        ("é" * 39, f'a string ("{"é" * 36}...)'),
    ],
)
def test_a_value_is_described_by_its_kind_and_its_beginning_as_it_is_written(value, expected):
    assert describe_value(value) == expected
