"""The samples of one shard of a stream, in order: a WebDataset tar or a Parquet file with images, read from start to
end."""

from __future__ import annotations

import itertools
import tarfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dcdctl.core.data import urls
from dcdctl.core.data.file_systems import READ_BYTES
from dcdctl.core.data.images import (
    PARQUET_BATCH_ROWS,
    PARQUET_BUFFER_BYTES,
    RowError,
    check_tar_end,
    is_macos_metadata,
    reject_large_file,
    why_refused,
)
from dcdctl.core.data.readers.parquet import ParquetSource, captions_of_row, find_columns, image_bytes_of_row, read_rows
from dcdctl.core.data.readers.webdataset import captions_of, image_suffix, key_and_suffix, require_image
from dcdctl.core.errors import InputError
from dcdctl.core.places import shown, url_of

FORMATS = (".tar", ".parquet")
"""Endings of the names of shards."""
_CUT_OFF = "a download may have been cut off"
_EMPTY = "download it again, or leave it out"


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamShard:
    """A file of a stream, as it was when the stream was opened."""

    place: str
    """A local path or a URL."""
    size: int
    version: str
    """The time of the last change of a local file; what a server says of a remote one."""

    @property
    def name(self) -> str:
        """The place without user, password and query."""
        return shown(self.place)

    @property
    def is_tar(self) -> bool:
        """Whether it is a tar, whose samples are counted only by reading it."""
        return self.name.endswith(".tar")


@dataclass(frozen=True, slots=True)
class StreamSample:
    """An image file with its captions, not yet decoded."""

    shard: str
    key: str
    """What the sample is called in its shard: the WebDataset key, or the row."""
    image: bytes = b""
    captions: list[str] = field(default_factory=list)
    fault: str = ""
    """Why the sample cannot be used; empty if it can."""

    @property
    def where(self) -> str:
        """The shard and the sample, for messages."""
        return f"{self.shard} {self.key}"


def open_shard(place: str) -> StreamShard:
    """A shard at its current size and version. InputError or SourceError if there is none, or if its name has no known
    ending."""
    if not shown(place).endswith(FORMATS):
        raise InputError(f"{shown(place)} is not a shard", hint=f"expected names that end with {' or '.join(FORMATS)}")
    size, version = urls.size_and_version(place)
    return StreamShard(place=place, size=size, version=version)


def count_rows(shard: StreamShard) -> int:
    """The rows of a Parquet shard, from its footer."""
    with _open_parquet(shard) as file:
        return int(file.metadata.num_rows)


def read_samples(shard: StreamShard, columns: ParquetSource, start: int = 0) -> Iterator[StreamSample]:
    """The samples of a shard from number `start` on. `columns` names the columns of a Parquet file.

    InputError if the shard is missing, empty, cut off or damaged, SourceError if it cannot be fetched.
    """
    if shard.is_tar:
        return itertools.islice(_tar_samples(shard), start, None)
    return _parquet_samples(shard, columns, start)


def _tar_samples(shard: StreamShard) -> Iterator[StreamSample]:
    """The samples of a tar: consecutive files with the same key."""
    sample = _TarSample(shard.name, "")
    with closing(urls.open_stream(shard.place)) as file:
        try:
            # "r:" refuses compressed tars.
            with tarfile.open(fileobj=file, mode="r:") as archive:
                while (info := archive.next()) is not None:
                    # tarfile keeps the header of every member.
                    archive.members.clear()  # type: ignore[attr-defined]
                    if info.isdir() or is_macos_metadata(info.name):
                        continue
                    key, suffix = key_and_suffix(info.name)
                    if key != sample.key:
                        if sample.parts:
                            yield sample.finish()
                        sample = _TarSample(shard.name, key)
                    sample.add(info, suffix, file)
                # Before the last sample, whose captions may be missing because the file was cut off. A tar ends with
                # zeros, but tarfile also takes the end of the file for its end.
                check_tar_end(file, archive.offset, shard.name)
                if archive.offset >= shard.size:
                    raise InputError(f"the tar {shard.name} is incomplete at byte {archive.offset:,}", hint=_CUT_OFF)
                if not sample.parts:
                    raise InputError(f"{shard.name} has no samples", hint=_EMPTY)
                yield sample.finish()
        except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
            raise InputError(
                f"{shard.name} cannot be read as a tar ({error})", hint=f"expected an uncompressed tar; {_CUT_OFF}"
            ) from error


class _TarSample:
    """The files with one key, as they are read."""

    def __init__(self, shard: str, key: str) -> None:
        self.shard, self.key = shard, key
        self.parts: dict[str, bytes] = {}
        self.refused = ""

    def add(self, info: tarfile.TarInfo, suffix: str, file: Any) -> None:
        """Read a member if it is an image or a caption; InputError if the tar ends inside it."""
        self.parts[suffix] = b""
        if image_suffix([suffix]) is None and suffix not in ("txt", "json"):
            return
        try:
            reject_large_file(info.size)
            if reason := why_refused(info):
                raise RowError(f"{reason} ({info.name})")
        except RowError as error:
            self.refused = str(error)
            return
        file.seek(info.offset_data)
        data = file.read(info.size)
        if len(data) < info.size:
            raise InputError(f"{self.shard} ends inside {info.name}", hint=_CUT_OFF)
        self.parts[suffix] = data

    def finish(self) -> StreamSample:
        """The sample, without a look at the pixels of its image."""
        try:
            if self.refused:
                raise RowError(self.refused)
            image = self.parts[require_image(self.parts)]
            return StreamSample(self.shard, self.key, image, captions_of(self.parts, self.parts.__getitem__))
        except RowError as error:
            return StreamSample(self.shard, self.key, fault=str(error))


@contextmanager
def _open_parquet(shard: StreamShard) -> Iterator[pq.ParquetFile]:
    """The Parquet file of a shard; InputError if it is none, or has no rows."""
    with closing(urls.open_file(shard.place)) as stream:
        is_remote = url_of(shard.place) is not None
        buffer_bytes = READ_BYTES if is_remote else PARQUET_BUFFER_BYTES
        try:
            # pre_buffer would read the columns of a whole row group into memory before the first batch.
            file = pq.ParquetFile(stream, pre_buffer=False, buffer_size=buffer_bytes)
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{shard.name} is not a Parquet file ({error})", hint=_CUT_OFF) from error
        with file:
            if not file.metadata.num_rows:
                raise InputError(f"{shard.name} has no samples", hint=_EMPTY)
            yield file


def _parquet_samples(shard: StreamShard, source: ParquetSource, start: int) -> Iterator[StreamSample]:
    with _open_parquet(shard) as file:
        columns = find_columns(shard.name, file.schema_arrow, source, has_split=False)
        names = list(dict.fromkeys(name.partition(".")[0] for name in (source.image_column, *columns.captions)))
        row = 0
        for group in range(file.num_row_groups):
            num_rows = file.metadata.row_group(group).num_rows
            if row + num_rows > start:
                for value in read_rows(shard.name, file, group, names, PARQUET_BATCH_ROWS):
                    if row >= start:
                        try:
                            image = image_bytes_of_row(value[source.image_column])
                            captions = captions_of_row(value, columns.captions)
                            yield StreamSample(shard.name, f"row {row}", image, captions)
                        except RowError as error:
                            yield StreamSample(shard.name, f"row {row}", fault=str(error))
                    row += 1
            else:
                row += num_rows
