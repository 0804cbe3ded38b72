"""MaxSim of all images with all texts: dcdctl, a plain einsum, and sentence-transformers' `mean_maxsim`.

    python benchmarks/maxsim.py                           two shapes, on one core
    python benchmarks/maxsim.py --device cuda
    python benchmarks/maxsim.py --shapes 256x49x256x16x64

A shape is images x tokens x texts x tokens x numbers of a token. The vectors are random unit vectors, and texts have
half to all of their tokens. Each way runs in a process of its own, in turns; scores and gradients must agree before
times are printed. A way whose products do not fit into --memory is left out.

Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import dcdctl  # noqa: F401  # before torch: it sets how long torch's threads spin

# isort: split

import torch
from reports import facts, peak_mib, say, table
from torch import Tensor
from torch.nn.functional import normalize

from dcdctl.core import devices
from dcdctl.core.models.networks.maxsim import all_maxsims

OURS, PLAIN = "dcdctl", "einsum"
SHAPES = ("256x49x256x16x64", "500x196x500x32x128")
STEPS = ("forward", "forward and backward")
TOLERANCE = 1e-3
"""Relative, for the mean of the scores and the lengths of the gradients."""


def plain(images_IND: Tensor, texts_TLD: Tensor, mask_TL: Tensor) -> Tensor:
    largest_ITL = torch.einsum("ind,tld->itnl", images_IND, texts_TLD).amax(dim=2)
    return (largest_ITL * mask_TL).sum(dim=-1) / mask_TL.sum(dim=-1)


def theirs(images_IND: Tensor, texts_TLD: Tensor, mask_TL: Tensor) -> Tensor:
    from sentence_transformers.util import mean_maxsim

    return mean_maxsim(texts_TLD, images_IND, a_mask=mask_TL).T


WAYS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    OURS: lambda images, texts, mask: all_maxsims(images, None, texts, mask),
    PLAIN: plain,
    "sentence-transformers": theirs,
}


def made(shape: str, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Token vectors of images and of texts, and the mask of the texts."""
    num_images, num_tokens, num_texts, length, width = map(int, shape.split("x"))
    generator = torch.Generator().manual_seed(0)
    images, texts = (
        normalize(torch.randn(*size, width, generator=generator), dim=-1)
        for size in ((num_images, num_tokens), (num_texts, length))
    )
    lengths = torch.randint(length // 2, length + 1, (num_texts, 1), generator=generator)
    mask = torch.arange(length) < lengths
    return images.to(device), (texts * mask[:, :, None]).to(device), mask.to(device)


def one(way: str, shape: str, step: str, args: argparse.Namespace) -> dict[str, Any]:
    """Measure a way in this process."""
    torch.set_num_threads(args.threads)
    device = devices.choose(args.device)
    is_trained = step != STEPS[0]

    def work(images: Tensor, texts: Tensor, mask: Tensor) -> list[float]:
        sides = [side.requires_grad_(is_trained) for side in (images, texts)]
        with torch.set_grad_enabled(is_trained):
            scores = WAYS[way](*sides, mask)
        if is_trained:
            # Gradients of all sizes, as those of a loss.
            (scores * scores.detach()).sum().backward()
        found = [scores.mean().item(), *(float(side.grad.norm()) for side in sides if side.grad is not None)]
        devices.synchronize(device)
        return found

    work(*made("8x4x8x4x8", device))  # its imports
    inputs = made(shape, device)
    before = peak_mib(device)
    wall, processor = time.perf_counter(), time.process_time()
    found = work(*inputs)
    spent = {"wall": time.perf_counter() - wall, "processor": time.process_time() - processor}
    return {**spent, "found": found, "mib": peak_mib(device) - before}


def compare(shape: str, step: str, args: argparse.Namespace) -> tuple[list[list[str]], dict[str, Any]]:
    """Rows of the table, and all numbers, of one shape and step."""
    num_images, num_tokens, num_texts, length, _ = map(int, shape.split("x"))
    # The products, and for a backward pass their gradient.
    products_gib = 4 * num_images * num_tokens * num_texts * length * (1 + (step != STEPS[0])) / 2**30
    ways = [way for way in WAYS if way != PLAIN or products_gib < args.memory]
    results: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
    for repeat in range(args.repeats):
        for way in sorted(ways, reverse=repeat % 2 == 1):
            command = [sys.executable, __file__, "--threads", str(args.threads), "--device", args.device]
            command += ["--only", way, "--shapes", shape, "--step", step]
            process = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            results[way].append(json.loads(process.stdout.splitlines()[-1]))
            say(f"{shape}, {step}, {way}: {results[way][-1]['processor']:.2f} s of processors")
    expected = results[OURS][0]["found"]
    for way, rounds in results.items():
        for value, number in zip(rounds[0]["found"], expected, strict=True):
            if abs(value - number) > TOLERANCE * abs(number):
                raise SystemExit(f"{way} has other scores or gradients: {rounds[0]['found']}, dcdctl has {expected}")

    def ratio(rounds: list[dict[str, Any]], clock: str) -> float:
        """How many times as long a way takes as ours; a median over rounds."""
        return median(theirs[clock] / ours[clock] for theirs, ours in zip(rounds, results[OURS], strict=True))

    rows = [
        [
            shape.replace("x", " x "),
            step,
            way,
            f"{median(each['processor'] for each in rounds):.2f} s",
            f"{ratio(rounds, 'processor'):.2f}",
            f"{ratio(rounds, 'wall'):.2f}",
            f"{median(each['mib'] for each in rounds):,.0f} MiB",
        ]
        for way, rounds in results.items()
    ]
    return rows, {"shape": shape, "step": step, "results": results}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=SHAPES, metavar="IxNxTxLxD")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory", type=float, default=4.0, help="GiB of products that a plain einsum may take")
    parser.add_argument("--only", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only is not None:
        sys.stdout.write(json.dumps(one(args.only, args.shapes[0], args.step, args)) + "\n")
        return
    compared = [compare(shape, step, args) for shape in args.shapes for step in STEPS]
    columns = ["shape", "step", "way", "processor time", "times ours", "times ours by the clock", "growth of the peak"]
    sys.stdout.write(table(columns, [row for rows, _ in compared for row in rows]) + "\n")
    sys.stdout.write(json.dumps({**facts("sentence-transformers"), "runs": [each for _, each in compared]}) + "\n")


if __name__ == "__main__":
    main()
