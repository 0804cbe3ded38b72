"""Floating-point operations of full-size models, counted as `dcdctl bench` counts them.

    python benchmarks/flops.py [--captions 64] [--text-len 16] [--models meter-6 meter-3 blip-base ...]

Random weights, one image against N captions. Plain: one pair from its pixels and 40 padded tokens, as in the released
code. Factorized: the image once, each caption once and unpadded, then every pair; the count is per pair. A multiply-add
is two operations. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import sys

import torch
from scoring import MODELS, factorized, plain
from transformers.utils import logging

from dcdctl.core.bench.footprint import count_flops
from dcdctl.core.devices import Compute
from dcdctl.core.models import ImageBatch, TextBatch

COMPUTE = Compute(batch_size=16)
GIGA = 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", type=int, default=64)
    parser.add_argument("--text-len", type=int, default=16, help="tokens per caption, including special tokens")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    options = parser.parse_args()
    results = {}
    for name in options.models:
        results[name] = count(name, options.captions, options.text_len)
        sys.stdout.write(
            f"{name}: {', '.join(f'{part} {value:.1f} G' for part, value in results[name].items())} multiply-adds\n"
        )
        sys.stdout.flush()
    setting = {"captions": options.captions, "text_len": options.text_len, "torch": torch.__version__}
    sys.stdout.write(json.dumps({**setting, "giga_multiply_adds": results}) + "\n")


def count(name: str, num_captions: int, text_len: int) -> dict[str, float]:
    """Billions of multiply-adds per pair, image and caption."""
    logging.set_verbosity_error()
    torch.manual_seed(0)
    make, size = MODELS[name]
    scorer = make().eval()
    image, ids = torch.randn(1, 3, *size), torch.randint(5, 1000, (num_captions, text_len))
    works = {
        "pair, plain": (lambda: plain(scorer, image, ids[:1]), 1),
        "pair, factorized": (lambda: factorized(scorer, image, ids, COMPUTE), num_captions),
        "image": (lambda: scorer.encode_images(ImageBatch(image)), 1),
        "caption": (lambda: scorer.encode_texts(TextBatch(ids[:1], torch.ones_like(ids[:1]))), 1),
    }
    return {part: count_flops(work) / 2 / GIGA / count for part, (work, count) in works.items()}


if __name__ == "__main__":
    main()
