"""The Parquet schema of a corpus, and reading it lazily."""

from __future__ import annotations

import io
import json
import multiprocessing
import pickle
import shutil
import threading
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from damage import damage_image
from PIL import Image
from tiny import write_split

from dcdctl.core.artifacts import read_document, write_document
from dcdctl.core.data import Corpus, Direction
from dcdctl.core.data.shards import CorpusRow, fingerprint_of, write_shard
from dcdctl.core.errors import CorpusError


def make_row(i, num_captions=2, data=None):
    captions, numbers = [f"caption {i}.{k}" for k in range(num_captions)], [10 * i + k for k in range(num_captions)]
    data = data if data is not None else image_file(i)
    return CorpusRow(
        image_id=f"id{i}", path=f"{i}.png", data=data, width=6, height=4, captions=captions, caption_ids=numbers
    )


def image_file(i, image_format="PNG", **options):
    buffer = io.BytesIO()
    Image.new("RGB", (6, 4), (i % 256, 2 * i % 256, 100)).save(buffer, image_format, **options)
    return buffer.getvalue()


def write_corpus(folder, rows, rows_a_shard):
    entry = write_split(folder, "train", rows, rows_a_shard)
    write_document(folder / "corpus.json", {"format": 2, "name": "made", "splits": {"train": entry}})
    return Corpus.open(folder, "train")


@pytest.fixture
def ragged(tmp_path):
    """100 images in three shards of several row groups, with one to four captions each."""
    return write_corpus(tmp_path, [make_row(i, 1 + i % 4) for i in range(100)], rows_a_shard=45)


def test_the_schema_is_the_documented_one(scenes_corpus_dir):
    schema = pq.read_schema(scenes_corpus_dir / "test-00000-of-00001.parquet")
    assert schema.remove_metadata() == pa.schema(
        [
            ("image_id", pa.string()),
            ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("captions", pa.list_(pa.string())),
            ("caption_ids", pa.list_(pa.int64())),
        ]
    )
    features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    assert list(features) == schema.names
    assert features["image"] == {"_type": "Image"}
    assert features["captions"] == {"feature": {"dtype": "string", "_type": "Value"}, "_type": "Sequence"}


def test_row_groups_hold_at_most_32_rows_and_two_megabytes_of_images(tmp_path):
    rows = [make_row(i, data=bytes(10)) for i in range(40)] + [make_row(i, data=bytes(900_000)) for i in range(5)]
    list(write_shard(tmp_path / "x.parquet", rows))
    metadata = pq.ParquetFile(tmp_path / "x.parquet").metadata
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [32, 10, 2, 1]


def test_images_and_captions_keep_the_order_of_the_rows(ragged):
    assert ragged.image_ids == [f"id{i}" for i in range(100)]
    assert ragged.captions == [f"caption {i}.{k}" for i in range(100) for k in range(1 + i % 4)]
    assert ragged.caption_image.tolist() == [i for i in range(100) for _ in range(1 + i % 4)]
    assert ragged.caption_ids.tolist() == [10 * i + k for i in range(100) for k in range(1 + i % 4)]
    assert (ragged.num_images, ragged.num_captions, len(ragged.captions)) == (100, 250, 250)
    assert ragged.caption_image.dtype == np.int64


def test_every_image_is_read_from_its_shard(ragged):
    for image in [99, 0, 44, 45, 31, 32, 89, 90]:
        assert ragged.image_bytes(image) == image_file(image)
        assert ragged.image(image).getpixel((0, 0)) == (image, 2 * image, 100)
    with pytest.raises(IndexError):
        ragged.image_bytes(100)
    with pytest.raises(IndexError):
        ragged.image_bytes(-1)


def test_images_come_in_the_given_order_and_may_repeat(ragged):
    wanted = [77, 3, 3, 99, 46, 0]
    assert [image.getpixel((0, 0))[0] for image in ragged.images(wanted)] == wanted


def test_a_pickled_corpus_reads_the_same(ragged):
    ragged.image(5)
    again = pickle.loads(pickle.dumps(ragged))
    assert again.image_bytes(98) == ragged.image_bytes(98)
    assert again.captions == ragged.captions


def _send_first_bytes(made, connection):
    connection.send([made.image_bytes(i) for i in (3, 50, 99)])


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
def test_a_forked_child_opens_its_own_files(ragged):
    ragged.image(3)
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    child = context.Process(target=_send_first_bytes, args=(ragged, there))
    child.start()
    assert here.recv() == [image_file(i) for i in (3, 50, 99)]
    child.join()
    assert ragged.image_bytes(97) == image_file(97)


