"""Size of a training step: multiply-adds, and bytes kept for the backward pass, per image with its caption.

    python benchmarks/training_sizes.py [--text-len 48]

Students and teachers of the recipes that start from CLIP or SigLIP, and the fusion student of `vilt-flickr30k`, with
random weights of the published sizes, on a CPU. Kept are the tensors that torch saves for the gradient, without the
weights, in float32 and under bfloat16 autocast; a GPU needs more for what its kernels use meanwhile. docs/start.md
turns these numbers into hours and `--accumulate`. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from typing import Any

import torch
from scoring import vilt
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel
from transformers.utils import logging

from dcdctl.core.bench.footprint import count_flops
from dcdctl.core.models import ImageBatch, TextBatch

B32 = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "patch_size": 32,
}
TINY = {
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "patch_size": 32,
}
L14 = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 14,
}
WIDE = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
SO400M = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
STUDENTS: dict[str, Any] = {
    "openai/clip-vit-base-patch32": CLIPConfig(vision_config=B32, text_config={}, projection_dim=512),
    "wkcn/TinyCLIP-ViT-40M-32-Text-19M-LAION400M": CLIPConfig(
        vision_config=TINY, text_config={"num_hidden_layers": 6}, projection_dim=512
    ),
    "google/siglip-base-patch16-224": SiglipConfig(vision_config={}, text_config={}),
}
TEACHERS: dict[str, Any] = {
    "openai/clip-vit-large-patch14": CLIPConfig(vision_config=L14, text_config=WIDE, projection_dim=768),
    "google/siglip-so400m-patch14-384": SiglipConfig(
        vision_config={**SO400M, "patch_size": 14, "image_size": 384}, text_config={**SO400M, "projection_size": 1152}
    ),
}
VILT_LAYERS = (0, 2, 4, 7, 9, 11)
VILT_PIXELS = 384, 512
VILT_TEXT_LEN = 40
MEGA, GIGA = 1e6, 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--text-len", type=int, default=48, help="tokens of a CLIP's captions; SigLIP pads all captions to 64"
    )
    options = parser.parse_args()
    logging.set_verbosity_error()
    results = {
        name: measure(config, options.text_len, keeps=name in STUDENTS)
        for name, config in (STUDENTS | TEACHERS).items()
    }
    results["ViLT-B/32, 6 of 12 layers"] = measure_vilt()
    for name, numbers in results.items():
        sys.stdout.write(f"{name}: {', '.join(f'{value:.2f} {unit}' for unit, value in numbers.items())}\n")
    sys.stdout.write(json.dumps({"text_len": options.text_len, "torch": torch.__version__, "results": results}) + "\n")


def measure(config: Any, text_len: int, *, keeps: bool) -> dict[str, float]:
    """Parameters, multiply-adds of a forward pass, and bytes kept per pair for a model that is trained."""
    device = "cpu" if keeps else "meta"
    with torch.device(device):
        model: Any = SiglipModel(config) if isinstance(config, SiglipConfig) else CLIPModel(config)
    length = config.text_config.max_position_embeddings if isinstance(config, SiglipConfig) else text_len
    side = config.vision_config.image_size

    def image(count: int) -> Tensor:
        return model.get_image_features(pixel_values=torch.zeros(count, 3, side, side, device=device)).pooler_output

    def text(count: int) -> Tensor:
        return model.get_text_features(input_ids=torch.full((count, length), 5, device=device)).pooler_output

    numbers = {
        "M parameters": sum(parameter.numel() for parameter in model.parameters()) / MEGA,
        "G multiply-adds per image": count_flops(lambda: image(1)) / 2 / GIGA,
        "G per caption": count_flops(lambda: text(1)) / 2 / GIGA,
    }
    if keeps:
        numbers |= kept(model, lambda count: (image(count), text(count)))
    return numbers


def measure_vilt() -> dict[str, float]:
    """Parameters, and bytes kept per pair of an image and a caption, with the recipe's dropout."""
    model = vilt().student(VILT_LAYERS)
    model.set_dropout(0.1)
    model.train()
    image = ImageBatch(torch.zeros(1, 3, *VILT_PIXELS), torch.ones(1, *VILT_PIXELS, dtype=torch.long))

    def pairs(count: int) -> Tensor:
        ids = torch.full((count, VILT_TEXT_LEN), 5)
        ix_P = torch.arange(count)
        return model(image, TextBatch(ids, torch.ones_like(ids)), torch.zeros_like(ix_P), ix_P)

    return {"M parameters": sum(parameter.numel() for parameter in model.parameters()) / MEGA, **kept(model, pairs)}


def kept(model: torch.nn.Module, forward: Callable[[int], object]) -> dict[str, float]:
    """MB that a forward pass keeps for each item of its batch, in both precisions."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    numbers = {}
    for precision in ("float32", "bfloat16"):
        # The difference, without what does not grow with the batch: autocast keeps a bfloat16 copy of the weights.
        one, three = (kept_bytes(lambda count=count: forward(count), precision, weights) for count in (1, 3))
        numbers[f"MB kept in {precision}"] = (three - one) / 2 / MEGA
    return numbers


def kept_bytes(forward: Callable[[], object], precision: str, weights: set[int]) -> int:
    """Bytes of the tensors that a forward pass keeps for its gradient, each storage once, without the weights."""
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)  # alive, so that no other tensor gets its address
        return tensor

    saved = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with saved, torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bfloat16"):
        outputs = forward()
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in kept}
    del outputs
    return sum(size for address, size in storages.items() if address not in weights)


if __name__ == "__main__":
    main()
