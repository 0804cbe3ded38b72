"""Vectors of another engine become an index: the bytes of embedding here, and every row that does not fit is an
error."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from command_line import document_of
from image_files import png, put
from made_index import Killed, build, update
from phone_library import encoded, exif_of, scene
from PIL import Image
from task_work import engine
from tiny import contents

from dcdctl.core import models
from dcdctl.core.data import Corpus, decode_image
from dcdctl.core.engines import Compute, TasksWrittenError
from dcdctl.core.errors import InputError, StaleError
from dcdctl.core.search import part_files, vector_files
from dcdctl.core.search.index_config import IndexConfig

pytestmark = pytest.mark.usefixtures("_duals_read_once")

FLAT = IndexConfig()
NAMES = [f"{'sub/' if seed % 2 else ''}{seed}.png" for seed in range(7)]


@pytest.fixture(autouse=True)
def model(dual, monkeypatch):
    """Parts are small."""
    monkeypatch.setattr(part_files, "ROWS_PER_PART", 3)
    monkeypatch.setattr(part_files, "ROWS_PER_GROUP", 2)
    monkeypatch.setattr(vector_files, "ROWS_PER_BATCH", 3)
    return models.load_dual(dual)


@pytest.fixture
def photos(tmp_path):
    """A folder of seven images, and a file that is none."""
    return put(tmp_path / "photos", {**{name: png(int(name[-5])) for name in NAMES}, "notes.txt": b"no image"})


def outputs(model, photos):
    """What the model gives for the images, before anything is normalized."""
    images = [vector_files.embed.data.decode_image((photos / name).read_bytes()) for name in NAMES]
    with torch.no_grad():
        return model.embed_images(model.preprocess.images(images)).numpy()


def write(path, names, vectors):
    """A file of vectors as lists."""
    lists = vectors if isinstance(vectors, pa.Array) else pa.array(list(vectors))
    pq.write_table(pa.table({"image_id": names, "vector": lists}), path)
    return path


def comparable(folder):
    """The files of an index by their content; of images whose vectors are given, no digest is known."""
    found = contents(folder)
    parts = json.loads(found["index.json"])["parts"]
    return {name: data for name, data in found.items() if not name.startswith(("index.json", "files-"))}, parts


@pytest.mark.parametrize("number", [pa.float32(), pa.float64()])
@pytest.mark.parametrize("dims", [None, 4])
def test_vectors_in_any_order_and_length_give_the_bytes_of_embedding(dual, model, photos, tmp_path, number, dims):
    config = IndexConfig(dims=dims)
    own = build(dual, photos, tmp_path / "own", config)
    order = [4, 0, 6, 2, 5, 1, 3]
    vectors = pa.array([3.5 * row.astype(np.float64) for row in outputs(model, photos)[order]], pa.list_(number))
    names = [NAMES[i] for i in order]
    write(tmp_path / "a.parquet", names[:3], vectors[:3])
    write(tmp_path / "b.parquet", names[3:], vectors[3:])
    taken = build(dual, photos, tmp_path / "taken", config, given=tmp_path / "*.parquet")
    assert comparable(taken.folder) == comparable(own.folder)
    assert taken.document.skipped.count == 1


def test_the_files_of_an_index_are_files_of_vectors(dual, photos, tmp_path, bucket):
    own = build(dual, photos, tmp_path / "own", FLAT)
    taken = build(dual, photos, tmp_path / "taken", FLAT, given=own.folder / "vectors")
    assert comparable(taken.folder) == comparable(own.folder)
    bucket.put_all(own.folder / "vectors", "vectors")
    taken = build(dual, photos, tmp_path / "remote", FLAT, given=bucket.url("vectors/*.parquet"))
    assert comparable(taken.folder) == comparable(own.folder)


def test_images_of_a_corpus_and_added_images_take_vectors_too(dual, model, photos, scenes_corpus_dir, tmp_path):
    corpus = Corpus.open(scenes_corpus_dir, "val")
    with torch.no_grad():
        vectors = model.embed_images(model.preprocess.images(corpus.images(range(corpus.num_images)))).numpy()
    write(tmp_path / "corpus.parquet", corpus.image_ids, vectors)
    own = build(dual, scenes_corpus_dir, tmp_path / "own", FLAT, split="val")
    files = tmp_path / "corpus.parquet"
    taken = build(dual, scenes_corpus_dir, tmp_path / "taken", FLAT, split="val", given=files)
    assert comparable(taken.folder) == comparable(own.folder)
    write(tmp_path / "photos.parquet", NAMES, outputs(model, photos))
    added = update(taken.folder, add=photos, vectors=(str(tmp_path / "photos.parquet"),))
    assert comparable(added.folder) == comparable(update(own.folder, add=photos).folder)


def test_refused_vectors_leave_no_index(dual, model, photos, tmp_path):
    path = write(tmp_path / "v.parquet", [*NAMES[:-1], "x.png"], outputs(model, photos))
    with pytest.raises(InputError, match=r"v\.parquet"):
        build(dual, photos, tmp_path / "index", FLAT, given=path)
    assert not (tmp_path / "index" / "index.json").exists()
    assert not list(tmp_path.glob("index/vectors/*"))


def turned_photo(seed, orientation):
    """A photo as a phone saves it: the sensor's pixels, and how they are to be turned."""
    return encoded(scene(seed, (40, 30)), exif=exif_of(orientation=orientation))


