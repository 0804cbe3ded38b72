"""The formats of data sets: each gives the same corpus, and a wrong row is reported with its position."""

from __future__ import annotations

import json
import shutil
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from captioned_photos import CAPTIONS, DATA, NAMES, SPLITS, contents
from shards import add

from dcdctl.core.data import Corpus, PrepareOptions, manifest, prepare_corpus
from dcdctl.core.errors import InputError
from dcdctl.core.integrity import verify


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "jpg").mkdir()
    for name, data in zip(NAMES, DATA, strict=True):
        (tmp_path / "jpg" / name).write_bytes(data)
    return tmp_path


def prepared(folder: Path, toml: str, **options: Any) -> Any:
    """The corpus of a manifest in the folder, in `out` beside it."""
    (folder / "mine.toml").write_text(toml, encoding="utf-8")
    return prepare_corpus(
        manifest.find_manifest(str(folder / "mine.toml")),
        folder / "out",
        options=PrepareOptions(**{"workers": 1} | options),
    )


def made(folder: Path, toml: str, **options: Any) -> Path:
    prepared(folder, toml, **options)
    return folder / "out"


EXPECTED = {
    split: [row[:3] for row in zip(NAMES, DATA, CAPTIONS, SPLITS, strict=True) if row[3] == split]
    for split in ("train", "test")
}


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)


def image_struct(number: int) -> dict[str, Any]:
    return {"bytes": DATA[number], "path": NAMES[number]}


def test_a_table_with_one_caption_per_row(folder):
    lines = [
        "file_name,text,split",
        "a.jpg,a dog,train",
        "b c.jpg,grass,train",
        "a.jpg,a brown dog,train",
        "ü.jpg,two birds,validation",
    ]
    (folder / "metadata.csv").write_text("\n".join(lines), encoding="utf-8")
    out = made(folder, 'format = "csv"\npairs = "metadata.csv"\nimages = "jpg"\n')
    assert contents(out) == {"train": EXPECTED["train"], "val": [("ü.jpg", DATA[2], ["two birds"])]}


TABLE = "image,caption\na.jpg,a dog\nb c.jpg,two birds\n"


@pytest.mark.parametrize(
    ("changed", "to"),
    [(",", ";"), (",", "\t"), ("image,caption", "Image,CAPTION"), ("a.jpg", "{folder}/jpg/a.jpg")],
)
def test_an_ordinary_table_gives_the_corpus_of_the_plain_one(folder, changed, to):
    toml = 'format = "csv"\npairs = "rows.csv"\nimages = "jpg"\n'
    (folder / "rows.csv").write_text(TABLE.replace(changed, to.format(folder=folder)), encoding="utf-8")
    assert contents(made(folder, toml)) == {
        "train": [("a.jpg", DATA[0], ["a dog"]), ("b c.jpg", DATA[1], ["two birds"])]
    }


def test_a_column_of_single_captions_wins_over_one_of_lists(folder):
    (folder / "metadata.csv").write_text("image,caption,captions\na.jpg,a dog,[]\n")
    out = made(folder, 'format = "csv"\npairs = "metadata.csv"\nimages = "jpg"\n')
    assert contents(out) == {"train": [("a.jpg", DATA[0], ["a dog"])]}


def test_the_table_of_nlphuji_flickr30k(folder):
    rows = [
        f'"{json.dumps(texts).replace(chr(34), chr(34) * 2)}","[{i}, {i + 1}]",{split},{name},{i}'
        for i, (name, texts, split) in enumerate(zip(NAMES, CAPTIONS, SPLITS, strict=True))
    ]
    (folder / "flickr.csv").write_text("\n".join(["raw,sentids,split,filename,img_id", *rows]), encoding="utf-8")
    out = made(folder, 'format = "csv"\npairs = "flickr.csv"\nimages = "jpg"\n')
    assert contents(out) == EXPECTED
    # The second image has one caption and two numbers: they are not its, and it takes its place in the split.
    assert Corpus.open(out, "train").caption_ids.tolist() == [0, 1, 2]
    assert Corpus.open(out, "test").caption_ids.tolist() == [2, 3]


