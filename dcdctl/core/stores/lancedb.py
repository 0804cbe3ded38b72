"""A table of LanceDB, in a folder or in object storage: one row per image, its vector as float16, the facts as metadata
of the column row.

Each change is one commit of the table, and a search reads one version of it, so a table and its facts are never of two
uploads.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

# Read when LanceDB is imported: it would warn of each new table. What goes wrong is an error of Python too.
os.environ.setdefault("LANCEDB_LOG", "error")
import lancedb
from lancedb.index import BTree, HnswSq

from dcdctl.core import files
from dcdctl.core.errors import InputError, StaleError
from dcdctl.core.search import Condition, Floats, Rows, StoredVectors, Value, quoted_value
from dcdctl.core.stores.protocol import Store, StoreFacts, batches_of
from dcdctl.core.stores.retry import UnavailableError
from dcdctl.core.stores.sql import condition_sql
from dcdctl.core.stores.url import StoreUrl

EXACT_UP_TO = 50_000
"""Vectors that are compared one by one; a larger table gets an index. The tokens of a late index always are."""
# Measured: recall 0.98 at 52,000 vectors of 512 numbers (docs/evidence/performance.md).
PROBES = 64
"""Partitions of the index that a query reads; LanceDB's 20 miss more."""
ROWS_PER_QUESTION = 10_000
"""Rows that a condition lists."""
FACTS = "dcdctl"
_DRAFT = "__draft"
_PASSING = re.compile(
    r"tim(?:ed|e) ?out|connection|connect error|dispatch failure|reset by peer|conflict|try again|too many "
    r"requests|\b(?:429|50[0234])\b",
    re.I,
)
"""What LanceDB and the clients of object storage say of errors that may pass: its errors have no numbers."""


def open_url(url: StoreUrl) -> LanceStore:
    """The store at lancedb:FOLDER?table=NAME, or lancedb+PROTOCOL://PLACE?table=NAME."""
    protocol, place = url.parts.scheme.partition("+")[2], f"{url.parts.netloc}{url.parts.path}"
    table = url.table(is_complete=bool(url.parts.netloc if protocol else url.parts.path))
    uri = f"{protocol}://{place}" if protocol else place
    return LanceStore(uri, table, f"{url.shown}?table={table}")


