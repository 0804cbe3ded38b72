"""What an index refuses: images, models and settings, changes, and files that do not fit. Vectors and lists of other
engines are in test_given_refusals.py, queries in test_query_refusals.py."""

from __future__ import annotations

import shutil
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import refusals
import torch
from damage import damage_image
from families import FAMILIES, late, with_noise
from image_files import png, put
from made_index import build, build_of, searcher_of, unit_vectors, update, write_index, write_late
from noise_index import CAPTIONS
from refusals import Refusal
from tiny import make_models, make_splits

from dcdctl.core import artifacts, files, models
from dcdctl.core.errors import ConfigError, CorpusError, InputError, MissingError, ModelError, StaleError
from dcdctl.core.search import (
    FolderIndex,
    IndexConfig,
    StoredVectors,
    move_images,
    open_to_change,
    part_files,
    proposers,
    storage,
    watch_index,
)
from dcdctl.core.search.exact import token_type

pytestmark = pytest.mark.usefixtures("_duals_read_once")

FLAT = IndexConfig()
NAMES = ["0.png", "2.png", "sub/1.png", "sub/3.png"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    files = {name: png(number) for number, name in enumerate(NAMES)}
    return put(tmp_path_factory.mktemp("images") / "photos", {**files, "notes.txt": b"no image"})


@pytest.fixture(scope="module")
def whole(dual, photos, tmp_path_factory):
    """An index of the photos with a column, which no refusal changes."""
    table = pa.table({"image": NAMES, "year": [2019, 2020, 2021, 2022]})
    return update(build(dual, photos, tmp_path_factory.mktemp("whole") / "index", FLAT).folder, metadata=table)


@pytest.fixture
def own(whole, tmp_path):
    """A copy of it, to harm."""
    return Path(shutil.copytree(whole.folder, tmp_path / "index"))


@pytest.fixture(scope="module")
def late_ref(tmp_path_factory):
    folder = tmp_path_factory.mktemp("late")
    models.save(with_noise(late(FAMILIES["dual"](CAPTIONS, folder), is_pooled=False)), folder / "late")
    return folder / "late"


# Images and models of an index


def of_images(name: str):
    """Index a place that holds no image that can be read."""

    def do(dual, tmp_path):
        (tmp_path / "empty").mkdir()
        put(tmp_path, {"1.txt": b"x", "texts/1.txt": b"x", "texts/2.txt": b"y", "index/photos/1.png": png(1)})
        build(dual, tmp_path / name, tmp_path / "index", FLAT)

    return do


def equal_ids(dual, tmp_path):
    make_splits(tmp_path / "corpus", {"train": [["a"]] * 3, "test": [["b"]] * 2})
    build(dual, tmp_path / "corpus", tmp_path / "index", FLAT)


def second_split(dual, scenes_corpus_dir, tmp_path):
    index = build(dual, scenes_corpus_dir, tmp_path / "index", FLAT)
    update(index.folder, add=scenes_corpus_dir, split="val")


def damaged_image(dual, scenes_corpus_dir, tmp_path):
    data = shutil.copytree(scenes_corpus_dir, tmp_path / "data")
    damage_image(data, "val", 2)
    build(dual, data, tmp_path / "index", FLAT, split="val")


def diverged(photos, tmp_path):
    model = make_models(["a"])[1]
    with torch.no_grad():
        model.network.visual_projection.weight[0] = 3e38  # finite, but its products are not
    models.save(model, tmp_path / "broken")
    build(tmp_path / "broken", photos, tmp_path / "index", FLAT)


def of_changed_corpus(use):
    """Use an index of a corpus in whose place is another one."""

    def do(dual, scenes_corpus_dir, tmp_path):
        data = Path(shutil.copytree(scenes_corpus_dir, tmp_path / "data"))
        index = build(dual, data, tmp_path / "index", FLAT, split="val")
        document = artifacts.read_document(data / "corpus.json")
        document["splits"]["val"]["fingerprint"] = "f" * 64
        artifacts.write_document(data / "corpus.json", document)
        use(index.folder, data)

    return do


def see(folder: Path, row: int = 0) -> None:
    FolderIndex.open(folder).image_bytes(row)


def of_late(*sets: str):
    return lambda late_ref, photos, tmp_path: build_of(late_ref, photos, tmp_path / "index", *sets)


def pooled(photos, tmp_path):
    models.save(late(FAMILIES["dual"](CAPTIONS, tmp_path), is_pooled=True), tmp_path / "pooled")
    build_of(tmp_path / "pooled", photos, tmp_path / "index")


def without(package: str, do):
    """Do something while a package is not installed."""

    def refused(monkeypatch, tmp_path, whole):
        monkeypatch.setitem(sys.modules, package, None)
        do(tmp_path, whole)

    return refused


def short_vectors(dual, photos, tmp_path):
    build(dual, photos, tmp_path / "index", IndexConfig(dims=4000))


IMAGES = [
    Refusal("no folder", of_images("absent"), InputError, "absent does not exist; --images and --add take a folder"),
    Refusal("a file", of_images("1.txt"), InputError, r"1\.txt is a file; --images and --add take a folder"),
    Refusal("an empty folder", of_images("empty"), InputError, "there is no image in .*; name a folder of images"),
    Refusal("texts", of_images("texts"), InputError, r"none of 2 files in .* is an image that .*1\.txt: not an image"),
    Refusal("images in the index", of_images("index/photos"), InputError, "photos are inside the index"),
    Refusal("an index of itself", of_images("index"), InputError, "index are inside the index"),
    Refusal("equal ids", equal_ids, InputError, "2 images of .* have the same id in two splits, such as .*--split"),
    Refusal("a split twice", second_split, InputError, r"has split train\+val\+test of .*--split val\+test"),
    Refusal("a damaged image", damaged_image, CorpusError, "image '.*' of split val in .*data cannot be decoded: not"),
    Refusal("vectors without order", diverged, ModelError, "vectors that are zero, NaN or infinite"),
    Refusal("another corpus", of_changed_corpus(lambda folder, _: see(folder)), StaleError, "another corpus now"),
    Refusal(
        "another corpus to add",
        of_changed_corpus(lambda folder, data: update(folder, add=data, split="val")),
        StaleError,
        "data holds another corpus than the one that was indexed; make a new index",
    ),
    Refusal(
        "a corpus that is gone",
        of_changed_corpus(lambda folder, data: (shutil.rmtree(data), see(folder))),
        MissingError,
        "the images of the index are not where they were: .*corpus",
    ),
    Refusal("too many numbers", short_vectors, ConfigError, "dims is 4000, .* model have 8 numbers; set it to at most"),
    Refusal("dims of tokens", of_late("dims=4"), ConfigError, "dims shortens the vectors of a dual encoder"),
    Refusal("centroids", of_late("tokens.centroids=70000"), ConfigError, "tokens.centroids must be below 65,536"),
    Refusal("a late model that pools", pooled, ModelError, "an index compares tokens alone; .*--rerank"),
    Refusal(
        "codes",
        # Of centroids, no package is missing.
        without("faiss", lambda *_: (proposers.require("late"), proposers.require("dual"))),
        MissingError,
        "an index of so many images needs faiss, .*, or search all images exactly with --set flat_up_to=1000000000$",
    ),
]

# Changes of an index


def of_change(**changes):
    return lambda whole: update(whole.folder, **changes)


def moved(old: str, new: str):
    """Say of a folder that it moved to another one; each is a name in the folder of the photos, or beside it."""
    return lambda whole, photos: move_images(str(whole.folder), (photos / old).resolve(), (photos / new).resolve())


def moved_to_another(own, photos, tmp_path):
    other = shutil.copytree(photos, tmp_path / "other")
    update(own, add=other)
    move_images(str(own), photos, other)


def ambiguous(own, photos, tmp_path):
    update(own, add=shutil.copytree(photos, tmp_path / "other"))
    update(own, remove=("2.png",))


def while_another_writes(own):
    with files.lock(own):
        update(own, remove=("0.png",))


def of_run(tmp_path):
    put(tmp_path / "run", {"run.json": b"{}"})
    open_to_change(str(tmp_path / "run"))


def tokens_of_index(tmp_path):
    update(write_late(tmp_path / "index", [2, 2])[0].folder, sets=("tokens.codes=int8",))


def after(harm, use):
    """Use an index that is harmed."""

    def do(own, photos, tmp_path):
        harm(own)
        use(own, put(tmp_path / "new", {"new.png": png(9)}))

    return do


def other_model(folder: Path) -> None:
    model = models.load_dual(folder / "model")
    with torch.no_grad():
        model.network.visual_projection.weight.add_(1)
    models.save(model, folder / "model")


def no_model(folder: Path) -> None:
    shutil.rmtree(folder / "model")


def add(folder: Path, new: Path) -> None:
    update(folder, add=new)


def words_of_plain(tmp_path, _):
    update(write_index(tmp_path / "index", [unit_vectors(3)]).folder, sets=("keywords=true",))


CHANGES = [
    Refusal("an unknown setting", of_change(sets=("colour=red",)), ConfigError, "unknown key colour; known keys here"),
    Refusal("dims", of_change(sets=("dims=5",)), ConfigError, "have 8 numbers, and dims is fixed .*; make a new index"),
    Refusal("codes of tokens", tokens_of_index, ConfigError, r"tokens\.codes and tokens\.pooling of .* are fixed when"),
    Refusal("no such image", of_change(remove=("x",)), InputError, "has no image 'x'; nothing was removed; name image"),
    Refusal("a name of two", ambiguous, InputError, "2.png stands for 2 images of .*; nothing was .* its whole path"),
    Refusal("no column to drop", of_change(drop_columns=("x",)), InputError, "has no column 'x' to drop; .*year"),
    Refusal(
        "metadata of other images",
        of_change(metadata=pa.table({"image": ["a.png"], "year": [1]})),
        InputError,
        r"none of the 1 images of .* is in the index .*, such as 'a\.png'; .* as the index does, such as '0\.png'",
    ),
    Refusal(
        "metadata of another type",
        of_change(metadata=pa.table({"image": ["0.png"], "year": ["x"]})),
        InputError,
        "column year of .* is a whole number, and in the table of metadata it is a text; .*--drop-column year",
    ),
    Refusal("two writers", while_another_writes, StaleError, "another run is writing to .*index"),
    Refusal("a run", of_run, ConfigError, r"run is a run, not an index; make one: dcdctl index .*run --images"),
    Refusal(
        "a folder of a folder",
        lambda whole, photos: update(whole.folder, add=photos / "sub"),
        InputError,
        "sub lies in .*photos, an image folder of .*, to which its images belong; dcdctl sync",
    ),
    Refusal("nothing to move", moved("../other", "."), InputError, "other is no image folder of .*; its image folders"),
    Refusal("moved to no images", moved(".", ".."), InputError, "has 0 of 4 images of .*photos that were looked for"),
    Refusal("moved nowhere", moved(".", "x"), InputError, "x is no folder; name the place where the images are now"),
    Refusal("moved to another", moved_to_another, InputError, "other is an image folder of .* already; .*dcdctl sync"),
    Refusal("add by another model", after(other_model, add), StaleError, "made with the model .{8}, and this is the"),
    Refusal("add without the model", after(no_model, add), MissingError, r"lacks its model .{8}; copy it to"),
    Refusal("words", without("bm25s", words_of_plain), MissingError, r"needs bm25s, which is not .*'bm25s>=0\.2\.10'"),
    Refusal(
        "watching",
        without("watchfiles", lambda _, whole: watch_index(str(whole.folder), print, print)),
        MissingError,
        "watchfiles, which is not installed; pip install",
    ),
]

# Files of an index


def of_missing(files: dict[str, str]):
    """Open a folder that has these files beside it or in it, and no index."""

    def do(tmp_path):
        (tmp_path / "index").mkdir()
        put(tmp_path, {name: text.encode() for name, text in files.items()})
        storage.read_document(tmp_path / "index")

    return do


def without_part(own):
    (own / "vectors" / "part-00000.parquet").unlink()
    FolderIndex.open(own)


def edited(change):
    """Open an index with another index.json."""

    def do(own):
        document = artifacts.read_document(own / "index.json")
        change(document)
        artifacts.write_document(own / "index.json", document)
        FolderIndex.open(own)

    return do


def other_text_side(noise_index, tmp_path):
    """The text side has its own checksums right, and is not that of the index."""
    path = Path(shutil.copytree(noise_index, tmp_path / "index")) / "text" / "text.json"
    document = artifacts.read_document(path)
    document["settings"]["max_text_len"] -= 1  # as many bytes
    artifacts.write_document(path, document)
    searcher_of(tmp_path / "index")


def bad_number(bad: float):
    """Read vectors of which one is no number."""

    def do(tmp_path):
        vectors = unit_vectors(1200, 5)
        vectors[1100, 3] = bad
        images = [part_files.SourceImage(image_id=str(row), path=str(row)) for row in range(1200)]
        (tmp_path / "vectors").mkdir()
        part_files.write_part(tmp_path / "vectors" / "part.parquet", images, StoredVectors(vectors))
        part, _ = part_files.describe_part(tmp_path / "vectors" / "part.parquet", 0, token_type(5, "float16"))
        # Also at the second reading.
        with suppress(StaleError):
            part_files.mapped(tmp_path, part, token_type(5, "float16"))
        part_files.mapped(tmp_path, part, token_type(5, "float16"))

    return do


INDICES = [
    Refusal("no index", of_missing({}), MissingError, "there is no index in .*; make one with `dcdctl index RUN --im"),
    Refusal(
        "a library",
        of_missing({"index/index/index.json": "{}"}),
        MissingError,
        "index is no index, its index is .*/index/index; name .*/index/index",
    ),
    Refusal(
        "an unfinished index",
        of_missing({"index/plan.json": "{}"}),
        MissingError,
        "the index in .* is not finished; run the same `dcdctl index` or `dcdctl photos` again: it resumes",
    ),
    Refusal("a missing part", without_part, MissingError, r"part-00000\.parquet is missing; delete the folder and run"),
    Refusal(
        "an unknown entry",
        edited(lambda document: document["parts"][0].update(codes="pq")),
        StaleError,
        r"index\.json is not as this dcdctl writes it: unknown key parts\[0\]\.codes; .*build the index again",
    ),
    Refusal("a text side of elsewhere", other_text_side, StaleError, r"text\.json is damaged: its SHA-256"),
    *(
        Refusal(
            f"vectors with {bad}",
            bad_number(bad),
            StaleError,
            r"part\.parquet is damaged: it has vectors that are NaN or infinite; delete the folder and run",
        )
        for bad in (np.nan, -np.inf)
    ),
    Refusal("no image of the row", lambda whole: see(whole.folder, 4), MissingError, "index has no image 4"),
    Refusal(
        "vectors of another model",
        lambda whole: whole.expect("b" * 64),
        StaleError,
        "made with the model .{8}, and this is the model bbbbbbbb",
    ),
    Refusal("no model", after(no_model, lambda own, _: searcher_of(own)), MissingError, "lacks its model"),
    Refusal(
        "another model",
        after(other_model, lambda own, _: searcher_of(own)),
        StaleError,
        r"model\.safetensors is damaged: its SHA-256",
    ),
]
ROWS = [*IMAGES, *CHANGES, *INDICES]


@pytest.mark.parametrize("refusal", ROWS, ids=lambda row: row.what)
def test_a_refusal_names_what_is_wrong_and_what_would_be_right(refusal, request):
    refusals.check(refusal, request)
