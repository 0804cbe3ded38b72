"""A prepared corpus: a folder of Parquet shards `SPLIT-00000-of-00003.parquet`, and `corpus.json`, written last.

One row per image, in the order of the source. An image index is a row of its split; a caption index counts captions in
row order. A split may be a pool: its images have no captions, and its texts, in `texts-SPLIT.parquet`, no image. The
fingerprint of a split covers ids, captions and image bytes, and not the division into shards. Opening a corpus reads
corpus.json; a shard's SHA-256 is compared when the shard is first read. The folder may be a URL; the pages that are
read are then compared with their CRC-32 instead.
"""

from __future__ import annotations

import bisect
import itertools
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from dcdctl.core import files
from dcdctl.core.data import images, urls
from dcdctl.core.data.corpus_json import CORPUS, CORPUS_FILE, JOIN, CorpusFile, ShardFile, read_corpus_json
from dcdctl.core.data.ragged_array import Indices, offsets_of
from dcdctl.core.errors import CorpusError
from dcdctl.core.places import local_path, shown, url_of

Side = TypeVar("Side")
_COPY_AGAIN = "copy the corpus to its place again"
MAX_GROUPS = 10
"""Sources and languages of captions that reports name."""


class Direction(StrEnum):
    """Direction of retrieval, named after what is retrieved.

    Text retrieval: a query is an image, and its captions are found. Image retrieval: a query is a caption, and its
    image is found.
    """

    TEXT = "text"
    IMAGE = "image"

    @property
    def key(self) -> str:
        """Name of the direction in JSON documents: text_retrieval."""
        return f"{self}_retrieval"

    @property
    def title(self) -> str:  # type: ignore[override]  # str.title is never called on a direction
        """Name of the direction in tables: text retrieval."""
        return f"{self} retrieval"

    @property
    def query(self) -> str:
        """What a query is: an "image" or a "caption"."""
        return "image" if self == Direction.TEXT else "caption"

    @property
    def gallery(self) -> str:
        """What the candidates of a query are: each a "caption" or an "image"."""
        return "caption" if self == Direction.TEXT else "image"

    def query_first(self, of_images: Side, of_texts: Side) -> tuple[Side, Side]:
        """What belongs to the queries, then what belongs to the gallery.

        Its own inverse: of queries and gallery, it gives what belongs to images first.
        """
        return (of_images, of_texts) if self == Direction.TEXT else (of_texts, of_images)


def group_captions(labels: Sequence[str | None]) -> dict[str, Indices]:
    """The captions of each label, the label with most first, at most `MAX_GROUPS`; empty if all labels are None.

    >>> group_captions(["de", None, "fr", "fr"])
    {'fr': array([2, 3]), 'de': array([0]), 'unknown': array([1])}
    """
    if all(label is None for label in labels):
        return {}
    encoded = pa.array([label or "unknown" for label in labels], "string").dictionary_encode()
    names, label_T = encoded.dictionary.to_pylist(), encoded.indices.to_numpy()
    order = np.argsort(-np.bincount(label_T), kind="stable")
    return {names[i]: np.flatnonzero(label_T == i) for i in order[:MAX_GROUPS]}


def decode_image_of(place: str, image_id: str, file: bytes) -> Image.Image:
    """The image in a file of a corpus, upright and RGB; CorpusError that names it and its `Corpus.place` if the bytes
    are no image."""
    try:
        return images.decode_image(file)
    except images.ImageError as error:
        raise CorpusError(f"image {image_id!r} of {place} cannot be decoded: {error}", hint=CORPUS.remake) from error


