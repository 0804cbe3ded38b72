"""The planned pairs of a cache as Parquet files that any data engine splits and scores.

    CACHE/work/work-00000.parquet   the pairs of a range of images that have no score yet; no file for a range in
        which none is missing

A row is a pair: image_id (string) and caption_id (int64) of the corpus, image_index and caption_index (int32, positions
in the split), and if asked for caption (string), image_path (string, as in the source) and image_bytes (binary, the
image file). The rows of an image follow each other, so that a scorer can encode it once.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dcdctl.core import artifacts, files
from dcdctl.core.artifacts import Build
from dcdctl.core.data import Corpus
from dcdctl.core.errors import ConfigError
from dcdctl.core.progress import Track, silent
from dcdctl.core.teacher.cache_format import WORK_FOLDER, Pairs, pairs_name, planned_name, read_pairs, shards_of

Extra = Literal["captions", "paths", "bytes"]
"""What is joined to the ids: the text of the caption, the path of the image in its source, the bytes of the image
file."""
IMAGES_PER_GROUP = 16
"""Images in a row group: what a reader of image bytes has in memory at once."""
_METADATA = b"dcdctl"


@dataclass(frozen=True, kw_only=True)
class WorkList:
    """A written work list."""

    folder: Path
    num_pairs: int
    num_files: int


def parse_extras(text: str | None) -> tuple[Extra, ...]:
    """The parts of `captions,paths`; ConfigError for another word.

    >>> parse_extras("captions,bytes"), parse_extras(None)
    (('captions', 'bytes'), ())
    """
    words = [word.strip() for word in (text or "").split(",") if word.strip()]
    known: tuple[Extra, ...] = get_args(Extra)
    if unknown := [word for word in words if word not in known]:
        raise ConfigError(
            f"--with takes {', '.join(known)}, got {unknown[0]!r}", hint="for example --with captions,paths"
        )
    return tuple(extra for extra in known if extra in words)


def write_work_list(build: Build, corpus: Corpus, extras: Sequence[Extra] = (), track: Track = silent) -> WorkList:
    """Write the pairs of a planned cache that have no score yet; a file that is there already is kept if it has the
    same rows."""
    folder, shards = build.folder / WORK_FOLDER, shards_of(build.plan)
    folder.mkdir(exist_ok=True)
    files.remove_partials(folder)
    num_pairs = num_files = 0
    writer = _Writer(corpus, extras)
    with track("write the work list", total=len(shards), unit="files") as advance:
        for shard in range(len(shards)):
            pairs, path = _unscored(build, shard), folder / f"work-{shard:05d}.parquet"
            if len(pairs):
                writer.write(path, pairs)
                num_pairs, num_files = num_pairs + len(pairs), num_files + 1
            else:
                path.unlink(missing_ok=True)
            advance(1)
    return WorkList(folder=folder, num_pairs=num_pairs, num_files=num_files)


def _unscored(build: Build, shard: int) -> Pairs:
    """The pairs of a shard without a score."""
    is_whole = not build.missing([pairs_name(shard)])
    pairs = read_pairs(build.written(pairs_name(shard) if is_whole else planned_name(shard)))
    return pairs.at(np.isnan(pairs.score))


@dataclass(frozen=True)
class _Writer:
    """Writes files of a work list."""

    corpus: Corpus
    extras: Sequence[Extra]

    @cached_property
    def _image_columns(self) -> dict[str, pa.Array]:
        columns = {"image_id": pa.array(self.corpus.image_ids, pa.string())}
        return columns | (
            {"image_path": pa.array(self.corpus.image_paths, pa.string())} if "paths" in self.extras else {}
        )

    @cached_property
    def _caption_columns(self) -> dict[str, pa.Array]:
        columns = {"caption_id": pa.array(self.corpus.caption_ids)}
        return columns | ({"caption": pa.array(self.corpus.captions, pa.string())} if "captions" in self.extras else {})

    def write(self, path: Path, pairs: Pairs) -> None:
        """Write the pairs of a shard, unless the file holds these rows already."""
        columns = [np.asarray(column, dtype="<i8").tobytes() for column in (pairs.image, pairs.text)]
        digest = hashlib.sha256(b"".join(columns)).hexdigest()
        content = {"corpus": self.corpus.fingerprint, "with": list(self.extras), "pairs": digest}
        if _content_of(path) == content:
            return
        with files.atomic_path(path) as partial:
            groups = self._groups(pairs)
            first = next(groups)
            schema = first.schema.with_metadata({_METADATA: json.dumps(content).encode()})
            # Without a limit, so that the bytes of an image are stored once per row group and not once per pair.
            with pq.ParquetWriter(partial, schema, compression="zstd", dictionary_pagesize_limit=2**30) as writer:
                for group in (first, *groups):
                    writer.write_table(
                        group.replace_schema_metadata(schema.metadata), row_group_size=max(1, len(group))
                    )

    def _groups(self, pairs: Pairs) -> Iterator[pa.Table]:
        """Tables of the pairs of some images each."""
        starts = np.flatnonzero(np.diff(pairs.image, prepend=-1))
        bounds = [*starts[::IMAGES_PER_GROUP].tolist(), len(pairs)]
        for first, end in itertools.pairwise(bounds):
            yield self._table(pairs.image[first:end], pairs.text[first:end])

    def _table(self, image_P: Any, text_P: Any) -> pa.Table:
        columns: dict[str, Any] = {
            **{name: column.take(pa.array(image_P)) for name, column in self._image_columns.items()},
            **{name: column.take(pa.array(text_P)) for name, column in self._caption_columns.items()},
            "image_index": pa.array(image_P, pa.int32()),
            "caption_index": pa.array(text_P, pa.int32()),
        }
        if "bytes" in self.extras:
            images, index_P = np.unique(image_P, return_inverse=True)
            data = pa.array([self.corpus.image_bytes(int(image)) for image in images], pa.binary())
            columns["image_bytes"] = pa.DictionaryArray.from_arrays(pa.array(index_P, pa.int32()), data)
        order = ("image_id", "caption_id", "image_index", "caption_index", "caption", "image_path", "image_bytes")
        return pa.table({name: columns[name] for name in order if name in columns})


def _content_of(path: Path) -> artifacts.Document | None:
    """What a file of a work list holds, by its metadata; None if it is not there or is something else."""
    try:
        content = json.loads((pq.read_schema(path).metadata or {})[_METADATA])
    except (OSError, pa.ArrowException, KeyError, ValueError):
        return None
    return content if isinstance(content, dict) else None
