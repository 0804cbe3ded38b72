"""Building and changing an index: skipped files, and kills at any moment."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from every_command import without_root
from hostile_images import TALLER, jpeg_of_size
from image_files import png, put
from made_index import Killed, build, copied, killed_before, update
from PIL import Image
from tiny import contents, make_models

from dcdctl.core import models
from dcdctl.core.artifacts import Build
from dcdctl.core.data import Corpus
from dcdctl.core.engines import Compute
from dcdctl.core.errors import DcdError, InputError, MissingError, StaleError
from dcdctl.core.search import FolderIndex, ImageSource, part_files
from dcdctl.core.search.index_config import IndexConfig

pytestmark = pytest.mark.usefixtures("_duals_read_once", "small_parts")

FLAT = IndexConfig()
GRAPHS = IndexConfig(flat_up_to=2, segment_rows=4)


@pytest.fixture(scope="module")
def made(small_parts, dual, tmp_path_factory):
    """A folder of seven images, and two indices of them."""
    folder = tmp_path_factory.mktemp("made")
    pictures = put(folder / "pictures", {f"{'sub/' if seed % 2 else ''}{seed}.png": png(seed) for seed in range(7)})
    return pictures, build(dual, pictures, folder / "flat", FLAT), build(dual, pictures, folder / "graphs", GRAPHS)


@pytest.fixture
def pictures(made, tmp_path):
    return Path(shutil.copytree(made[0], tmp_path / "pictures"))


@pytest.fixture
def flat(made, pictures, tmp_path):
    """The index of the pictures, searched exactly."""
    return copied(made[1], tmp_path / "index", pictures)


@pytest.fixture
def graphs(made, pictures, tmp_path):
    """The index of the pictures, searched by graphs."""
    return copied(made[2], tmp_path / "graphs", pictures)


def vectors_of(model, images):
    with torch.no_grad():
        return model.embed_images(model.preprocess.images(images)).numpy()


def index_image(index, row):
    return Image.open(io.BytesIO(index.image_bytes(row))).convert("RGB")


def names(index):
    return [index.name(row) for row in range(index.num_rows) if not index.is_removed[row]]


def skipped(index):
    file = index.document.skipped.file
    found = (
        {} if file is None else {one["path"]: one["reason"] for one in json.loads((index.folder / file).read_text())}
    )
    assert index.document.skipped.count == len(found)
    return found


def test_images_of_a_corpus_are_found_by_their_vectors(dual, scenes_corpus_dir, tmp_path):
    index = build(dual, scenes_corpus_dir, tmp_path / "index", FLAT, split="val")
    corpus, model = Corpus.open(scenes_corpus_dir, "val"), models.load_dual(index.folder / "model")
    index.expect(model.digest)
    scores_QK, rows_QK = index.nearest(vectors_of(model, corpus.images(range(8))), 1)
    assert rows_QK.ravel().tolist() == list(range(8))
    np.testing.assert_allclose(scores_QK, 1, atol=1e-4)
    for row in (0, 7):
        assert (index.name(row), index.image_bytes(row)) == (corpus.image_ids[row], corpus.image_bytes(row))
    source = ImageSource(kind="corpus", path=str(scenes_corpus_dir), split="val", fingerprint=corpus.fingerprint)
    assert index.document.sources == (source,)


def test_all_splits_of_a_corpus_are_indexed_unless_one_is_named(dual, scenes_corpus_dir, tmp_path):
    whole = build(dual, scenes_corpus_dir, tmp_path / "index", FLAT)
    splits = [Corpus.open(scenes_corpus_dir, split) for split in ("train", "val", "test")]
    assert names(whole) == [image_id for corpus in splits for image_id in corpus.image_ids]
    first_of_val = splits[0].num_images
    assert whole.image_bytes(first_of_val) == splits[1].image_bytes(0)
    assert whole.document.sources[0].split == "train+val+test"


def test_a_small_index_needs_no_package_and_a_large_one_misses_it_before_it_embeds(
    dual, pictures, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "faiss", None)
    few = IndexConfig(flat_up_to=7)
    index = build(dual, pictures, tmp_path / "index", few)
    assert (index.num_images, index.kind) == (7, "flat")
    before = contents(tmp_path / "index" / "vectors")
    put(pictures, {"8.png": png(8)})
    for change in (
        lambda: build(dual, pictures, tmp_path / "other", few),
        lambda: update(tmp_path / "index", add=pictures),
        lambda: update(tmp_path / "index", sets=("flat_up_to=6",)),
    ):
        with pytest.raises(MissingError, match="faiss"):
            change()
    assert not (tmp_path / "other" / "vectors").exists()
    assert contents(tmp_path / "index" / "vectors") == before
    assert update(tmp_path / "index", sets=("flat_up_to=8",), add=pictures).num_images == 8


def test_images_in_a_folder_are_indexed_and_other_files_skipped_with_reasons(dual, tmp_path, monkeypatch):
    good = {
        "a.png": png(1),
        "no ending": png(2, kind="JPEG"),
        "same.png": png(3),
        "sub/same.png": png(4),
        "sub/deeper/ünï 猫\n[x].webp": png(5, kind="WEBP"),
        "sub/*.gif": png(6, kind="GIF"),
        "1x1.png": png(7, size=(1, 1)),
    }
    bad = {
        "empty.jpg": (b"", "0 bytes"),
        "text.txt": (b"a text", "not an image file"),
        "cut.png": (png(8)[:300], "truncated or damaged"),
        "taller.jpg": (jpeg_of_size(*TALLER, png(8, kind="JPEG")), "truncated or damaged"),
        "huge.jpg": (jpeg_of_size(60_000, 60_000, png(8, kind="JPEG")), "decompression bomb"),
        "drawing.svg": (b"<svg></svg>", "not an image file"),
        "strip.png": (png(9, size=(500, 1)), "more than 200 times as long as wide"),
        "large.png": (png(10) + bytes(9000), "larger than 8,000 bytes"),
    }
    monkeypatch.setattr("dcdctl.core.data.images.archives.MAX_FILE_BYTES", 8000)
    folder = put(tmp_path / "pictures", {**good, **{name: data for name, (data, _) in bad.items()}})
    put(folder, {".hidden.png": png(11), ".git/x.png": png(12), "__MACOSX/y.png": png(13), "._a.png": b"resource fork"})
    put(tmp_path, {"outside.png": png(14), "elsewhere/z.png": png(15)})
    (folder / "link out").symlink_to(tmp_path / "outside.png")
    (folder / "link in").symlink_to("a.png")
    (folder / "link nowhere").symlink_to("absent")
    (folder / "link to folder").symlink_to(tmp_path / "elsewhere")
    (folder / "sub" / "loop").symlink_to(folder)
    os.mkfifo(folder / "pipe")
    (folder / "empty folder").mkdir()
    index = build(dual, folder, tmp_path / "index", FLAT)
    assert sorted(names(index)) == sorted([*good, "link in"])
    for row in range(index.num_rows):
        assert index.image_bytes(row) == (folder / index.name(row)).read_bytes()
    found = skipped(index)
    expected = {name: reason for name, (_, reason) in bad.items()} | {
        "link out": "leads out of the folder",
        "link nowhere": "a broken link",
        "link to folder": "not followed",
        "sub/loop": "not followed",
        "pipe": "not a regular file",
    }
    assert sorted(found) == sorted(expected)
    assert [name for name, reason in expected.items() if reason not in found[name]] == []
    model = models.load_dual(dual)
    for name in ("1x1.png", "sub/same.png"):
        vector = vectors_of(model, [Image.open(folder / name).convert("RGB")])
        assert name in {index.name(row) for row in index.nearest(vector, 2)[1][0]}


def test_a_file_name_that_is_not_utf_8_is_skipped(dual, pictures, tmp_path):
    try:
        (pictures / os.fsdecode(b"caf\xe9.png")).write_bytes(png(1))
    except OSError:
        pytest.skip("this file system takes no such name")
    index = build(dual, pictures, tmp_path / "index", FLAT)
    assert skipped(index) == {"caf?.png": "its name is not UTF-8"}
    assert index.num_images == 7


def test_an_unreadable_folder_is_named(dual, pictures, tmp_path, monkeypatch):
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("sub"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    index = build(dual, pictures, tmp_path / "index", FLAT)
    assert skipped(index) == {"sub": "Permission denied"}
    assert index.num_images == 4


def test_an_index_inside_its_image_folder_is_ignored(dual, pictures):
    index = build(dual, pictures, pictures / "index", FLAT)
    assert (index.num_images, skipped(index)) == (7, {})
    again = update(index.folder, add=pictures)
    assert (again.num_rows, skipped(again)) == (7, {})


def test_a_folder_without_images_makes_no_index_and_changes_none_and_no_model_is_read(flat, tmp_path):
    texts = put(tmp_path / "texts", {"1.txt": b"x"})
    with pytest.raises(InputError, match="texts"):
        build(tmp_path / "no model", texts, tmp_path / "new", FLAT)
    assert not (tmp_path / "new").exists()
    (flat.folder / "model" / "model.safetensors").unlink()
    before = contents(flat.folder)
    with pytest.raises(InputError, match="texts"):
        update(flat.folder, add=texts)
    assert contents(flat.folder) == before


def test_a_folder_of_the_index_may_have_lost_its_images(flat, pictures, tmp_path):
    for file in pictures.iterdir():
        file.rename(tmp_path / file.name)
    assert update(flat.folder, add=pictures).num_rows == flat.num_rows


def test_missing_permissions_are_reported_before_embedding(dual, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode, **_: path.exists() and mode != os.W_OK | os.X_OK)
    with pytest.raises(InputError, match=f"{tmp_path} cannot be written to"):
        build(dual, pictures, tmp_path / "new" / "index", FLAT)
    monkeypatch.undo()
    assert build(dual, pictures, tmp_path / "index", FLAT).num_images == 7


def test_an_existing_index_is_not_overwritten(dual, pictures, tmp_path, corpus, flat):
    before = contents(flat.folder)
    other = put(tmp_path / "other", {"x.png": png(1)})
    model = make_models(corpus.captions)[1]
    with torch.no_grad():
        model.network.visual_projection.weight.add_(1)
    models.save(model, tmp_path / "model")
    for arguments, message in (
        ((str(tmp_path / "model"), pictures, flat.folder, FLAT), r"model\.fingerprint .*; name another"),
        ((str(dual), other, flat.folder, FLAT), r"sources\[0\]\.path .*/pictures, not .*/other"),
        (
            (str(dual), pictures, flat.folder, IndexConfig(segment_rows=9)),
            r"settings\..*; .* change settings with `dcdctl",
        ),
        ((str(dual), pictures, other, FLAT), "other is not empty .*; name an empty or a new folder"),
    ):
        with pytest.raises((StaleError, InputError), match=message):
            build(*arguments)
    with pytest.raises(StaleError, match="precision"):
        build(dual, pictures, flat.folder, FLAT, compute=Compute(precision="bfloat16"))
    assert contents(flat.folder) == before
    assert build(dual, pictures, flat.folder, FLAT).num_images == 7  # the same build again is allowed
    assert contents(flat.folder) == before


def test_a_part_without_images_does_not_let_a_later_one_overwrite_a_file(dual, tmp_path, flat):
    """A part of unreadable files alone is no part of the index, so its number is free and a higher one is in use."""
    mixed = put(tmp_path / "mixed", {**{f"{seed}.png": b"x" for seed in range(3)}, "9.png": png(9)})
    more = put(tmp_path / "more", {f"{seed}.png": png(seed) for seed in range(20, 22)})
    index = update(flat.folder, add=mixed)
    assert [part.file for part in index.parts][-1] == "part-00004.parquet"
    index = update(flat.folder, add=more)
    assert len({part.file for part in index.parts}) == len(index.parts) == 5
    index.check()
    _, rows_QK = index.nearest(
        vectors_of(models.load_dual(str(dual)), [index_image(index, row) for row in range(10)]), 1
    )
    assert rows_QK.ravel().tolist() == list(range(10))
    assert names(index)[7:] == ["9.png", "20.png", "21.png"]


@pytest.mark.parametrize("after", range(3))
def test_a_killed_build_resumes_to_the_same_bytes(dual, pictures, tmp_path, after):
    put(pictures, {"bad.png": b"x"})
    whole = build(dual, pictures, tmp_path / "whole", GRAPHS)

    @contextmanager
    def dying(label, *, total, unit):
        calls = 0

        def advance(count):
            nonlocal calls
            calls += 1
            if label == "embed" and calls > 2 * after:
                raise Killed

        yield advance

    with pytest.raises(Killed):
        build(dual, pictures, tmp_path / "index", GRAPHS, track=dying)
    with pytest.raises(MissingError, match="is not finished"):
        FolderIndex.open(tmp_path / "index")
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "index" / "vectors").glob("*.parquet")}
    put(pictures, {"later.png": png(99)})  # new files are not planned
    build(dual, pictures, tmp_path / "index", GRAPHS)
    assert contents(tmp_path / "index") == contents(whole.folder)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert len(kept) == after


DAMAGED = [
    ("planned/part-00001.parquet", 1),
    ("vectors/part-00000.parquet", 1),
    ("vectors/part-00001.parquet.sha256", 2),
    ("ann/codes*-1", 4),
]


@pytest.mark.parametrize(("name", "after"), DAMAGED)
def test_a_part_that_is_damaged_before_the_build_resumes_is_made_again(
    dual, graphs, pictures, tmp_path, monkeypatch, name, after
):
    folder = tmp_path / "index"
    write, written = Build.write, []

    @contextmanager
    def write_or_die(self, part):
        if len(written) == after:
            raise Killed
        with write(self, part) as path:
            yield path
        written.extend([part] * (not part.startswith("planned")))

    def kill(*_):
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(Build, "write", write_or_die)
        patched.setattr(Build, "seal", kill)
        with pytest.raises(Killed):
            build(dual, pictures, folder, GRAPHS)
    damaged = next(folder.glob(name))
    found = damaged.read_bytes()[:-1] + b"x"
    damaged.write_bytes(found)
    build(dual, pictures, folder, GRAPHS)
    assert not damaged.exists() or damaged.read_bytes() != found
    assert contents(folder) == contents(graphs.folder)


def test_codes_of_a_killed_change_to_other_settings_is_not_taken(tmp_path, monkeypatch, flat):
    shutil.copytree(flat.folder, tmp_path / "other")
    sets = ("flat_up_to=0",)
    expected = update(tmp_path / "other", sets=(*sets, "segment_rows=3"))

    def kill(*_):
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(Build, "seal", kill)
        with pytest.raises(Killed):
            update(flat.folder, sets=(*sets, "segment_rows=4"))
    assert list(flat.folder.glob("ann/codes-*"))
    update(flat.folder, sets=(*sets, "segment_rows=3"))
    assert contents(flat.folder) == contents(expected.folder)


def test_adding_images_keeps_the_rows(dual, graphs, pictures, scenes_corpus_dir, tmp_path):
    before = names(graphs)
    put(pictures, {"aa/new.png": png(50), "broken.png": b"x"})
    more = update(graphs.folder, add=pictures)
    assert names(more) == [*before, "aa/new.png"]
    assert skipped(more)["broken.png"].startswith("not an image file")
    other = put(tmp_path / "other", {"0.png": png(60), "bad.png": b""})
    three = update(graphs.folder, add=other)
    assert names(three) == [*before, "aa/new.png", "0.png"]
    assert names(three).count("0.png") == 2
    assert three.image_bytes(8) == png(60)
    assert sorted(skipped(three)) == ["bad.png", "broken.png"]
    four = update(graphs.folder, add=scenes_corpus_dir, split="val")
    assert four.num_images == 17
    corpus = Corpus.open(scenes_corpus_dir, "val")
    assert four.image_bytes(9 + 3) == corpus.image_bytes(3)
    model = models.load_dual(dual)
    _, rows_QK = four.nearest(vectors_of(model, corpus.images([3])), 1)
    assert rows_QK.tolist() == [[12]]
    assert [one.stop for one in four.segments][-1] >= 15
    again = update(graphs.folder, add=scenes_corpus_dir, split="val")
    assert again.num_rows == 17  # nothing is new


def test_images_are_removed_by_name_and_pattern_and_can_be_added_again(dual, graphs, pictures):
    rows = {name: row for row, name in enumerate(names(graphs))}
    fewer = update(graphs.folder, remove=("0.png", "sub/*"))
    assert names(fewer) == ["2.png", "4.png", "6.png"]
    assert fewer.num_images == 3
    model = models.load_dual(dual)
    found = fewer.nearest(vectors_of(model, [Image.open(pictures / "0.png")]), 7)[1][0].tolist()
    assert {row for row in found if row >= 0} == {rows[name] for name in names(fewer)}
    before = contents(graphs.folder)
    for name in ("absent.png", "*.jpg"):
        with pytest.raises(InputError, match="nothing was removed"):
            update(graphs.folder, remove=("2.png", name))
    assert contents(graphs.folder) == before
    # Those that are removed already, by a command that was killed after its removal.
    assert names(update(graphs.folder, remove=("0.png", "sub/*"))) == ["2.png", "4.png", "6.png"]
    back = update(graphs.folder, add=pictures)
    assert sorted(names(back)) == sorted(rows)
    none = update(graphs.folder, remove=("*",))
    assert (none.num_images, none.nearest(np.ones((1, 8)), 2)[1].tolist()) == (0, [[-1, -1]])


def test_a_name_with_brackets_is_matched_exactly_first(dual, tmp_path):
    folder = put(tmp_path / "pictures", {"a[1].png": png(1), "a1.png": png(2), "b.png": png(3)})
    index = build(dual, folder, tmp_path / "index", FLAT)
    assert names(update(index.folder, remove=("a[1].png",))) == ["a1.png", "b.png"]


@pytest.mark.parametrize("name", ["sets", "add"])
def test_a_change_of_an_index_that_cannot_be_written_names_the_index(flat, pictures, name):
    before = contents(flat.folder)
    values = {"sets": ("segment_rows=3",), "add": pictures}
    flat.folder.chmod(0o555)
    try:
        with without_root() as is_ordinary:
            if not is_ordinary:
                pytest.skip("this process keeps the rights of root")
            with pytest.raises(InputError, match=rf"^{flat.folder} cannot be written to"):
                update(flat.folder, **{name: values[name]})
            assert update(flat.folder).num_images == flat.num_images
    finally:
        flat.folder.chmod(0o755)
    assert contents(flat.folder) == before


def test_settings_can_be_changed_later(graphs):
    segments = contents(graphs.folder / "ann")
    more = update(graphs.folder, sets=("flat_up_to=3",))
    assert (more.config.flat_up_to, contents(graphs.folder / "ann")) == (3, segments)
    flat = update(graphs.folder, sets=("flat_up_to=99",))
    assert (flat.kind, flat.segments, contents(graphs.folder / "ann")) == ("flat", (), {})
    assert flat.document.generation == graphs.document.generation + 2


@pytest.mark.parametrize(
    ("changes", "step"),
    [
        ({"add": True}, 3),  # each part repeats the moves of the one before
        ({"remove": ("0.png",), "sets": ("segment_rows=3",)}, 1),
    ],
    ids=["add", "remove"],
)
def test_a_killed_change_leaves_the_old_index_or_the_new_one(graphs, pictures, tmp_path, monkeypatch, changes, step):
    put(pictures, {f"z{seed}.png": png(20 + seed) for seed in range(4)})
    changes = {**changes, **({"add": pictures} if "add" in changes else {})}
    shutil.copytree(graphs.folder, tmp_path / "new")
    new, old = names(update(tmp_path / "new", **changes)), names(graphs)
    assert old != new
    number = 0
    while True:
        folder = tmp_path / f"killed {number}"
        shutil.copytree(graphs.folder, folder)
        was_killed = killed_before(monkeypatch, number, lambda: update(folder, **changes))  # noqa: B023
        index = FolderIndex.open(folder)
        assert names(index) in (old, new), number
        assert index.nearest(np.ones((1, 8)), 3)[1].min() >= 0
        was_committed = names(index) != old
        # The same command again.
        assert names(update(folder, **changes) if was_killed else index) == new
        # Otherwise the generation is a higher one.
        if not (was_killed and was_committed):
            assert contents(folder) == contents(tmp_path / "new"), number
        if not was_killed:
            break
        number += step
    assert number > 12


def test_the_plan_of_another_change_is_not_resumed(tmp_path, monkeypatch, flat):
    first = put(tmp_path / "first", {f"a{seed}.png": png(30 + seed) for seed in range(4)})
    second = put(tmp_path / "second", {f"b{seed}.png": png(40 + seed) for seed in range(4)})
    part = part_files.write_part

    def write_one(path, *arguments):
        if path.name.startswith("part-00004.parquet"):
            raise Killed
        part(path, *arguments)

    monkeypatch.setattr(part_files, "write_part", write_one)
    with pytest.raises(Killed):
        update(flat.folder, add=first)
    monkeypatch.undo()
    assert (flat.folder / "vectors" / "part-00003.parquet").exists()
    assert names(FolderIndex.open(flat.folder))[-1] == "sub/5.png"
    found = update(flat.folder, add=second)
    assert names(found)[7:] == ["b0.png", "b1.png", "b2.png", "b3.png"]
    assert not (flat.folder / "plan.json").exists()


MISTYPED = {
    "vectors": {"vectors": ("mistyped.parquet",), "add": Path("pictures")},
    "query_model": {"query_model": "mistyped"},
    "metadata": {"metadata": Path("mistyped.csv")},
}


@pytest.mark.parametrize("what", MISTYPED)
def test_inputs_that_are_not_there_are_told_before_anything_is_changed(flat, pictures, what):
    before = contents(flat.folder)
    put(pictures, {"new.png": png(9)})
    with pytest.raises(DcdError, match="mistyped"):
        update(flat.folder, **MISTYPED[what])
    assert contents(flat.folder) == before
