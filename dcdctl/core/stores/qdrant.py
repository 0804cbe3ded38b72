"""A collection of Qdrant: one point per image, its vector as float16, and the facts as metadata of the collection.

The name of a store is an alias. Each upload that fills a store as a whole makes a collection of another name, so a
search never mixes two. Vectors are compared by their dot product, because Qdrant changes the numbers of vectors that it
compares by cosine.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime
from typing import Any
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
from qdrant_client import QdrantClient, models
from qdrant_client.common.client_exceptions import ResourceExhaustedResponse
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from dcdctl.core.errors import InputError
from dcdctl.core.search import Compare, Condition, Floats, Joined, Rows, StoredTokens, Value
from dcdctl.core.stores.protocol import Store, StoreFacts, batches_of
from dcdctl.core.stores.retry import IS_IT_RUNNING, UnavailableError
from dcdctl.core.stores.url import StoreUrl

FACTS = "dcdctl"
PORT = 6333
# An answer of 1,000 ids is small, and a large collection needs few requests.
ROWS_PER_QUESTION = 1000
# The client's own 5 s are too short for a batch while the server builds its graph.
TIMEOUT_S = 60
LEAST_SEARCH_WIDTH = 128
"""Candidates of Qdrant's graph; at least twice as many as are asked for."""
EXACT_INTEGERS = 2**53
"""Qdrant compares larger numbers as floating-point numbers."""
_DRAFT = "__draft"
_INDEXES = {
    "string": "keyword",
    "bool": "bool",
    "int64": "integer",
    "double": "float",
    "date32[day]": "datetime",
    "timestamp[us]": "datetime",
}
"""The index of a column, by the name of its type."""
_RANGES = {"<": ("lt",), "<=": ("lte",), ">": ("gt",), ">=": ("gte",)}
_EQUAL = ("gte", "lte")
"""Equality as a range: Qdrant matches neither floating-point numbers nor moments."""


def connect(url: str, key: str | None) -> QdrantClient:
    """The client of a server; no request is made yet."""
    # The check of versions would ask the server now; an error of `facts` says more.
    return QdrantClient(url=url, api_key=key, timeout=TIMEOUT_S, check_compatibility=False)


def open_url(url: StoreUrl) -> QdrantStore:
    """The store at qdrant://HOST:PORT/COLLECTION, or qdrants: with TLS."""
    name, protocol = unquote(url.parts.path.strip("/")), "https" if url.parts.scheme == "qdrants" else "http"
    try:
        host, port = url.parts.hostname, url.parts.port or PORT
    except ValueError:  # several hosts, or a port that is no number
        host = None
    if not host or not name or "/" in name:
        raise InputError(f"{url.shown} names no host or no collection", hint=f"such as qdrant://host:{PORT}/photos")
    if ":" in host:  # IPv6
        host = f"[{host}]"
    return QdrantStore(connect(f"{protocol}://{host}:{port}", os.environ.get("QDRANT_API_KEY")), name, url.shown)


