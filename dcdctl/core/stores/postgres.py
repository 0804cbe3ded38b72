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
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

import numpy as np
import psycopg
import pyarrow as pa
from psycopg import errors, sql

from dcdctl.core.errors import DcdError, InputError, StaleError
from dcdctl.core.search import Condition, Floats, Rows, StoredTokens, StoredVectors, Value
from dcdctl.core.stores.protocol import Store, StoreFacts
from dcdctl.core.stores.retry import IS_IT_RUNNING, UnavailableError
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
# libpq would wait without end for a server that does not answer. A parameter of the URL counts more.
_DEFAULTS = (("connect_timeout", "10"), ("application_name", "dcdctl"))
TYPES = {
    "int64": "int8",
    "int32": "int4",
    "string": "text",
    "bool": "bool",
    "double": "float8",
    "date32[day]": "date",
    "timestamp[us]": "timestamp",
}
"""Types of PostgreSQL, by the names of Arrow's."""
_DRAFT = "__draft"
_DISTANCE = "vector <=> %s::halfvec"
_DELETE = 'DELETE FROM {table} WHERE "row" = ANY(%s)'
_PASSING = ("08", "40001", "40P01", "53", "55P03", "57P", "57014")
"""The beginnings of the SQLSTATEs of errors that may pass: lost connections, deadlocks, too many clients, restarts,
timeouts."""
_PLACES = ("host", "port", "table")
"""The parameters of a URL that are shown: they say where, and are no secrets."""
_REFUSED = re.compile(
    r"FATAL:\s+(?!the database system|sorry, too many|remaining connection|terminating)|no password supplied|invalid"
)
"""What libpq says of a server that was reached and refuses."""


def open_url(url: StoreUrl) -> PostgresStore:
    """The store at postgresql://USER@HOST:PORT/DATABASE?table=NAME, with other parameters for libpq."""
    parts = url.parts
    table = url.table(is_complete=bool(parts.path.strip("/")))
    others = [(key, value) for key, value in url.parameters if key != "table"]
    # postgresql:///database, whose server is found by libpq, loses its slashes in urlunsplit.
    # `quote`, because libpq reads a plus sign as it is.
    conninfo = f"postgresql://{parts.netloc}{parts.path}?{urlencode([*_DEFAULTS, *others], quote_via=quote)}"
    place = urlencode([each for each in url.parameters if each[0] in _PLACES], safe="/", quote_via=quote)
    return PostgresStore(conninfo, table, f"{url.shown}?{place}")