def test_threads_read_the_right_images_together(ragged):
    wrong = []

    def read(start):
        wrong.extend(i for i in range(start, 100, 4) if ragged.image_bytes(i) != image_file(i))

    threads = [threading.Thread(target=read, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_subset_has_the_first_images_and_its_own_fingerprint(ragged):
    part = ragged.subset(6)
    assert (part.num_images, part.image_ids) == (6, [f"id{i}" for i in range(6)])
    assert part.captions == ragged.captions[: 1 + 2 + 3 + 4 + 1 + 2]
    assert part.caption_image.tolist() == ragged.caption_image[:13].tolist()
    assert len({ragged.fingerprint, part.fingerprint, ragged.subset(7).fingerprint}) == 3
    assert part.fingerprint == ragged.subset(6).fingerprint
    assert ragged.subset(100) is ragged
    with pytest.raises(IndexError):
        part.image(6)


def test_joined_splits_are_one_gallery_whose_parts_stay_as_they_are(scenes_corpus_dir):
    train, val = Corpus.open(scenes_corpus_dir, "train"), Corpus.open(scenes_corpus_dir, "val")
    joined = Corpus.open(scenes_corpus_dir, "train+val")
    assert (joined.num_images, joined.num_captions) == (32 + 8, 160 + 40)
    assert joined.image_ids == train.image_ids + val.image_ids
    assert joined.captions == train.captions + val.captions
    assert joined.captions_of(32) == range(160, 165)
    assert joined.caption_image.tolist() == [i for i in range(40) for _ in range(5)]
    assert [joined.image_bytes(i) for i in (31, 32, 39)] == [
        train.image_bytes(31),
        val.image_bytes(0),
        val.image_bytes(7),
    ]
    others = [train, val, Corpus.open(scenes_corpus_dir, "val+train"), joined.subset(39)]
    assert joined.fingerprint not in {other.fingerprint for other in others}
    assert joined.subset(33).captions == train.captions + val.captions[:5]


def test_the_fingerprint_covers_ids_captions_images_and_order(tmp_path):
    rows = [make_row(i) for i in range(4)]
    changes = [
        [replace(rows[0], image_id="other"), *rows[1:]],
        [replace(rows[0], captions=["caption 0.0", "caption 0.x"]), *rows[1:]],
        [replace(rows[0], data=rows[0].data[:-1] + b"x"), *rows[1:]],
        [replace(rows[0], captions=["caption 0.0caption 0.1"]), *rows[1:]],
        [rows[1], rows[0], *rows[2:]],
        rows[:3],
    ]
    prints = [fingerprint_of(row.digest() for row in variant) for variant in [rows, *changes]]
    assert len(set(prints)) == 1 + len(changes)


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("absent", ""),
        ("flickr30k", " flickr30k --out flickr30k"),
        ("data/coco", " coco --out data/coco"),
        ("my.toml", " my.toml --out my"),
    ],
)
def test_the_error_for_a_missing_folder_says_what_to_run(tmp_path, monkeypatch, name, more):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.toml").touch()
    with pytest.raises(CorpusError) as raised:
        Corpus.open(name, "train")
    assert str(raised.value) == f"there is no corpus in {name} (no corpus.json); make one with `dcdctl prepare{more}`"


def test_a_damaged_shard_is_named(ragged):
    path = ragged.folder / "train-00001-of-00003.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CorpusError, match=r"train-00001-of-00003.parquet is damaged"):
        Corpus.open(ragged.folder, "train").image(50)


def test_a_damaged_image_inside_a_shard_is_named(scenes_corpus_dir, tmp_path):
    folder = shutil.copytree(scenes_corpus_dir, tmp_path / "copy")
    name = damage_image(folder, "val", 3, image_file(0)[:50])
    opened = Corpus.open(folder, "val")
    message = (
        rf"image '{name}' of split val in .*copy cannot be decoded: the image is truncated.*; delete the "
        r"folder and run .*prepare` again"
    )
    for read in (lambda: opened.image(3), lambda: opened.images([1, 3]), lambda: opened.subset(5).images([3])):
        with pytest.raises(CorpusError, match=message):
            read()
    assert len(opened.images([0, 1, 2, 4])) == 4


def test_a_direction_names_what_is_asked_and_what_is_found():
    names = [(direction.key, direction.title, direction.query, direction.gallery) for direction in Direction]
    assert names == [
        ("text_retrieval", "text retrieval", "image", "caption"),
        ("image_retrieval", "image retrieval", "caption", "image"),
    ]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("splits", "text", "splits must be a table"),
        ("leakage", {"near_bits": []}, r"leakage\.near_bits must be int"),
    ],
)
def test_a_document_of_a_stranger_with_an_entry_of_another_type_is_refused_by_name(ragged, key, value, message):
    path = ragged.folder / "corpus.json"
    write_document(path, {**read_document(path), key: value})
    with pytest.raises(CorpusError, match=rf"corpus\.json is not as this dcdctl writes it: {message}"):
        Corpus.open(ragged.folder, "train")
