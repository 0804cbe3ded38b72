"""Annotation files in other encodings and captions of odd characters: read as they are, or refused by name."""

from __future__ import annotations

import json

import pytest
from hostile_images import encoded

from dcdctl.core.data import Corpus, PrepareOptions, choose_manifest, prepare_corpus
from dcdctl.core.errors import InputError

LINES = ["image,caption", "a.jpg,a dog", "b.jpg,größer"]
OBJECTS = [json.dumps({"image": "a.jpg", "caption": "a dog"}), json.dumps({"image": "b.jpg", "caption": "größer"}, ensure_ascii=False)]
KARPATHY = [
    '{"images": [{"filename": "a.jpg", "split": "train", "sentences": [{"raw": "a dog"}]},',
    '{"filename": "b.jpg", "split": "train", "sentences": [{"raw": "größer"}]}]}',
]
FORMATS = {"csv": LINES, "jsonl": OBJECTS, "karpathy": KARPATHY}
WRONG = {
    "latin-1": r"is not UTF-8 text \(invalid .* on line {line}\); save it as UTF-8",
    "cp1252": r"is not UTF-8 text \(invalid .* on line {line}\); save it as UTF-8",
    "utf-16": r"is not UTF-8 text \(it looks like UTF-16\); save it as UTF-8",
    "utf-16-le": r"is not UTF-8 text \(it looks like UTF-16\); save it as UTF-8",
    "utf-32": r"is not UTF-8 text \(it looks like UTF-32\); save it as UTF-8",
}


def prepare(folder, form, data):
    for name in ("a.jpg", "b.jpg"):
        (folder / name).write_bytes(encoded("JPEG"))
    (folder / "rows").write_bytes(data)
    manifest = choose_manifest(None, **{form: folder / "rows"}, images=[folder])
    prepare_corpus(manifest, folder / "out", options=PrepareOptions(workers=1))
    return Corpus.open(folder / "out", "train")


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("encoding", WRONG)
def test_another_encoding_is_an_error_with_the_line(tmp_path, form, encoding):
    message = WRONG[encoding].format(line=2 if form != "csv" else 3)
    with pytest.raises(InputError, match=message):
        prepare(tmp_path, form, "\n".join(FORMATS[form]).encode(encoding))


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_utf_8_with_and_without_a_mark_is_read(tmp_path, form, encoding):
    assert prepare(tmp_path, form, "\n".join(FORMATS[form]).encode(encoding)).captions == ["a dog", "größer"]