class QdrantStore(Store):
    """The images of one collection."""

    kind = "qdrant"
    # Some 5 MB of JSON at 512 numbers; Qdrant refuses requests of more than 32 MB.
    batch_rows = 500

    def __init__(self, client: QdrantClient, name: str, location: str) -> None:
        self.location = location
        self._client, self._name = client, name
        self._behind: tuple[str, StoreFacts] | None = None

    def close(self) -> None:
        # A draft has the connection of its store.
        if not self._name.endswith(_DRAFT):
            self._client.close()

    def draft(self) -> QdrantStore:
        return QdrantStore(self._client, f"{self._name}{_DRAFT}", self.location)

    def facts(self) -> StoreFacts | None:
        self._behind = None
        with self._errors():
            collection = self._resolve(self._name)
            if collection is None:
                return StoreFacts.of_json(None, self.location) if self._client.collection_exists(self._name) else None
            metadata = self._client.get_collection(collection).config.metadata or {}
        facts = StoreFacts.of_json(metadata.get(FACTS), self.location)
        self._behind = collection, facts
        return facts

    def create(self, facts: StoreFacts) -> None:
        # No earlier upload had this name; the alias is what users see.
        collection = f"{self._name.removesuffix(_DRAFT)}-{secrets.token_hex(4)}"
        vectors = models.VectorParams(size=facts.dims, distance=models.Distance.DOT, datatype=models.Datatype.FLOAT16)
        if facts.stored_type is StoredTokens:
            vectors.multivector_config = models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM)
            # No graph: MaxSim is not the distance of two images, so all are compared.
            vectors.hnsw_config = models.HnswConfigDiff(m=0)
        with self._errors():
            self._client.create_collection(collection, vectors_config=vectors, metadata={FACTS: facts.to_json()})
            # Before the points, so that the graph gets edges for these columns.
            for column in facts.schema:
                self._client.create_payload_index(
                    collection, _key(column.name), models.PayloadSchemaType(_INDEXES[str(column.type)]), wait=True
                )
            self._move(self._name, collection)

    def describe(self, facts: StoreFacts) -> None:
        collection, _ = self._known()
        with self._errors():
            self._client.update_collection(collection, metadata={FACTS: facts.to_json()})
        self._behind = None

    def upsert(self, images: pa.Table) -> None:
        collection, facts = self._known()
        payloads = []
        for values in images.drop_columns(["row", "vector"]).to_pylist():
            # A missing value is a missing entry.
            payloads.append({name: _as_json(value) for name, value in values.items() if value is not None})
        vectors = facts.stored_type.of_column(images.column("vector")).to_lists()
        points = models.Batch(ids=images.column("row").to_pylist(), vectors=vectors, payloads=payloads)
        with self._errors():
            # `wait`, because a server answers before the points can be found otherwise.
            self._client.upsert(collection, points=points, wait=True)

    def delete(self, rows: Rows) -> None:
        collection, _ = self._known()
        with self._errors():
            self._client.delete(collection, points_selector=models.PointIdsList(points=rows.tolist()), wait=True)

    def rows_in(self, span: range) -> Rows:
        collection, _ = self._known()
        rows: list[int] = []
        offset: Any = span.start
        with self._errors():
            while offset is not None and offset < span.stop:
                points, offset = self._client.scroll(
                    collection, offset=offset, limit=ROWS_PER_QUESTION, with_payload=False
                )
                rows += [int(point.id) for point in points if int(point.id) < span.stop]
        return np.array(rows, dtype=np.int64)

    def count(self, where: Condition | None = None) -> int:
        collection, facts = self._known()
        with self._errors():
            return self._client.count(collection, count_filter=_filter(where, facts), exact=True).count

    def fetch(self, rows: Rows) -> pa.Table:
        collection, facts = self._known()
        points: list[Any] = []
        for asked in batches_of(rows, ROWS_PER_QUESTION):
            with self._errors():
                points += self._client.retrieve(collection, asked.tolist(), with_payload=True, with_vectors=True)
        return _table(points, facts).sort_by("row").combine_chunks()

    def search(self, queries_QD: Floats, count: int, where: Condition | None = None) -> tuple[list[pa.Table], str]:
        collection, facts = self._known()
        condition = _filter(where, facts)
        width = models.SearchParams(hnsw_ef=max(LEAST_SEARCH_WIDTH, 2 * count))
        with self._errors():
            results = self._nearest(collection, queries_QD, filter=condition, limit=count, params=width)
            if any(len(points) < count for points in results):
                # All images that meet the condition, or a graph that did not reach them.
                exact = models.SearchParams(exact=True)
                results = self._nearest(collection, queries_QD, filter=condition, limit=count, params=exact)
        return [_table(points, facts) for points in results], facts.model

    def _nearest(self, collection: str, queries_QD: Floats, **how: Any) -> list[list[models.ScoredPoint]]:
        asked = {**how, "with_vector": True, "with_payload": True}
        requests = [models.QueryRequest(query=query_D.tolist(), **asked) for query_D in queries_QD]
        return [answer.points for answer in self._client.query_batch_points(collection, requests)]

    def publish(self) -> None:
        # The collection whose facts were compared, so that the draft of another upload is never published.
        collection, _ = self._known()
        with self._errors():
            self._move(self._name.removesuffix(_DRAFT), collection, _without(self._name))

    def drop(self) -> None:
        with self._errors():
            if (collection := self._resolve(self._name)) is not None:
                self._client.update_collection_aliases([_without(self._name)])
                self._client.delete_collection(collection)
        self._behind = None

    def _move(self, name: str, collection: str, *others: Any) -> None:
        """Let an alias stand for a collection, and delete the one before."""
        before = self._resolve(name)
        alias = models.CreateAlias(collection_name=collection, alias_name=name)
        removed = [] if before is None else [_without(name)]
        # One request, which the server does as a whole.
        self._client.update_collection_aliases([*removed, models.CreateAliasOperation(create_alias=alias), *others])
        if before is not None:
            self._client.delete_collection(before)
        self._behind = None

    def _resolve(self, name: str) -> str | None:
        """The collection that an alias stands for."""
        aliases = self._client.get_aliases().aliases
        return next((alias.collection_name for alias in aliases if alias.alias_name == name), None)

    def _known(self) -> tuple[str, StoreFacts]:
        """The collection behind the alias and its facts, asked once, until the collection is gone."""
        behind = self._behind
        if behind is None:
            self.facts()
            # A copy, because another thread may find the collection gone meanwhile.
            behind = self._behind
        if behind is None:
            raise self.not_there()
        return behind

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (UnexpectedResponse, ResponseHandlingException, ResourceExhaustedResponse, ValueError) as error:
            # An error may quote the whole request.
            text = " ".join(str(error).split())[:500]
            status = error.status_code if isinstance(error, UnexpectedResponse) else None
            is_gone = status == 404 or (isinstance(error, ValueError) and "not found" in text)
            if is_gone:
                # Replaced by an upload: the next try asks which collection has the alias now.
                self._behind = None
            is_lost = isinstance(error, ResponseHandlingException | ResourceExhaustedResponse)
            if is_gone or is_lost or status == 429 or (status or 0) >= 500:
                raise UnavailableError(f"{self.location} does not answer: {text}", hint=IS_IT_RUNNING) from error
            raise InputError(
                f"{self.location} refuses: {text}", hint="check the URL, and the key in QDRANT_API_KEY"
            ) from error


