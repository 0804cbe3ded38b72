"""The index of a late-interaction model over drawn scenes: recall, bytes and time of each form of its tokens.

    python benchmarks/late_index.py --model runs/late --work work/late --images 100000

Scenes of the test split are drawn and encoded once, and written and searched as `dcdctl index` and `dcdctl search` do
it. A query is a caption of one of them. recall@10 is the share of the 10 best images by exact MaxSim over all images
that a search finds: over the tokens of that index, and over all float32 tokens. R@1 and R@5 are the shares of captions
whose own image is found. Latencies are of single queries one after another, without the encoder, with the files in the
system's cache; the forms take turns, so that other work on the machine meets all of them. Processor milliseconds are
the sum over the threads, and hardly grow when other work runs. What is in --work is used again. Ends with one JSON
line.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from search import commit, say

from dcdctl.core import config as config_module
from dcdctl.core import devices, models
from dcdctl.core.data.scenes import describe_scenes, draw_scene
from dcdctl.core.search import FolderIndex, ImageSource, StoredTokens, part_files
from dcdctl.core.search import commit as search_commit
from dcdctl.core.search.exact import best_first, encoded, maxsims, token_type
from dcdctl.core.search.index_config import IndexConfig
from dcdctl.core.search.part_files import ROWS_PER_PART, SourceImage
from dcdctl.core.search.storage import IndexDocument, IndexedModel

K, SEED, BATCH, BLOCK = 10, 77, 256, 2000


@torch.inference_mode()
def encode(args: argparse.Namespace) -> tuple[Any, Any, list[int]]:
    """The tokens of the images, I x N x D float32, the queries, Q x L x D, and the image of each query."""
    files = [args.work / f"{name}.npy" for name in ("tokens", "queries", "truth")]
    if not all(path.exists() for path in files):
        model: Any = models.load(args.model)
        scenes = itertools.islice(describe_scenes(SEED, "test", 1), args.images)
        size, tokens, captions = model.preprocess.image_size_px, None, []
        for first in range(0, args.images, BATCH):
            batch = list(itertools.islice(scenes, BATCH))
            captions += [described.statements[0].text for described in batch]
            pixels = model.preprocess.images([draw_scene(described.scene, size) for described in batch])
            found = model.encode_images(pixels).tokens.numpy()
            if tokens is None:
                shape = args.images, *found.shape[1:]
                tokens = np.lib.format.open_memmap(files[0], mode="w+", dtype=np.float32, shape=shape)
            tokens[first : first + len(found)] = found
        truth = np.linspace(0, args.images - 1, args.queries).astype(np.int64)
        queries = model.embed_texts(model.preprocess.texts([captions[row] for row in truth])).numpy()
        np.save(files[1], queries)
        np.save(files[2], truth)
    return np.load(files[0], mmap_mode="r"), np.load(files[1]), np.load(files[2]).tolist()


def pooled(tokens_IND: Any, factor: int) -> Any:
    if factor == 1:
        return tokens_IND
    blocks = (torch.from_numpy(tokens_IND[first : first + BLOCK].copy()) for first in range(0, len(tokens_IND), BLOCK))
    return np.concatenate([models.pool_tokens(block, factor).numpy() for block in blocks])


def build(folder: Path, tokens_IND: Any, codes: str, *sets: str) -> dict[str, Any]:
    """The index of these tokens with other settings, without a model and without images; how long its centroids
    take."""
    parts, (num_images, num_tokens, dim) = [], tokens_IND.shape
    for number, first in enumerate(range(0, num_images, ROWS_PER_PART)):
        here = tokens_IND[first : first + ROWS_PER_PART]
        path = folder / "vectors" / part_files.part_name(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        images = [
            SourceImage(image_id=f"{row:09d}.png", path=f"{row:09d}.png") for row in range(first, first + len(here))
        ]
        counts = np.full(len(here), num_tokens)
        part_files.write_part(path, images, StoredTokens(encoded(here.reshape(-1, dim), codes), counts))
        parts.append(part_files.describe_part(path, 0, token_type(dim, codes))[0])
    settings = config_module.apply_sets({}, (*StoredTokens.defaults, f"tokens.codes={codes}", *sets))
    document = IndexDocument(
        generation=1,
        model=IndexedModel(kind="late", dim=dim, fingerprint="0" * 64),
        precision="float32",
        settings=config_module.build(IndexConfig, settings),
        sources=(ImageSource(kind="folder", path=str(folder)),),
        parts=tuple(parts),
    )
    started = time.perf_counter()
    search_commit.commit(folder, document)
    return {"build_seconds": time.perf_counter() - started}


def exact_rows(tokens_IND: Any, queries: Any) -> list[list[int]]:
    """The rows of the K best images by exact MaxSim, for each query."""
    num_images, num_tokens, dim = tokens_IND.shape
    scores = np.empty((len(queries), num_images), dtype=np.float32)
    for first in range(0, num_images, BLOCK):
        block = np.asarray(tokens_IND[first : first + BLOCK], dtype=np.float32)
        counts = np.full(len(block), num_tokens)
        for query, query_LD in enumerate(queries):
            scores[query, first : first + BLOCK] = maxsims(query_LD, block.reshape(-1, dim), counts)
    return [best_first(each, np.arange(num_images), K).tolist() for each in scores]


def recall(found: list[list[int]], true: list[list[int]]) -> float:
    return float(np.mean([len({*rows} & {*best}) / K for rows, best in zip(found, true, strict=False)]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--pooling", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--codes", nargs="+", default=["float16", "int8"])
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--exact-queries", type=int, default=100, help="those that are also searched exactly")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    tokens_IND, queries, truth = encode(args)
    results: list[dict[str, Any]] = []
    opened, best = [], []
    for factor in args.pooling:
        say(f"pooling {factor}")
        tokens = pooled(tokens_IND, factor)
        own = exact_rows(tokens, queries[: args.exact_queries])
        best = best or own
        results.append({"pooling": factor, "codes": "float32, exact", "recall@10 of float32": recall(own, best)})
        for codes in args.codes:
            folder = args.work / f"{factor}-{codes}"
            built = {} if (folder / "index.json").exists() else build(folder, tokens, codes)
            index = FolderIndex.open(folder)
            rows = [[hit.row for hit in hits] for hits in index.search(queries, K)]
            files = index.document.files.values()
            results.append(
                {
                    "pooling": factor,
                    "codes": codes,
                    "tokens": tokens.shape[1],
                    "bytes per image": sum(size or 0 for size, _ in files) / len(index),
                    "recall@10": recall(rows, own),
                    "recall@10 of float32": recall(rows, best),
                    **{
                        f"R@{k}": float(np.mean([t in r[:k] for r, t in zip(rows, truth, strict=True)])) for k in (1, 5)
                    },
                    **built,
                }
            )
            opened.append((index, results[-1], [], []))
    for query in queries[: args.exact_queries]:
        for index, _, wall, processor in opened:
            started, worked = time.perf_counter(), time.process_time()
            index.search(query[None], K)
            wall.append(1000 * (time.perf_counter() - started))
            processor.append(1000 * (time.process_time() - worked))
    for _, result, wall, processor in opened:
        result |= {f"p{share} ms": float(np.percentile(wall, share)) for share in (5, 50, 95)}
        result["processor ms"] = float(np.median(processor))
    for result in results:
        say(
            ", ".join(
                f"{name} {f'{value:,.4g}' if isinstance(value, float) else value}" for name, value in result.items()
            )
        )
    facts = {"commit": commit(), "load": os.getloadavg()[0], "machine": devices.describe(torch.device("cpu"))}
    sys.stdout.write(json.dumps({**facts, "images": args.images, "results": results}) + "\n")


if __name__ == "__main__":
    main()
