"""Tables without splits: val and test are held out by a hash of the image id, the same images whatever else is in the
table."""

from __future__ import annotations

import hashlib
import json

import pytest
from hostile_images import encoded

from dcdctl.core.data import Corpus, DataChoice, PrepareOptions, choose_manifest, prepare_corpus
from dcdctl.core.data.readers.rows import divide
from dcdctl.core.errors import ConfigError, InputError

NAMES = [f"{number}.jpg" for number in range(40)]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for name in NAMES:
        (folder / name).write_bytes(encoded("JPEG"))
    return folder


def prepare(table, images, out, *, sets=(), options=None, **settings):
    form = {table.suffix[1:]: table}
    manifest = choose_manifest(DataChoice(**form, images=[images], sets=sets, folder=out, **settings))
    return prepare_corpus(manifest, out, options=PrepareOptions(workers=1, **(options or {})))


def ids_of(folder):
    return {
        split: Corpus.open(folder, split).image_ids
        for split in json.loads((folder / "corpus.json").read_text())["splits"]
    }


def write_csv(folder, names=NAMES, header="image,caption", row="{},a dog"):
    (folder / "rows.csv").write_text("\n".join([header, *(row.format(name) for name in names)]))
    return folder / "rows.csv"


def split_by_hand(name, share):
    """The first 13 hexadecimal digits of the SHA-256 as a fraction."""
    place = int(hashlib.sha256(name.encode()).hexdigest()[:13], 16) / 16**13
    return "test" if place < share else "val" if place < 2 * share else "train"


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_a_table_without_splits_is_divided_by_the_hash_of_the_image_id(tmp_path, images, form):
    table = write_csv(tmp_path)
    if form == "jsonl":
        table = tmp_path / "rows.jsonl"
        table.write_text("\n".join(json.dumps({"image": name, "caption": "a dog"}) for name in NAMES))
    summary = prepare(table, images, tmp_path / "out", hold_out=0.2)
    found = {name: split for split, names in ids_of(tmp_path / "out").items() for name in names}
    assert found == {name: split_by_hand(name, 0.2) for name in NAMES}
    assert {"train", "val", "test"} == set(found.values())
    assert (
        "held out: val and test, 20% of the images each, by SHA-256 of image_id; --hold-out 0 keeps all in train"
        in str(summary)
    )
    assert "few images: under 500, each image of a tenth held out is 2 points of recall or more" in str(summary)
    source = json.loads((tmp_path / "out" / "corpus.json").read_text())["source"]
    assert source["hold_out"] == {"share": 0.2, "splits": ["val", "test"], "by": "SHA-256 of image_id"}


def test_an_image_keeps_its_split_when_others_are_added():
    before, after = divide(map(str, range(500)), 0.1), divide(map(str, range(2000)), 0.1)
    assert before.items() <= after.items()
    assert [list(after.values()).count(split) / 2000 for split in ("val", "test")] == pytest.approx(
        [0.1, 0.1], abs=0.02
    )


@pytest.mark.parametrize(("count", "share"), [(10, 0.1), (4, 0.3), (12, 0.1), (7, 0.29)])
def test_each_split_has_an_image_however_the_hashes_fall(count, share):
    for first in range(50):
        splits = list(divide((f"{first} {number}" for number in range(count)), share).values())
        assert min(splits.count(split) for split in ("train", "val", "test")) >= 1


def test_too_few_images_are_all_train(tmp_path, images):
    summary = prepare(write_csv(tmp_path, NAMES[:9]), images, tmp_path / "out")
    assert ids_of(tmp_path / "out") == {"train": NAMES[:9]}
    assert "held out: nothing, because 10% of so few images is less than one" in str(summary)


def test_nothing_is_held_out_where_the_share_is_0_or_the_table_has_splits(tmp_path, images):
    plain = write_csv(tmp_path)
    assert "held out:" not in str(prepare(plain, images, tmp_path / "zero", hold_out=0.0))
    assert "held out" not in str(prepare(plain, images, tmp_path / "named", sets=["split=val"]))
    assert (ids_of(tmp_path / "zero"), ids_of(tmp_path / "named")) == ({"train": NAMES}, {"val": NAMES})
    table = write_csv(tmp_path, header="image,split,caption", row="{},test,a dog")
    prepare(table, images, tmp_path / "own")
    assert ids_of(tmp_path / "own") == {"test": NAMES}
    with pytest.raises(
        InputError, match=r"rows\.csv has splits of its own, and hold_out is 0\.1; leave --hold-out out"
    ):
        prepare(table, images, tmp_path / "both", hold_out=0.1)


def test_limits_apply_to_the_splits_that_are_held_out(tmp_path, images):
    expected = {
        split: [name for name in NAMES if split_by_hand(name, 0.2) == split] for split in ("train", "val", "test")
    }
    options = {"splits": ("train", "test"), "max_images": 3}
    prepare(write_csv(tmp_path), images, tmp_path / "out", hold_out=0.2, options=options)
    assert ids_of(tmp_path / "out") == {split: expected[split][:3] for split in ("train", "test")}


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (["hold_out=0.5"], r"hold_out must lie in \[0, 0\.3\], got 0\.5"),
        (["split=val", "hold_out=0.1"], "hold_out is 0.1, and split = 'val'"),
    ],
)
def test_a_wrong_share_is_refused(tmp_path, images, sets, message):
    with pytest.raises(ConfigError, match=message):
        prepare(write_csv(tmp_path), images, tmp_path / "out", sets=sets)


def test_the_name_is_given_or_that_of_the_folder_or_the_file(tmp_path, images):
    table = write_csv(tmp_path)
    assert prepare(table, images, tmp_path / "birds").name == "birds"
    assert prepare(table, images, tmp_path / "more", name="my birds").name == "my birds"
    assert choose_manifest(DataChoice(csv=table, images=[images])).name == "rows"
    assert choose_manifest(DataChoice(csv=table, images=[images], folder=tmp_path / "a\x07\\b")).name == "a--b"
    assert choose_manifest(DataChoice(csv=tmp_path / "..", images=[images])).name == "corpus"
