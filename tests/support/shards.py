"""Shards to stream, as tars and as Parquet files with the same samples."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from image_files import png

from dcdctl.core.data import ShardStream, StreamConfig, open_shards

Row = tuple[bytes, Sequence[str]]
"""An image file and its captions."""


def rows_of(sizes: Sequence[int], num_captions: int = 1) -> list[list[Row]]:
    """Samples of shards of these sizes; every image and every caption occurs once."""
    return [
        [
            (png(1000 * shard + row, (12, 10)), [f"a thing {shard} {row} {k}" for k in range(num_captions)])
            for row in range(size)
        ]
        for shard, size in enumerate(sizes)
    ]


def with_bad_rows(shards: Sequence[Sequence[Row]]) -> list[list[Row]]:
    """The samples with the first image of each shard damaged, and without the captions of the fifth."""
    return [[(rows[0][0][:60], rows[0][1]), *rows[1:4], (rows[4][0], []), *rows[5:]] for rows in shards]


def tar_of(rows: Sequence[Row], key: str = "s") -> bytes:
    """A WebDataset tar of samples."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for number, (image, captions) in enumerate(rows):
            for suffix, data in (("png", image), ("txt", "\n".join(captions).encode())):
                add(archive, f"{key}{number:04}.{suffix}", data)
    return stream.getvalue()


def add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    """Add a file to a tar."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))


def parquet_of(rows: Sequence[Row], **options: Any) -> bytes:
    """A Parquet file of samples, in row groups of five."""
    columns = {
        "image": [{"bytes": image, "path": None} for image, _ in rows],
        "captions": [list(captions) for _, captions in rows],
    }
    stream = io.BytesIO()
    pq.write_table(pa.table(columns), stream, row_group_size=5, **options)
    return stream.getvalue()


def write_shards(folder: Path, shards: Sequence[Sequence[Row]], ending: str = ".tar") -> list[str]:
    """The shards as files 0.tar, 1.tar, ... of a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number}{ending}" for number in range(len(shards))]
    for path, rows in zip(paths, shards, strict=True):
        path.write_bytes(tar_of(rows) if ending == ".tar" else parquet_of(rows))
    return [str(path) for path in paths]


def stream_of(places: Sequence[str], *, window: int = 12, batch: int = 4, seed: int = 0, **config: Any) -> ShardStream:
    """A stream of these shards."""
    return ShardStream(open_shards(places), StreamConfig(window=window, **config), batch, seed)


def captions_of(stream: ShardStream, steps: range) -> list[list[str]]:
    """The first caption of each sample in the batches of these steps."""
    source = stream.read(steps.start)
    batches = [next(source) for _ in steps]
    source.close()
    return [[sample.captions[0] for sample in batch] for batch in batches]
