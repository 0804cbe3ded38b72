"""`dcdctl prepare` of pools: images and texts without pairing, alone and beside a captioned corpus."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from captioned_photos import jpeg
from command_line import run
from PIL import Image
from sent_tasks import SendingEngine
from shards import parquet_of

from dcdctl.core.data import (
    Corpus,
    PrepareJob,
    PrepareOptions,
    choose_manifest,
    near_duplicates,
    prepare_corpus,
    split_writer,
)
from dcdctl.core.data import prepare as prepare_module
from dcdctl.core.data.corpus_json import all_splits, split_to_measure
from dcdctl.core.data.corpus_summary import corpus_table, summarize_corpus
from dcdctl.core.data.readers.captions import MAX_TEXT_BYTES
from dcdctl.core.data.readers.rows import divide
from dcdctl.core.engines import ThisProcess
from dcdctl.core.errors import ConfigError, CorpusError, DcdError, InputError
from dcdctl.core.export.check import samples_of
from dcdctl.core.integrity import verify

NAMES = [f"{'sub/' if number % 2 else ''}{number}.jpg" for number in range(30)]
TEXTS = [f"query {number}" for number in range(40)]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pool") / "photos"
    (folder / "sub").mkdir(parents=True)
    for number, name in enumerate(NAMES):
        (folder / name).write_bytes(jpeg(number))
    (folder / "readme.md").write_text("not an image")
    (folder / ".hidden.jpg").write_text("not an image either")
    return folder


@pytest.fixture
def queries(tmp_path):
    path = tmp_path / "queries.txt"
    path.write_text("\n".join(TEXTS) + "\n")
    return path


def prepare(out, *, options=None, decontaminate=(), engine=None, **choice):
    settings = {key: [value] if isinstance(value, Path) else value for key, value in choice.items()}
    settings |= {key: choice[key] for key in ("csv", "jsonl", "karpathy") if key in choice}
    manifest = choose_manifest(PrepareJob(out=out, **settings))
    options = PrepareOptions(workers=1, **(options or {}))
    return prepare_corpus(manifest, out, options=options, decontaminate=decontaminate, engine=engine or ThisProcess())


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def splits_of(folder):
    splits = json.loads((folder / "corpus.json").read_text())["splits"]
    return {split: Corpus.open(folder, split) for split in splits}


def texts_of(folder):
    return [text for corpus in splits_of(folder).values() for text in corpus.captions]


def test_images_and_texts_are_each_held_out_by_their_hashes(tmp_path, photos, queries):
    summary = prepare(tmp_path / "out", images=photos, queries=queries, hold_out=0.2)
    splits = splits_of(tmp_path / "out")
    assert list(splits) == ["train", "val", "test"]
    assert all(corpus.is_pool for corpus in splits.values())
    images, texts = divide(NAMES, 0.2), divide(TEXTS, 0.2)
    for split, corpus in splits.items():
        assert corpus.image_ids == [name for name in sorted(NAMES) if images[name] == split]
        assert corpus.captions == [text for text in TEXTS if texts[text] == split]
        assert [TEXTS[number] for number in corpus.caption_ids] == corpus.captions
        assert corpus.image_bytes(0) == (photos / corpus.image_ids[0]).read_bytes()
    assert verify(tmp_path / "out").problems == []
    counts = f"{splits['train'].num_images} images, {splits['train'].num_captions} texts without pairing"
    assert f"train {counts}" in str(summary)
    # One way for each kind of teacher, as in docs/tutorial-pools.md.
    for recipe in ("pool-distilled", "pool-picked"):
        assert f"dcdctl distill {recipe} --data {tmp_path / 'out'} --teacher TEACHER" in summary.next_step


def test_equal_texts_are_kept_once_and_counted(tmp_path, photos):
    path = tmp_path / "log.txt"
    path.write_text("Two dogs!\n\n   \na cat\ntwo  dogs\na cat\n")
    summary = prepare(tmp_path / "out", images=photos, queries=path, hold_out=0.0)
    train = Corpus.open(tmp_path / "out", "train")
    assert (train.captions, train.caption_ids.tolist()) == (["Two dogs!", "a cat"], [0, 1])
    assert "repeated texts: 2, each kept once" in str(summary)


@pytest.mark.parametrize("side", ["images", "queries"])
def test_a_pool_of_one_side_is_all_train(tmp_path, photos, queries, side):
    places = {"images": photos, "queries": queries}
    summary = prepare(tmp_path / "out", **{side: places[side]})
    corpus = Corpus.open(tmp_path / "out", "train")
    assert list(summary.splits) == ["train"]
    assert corpus.is_pool
    assert (corpus.num_images, corpus.num_captions) == {"images": (30, 0), "queries": (0, 40)}[side]
    following = {
        "images": [
            f"next: dcdctl index MODEL --images {tmp_path / 'out'} --out INDEX",
            "`dcdctl photos` and",
            "no texts",
        ],
        "queries": [f"next: dcdctl inspect {tmp_path / 'out'}"],
    }
    assert [line for line in following[side] if line not in str(summary)] == []
    assert ("no texts" in str(summary)) == (side == "images")
    assert verify(tmp_path / "out").problems == []


def test_images_and_texts_keep_their_splits_however_few_the_others_are(tmp_path, photos):
    (tmp_path / "few.txt").write_text("a\nb\n")
    summary = prepare(tmp_path / "out", images=photos, queries=tmp_path / "few.txt", hold_out=0.2)
    images, texts = divide(NAMES, 0.2), divide("ab", 0.2)
    for split, corpus in splits_of(tmp_path / "out").items():
        assert corpus.image_ids == [name for name in sorted(NAMES) if images[name] == split]
        assert corpus.captions == [text for text in "ab" if texts[text] == split]
    lacking = [split for split in ("train", "val", "test") if split not in texts.values()]
    assert lacking
    assert f"{' and '.join(lacking)} without images or texts: the hashes alone decide" in str(summary)


def write_texts(folder, suffix):
    path = folder / f"texts.{suffix}"
    rows = ["a dog, running", 'a "big" cat', "grün"]
    if suffix == "txt":
        path.write_text("\n".join(rows))
    elif suffix == "csv":
        path.write_text('id,query\n1,"a dog, running"\n\n2,"a ""big"" cat"\n3,grün\n')
    elif suffix == "tsv":
        path.write_text('caption\tid\na dog, running\t1\n"a ""big"" cat"\t2\ngrün\t3\n')
    elif suffix == "jsonl":
        path.write_text("\n".join(json.dumps({"text": row, "id": 1}) for row in rows))
    else:
        pq.write_table(pa.table({"query": rows, "count": [1, 2, 3]}), path)
    return path


@pytest.mark.parametrize("suffix", ["txt", "csv", "tsv", "jsonl", "parquet"])
def test_texts_of_each_format(tmp_path, suffix):
    prepare(tmp_path / "out", queries=write_texts(tmp_path, suffix))
    train = Corpus.open(tmp_path / "out", "train")
    assert (train.captions, train.caption_ids.tolist()) == (["a dog, running", 'a "big" cat', "grün"], [0, 1, 2])


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_texts_keep_their_languages(tmp_path, suffix):
    rows = [{"query": f"text {number}", "language": "de" if number % 2 else ""} for number in range(20)]
    path, table = tmp_path / f"log.{suffix}", pa.Table.from_pylist(rows)
    if suffix == "parquet":
        pq.write_table(table, path)
    else:
        path.write_text(table.to_pandas().to_csv() if suffix == "csv" else "\n".join(map(json.dumps, rows)))
    (tmp_path / "log.txt").write_text("text 3\nanother\n")
    prepare(tmp_path / "out", queries=[path, tmp_path / "log.txt"], hold_out=0.1)
    prepare(tmp_path / "alone", queries=tmp_path / "log.txt", hold_out=0.1)
    found = {}
    for split in ("train", "val", "test", "train+val"):
        for corpus in (Corpus.open(tmp_path / "out", split), Corpus.open(f"file://{tmp_path / 'out'}", split)):
            found |= dict(zip(corpus.captions, corpus.languages, strict=True))
    assert found == {row["query"]: row["language"] or None for row in rows} | {"another": None}
    counts = summarize_corpus(tmp_path / "out").splits["train"].captions_by_label["language"]
    assert sum(counts.values()) == Corpus.open(tmp_path / "out", "train").num_captions
    prints = []
    for name, rows in (("plain", [{"query": "a dog"}]), ("named", [{"query": "a dog", "language": "en"}])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, [*rows, {"query": "a cat"}])))
        prepare(tmp_path / name, queries=tmp_path / f"{name}.jsonl")
        prints.append(Corpus.open(tmp_path / name, "train").fingerprint)
    assert prints[0] != prints[1]
    assert pq.read_schema(tmp_path / "plain" / "texts-train.parquet").names == ["text", "caption_id"]


def test_a_language_of_a_text_that_is_no_name_is_an_error(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"query": "a dog", "language": ["en"]}\n')
    with pytest.raises(InputError, match=r"log.jsonl line 1: the language is a list"):
        prepare(tmp_path / "out", queries=tmp_path / "log.jsonl")


def test_images_of_a_folder_a_zip_and_a_parquet(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.jpg").write_bytes(jpeg(1))
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("1.jpg", jpeg(2))
        archive.writestr("2.jpg", jpeg(3))
    (tmp_path / "c.parquet").write_bytes(parquet_of([(jpeg(4), ["a dog"]), (jpeg(5), ["a cat"])]))
    prepare(tmp_path / "out", images=[tmp_path / "a", tmp_path / "b.zip", tmp_path / "c.parquet"])
    train = Corpus.open(tmp_path / "out", "train")
    assert train.image_ids[:3] == ["1.jpg", "b/1.jpg", "2.jpg"]
    assert [train.image_bytes(image) for image in range(5)] == [jpeg(number) for number in range(1, 6)]
    assert train.captions == []


def test_urls_of_images_and_texts(tmp_path, photos, queries, monkeypatch):
    import fsspec

    monkeypatch.setenv("DCDCTL_CACHE", str(tmp_path / "cache"))
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as images:
        for name in NAMES:
            images.writestr(name, (photos / name).read_bytes())
    memory = fsspec.filesystem("memory")
    memory.pipe("/pool/images.zip", archive.getvalue())
    memory.pipe("/pool/queries.txt", queries.read_bytes())
    prepare(tmp_path / "remote", images=Path("memory://pool/images.zip"), queries=Path("memory://pool/queries.txt"))
    prepare(tmp_path / "local", images=photos, queries=queries)
    remote, local = splits_of(tmp_path / "remote"), splits_of(tmp_path / "local")
    assert {split: set(corpus.image_ids) for split, corpus in remote.items()} == {
        split: set(corpus.image_ids) for split, corpus in local.items()
    }
    assert texts_of(tmp_path / "remote") == texts_of(tmp_path / "local")


def test_a_manifest_names_a_pool(tmp_path, photos, queries):
    (tmp_path / "mine.toml").write_text(
        f'format = "pool"\nimages = ["{photos}"]\nqueries = ["{queries.name}"]\nhold_out = 0.2\n'
    )
    named = prepare_corpus(choose_manifest(PrepareJob(manifest=str(tmp_path / "mine.toml"))), tmp_path / "out")
    given = prepare(tmp_path / "given", images=photos, queries=queries, hold_out=0.2)
    assert {split: entry["fingerprint"] for split, entry in named.splits.items()} == {
        split: entry["fingerprint"] for split, entry in given.splits.items()
    }


def test_a_table_with_queries_gets_a_pool_of_the_images_that_it_does_not_name(tmp_path, photos, queries):
    table = tmp_path / "pairs.csv"
    # Some by their file name alone, and one as in a folder above.
    rows = [f"{Path(name).name},the photo" for name in NAMES[:19]] + [f"photos/{NAMES[19]},the photo"]
    table.write_text("\n".join(["image,caption", *rows]))
    alone = prepare(tmp_path / "alone", csv=table, images=photos, hold_out=0.3)
    summary = prepare(tmp_path / "out", csv=table, images=photos, queries=queries, hold_out=0.3)
    splits = splits_of(tmp_path / "out")
    assert list(splits) == ["train", "val", "test", "pool"]
    assert {split: corpus.is_pool for split, corpus in splits.items() if corpus.is_pool} == {"pool": True}
    assert splits["pool"].image_ids == sorted(NAMES[20:])
    assert splits["pool"].captions == TEXTS
    for split, entry in alone.splits.items():
        assert summary.splits[split]["fingerprint"] == entry["fingerprint"]
    assert f"next: dcdctl distill RECIPE --data {tmp_path / 'out'} --pool {tmp_path / 'out'}" in str(summary)
    assert verify(tmp_path / "out").problems == []


def test_a_pool_has_no_image_of_splits_that_were_not_asked_for(tmp_path, photos, queries):
    table = tmp_path / "pairs.jsonl"
    rows = [
        {"image": name, "caption": "a photo", "split": "test" if number < 10 else "train"}
        for number, name in enumerate(NAMES[:20])
    ]
    table.write_text("\n".join(map(json.dumps, rows)))
    options = {"splits": ("train", "pool"), "max_images": 7}
    prepare(tmp_path / "out", jsonl=table, images=photos, queries=queries, options=options)
    splits = splits_of(tmp_path / "out")
    assert list(splits) == ["train", "pool"]
    assert splits["pool"].image_ids == sorted(NAMES[20:])[:7]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", None, r"a\.txt cannot be read: No such file or directory"),
        ("a.csv", b"id,words\n1,a dog\n", r"a\.csv has no column query, caption, text: its columns are id, words"),
        ("a.csv", b"", r"a\.csv has no column query, caption, text: it is empty"),
        ("a.csv", b"query\na dog, running\n", r"a\.csv line 2 has 2 cells, and line 1 names 1 columns"),
        ("a.csv", b'query\n"a dog\n', r"a\.csv line 2: a cell starts with a quotation mark"),
        ("a.csv", b"id,query\n1,a dog\n2,\n", r"a\.csv line 3: the text is empty"),
        (
            "a.jsonl",
            b'{"query": "a"}\n{"words": "b"}\n',
            r"a\.jsonl line 2 has no column query, .*: its columns are words",
        ),
        ("a.jsonl", b'{"query": "a"}\n{"query": 5}\n', r"a\.jsonl line 2: the text is a number \(5\), expected text"),
        ("a.jsonl", b'{"query": \n', r"a\.jsonl line 1 is not JSON"),
        ("a.txt", jpeg(0), r"a\.txt is not UTF-8 text"),
        ("a.txt", "grün\n".encode("cp1252"), r"a\.txt is not UTF-8 text .* on line 1.*--set encoding"),
        ("a.txt", b"\n  \n", r"a\.txt has no text"),
        ("a.txt", b"a dog\n" + b"x" * (MAX_TEXT_BYTES + 1), r"a\.txt line 2: the text is larger than 1,048,576 bytes"),
        ("a.parquet", b"PAR1", r"a\.parquet is not a Parquet file"),
        ("a.xlsx", b"PK", r"a\.xlsx is no file of texts, its name ends with '\.xlsx'"),
    ],
)
def test_a_file_of_texts_that_cannot_be_used(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        prepare(tmp_path / "out", queries=tmp_path / name)
    assert "\n" not in str(error.value)


def test_unusable_texts_and_images_may_be_skipped(tmp_path, photos):
    (tmp_path / "a.csv").write_text("id,query\n1,a dog\n2,\n3,a cat\n")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "broken.jpg").write_bytes(jpeg(0)[:200])
    places = {"images": [photos, tmp_path / "more"], "queries": tmp_path / "a.csv", "hold_out": 0.0}
    with pytest.raises(InputError, match=r"a\.csv line 3: the text is empty"):
        prepare(tmp_path / "out", **places)
    summary = prepare(tmp_path / "out", **places, options={"on_error": "skip"})
    assert [(row.row, row.image) for row in summary.skipped] == [
        ("photos", "readme.md"),
        ("a.csv line 3", ""),
        ("more", "broken.jpg"),
    ]
    assert Corpus.open(tmp_path / "out", "train").captions == ["a dog", "a cat"]


@pytest.fixture
def odd_names(photos, tmp_path):
    """The photos, one of them, a text file and the photo of a folder with names that are not UTF-8."""
    folder = shutil.copytree(photos, tmp_path / "odd")
    (folder / NAMES[0]).rename(folder / os.fsdecode(b"caf\xe9.jpg"))
    (folder / os.fsdecode(b"note\xff.md")).write_text("no image")
    (folder / os.fsdecode(b"d\xff")).mkdir()
    (folder / os.fsdecode(b"d\xff/1.jpg")).write_bytes(jpeg(1))
    return folder


@pytest.mark.parametrize("on_error", ["stop", "skip"])
@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_a_file_of_a_pool_whose_name_is_not_utf8_is_left_out(tmp_path, odd_names, queries, kind, on_error):
    place, above = odd_names, ""
    if kind == "tar":
        place, above = tmp_path / "odd.tar", "odd/"
        with tarfile.open(place, "w") as archive:
            archive.add(odd_names, "odd")
    summary = prepare(tmp_path / "out", images=place, queries=queries, hold_out=0.0, options={"on_error": on_error})
    assert sorted(Corpus.open(tmp_path / "out", "train").image_ids) == sorted(f"{above}{name}" for name in NAMES[1:])
    left_out = {
        row["image"]: row["reason"] for row in json.loads((tmp_path / "out" / "corpus.json").read_text())["skipped"]
    }
    assert left_out.pop(f"{above}readme.md") == "its name is not that of an image"
    names = ("caf?.jpg", "d?/1.jpg", "note?.md")
    assert left_out == {f"{above}{name}": "its name is not UTF-8" for name in names}
    assert "left out: 3 files or folders that cannot be opened: check permissions and names" in str(summary)
    assert verify(tmp_path / "out").problems == []


def test_a_row_whose_image_has_a_name_that_is_not_utf8_is_an_error_or_skipped(tmp_path, odd_names, queries):
    rows = [{"image": name, "caption": "a photo"} for name in (*NAMES[1:9], "caf\udce9.jpg")]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    places = {"jsonl": tmp_path / "pairs.jsonl", "images": odd_names, "queries": queries, "hold_out": 0.0}
    with pytest.raises(InputError, match=r'pairs\.jsonl line 9 "caf\?\.jpg": its name is not UTF-8'):
        prepare(tmp_path / "out", **places)
    summary = prepare(tmp_path / "out", **places, options={"on_error": "skip"})
    splits = splits_of(tmp_path / "out")
    assert [splits[split].num_images for split in ("train", "pool")] == [8, len(NAMES) - 9]
    assert ("pairs.jsonl line 9", "caf?.jpg") in [(row.row, row.image) for row in summary.skipped]


@pytest.mark.parametrize("option", ["images", "queries", "out"])
def test_a_place_whose_name_is_not_utf8_is_an_error(tmp_path, photos, queries, option):
    places = {"images": photos, "queries": queries, "out": tmp_path / "out"}
    places[option] = places[option].rename(tmp_path / "caf\udce9") if option == "queries" else tmp_path / "caf\udce9"
    out = places.pop("out")
    with pytest.raises(InputError, match=r"caf\? is not UTF-8; rename the file or folder"):
        prepare(out, **places)


def test_a_named_encoding_is_that_of_the_texts(tmp_path):
    (tmp_path / "a.txt").write_bytes("grün\n".encode("cp1252"))
    prepare(tmp_path / "out", queries=tmp_path / "a.txt", overrides=["encoding=windows-1252"])
    assert Corpus.open(tmp_path / "out", "train").captions == ["grün"]
    with pytest.raises(InputError, match="made from other files or with other options"):
        prepare(tmp_path / "out", queries=tmp_path / "a.txt", overrides=["encoding=cp1251"])


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "a pool needs two images to choose from, and .*/found has none"),
        ({"a.txt": b"x"}, "a pool needs two images to choose from, and .*/found has none"),
        ({"a.jpg": jpeg(0)}, r"a pool needs two images to choose from, and .*/found has only one, a\.jpg"),
    ],
)
def test_a_folder_without_two_images_is_an_error(tmp_path, files, message):
    (tmp_path / "found").mkdir()
    for name, data in files.items():
        (tmp_path / "found" / name).write_bytes(data)
    with pytest.raises(InputError, match=message):
        prepare(tmp_path / "out", images=tmp_path / "found")


def test_places_that_are_not_there_and_wrong_settings(tmp_path, queries):
    with pytest.raises(InputError, match=r"the images .*absent do not exist"):
        prepare(tmp_path / "out", images=tmp_path / "absent", queries=queries)
    with pytest.raises(ConfigError, match=r"hold_out must lie in \[0, 0\.3\], got 0\.9"):
        prepare(tmp_path / "out", queries=queries, hold_out=0.9)
    with pytest.raises(InputError, match="--queries goes with --karpathy, --csv or --jsonl"):
        choose_manifest(PrepareJob(manifest="scenes", queries=[queries]))


# What is measured on is left out


def saved_again(number, quality=60):
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(jpeg_photo(number))) as image:
        image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def jpeg_photo(number):
    """A smooth picture, whose copies have nearly its hash."""
    coarse = np.random.default_rng(number).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize((96, 96), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


@pytest.fixture
def mixed(tmp_path):
    """A table of 12 photos, 4 of them test, beside 6 photos that it does not name: copies of a test and of a train
    photo, and a test photo saved again."""
    folder = tmp_path / "photos"
    folder.mkdir()
    rows = []
    for number in range(12):
        (folder / f"{number}.jpg").write_bytes(jpeg_photo(number))
        split = "test" if number < 4 else "val" if number < 6 else "train"
        rows.append(f"{number}.jpg,The photo {number}.,{split}")
    for number in range(12, 15):
        (folder / f"other-{number}.jpg").write_bytes(jpeg_photo(number))
    (folder / "other-copy.jpg").write_bytes(jpeg_photo(2))
    (folder / "other-again.jpg").write_bytes(saved_again(5))
    (folder / "other-train.jpg").write_bytes(jpeg_photo(8))
    (tmp_path / "pairs.csv").write_text("\n".join(["image,caption,split", *rows]))
    (tmp_path / "q.txt").write_text("the photo 1\na new text\nthe photo 9\nTHE PHOTO 5!\n")
    return {"csv": tmp_path / "pairs.csv", "images": folder, "queries": tmp_path / "q.txt"}


KEPT_IMAGES = ["other-12.jpg", "other-13.jpg", "other-14.jpg", "other-train.jpg"]


def test_images_and_texts_of_val_and_test_are_left_out_of_the_pool(tmp_path, mixed):
    summary = prepare(tmp_path / "out", **mixed)
    pool = Corpus.open(tmp_path / "out", "pool")
    assert pool.image_ids == KEPT_IMAGES
    assert (pool.captions, pool.caption_ids.tolist()) == (["a new text", "the photo 9"], [1, 2])
    left_out = json.loads((tmp_path / "out" / "corpus.json").read_text())["leakage"]["left_out"]["pool"]
    again = left_out["examples"][1]
    assert left_out == {
        "same_file": 1,
        "near": 1,
        "texts": 2,
        "examples": [{"image": "other-copy.jpg", "like": "2.jpg of test", "bits": None}, again],
        "example_texts": ["the photo 1", "THE PHOTO 5!"],
    }
    assert (again["image"], again["like"]) == ("other-again.jpg", "5.jpg of val")
    assert 0 <= again["bits"] <= near_duplicates.NEAR_BITS
    line = (
        "left out of pool: 2 texts that are measured on, and images: 1 the same file, 1 look the same; "
        "the first: other-copy.jpg and 2.jpg of test"
    )
    assert line in str(summary)
    assert line in str(prepare(tmp_path / "out", **mixed))
    assert verify(tmp_path / "out").problems == []


def test_a_pool_is_not_written_before_what_it_must_not_have_is_known(tmp_path, mixed):
    error = DcdError("1 task failed 4 times")
    with pytest.raises(DcdError, match="1 task failed"):
        prepare(tmp_path / "out", engine=SendingEngine(fails="of test-00000-of-00001.parquet", error=error), **mixed)
    noted = json.loads((tmp_path / "out" / "prepare.json").read_text())["shards"]
    assert {name.partition("-")[0] for name in noted} == {"train", "val"}
    prepare(tmp_path / "out", engine=SendingEngine(), **mixed)
    assert Corpus.open(tmp_path / "out", "pool").image_ids == KEPT_IMAGES


def test_a_copy_of_a_held_out_image_is_not_in_the_train_of_a_pool(tmp_path, photos, queries):
    held_out = [name for name, split in divide(NAMES, 0.2).items() if split == "test"]
    (tmp_path / "more").mkdir()
    names = divide([*NAMES, *(f"copy-{number}.jpg" for number in range(40))], 0.2)
    copy = next(name for name, split in names.items() if split == "train" and name.startswith("copy"))
    (tmp_path / "more" / copy).write_bytes((photos / held_out[0]).read_bytes())
    summary = prepare(tmp_path / "out", images=[photos, tmp_path / "more"], queries=queries, hold_out=0.2)
    assert copy not in Corpus.open(tmp_path / "out", "train").image_ids
    counts = "0 texts that are measured on, and images: 1 the same file, 0 look the same"
    assert f"left out of train: {counts}; the first: {copy} and {held_out[0]} of test" in str(summary)


def test_a_pool_is_left_without_the_val_and_test_of_other_corpora(tmp_path, mixed):
    other = prepare(tmp_path / "other", csv=mixed["csv"], images=mixed["images"])
    summary = prepare(
        tmp_path / "out", images=mixed["images"], queries=mixed["queries"], decontaminate=[Path(other)], hold_out=0.0
    )
    pool = Corpus.open(tmp_path / "out", "train")
    # All but the six held-out photos and two copies of them.
    assert pool.image_ids == [*(f"{number}.jpg" for number in (10, 11, 6, 7, 8, 9)), *KEPT_IMAGES]
    assert pool.captions == ["a new text", "the photo 9"]
    assert "left out of train: 2 texts that are measured on, and images: 7 the same file, 1 look the same" in str(
        summary
    )
    assert "0.jpg of other test" in str(summary)
    with pytest.raises(InputError, match="made from other files or with other options"):
        prepare(tmp_path / "out", images=mixed["images"], queries=mixed["queries"], hold_out=0.0)


def test_all_splits_count_of_a_corpus_without_val_and_test(tmp_path, photos, queries):
    (tmp_path / "few").mkdir()
    for name in NAMES[:2]:
        (tmp_path / "few" / Path(name).name).write_bytes((photos / name).read_bytes())
    prepare(tmp_path / "other", images=tmp_path / "few")
    prepare(tmp_path / "out", images=photos, queries=queries, decontaminate=[tmp_path / "other"], hold_out=0.0)
    assert Corpus.open(tmp_path / "out", "train").image_ids == sorted(NAMES[2:])


def test_decontaminate_needs_a_pool_and_a_corpus(tmp_path, mixed):
    prepare(tmp_path / "other", **mixed)
    with pytest.raises(InputError, match="there is none to train on"):
        prepare(tmp_path / "out", csv=mixed["csv"], images=mixed["images"], decontaminate=[tmp_path / "other"])
    with pytest.raises(CorpusError, match=r"there is no corpus in .*photos"):
        prepare(tmp_path / "out", **mixed, decontaminate=[mixed["images"]])


def test_a_killed_preparation_of_a_pool_resumes_to_the_same_bytes(tmp_path, mixed, monkeypatch):
    other = prepare(tmp_path / "other", csv=mixed["csv"], images=mixed["images"])
    mixed |= {"decontaminate": [Path(other)], "options": {"shard_size": 2}}
    prepare(tmp_path / "whole", overrides=["name=x"], **mixed)
    whole = contents(tmp_path / "whole")
    write_shard, num_kills = split_writer._write_shard, 0
    for kill_after in range(1, 20):
        written = []

        def killed(path, part, kill_after=kill_after, written=written, **options):
            if len(written) == kill_after:
                raise KeyboardInterrupt
            written.append(path)
            return write_shard(path, part, **options)

        monkeypatch.setattr(split_writer, "_write_shard", killed)
        out = tmp_path / f"killed-{kill_after}"
        try:
            prepare(out, overrides=["name=x"], **mixed)
        except KeyboardInterrupt:
            num_kills += 1
            monkeypatch.setattr(split_writer, "_write_shard", write_shard)
            prepare(out, overrides=["name=x"], **mixed)
        assert contents(out) == whole
    assert 3 < num_kills < 19


def test_an_unfinished_preparation_does_not_resume_with_another_corpus_to_decontaminate_from(
    tmp_path, mixed, monkeypatch
):
    other = prepare(tmp_path / "other", csv=mixed["csv"], images=mixed["images"])
    pool = {"images": mixed["images"], "queries": mixed["queries"], "hold_out": 0.0, "options": {"shard_size": 2}}
    write_texts = prepare_module.write_texts

    def killed(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare_module, "write_texts", killed)
    with pytest.raises(KeyboardInterrupt):
        prepare(tmp_path / "out", **pool)
    monkeypatch.setattr(prepare_module, "write_texts", write_texts)
    prepare(tmp_path / "out", **pool, decontaminate=[Path(other)])
    assert "0.jpg" not in Corpus.open(tmp_path / "out", "train").image_ids


# Pools in other commands


@pytest.fixture
def beside(tmp_path, photos, queries):
    """A captioned corpus with a split pool."""
    (tmp_path / "pairs.csv").write_text("image,caption\n" + "".join(f"{name},a photo\n" for name in NAMES[:20]))
    table = tmp_path / "pairs.csv"
    return Path(prepare(tmp_path / "beside", csv=table, images=photos, queries=queries, hold_out=0.3))


def test_inspect_shows_a_pool_in_its_own_words(beside):
    head, rows = corpus_table(summarize_corpus(beside))
    facts = {name: dict(zip(head[1:], cells, strict=True)) for name, *cells in rows}
    assert list(facts["images"]) == ["train", "val", "test", "pool"]
    assert (facts["texts without pairing"]["pool"], facts["captions"]["pool"]) == ("40", "")
    assert (facts["texts without pairing"]["val"], facts["captions per image"]["val"]) == ("", "1")
    assert (facts["captions per image"]["pool"], facts["words per text"]["pool"]) == ("", "2")


def test_splits_that_are_read_as_one_or_measured_are_captioned_ones(beside, tmp_path, photos, queries):
    assert all_splits(beside) == "train+val+test"
    assert split_to_measure(beside, "train+val+test") == "train"
    pool = Path(prepare(tmp_path / "out", images=photos, queries=queries))
    assert (all_splits(pool), split_to_measure(pool, "train")) == ("train+val+test", "test")


def test_an_export_is_checked_with_images_and_texts_of_a_pool(beside):
    samples, pool = samples_of(beside, "pool"), Corpus.open(beside, "pool")
    assert samples.captions == pool.captions[: len(samples.captions)]
    assert len(samples.images) == len(samples.captions)


def test_bench_needs_images_and_texts(tmp_path, queries):
    texts = Path(prepare(tmp_path / "texts", queries=queries))
    result = run("bench scenes-vilt --teacher scenes-vilt --split train --data", texts, code=1)
    assert f"error: {texts} has 0 images and 40 texts in train; a search needs both" in result.stderr
