"""What is special to PostgreSQL: the graph of large tables, lost connections, rights, and names that must be quoted."""

from __future__ import annotations

import threading

import numpy as np
import psycopg
import pytest
from made_index import exact, unit_vectors, write_index
from made_store import COLUMNS, DIM, check_graph_search, made_facts, made_images, vectors_of

from dcdctl.core.errors import InputError, MissingError, StaleError
from dcdctl.core.search.columns.where import matches, parse_where
from dcdctl.core.stores import StoreIndex, open_index, open_store, upload_index
from dcdctl.core.stores import postgres as postgres_store
from dcdctl.core.stores.retry import UnavailableError

MANY = 600


@pytest.fixture
def make(postgres_url):
    """Opens a store of a table; all are closed in the end."""
    opened = []

    def open_table(table):
        opened.append(open_store(f"{postgres_url}&table={table}"))
        return opened[-1]

    yield open_table
    for store in opened:
        store.close()


def fill(store, count):
    store.create(made_facts(rows=count, images=count))
    store.upsert(made_images(count))
    store.finish()
    return store


@pytest.fixture
def sql(postgres_url):
    """A connection of another program."""
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        yield connection


def test_a_large_table_is_searched_by_its_graph_and_under_conditions_finds_as_many(make, sql, monkeypatch):
    monkeypatch.setattr(postgres_store, "EXACT_UP_TO", 50)
    store, images = fill(make("many"), MANY), made_images(MANY)
    (method,) = sql.execute(
        "SELECT amname FROM pg_am JOIN pg_class ON relam = pg_am.oid WHERE relname = 'many_vector_idx'"
    ).fetchone()
    assert method == "hnsw"
    check_graph_search(StoreIndex.open(store), images)


def test_a_graph_that_gives_up_is_followed_by_an_exact_search(make, sql, monkeypatch):
    monkeypatch.setattr(postgres_store, "EXACT_UP_TO", 20)
    store, images = fill(make("gives_up"), MANY), made_images(MANY)
    query = unit_vectors(1, DIM, seed=4)
    sql.execute("ALTER ROLE tester SET hnsw.max_scan_tuples = 1")
    try:
        condition = parse_where("owner = 'ann'", COLUMNS)
        held = matches(condition, images)
        assert held.sum() > 20
        (hits,) = StoreIndex.open(store).search(query, 25, condition)
    finally:
        sql.execute("ALTER ROLE tester RESET hnsw.max_scan_tuples")
    assert [hit.row for hit in hits] == exact(vectors_of(images), query[0], 25, removed=np.flatnonzero(~held).tolist())


def test_a_lost_connection_is_opened_again(make, sql, waits):
    store = fill(make("lost"), 20)
    index = StoreIndex.open(store)
    sql.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'dcdctl'")
    assert len(index.search(unit_vectors(1, DIM), 5)[0]) == 5
    assert len(waits) == 1
    assert 0.05 <= waits[0] <= 0.1


