"""Bringing a store up to an index: what is missing is sent, what was removed is deleted, and a killed upload resumes.

A store that is new, or is to be replaced, is filled as a draft beside the published one, which takes its place when all
is there: no search sees a half-filled store.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from dcdctl.core.errors import StaleError
from dcdctl.core.progress import Track, silent
from dcdctl.core.search import FolderIndex, StoredTokens
from dcdctl.core.stores.protocol import Store, StoreFacts, batches_of
from dcdctl.core.stores.retry import FOR_A_BATCH, FOR_A_QUESTION, repeated


@dataclass(frozen=True, kw_only=True)
class Upload:
    """What an upload changed in a store."""

    location: str
    images: int
    """Images in the store now."""
    sent: int
    deleted: int


def _other_images(store: Store, index: FolderIndex) -> StaleError:
    return StaleError(
        f"{store.location} holds the images of another index than {index.folder}",
        hint="name another table, or replace what is there with --replace",
    )


def upload_index(index: FolderIndex, store: Store, *, replace: bool = False, track: Track = silent) -> Upload:
    """Make a store hold the images of an index. `replace` fills it again as a whole, in place of whatever images it
    holds.

    StaleError if it holds the images of another index or model, or another number of images in the end, or if
    another upload writes to it. MissingError if the index lacks its model.
    """
    index.check_model()
    with store.lock():
        wanted = facts_of(index)
        published = repeated(store.facts, FOR_A_QUESTION)
        if published is not None and not replace:
            if not _continues(published, index):
                raise _other_images(store, index)
            if (published.columns, published.values) == (wanted.columns, _values_digest(index, published.rows)):
                return _fill(index, store, before=published, after=wanted, track=track)
        with closing(store.draft()) as draft:
            before = repeated(draft.facts, FOR_A_QUESTION)
            # The draft of a killed upload is continued if the index still begins with its images.
            if not (before and _continues(before, index) and before.values == _values_digest(index, before.rows)):
                repeated(draft.drop, FOR_A_BATCH)
                repeated(draft.create, FOR_A_BATCH, wanted)
                before = wanted
            upload = _fill(index, draft, before=before, after=wanted, track=track)
            _write(draft, [wanted], draft.publish)
            return upload


def _write(store: Store, expected: Sequence[StoreFacts], work: Callable[..., None], *arguments: pa.Table) -> None:
    """Change a store, again while it does not answer; StaleError if another upload has replaced or described it."""

    def try_once() -> None:
        if store.facts() not in expected:
            raise StaleError(f"another upload writes to {store.location}", hint="upload again when it has ended")
        work(*arguments)

    repeated(try_once, FOR_A_BATCH)


def facts_of(index: FolderIndex) -> StoreFacts:
    """What a store with all images of an index says of itself."""
    document = index.document
    return StoreFacts(
        model=index.fingerprint,
        model_folder=str((index.folder / "model").resolve()),
        dims=index.dim,
        precision=document.precision,
        columns={field.name: str(field.type) for field in index.columns},
        sources=document.sources,
        generation=document.generation,
        rows=index.num_rows,
        images=index.num_images,
        content=content_digest(index, index.num_rows) or "",
        values=_values_digest(index, index.num_rows),
        is_late=index.stored_type is StoredTokens,
        query_model=index.query_model,
    )


def content_digest(index: FolderIndex, rows: int) -> str | None:
    """A digest of the vectors and names of the first rows; None if no part of the index ends there. Parts never
    change."""
    # From the checksums of index.json, so that no vector is read.
    digest, stop = hashlib.sha256(), 0
    for part in index.parts:
        if stop == rows:
            break
        stop += part.rows
        digest.update(f"{part.source} {part.rows} {part.sha256}\n".encode())
    return digest.hexdigest() if stop == rows else None


def _values_digest(index: FolderIndex, rows: int) -> str:
    """A digest of the columns of the first rows."""
    digest = hashlib.sha256()
    for batch in index.stored_columns.table().slice(0, rows).to_batches(max_chunksize=1 << 16):
        digest.update(json.dumps([[column.name, str(column.type)] for column in batch.schema]).encode())
        # `str` for dates, which JSON lacks.
        digest.update(json.dumps(batch.to_pydict(), default=str).encode())
    return digest.hexdigest()


def _continues(facts: StoreFacts, index: FolderIndex) -> bool:
    """Whether an index begins with the rows of a store."""
    is_same = (facts.model, facts.dims, facts.precision) == (index.fingerprint, index.dim, index.document.precision)
    return is_same and facts.content == content_digest(index, facts.rows)


def _fill(index: FolderIndex, store: Store, *, before: StoreFacts, after: StoreFacts, track: Track) -> Upload:
    """Send the rows that a store lacks, delete those that the index has no longer, and describe it when the numbers
    agree."""
    sent, deleted = 0, 0
    with track("upload", total=index.num_rows, unit="images") as advance:
        for first, table in _parts(index, after):
            span = range(first, first + len(table))
            there = repeated(store.rows_in, FOR_A_BATCH, span)
            live = np.flatnonzero(index.is_live[span.start : span.stop]) + first
            if len(gone := np.setdiff1d(there, live)):
                _write(store, [before], store.delete, gone)
                deleted += len(gone)
            missing = np.setdiff1d(live, there)
            advance(len(table) - len(missing))
            per_image = table["vector"].nbytes // 2 // max(len(table), 1)
            for rows in batches_of(missing, max(store.batch_rows * 512 // max(per_image, 512), 1)):
                _write(store, [before], store.upsert, table.take(pa.array(rows - first)))
                advance(len(rows))
            sent += len(missing)
    if sent:
        with track("make it fast to search", total=None, unit=""):
            repeated(store.finish, FOR_A_BATCH)
    count = repeated(store.count, FOR_A_BATCH)
    if count != after.images:
        raise StaleError(
            f"{store.location} has {count:,} images after the upload, and the index {index.folder} has "
            f"{after.images:,}",
            hint="does another program write to it? Fill it again with --replace",
        )
    # Both, because an answer that was lost may follow a change that was made.
    _write(store, [before, after], store.describe, after)
    return Upload(location=store.location, images=count, sent=sent, deleted=deleted)


def _parts(index: FolderIndex, facts: StoreFacts) -> Iterator[tuple[int, pa.Table]]:
    """The first row of each part, and its images as a store takes them."""
    first, columns = 0, index.stored_columns.table()
    for number, part in enumerate(index.parts):
        table, rows = index.part_table(number), pa.array(range(first, first + part.rows), "int64")
        source = pa.array(np.full(part.rows, part.source), "int32")
        named = {"row": rows, "source": source, "vector": index.reader.part(number).to_column()}
        named |= {name: table.column(name) for name in table.column_names}
        named |= {name: columns.column(name).slice(first, part.rows) for name in facts.columns}
        yield first, pa.table([named[name] for name in facts.image_schema.names], schema=facts.image_schema)
        first += part.rows
