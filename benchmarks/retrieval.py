"""Time and memory of rankings from embeddings: the rank of every positive, and the first ten candidates of every query.

    python benchmarks/retrieval.py                                                   5,000 x 25,010, COCO's test split
    python benchmarks/retrieval.py --images 31000 --captions 155000 --repeats 1      31,000 x 155,000, larger than
        Flickr30K

The vectors are made up: captions lie near their images, among many others. The same run alternates with the bare matrix
product of the same vectors in the same blocks, whose results are discarded; the ratio gives the cost of counting, also
on a busy machine. Seconds are wall clock; processor seconds are the sum over all threads. Peak memory is that of the
whole process, including PyTorch, after a first ranking that is not timed and before any bare product. Ends with one
JSON line.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable
from statistics import median

import numpy as np
import torch
from torch import Tensor

from dcdctl.core import devices
from dcdctl.core.evaluation import ranks, recall
from dcdctl.core.scoring import topk


def vectors(num_images: int, num_captions: int, dim: int) -> tuple[Tensor, Tensor, np.ndarray]:
    """Unit vectors of images and captions, and the image of each caption."""
    generator = torch.Generator().manual_seed(0)
    owner = np.arange(num_captions) * num_images // num_captions
    image_ID, text_TD = (torch.randn(count, dim, generator=generator) for count in (num_images, num_captions))
    image_ID /= image_ID.norm(dim=1, keepdim=True)
    for start in range(0, num_captions, 4096):
        text_TD[start : start + 4096] += 3.5 * image_ID[owner[start : start + 4096]]
    text_TD /= text_TD.norm(dim=1, keepdim=True)
    return image_ID, text_TD, owner


def product(image_ID: Tensor, text_TD: Tensor) -> None:
    """All scores, in the blocks of `ranks.rank_embeddings`."""
    for texts_BD in text_TD.split(topk.GALLERY_BLOCK):
        for images_BD in image_ID.split(topk.BLOCK):
            images_BD @ texts_BD.T


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Wall-clock seconds, and processor seconds of all threads."""
    wall, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - processor


def peak_mib() -> float:
    """Peak memory of this process."""
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--captions", type=int, default=25010)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    devices.choose("cpu")  # like every command: the process keeps the memory that it frees
    before_mib = peak_mib()
    image_ID, text_TD, owner = vectors(args.images, args.captions, args.dim)
    vectors_mib = (image_ID.nbytes + text_TD.nbytes) / 2**20
    bare, ranked, kept = [], [], dict[str, ranks.Rankings]()
    ranks.rank_embeddings(image_ID, text_TD, owner)
    ranking_mib = peak_mib()
    for _ in range(args.repeats):
        bare.append(timed(lambda: product(image_ID, text_TD)))
        ranked.append(timed(lambda: kept.update(rankings=ranks.rank_embeddings(image_ID, text_TD, owner))))
        say(f"product {bare[-1][0]:.2f} s, rankings {ranked[-1][0]:.2f} s")
    numbers = {
        "images": args.images,
        "captions": args.captions,
        "dim": args.dim,
        "threads": torch.get_num_threads(),
        "seconds": median(wall for wall, _ in ranked),
        "product_seconds": median(wall for wall, _ in bare),
        "ratio": median(ranking[0] / product[0] for ranking, product in zip(ranked, bare, strict=True)),
        "processor_ratio": median(ranking[1] / product[1] for ranking, product in zip(ranked, bare, strict=True)),
        "peak_mib": ranking_mib,
        "before_mib": before_mib,
        "vectors_mib": vectors_mib,
        "text_r1": recall.measures(kept["rankings"].text)["R@1"],
    }
    say(f"{numbers['seconds']:.2f} s, {numbers['ratio']:.2f} times the product")
    say(f"peak {numbers['peak_mib']:,.0f} MiB: {before_mib:,.0f} before, {vectors_mib:,.0f} of vectors")
    sys.stdout.write(json.dumps(numbers) + "\n")


def say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    main()
