"""Tables without splits: val and test are held out by a hash of the image id, the same images whatever else is in the
table."""

from __future__ import annotations

import hashlib
import json

import pytest
from hostile_images import encoded

from dcdctl.core.data import Corpus, PrepareJob, PrepareOptions, choose_manifest, prepare_corpus
from dcdctl.core.data.readers.rows import divide
from dcdctl.core.errors import InputError

NAMES = [f"{number}.jpg" for number in range(40)]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for name in NAMES:
        (folder / name).write_bytes(encoded("JPEG"))
    return folder


def prepare(table, images, out, *, sets=(), options=None, **settings):
    form = {table.suffix[1:]: table}
    manifest = choose_manifest(PrepareJob(**form, images=[images], overrides=sets, out=out, **settings))
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


@pytest.mark.parametrize("share", [0.01, 0.1, 0.2, 0.3])
@pytest.mark.parametrize("count", [0, 1, 3, 9, 10, 11, 30, 500])
def test_an_image_keeps_its_split_whatever_is_added_or_removed(count, share):
    """From a corpus of one image upwards, in other orders, and after half of the earlier images are removed."""
    for seed in range(5):
        names = [f"{seed} {number}.jpg" for number in range(count + 40)]
        whole = divide(names, share)
        assert whole == {name: split_by_hand(name, share) for name in names}
        for added in (1, 5, 40):
            after = divide(reversed(names[: count + added]), share)
            assert divide(names[:count], share).items() <= after.items() <= whole.items()
            assert divide(names[count // 2 : count + added], share).items() <= after.items()


def test_about_a_share_is_test_and_about_a_share_is_val():
    splits = list(divide(map(str, range(2000)), 0.1).values())
    assert [splits.count(split) / 2000 for split in ("val", "test")] == pytest.approx([0.1, 0.1], abs=0.02)


def test_a_corpus_keeps_its_splits_when_images_are_added(tmp_path, images):
    prepare(write_csv(tmp_path, NAMES[:30]), images, tmp_path / "before")
    prepare(write_csv(tmp_path, NAMES[3:40]), images, tmp_path / "after")
    before, after = ids_of(tmp_path / "before"), ids_of(tmp_path / "after")
    assert before.keys() == {"train", "val", "test"}
    assert {split: [name for name in names if name in NAMES[3:30]] for split, names in after.items()} == {
        split: [name for name in names if name in NAMES[3:]] for split, names in before.items()
    }


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (1, ["held out: nothing, 10% of the images each", "val and test without images: the hashes alone decide"]),
        (9, ["held out: val, 10% of the images each", "test without images: the hashes alone decide, and these"]),
    ],
)
def test_a_split_that_is_empty_among_few_images_is_said(tmp_path, images, count, said):
    names = [name for name in NAMES if split_by_hand(name, 0.1) == "train"][: min(count, 8)]
    names += [name for name in NAMES if split_by_hand(name, 0.1) == "val"][: count - len(names)]
    for _ in range(2):  # and when the corpus is already there
        summary = prepare(write_csv(tmp_path, names), images, tmp_path / "out")
        assert all(line in str(summary) for line in said)
    assert {name for ids in ids_of(tmp_path / "out").values() for name in ids} == set(names)


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


def test_the_name_is_given_or_that_of_the_folder_or_the_file(tmp_path, images):
    table = write_csv(tmp_path)
    assert prepare(table, images, tmp_path / "birds").name == "birds"
    assert prepare(table, images, tmp_path / "more", sets=["name=my birds"]).name == "my birds"
    assert choose_manifest(PrepareJob(csv=table, images=[images])).name == "rows"
    assert choose_manifest(PrepareJob(csv=table, images=[images], out=tmp_path / "a\x07\\b")).name == "a--b"
    assert choose_manifest(PrepareJob(csv=tmp_path / "..", images=[images])).name == "corpus"