def test_threads_have_connections_of_their_own(make):
    index, queries = StoreIndex.open(fill(make("threads"), 200)), unit_vectors(6, DIM, seed=2)
    expected, found = index.search(queries, 5), {}
    threads = [
        threading.Thread(target=lambda name=name: found.update({name: index.search(queries, 5)})) for name in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == dict.fromkeys(range(4), expected)


def test_a_name_may_hold_any_characters(make, sql):
    store = make('Fotos "2020%25"; drop table x--é')
    fill(store, 20)
    assert StoreIndex.open(store).search(unit_vectors(1, DIM), 5)
    assert sql.execute(
        "SELECT count(*) FROM pg_class WHERE relname = 'Fotos \"2020%\"; drop table x--é'"
    ).fetchone() == (1,)
    sql.execute("CREATE SCHEMA archive")
    assert fill(make("archive.photos"), 20).count() == 20
    assert sql.execute("SELECT count(*) FROM archive.photos").fetchone() == (20,)


def test_a_parameter_of_libpq_may_hold_blanks_and_signs(make, sql, postgres_url):
    fill(make("blanks+signs"), 20)
    parameters = "&options=-c search_path=%22$user%22,public -c%20work_mem%3D7MB&application_name=a+b c"
    index = open_index(f"{postgres_url}&table=blanks%2Bsigns{parameters}")
    assert index.location.endswith("&table=blanks%2Bsigns")
    assert index.store._run("SHOW work_mem") == [("7MB",)]
    assert index.store._run("SHOW search_path") == [('"$user",public',)]
    assert index.store._run("SHOW application_name") == [("a+b c",)]
    index.store.close()


def test_a_column_may_have_any_name(make):
    columns = {'a "b" %s {} 日本': "string"}
    facts, store = made_facts(columns=columns), make("columns")
    images = (
        made_images(20)
        .slice(0, 5)
        .select(["row", "source", "image_id", "path", "corpus_row", "vector", "owner"])
        .rename_columns(facts.image_schema.names)
    )
    store.create(facts)
    store.upsert(images)
    condition = parse_where('"a ""b"" %s {} 日本" is not null', facts.schema)
    assert store.count(condition) == 5 - images.column(6).null_count < 5


def test_a_table_of_another_program_is_never_touched(make, sql):
    sql.execute("CREATE TABLE theirs (a int); COMMENT ON TABLE theirs IS '{\"a\": 1}'")
    with pytest.raises(
        StaleError, match=r"the table theirs of .* is there, and dcdctl did not make it; .*nothing was changed"
    ):
        make("theirs").facts()


def test_a_text_with_a_nul_is_refused_and_leaves_the_batch_out(make):
    store = fill(make("nul"), 20)
    images = made_images(20)
    bad = images.set_column(images.schema.get_field_index("owner"), "owner", [["a\0b"] * 20])
    with pytest.raises(InputError, match="refuses: "):
        store.upsert(bad)
    assert store.fetch(np.arange(20)).equals(images)


def test_a_batch_is_written_as_a_whole_or_not_at_all(make, sql):
    store = fill(make("whole"), 20)
    sql.execute('ALTER TABLE whole ADD CHECK ("row" <> 22)')
    with pytest.raises(InputError, match=r"refuses: .*whole_row_check"):
        store.upsert(made_images(30).slice(18, 12))
    assert store.fetch(np.arange(40)).equals(made_images(20))


def test_a_store_that_is_refused_or_not_there_is_told_without_the_password(postgres_url, waits):
    folder = postgres_url.partition("host=")[2]
    for url, error, message in (
        (f"postgresql://me:secret@/postgres?host={folder}&table=a", InputError, 'refuses: .*role "me" does not exist'),
        (
            f"postgresql://tester:secret@/nowhere?host={folder}&table=a",
            InputError,
            'refuses: .*database "nowhere" does not exist',
        ),
        (
            "postgresql://me:secret@127.0.0.1:1/photos?table=a&sslpassword=secret",
            UnavailableError,
            "does not answer: .*Connection refused",
        ),
        (
            f"{postgres_url}&table=nothing",
            MissingError,
            r"there are no images in .*`dcdctl upload INDEX 'postgresql://tester@/postgres\?host=.*&table=nothing'",
        ),
    ):
        waits.clear()
        with pytest.raises(error, match=message) as caught:
            open_index(url)
        assert "secret" not in str(caught.value)
        assert len(waits) == (3 if error is UnavailableError else 0)


def test_a_role_that_may_not_make_tables_is_refused(make, postgres_url, tmp_path):
    make("forbidden")._run("CREATE ROLE reader LOGIN")
    index = write_index(tmp_path / "index", [unit_vectors(3)])
    reader = open_store(f"{postgres_url}&table=forbidden".replace("tester@", "reader@"))
    with pytest.raises(InputError, match="refuses: permission denied for schema"):
        upload_index(index, reader)
    reader.close()