class LanceStore(Store):
    """The images of one table."""

    kind = "lancedb"
    batch_rows = 8192  # each batch is a commit with files of its own

    def __init__(self, uri: str, table: str, location: str) -> None:
        self.location = location
        self._uri, self._table = uri, table
        with self._errors():
            self._database = lancedb.connect(uri)

    @contextmanager
    def lock(self) -> Iterator[None]:
        # Object storage has no locks.
        with super().lock() if "://" in self._uri else files.lock(Path(self._uri, f"{self._table}.lance")):
            yield

    def draft(self) -> LanceStore:
        return LanceStore(self._uri, f"{self._table}{_DRAFT}", self.location)

    def facts(self) -> StoreFacts | None:
        table = self._find()
        return None if table is None else self._facts_of(table)

    def create(self, facts: StoreFacts) -> None:
        if bad := next((name for name in facts.columns if "`" in name), None):
            raise InputError(f"the column {bad!r} has a backtick, which LanceDB does not take", hint="rename it")
        with self._errors():
            self._database.create_table(self._table, schema=_schema(facts), mode="overwrite")

    def describe(self, facts: StoreFacts) -> None:
        with self._errors():
            self._open().update_field_metadata({"path": "row", "metadata": {FACTS: facts.to_json()}})

    def upsert(self, images: pa.Table) -> None:
        with self._errors():
            self._open().merge_insert("row").when_matched_update_all().when_not_matched_insert_all().execute(images)

    def delete(self, rows: Rows) -> None:
        for asked in batches_of(rows, ROWS_PER_QUESTION):
            with self._errors():
                self._open().delete(_one_of(asked))

    def rows_in(self, span: range) -> Rows:
        with self._errors():
            rows = self._open().search().where(f"`row` >= {span.start} AND `row` < {span.stop}").select(["row"])
            return np.sort(rows.limit(max(len(span), 1)).to_arrow().column("row").to_numpy())

    def count(self, where: Condition | None = None) -> int:
        table = self._open()
        with self._errors():
            return table.count_rows(None if where is None else _sql(where, self._facts_of(table)))

    def fetch(self, rows: Rows) -> pa.Table:
        table = self._open()
        schema = self._facts_of(table).image_schema
        tables = [schema.empty_table()]
        for asked in batches_of(rows, ROWS_PER_QUESTION):
            with self._errors():
                tables.append(_cast(table.search().where(_one_of(asked)).limit(len(asked)).to_arrow(), schema))
        return pa.concat_tables(tables).sort_by("row").combine_chunks()

    def search(self, queries_QD: Floats, count: int, where: Condition | None = None) -> tuple[list[pa.Table], str]:
        # Opened for each search: all of it reads one version.
        table = self._open()
        facts = self._facts_of(table)
        condition = None if where is None else _sql(where, facts)
        with self._errors():
            tables = [_cast(_nearest(table, query_D, count, condition), facts.image_schema) for query_D in queries_QD]
            is_short = any(len(rows) < count for rows in tables)
            if is_short and min(map(len, tables)) < min(count, table.count_rows(condition)):
                raise StaleError(
                    f"{self.location} has images whose vectors are zero, NaN or infinite, which LanceDB leaves out",
                    hint="does another program write to it? Fill it again with `dcdctl upload INDEX URL --replace`",
                )
        return tables, facts.model

    def finish(self) -> None:
        # A draft is copied when it is published, without its indexes.
        if self._table.endswith(_DRAFT):
            return
        table = self._open()
        with self._errors():
            indexed = {column for index in table.list_indices() for column in index.columns}
            if table.count_rows() > EXACT_UP_TO:
                if "row" not in indexed:
                    table.create_index("row", config=BTree())
                if "vector" not in indexed and self._facts_of(table).stored_type is StoredVectors:
                    table.create_index("vector", config=HnswSq(distance_type="cosine"))
            # Joins small files, and adds new rows to the indexes.
            table.optimize()

    def publish(self) -> None:
        table = self._open()
        published = LanceStore(self._uri, self._table.removesuffix(_DRAFT), self.location)
        with self._errors():
            facts = self._facts_of(table)
            schema = _schema(facts)
            # Batch by batch, because a table may be larger than memory.
            tables = (_cast(pa.Table.from_batches([batch]), schema) for batch in table.search().to_batches())
            batches = (batch for each in tables for batch in each.combine_chunks().to_batches())
            reader = pa.RecordBatchReader.from_batches(schema, batches)
            # One commit: a search sees the old version or the new one.
            self._database.create_table(published._table, data=reader, schema=schema, mode="overwrite")
        published.finish()
        self.drop()

    def drop(self) -> None:
        if self._find() is not None:
            with self._errors():
                self._database.drop_table(self._table)

    def _find(self) -> Any:
        """The newest version of the table; None if there is none."""
        with self._errors():
            try:
                return self._database.open_table(self._table)
            except ValueError as error:
                if "was not found" in str(error):
                    return None
                raise

    def _open(self) -> Any:
        table = self._find()
        if table is None:
            raise self.not_there()
        return table

    def _facts_of(self, table: Any) -> StoreFacts:
        with self._errors():
            schema = table.schema
        metadata = (schema.field("row").metadata or {}) if "row" in schema.names else {}
        return StoreFacts.of_json(metadata.get(FACTS.encode()), self.location)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            # The class of a panic of Rust is not one that can be imported.
            if type(error).__name__ == "RustPanic":
                hint = "restore it, or delete its folder and upload the index again"
                raise InputError(f"{self.location} is damaged: LanceDB cannot read it", hint=hint) from error
            if not isinstance(error, OSError | RuntimeError | ValueError):
                raise
            # An error may quote a condition of thousands of rows.
            text = " ".join(str(error).split())[:500]
            if _PASSING.search(text):
                raise UnavailableError(
                    f"{self.location} does not answer: {text}", hint="run the same command again"
                ) from error
            raise InputError(
                f"{self.location} refuses: {text}", hint="check the URL, and the rights and credentials"
            ) from error


def _nearest(table: Any, query_D: Floats, count: int, condition: str | None) -> pa.Table:
    # Of a late index Q x D: the sum of the cosine distances of its nearest tokens. The cosine of padding is no number.
    query_D = query_D[query_D.any(axis=1)] if query_D.ndim > 1 else query_D
    nearest = table.search(query_D).distance_type("cosine").limit(count)
    if condition is not None:
        nearest = nearest.where(condition, prefilter=True)
    rows = nearest.nprobes(PROBES).ef(max(2 * count, 200)).to_arrow()
    # An index looks into a few partitions, which may hold fewer images that meet a condition.
    return rows if len(rows) >= count else nearest.bypass_vector_index().to_arrow()


def _schema(facts: StoreFacts) -> pa.Schema:
    """The columns of the table, with the facts."""
    row, *others = facts.image_schema
    return pa.schema([row.with_metadata({FACTS: facts.to_json()}), *others])


def _cast(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """The columns of images; LanceDB names the numbers of a vector in another way, and adds the distance."""
    return rows.select(schema.names).cast(schema)


def _one_of(rows: Rows) -> str:
    return f"`row` IN ({', '.join(map(str, rows.tolist()))})" if len(rows) else "false"


def _sql(condition: Condition, facts: StoreFacts) -> str:
    return condition_sql(condition, facts.image_schema, lambda name: f"`{name}`", _literal)


def _literal(value: Value, type_: pa.DataType) -> str:
    # As texts: LanceDB does not read the least whole number, nor all digits of a float.
    if number := {pa.float64(): "double", pa.int64(): "bigint"}.get(type_):
        return f"cast('{value}' as {number})"
    text = quoted_value(value)
    if isinstance(value, datetime):
        return f"timestamp {text}"
    return f"date {text}" if isinstance(value, date) else text