def test_json_lines(folder):
    objects = [
        {"image": "a.jpg", "captions": CAPTIONS[0]},
        {"image": "b c.jpg", "caption": "grass"},
        {"filename": "ü.jpg", "caption": CAPTIONS[2], "split": "test", "sentids": [8, 9]},
    ]
    (folder / "rows.jsonl").write_text(
        "\n\n".join(json.dumps(one, ensure_ascii=False) for one in objects), encoding="utf-8"
    )
    out = made(folder, 'format = "jsonl"\npairs = "rows.jsonl"\nimages = "jpg"\n')
    assert contents(out) == EXPECTED
    assert Corpus.open(out, "test").caption_ids.tolist() == [8, 9]


def test_the_lists_of_lavis_from_two_archives(folder):
    for name, member in (("train2014", 0), ("val2014", 1)):
        with zipfile.ZipFile(folder / f"{name}.zip", "w") as archive:
            archive.writestr(f"{name}/{NAMES[member]}", DATA[member])
    train = [
        {"caption": "a dog", "image": "train2014/a.jpg", "image_id": "coco_1"},
        {"caption": "grass", "image": "val2014/b c.jpg", "image_id": "coco_2"},
        {"caption": "a brown dog", "image": "train2014/a.jpg", "image_id": "coco_1"},
    ]
    (folder / "train.json").write_text(json.dumps(train))
    (folder / "test.json").write_text(json.dumps([{"image": "jpg/ü.jpg", "caption": CAPTIONS[2]}]))
    toml = (
        'format = "lavis"\nimages = ["train2014.zip", "val2014.zip", "jpg"]\n[annotations]\ntrain = '
        '"train.json"\ntest = "test.json"\n'
    )
    found = contents(made(folder, toml))
    assert {split: [row[1:] for row in rows] for split, rows in found.items()} == {
        split: [row[1:] for row in rows] for split, rows in EXPECTED.items()
    }
    assert [row[0] for row in found["train"]] == ["train2014/a.jpg", "val2014/b c.jpg"]


@pytest.mark.parametrize("form", ["list", "struct", "numbered", "row a caption"])
def test_the_parquet_files_of_the_hub(folder, form):
    rows: dict[str, list[dict[str, Any]]] = {"train": [], "test": []}
    for i, (texts, split) in enumerate(zip(CAPTIONS, SPLITS, strict=True)):
        base = {"image": image_struct(i)}
        if form == "list":
            rows[split].append({**base, "caption": texts, "sentids": list(range(i, i + len(texts)))})
        elif form == "struct":
            rows[split].append({**base, "sentences": [{"raw": text, "tokens": text.split()} for text in texts]})
        elif form == "numbered":
            rows[split].append({**base, "caption_1": texts[-1], "caption_0": texts[0]})
        else:
            rows[split] += [{**base, "caption": text} for text in texts]
    for split, part in rows.items():
        write_parquet(folder / f"{split}-0.parquet", part)
    column = 'caption_column = "sentences.raw"\n' if form == "struct" else ""
    out = made(folder, f'format = "parquet"\n{column}[rows]\ntrain = "train-*.parquet"\ntest = "test-*.parquet"\n')
    # A row with a column a caption has as many as there are columns.
    expected = (
        {**EXPECTED, "train": [EXPECTED["train"][0], ("b c.jpg", DATA[1], ["grass", "grass"])]}
        if form == "numbered"
        else EXPECTED
    )
    assert contents(out) == expected


def test_images_of_parquet_are_named_by_their_path_whatever_the_order_of_fields(folder):
    rows = [{"image": {"path": NAMES[i], "bytes": DATA[i]}, "captions": CAPTIONS[i]} for i in range(3)]
    write_parquet(folder / "train-0.parquet", rows)
    out = made(folder, 'format = "parquet"\n[rows]\ntrain = "train-0.parquet"\n')
    assert Corpus.open(out, "train").image_ids == NAMES


def test_parquet_with_karpathys_splits(folder):
    rows = [{"image": {"bytes": DATA[i], "path": None}, "filename": NAMES[i], "caption": CAPTIONS[i]} for i in range(3)]
    write_parquet(folder / "test-0.parquet", [rows[2], rows[0], {**rows[0], "filename": "other.jpg"}, rows[1]])
    entries = [
        {"filename": name, "split": split} for name, split in zip(NAMES, ["restval", "train", "test"], strict=True)
    ]
    (folder / "dataset.json").write_text(json.dumps({"images": entries}))
    toml = 'format = "parquet"\nsplits = "dataset.json"\nid_column = "filename"\n[rows]\nall = "test-0.parquet"\n'
    assert contents(made(folder, toml)) == EXPECTED


