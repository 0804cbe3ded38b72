"""Annotation files in other encodings and captions of odd characters: read as they are, or refused by name."""

from __future__ import annotations

import csv
import io
import json

import pytest
from hostile_images import encoded
from typer.testing import CliRunner

from dcdctl.cli.app import app
from dcdctl.core.data import Corpus, PrepareJob, PrepareOptions, choose_manifest, prepare_corpus
from dcdctl.core.errors import InputError

LINES = ["image,caption", "a.jpg,a dog", "b.jpg,größer"]
OBJECTS = [
    json.dumps({"image": "a.jpg", "caption": "a dog"}),
    json.dumps({"image": "b.jpg", "caption": "größer"}, ensure_ascii=False),
]
KARPATHY = [
    '{"images": [{"filename": "a.jpg", "split": "train", "sentences": [{"raw": "a dog"}]},',
    '{"filename": "b.jpg", "split": "train", "sentences": [{"raw": "größer"}]}]}',
]
FORMATS = {"csv": LINES, "jsonl": OBJECTS, "karpathy": KARPATHY}


def prepare(folder, form, data):
    for name in ("a.jpg", "b.jpg"):
        (folder / name).write_bytes(encoded("JPEG"))
    (folder / "rows").write_bytes(data)
    manifest = choose_manifest(PrepareJob(**{form: folder / "rows"}, images=[folder]))
    prepare_corpus(manifest, folder / "out", options=PrepareOptions(workers=1))
    return Corpus.open(folder / "out", "train")


def test_a_karpathy_json_in_another_encoding_is_an_error(tmp_path):
    with pytest.raises(InputError, match=r"is not JSON: 'utf-8' codec can't decode"):
        prepare(tmp_path, "karpathy", "\n".join(KARPATHY).encode("latin-1"))


@pytest.mark.parametrize("form", ["csv", "jsonl"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_table_in_an_encoding_of_unicode_is_read(tmp_path, form, encoding):
    assert prepare(tmp_path, form, "\n".join(FORMATS[form]).encode(encoding)).captions == ["a dog", "größer"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16-le", "utf-32"])
def test_a_karpathy_json_in_an_encoding_of_unicode_is_read_with_and_without_a_mark(tmp_path, encoding):
    assert prepare(tmp_path, "karpathy", "\n".join(KARPATHY).encode(encoding)).captions == ["a dog", "größer"]


READ = {
    "a NUL": "a\0b",
    "300,000 letters": "x" * 300_000,
    "control characters": "\x1b[31mred\x07",
    "text from right to left": "\u202egnp.exe",
    "a byte order mark": "\ufeffdog",
    "a joiner alone": "\u200d",
    "100,000 accents": "a" + "\u0301" * 100_000,
    "a line break": "a\nb",
    "no character": "\uffff",
    "an invisible tag": "\U000e0001",
}
REFUSED = {
    "half a surrogate pair": "a \ud800 dog",
    "a byte that is not UTF-8": "\udce9",
    "white space": " \t ",
    "a hard space": "\u00a0",
}


def rows_with(form, caption):
    """An annotation file whose one image has this caption."""
    if form == "csv":
        stream = io.StringIO()
        csv.writer(stream, quoting=csv.QUOTE_ALL).writerows([["image", "caption"], ["a.jpg", caption]])
        return stream.getvalue().encode("utf-8", "surrogatepass")
    if form == "jsonl":
        return json.dumps({"image": "a.jpg", "caption": caption}).encode()
    return json.dumps({"images": [{"filename": "a.jpg", "split": "train", "sentences": [{"raw": caption}]}]}).encode()


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("case", READ)
def test_an_odd_caption_is_stored_as_it_is(tmp_path, form, case):
    assert prepare(tmp_path, form, rows_with(form, READ[case])).captions == [READ[case]]


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("case", REFUSED)
def test_a_caption_that_is_no_text_is_refused_by_name(tmp_path, form, case):
    with pytest.raises(
        InputError, match=r"is not Unicode text|the caption is empty|caption 0 is empty|is not UTF-8 text|is not JSON"
    ):
        prepare(tmp_path, form, rows_with(form, REFUSED[case]))


@pytest.mark.parametrize("form", FORMATS)
def test_a_caption_of_more_than_a_megabyte_is_refused_by_name(tmp_path, form):
    with pytest.raises(
        InputError, match=r'rows (line 2|line 1|.*0).*"a.jpg": .*caption.* is larger than 1,048,576 bytes'
    ):
        prepare(tmp_path, form, rows_with(form, "é" * 600_000))


@pytest.mark.parametrize("name", ["\x1b[31mred.jpg", "\u202egnp.jpg", "[bold]x.jpg"])
def test_an_image_id_cannot_control_the_terminal(tmp_path, name):
    (tmp_path / name).write_bytes(encoded("JPEG"))
    (tmp_path / "rows").write_text(json.dumps({"image": name, "caption": f"{name} \x1b[0m"}), encoding="utf-8")
    words = [
        "prepare",
        "--jsonl",
        tmp_path / "rows",
        "--images",
        tmp_path,
        "--out",
        tmp_path / "\x1b[2Jout",
        "--workers",
        "1",
    ]
    for arguments in (words, ["inspect", tmp_path / "\x1b[2Jout"]):
        result = CliRunner().invoke(app, [*map(str, arguments)])
        assert result.exit_code == 0
        assert not {"\x1b", "\u202e"} & set(result.stdout + result.stderr)
    assert Corpus.open(tmp_path / "\x1b[2Jout", "train").image_ids == [name]
