"""The files of a teacher cache: their names, the columns of a shard of pairs, and how a shard is written and read.

    CACHE/plan.json               what is scored, written first: fingerprints, candidates, shard boundaries
    CACHE/items.parquet           digests of every image and caption, by which a larger corpus finds its own again
    CACHE/planned-00000.parquet   pairs of a range of images before scoring; removed when the cache is finished
    CACHE/dropped.json            number of rejected candidates, by reason; removed when the cache is finished
    CACHE/asked-00000.bin         scores of its first batches (`kept_scores`); removed when the shard is finished
    CACHE/pairs-00000.parquet     the same pairs, scored
    CACHE/cache.json              completion marker, written last: counts, versions, size and SHA-256 of each file

A pair has image and text (int32, positions in the corpus; a shard is sorted by them), score (float32, the teacher's raw
logit) and role (uint8, a sum of POSITIVE, TEXT_CANDIDATE and IMAGE_CANDIDATE of `candidates`).

A planned pair has a score too, where an extended cache or a file of scores (`external_scores`) gave one; else it is
NaN.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dcdctl.core.artifacts import Build, Kind
from dcdctl.core.data import Flags, Indices, Scores

ITEMS_FILE, DROPPED_FILE = "items.parquet", "dropped.json"
TEACHER_NAME, SCORES_FROM, SCORES_DIGEST, NUM_GIVEN = "teacher_name", "scores_from", "scores_sha256", "given_scores"
"""Notes in the plan of a cache whose scores come from elsewhere: its teacher, what the scores are if no model's, a
digest of all scores, and, before that, their number."""


CACHE = Kind(
    name="teacher cache",
    format=3,
    seal_file="cache.json",
    files=("pairs-*.parquet", "planned-*.parquet", "asked-*.bin", ITEMS_FILE, DROPPED_FILE),
    make="make one with `dcdctl cache-teacher`",
    make_again="run `dcdctl cache-teacher` again with the same options",
)
TEXTS = Kind(
    name="text cache",
    format=2,
    seal_file="texts.json",
    files=("texts-*.parquet",),
    make="make one with `dcdctl cache-texts`",
    make_again="run `dcdctl cache-texts` again with the same options",
)
"""The cache of text vectors (`text_cache`)."""
IMAGES_PER_SHARD = 256
"""Images in a shard, which one process scores and writes atomically."""
SCHEMA = pa.schema([("image", pa.int32()), ("text", pa.int32()), ("score", pa.float32()), ("role", pa.uint8())])
# Sorted positions differ by little, and the high bytes of scores repeat; with zstd a pair took 5.4 of 13 bytes on a
# trial corpus.
_ENCODINGS = {
    "image": "DELTA_BINARY_PACKED",
    "text": "DELTA_BINARY_PACKED",
    "score": "BYTE_STREAM_SPLIT",
    "role": "PLAIN",
}


@dataclass(frozen=True)
class Pairs:
    """Pairs sorted by image and text; the score of an unscored pair is NaN."""

    image: Indices
    text: Indices
    score: Scores
    role: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.image)

    def at(self, where: slice | Flags) -> Pairs:
        """Some of the pairs."""
        return Pairs(self.image[where], self.text[where], self.score[where], self.role[where])


def shards_of(plan: dict[str, Any]) -> list[range]:
    """The images of each shard."""
    num_images, size = plan["images"], plan["images_per_shard"]
    return [range(first, min(first + size, num_images)) for first in range(0, num_images, size)]


def pairs_name(shard: int) -> str:
    return f"pairs-{shard:05d}.parquet"


def planned_name(shard: int) -> str:
    return f"planned-{shard:05d}.parquet"


def asked_name(shard: int) -> str:
    return f"asked-{shard:05d}.bin"


def read_shard(build: Build, shard: int) -> Pairs:
    """The pairs of a shard of an unfinished cache, scored or planned."""
    name = pairs_name(shard)
    return read_pairs(build.written(planned_name(shard) if build.missing([name]) else name))


def write_pairs(path: Path, pairs: Pairs) -> None:
    """Write a shard."""
    columns = {
        "image": pairs.image.astype(np.int32),
        "text": pairs.text.astype(np.int32),
        "score": pairs.score.astype(np.float32),
        "role": pairs.role.astype(np.uint8),
    }
    table = pa.table(columns, schema=SCHEMA)
    # pyarrow accepts encodings only for columns without a dictionary.
    pq.write_table(table, path, compression="zstd", use_dictionary=False, column_encoding=_ENCODINGS)


def read_pairs(path: Path) -> Pairs:
    """The pairs of a shard."""
    with pq.ParquetFile(path) as file:  # a third of the time of `read_table` for a small shard
        table = file.read()
    image, text, score, role = (table[name].to_numpy() for name in SCHEMA.names)
    # Products of both, such as the keys of pairs, do not fit into int32.
    return Pairs(image.astype(np.int64), text.astype(np.int64), score, role)
