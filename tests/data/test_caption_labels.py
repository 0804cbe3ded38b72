"""Sources and weights of captions: read from tables, kept per caption, and synthetic captions never held out."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hostile_images import encoded
from PIL import Image

from dcdctl.core.artifacts import read_document
from dcdctl.core.data import (
    Corpus,
    PrepareJob,
    PrepareOptions,
    choose_manifest,
    find_manifest,
    prepare_corpus,
    summarize_corpus,
)
from dcdctl.core.data.readers.rows import divide
from dcdctl.core.data.shards import CorpusRow
from dcdctl.core.errors import InputError
from dcdctl.core.integrity import verify

NAMES = [f"{number}.jpg" for number in range(20)]
ROWS = [
    {"image": "0.jpg", "caption": "a dog", "source": "human", "weight": 2, "language": "en"},
    {"image": "0.jpg", "caption": "dog, grass", "source": "alt text", "weight": 0.5, "language": "de"},
    {"image": "1.jpg", "caption": "a cat on a mat", "source": "synthetic", "weight": 0.25},
    {"image": "2.jpg", "caption": "a bird", "source": "human"},
]
LISTS = [
    {
        "image": "0.jpg",
        "captions": ["a dog", "dog, grass"],
        "source": ["human", "alt text"],
        "weight": [2, 0.5],
        "language": ["en", "de"],
    },
    {"image": "1.jpg", "captions": ["a cat on a mat"], "source": "synthetic", "weight": 0.25},
    {"image": "2.jpg", "captions": ["a bird"], "source": ["human"], "weight": [None]},
]
SOURCES = ["human", "alt text", "synthetic", "human"]
WEIGHTS = [2, 0.5, 0.25, 1]
LANGUAGES = ["en", "de", None, None]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for number, name in enumerate(NAMES):
        (folder / name).write_bytes(encoded("PNG", Image.new("RGB", (8, 8), (number * 9, 90, 90))))
    return folder


def write_table(path, rows):
    names = list(dict.fromkeys(name for row in rows for name in row))
    if path.suffix == ".csv":
        cells = [
            [json.dumps(row[name]) if isinstance(row.get(name), list) else str(row.get(name, "")) for name in names]
            for row in rows
        ]
        quoted = [",".join('"' + cell.replace('"', '""') + '"' for cell in row) for row in cells]
        path.write_text("\n".join([",".join(names), *quoted]))
    else:
        path.write_text("\n".join(map(json.dumps, rows)))
    return path


def prepare_table(table, images, out, *, options=None, **settings):
    manifest = choose_manifest(PrepareJob(**{table.suffix[1:]: table}, images=[images], out=out, **settings))
    return prepare_corpus(manifest, out, options=PrepareOptions(workers=1, **(options or {})))


def labels_of(folder, split="train"):
    corpus = Corpus.open(folder, split)
    weights = corpus.caption_weights
    return corpus.caption_sources, None if weights is None else weights.tolist(), corpus.languages


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
@pytest.mark.parametrize("rows", [ROWS, LISTS], ids=["rows", "lists"])
def test_each_caption_keeps_its_source_and_weight(tmp_path, images, ending, rows):
    table = write_table(tmp_path / f"rows.{ending}", rows)
    summary = prepare_table(table, images, tmp_path / "out", hold_out=0)
    assert labels_of(tmp_path / "out") == (SOURCES, WEIGHTS, LANGUAGES)
    assert labels_of(f"file://{tmp_path / 'out'}") == (SOURCES, WEIGHTS, LANGUAGES)
    assert "captions have sources, weights, languages" in str(summary)
    assert list(verify(tmp_path / "out").problems) == []
    first = Corpus.open(tmp_path / "out", "train", 1)
    assert (first.caption_sources, first.caption_weights.tolist(), first.languages) == (
        *(SOURCES[:2], WEIGHTS[:2]),
        LANGUAGES[:2],
    )
    counts = summarize_corpus(tmp_path / "out").splits["train"].captions_by_label["language"]
    assert counts == {"unknown": 2, "en": 1, "de": 1}


def test_parquet_has_a_row_per_caption_or_lists(tmp_path):
    image = {"bytes": encoded("JPEG"), "path": "0.jpg"}
    rows = [
        {
            "image": image,
            "captions": ["a dog", "dog, grass"],
            "source": ["human", "alt text"],
            "weight": [2.0, 0.5],
            "language": ["en", "de"],
        },
        {
            "image": {**image, "path": "1.jpg"},
            "captions": ["a cat"],
            "source": ["synthetic"],
            "weight": [0.25],
            "language": [None],
        },
    ]
    per_caption = [
        {"image": row["image"], "caption": caption, "source": source, "weight": weight, "language": language}
        for row in rows
        for caption, source, weight, language in zip(
            *(row[name] for name in ("captions", "source", "weight", "language")), strict=True
        )
    ]
    prints = []
    for number, table in enumerate([rows, per_caption, "a prepared corpus"]):
        out = tmp_path / f"out{number}"
        if table == "a prepared corpus":
            shutil.copy(tmp_path / "out1" / "train-00000-of-00001.parquet", tmp_path / f"{number}.parquet")
        else:
            pq.write_table(pa.Table.from_pylist(table), tmp_path / f"{number}.parquet")
        (tmp_path / "mine.toml").write_text(f'format = "parquet"\nrows = {{ train = "{number}.parquet" }}\n')
        prepare_corpus(find_manifest(str(tmp_path / "mine.toml")), out, options=PrepareOptions(workers=1))
        assert labels_of(out) == (SOURCES[:3], WEIGHTS[:3], LANGUAGES[:3])
        prints.append(Corpus.open(out, "train").fingerprint)
    assert len(set(prints)) == 1


def test_without_labels_rows_and_fingerprints_are_those_of_captions_alone(tmp_path, images):
    plain = [{name: row[name] for name in ("image", "caption")} for row in ROWS]
    neutral = [{**row, "source": "", "weight": 1, "language": ""} for row in plain]
    for name, rows in (("plain", plain), ("neutral", neutral), ("labeled", ROWS)):
        prepare_table(write_table(tmp_path / f"{name}.jsonl", rows), images, tmp_path / name, hold_out=0)
    made = {name: Corpus.open(tmp_path / name, "train") for name in ("plain", "neutral", "labeled")}
    assert made["plain"].fingerprint == made["neutral"].fingerprint != made["labeled"].fingerprint
    assert labels_of(tmp_path / "neutral") == (None, None, [None] * 4)
    names = pq.read_schema(tmp_path / "neutral" / "train-00000-of-00001.parquet").names
    assert names == ["image_id", "image", "width", "height", "captions", "caption_ids"]
    assert made["plain"].captions_by_label == {}
    data = made["plain"].image_bytes(0)
    row = CorpusRow(image_id="0.jpg", path="0.jpg", data=data, width=1, height=1, captions=["a dog"], caption_ids=[0])
    text = hashlib.sha256(b'["0.jpg", ["a dog"]]').digest()
    assert row.digest() == hashlib.sha256(text + hashlib.sha256(data).digest()).digest()
    digests = {replace(row, **labels).digest() for labels in (
        {}, {"caption_sources": ["x"]}, {"caption_weights": [2.0]},
        {"caption_sources": ["x"], "caption_weights": [2.0]},
        {"caption_languages": ["x"]}, {"caption_sources": ["x"], "caption_languages": ["x"]},
    )}  # fmt: skip
    assert len(digests) == 6
    # Labels as they were before there were languages.
    text = hashlib.sha256(b'["0.jpg", ["a dog"], ["x"], [2.0]]').digest()
    labels = {"caption_sources": ["x"], "caption_weights": [2.0]}
    assert replace(row, **labels).digest() == hashlib.sha256(text + hashlib.sha256(data).digest()).digest()


@pytest.mark.parametrize("weight", ["-1", "0", "nan", "inf", "1e10", "2 kg", "true", [1, 2], {"a": 1}])
@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_a_weight_that_is_no_positive_number_is_an_error_with_its_row(tmp_path, images, ending, weight):
    table = write_table(tmp_path / f"rows.{ending}", [ROWS[0], {**ROWS[1], "weight": weight}])
    with pytest.raises(InputError, match=rf"rows.{ending} line {3 if ending == 'csv' else 2} .*weight"):
        prepare_table(table, images, tmp_path / "out", hold_out=0)
    prepare_table(table, images, tmp_path / "out", hold_out=0, options={"on_error": "skip"})
    assert Corpus.open(tmp_path / "out", "train").captions == ["a dog"]


@pytest.mark.parametrize("split", ["test", "val", "validation"])
def test_a_synthetic_caption_in_a_split_that_measures_is_an_error_with_its_row(tmp_path, images, split):
    rows = [{**ROWS[0], "split": "train"}, {**ROWS[2], "split": split, "source": "Synthetic BLIP-2"}]
    table = write_table(tmp_path / "rows.jsonl", rows)
    with pytest.raises(
        InputError, match=r'rows.jsonl line 2 "1.jpg": it has a synthetic caption, and split (test|val)'
    ):
        prepare_table(table, images, tmp_path / "out")
    with pytest.raises(InputError, match=r"line 3 .* synthetic caption, and split test"):
        prepare_table(write_table(tmp_path / "alone.jsonl", ROWS), images, tmp_path / "out", overrides=['split="test"'])


@pytest.mark.parametrize("in_lists", [False, True])
def test_a_divided_table_holds_out_the_captions_of_people_alone(tmp_path, images, in_lists):
    captions = {name: [("human", "a dog"), ("synthetic", "a brown dog")] for name in NAMES}
    captions |= {name: [("synthetic", "one dog")] for name in NAMES[::2]}
    if in_lists:
        rows = [
            {"image": name, "captions": [text for _, text in pairs], "source": [source for source, _ in pairs]}
            for name, pairs in captions.items()
        ]
    else:
        rows = [
            {"image": name, "caption": text, "source": source}
            for name, pairs in captions.items()
            for source, text in sorted(pairs, reverse=True)
        ]
    summary = prepare_table(write_table(tmp_path / "rows.jsonl", rows), images, tmp_path / "out", hold_out=0.2)
    expected = divide(NAMES[1::2], 0.2)
    found = {
        name: split for split in ("train", "val", "test") for name in Corpus.open(tmp_path / "out", split).image_ids
    }
    assert found == {name: expected.get(name, "train") for name in NAMES}
    held_out = [split for split in expected.values() if split != "train"]
    assert {"val", "test"} == set(held_out)
    for split in ("val", "test"):
        corpus = Corpus.open(tmp_path / "out", split)
        assert set(corpus.captions) == {"a dog"}
        assert set(corpus.caption_sources) == {"human"}
    assert f"without {len(held_out)} synthetic captions" in str(summary)
    assert read_document(tmp_path / "out" / "corpus.json")["source"]["hold_out"]["synthetic_left_out"] == len(held_out)


def test_a_column_of_captions_cannot_be_kept_for_the_images(tmp_path, images):
    table = write_table(tmp_path / "rows.csv", ROWS)
    with pytest.raises(InputError, match=r"'weight' of rows\.csv is about its captions"):
        prepare_table(table, images, tmp_path / "out", overrides=['columns=["weight"]'])


def test_inspect_counts_the_captions_of_each_source(tmp_path, images):
    rows = [{"image": name, "caption": f"dog {name}", "source": f"site {number}"} for number, name in enumerate(NAMES)]
    rows += [{"image": NAMES[0], "caption": f"cat {number}", "source": "human"} for number in range(3)]
    rows += [{"image": NAMES[1], "caption": "a cow"}] * 2
    prepare_table(write_table(tmp_path / "rows.jsonl", rows), images, tmp_path / "out", hold_out=0)
    counts = summarize_corpus(tmp_path / "out").splits["train"].captions_by_label["source"]
    assert counts == {"human": 3, "unknown": 2, **{f"site {number}": 1 for number in range(8)}}
