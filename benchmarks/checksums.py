"""What it costs to compare checksums: opening and first reading of a corpus, a teacher cache, features and an image
index.

    OMP_NUM_THREADS=1 python benchmarks/checksums.py [--megabytes 300] [--rows 1000000] [--dim 256] [--graph]
        [--rounds 5]

Each artifact has about that many megabytes of random content, the index that many rows of vectors. Opening and one
reading of everything are timed in one process that forgets the files in between, by turns with and without the
comparison, so other work slows both alike. The index is searched for one query; `--graph` adds graphs of the usual size
over its rows, built with less care than usual, which takes minutes. The files are in the system's cache. Times are
processor seconds of this process, as medians of the rounds. Prints one JSON line per artifact.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from dcdctl.core import artifacts, config
from dcdctl.core.artifacts import Build, Kind, seal_of
from dcdctl.core.data import Corpus
from dcdctl.core.data.shards import CorpusRow, shard_name, write_shard
from dcdctl.core.scoring import features, open_or_build
from dcdctl.core.search import Index, commit, part_files, storage
from dcdctl.core.search.config import IndexConfig
from dcdctl.core.search.part_files import ROWS_PER_PART, SourceImage
from dcdctl.core.search.storage import Listed
from dcdctl.core.teacher import cache_format, read_cache

IMAGE_BYTES = 50_000
RNG = np.random.default_rng(0)


def main() -> None:
    parser = argparse.ArgumentParser()
    for name, default in (("megabytes", 300), ("rows", 1_000_000), ("dim", 256), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--graph", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        num_bytes = options.megabytes * 10**6
        corpus = make_corpus(folder / "corpus", num_bytes)
        kinds = {
            "corpus": (lambda: Corpus.open(folder / "corpus", "train"), read_corpus),
            "cache": make_cache(folder / "cache", num_bytes),
            "features": make_features(folder / "features", corpus, num_bytes),
            "index": make_index(folder / "index", options.rows, options.dim, has_graph=options.graph),
        }
        for kind, (open_artifact, read) in kinds.items():
            size = sum(path.stat().st_size for path in (folder / kind).rglob("*") if path.is_file())
            line = {"kind": kind, "megabytes": round(size / 1e6), **measure(open_artifact, read, options.rounds)}
            sys.stdout.write(json.dumps({**vars(options), **line} if kind == "index" else line) + "\n")


def measure(open_artifact: Callable[[], Any], read: Callable[[Any], object], rounds: int) -> dict[str, float]:
    """Processor seconds of opening and of reading, with and without the comparison of checksums."""
    seconds: dict[str, list[float]] = {}
    for _ in range(rounds):
        for label, block in (("without", not_compared), ("with", compared)):
            with block():
                started = time.process_time()
                opened = open_artifact()
                middle = time.process_time()
                read(opened)
                seconds.setdefault(f"open_{label}_s", []).append(middle - started)
                seconds.setdefault(f"read_{label}_s", []).append(time.process_time() - middle)
    return {name: round(statistics.median(values), 4) for name, values in seconds.items()}


@contextmanager
def compared() -> Iterator[None]:
    """A block in which no file is known yet."""
    artifacts._DIGESTS.clear()
    features._mapped.cache_clear()
    part_files._WELL_LAID.clear()
    part_files._FINITE.clear()
    yield


@contextmanager
def not_compared() -> Iterator[None]:
    """A block in which neither checksums nor the layout and the numbers of an index are compared."""
    kept = Kind.checked, part_files._check_layout, part_files._all_finite
    replaced: Any = lambda self, path, sha256: path, lambda *_: None, lambda _: True
    Kind.checked, part_files._check_layout, part_files._all_finite = replaced  # type: ignore[method-assign]
    try:
        with compared():
            yield
    finally:
        Kind.checked, part_files._check_layout, part_files._all_finite = kept  # type: ignore[method-assign]


def make_corpus(folder: Path, num_bytes: int) -> Corpus:
    count = num_bytes // IMAGE_BYTES
    shards = []
    for number, first in enumerate(range(0, count, 1000)):
        path = folder / shard_name("train", number, -(-count // 1000))
        images = range(first, min(first + 1000, count))
        list(write_shard(path, (row_of(image) for image in images)))
        shards.append({"file": path.name, **seal_of(path, rows=len(images))})
    split = {"images": count, "captions": 5 * count, "fingerprint": "f" * 64, "shards": shards}
    artifacts.write_document(folder / "corpus.json", {"format": 2, "name": "random", "splits": {"train": split}})
    return Corpus.open(folder, "train")


def row_of(image: int) -> CorpusRow:
    captions = [f"caption {k} of the image {image}, as long as the captions of photos are" for k in range(5)]
    numbers = range(5 * image, 5 * image + 5)
    data = RNG.bytes(IMAGE_BYTES)
    return CorpusRow(
        image_id=str(image), path=f"{image}.jpg", data=data, width=1, height=1, captions=captions, caption_ids=numbers
    )


def read_corpus(corpus: Corpus) -> None:
    """The captions, and the bytes of every image without decoding it."""
    for image in range(corpus.num_images):
        corpus.image_bytes(image)
    assert len(corpus.captions) == 5 * corpus.num_images


def make_cache(folder: Path, num_bytes: int) -> tuple[Callable[[], Any], Callable[[Any], object]]:
    per_image = 400
    num_images = num_bytes // (9 * per_image)
    plan = {"format": cache_format.CACHE.format, "corpus": "f" * 64, "images": num_images, "captions": 5 * num_images}
    plan |= {
        "images_per_shard": cache_format.IMAGES_PER_SHARD,
        "candidates": {"absolute_margin": None, "relative_margin": None},
    }
    build, parts = Build(folder, plan, cache_format.CACHE), {}
    folder.mkdir()
    build.note()
    for shard, images in enumerate(cache_format.shards_of(plan)):
        image = np.repeat(np.arange(images.start, images.stop), per_image)
        text = np.sort(RNG.integers(0, 5 * num_images, (len(images), per_image)), axis=1).ravel()
        score, role = RNG.normal(size=len(image)).astype(np.float32), np.full(len(image), 2, dtype=np.uint8)
        path = folder / cache_format.pairs_name(shard)
        cache_format.write_pairs(path, cache_format.Pairs(image, text, score, role))
        parts[path.name] = seal_of(path, pairs=len(image))
    build.seal({"format": cache_format.CACHE.format, "dropped": {}, "files": parts}, parts)
    return lambda: read_cache(folder), lambda cache: cache.score_P


def make_features(root: Path, corpus: Corpus, num_bytes: int) -> tuple[Callable[[], Any], Callable[[Any], object]]:
    """Features of as many images of the corpus as fit, with 50 tokens of width 768."""
    subset = corpus.subset(num_bytes // (2 * 50 * 768))
    plan = {
        "format": features.FEATURES.format,
        "corpus": subset.fingerprint,
        "encoders": "e" * 64,
        "image_tokens": 50,
        "image_width": 768,
    }
    build, parts = Build(root / f"train-{subset.fingerprint[:12]}-{'e' * 12}", plan, features.FEATURES), {}
    build.folder.mkdir(parents=True)
    build.note()
    for part, first in enumerate(range(0, subset.num_images, features.IMAGES_PER_FILE)):
        path = build.folder / f"images-{part:05d}.npy"
        np.save(
            path,
            RNG.normal(size=(min(features.IMAGES_PER_FILE, subset.num_images - first), 50, 768)).astype(np.float16),
        )
        parts[path.name] = seal_of(path)
    build.seal({"format": features.FEATURES.format, "files": parts}, parts)
    model: Any = SimpleNamespace(encoders=SimpleNamespace(digest="e" * 64))
    return lambda: open_or_build(root, subset, model), lambda stored: stored.images(range(subset.num_images))


def make_index(
    folder: Path, num_rows: int, dim: int, *, has_graph: bool
) -> tuple[Callable[[], Any], Callable[[Any], object]]:
    parts = []
    for number, first in enumerate(range(0, num_rows, ROWS_PER_PART)):
        vectors = RNG.normal(size=(min(ROWS_PER_PART, num_rows - first), dim)).astype(np.float16)
        names = [f"{row // 1000:05d}/{row:09d}.jpg" for row in range(first, first + len(vectors))]
        path = folder / "vectors" / part_files.part_name(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        part_files.write_part(path, [SourceImage(image_id=name, path=name) for name in names], vectors)
        parts.append(asdict(part_files.describe_part(path, 0, dim)[0]))
    settings = config.build(
        IndexConfig, {"kind": "hnsw", "hnsw": {"build_width": 8}} if has_graph else {"kind": "flat"}
    )
    nothing = asdict(Listed())
    document = {
        "format": storage.INDEX.format,
        "generation": 1,
        "model": {"kind": "dual", "dim": dim, "fingerprint": "a" * 64},
    }
    document |= {"precision": "float32", "settings": config.to_table(settings), "skipped": nothing, "removed": nothing}
    document |= {
        "sources": [{"kind": "folder", "path": str(folder), "split": None, "fingerprint": None}],
        "parts": parts,
        "segments": [],
    }
    commit.commit(folder, document)
    query = RNG.normal(size=(1, dim))
    return lambda: Index.open(folder), lambda index: index.nearest(query, 10)


if __name__ == "__main__":
    main()
