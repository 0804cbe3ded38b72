"""The summary of a corpus, checked on a corpus that is written by hand."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import tiny
from PIL import Image
from typer.testing import CliRunner

from dcdctl.cli.app import app
from dcdctl.core.artifacts import write_document
from dcdctl.core.data import corpus_summary
from dcdctl.core.data.corpus_summary import Spread
from dcdctl.core.data.shards import CorpusRow
from dcdctl.core.errors import CorpusError, InputError
from dcdctl.core.search import spread_over

TRAIN = [["A dog.", "a DOG", "two dogs on_grass"], ['"><script>alert(1)</script>'], ["a dog", "...", "!"]]
VAL = [["una gatto nero"]]
SIZES = [(40, 30), (20, 50), (20, 10), (16, 16)]
FILE_FORMATS = ["JPEG", "PNG", "PNG", "WEBP"]
SCRIPT_ID = '<img src="x">.png'


def file_of(size, file_format) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, "teal").save(stream, file_format)
    return stream.getvalue()


def write_split(folder, name, captions, first) -> dict:
    """A split in shards of two images."""
    rows = [
        CorpusRow(
            image_id=SCRIPT_ID if image == 1 else f"i{image}",
            path=f"{image}",
            data=file_of(SIZES[image], FILE_FORMATS[image]),
            width=SIZES[image][0],
            height=SIZES[image][1],
            captions=texts,
            caption_ids=range(len(texts)),
        )
        for image, texts in enumerate(captions, start=first)
    ]
    return tiny.write_split(folder, name, rows, rows_a_shard=2)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    index = {"format": 2, "name": "hand", "licence": "CC0 <b>", "source": {"kind": "csv"}, "protocol": "the 1K of May"}
    index["splits"] = {"train": write_split(folder, "train", TRAIN, 0), "val": write_split(folder, "val", VAL, 3)}
    skip = {"row": "row 7", "image": "gone.jpg"}
    index["skipped"] = [
        skip | {"reason": reason} for reason in ("no such image", "the image is truncated", "no such image")
    ]
    overlap = {"same_file": 1000, "near": 0, "examples": [{"image": "a", "like": "b", "bits": None}]}
    index["leakage"] = {"near_bits": 2, "overlaps": {"val in train": overlap}}
    write_document(folder / "corpus.json", index)
    return folder


def run_cli(*words):
    return CliRunner().invoke(app, ["inspect", *map(str, words)], catch_exceptions=False)


def test_the_summary_of_a_split_equals_that_by_hand(folder):
    found = corpus_summary.summarize_corpus(folder).splits["train"]
    assert (found.images, found.captions) == (3, 7)
    assert found.bytes == sum(path.stat().st_size for path in folder.glob("train-*.parquet"))
    assert found.width_px == Spread(min=20, mean=80 / 3, median=20, max=40)
    assert found.height_px == Spread(min=10, mean=30, median=30, max=50)
    assert found.captions_per_image == Spread(min=1, mean=7 / 3, median=3, max=3)
    # a dog 2, a dog 2, two dogs on grass 4, script alert 1 script 4, a dog 2, none 0, none 0
    assert found.words_per_caption == Spread(min=0, mean=2, median=2, max=4)
    assert found.captions_by_words == [2, 0, 3, 0, 2]
    assert found.different_words == len({"a", "dog", "two", "dogs", "on", "grass", "script", "alert", "1"})
    assert found.repeated == 3 / 7  # "..." and "!" are two texts


@pytest.mark.parametrize(("num_images", "count"), [(1, 60), (60, 60), (61, 60), (113_287, 60), (7, 0)])
def test_images_are_spread_over_the_split_and_none_is_shown_twice(num_images, count):
    chosen = spread_over(num_images, count)
    assert len(chosen) == min(num_images, count) == len(set(chosen))
    steps = np.diff([-1, *chosen, num_images])
    assert chosen == sorted(chosen)
    assert not chosen or steps.max() <= 2 * max(1, num_images // len(chosen))


def test_inspect_shows_every_split_or_the_requested_one(folder):
    result = run_cli(folder)
    assert result.exit_code == 0, result.stderr
    assert "skipped rows: 3; 2 x no such image" in result.stdout
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in result.stdout.splitlines() if "│" in line]
    assert ["images", "3", "1"] in rows
    assert ["repeated captions", "42.9%", "0.0%"] in rows
    assert ["captions per image", "1 to 3, median 3, mean 2.3", "1"] in rows
    only = run_cli(folder, "--split", "val").stdout
    assert "┃      val ┃" in only


def test_inspect_prints_one_document(folder):
    result = run_cli(folder, "--json")
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["left_out"] == {"no such image": 2, "the image is truncated": 1}
    assert document["splits"]["val"]["width_px"] == {"min": 16, "mean": 16.0, "median": 16.0, "max": 16}
    assert document["splits"]["train"]["captions_by_words"] == [2, 0, 3, 0, 2]


def test_a_corpus_of_a_corpus_is_a_usage_error(folder):
    result = run_cli(folder, "--data", "x")
    assert result.exit_code == 2
    assert "--data" in result.stderr


def test_the_error_for_another_folder_says_what_it_holds_and_what_is_expected(tmp_path):
    result = run_cli(tmp_path)
    assert result.exit_code == 1
    assert "holds no corpus (corpus.json), no teacher cache (cache.json) and no index (index.json)" in result.stderr
    assert "dcdctl prepare" in result.stderr
    with pytest.raises(InputError, match="absent does not exist, or holds no corpus"):
        corpus_summary.artifact_kind(tmp_path / "absent")


@pytest.mark.parametrize(
    ("sign", "error"), [("prepare.json", "`dcdctl prepare` again"), ("plan.json", "`dcdctl cache-teacher` again")]
)
def test_unfinished_work_keeps_its_own_error(tmp_path, sign, error):
    (tmp_path / sign).write_text("{}")
    result = run_cli(tmp_path)
    assert result.exit_code == 1
    assert error in result.stderr


def test_an_absent_split_and_a_damaged_shard_are_named(folder):
    result = run_cli(folder, "--split", "test")
    assert result.exit_code == 1
    assert "has no split 'test'; it has train, val" in result.stderr
    path = folder / "train-00001-of-00002.parquet"
    data = path.read_bytes()
    for damaged, reason in (
        (b"PAR1 no more", "it has 12 bytes, not"),
        (data[:40] + bytes([data[40] ^ 1]) + data[41:], "its SHA-256 is"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(CorpusError, match=rf"train-00001-of-00002\.parquet is damaged: {reason}"):
            corpus_summary.summarize_corpus(folder)