class PostgresStore(Store):
    """The images of one table. Each thread has a connection of its own."""

    kind = "postgresql"
    # 1 MB of vectors of 512 numbers per transaction.
    batch_rows = 1000

    def __init__(self, conninfo: str, table: str, location: str) -> None:
        schema, _, name = table.rpartition(".")
        # The draft has the longest name.
        for part in (f"{name.removesuffix(_DRAFT)}{_DRAFT}", schema):
            if len(part.encode()) > MAX_NAME_BYTES:
                raise InputError(f"the name {part!r} is too long for PostgreSQL", hint="choose one of at most 56 bytes")
        self.location, self._qualified = location, table
        identifier = sql.Identifier(schema, name) if schema else sql.Identifier(name)
        self._regclass, self._table = identifier.as_string(None), _quoted(identifier)
        self._name = f"the table {name} of {location}"
        self._conninfo = conninfo
        self._local = threading.local()
        # Of all threads, because `close` cannot reach their locals.
        self._opened: list[Connection] = []
        self._latest: tuple[int, StoreFacts, bool] | None = None
        """What `_version` gave."""
        # Not __del__: a connection warns if it is collected before it is closed.
        self._closing = weakref.finalize(self, _close_all, self._opened)

    def close(self) -> None:
        _close_all(self._opened)

    @contextmanager
    def lock(self) -> Iterator[None]:
        schema, _, name = self._qualified.rpartition(".")
        # In a transaction of a connection of its own, which a pooler such as pgbouncer does not share, and which reads
        # no table. It ends with its process.
        holder = self.draft()
        try:
            holder._run("BEGIN")
            query = """SELECT pg_try_advisory_xact_lock(hashtextextended(
                           coalesce(nullif(%s::text, ''), current_schema()::text) || '.' || %s::text, 0)),
                       set_config('idle_in_transaction_session_timeout', '0', true)"""
            if not holder._run(query, [schema, name])[0][0]:
                raise StaleError(f"another upload writes to {self.location}", hint="upload again when it has ended")
            yield
        finally:
            # The server would notice a closed connection later than the next upload may ask.
            with suppress(DcdError):
                holder._run("ROLLBACK")
            holder.close()

    def draft(self) -> PostgresStore:
        return PostgresStore(self._conninfo, f"{self._qualified}{_DRAFT}", self.location)

    def facts(self) -> StoreFacts | None:
        query = "SELECT obj_description(oid, 'pg_class') FROM pg_class WHERE oid = to_regclass(%s)"
        row = self._run(query, [self._regclass])
        return StoreFacts.of_json(row[0][0], self._name) if row else None

    def create(self, facts: StoreFacts) -> None:
        if facts.stored_type is StoredTokens:
            raise InputError(
                f"{self._name} takes one vector per image, and the index has one for each token",
                hint="upload it to LanceDB, or search its folder",
            )
        # One transaction for all of it, because a thread has one connection.
        with self._connection() as connection, connection.transaction():
            self._run("CREATE EXTENSION IF NOT EXISTS vector")
            ((version,),) = self._run("SELECT extversion FROM pg_extension WHERE extname = 'vector'")
            if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < LEAST_VERSION:
                raise InputError(
                    f"the database has pgvector {version}, and 0.8 is needed",
                    hint="an administrator of the database runs: ALTER EXTENSION vector UPDATE",
                )
            self.drop()
            columns = sql.SQL(", ").join(_definition(column, facts.dims) for column in facts.image_schema)
            self._run("CREATE TABLE {table} ({columns})", columns=columns)
            self.describe(facts)

    def describe(self, facts: StoreFacts) -> None:
        # A utility command takes no parameters.
        self._run("COMMENT ON TABLE {table} IS {facts}", facts=sql.Literal(facts.to_json().replace("%", "%%")))

    def upsert(self, images: pa.Table) -> None:
        columns = [_values(images.column(name)) for name in images.column_names]
        with self._connection() as connection, connection.transaction(), connection.cursor() as cursor:
            # COPY cannot replace rows.
            self._run(_DELETE, [images.column("row").to_pylist()])
            names = sql.SQL(", ").join(map(sql.Identifier, images.column_names))
            copy_in = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT BINARY)").format(sql.SQL(self._regclass), names)
            with cursor.copy(copy_in) as copy:
                # COPY names no types: the bytes of a vector arrive as they are, and the column reads them.
                copy.set_types([TYPES.get(str(field.type), "bytea") for field in images.schema])
                for row in range(len(images)):
                    copy.write_row([values[row] for values in columns])

    def delete(self, rows: Rows) -> None:
        self._run(_DELETE, [rows.tolist()])

    def rows_in(self, span: range) -> Rows:
        query = 'SELECT "row" FROM {table} WHERE "row" >= %s AND "row" < %s ORDER BY "row"'
        return np.array([row for (row,) in self._run(query, [span.start, span.stop])], dtype=np.int64)

    def count(self, where: Condition | None = None) -> int:
        return self._count(*self._where(where))

    def _count(self, where: sql.SQL, parameters: Sequence[Value], limit: str = "") -> int:
        query = f"SELECT count(*) FROM (SELECT 1 FROM {{table}}{{where}} {limit}) AS found"
        ((count,),) = self._run(query, parameters, where=where)
        return int(count)

    def fetch(self, rows: Rows) -> pa.Table:
        _, facts, _ = self._version()
        query = 'SELECT {names} FROM {table} WHERE "row" = ANY(%s) ORDER BY "row"'
        return _table(self._run(query, [rows.tolist()], names=_names(facts)), facts)

    def search(self, queries_QD: Floats, count: int, where: Condition | None = None) -> tuple[list[pa.Table], str]:
        test, parameters = self._where(where)
        with self._connection() as connection, connection.transaction():
            oid, facts, is_exact = self._version()
            if where is not None and not is_exact:
                is_exact = self._count(test, parameters, f"LIMIT {EXACT_UP_TO + 1}") <= EXACT_UP_TO
            if not is_exact:
                # relaxed_order, because the candidates are scored and ordered again.
                settings = """SELECT set_config('hnsw.ef_search', %s, true),
                              set_config('hnsw.iterative_scan', 'relaxed_order', true)"""
                self._run(settings, [str(min(max(count, 1), MAX_SEARCH_WIDTH))])
            images = []
            for query_D in queries_QD:
                numbers = f"[{','.join(map(repr, query_D.astype(np.float16).tolist()))}]"
                query = [*parameters, numbers]
                rows = [] if is_exact else self._nearest(facts, test, query, order=_DISTANCE, count=count)
                # The graph gives up after a number of steps (hnsw.max_scan_tuples), and does not find what nothing
                # points to. The planner has no index for a sum, so it compares all vectors.
                if len(rows) < count:
                    rows = self._nearest(facts, test, query, order=f'({_DISTANCE}) + 0, "row"', count=count)
                if any(current != oid for current, *_ in rows):
                    raise UnavailableError(f"{self._name} was replaced during a search")
                images.append(_table([row[1:] for row in rows], facts))
        return images, facts.model

    def _nearest(
        self, facts: StoreFacts, where: sql.SQL, parameters: Sequence[Value], *, order: str, count: int
    ) -> list[tuple[Any, ...]]:
        """The first rows in an order by the distance from the last of the parameters, each after the id of its
        table."""
        query = f"SELECT tableoid::int8, {{names}} FROM {{table}}{{where}} ORDER BY {order} LIMIT {count}"
        return self._run(query, parameters, names=_names(facts), where=where)

    def finish(self) -> None:
        # Counts the rows, for `_version` and for the planner of PostgreSQL.
        self._run("ANALYZE {table}")
        self._latest = None
        _, facts, is_small = self._version()
        if is_small or facts.dims > MAX_INDEXED_DIMS:
            return
        query = """SELECT 1 FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid JOIN pg_am ON pg_am.oid = relam
                   WHERE indrelid = to_regclass(%s) AND amname = 'hnsw' AND indisvalid"""
        if not self._run(query, [self._regclass]):
            # PostgreSQL chooses a name that is free.
            self._run("CREATE INDEX ON {table} USING hnsw (vector halfvec_cosine_ops)")

    def publish(self) -> None:
        published = PostgresStore(self._conninfo, self._qualified.removesuffix(_DRAFT), self.location)
        name = sql.Identifier(published._qualified.rpartition(".")[2])
        with self._connection() as connection, connection.transaction():
            # One transaction: a search sees the old table or the new one. It waits for searches that run.
            self._run("DROP TABLE IF EXISTS {published}", published=published._table)
            self._run("ALTER TABLE {table} RENAME TO {name}", name=_quoted(name))

    def drop(self) -> None:
        self._run("DROP TABLE IF EXISTS {table}")

    def _version(self) -> tuple[int, StoreFacts, bool]:
        """The table that has the name now: its id, its facts, and whether it is small. An upload with --replace makes
        another table of the same name. The model and the columns of a table never change; the counts are those of the
        day when this process first saw it."""
        ((oid,),) = self._run("SELECT to_regclass(%s)::oid::int8", [self._regclass])
        if oid is None:
            raise self.not_there()
        if self._latest is None or self._latest[0] != oid:
            query = "SELECT obj_description(oid, 'pg_class'), reltuples FROM pg_class WHERE oid = %s"
            described = self._run(query, [oid])
            if not described:
                raise UnavailableError(f"{self._name} was replaced during a search")
            text, num_rows = described[0]
            self._latest = oid, StoreFacts.of_json(text, self._name), num_rows <= EXACT_UP_TO
        return self._latest

    def _where(self, condition: Condition | None) -> tuple[sql.SQL, list[Value]]:
        """A condition as a WHERE clause, and its parameters."""
        parameters: list[Value] = []
        if condition is None:
            return sql.SQL(""), parameters

        def parameter(value: Value, type_: pa.DataType) -> str:
            parameters.append(value)
            return f"%s::{TYPES[str(type_)]}"

        def column(name: str) -> str:
            return _quoted(sql.Identifier(name)).as_string(None)

        _, facts, _ = self._version()
        text = condition_sql(condition, facts.image_schema, column, parameter)
        return sql.SQL(f" WHERE {text}"), parameters

    def _run(self, statement: str, parameters: Sequence[Any] = (), **named: sql.Composable) -> list[tuple[Any, ...]]:
        """The rows of a statement, in which {table} stands for the table, and other names for `named`."""
        query = sql.SQL(statement).format(table=self._table, **named)
        with self._connection() as connection:
            # In binary form, in which vectors come as float16.
            cursor = connection.execute(query, parameters, binary=True)
            return cursor.fetchall() if cursor.description else []

    @contextmanager
    def _connection(self) -> Iterator[Connection]:
        """The connection of this thread, opened again if it was lost; errors of PostgreSQL become ours."""
        try:
            connection: Connection | None = getattr(self._local, "connection", None)
            if connection is None or connection.closed:
                # Without prepared statements, which poolers such as pgbouncer mix up.
                # In autocommit: a transaction that stays open after a read keeps uploads from replacing the table.
                connection = psycopg.connect(self._conninfo, autocommit=True, prepare_threshold=None)
                self._opened.append(connection)
                self._local.connection = connection
            yield connection
        except psycopg.Error as error:
            state, text = error.sqlstate or "", " ".join(str(error).split())
            no_extension = errors.UndefinedFile | errors.FeatureNotSupported | errors.InsufficientPrivilege
            if isinstance(error, no_extension) and "extension" in text:
                raise InputError(
                    f"{self.location} has no pgvector ({text})",
                    hint="install postgresql-17-pgvector on the server; an administrator runs: CREATE EXTENSION vector",
                ) from error
            is_lost = isinstance(error, psycopg.OperationalError) and not state
            if state.startswith(_PASSING) or (is_lost and not _REFUSED.search(str(error))):
                raise UnavailableError(f"{self.location} does not answer: {text}", hint=IS_IT_RUNNING) from error
            raise InputError(
                f"{self.location} refuses: {text}",
                hint="check the URL, the password in PGPASSWORD or ~/.pgpass, and the rights",
            ) from error


