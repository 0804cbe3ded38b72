"""Recalls of both directions from embeddings: dcdctl, the evaluator of sentence-transformers, and CLIP_benchmark.

    pip install --no-deps clip-benchmark
    python benchmarks/recall_peers.py                     1,000 x 5,000 and 5,000 x 25,010 at 512 dimensions
    python benchmarks/recall_peers.py --sizes 1000x5000

The vectors are made up, and all ways get the same ones, so no way encodes anything. Each way runs in a process of its
own, in turns, and is timed after its imports. Recalls at 1, 5 and 10 must agree within --tolerance before times are
printed.

- dcdctl: `ranks.rank_embeddings` and all of its measures: recalls, mAP@R, median and mean rank, and the first ten
  candidates of each query.
- sentence-transformers: `InformationRetrievalEvaluator` with its default measures, once for images and once for
  captions; and the same with all measures at 10 at most. Its accuracy@k is R@k.
- CLIP_benchmark: `zeroshot_retrieval.evaluate` with batches of 64 images and their captions, recalls at 1, 5 and 10.

Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from scoring import peak_mib
from side_by_side import Spent, facts, ratios, say, spent, table

from dcdctl.core import devices
from dcdctl.core.evaluation import measures, ranks

KS = (1, 5, 10)
BATCH = 64
OURS = "dcdctl"
PACKAGES = ("sentence-transformers", "clip-benchmark")

Found = dict[str, float]
"""R@K of both directions, in percent, by name."""


def vectors(num_images: int, num_captions: int, dim: int) -> tuple[Tensor, Tensor, np.ndarray]:
    """Unit vectors of images and captions, and the image of each caption."""
    generator = torch.Generator().manual_seed(0)
    owner = np.arange(num_captions) * num_images // num_captions
    image_ID, text_TD = (torch.randn(count, dim, generator=generator) for count in (num_images, num_captions))
    image_ID /= image_ID.norm(dim=1, keepdim=True)
    text_TD += 3.5 * image_ID[owner]
    return image_ID, text_TD / text_TD.norm(dim=1, keepdim=True), owner


def ours(image_ID: Tensor, text_TD: Tensor, owner: np.ndarray) -> Found:
    """The recalls of dcdctl, among its other measures."""
    rankings = ranks.rank_embeddings(image_ID, text_TD, owner)
    found = {"text": measures.of_ranking(rankings.text), "image": measures.of_ranking(rankings.image)}
    return {f"{direction} R@{k}": measures[f"R@{k}"] for direction, measures in found.items() for k in KS}


class Stored:
    """A model of sentence-transformers whose query vectors exist already."""

    def __init__(self, queries_QD: Tensor) -> None:
        self.queries_QD = queries_QD

    def encode_query(self, sentences: list[str], **settings: Any) -> Tensor:
        return self.queries_QD


def evaluator(image_ID: Tensor, text_TD: Tensor, owner: np.ndarray, first: dict[str, list[int]]) -> Found:
    """The recalls of the evaluator of sentence-transformers, one run per direction."""
    from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
    from sentence_transformers.util import cos_sim

    images, texts = (
        [f"{kind}{i}" for i in range(len(rows))] for kind, rows in (("image", image_ID), ("text", text_TD))
    )
    captions: dict[str, set[str]] = {image: set() for image in images}
    for text, image in zip(texts, owner.tolist(), strict=True):
        captions[images[image]].add(text)
    pictures = {text: {images[image]} for text, image in zip(texts, owner.tolist(), strict=True)}
    found: Found = {}
    for direction, queries, corpus, relevant, queries_QD, corpus_GD in (
        ("text", images, texts, captions, image_ID, text_TD),
        ("image", texts, images, pictures, text_TD, image_ID),
    ):
        named = [dict(zip(names, names, strict=True)) for names in (queries, corpus)]
        judge = InformationRetrievalEvaluator(
            named[0],
            named[1],
            relevant,
            accuracy_at_k=list(KS),
            score_functions={"cosine": cos_sim},
            write_csv=False,
            **first,
        )
        model: Any = Stored(queries_QD)
        accuracy = judge.compute_all_metrics(model, corpus_embeddings=corpus_GD)["cosine"]["accuracy@k"]
        found |= {f"{direction} R@{k}": 100 * accuracy[k] for k in KS}
    return found


def clip_benchmark(image_ID: Tensor, text_TD: Tensor, owner: np.ndarray) -> Found:
    """The recalls of CLIP_benchmark, by its own function with a model that returns its input."""
    from clip_benchmark.metrics import zeroshot_retrieval

    class Stored:
        def encode_image(self, image_BD: Tensor) -> Tensor:
            return image_BD

        encode_text = encode_image

    first_text = np.searchsorted(owner, np.arange(len(image_ID) + 1))
    texts = [list(text_TD[first:last]) for first, last in pairwise(first_text)]
    batches = [
        (image_ID[start : start + BATCH], texts[start : start + BATCH]) for start in range(0, len(image_ID), BATCH)
    ]
    found = zeroshot_retrieval.evaluate(Stored(), batches, torch.stack, "cpu", amp=False, recall_k_list=list(KS))
    return {
        f"{direction} R@{k}": 100 * found[f"{direction}_retrieval_recall@{k}"]
        for direction in ("text", "image")
        for k in KS
    }


AT_TEN = {"precision_recall_at_k": [10], "mrr_at_k": [10], "ndcg_at_k": [10], "map_at_k": [10]}
WAYS: dict[str, Callable[[Tensor, Tensor, np.ndarray], Found]] = {
    OURS: ours,
    "sentence-transformers": lambda images, texts, owner: evaluator(images, texts, owner, {}),
    "sentence-transformers, at 10": lambda images, texts, owner: evaluator(images, texts, owner, AT_TEN),
    "CLIP_benchmark": clip_benchmark,
}


def one(way: str, num_images: int, num_captions: int, args: argparse.Namespace) -> dict[str, Any]:
    """Measure a way in this process."""
    torch.set_num_threads(args.threads)
    devices.choose("cpu")  # like every command: the process keeps the memory that it frees
    WAYS[way](*vectors(64, 320, args.dim))  # its imports
    made = vectors(num_images, num_captions, args.dim)
    before_mib, kept = peak_mib(devices.CPU), dict[str, Found]()
    time = spent(lambda: kept.update(found=WAYS[way](*made)))
    return {
        "wall": time.wall,
        "processor": time.processor,
        "found": kept["found"],
        "mib": peak_mib(devices.CPU) - before_mib,
        "peak_mib": peak_mib(devices.CPU),
    }


def compare(num_images: int, num_captions: int, args: argparse.Namespace) -> tuple[list[list[str]], dict[str, Any]]:
    """Rows of the table, and all numbers, of one size."""
    results: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for repeat in range(args.repeats):
        for way in sorted(WAYS, reverse=repeat % 2 == 1):
            command = [sys.executable, __file__, "--threads", str(args.threads), "--dim", str(args.dim)]
            command += ["--only", way, "--sizes", f"{num_images}x{num_captions}"]
            process = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            results[way].append(json.loads(process.stdout.splitlines()[-1]))
            say(f"{way}: {results[way][-1]['processor']:.2f} s of processors, {results[way][-1]['mib']:,.0f} MiB")
    expected = results[OURS][0]["found"]
    for way, rounds in results.items():
        difference = max(abs(rounds[0]["found"][name] - value) for name, value in expected.items())
        if difference > args.tolerance:
            raise SystemExit(f"{way} has other recalls: {rounds[0]['found']}, and dcdctl has {expected}")
        say(f"{way}: recalls differ by {difference:.4f} points at most")
    factor = ratios(
        {way: [Spent(each["wall"], each["processor"]) for each in rounds] for way, rounds in results.items()}, OURS
    )
    rows = [
        [
            f"{num_images:,} x {num_captions:,}",
            way,
            f"{median(each['processor'] for each in rounds):.2f} s",
            f"{factor[way].processor:.1f}",
            f"{factor[way].wall:.1f}",
            f"{median(each['mib'] for each in rounds):,.0f} MiB",
        ]
        for way, rounds in results.items()
    ]
    return rows, {"images": num_images, "captions": num_captions, "results": results}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["1000x5000", "5000x25010"], metavar="IMAGESxCAPTIONS")
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--tolerance", type=float, default=0.005, help="points of recall; one caption of 25,010 is 0.004"
    )
    parser.add_argument("--only", choices=WAYS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    sizes = [tuple(int(number) for number in size.split("x")) for size in args.sizes]
    if args.only is not None:
        sys.stdout.write(json.dumps(one(args.only, *sizes[0], args)) + "\n")
        return
    torch.set_num_threads(args.threads)
    compared = [compare(*size, args) for size in sizes]
    columns = [
        "images x captions",
        "way",
        "processor time",
        "times ours",
        "times ours by the clock",
        "growth of the peak memory",
    ]
    sys.stdout.write(table(columns, [row for rows, _ in compared for row in rows]) + "\n")
    sys.stdout.write(
        json.dumps({**facts(*PACKAGES), "dim": args.dim, "sizes": [numbers for _, numbers in compared]}) + "\n"
    )


if __name__ == "__main__":
    main()
