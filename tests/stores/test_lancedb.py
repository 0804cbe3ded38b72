"""What is special to LanceDB: the index of large tables, versions of a table, and places.

Its import takes a second and more, so only the processes that run these tests import it.
"""

from __future__ import annotations

import pyarrow as pa
import pytest
from forks import LIBRARIES, run_forked
from made_index import ragged, write_late
from made_store import check_graph_search, made_facts, made_images, vectors_of

from dcdctl.core.errors import InputError, StaleError
from dcdctl.core.stores import StoreIndex, open_store, upload_index

MANY = 600


@pytest.fixture
def connection(tmp_path):
    """LanceDB itself, in the folder of the store."""
    import lancedb

    return lancedb.connect(tmp_path)


@pytest.fixture
def store(tmp_path):
    return open_store(f"lancedb:{tmp_path}?table=photos")


def test_a_large_table_is_searched_by_an_index_that_is_built_when_it_is_published(store, connection, monkeypatch):
    monkeypatch.setattr("dcdctl.core.stores.lancedb.EXACT_UP_TO", 300)
    images = made_images(MANY)
    draft = store.draft()
    draft.create(made_facts(rows=MANY, images=MANY))
    draft.upsert(images)
    draft.finish()
    draft.publish()
    table = connection.open_table("photos")
    assert {tuple(index.columns) for index in table.list_indices()} == {("row",), ("vector",)}
    check_graph_search(StoreIndex.open(store), images)


def test_a_table_keeps_the_bits_of_float16_and_is_one_that_other_programs_read(store, connection):
    images = made_images()
    store.create(made_facts())
    store.upsert(images)
    found = connection.open_table("photos").to_arrow().sort_by("row")
    assert found.column_names == images.column_names
    assert vectors_of(found).tobytes() == vectors_of(images).tobytes()


def test_a_table_of_another_program_is_never_touched(store, connection):
    connection.create_table("photos", [{"row": 1}])
    with pytest.raises(StaleError, match=r"is there, and dcdctl did not make it; .*nothing was changed"):
        store.facts()


def test_lancedb_itself_says_nothing(tmp_path):
    script = """
import sys
from made_store import made_facts
from dcdctl.core.stores import open_store
open_store(f"lancedb:{sys.argv[1]}?table=photos").create(made_facts())
"""
    assert run_forked(script, tmp_path, imported=LIBRARIES) == ("", "")


def test_names_that_lancedb_does_not_take_are_refused(store, tmp_path):
    with pytest.raises(InputError, match=r"the column 'a`b' has a backtick"):
        store.create(made_facts(columns={"a`b": "string"}))
    with pytest.raises(InputError, match=r"refuses: .*photos/2020"):
        open_store(f"lancedb:{tmp_path}?table=photos/2020").facts()


def test_a_place_is_shown_without_what_may_be_a_secret(tmp_path):
    assert open_store(f"lancedb:{tmp_path}?table=photos&key=secret").location == f"lancedb:{tmp_path}?table=photos"


def test_a_damaged_table_is_one_error(store, tmp_path):
    store.create(made_facts())
    store.upsert(made_images())
    for path in (tmp_path / "photos.lance" / "_versions").glob("*.manifest"):
        raw = bytearray(path.read_bytes())
        # The number of bytes of the message, whose place is near the end.
        place = int.from_bytes(raw[-16:-8], "little")
        raw[place : place + 4] = b"\xff\xff\xff\x3f"
        path.write_bytes(raw)
    again = open_store(f"lancedb:{tmp_path}?table=photos")
    with pytest.raises(InputError, match=r"photos is damaged: LanceDB cannot read it; restore it"):
        again.facts()


@pytest.mark.parametrize("bad", [[[float("nan")] * 6], [[0.0] * 6], []], ids=["NaN", "zero", "none"])
def test_images_that_lancedb_leaves_out_are_an_error(store, connection, tmp_path, bad):
    index, _ = write_late(tmp_path / "index", [2, 3, 1, 4])
    upload_index(index, store)
    query = ragged([3])[None]
    assert len(StoreIndex.open(store).search(query, 4)[0]) == 4
    rows = connection.open_table("photos").to_arrow()
    vectors = [bad if row == 2 else tokens for row, tokens in enumerate(rows["vector"].to_pylist())]
    place = rows.schema.get_field_index("vector")
    changed = rows.set_column(place, rows.schema.field(place), pa.array(vectors, rows.schema.field(place).type))
    connection.create_table("photos", changed, schema=rows.schema, mode="overwrite")
    with pytest.raises(StaleError, match="has images whose vectors are zero, NaN or infinite"):
        StoreIndex.open(store).search(query, 4)
