"""A table of PostgreSQL with pgvector: one row per image, its vector as halfvec, and the facts as the comment of the
table.

The comment follows the table when it is renamed, so a table and its facts are never of two uploads. A table of up to
`EXACT_UP_TO` images, or of a filter with so few matches, is searched exactly; a larger one by an HNSW graph.
"""

from __future__ import annotations

import re
import struct
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import numpy as np
import psycopg
import pyarrow as pa
from psycopg import errors, sql
from psycopg.adapt import Dumper
from psycopg.pq import Format
from psycopg.types import TypeInfo

from dcdctl.core.errors import DcdError, InputError
from dcdctl.core.search import Condition, Floats, Rows, Value
from dcdctl.core.stores.protocol import Store, StoreFacts, half_of
from dcdctl.core.stores.retry import UnavailableError
from dcdctl.core.stores.sql import condition_sql
from dcdctl.core.stores.url import StoreUrl

if TYPE_CHECKING:
    Connection = psycopg.Connection[tuple[Any, ...]]

EXACT_UP_TO = 20_000
"""Vectors that are compared one by one: this takes some milliseconds and finds all. pgvector's graph would visit as
many under a filter."""
MAX_SEARCH_WIDTH = 1000
"""Of pgvector's hnsw.ef_search."""
MAX_INDEXED_DIMS = 4000
"""Of an index of pgvector on halfvec."""
MAX_NAME_BYTES = 63
"""PostgreSQL cuts longer names off without an error."""
LEAST_VERSION = (0, 8)
"""Of pgvector: the first that searches on under a filter until it has enough answers."""
# libpq would wait without end for a server that does not answer.
_SETTINGS: dict[str, Any] = {"connect_timeout": 10, "application_name": "dcdctl"}
TYPES = {
    pa.int64(): "int8",
    pa.int32(): "int4",
    pa.string(): "text",
    pa.bool_(): "bool",
    pa.float64(): "float8",
    pa.date32(): "date",
    pa.timestamp("us"): "timestamp",
}
_DRAFT = "__draft"
_PASSING = ("08", "40001", "40P01", "53", "55P03", "57P", "57014")
"""The beginnings of the SQLSTATEs of errors that may pass: lost connections, deadlocks, too many clients, restarts,
timeouts."""
_PLACES = ("host", "port", "table")
"""The parameters of a URL that are shown: they say where, and are no secrets."""
_REFUSED = re.compile(
    r"FATAL:\s+(?!the database system|sorry, too many|remaining connection|terminating)|no password supplied|invalid"
)
"""What libpq says of a server that was reached and refuses."""


@dataclass(frozen=True)
class _Version:
    """A table as an upload made it; an upload with --replace makes another of the same name."""

    oid: int
    facts: StoreFacts
    """The model and the columns never change; the counts are those of the day when this process first saw the table."""
    is_small: bool


class _HalfBytes(bytes):
    """A vector as pgvector sends it."""


class _HalfDumper(Dumper):
    format = Format.BINARY

    def dump(self, obj: Any) -> bytes:
        return bytes(obj)


def _register_half(connection: Connection) -> int:
    """The id of pgvector's halfvec in this database, whose values can be sent from now on."""
    half = TypeInfo.fetch(connection, "halfvec")
    if half is None:
        hint = "add the schema of pgvector to the search_path of the user"
        raise InputError("the type halfvec of pgvector is not found in the database", hint=hint)
    connection.adapters.register_dumper(_HalfBytes, type("HalfDumper", (_HalfDumper,), {"oid": half.oid}))
    return half.oid


def open_url(url: StoreUrl) -> PostgresStore:
    """The store at postgresql://USER@HOST:PORT/DATABASE?table=NAME, with other parameters for libpq."""
    parts = url.parts
    table = url.table(is_complete=bool(parts.path.strip("/")))
    others = urlencode([(key, value) for key, value in url.parameters if key != "table"])
    # postgresql:///database, whose server is found by libpq, loses its slashes in urlunsplit.
    conninfo = f"postgresql://{parts.netloc}{parts.path}" + (f"?{others}" if others else "")
    place = urlencode([(key, value) for key, value in url.parameters if key in _PLACES], safe="/")
    return PostgresStore(conninfo, table, f"{url.shown}?{place}")


