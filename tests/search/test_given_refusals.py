"""What is refused of other programs: vectors that do not fit the images."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import refusals
import torch
from image_files import png, put
from made_index import build
from phone_library import encoded, exif_of, scene
from refusals import Refusal

from dcdctl.core import models
from dcdctl.core.errors import InputError, StaleError
from dcdctl.core.search import IndexConfig, read_image

pytestmark = pytest.mark.usefixtures("_duals_read_once")

FLAT = IndexConfig()
NAMES = ["0.png", "2.png", "sub/1.png", "sub/3.png"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    files = {name: png(number) for number, name in enumerate(NAMES)}
    return put(tmp_path_factory.mktemp("images") / "photos", {**files, "notes.txt": b"no image"})


@pytest.fixture(scope="module")
def rows(dual, photos):
    """The vectors that the model gives for the photos."""
    images = [read_image(photos / name) for name in NAMES]
    model = models.load_dual(dual)
    with torch.no_grad():
        return model.embed_images(model.preprocess.images(images)).numpy()


def of_vectors(change, **columns):
    """Take vectors, which `change` makes of the names and the rows of the model."""

    def do(dual, photos, rows, tmp_path):
        names, vectors = change(NAMES, rows)
        table = {"image_id": names, "vector": vectors if isinstance(vectors, pa.Array) else pa.array(list(vectors))}
        pq.write_table(pa.table({**table, **columns}), tmp_path / "v.parquet")
        build(dual, photos, tmp_path / "index", FLAT, given=tmp_path / "v.parquet")

    return do


def bad_numbers(names, rows):
    wrong = rows.copy()
    wrong[0, 2], wrong[1], wrong[2, 0] = np.nan, 0, np.inf
    return names, wrong


def without_names(dual, photos, rows, tmp_path):
    pq.write_table(pa.table({"name": NAMES, "vector": list(rows)}), tmp_path / "v.parquet")
    build(dual, photos, tmp_path / "index", FLAT, given=tmp_path / "v.parquet")


def damaged_vectors(dual, photos, tmp_path):
    (tmp_path / "v.parquet").write_bytes(b"PAR1 damaged")
    build(dual, photos, tmp_path / "index", FLAT, given=tmp_path / "v.parquet")


VECTORS = [
    (lambda names, rows: ([*names, "x"], [*rows, rows[0]]), r"1 rows of images that are not in .* \('x' in v\.parquet"),
    (lambda names, rows: ([*names, "0.png"], [*rows, rows[0]]), "1 rows of images that another row has too .*'0.png'"),
    (bad_numbers, r"3 vectors that are zero, NaN or infinite \('0\.png' in v\.parquet; '2\.png' in .*'sub/1\.png' in"),
    # A null number is no number; a null vector is none.
    (lambda names, rows: (names, pa.array([[None, *rows[0][1:]], *rows[1:]])), "1 vectors that are zero, NaN or inf"),
    (
        lambda names, rows: (names, pa.array([None, *rows[1:]])),
        r"2 of 5 files have no vector, and '0\.png' is an image",
    ),
    (lambda names, rows: (names[:3], rows[:3]), r"2 of 5 files have no vector, and 'sub/3\.png' is an image; give the"),
    (lambda names, rows: (names, rows[:, :-1]), "v.parquet have 7 numbers, and those of the model have 8;"),
    (lambda names, rows: (names[:2], pa.array([rows[0], rows[1][:-1]])), "have 7, 8 numbers"),
    (lambda names, rows: (names, pa.array([[1, 2]] * 4)), "vector of .* is list<.*int64>, lists of floating-point num"),
    (
        lambda names, rows: (names, [*rows[:3], -rows[3]]),
        "'sub/3.png' is not that of this model: the cosine is -1.0000",
    ),
]


def turned(orientation: int):
    """Take vectors of photos that an engine did not rotate upright."""

    def do(dual, tmp_path):
        data = {f"{n}.jpg": encoded(scene(n, (40, 30)), exif=exif_of(orientation=orientation)) for n in range(2)}
        photos, model = put(tmp_path / "photos", data), models.load_dual(dual)
        images = [scene(n, (40, 30)) for n in range(2)]
        with torch.no_grad():
            vectors = model.embed_images(model.preprocess.images(images)).numpy()
        pq.write_table(pa.table({"image_id": sorted(data), "vector": list(vectors)}), tmp_path / "v.parquet")
        build(dual, photos, tmp_path / "index", FLAT, given=tmp_path / "v.parquet")

    return do


ROWS = [
    *(
        Refusal(f"vectors {number}", of_vectors(change), InputError, says)
        for number, (change, says) in enumerate(VECTORS)
    ),
    Refusal(
        "a digest",
        of_vectors(lambda names, rows: (names, rows), model_digest=["f" * 64] * 4),
        StaleError,
        "are of the model f{8}, and this is the model .{8}",
    ),
    Refusal("no names", without_names, InputError, r"has no column image_id \(it has name, vector\)"),
    Refusal("no Parquet", damaged_vectors, InputError, r"v\.parquet cannot be read as vectors: "),
    *(
        Refusal(
            f"orientation {orientation}", turned(orientation), InputError, "as stored, not rotated .*exif_transpose"
        )
        for orientation in range(2, 9)
    ),
]


@pytest.mark.parametrize("refusal", ROWS, ids=lambda row: row.what)
def test_a_refusal_names_what_is_wrong_and_what_would_be_right(refusal, request):
    refusals.check(refusal, request)
