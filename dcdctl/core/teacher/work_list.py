"""The planned pairs of a cache as Parquet files that any data engine splits and scores.

    CACHE/work/work-00000.parquet   the pairs of a range of images that have no score yet; no file for a range in
        which none is missing

A row is a pair: image_id (string) and caption_id (int64) of the corpus, image_index and caption_index (int32, positions
in the split), and if asked for caption (string), image_path (string, as in the source) and image_bytes (binary, the
image file). The rows of an image follow each other, so that a scorer can encode it once. The Parquet metadata have the
fingerprint of the corpus.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dcdctl.core import files
from dcdctl.core.artifacts import Build
from dcdctl.core.data import CORPUS_FACT, FACTS, Corpus
from dcdctl.core.errors import ConfigError
from dcdctl.core.progress import Track
from dcdctl.core.teacher.cache_format import WORK_FOLDER, Pairs, read_shard, shards_of

Extra = Literal["captions", "paths", "bytes"]
"""What is joined to the ids: the text of the caption, the path of the image in its source, the bytes of the image
file."""
IMAGES_PER_GROUP = 16
"""Images in a row group: what a reader of image bytes has in memory at once."""


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


def write_work_list(build: Build, corpus: Corpus, extras: Sequence[Extra], track: Track) -> tuple[int, int]:
    """Write the pairs of a planned cache that have no score yet, and return the numbers of pairs and files."""
    folder, shards = build.folder / WORK_FOLDER, shards_of(build.plan)
    folder.mkdir(exist_ok=True)
    files.remove_partials(folder)
    # Once for all files, because a list of millions of texts takes seconds to convert.
    columns = {
        "image_id": pa.array(corpus.image_ids, pa.string()),
        "caption_id": pa.array(corpus.caption_ids),
        "image_index": pa.array(range(corpus.num_images), pa.int32()),
        "caption_index": pa.array(range(corpus.num_captions), pa.int32()),
    }
    if "captions" in extras:
        columns["caption"] = pa.array(corpus.captions, pa.string())
    if "paths" in extras:
        columns["image_path"] = pa.array(corpus.image_paths, pa.string())
    num_pairs = num_files = 0
    with track("write the work list", total=len(shards), unit="files") as advance:
        for shard in range(len(shards)):
            pairs, path = read_shard(build, shard), folder / f"work-{shard:05d}.parquet"
            pairs = pairs.at(np.isnan(pairs.score))
            if len(pairs):
                _write(path, pairs, columns, corpus, with_bytes="bytes" in extras)
                num_pairs, num_files = num_pairs + len(pairs), num_files + 1
            else:
                path.unlink(missing_ok=True)
            advance(1)
    return num_pairs, num_files


def _write(path: Path, pairs: Pairs, columns: Mapping[str, pa.Array], corpus: Corpus, *, with_bytes: bool) -> None:
    """Write the pairs of a shard: the columns of their images and captions, and the images."""
    with files.atomic_path(path) as partial:
        # Groups end between images, so that each image is in one group.
        starts = np.flatnonzero(np.diff(pairs.image, prepend=-1))
        bounds = itertools.pairwise([*starts[::IMAGES_PER_GROUP].tolist(), len(pairs)])
        groups = (_table(pairs.at(slice(*bound)), columns, corpus if with_bytes else None) for bound in bounds)
        first = next(groups)
        schema = first.schema.with_metadata({FACTS: json.dumps({CORPUS_FACT: corpus.fingerprint})})
        # Without a limit, so that the bytes of an image are stored once per row group and not once per pair.
        # With checksums of the pages, because no document lists these files.
        with pq.ParquetWriter(
            partial, schema, compression="zstd", dictionary_pagesize_limit=2**30, write_page_checksum=True
        ) as writer:
            # One group in memory at a time: with bytes, all of them may not fit.
            for group in itertools.chain([first], groups):
                writer.write_table(group, row_group_size=len(group))


def _table(pairs: Pairs, columns: Mapping[str, pa.Array], corpus: Corpus | None) -> pa.Table:
    index = {"image": pa.array(pairs.image), "caption": pa.array(pairs.text)}
    rows = {name: column.take(index[name.partition("_")[0]]) for name, column in columns.items()}
    if corpus is not None:
        # A dictionary, so that the bytes of an image are in memory once and not once per pair.
        different, index_P = np.unique(pairs.image, return_inverse=True)
        data = pa.array([corpus.image_bytes(image) for image in different.tolist()], pa.binary())
        rows["image_bytes"] = pa.DictionaryArray.from_arrays(pa.array(index_P, pa.int32()), data)
    return pa.table(rows)