class PostgresStore(Store):
    """The images of one table. Each thread has a connection of its own."""

    kind = "postgresql"
    batch_rows = 1000

    def __init__(self, conninfo: str, table: str, location: str) -> None:
        schema, _, name = table.rpartition(".")
        # The draft has the longest name.
        for part in (f"{name.removesuffix(_DRAFT)}{_DRAFT}", schema):
            if len(part.encode()) > MAX_NAME_BYTES:
                raise InputError(f"the name {part!r} is too long for PostgreSQL", hint="choose one of at most 56 bytes")
        self.location, self.table = location, table
        self._quoted = sql.Identifier(schema, name) if schema else sql.Identifier(name)
        self._in_query = _in_query(self._quoted)
        self._regclass = self._quoted.as_string(None)
        self._name = f"the table {name} of {location}"
        self._conninfo = conninfo
        self._local = threading.local()
        # Those of all threads, which `close` cannot reach through their locals.
        self._opened: list[Connection] = []
        self._latest: _Version | None = None
        # Not __del__: a connection warns if it is collected before it is closed.
        self._closing = weakref.finalize(self, _close_all, self._opened)

    def close(self) -> None:
        _close_all(self._opened)

    def draft(self) -> PostgresStore:
        return PostgresStore(self._conninfo, f"{self.table}{_DRAFT}", self.location)

    def facts(self) -> StoreFacts | None:
        with self._connection() as connection:
            found = connection.execute(
                "SELECT obj_description(oid, 'pg_class') FROM pg_class WHERE oid = to_regclass(%s)", [self._regclass]
            ).fetchone()
        return None if found is None else StoreFacts.of_json(found[0], self._name)

    def create(self, facts: StoreFacts) -> None:
        for name in facts.columns:
            if len(name.encode()) > MAX_NAME_BYTES:
                raise InputError(
                    f"the column {name!r} has a longer name than PostgreSQL takes", hint="rename it to at most 63 bytes"
                )
        with self._connection() as connection, connection.transaction():
            _install(connection)
            connection.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(self._quoted))
            columns = [_definition(column, facts.dims) for column in facts.image_schema]
            connection.execute(sql.SQL("CREATE TABLE {} ({})").format(self._quoted, sql.SQL(", ").join(columns)))
            # In this transaction too: a thread has one connection.
            self.describe(facts)

    def describe(self, facts: StoreFacts) -> None:
        # A utility command takes no parameters.
        comment = sql.SQL("COMMENT ON TABLE {} IS {}").format(self._quoted, sql.Literal(facts.to_json()))
        with self._connection() as connection:
            connection.execute(comment)

    def upsert(self, images: pa.Table) -> None:
        columns = [_values(images.column(name)) for name in images.column_names]
        names = sql.SQL(", ").join(map(sql.Identifier, images.column_names))
        with self._connection() as connection, connection.transaction():
            half = _register_half(connection)
            # COPY cannot replace rows.
            self._delete(connection, images.column("row").to_pylist())
            copy_in = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT BINARY)").format(self._quoted, names)
            with connection.cursor() as cursor, cursor.copy(copy_in) as copy:
                copy.set_types([TYPES.get(field.type, half) for field in images.schema])
                for values in zip(*columns, strict=True):
                    copy.write_row(values)

    def delete(self, rows: Rows) -> None:
        with self._connection() as connection:
            self._delete(connection, rows.tolist())

    def _delete(self, connection: Connection, rows: list[int]) -> None:
        connection.execute(sql.SQL('DELETE FROM {} WHERE "row" = ANY(%s)').format(self._in_query), [rows])

    def rows_in(self, span: range) -> Rows:
        query = sql.SQL('SELECT "row" FROM {} WHERE "row" >= %s AND "row" < %s ORDER BY "row"').format(self._in_query)
        with self._connection() as connection:
            return np.array([row for (row,) in connection.execute(query, [span.start, span.stop])], dtype=np.int64)

    def count(self, where: Condition | None = None) -> int:
        with self._connection() as connection:
            return self._count(connection, *self._where(where))

    def _count(
        self, connection: Connection, test: sql.Composable, parameters: Sequence[Value], up_to: int | None = None
    ) -> int:
        limit = sql.SQL("" if up_to is None else f"LIMIT {up_to}")
        query = sql.SQL("SELECT count(*) FROM (SELECT 1 FROM {}{} {}) AS found").format(self._in_query, test, limit)
        found = connection.execute(query, parameters).fetchone()
        assert found is not None
        return int(found[0])

    def fetch(self, rows: Rows) -> pa.Table:
        facts = self._described()
        query = sql.SQL('SELECT {} FROM {} WHERE "row" = ANY(%s) ORDER BY "row"').format(_names(facts), self._in_query)
        with self._connection() as connection, connection.cursor(binary=True) as cursor:
            return _table(cursor.execute(query, [rows.tolist()]).fetchall(), facts)

    def search(self, queries_QD: Floats, count: int, where: Condition | None = None) -> tuple[list[pa.Table], str]:
        test, parameters = self._where(where)
        with self._connection() as connection, connection.transaction():
            version = self._version(connection)
            is_exact = version.is_small or (
                where is not None and self._count(connection, test, parameters, EXACT_UP_TO + 1) <= EXACT_UP_TO
            )
            images = []
            for query_D in queries_QD:
                numbers = f"[{','.join(map(repr, query_D.astype(np.float16).tolist()))}]"
                images.append(self._nearest(connection, version, (test, [*parameters, numbers]), count, is_exact))
        return images, version.facts.model

    def _nearest(
        self,
        connection: Connection,
        version: _Version,
        where: tuple[sql.Composable, Sequence[Value]],
        count: int,
        is_exact: bool,
    ) -> pa.Table:
        """The nearest rows of a query, which is the last of the parameters."""
        distance = sql.SQL("vector <=> %s::halfvec")
        # The planner has no index for a sum, so it compares all vectors.
        order = sql.SQL('({}) + 0, "row"').format(distance) if is_exact else distance
        query = sql.SQL("SELECT tableoid::int8, {} FROM {}{} ORDER BY {} LIMIT {}").format(
            _names(version.facts), self._in_query, where[0], order, sql.Literal(count)
        )
        # One round trip for the settings and the query.
        with connection.pipeline():
            # relaxed_order, because the candidates are scored and ordered again.
            settings = (
                "SELECT set_config('hnsw.ef_search', %s, true), set_config('hnsw.iterative_scan', "
                "'relaxed_order', true)"
            )
            connection.execute(settings, [str(min(max(count, 1), MAX_SEARCH_WIDTH))])
            cursor = connection.cursor(binary=True).execute(query, where[1])
        rows = cursor.fetchall()
        if any(oid != version.oid for oid, *_ in rows):
            raise UnavailableError(f"{self._name} was replaced during a search")
        if not is_exact and len(rows) < count:
            # The graph gives up after a number of steps (hnsw.max_scan_tuples), and does not find what nothing points
            # to.
            return self._nearest(connection, version, where, count, is_exact=True)
        return _table([row[1:] for row in rows], version.facts)

    def finish(self) -> None:
        with self._connection() as connection:
            # Counts the rows, for `_version` and for the planner of PostgreSQL.
            connection.execute(sql.SQL("ANALYZE {}").format(self._quoted))
            is_small = self._count(connection, sql.SQL(""), (), EXACT_UP_TO + 1) <= EXACT_UP_TO
            self._latest = None
            if is_small or self._version(connection).facts.dims > MAX_INDEXED_DIMS:
                return
            query = """SELECT 1 FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid JOIN pg_am ON pg_am.oid = relam
                       WHERE indrelid = to_regclass(%s) AND amname = 'hnsw' AND indisvalid"""
            if connection.execute(query, [self._regclass]).fetchone() is None:
                # PostgreSQL chooses a name that is free.
                create = sql.SQL("CREATE INDEX ON {} USING hnsw (vector halfvec_cosine_ops)").format(self._quoted)
                connection.execute(create)

    def num_bytes(self) -> int | None:
        with self._connection() as connection:
            found = connection.execute("SELECT pg_total_relation_size(to_regclass(%s))", [self._regclass]).fetchone()
            return None if found is None else found[0]

    def publish(self) -> None:
        schema, _, name = self.table.removesuffix(_DRAFT).rpartition(".")
        published = sql.Identifier(schema, name) if schema else sql.Identifier(name)
        with self._connection() as connection, connection.transaction():
            # One transaction: a search sees the old table or the new one. It waits for searches that run.
            connection.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(published))
            connection.execute(sql.SQL("ALTER TABLE {} RENAME TO {}").format(self._quoted, sql.Identifier(name)))

    def drop(self) -> None:
        with self._connection() as connection:
            connection.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(self._quoted))

    def _described(self) -> StoreFacts:
        with self._connection() as connection:
            return self._version(connection).facts

    def _version(self, connection: Connection) -> _Version:
        """The table that has the name now."""
        found = connection.execute("SELECT to_regclass(%s)::oid::int8", [self._regclass]).fetchone()
        if found is None or found[0] is None:
            raise self.not_there(self._name)
        if self._latest is None or self._latest.oid != found[0]:
            query = "SELECT obj_description(oid, 'pg_class'), reltuples FROM pg_class WHERE oid = %s"
            described = connection.execute(query, found).fetchone()
            if described is None:
                raise UnavailableError(f"{self._name} was replaced during a search")
            facts = StoreFacts.of_json(described[0], self._name)
            self._latest = _Version(found[0], facts, is_small=described[1] <= EXACT_UP_TO)
        return self._latest

    def _where(self, condition: Condition | None) -> tuple[sql.Composable, list[Value]]:
        """A condition as a WHERE clause, and its parameters."""
        parameters: list[Value] = []
        if condition is None:
            return sql.SQL(""), parameters

        def parameter(value: Value, type_: pa.DataType) -> str:
            if isinstance(value, str) and "\0" in value:
                raise InputError("a text of a condition has the character NUL, which PostgreSQL does not keep")
            parameters.append(value)
            return f"%s::{TYPES[type_]}"

        def column(name: str) -> str:
            return _in_query(sql.Identifier(name)).as_string(None)

        columns = self._described().image_schema
        # Under "C" only the letters of ASCII have another case.
        text = condition_sql(condition, columns, column, parameter, collation=' COLLATE "und-x-icu"')
        return sql.SQL(" WHERE " + text), parameters

    @contextmanager
    def _connection(self) -> Iterator[Connection]:
        """The connection of this thread, opened again if it was lost; errors of PostgreSQL become ours."""
        try:
            connection: Connection | None = getattr(self._local, "connection", None)
            if connection is None or connection.closed:
                # Without prepared statements, which poolers such as pgbouncer mix up.
                connection = psycopg.connect(self._conninfo, autocommit=True, prepare_threshold=None, **_SETTINGS)
                self._opened.append(connection)
                self._local.connection = connection
            yield connection
        except psycopg.Error as error:
            raise self._as_ours(error) from error

    def _as_ours(self, error: psycopg.Error) -> DcdError:
        state, text = error.sqlstate or "", " ".join(str(error).split())
        if isinstance(error, errors.UndefinedFile | errors.FeatureNotSupported) and "extension" in text:
            hint = "install it on the server: apt install postgresql-17-pgvector, or as its README says"
            return InputError(f"the server of {self.location} has no pgvector ({text})", hint=hint)
        if isinstance(error, errors.InsufficientPrivilege) and "extension" in text:
            hint = "an administrator of the database runs: CREATE EXTENSION vector"
            return InputError(f"this user may not install pgvector in {self.location} ({text})", hint=hint)
        is_lost = isinstance(error, psycopg.OperationalError) and not state
        if state.startswith(_PASSING) or (is_lost and not _REFUSED.search(str(error))):
            hint = "is the server running, and are host and port right?" if is_lost else "run the same command again"
            return UnavailableError(f"{self.location} does not answer: {text}", hint=hint)
        return InputError(
            f"{self.location} refuses: {text}",
            hint="check the URL, the password in PGPASSWORD or ~/.pgpass, and the rights",
        )


