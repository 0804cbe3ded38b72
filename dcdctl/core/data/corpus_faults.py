"""What is wrong with the rows of a corpus whose files are as they were written: counts, ids, images and the
fingerprint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dcdctl.core import files
from dcdctl.core.data import images
from dcdctl.core.data.corpus import CORPUS_FILE, Corpus
from dcdctl.core.data.shards import CorpusRow, fingerprint_of, read_shard
from dcdctl.core.progress import Advance


def find_faults(corpus: Corpus, entry: Mapping[str, Any], advance: Advance) -> Iterator[str]:
    """What is wrong with the rows of a whole split whose shards have the right checksums; `entry` is that of the split
    in corpus.json.

    Every image is decoded, ids and captions are counted, and the fingerprint is computed again.
    """
    where = f"split {corpus.split} of {files.shown(corpus.folder)}"
    digests: list[bytes] = []
    ids: set[str] = set()
    num_captions = 0
    for shard in range(corpus.num_shards):
        for row in read_shard(corpus.shard_path(shard)):
            digests.append(row.digest())
            num_captions += len(row.captions)
            yield from (f"image {row.image_id!r} of {where} {fault}" for fault in _row_faults(row))
            if row.image_id in ids:
                yield f"image {row.image_id!r} of {where} is there twice"
            ids.add(row.image_id)
            advance(1)
    for what, found, expected in (
        ("images", len(digests), entry["images"]),
        ("captions", num_captions, entry["captions"]),
        ("fingerprint", fingerprint_of(digests), entry["fingerprint"]),
    ):
        if found != expected:
            yield f"{where}: {CORPUS_FILE} has {what} {expected}, and its rows have {found}"


def _row_faults(row: CorpusRow) -> Iterator[str]:
    if not row.captions:
        yield "has no caption"
    if len(row.caption_ids) not in (0, len(row.captions)):
        yield f"has {len(row.captions)} captions and {len(row.caption_ids)} caption ids"
    try:
        size = images.decode_image(row.data).size
    except images.ImageError as error:
        yield f"cannot be decoded: {error}"
        return
    if size != (row.width, row.height):
        yield f"is {size[0]} x {size[1]} pixels, and its row says {row.width} x {row.height}"