def _close_all(connections: list[Connection]) -> None:
    while connections:
        connections.pop().close()


def _definition(column: pa.Field, dims: int) -> sql.Composable:
    """A column of the table."""
    if column.name == "vector":
        return sql.SQL("vector halfvec({}) NOT NULL").format(sql.Literal(dims))
    # In bytes, as everywhere in dcdctl: the order of letters depends on the language of the database otherwise.
    collation = ' COLLATE "C"' if column.type == "string" else ""
    ending = "" if column.nullable else " NOT NULL"
    if column.name == "row":
        ending = " PRIMARY KEY"
    return sql.SQL("{} " + TYPES[str(column.type)] + collation + ending).format(_quoted(sql.Identifier(column.name)))


def _names(facts: StoreFacts) -> sql.Composable:
    return sql.SQL(", ").join(_quoted(sql.Identifier(name)) for name in facts.image_schema.names)


def _quoted(name: sql.Identifier) -> sql.SQL:
    """A name in a statement with parameters, where psycopg reads % as the sign of one."""
    return sql.SQL(name.as_string(None).replace("%", "%%"))


def _values(column: pa.ChunkedArray) -> Sequence[Any]:
    """The values of a column, as psycopg sends them."""
    if not pa.types.is_fixed_size_list(column.type):
        return column.to_pylist()
    # pgvector's binary form: the number of dims, two unused bytes, and the numbers, the highest byte first.
    header = struct.pack(">HH", column.type.list_size, 0)
    return [header + vector_D.tobytes() for vector_D in StoredVectors.of_column(column).data.astype(">f2")]


def _table(rows: list[tuple[Any, ...]], facts: StoreFacts) -> pa.Table:
    """Rows as a table of `StoreFacts.image_schema`."""
    values: dict[str, list[Any]] = {}
    for place, name in enumerate(facts.image_schema.names):
        values[name] = [row[place] for row in rows]
    # After the number of dims and two unused bytes.
    numbers = np.frombuffer(b"".join(value[4:] for value in values["vector"]), dtype=">f2").astype(np.float16)
    return facts.table(values, StoredVectors(numbers.reshape(len(rows), facts.dims)))
