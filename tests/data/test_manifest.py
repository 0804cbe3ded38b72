"""Manifests: those that ship with dcdctl, those of users, and those made from the flags of `prepare`."""

from __future__ import annotations

from pathlib import Path

import pytest

from dcdctl.core import machine
from dcdctl.core.data import manifest
from dcdctl.core.data.readers.karpathy import KarpathySource
from dcdctl.core.data.readers.parquet import ParquetSource
from dcdctl.core.data.readers.scenes import ScenesSource
from dcdctl.core.errors import ConfigError, InputError


def test_every_shipped_manifest_parses_and_has_a_summary_and_a_license():
    manifests = {name: manifest.find_manifest(name) for name in manifest.manifest_files()}
    assert list(manifests) == ["coco", "flickr30k", "flickr8k", "scenes"]
    assert all(item.name == name and item.summary and item.license for name, item in manifests.items())


def test_a_set_changes_one_field_and_leaves_the_others():
    [source] = manifest.find_manifest("scenes", ["counts.train=7", "seed=3"]).sources.values()
    assert source == ScenesSource(counts={"train": 7, "val": 200, "test": 500}, seed=3)


def test_a_manifest_is_a_corpus_of_its_counts_before_it_is_prepared(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    corpus = manifest.counted_corpus(Path("flickr30k"), "train+val")
    assert (corpus.num_images, corpus.num_captions, len(set(corpus.captions))) == (30_014, 150_070, 150_070)
    first = manifest.counted_corpus(Path("coco"), "train", 3)
    assert (first.num_images, first.num_captions) == (3, 3 * 566_747 // 113_287)
    assert first.caption_image.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    with pytest.raises(InputError, match=r"manifest scenes has the counts of no split, not of train; run `dcdctl pre"):
        manifest.counted_corpus(Path("scenes"), "train")
    assert manifest.counted_corpus(Path("data/flickr30k"), "train") is None
    counts = "[expected.train]\nimages = 2000000000\ncaptions = 2000000000\n"
    (tmp_path / "wrong.toml").write_text(f'name = "a"\nformat = "csv"\npairs = "a.csv"\nimages = "b"\n{counts}')
    monkeypatch.setattr(machine, "memory_bytes", lambda: 10**11)
    message = r"the 2,000,000,000 captions that wrong\.toml counts take at least 160\.00 GB, and there are 100\.00 GB"
    with pytest.raises(ConfigError, match=message):
        manifest.counted_corpus(Path("wrong.toml"), "train", 3)
    # A folder of that name is what is meant.
    (tmp_path / "flickr30k").mkdir()
    assert manifest.counted_corpus(Path("flickr30k"), "train") is None


@pytest.mark.parametrize(
    ("fields", "source"),
    [
        ('rows = { all = "a*.parquet" }\nsplits = "s.json"', {"rows": {"all": ["a*.parquet"]}, "splits": "s.json"}),
        ('rows = { all = ["a.parquet", "sub/b.parquet"] }', {"rows": {"all": ["a.parquet", "sub/b.parquet"]}}),
        (
            'rows = { train = "t.parquet", test = "u.parquet" }',
            {"rows": {"train": ["t.parquet"], "test": ["u.parquet"]}},
        ),
    ],
)
def test_a_path_is_a_text_or_a_list_or_a_table_of_either(tmp_path, fields, source):
    (tmp_path / "mine.toml").write_text(
        f'format = "parquet"\nimage_column = "photo"\n{fields}\n[files."a.parquet"]\nurl = "https://x.org/a"\n'
    )
    [found] = manifest.find_manifest(str(tmp_path / "mine.toml")).sources.values()

    def path(name):  # a file to fetch keeps its name
        return Path(name) if name == "a.parquet" else tmp_path / name

    rows = {split: tuple(map(path, names)) for split, names in source["rows"].items()}
    splits = path(source["splits"]) if "splits" in source else None
    assert found == ParquetSource(rows=rows, splits=splits, image_column="photo")


def test_karpathy_flags_make_a_manifest_named_after_the_file():
    found = manifest.choose_manifest(manifest.PrepareJob(karpathy=Path("a/dataset_coco.json"), images=[Path("b.zip")]))
    source = KarpathySource(annotations=Path("a/dataset_coco.json"), images=(Path("b.zip"),))
    assert (found.name, list(found.sources.values())) == ("coco", [source])
