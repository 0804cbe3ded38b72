"""An open index: search, names and image files, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from made_index import exact, unit_vectors, write_index

from dcdctl.core.errors import MissingError
from dcdctl.core.search import FolderIndex, StoredVectors, part_files, readers
from dcdctl.core.search import index as search_index
from dcdctl.core.search.exact import token_type

VECTORS = unit_vectors(60)
PARTS = [VECTORS[:17], VECTORS[17:18], VECTORS[18:]]
QUERIES = unit_vectors(9, seed=1).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three parts with row groups of five."""
    folder = tmp_path_factory.mktemp("index")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(part_files, "ROWS_PER_GROUP", 5)
        write_index(folder, PARTS)
    return folder


@pytest.fixture(autouse=True)
def _small_groups(monkeypatch):
    monkeypatch.setattr(part_files, "ROWS_PER_GROUP", 5)


@pytest.mark.parametrize("k", [1, 10, 70])
def test_the_nearest_are_those_of_a_full_sort(folder, k, monkeypatch):
    monkeypatch.setattr(search_index, "QUERY_BLOCK", 4)
    index = FolderIndex.open(folder)
    scores_QK, rows_QK = index.nearest(QUERIES, k)
    assert rows_QK.shape == scores_QK.shape == (9, k)
    for query, rows in zip(QUERIES, rows_QK.tolist(), strict=True):
        assert [row for row in rows if row >= 0] == exact(VECTORS, query, k)


def test_vectors_beyond_the_memory_limit_are_searched_too(folder, monkeypatch):
    _, whole_rows_QK = FolderIndex.open(folder).nearest(QUERIES, 5)
    monkeypatch.setattr(readers, "FLOAT_BYTES", 0)
    index = FolderIndex.open(folder)
    np.testing.assert_array_equal(index.nearest(QUERIES, 5)[1], whole_rows_QK)


def test_every_row_has_its_name_and_is_found_by_it(folder):
    index = FolderIndex.open(folder)
    assert [index.name(row) for row in range(60)] == [f"{row}.png" for row in range(60)]
    np.testing.assert_array_equal(index.stored(np.array([59, 0, 17, 17])).data, VECTORS[[59, 0, 17, 17]])


@pytest.mark.parametrize("row", [-1, 60])
def test_rows_out_of_range_are_an_error(folder, row):
    with pytest.raises(IndexError, match=f"row {row} of 60"):
        FolderIndex.open(folder).stored(np.array([row]))
    with pytest.raises(MissingError, match=f"image {row}"):
        FolderIndex.open(folder).image_bytes(row)


def test_removed_rows_are_neither_found_nor_readable(tmp_path):
    (tmp_path / "pictures").mkdir()
    for row in range(60):
        (tmp_path / "pictures" / f"{row}.png").write_bytes(b"picture %d" % row)
    gone = [0, 16, 17, 40]
    index = write_index(tmp_path / "index", PARTS, removed=gone, images=tmp_path / "pictures")
    assert (index.num_images, index.num_rows) == (56, 60)
    for query in QUERIES:
        assert index.nearest(query[None], 56)[1][0].tolist() == exact(VECTORS, query, 56, gone)
        assert index.nearest(query[None], 57)[1][0, -1] == -1
    assert index.image_bytes(18) == b"picture 18"
    with pytest.raises(MissingError, match="image 17"):
        index.image_bytes(17)


def test_an_image_is_never_read_from_outside_its_folder(tmp_path):
    images = tmp_path / "pictures"
    images.mkdir()
    (tmp_path / "secret").write_bytes(b"secret")
    (images / "0.png").symlink_to(tmp_path / "secret")
    (images / "1.png").mkdir()
    (images / "3.png").write_bytes(b"here")
    (images / "4.png").symlink_to("3.png")
    (images / "17.png").write_bytes(b"removed")
    index = write_index(tmp_path / "index", PARTS, removed=[17], images=images)
    assert index.image_bytes(3) == index.image_bytes(4) == b"here"
    for row, why in ((0, "a link that leads out of the folder"), (1, "is a folder"), (2, "No such file")):
        with pytest.raises(MissingError, match=why):
            index.image_bytes(row)


def test_a_path_out_of_the_folder_is_refused_even_if_the_index_has_it(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "secret").write_bytes(b"secret")
    index = write_index(tmp_path / "index", PARTS, images=tmp_path / "pictures")
    part = tmp_path / "index/vectors/part-00001.parquet"
    for path in ("../secret", str(tmp_path / "secret")):
        part_files.write_part(part, [part_files.SourceImage(image_id="x", path=path)], StoredVectors(VECTORS[:1]))
        first, _, *others = index.parts
        parts = (first, part_files.describe_part(part, 0, token_type(16, "float16"))[0], *others)
        index = FolderIndex(tmp_path / "index", replace(index.document, parts=parts))
        with pytest.raises(MissingError, match="leads out of the folder"):
            index.image_bytes(17)


def test_queries_of_another_width_and_no_answers_are_wrong_calls_and_no_queries_are_allowed(folder):
    index = FolderIndex.open(folder)
    with pytest.raises(ValueError, match="Q x 16"):
        index.nearest(QUERIES[:, :4], 1)
    with pytest.raises(ValueError, match="at least 1"):
        index.nearest(QUERIES, 0)
    assert index.nearest(QUERIES[:0], 3)[1].shape == (0, 3)
