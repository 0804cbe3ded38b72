"""What a photo and a query cost with models for `dcdctl photos`, at their real sizes and with random weights.

    python benchmarks/photo_models.py
    python benchmarks/photo_models.py --models siglip2-b32-256 clip-b32 --rounds 5

The time does not depend on the weights. A photo is embedded in batches of 32, as `dcdctl index` does it, and a query of
12 words alone. Every model runs in a process of its own, in turns with the others, and the lowest time of the rounds
counts, because other programs only ever add to a time. Decoding is measured apart: noise photos of 12 megapixels,
saved as JPEG, decoded and then resized for the model.

Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import dcdctl  # noqa: F401  # before torch: it sets how long torch's threads spin

# isort: split

import numpy as np
import torch
import transformers
from PIL import Image
from reports import facts, say, table
from torch import Tensor, nn

from dcdctl.core.data import decode_image

BATCH = 32
"""Photos in one forward pass: the default of `dcdctl index`."""
CLIP_TOKENS, SIGLIP_TOKENS = 14, 64
"""Tokens of the query: CLIP reads its words and two marks, and SigLIP pads every text."""
PHOTO_PX = (4000, 3000)
NUM_PHOTOS = 8
"""Photos that are decoded."""
PHOTOS_OF_A_LIBRARY = 10_000
SECONDS = 5.0
"""How long each side of a model is measured in each round."""
Sides = tuple[nn.Module, Callable[[Tensor], Any], Callable[[Tensor], Any], int, int]
"""A network, its two sides, the side of an image in pixels, and the tokens of the query."""
VIT_B = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}


def clip(patch: int, image: int = 224, **text: int) -> Sides:
    """CLIP ViT-B; `text` are sizes of another text encoder than its own."""
    of_text = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 8, **text}
    return clip_of({**VIT_B, "patch_size": patch, "image_size": image}, of_text)


def clip_of(vision: dict[str, int], text: dict[str, int]) -> Sides:
    config = transformers.CLIPConfig(vision_config=vision, text_config=text, projection_dim=512)
    network = transformers.CLIPModel(config)
    return (
        network,
        lambda pixels: network.get_image_features(pixel_values=pixels),
        lambda ids: network.get_text_features(input_ids=ids),
        vision["image_size"],
        CLIP_TOKENS,
    )


def siglip(patch: int, image: int, vocabulary: int) -> Sides:
    config = transformers.SiglipConfig(
        vision_config={**VIT_B, "patch_size": patch, "image_size": image},
        text_config={**VIT_B, "vocab_size": vocabulary, "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 1},
    )
    network = transformers.SiglipModel(config)
    return (
        network,
        lambda pixels: network.get_image_features(pixel_values=pixels),
        lambda ids: network.get_text_features(input_ids=ids),
        image,
        SIGLIP_TOKENS,
    )


def open_clip_model(name: str) -> Sides:
    import open_clip

    network = open_clip.create_model(name)
    image = open_clip.get_model_config(name)["vision_cfg"]["image_size"]
    # open_clip pads every text to 77 tokens.
    return network, network.encode_image, network.encode_text, image, 77


MODELS: dict[str, Callable[[], Sides]] = {
    "clip-b32": lambda: clip(32),
    "clip-b16": lambda: clip(16),
    "clip-b32-256": lambda: clip(32, 256),
    "siglip-b16-224": lambda: siglip(16, 224, 32_000),
    "siglip2-b32-256": lambda: siglip(32, 256, 256_000),
    "siglip2-b16-224": lambda: siglip(16, 224, 256_000),
    "tinyclip-8m": lambda: clip_of(
        {
            "hidden_size": 256,
            "intermediate_size": 1024,
            "num_hidden_layers": 10,
            "num_attention_heads": 4,
            "patch_size": 16,
            "image_size": 224,
        },
        {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 3, "num_attention_heads": 4},
    ),
    "mobileclip2-s0": lambda: open_clip_model("MobileCLIP2-S0"),
    "mobileclip2-s2": lambda: open_clip_model("MobileCLIP2-S2"),
}


def fastest_ms(work: Callable[[], object], count: int) -> float:
    """The lowest time of a call, per item; the first call allocates memory and does not count."""
    work()
    times: list[float] = []
    started = time.perf_counter()
    while len(times) < 2 or time.perf_counter() - started < SECONDS:
        before = time.perf_counter()
        work()
        times.append(time.perf_counter() - before)
    return 1000 * min(times) / count


@torch.inference_mode()
def measure(name: str, threads: int) -> dict[str, float]:
    """One model in this process."""
    torch.set_num_threads(threads)
    network, embed_images, embed_texts, side_px, num_tokens = MODELS[name]()
    network.eval()
    pixels = torch.rand(BATCH, 3, side_px, side_px)
    ids = torch.randint(3, 1000, (1, num_tokens))
    return {
        "megabytes": sum(tensor.numel() * 4 for tensor in network.parameters()) / 1e6,
        "photo_ms": fastest_ms(lambda: embed_images(pixels), BATCH),
        "query_ms": fastest_ms(lambda: embed_texts(ids), 1),
    }


def noise_photo(seed: int) -> bytes:
    """A JPEG of 12 megapixels: noise in blocks, so that it compresses about as well as a photo."""
    width, height = PHOTO_PX
    blocks = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    image = Image.fromarray(blocks).resize(PHOTO_PX, Image.Resampling.BICUBIC)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return file.getvalue()


def decode_ms(side_px: int = 256) -> dict[str, float]:
    """What reading a photo costs on one core before the model sees it."""
    photos = [noise_photo(seed) for seed in range(NUM_PHOTOS)]

    def decode_all() -> None:
        for photo in photos:
            decode_image(photo).resize((side_px, side_px), Image.Resampling.BICUBIC)

    return {
        "photo_megabytes": sum(map(len, photos)) / NUM_PHOTOS / 1e6,
        "decode_ms": fastest_ms(decode_all, NUM_PHOTOS),
    }


def in_a_process(*words: str) -> dict[str, float]:
    process = subprocess.run([sys.executable, __file__, *words], stdout=subprocess.PIPE, text=True, check=True)
    measured: dict[str, float] = json.loads(process.stdout.splitlines()[-1])
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only is not None:
        measured = decode_ms() if args.only == "decode" else measure(args.only, args.threads)
        sys.stdout.write(json.dumps(measured) + "\n")
        return
    names = [*args.models, "decode"]
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for number in range(args.rounds):
        # Another one first in each round, so that none always runs on a warm or a busy machine.
        for name in names[number % len(names) :] + names[: number % len(names)]:
            rounds[name].append(in_a_process("--only", name, "--threads", str(args.threads)))
            say(f"{name}: {rounds[name][-1]}")
    lowest = {name: {key: min(each[key] for each in found) for key in found[0]} for name, found in rounds.items()}
    # Threads read photos ahead while the model computes, and both share the cores.
    decode = lowest["decode"]["decode_ms"] / args.threads
    columns = ["model", "MB", "ms per photo", "ms per query", f"minutes for {PHOTOS_OF_A_LIBRARY:,} photos"]
    rows = []
    for name in args.models:
        cost = lowest[name]
        cost["minutes"] = PHOTOS_OF_A_LIBRARY * (cost["photo_ms"] + decode) / 60_000
        rows.append(
            [name, *(f"{cost[key]:.3g}" for key in ("megabytes", "photo_ms", "query_ms")), f"{cost['minutes']:.0f}"]
        )
    sys.stdout.write(table(columns, rows) + "\n")
    sys.stdout.write(json.dumps({**facts("transformers", "open_clip_torch", "pillow"), "lowest": lowest}) + "\n")


if __name__ == "__main__":
    main()
