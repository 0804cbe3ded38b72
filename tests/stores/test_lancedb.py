"""What is special to LanceDB: the index of large tables, versions of a table, and places.

Its import takes a second and more, so only the processes that run these tests import it.
"""

from __future__ import annotations

import pytest
from made_store import check_graph_search, made_facts, made_images, vectors_of

from dcdctl.core.errors import InputError, StaleError
from dcdctl.core.stores import StoreIndex, open_store

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


def test_names_that_lancedb_does_not_take_are_refused(store, tmp_path):
    with pytest.raises(InputError, match=r"the column 'a`b' has a backtick"):
        store.create(made_facts(columns={"a`b": "string"}))
    with pytest.raises(InputError, match=r"refuses: .*photos/2020"):
        open_store(f"lancedb:{tmp_path}?table=photos/2020").facts()


def test_a_place_is_shown_without_what_may_be_a_secret(tmp_path):
    assert open_store(f"lancedb:{tmp_path}?table=photos&key=secret").location == f"lancedb:{tmp_path}?table=photos"