def vectors_of(model, photos, *, upright=True):
    """What an engine gives that knows EXIF orientations, or one that does not."""
    names = sorted(path.name for path in photos.iterdir())
    read = (lambda path: decode_image(path.read_bytes())) if upright else (lambda path: Image.open(path).convert("RGB"))
    with torch.no_grad():
        return names, model.embed_images(model.preprocess.images([read(photos / name) for name in names])).numpy()


def test_vectors_of_turned_photos_are_taken_and_those_of_another_model_are_not_called_turned(dual, model, tmp_path):
    photos = put(tmp_path / "photos", {f"{n}.jpg": turned_photo(n, 6 if n == 2 else 1) for n in range(5)})
    names, vectors = vectors_of(model, photos)
    path = write(tmp_path / "v.parquet", names, vectors)
    assert len(build(dual, photos, tmp_path / "index", FLAT, given=path)) == 5
    vectors[2] = -vectors[2]
    write(path, names, vectors)
    with pytest.raises(InputError, match=r"'2\.jpg' is not that of this model"):
        build(dual, photos, tmp_path / "other", FLAT, given=path)


@pytest.mark.parametrize(("row", "is_found"), [(44, True), (45, False)])
def test_every_rotated_photo_among_the_first_ones_is_compared_and_no_other_pixels_are_read(
    dual, model, tmp_path, monkeypatch, row, is_found
):
    monkeypatch.setattr(part_files, "ROWS_PER_PART", 40)
    monkeypatch.setattr(vector_files, "NUM_VERIFIED", 4)
    monkeypatch.setattr(vector_files, "ROTATED_AMONG", 45)
    photos = put(tmp_path / "photos", {f"{n:02}.jpg": turned_photo(n, 6 if n == row else 1) for n in range(60)})
    path = write(tmp_path / "v.parquet", *vectors_of(model, photos, upright=False))
    decoded = []
    monkeypatch.setattr(
        vector_files.embed.data, "decode_image", lambda data: decoded.append(data) or decode_image(data)
    )
    if is_found:
        with pytest.raises(InputError, match=r"44\.jpg"):
            build(dual, photos, tmp_path / "index", FLAT, given=path)
    else:
        build(dual, photos, tmp_path / "index", FLAT, given=path)
    # Four of all and, once to compare and once to turn it back, the rotated one.
    assert len(decoded) <= 6


def test_a_killed_run_takes_all_vectors_again_and_is_not_resumed_by_embedding(
    dual, model, photos, tmp_path, monkeypatch
):
    own = build(dual, photos, tmp_path / "own", FLAT)
    path = write(tmp_path / "v.parquet", NAMES, outputs(model, photos))
    out = tmp_path / "index"

    def work():
        return build(dual, photos, out, FLAT, given=path)

    write(path, NAMES, [-row for row in outputs(model, photos)])
    written = part_files.write_part

    def write_two(path, *arguments):
        if path.name.startswith("part-00002"):
            raise Killed
        written(path, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(vector_files, "LEAST_COSINE", -2)
        patch.setattr(part_files, "write_part", write_two)
        with pytest.raises(Killed):
            work()
    assert len(list(out.glob("vectors/part-*.parquet"))) == 2
    with pytest.raises(StaleError, match="vectors"):
        build(dual, photos, out, FLAT)
    write(path, NAMES, outputs(model, photos))
    assert comparable(work().folder) == comparable(own.folder)


def test_the_rows_of_tasks_go_to_another_program_and_its_vectors_come_back(dual, model, photos, tmp_path):
    with pytest.raises(TasksWrittenError):
        build(dual, photos, tmp_path / "index", FLAT, compute=Compute(engine=engine(tmp_path / "tasks")))
    table = pa.concat_tables(pq.read_table(path) for path in sorted((tmp_path / "tasks").glob("*.parquet")))
    assert set(table["model_digest"].to_pylist()) == {model.digest}
    vectors = dict(zip(NAMES, outputs(model, photos), strict=True))
    # A program that keeps the columns of a row, and gives null for a file that it cannot read.
    table = table.append_column(
        "vector", pa.array([vectors.get(name) for name in table.column("image_id").to_pylist()])
    )
    (tmp_path / "vectors").mkdir()
    pq.write_table(table, tmp_path / "vectors" / "0.parquet")
    words = ("--images", photos, "--out", tmp_path / "index", "--vectors", tmp_path / "vectors")
    made = document_of("index", dual, *words)
    assert (made["images"], made["left_out"]) == (7, 1)
