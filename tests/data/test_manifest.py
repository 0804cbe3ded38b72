"""Manifests: the ones that come with dcdctl, a user's own, and what the flags of `prepare` name."""

from __future__ import annotations

from pathlib import Path

import pytest

from dcdctl.core.data import manifest
from dcdctl.core.data.manifest import KarpathySource, ScenesSource, TableSource
from dcdctl.core.errors import ConfigError, InputError


def test_every_manifest_that_comes_along_parses_and_says_what_it_is():
    names = [item.name for item in manifest.known_manifests()]
    assert names == [path.stem for path in sorted(manifest.manifests_folder().glob("*.toml"))]
    assert "scenes" in names
    assert all(item.summary and item.licence for item in manifest.known_manifests())


def test_scenes_has_the_promised_defaults():
    counts = {"train": 1000, "val": 200, "test": 500}
    assert manifest.find_manifest("scenes").sources == {"scenes": ScenesSource(counts=counts, side_px=128, seed=0, captions=5)}


def test_a_set_changes_one_field_and_leaves_the_others():
    [source] = manifest.find_manifest("scenes", ["counts.train=7", "seed=3"]).sources.values()
    assert source == ScenesSource(counts={"train": 7, "val": 200, "test": 500}, seed=3)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("colour=1", "unknown key colour; known keys here: counts, side_px, seed, captions"),
        ("counts.dev=5", "counts.dev is no split"),
        ("counts.train=-1", "counts.train must be 0 or more, got -1"),
        ("side_px=big", "side_px must be int, got 'big'"),
        ("captions=0", r"captions must lie in \[1, 20\], got 0"),
        ("format=coco", "format must be one of scenes, karpathy, lavis, csv, jsonl, parquet, webdataset, got 'coco'"),
        ("licence=3", "licence must be text, got 3"),
    ],
)
def test_a_wrong_set_is_an_error_that_names_it(assignment, message):
    with pytest.raises(ConfigError, match=message):
        manifest.find_manifest("scenes", [assignment])


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(InputError, match=r"no manifest 'flickr90k'; known: .*scenes"):
        manifest.find_manifest("flickr90k")


def test_paths_in_a_toml_file_are_seen_from_its_folder(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('format = "csv"\npairs = "pairs.csv"\nimages = "jpg"\nsplit = "test"\n')
    found = manifest.find_manifest(str(path))
    source = TableSource(pairs=tmp_path / "pairs.csv", images=(tmp_path / "jpg",), split="test")
    assert (found.name, list(found.sources.values())) == ("mine", [source])


def test_karpathy_flags_make_a_manifest_named_after_the_file():
    found = manifest.choose_manifest(None, karpathy=Path("a/dataset_coco.json"), images=[Path("b.zip")])
    source = KarpathySource(annotations=Path("a/dataset_coco.json"), images=(Path("b.zip"),))
    assert (found.name, list(found.sources.values())) == ("coco", [source])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"name": None}, "no data set given: .*--list"),
        ({"name": "scenes", "csv": Path("x.csv")}, "a manifest and --csv both"),
        ({"name": None, "karpathy": Path("x.json"), "csv": Path("x.csv")}, "--karpathy and --csv both"),
        ({"name": None, "csv": Path("x.csv")}, "--csv wants its pictures too; add --images"),
        ({"name": "scenes", "images": [Path("x")]}, "--images goes with --karpathy, --csv or --jsonl"),
    ],
)
def test_flags_that_do_not_name_one_data_set_are_refused(flags, message):
    with pytest.raises(InputError, match=message):
        manifest.choose_manifest(**flags)