def _close_all(connections: list[Connection]) -> None:
    while connections:
        connections.pop().close()


def _install(connection: Connection) -> None:
    """Make the types of pgvector known in the database; InputError if it has an old version of them."""
    connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
    found = connection.execute("SELECT extversion FROM pg_extension WHERE extname = 'vector'").fetchone()
    version = "" if found is None else str(found[0])
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < LEAST_VERSION:
        hint = "an administrator of the database runs: ALTER EXTENSION vector UPDATE"
        raise InputError(f"the database has pgvector {version}, and 0.8 is needed", hint=hint)


def _definition(column: pa.Field, dims: int) -> sql.Composable:
    """A column of the table."""
    if column.name == "vector":
        return sql.SQL("vector halfvec({}) NOT NULL").format(sql.Literal(dims))
    # In bytes, as everywhere in dcdctl: the order of letters depends on the language of the database otherwise.
    collation = ' COLLATE "C"' if column.type == pa.string() else ""
    ending = " PRIMARY KEY" if column.name == "row" else "" if column.nullable else " NOT NULL"
    return sql.SQL("{} " + TYPES[column.type] + collation + ending).format(sql.Identifier(column.name))


def _names(facts: StoreFacts) -> sql.Composable:
    return sql.SQL(", ").join(_in_query(sql.Identifier(name)) for name in facts.image_schema.names)


