"""The rows of a corpus and its shards: Parquet files that `datasets` reads as an image data set.

One row per image. Image bytes are stored as they came; the other columns are compressed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dcdctl.core import files

# Row groups are small, because training reads images in random order, and reading one image reads its row group.
ROW_GROUP_ROWS = 32
ROW_GROUP_BYTES = 2 << 20
LABEL_COLUMNS = ("caption_sources", "caption_weights", "caption_languages")
"""Columns of a corpus whose table says who wrote a caption, how often to draw it, or its language; each has a value per
caption."""
_COLUMNS = pa.schema(
    [
        ("image_id", "string"),
        ("image", pa.struct([("bytes", "binary"), ("path", "string")])),
        ("width", "int32"),
        ("height", "int32"),
        ("captions", pa.list_(pa.string())),
        ("caption_ids", pa.list_(pa.int64())),
        ("caption_sources", pa.list_(pa.string())),
        ("caption_weights", pa.list_(pa.float64())),
        ("caption_languages", pa.list_(pa.string())),
    ]
)


def _feature(type_: pa.DataType) -> dict[str, Any]:
    """A column as `datasets` describes it."""
    if pa.types.is_list(type_):
        # Not its newer name "List", because every version of `datasets` reads it.
        return {"feature": _feature(type_.value_type), "_type": "Sequence"}
    if pa.types.is_struct(type_):
        return {"_type": "Image"}
    # pyarrow calls float64 double.
    return {"dtype": "float64" if type_ == pa.float64() else str(type_), "_type": "Value"}


@dataclass(frozen=True, kw_only=True, slots=True)
class CorpusRow:
    """An image with its captions; `width` and `height` belong to the upright image."""

    image_id: str
    path: str
    data: bytes
    width: int
    height: int
    captions: Sequence[str]
    caption_ids: Sequence[int]
    caption_sources: Sequence[str] | None = None
    caption_weights: Sequence[float] | None = None
    caption_languages: Sequence[str] | None = None

    def digest(self, image_digest: bytes | None = None) -> bytes:
        """The SHA-256 of id, captions with their labels, and image bytes. A known `image_digest` saves hashing the
        image again."""
        values: list[Any] = [self.image_id, list(self.captions)]
        # Labels only where there are any: rows without them keep the digest from before labels, or languages, existed.
        if self.caption_sources or self.caption_weights or self.caption_languages:
            values += [self.caption_sources, self.caption_weights]
        if self.caption_languages:
            values.append(self.caption_languages)
        # JSON, because it marks where each text ends: captions "ab", "c" must not equal "a", "bc".
        id_and_captions = json.dumps(values).encode()
        image_digest = image_digest or hashlib.sha256(self.data).digest()
        return hashlib.sha256(hashlib.sha256(id_and_captions).digest() + image_digest).digest()


@dataclass(frozen=True, slots=True)
class RowFacts:
    """What counts, fingerprint and duplicates of a split are computed from."""

    image_id: str
    num_captions: int
    digest: bytes
    image_digest: bytes
    """The SHA-256 of the image bytes."""
    hash: int
    """The difference hash of the image, see `images.difference_hash`."""

    @staticmethod
    def of(row: CorpusRow, hash_bits: int) -> RowFacts:
        image_digest = hashlib.sha256(row.data).digest()
        return RowFacts(
            image_id=row.image_id,
            num_captions=len(row.captions),
            digest=row.digest(image_digest),
            image_digest=image_digest,
            hash=hash_bits,
        )


def text_digest(text: str, language: str = "") -> bytes:
    """The SHA-256 of a text of a pool with its language; never that of a row."""
    spoken = json.dumps([language]) if language else ""
    return hashlib.sha256(f"text{spoken} {text}".encode()).digest()


_TEXT_COLUMNS = pa.schema([("text", "string"), ("caption_id", "int64"), ("language", "string")])


def write_texts(path: Path, texts: Sequence[str], caption_ids: Sequence[int], languages: Sequence[str] = ()) -> None:
    """Write the texts of a pool with their numbers in the source and their languages, if any is known, atomically."""
    columns: dict[str, Any] = {"text": texts, "caption_id": caption_ids}
    if any(languages):
        columns["language"] = languages
    table = pa.table(columns, schema=pa.schema([_TEXT_COLUMNS.field(name) for name in columns]))
    with files.atomic_path(path) as partial:
        pq.write_table(table, partial, compression="zstd", write_page_checksum=True)


def shard_name(split: str, shard: int, num_shards: int) -> str:
    """The file name of a shard.

    >>> shard_name("val", 0, 3)
    'val-00000-of-00003.parquet'
    """
    return f"{split}-{shard:05}-of-{num_shards:05}.parquet"


def write_shard(path: Path, rows: Iterable[CorpusRow], labels: Sequence[str] = ()) -> Iterator[CorpusRow]:
    """Write rows to a shard atomically, and yield each row once it is written; `labels` names the `LABEL_COLUMNS` that
    the corpus has."""
    columns = [column for column in _COLUMNS if column.name not in LABEL_COLUMNS or column.name in labels]
    features = {column.name: _feature(column.type) for column in columns}
    schema = pa.schema(columns, metadata={"huggingface": json.dumps({"info": {"features": features}})})
    # Checksums of pages, because a corpus at a URL is compared with them instead of its SHA-256.
    options = {"use_dictionary": False, "write_statistics": ["image_id"], "write_page_checksum": True}
    # Not the image bytes, which are compressed already.
    compression = {
        "image_id": "zstd",
        "image.path": "zstd",
        **{f"{column.name}.list.element": "zstd" for column in columns if pa.types.is_list(column.type)},
    }
    with (
        files.atomic_path(path) as partial,
        pq.ParquetWriter(partial, schema, compression=compression, **options) as writer,
    ):
        for group in _row_groups(rows):
            writer.write_table(_to_table(group, schema), row_group_size=len(group))
            yield from group


def read_shard(path: Path) -> Iterator[CorpusRow]:
    """The rows of a shard, one row group in memory at a time."""
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            for row in file.read_row_group(group).to_pylist():
                image = row.pop("image")
                yield CorpusRow(path=image["path"], data=image["bytes"], **row)


def fingerprint_of(row_digests: Iterable[bytes]) -> str:
    """The fingerprint of a split from the digests of its rows, in order."""
    # A prefix of its own: no other digest of the same rows equals a fingerprint. 1 is its version.
    total = hashlib.sha256(b"dcdctl corpus 1")
    for digest in row_digests:
        total.update(digest)
    return total.hexdigest()


def _row_groups(rows: Iterable[CorpusRow]) -> Iterator[list[CorpusRow]]:
    group: list[CorpusRow] = []
    size = 0
    for row in rows:
        if group and (len(group) == ROW_GROUP_ROWS or size + len(row.data) > ROW_GROUP_BYTES):
            yield group
            group, size = [], 0
        group.append(row)
        size += len(row.data)
    if group:
        yield group


def _to_table(rows: Sequence[CorpusRow], schema: pa.Schema) -> pa.Table:
    columns: dict[str, Any] = {}
    for name in schema.names:
        if name != "image":
            columns[name] = [getattr(row, name) for row in rows]
    # Not a list of dicts, which takes twice as long.
    parts = [pa.array([row.data for row in rows], "binary"), pa.array([row.path for row in rows], "string")]
    columns["image"] = pa.StructArray.from_arrays(parts, fields=list(schema.field("image").type))
    return pa.Table.from_pydict(columns, schema=schema)
