"""Rate and multiply-adds with which fusion models score pairs: factorized against plain.

    python benchmarks/scoring.py [--captions 64] [--repeats 3] [--threads 2] [--device cpu] [--models meter-6
        meter-3 blip-base ...]

Full-size models with random weights, one image against N captions. Plain: the image and the caption of every pair are
encoded, with captions padded to 40 tokens as in the released code. Factorized: the image once, each caption once and
unpadded, then `score_pairs`. Rounds alternate between the variants, each model runs in its own process, and rates are
medians. Factorized bfloat16 is measured too where the processor has instructions for it. Multiply-adds per
pair are counted as `dcdctl bench` counts them. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import dcdctl  # noqa: F401  # before torch: it sets how long torch's threads spin

# isort: split

import torch
from reports import peak_mib, processor, reset_peak
from torch import Tensor
from transformers import (
    BlipConfig,
    BlipForImageTextRetrieval,
    BridgeTowerConfig,
    BridgeTowerForImageAndTextRetrieval,
    CLIPVisionConfig,
    RobertaConfig,
    ViltConfig,
)
from transformers.utils import logging

from dcdctl.core import devices, models
from dcdctl.core.bench.footprint import count_flops
from dcdctl.core.engines import Compute
from dcdctl.core.models import CoAttentionScorer, FusionSize, ImageBatch, TextBatch, ViltScorer
from dcdctl.core.models.families.blip import BlipScorer
from dcdctl.core.models.families.bridgetower import BridgeTowerScorer
from dcdctl.core.models.families.coattention import CoAttentionNetwork
from dcdctl.core.models.families.vilt import BLOCK_EPS, build_network
from dcdctl.core.scoring import pairs

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))
from plain_scores import plain_score

RELEASED_TEXT_LEN = 40
PLAIN_BATCH = 4
"""Pairs in one plain forward pass; larger batches were not faster on a CPU."""
GIGA = 1e9


def meter(num_layers: int) -> CoAttentionScorer:
    """METER with 11 blocks of CLIP ViT-B/16 at 384 px and RoBERTa-base, random weights."""
    vision = CLIPVisionConfig(
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=11,
        num_attention_heads=12,
        image_size=384,
        patch_size=16,
        hidden_act="quick_gelu",
    )
    text = RobertaConfig(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1, layer_norm_eps=1e-5)
    return CoAttentionScorer(CoAttentionNetwork.from_configs(vision, text, FusionSize(num_layers=num_layers)), None)


def vilt() -> ViltScorer:
    """ViLT-B/32, random weights."""
    return ViltScorer(build_network(ViltConfig(max_position_embeddings=40, layer_norm_eps=BLOCK_EPS)), None)


def blip(num_layers: int) -> BlipScorer:
    """BLIP with ViT-B/16 at 384 px, random weights; its text encoder has `num_layers` of 12 layers."""
    config = BlipConfig(
        text_config={"num_attention_heads": 12, "num_hidden_layers": num_layers},
        vision_config={"initializer_range": 0.02},
    )
    return BlipScorer(BlipForImageTextRetrieval(config), None)


def bridgetower(num_layers: int) -> BridgeTowerScorer:
    """BridgeTower base (encoders of 12 layers) at 384 px, random weights."""
    config = BridgeTowerConfig(num_hidden_layers=num_layers, vision_config={"image_size": 384})
    return BridgeTowerScorer(BridgeTowerForImageAndTextRetrieval(config), None)


MODELS: dict[str, tuple[Callable[[], Any], tuple[int, int]]] = {
    "meter-6": (lambda: meter(6), (384, 384)),
    "meter-3": (lambda: meter(3), (384, 384)),
    # A photo with an aspect ratio of 4:3 whose shorter side is 384 px.
    "vilt-b32": (vilt, (384, 512)),
    "blip-base": (lambda: blip(12), (384, 384)),
    "blip-base-6": (lambda: blip(6), (384, 384)),
    "bridgetower-base": (lambda: bridgetower(6), (384, 384)),
    "bridgetower-base-3": (lambda: bridgetower(3), (384, 384)),
}


def main() -> None:
    """Measure each model in its own process, or the model of --only in this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", type=int, default=64)
    parser.add_argument("--text-len", type=int, default=16, help="tokens per caption, including special tokens")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--plain-pairs", type=int, default=8, help="number of pairs for the plain variant")
    parser.add_argument("--batch-size", type=int, default=16, help="pairs in one factorized forward pass")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--only", choices=MODELS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only is not None:
        sys.stdout.write(json.dumps(measure(options.only, options)) + "\n")
        return
    results = {}
    for name in options.models:
        command = [sys.executable, __file__, *sys.argv[1:], "--only", name]
        process = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        results[name] = json.loads(process.stdout.splitlines()[-1])
        sys.stdout.write(f"{describe(name, results[name])}\n")
        sys.stdout.flush()
    setting = {name: getattr(options, name) for name in ("captions", "text_len", "batch_size", "threads", "device")}
    sys.stdout.write(
        json.dumps({"machine": processor(), "torch": torch.__version__, **setting, "models": results}) + "\n"
    )


