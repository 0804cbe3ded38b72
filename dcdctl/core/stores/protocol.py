"""What an upload and a search need of a store, whatever program keeps the vectors.

Shape letters: Q queries, R rows, D width.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from dcdctl.core import config
from dcdctl.core.errors import ConfigError, MissingError, StaleError
from dcdctl.core.search import (
    COLUMN_TYPES,
    IMAGE_COLUMNS,
    Condition,
    Floats,
    ImageSource,
    Rows,
    Stored,
    StoredTokens,
    StoredType,
    StoredVectors,
)

# A store outlives the version of dcdctl that filled it.
FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class StoreFacts:
    """What a store knows of its images as a whole. It is written last, so that it describes what is there."""

    format: int = FORMAT
    model: str
    """The fingerprint of the model that made the vectors."""
    model_folder: str
    """The folder of that model, on the machine that filled the store."""
    dims: int
    precision: str
    columns: Mapping[str, str]
    """The type of each column of images."""
    sources: tuple[ImageSource, ...]
    generation: int
    """The generation of the index that was uploaded last."""
    rows: int
    """The rows of that index, removed ones included."""
    images: int
    content: str
    """Digest of the vectors and names of these rows: an index continues a store if its first rows have this digest."""
    values: str
    """Digest of the columns of these rows."""
    is_late: bool = False
    """Whether an image has a vector for each token."""
    query_model: str | None = None
    """The fingerprint of the query encoder that embeds texts (`ImageIndex.query_model`)."""

    def __post_init__(self) -> None:
        # Whoever may write to a store may write any facts. No system has paths of 4,096 characters.
        paths = [self.model_folder, *(source.path for source in self.sources)]
        is_right = {
            "model": all(each.isascii() and each.isalnum() for each in (self.model, self.query_model or self.model)),
            "paths": len(paths) > 1 and all("\0" not in path and len(path) < 4096 for path in paths),
            "dims": 0 < self.dims < 2**16,
            "rows": 0 <= self.images <= self.rows < 2**63,
            "columns": set(self.columns.values()) <= set(COLUMN_TYPES)
            and all(name.isprintable() for name in self.columns)
            and not {"vector", *(field.name for field in IMAGE_FIELDS)} & set(self.columns),
        }
        if wrong := [name for name, right in is_right.items() if not right]:
            raise ConfigError(f"its {wrong[0]} cannot be right")

    @property
    def schema(self) -> pa.Schema:
        """The columns of images."""
        return pa.schema([pa.field(name, COLUMN_TYPES[type_]) for name, type_ in self.columns.items()])

    @property
    def stored_type(self) -> StoredType:
        """What the store has of an image."""
        return StoredTokens if self.is_late else StoredVectors

    @property
    def image_schema(self) -> pa.Schema:
        """The columns of an upload and of an answer."""
        vector = pa.field("vector", self.stored_type.store_type(self.dims), nullable=False)
        return pa.schema([*IMAGE_FIELDS, vector, *self.schema])

    def table(self, values: Mapping[str, Sequence[Any]], stored: Stored) -> pa.Table:
        """A table of `image_schema` of the values of each column and the vectors."""
        others = {column.name: column.type for column in self.image_schema if column.name != "vector"}
        arrays = {name: pa.array(values[name], type_) for name, type_ in others.items()}
        arrays["vector"] = stored.to_column()
        return pa.table([arrays[name] for name in self.image_schema.names], schema=self.image_schema)

    def to_json(self) -> str:
        return json.dumps({"dcdctl": config.to_table(self)}, ensure_ascii=False)

    @staticmethod
    def of_json(text: str | bytes | None, location: str) -> StoreFacts:
        """The facts that `to_json` wrote; StaleError if another program, or another version of dcdctl, wrote the
        store."""
        try:
            document = json.loads(text or "")["dcdctl"]
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise StaleError(
                f"{location} is there, and dcdctl did not make it", hint="name another one: nothing was changed"
            ) from error
        try:
            if document["format"] != FORMAT:
                raise ConfigError(f"its format is {document['format']!r}")
            return config.build(StoreFacts, document)
        except (ConfigError, LookupError, TypeError, RecursionError) as error:
            # It may quote all of a value.
            raise StaleError(
                f"{location} was filled by another version of dcdctl ({str(error)[:200]})",
                hint="update dcdctl, or upload the index again with --replace",
            ) from error


IMAGE_FIELDS = (pa.field("row", "int64", nullable=False), pa.field("source", "int32", nullable=False), *IMAGE_COLUMNS)
"""What every store keeps of an image besides its vector: where it is, and what it is called. A row is the row of the
index."""


def batches_of(rows: Rows, size: int) -> Iterator[Rows]:
    """The rows in order, `size` at a time."""
    return (rows[start : start + size] for start in range(0, len(rows), size))


class Store(ABC):
    """Vectors with their images under one name. Safe to call from threads.

    An error that may pass, such as a lost connection, is an UnavailableError; wrong credentials and the like are
    InputErrors.
    """

    kind: str
    batch_rows: int
    """Images of up to 512 numbers to send together."""
    location: str
    """Its URL without a password."""

    @abstractmethod
    def facts(self) -> StoreFacts | None:
        """What the store holds; None if nothing has this name. StaleError if another program made it."""

    @abstractmethod
    def create(self, facts: StoreFacts) -> None:
        """Make it an empty store for these columns."""

    @abstractmethod
    def describe(self, facts: StoreFacts) -> None:
        """Replace the facts."""

    @abstractmethod
    def upsert(self, images: pa.Table) -> None:
        """Write images of `StoreFacts.image_schema`, all or none; rows that are there already are replaced."""

    @abstractmethod
    def delete(self, rows: Rows) -> None:
        """Remove rows; those that are not there are ignored."""

    @abstractmethod
    def rows_in(self, span: range) -> Rows:
        """The rows of a range that are there, in order."""

    @abstractmethod
    def count(self, where: Condition | None = None) -> int:
        """The number of images, or of those that meet a condition."""

    @abstractmethod
    def fetch(self, rows: Rows) -> pa.Table:
        """The images of rows, in the order of rows; those that are not there are left out."""

    @abstractmethod
    def search(self, queries_QD: Floats, count: int, where: Condition | None = None) -> tuple[list[pa.Table], str]:
        """About the `count` nearest images of each query among those that meet a condition, or all of these if they are
        fewer, in no fixed order; and the fingerprint of the model that made their vectors."""

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other uploads out during a block; StaleError if one runs. A store without locks does nothing: an upload
        then notices that another one has changed the facts."""
        yield

    @abstractmethod
    def draft(self) -> Store:
        """The store that is filled aside before it is published under this name."""

    @abstractmethod
    def publish(self) -> None:
        """Let a draft take the place of the published store, in one step."""

    @abstractmethod
    def drop(self) -> None:
        """Remove a draft, if it is there."""

    # Not abstract, here and below: a store may do so by itself, or have no connections.
    def finish(self) -> None:  # noqa: B027
        """Build what makes searches fast, after many images were written."""

    def close(self) -> None:  # noqa: B027
        """End the connections."""

    def not_there(self) -> MissingError:
        """The error for a store that nobody has filled."""
        return MissingError(
            f"there are no images in {self.location}", hint=f"fill it with `dcdctl upload INDEX '{self.location}'`"
        )
