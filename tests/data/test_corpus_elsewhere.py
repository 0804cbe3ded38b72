"""A prepared corpus opens in other programs without dcdctl."""

from __future__ import annotations

import hashlib
import json

import duckdb
import numpy as np
from PIL import Image
from tiny import run_script

LOAD_WITH_DATASETS = """
import hashlib, json, socket, sys
import numpy as np

def refuse(*_):
    raise AssertionError("the network was asked")

socket.socket.connect = socket.getaddrinfo = refuse
import datasets

cache, *shards = sys.argv[1:]
loaded = datasets.load_dataset("parquet", data_files={"train": shards}, split="train", cache_dir=cache)
assert isinstance(loaded.features["image"], datasets.Image)
rows = []
for row in loaded:
    image = row.pop("image").convert("RGB")
    rows.append(row | {"pixels": hashlib.sha256(np.asarray(image).tobytes()).hexdigest()})
print(json.dumps(rows))
"""


def pixels_of(image: Image.Image) -> str:
    return hashlib.sha256(np.asarray(image).tobytes()).hexdigest()


def test_datasets_gives_images_and_lists_of_captions_without_a_network(corpus, tmp_path, monkeypatch):
    for name, value in {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}.items():
        monkeypatch.setenv(name, value)
    rows = json.loads(
        run_script(LOAD_WITH_DATASETS, tmp_path / "cache", *sorted(corpus.folder.glob("train-*.parquet")))
    )
    assert rows == [
        {
            "image_id": corpus.image_ids[image],
            "width": 64,
            "height": 64,
            "captions": [corpus.captions[text] for text in corpus.captions_of(image)],
            "caption_ids": corpus.caption_ids[list(corpus.captions_of(image))].tolist(),
            "pixels": pixels_of(corpus.image(image)),
        }
        for image in range(32)
    ]
    assert len({row["pixels"] for row in rows}) > 16


def test_duckdb_counts_images_and_captions(corpus):
    shards = corpus.folder / "train-*.parquet"
    assert duckdb.sql(f"select count(*), sum(len(captions)) from '{shards}'").fetchall() == [(32, 160)]
    (found,) = duckdb.sql(
        f"select octet_length(image.bytes), captions[1] from '{shards}' where image_id = '{corpus.image_ids[9]}'"
    ).fetchall()
    assert found == (len(corpus.image_bytes(9)), corpus.captions[45])