def _without(alias: str) -> models.DeleteAliasOperation:
    return models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=alias))


def _as_json(value: Any) -> Any:
    if isinstance(value, datetime):
        return f"{value.isoformat()}Z"
    return value.isoformat() if isinstance(value, date) else value


def _table(points: list[Any], facts: StoreFacts) -> pa.Table:
    """Points as a table of `StoreFacts.image_schema`."""
    values: dict[str, list[Any]] = {}
    for column in facts.image_schema:
        values[column.name] = [_of_json((point.payload or {}).get(column.name), column.type) for point in points]
    values["row"] = [int(point.id) for point in points]
    return facts.table(values, facts.stored_type.of_lists([point.vector for point in points], facts.dims))


def _of_json(value: Any, type_: pa.DataType) -> Any:
    if value is None:
        return None
    if type_ == "date32":
        return date.fromisoformat(value)
    return datetime.fromisoformat(value).replace(tzinfo=None) if pa.types.is_timestamp(type_) else value


def _key(name: str) -> str:
    """A column as a path of JSON, where a dot or a bracket outside quotation marks leads into a value."""
    return name if re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII) else f'"{name}"'


def _filter(condition: Condition | None, facts: StoreFacts) -> Any:
    if condition is None:
        return None
    test = _test(condition, facts.image_schema)
    return test if isinstance(test, models.Filter) else models.Filter(must=[test])


def _test(condition: Condition, columns: pa.Schema) -> Any:
    """A condition of Qdrant that holds for the rows of `search.columns.where.matches`."""
    if isinstance(condition, Joined):
        tests = [_test(part, columns) for part in condition.parts]
        return models.Filter(must=tests) if condition.word == "and" else models.Filter(should=tests)
    operator, value, type_ = condition.operator, condition.value, columns.field(condition.column).type
    is_missing = models.IsEmptyCondition(is_empty=models.PayloadField(key=_key(condition.column)))
    if value is None:
        return is_missing if operator == "is null" else models.Filter(must_not=[is_missing])
    if operator.endswith("like"):
        raise InputError(
            f"Qdrant has no {operator.removeprefix('not ').upper()}, which the condition asks of {condition.column}",
            hint="use =, IN or another store",
        )
    if isinstance(value, tuple):
        held: Any = models.Filter(should=[_compare(condition, each, type_) for each in value])
    else:
        held = _compare(condition, value, type_)
    # The opposite does not hold for a missing value either.
    return models.Filter(must_not=[held, is_missing]) if operator in ("!=", "not in") else held


def _compare(condition: Compare, value: Value, type_: pa.DataType) -> Any:
    """The test of a column against a value in its range, or for equality."""
    key, ends = _key(condition.column), _RANGES.get(condition.operator, _EQUAL)
    if isinstance(value, date):
        moment = value if isinstance(value, datetime) else datetime(value.year, value.month, value.day)
        bounds = dict.fromkeys(ends, moment.replace(tzinfo=UTC))
        return models.FieldCondition(key=key, range=models.DatetimeRange(**bounds))
    if ends == _EQUAL and type_ != "float64":
        return models.FieldCondition(key=key, match=models.MatchValue(value=value))
    if isinstance(value, str | bool):
        what = "texts" if isinstance(value, str) else "true and false"
        raise InputError(
            f"Qdrant does not order {what}, which the condition asks of {condition.column}",
            hint="use =, IN or another store",
        )
    if type_ == "int64" and abs(value) > EXACT_INTEGERS:
        raise InputError(f"Qdrant does not order numbers as large as {value}", hint="use = or another store")
    return models.FieldCondition(key=key, range=models.Range(**dict.fromkeys(ends, value)))