class Corpus:
    """A split of a prepared corpus, or several joined. Images are read on demand; safe to pickle, to fork and to share
    between threads."""

    def __init__(
        self,
        folder: Path,
        split: str,
        *,
        name: str,
        fingerprint: str,
        shards: Sequence[ShardFile],
        num_images: int,
        columns: Sequence[CorpusFile] = (),
        texts: Sequence[ShardFile] | None = None,
        whole: Corpus | None = None,
    ) -> None:
        """`texts` are the files of a pool's texts, None for captioned images; `whole` is the corpus whose first images
        these are."""
        self.folder, self.split, self.name, self.fingerprint = folder, split, name, fingerprint
        self.num_images = num_images
        self.whole: Corpus = self if whole is None else whole
        """The corpus whose first images these are; the corpus itself unless it is a `subset`."""
        self._shards = tuple(shards)
        self._shard_ends = list(itertools.accumulate(shard.rows for shard in shards))
        self._columns = columns
        self._texts = texts
        self.is_pool = texts is not None
        """Whether no text belongs to an image: its `captions` are then texts without an image, such as queries."""
        self._open = threading.local()
        self.is_remote = url_of(folder) is not None
        """Whether its folder is a URL."""

    @staticmethod
    def open(folder: Path | str, split: str, max_images: int | None = None) -> Corpus:
        """A split of the corpus in a folder, or its first images; CorpusError if it is absent, unfinished or without
        that split.

        A folder may be a URL (`urls`), also as a Path. Its shards are then read by row groups, and not copied.
        `train+val` is the images of train, followed by val's: one gallery with a fingerprint of its own.
        """
        is_remote = url_of(folder) is not None
        folder = Path(folder) if is_remote else local_path(folder)
        document, names = read_corpus_json(folder), split.split(JOIN)
        if repeated := next((name for name in names if names.count(name) > 1), None):
            raise CorpusError(f"split {split!r} has {repeated!r} twice", hint="name each split once")
        entries = [document.split(name, folder, split) for name in names]
        shards = [shard for entry in entries for shard in entry.shards]
        columns = [document.columns[name] for name in names if name in document.columns]
        texts = [entry.texts for entry in entries if entry.texts is not None]
        pools = [name for name, entry in zip(names, entries, strict=True) if entry.is_pool]
        captioned = [name for name in names if name not in pools]
        if pools and captioned:
            raise CorpusError(
                f"{pools[0]} of {shown(folder)} is a pool and {captioned[0]} has captions: they cannot be read as one",
                hint=f"--data DATA --split {captioned[0]} --pool DATA trains on both",
            )
        for part in (*shards, *texts, *columns):
            if not is_remote:
                CORPUS.check_part(folder, part.file, part.bytes)
            elif files.escapes_root(part.file):
                raise CorpusError(f"{shown(folder)}/{CORPUS_FILE} names a file outside of its folder: {part.file}")
        prints = [entry.fingerprint for entry in entries]
        # One split keeps its own, so that caches that were made from it stay valid.
        fingerprint = files.digest_of({"joined": prints}) if prints[1:] else prints[0]
        num_images = sum(entry.images for entry in entries)
        corpus = Corpus(
            folder,
            split,
            name=document.name,
            fingerprint=fingerprint,
            shards=shards,
            num_images=num_images,
            columns=columns,
            texts=texts if pools else None,
        )
        return corpus if max_images is None else corpus.subset(max_images)

    def __getstate__(self) -> dict[str, Any]:
        # A threading.local cannot be pickled, and open files belong to one process.
        return {key: value for key, value in self.__dict__.items() if key != "_open"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _open=threading.local())

    def __repr__(self) -> str:
        return f"Corpus({shown(self.folder)!r}, {self.split!r}: {self.num_images} images, {self.fingerprint[:8]})"

    @cached_property
    def image_ids(self) -> list[str]:
        """The id of each image."""
        return self._of_images("image_id", "string").to_pylist()

    @cached_property
    def columns(self) -> pa.Table | None:
        """The columns of the images, such as a year, one row per image; None for a corpus without, and for one at a
        URL."""
        whole = self.whole
        if not whole._columns or self.is_remote:
            return None
        paths = [CORPUS.checked(self.folder / entry.file, entry.sha256) for entry in whole._columns]
        table = pa.concat_tables([pq.read_table(path) for path in paths])
        if len(table) != whole.num_images:
            raise CORPUS.damaged(
                paths[0], f"its columns have {len(table):,} rows, and the corpus has {whole.num_images:,} images"
            )
        return table.slice(0, self.num_images)

    @cached_property
    def image_paths(self) -> list[str]:
        """The path of each image's file in its source, relative to the folder or the archive of the images."""
        return [image["path"] for image in self._of_images("image.path", pa.struct([("path", "string")])).to_pylist()]

    def sizes(self, side: Literal["width", "height"]) -> NDArray[np.int32]:
        """The width or the height of each image, in pixels."""
        return self._of_images(side, "int32").to_numpy()

    @property
    def num_bytes(self) -> int:
        """The size of its files, of a subset those of the whole."""
        return sum(file.bytes for file in (*self._shards, *(self._texts or ())))

    @cached_property
    def captions(self) -> list[str]:
        """The text of each caption, or of each text of a pool."""
        return self._of_captions("captions", "text", "string").to_pylist()

    @cached_property
    def caption_ids(self) -> Indices:
        """The source's number of each caption."""
        return self._of_captions("caption_ids", "caption_id", "int64").to_numpy()

    @cached_property
    def caption_sources(self) -> list[str] | None:
        """Who wrote each caption: human, synthetic, ..., empty where the table does not say; None without sources."""
        return self._of_captions("caption_sources", "", "string").to_pylist() if self._has("caption_sources") else None

    @cached_property
    def caption_weights(self) -> NDArray[np.float64] | None:
        """How often training draws each caption, beside the others; None if all are equal."""
        return self._of_captions("caption_weights", "", "float64").to_numpy() if self._has("caption_weights") else None

    @cached_property
    def languages(self) -> list[str | None]:
        """The language of each caption, or of each text of a pool, such as "de"; None where the table does not say."""
        if self._texts is None and not self._has("caption_languages"):
            return [None] * self.num_captions
        return [name or None for name in self._of_captions("caption_languages", "language", "string").to_pylist()]

    @cached_property
    def captions_by_label(self) -> dict[str, dict[str, Indices]]:
        """The captions of each source, and of each language (`group_captions`), by "source" and "language"; without a
        label that the table does not give."""
        labels = {"source": self.caption_sources or (), "language": self.languages}
        return {label: groups for label, names in labels.items() if (groups := group_captions(names))}

    @cached_property
    def caption_image(self) -> Indices:
        """The image index of each caption, ascending; -1 for the texts of a pool."""
        if self._texts is not None:
            return np.full(self.num_captions, -1)
        return np.repeat(np.arange(self.num_images), np.diff(self._caption_starts))

    @property
    def num_captions(self) -> int:
        if self._texts is not None:
            return sum(file.rows for file in self._texts)
        return int(self._caption_starts[-1])

    def captions_of(self, image_ix: int) -> range:
        """The caption indices of an image; none in a pool."""
        return range(int(self._caption_starts[image_ix]), int(self._caption_starts[image_ix + 1]))

    @property
    def place(self) -> str:
        """The split and the folder, for messages."""
        return f"split {self.split} in {shown(self.folder)}"

    def image_bytes(self, image_ix: int) -> bytes:
        """The image file of an image, as it was prepared."""
        shard, group, row = self._locate(image_ix)
        return self._group_bytes(shard, group)[row].as_py()

    def image(self, image_ix: int) -> Image.Image:
        """An image, upright and RGB; CorpusError if its bytes are no image."""
        return self.images([image_ix])[0]

    def images(self, image_ix: Sequence[int]) -> list[Image.Image]:
        """Images in the given order; each row group is read once. CorpusError if the bytes of one are no image."""
        decoded: dict[int, Image.Image] = {}
        by_group = itertools.groupby(sorted({int(ix) for ix in image_ix}), key=lambda ix: self._locate(ix)[:2])
        for (shard, group), members in by_group:
            column = self._group_bytes(shard, group)
            for ix in members:
                decoded[ix] = decode_image_of(self.place, self.image_ids[ix], column[self._locate(ix)[2]].as_py())
        return [decoded[int(ix)] for ix in image_ix]

    def subset(self, max_images: int) -> Corpus:
        """The first images as a corpus with its own fingerprint; the corpus itself if it has no more images. A pool
        keeps all texts."""
        if max_images < 1:
            raise ValueError(f"max_images must be at least 1, got {max_images}")
        if max_images >= self.num_images:
            return self
        fingerprint = files.digest_of({"parent": self.fingerprint, "first": max_images})
        return Corpus(
            self.folder,
            self.split,
            name=self.name,
            fingerprint=fingerprint,
            shards=self._shards,
            num_images=max_images,
            texts=self._texts,
            whole=self.whole,
        )

    @cached_property
    def _text_tables(self) -> list[pa.Table]:
        """The files of a pool's texts."""
        tables = []
        for entry in self._texts or ():
            with self._readable(entry):
                if self.is_remote:
                    table = self._open_remote(entry).read(use_threads=False)
                else:
                    table = pq.read_table(CORPUS.checked(self.folder / entry.file, entry.sha256))
                tables.append(table)
        return tables

    @cached_property
    def _caption_starts(self) -> Indices:
        """The index of each image's first caption, and the number of captions: num_images + 1 entries."""
        counts = [column.value_lengths().to_numpy() for column in self._column("captions")]
        return offsets_of(np.concatenate([*counts, np.empty(0, np.int64)])[: self.num_images])

    def _has(self, name: str) -> bool:
        """Whether it has a column of `LABEL_COLUMNS`, as all shards or none."""
        return self._texts is None and name in self._file(0)[0].schema_arrow.names

    def _of_captions(self, name: str, name_of_texts: str, kind: str) -> pa.ChunkedArray:
        """A column with a value for each caption, and for each text of a pool."""
        chunks: list[pa.Array] = []
        if self._texts is None:
            chunks += [column.flatten() for column in self._column(name)]
        for table in self._text_tables:
            # A split without languages may be joined with one that has some.
            has_column = name_of_texts in table.column_names
            chunks += table[name_of_texts].chunks if has_column else [pa.nulls(len(table), kind)]
        return pa.chunked_array(chunks, kind).slice(0, self.num_captions)

    def _of_images(self, name: str, kind: str | pa.DataType) -> pa.ChunkedArray:
        """A column with a value for each image."""
        return pa.chunked_array(self._column(name), kind).slice(0, self.num_images)

    def _column(self, name: str) -> Iterator[pa.Array]:
        for shard, end in enumerate(self._shard_ends):
            with self._readable(self._shards[shard]):
                # In this thread: a remote file has one position.
                table = self._file(shard)[0].read(columns=[name], use_threads=not self.is_remote)
            yield from table.column(name.partition(".")[0]).chunks
            # A subset may end inside a shard; callers cut off the rest.
            if end >= self.num_images:
                return

    def _locate(self, image_ix: int) -> tuple[int, int, int]:
        """The shard, row group and row of an image."""
        if not 0 <= image_ix < self.num_images:
            raise IndexError(f"image {image_ix} of {self.num_images}")
        shard = bisect.bisect_right(self._shard_ends, image_ix)
        row = image_ix - (self._shard_ends[shard - 1] if shard else 0)
        group_ends = self._file(shard)[1]
        group = bisect.bisect_right(group_ends, row)
        return shard, group, row - (group_ends[group - 1] if group else 0)

    def _group_bytes(self, shard: int, group: int) -> pa.Array:
        """The image bytes of a row group. The last one is kept in memory: reading in order reads each row group
        once."""
        self._file(shard)
        if self._open.group_key != (shard, group):
            # The old row group is released first, so that only one is in memory.
            self._open.group_key = self._open.group = None
            with self._readable(self._shards[shard]):
                table = self._file(shard)[0].read_row_group(
                    group, columns=["image.bytes"], use_threads=not self.is_remote
                )
            self._open.group_key, self._open.group = (shard, group), table.column("image").chunk(0).field("bytes")
        return self._open.group

    def _file(self, shard: int) -> tuple[Any, list[int]]:
        """The open shard and the end of each row group. Opened once per process and thread, because they cannot share a
        file position."""
        if getattr(self._open, "process", None) != os.getpid():
            self._open.process, self._open.files, self._open.group_key = os.getpid(), {}, None
        if shard not in self._open.files:
            entry = self._shards[shard]
            if self.is_remote:
                file = self._open_remote(entry)
            else:
                file = pq.ParquetFile(CORPUS.checked(self.folder / entry.file, entry.sha256))
            sizes = (file.metadata.row_group(i).num_rows for i in range(file.num_row_groups))
            self._open.files[shard] = file, list(itertools.accumulate(sizes))
        return self._open.files[shard]

    def _open_remote(self, entry: ShardFile) -> pq.ParquetFile:
        """A shard of a remote corpus. Its SHA-256 would take all its bytes: its size and rows are compared, and the
        CRC-32 of each page."""
        where = f"{shown(self.folder)}/{entry.file}"
        stream = urls.open_file(f"{url_of(self.folder)}/{entry.file}")
        # First, because it costs no further request.
        if stream.seek(0, os.SEEK_END) != entry.bytes:
            raise CorpusError(
                f"{where} is damaged: it has {stream.tell():,} bytes, not {entry.bytes:,}", hint=_COPY_AGAIN
            )
        with self._readable(entry):
            file = pq.ParquetFile(stream, pre_buffer=False, page_checksum_verification=True)
        if file.metadata.num_rows != entry.rows:
            raise CorpusError(
                f"{where} is damaged: it has {file.metadata.num_rows:,} rows, not {entry.rows:,}", hint=_COPY_AGAIN
            )
        return file

    @contextmanager
    def _readable(self, entry: ShardFile) -> Iterator[None]:
        """CorpusError where a remote shard turns out damaged; a local one was compared with its SHA-256."""
        try:
            yield
        except (pa.ArrowException, OSError) as error:
            if not self.is_remote:
                raise
            where = f"{shown(self.folder)}/{entry.file}"
            raise CorpusError(f"{where} is damaged ({error})", hint=_COPY_AGAIN) from error