def test_a_corpus_is_a_source_too(folder):
    rows = [{"image": name, "captions": texts} for name, texts in zip(NAMES, CAPTIONS, strict=True)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    first = made(folder, 'format = "jsonl"\npairs = "rows.jsonl"\nimages = "jpg"\n')
    first.rename(folder / "first")
    again = made(folder, 'format = "parquet"\n[rows]\ntrain = "first/train-*.parquet"\n')
    assert contents(again) == contents(folder / "first")
    assert Corpus.open(again, "train").fingerprint == Corpus.open(folder / "first", "train").fingerprint


def test_webdataset_tars(folder):
    with tarfile.open(folder / "train-0.tar", "w") as archive:
        add(archive, "0001.jpg", DATA[0])
        add(archive, "0001.txt", b"a dog\na brown dog\n")
        add(archive, "0002.json", json.dumps({"caption": "grass", "width": 24}).encode())
        add(archive, "0002.jpg", DATA[1])
    with tarfile.open(folder / "test-0.tar", "w") as archive:
        add(archive, "./0001.jpg", DATA[2])
        add(archive, "./0001.json", json.dumps({"captions": CAPTIONS[2]}).encode())
    out = made(folder, 'format = "webdataset"\n[shards]\ntrain = "train-*.tar"\ntest = ["test-0.tar"]\n', workers=2)
    found = contents(out)
    assert {split: [row[1:] for row in rows] for split, rows in found.items()} == {
        split: [row[1:] for row in rows] for split, rows in EXPECTED.items()
    }
    assert [row[0] for row in found["train"]] == ["train/0001.jpg", "train/0002.jpg"]


BAD_ROWS: dict[str, tuple[str, Any, str]] = {
    "lavis: no image": ("lavis", {"caption": "x"}, "no image is named"),
    "lavis: a row that is a text": ("lavis", "a dog", r'a string \("a dog"\), expected an object'),
    "jsonl: no image": ("jsonl", {"caption": "x"}, "no image is named"),
    "jsonl: an image that is a number": (
        "jsonl",
        {"image": 4, "caption": "x"},
        r'"image" is a number \(4\), expected a path',
    ),
    "jsonl: no caption": ("jsonl", {"image": "a.jpg"}, "the caption is missing or null"),
    "jsonl: captions that are a text": (
        "jsonl",
        {"image": "a.jpg", "captions": {"0": "x"}},
        r"the caption is an object",
    ),
    "jsonl: an empty caption": ("jsonl", {"image": "a.jpg", "captions": ["x", "  "]}, "caption 1 is empty"),
    "parquet: no caption": ("parquet", {"captions": None}, "the caption is missing or null"),
    "parquet: no bytes": (
        "parquet",
        {"image": {"bytes": None, "path": "x.jpg"}},
        "has no bytes of its image in column 'image'",
    ),
    "parquet: a text for an image": (
        "parquet",
        {"image": {"bytes": b"<html>", "path": "x.jpg"}},
        "not an image file of a supported format",
    ),
    "webdataset: no caption": (
        "webdataset",
        {"jpg": DATA[0]},
        "there is no caption with that key, only jpg; expected KEY.txt or KEY.json",
    ),
    "webdataset: no image": ("webdataset", {"txt": b"x"}, "there is no image with that key, only txt"),
    "webdataset: half a JSON": ("webdataset", {"jpg": DATA[0], "json": b'{"caption": '}, "its JSON cannot be read"),
    "webdataset: a JSON list": (
        "webdataset",
        {"jpg": DATA[0], "json": b"[]"},
        r"its JSON is a list \(\[\]\), expected an object",
    ),
    "webdataset: a large text": (
        "webdataset",
        {"jpg": DATA[0], "txt": b"a dog " * 200_000},
        "its txt is larger than 1,048,576 bytes",
    ),
    "webdataset: Latin-1": (
        "webdataset",
        {"jpg": DATA[0], "txt": "größer".encode("latin-1")},
        "its txt is not UTF-8 text",
    ),
}


def with_a_bad_row(folder: Path, form: str, bad: Any) -> str:
    """A source of three rows whose second is bad, and its manifest."""
    if form == "lavis":
        rows = [{"image": "a.jpg", "caption": ["x"]}, bad, {"image": "ü.jpg", "caption": "y"}]
        (folder / "train.json").write_text(json.dumps(rows))
        return 'format = "lavis"\nimages = "jpg"\nannotations = { train = "train.json" }\n'
    if form == "jsonl":
        rows = [{"image": "a.jpg", "caption": "x"}, bad, {"image": "ü.jpg", "caption": "y"}]
        (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
        return 'format = "jsonl"\npairs = "rows.jsonl"\nimages = "jpg"\n'
    if form == "parquet":
        good = {"image": image_struct(0), "captions": ["x"]}
        rows = [good, {**good, "image": image_struct(1), **bad}, {**good, "image": image_struct(2)}]
        write_parquet(folder / "train.parquet", rows)
        return 'format = "parquet"\nrows = { train = "train.parquet" }\n'
    with tarfile.open(folder / "train.tar", "w") as archive:
        for key, members in (("0", {"jpg": DATA[0], "txt": b"x"}), ("1", bad), ("2", {"jpg": DATA[2], "txt": b"y"})):
            for suffix, data in members.items():
                add(archive, f"{key}.{suffix}", data)
    return 'format = "webdataset"\nshards = { train = "train.tar" }\n'


WHERE = {
    "lavis": "train.json [1]",
    "jsonl": "rows.jsonl line 2",
    "parquet": "train.parquet row 1",
    "webdataset": "train.tar 1",
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_bad_row_is_an_error_with_its_position_or_is_skipped(folder, case):
    form, bad, message = BAD_ROWS[case]
    toml = with_a_bad_row(folder, form, bad)
    with pytest.raises(InputError, match=message) as stopped:
        made(folder, toml)
    assert str(stopped.value).startswith(WHERE[form])
    out = made(folder, toml, on_error="skip")
    assert Corpus.open(out, "train").num_images == 2
    assert [row["row"] for row in json.loads((out / "corpus.json").read_text())["skipped"]] == [WHERE[form]]


def test_other_columns_of_a_table_become_those_of_the_corpus(folder):
    lines = [
        "image,caption,split,year,owner,score,id",
        "a.jpg,a dog,train,2020,ann,1,7",
        "b c.jpg,grass,train,,bob,2,8",
        "a.jpg,a brown dog,train,2020,eve,3,9",
        "ü.jpg,two birds,test,2019,,4,10",
    ]
    (folder / "m.csv").write_text("\n".join(lines), encoding="utf-8")
    summary = prepared(folder, 'format = "csv"\npairs = "m.csv"\nimages = "jpg"\n')
    train, both = Corpus.open(folder / "out", "train"), Corpus.open(folder / "out", "test+train")
    assert train.image_ids == ["a.jpg", "b c.jpg"]
    assert train.columns.to_pydict() == {"year": [2020, None], "owner": ["ann", "bob"], "id": [7, 8]}
    assert both.columns.to_pydict() == {"year": [2019, 2020, None], "owner": [None, "ann", "bob"], "id": [10, 7, 8]}
    assert train.subset(1).columns.num_rows == 1
    assert list(summary.notes[-4:]) == [
        "columns: year, owner, id",
        "column owner of m.csv has several values for 1 image: the first row of an image counts",
        "column id of m.csv has several values for 1 image: the first row of an image counts",
        "column score of m.csv is left out: it has a name that the index itself uses",
    ]
    assert verify(folder / "out").is_well
    path = folder / "out" / "columns-train.parquet"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert not verify(folder / "out").is_well


def test_columns_are_chosen_and_change_no_fingerprint(folder):
    rows = [
        {"image": "a.jpg", "caption": "a dog", "year": 2020, "tags": ["x"]},
        {"image": "ü.jpg", "caption": "birds", "split": "train"},
    ]
    (folder / "m.jsonl").write_text("\n".join(json.dumps(row | {"split": "train"}) for row in rows), encoding="utf-8")
    toml = 'format = "jsonl"\npairs = "m.jsonl"\nimages = "jpg"\n'
    kept = Corpus.open(made(folder, toml), "train")
    assert kept.columns.to_pydict() == {"year": [2020, None]}
    shutil.rmtree(folder / "out")
    prepared(folder, toml + "columns = []\n")
    none = Corpus.open(folder / "out", "train")
    assert (none.columns, none.fingerprint) == (None, kept.fingerprint)
    assert not list((folder / "out").glob("columns-*"))
    shutil.rmtree(folder / "out")
    with pytest.raises(InputError, match=r"m\.jsonl has no column 'yaer'; it has "):
        prepared(folder, toml + 'columns = ["yaer"]\n')