def _in_query(name: sql.Identifier) -> sql.SQL:
    """A name in a statement with parameters, where psycopg reads % as the sign of one."""
    return sql.SQL(name.as_string(None).replace("%", "%%"))


def _values(column: pa.ChunkedArray) -> Sequence[Any]:
    """The values of a column, as psycopg sends them."""
    if not pa.types.is_fixed_size_list(column.type):
        values: list[Any] = column.to_pylist()
        if column.type == pa.string() and (
            bad := next((value for value in values if value is not None and "\0" in value), None)
        ):
            raise InputError(
                f"the text {bad!r} has the character NUL, which PostgreSQL does not keep", hint="change the column"
            )
        return values
    vectors_RD = half_of(column)
    # pgvector's binary form: the number of dims, two unused bytes, and the numbers, the highest byte first.
    header = struct.pack(">HH", vectors_RD.shape[1], 0)
    return [_HalfBytes(header + vector_D.tobytes()) for vector_D in vectors_RD.astype(">f2")]


def _table(rows: list[tuple[Any, ...]], facts: StoreFacts) -> pa.Table:
    """Rows as a table of `StoreFacts.image_schema`."""
    schema = facts.image_schema
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(schema)
    arrays = []
    for column, values in zip(schema, columns, strict=True):
        if column.name == "vector":
            # After the number of dims and two unused bytes.
            vectors = np.frombuffer(b"".join(value[4:] for value in values), dtype=">f2").astype(np.float16)
            arrays.append(pa.FixedSizeListArray.from_arrays(pa.array(vectors), type=column.type))
        else:
            arrays.append(pa.array(values, column.type))
    return pa.Table.from_arrays(arrays, schema=schema)
