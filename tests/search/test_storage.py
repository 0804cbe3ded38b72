"""The files of an index: mapped vectors equal those of any Parquet reader."""

from __future__ import annotations

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest
from made_index import unit_vectors

from dcdctl.core.search import StoredVectors, name_of_index, part_files
from dcdctl.core.search.exact import token_type
from dcdctl.core.search.part_files import SkippedFile, SourceImage


def write(path, count, dim=5, skipped=()):
    vectors = unit_vectors(count, dim)
    path.parent.mkdir(parents=True, exist_ok=True)
    places = [
        SourceImage(image_id=f"a/{row}", path=None if row % 2 else f"ä\n{row}", corpus_row=row if row % 2 else None)
        for row in range(count)
    ]
    part_files.write_part(path, places, StoredVectors(vectors), skipped)
    return vectors, places


@pytest.mark.parametrize(("count", "dim"), [(1, 1), (5, 16), (1024, 3), (1025, 7), (2500, 512)])
def test_mapped_vectors_equal_those_of_parquet_readers(tmp_path, count, dim):
    path = tmp_path / "vectors" / "part-00000.parquet"
    vectors, places = write(path, count, dim)
    part, _ = part_files.describe_part(path, 3, token_type(dim, "float16"))
    mapped = part_files.mapped(tmp_path, part, token_type(dim, "float16"))
    np.testing.assert_array_equal(np.concatenate(mapped), vectors)
    table = pq.read_table(path)
    np.testing.assert_array_equal(np.stack(table.column("vector").to_numpy()), vectors)
    assert part_files.read_images(path) == places
    assert (part.rows, part.source, part.bytes) == (count, 3, path.stat().st_size)


def test_duckdb_reads_the_vectors(tmp_path):
    vectors, _ = write(tmp_path / "part.parquet", 3)
    found = duckdb.sql(f"select image_id, vector from '{tmp_path / 'part.parquet'}'").fetchall()
    assert [name for name, _ in found] == ["a/0", "a/1", "a/2"]
    np.testing.assert_array_equal(np.array([vector for _, vector in found], dtype=np.float16), vectors)


def test_a_part_lists_skipped_files_and_may_be_empty(tmp_path):
    lost = [SkippedFile(path="x.txt", reason="no picture")]
    write(tmp_path / "part.parquet", 0, skipped=lost)
    part, found = part_files.describe_part(tmp_path / "part.parquet", 0, token_type(5, "float16"))
    assert (part.rows, part.vectors_at, found) == (0, (), lost)


def test_a_page_calls_the_index_of_a_library_by_the_name_of_the_library(tmp_path):
    assert name_of_index(str(tmp_path / "holiday" / "index")) == "index"
    (tmp_path / "holiday").mkdir()
    (tmp_path / "holiday" / "library.json").write_text("{}")
    assert name_of_index(str(tmp_path / "holiday" / "index")) == "holiday"