def describe(name: str, result: dict[str, Any]) -> str:
    head = f"{name}: {result['speed_up']:.2f}x, largest difference {result['largest_difference']:.1e}"
    lines = [f"  {variant:<20} {rate:8.2f} pairs/s" for variant, rate in result["pairs_per_s"].items()]
    lines += [
        f"  {variant:<20} {count:8.1f} G multiply-adds" for variant, count in result["giga_multiply_adds"].items()
    ]
    return "\n".join([head, *lines, f"  peak memory, factorized: {result['peak_mib']:,.0f} MiB"])


@torch.inference_mode()
def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Pairs per second of each variant, and the largest difference of their scores."""
    logging.set_verbosity_error()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    make, size = MODELS[name]
    device = devices.choose(options.device)
    compute = Compute(device=device, batch_size=options.batch_size)
    scorer = make().to(device).eval()
    image = torch.randn(1, 3, *size, device=device)
    ids = torch.randint(5, 1000, (options.captions, options.text_len), device=device)
    variants: dict[str, tuple[Callable[[], Tensor], int]] = {
        "plain": (lambda: plain(scorer, image, ids[: options.plain_pairs]), options.plain_pairs),
        "factorized": (lambda: factorized(scorer, image, ids, compute), options.captions),
    }
    if has_bfloat16(device):
        variants["factorized bfloat16"] = (
            lambda: factorized(scorer, image, ids, replace(compute, precision="bfloat16")),
            options.captions,
        )
    # Memory is measured first, because a process on a CPU keeps the memory that it frees.
    reset_peak(device)
    factorized(scorer, image, ids, compute)
    peak = peak_mib(device)
    scores = {variant: work().float().cpu() for variant, (work, _) in variants.items()}
    seconds: dict[str, list[float]] = {variant: [] for variant in variants}
    for _ in range(options.repeats):
        for variant, (work, _) in variants.items():
            seconds[variant].append(devices.timed(work, device)[0])
    giga = {variant: count_flops(work) / 2 / GIGA / count for variant, (work, count) in variants.items()}
    rates = {variant: count / statistics.median(seconds[variant]) for variant, (_, count) in variants.items()}
    difference = (scores["factorized"][: options.plain_pairs] - scores["plain"]).abs().max().item()
    return {
        "speed_up": rates["factorized"] / rates["plain"],
        "speed_up_bfloat16": rates["factorized bfloat16"] / rates["plain"] if "factorized bfloat16" in rates else None,
        "largest_difference": difference,
        "pairs_per_s": rates,
        "giga_multiply_adds": giga,
        "peak_mib": peak,
    }


def plain(scorer: models.FusionScorer, image: Tensor, ids: Tensor) -> Tensor:
    """Each pair scored alone from its pixels and 40 tokens, as in the released code."""
    padded = torch.nn.functional.pad(ids, (0, RELEASED_TEXT_LEN - ids.shape[1]), value=1)
    mask = torch.zeros_like(padded)
    mask[:, : ids.shape[1]] = 1
    chunks = zip(padded.split(PLAIN_BATCH), mask.split(PLAIN_BATCH), strict=True)
    return torch.cat(
        [plain_score(scorer, image.expand(len(chunk), -1, -1, -1).contiguous(), chunk, real) for chunk, real in chunks]
    )


def factorized(scorer: models.FusionScorer, image: Tensor, ids: Tensor, compute: Compute) -> Tensor:
    """Pairs scored after the image and each caption have been encoded once."""
    with compute.forward_pass():
        images, texts = (
            scorer.encode_images(ImageBatch(image)),
            scorer.encode_texts(TextBatch(ids, torch.ones_like(ids))),
        )
    text_ix = torch.arange(len(ids), device=ids.device)
    return pairs.score_block(scorer, images, texts, torch.zeros_like(text_ix), text_ix, compute)


def has_bfloat16(device: torch.device) -> bool:
    """Whether the processor has instructions for bfloat16."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


if __name__ == "__main__":
    main()
