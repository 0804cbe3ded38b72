"""Taking the scores of one teacher cache over into another: for more negatives, another miner, or a corpus with new pictures.

Pictures and captions are found again by what they are, not by where they stand: a digest of the picture's bytes, of the caption's text.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dcdctl.core import files, teacher_cache
from dcdctl.core.cache_files import Index, Pairs, check_content, expect
from dcdctl.core.corpus import Corpus
from dcdctl.core.progress import Track, silent

_SCHEMA = pa.schema([("image", pa.binary(16)), ("captions", pa.list_(pa.binary(8)))])
SAME = ("image_size_px", "max_text_len", "teacher", "precision", "features")
"""What two caches must have in common for a score of one to be a score of the other."""


def write_items(path: Path, corpus: Corpus, track: Track = silent) -> None:
    """Write the digest of each picture and of each of its captions."""
    images, captions = [], []
    with track("read pictures", total=corpus.num_images, unit="images") as advance:
        for image in range(corpus.num_images):
            images.append(_digest(corpus.image_bytes(image), 16))
            captions.append([_digest(corpus.captions[text].encode(), 8) for text in corpus.captions_of(image)])
            advance(1)
    with files.atomic_path(path) as partial:
        pq.write_table(pa.table({"image": images, "captions": captions}, schema=_SCHEMA), partial, compression="none", use_dictionary=False)


def taken_over(folder: Path, corpus: Corpus, plan: dict[str, Any]) -> Pairs:
    """The scored pairs of a finished cache whose picture and caption are in this corpus, at their places in it, sorted.

    StaleError if the cache is of another teacher, or was scored in another way.
    """
    cache = teacher_cache.read(folder)
    for key in SAME:
        expect(folder, key, cache.plan[key], plan[key])
    if cache.plan["corpus"] == plan["corpus"]:
        return Pairs(cache.image_P, cache.text_P.astype(np.int64), cache.score_P, cache.role_P)
    check_content(folder, "items.parquet", cache.whole["files"]["items.parquet"])
    new_image, new_text = _places(folder / "items.parquet", corpus)
    image, text = new_image[cache.image_P], new_text[cache.text_P]
    order = np.lexsort((text, image))
    order = order[(image[order] >= 0) & (text[order] >= 0)]
    return Pairs(image[order], text[order], cache.score_P[order], cache.role_P[order])


def merged(pairs: Pairs, old: Pairs, num_texts: int) -> Pairs:
    """All pairs of both, each once, with the old scores and the roles of both."""
    new_keys, old_keys = (part.image * num_texts + part.text for part in (pairs, old))
    keys = np.union1d(new_keys, old_keys)
    score, role = np.full(len(keys), np.nan, dtype=np.float32), np.zeros(len(keys), dtype=np.uint8)
    for part, part_keys in ((pairs, new_keys), (old, old_keys)):
        role[np.searchsorted(keys, part_keys)] |= part.role
    score[np.searchsorted(keys, old_keys)] = old.score
    return Pairs(keys // num_texts, keys % num_texts, score, role)


def _places(path: Path, corpus: Corpus) -> tuple[Index, Index]:
    """For each old image and each old caption its index in the corpus, -1 where it is not in it."""
    images = {_digest(corpus.image_bytes(image), 16): image for image in reversed(range(corpus.num_images))}
    table = pq.read_table(path)
    new_image, new_text = [], []
    for digest, captions in zip(table["image"].to_pylist(), table["captions"].to_pylist(), strict=True):
        image = images.get(digest, -1)
        new_image.append(image)
        own = {} if image < 0 else {_digest(corpus.captions[text].encode(), 8): text for text in reversed(corpus.captions_of(image))}
        new_text += [own.get(caption, -1) for caption in captions]
    return np.array(new_image, dtype=np.int64), np.array(new_text, dtype=np.int64)


def _digest(data: bytes, size: int) -> bytes:
    return hashlib.blake2b(data, digest_size=size).digest()
