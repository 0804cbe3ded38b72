"""Texts per second of one worker of `dcdctl serve`: the text side of an index by ONNX Runtime against the model by
torch.

    python benchmarks/text_rates.py
    python benchmarks/text_rates.py --threads 2 --batches 1 4 16

The text encoder has the shape of CLIP ViT-B/32 with random weights, and a vocabulary of the captions. Both ways
tokenize and encode the same texts in turns, in one process, after their vectors were compared. The rates are texts per
second of processor time, which hardly depends on other work; with more than one thread, by the clock too. Ratios are
medians over the rounds. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

CAPTIONS = [
    "a dog runs on the beach with a ball in its mouth",
    "two people in red jackets stand beside a small boat",
    "a man rides a bicycle down a street in the rain",
    "children play football on a green field near the school",
    "an old woman sells fruit at a market stall",
    "a cat sleeps on the windowsill above a radiator",
    "a group of hikers rests on rocks at the top of a mountain",
    "a black and white photo of a train in a station",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--texts", type=int, default=32, help="texts of a round, per way and batch size")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)  # read by torch when it is imported
    ways, difference = _ways(arguments.threads)
    texts = [CAPTIONS[number % len(CAPTIONS)] for number in range(arguments.texts)]
    found = {}
    for batch in arguments.batches:
        seconds: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
        for number in range(arguments.rounds + 1):
            for way, encoder in ways.items():
                began = time.process_time(), time.perf_counter()
                for start in range(0, len(texts), batch):
                    encoder.vectors(encoder.tokenize(texts[start : start + batch]))
                if number:  # the first round warms both up
                    seconds[way].append((time.process_time() - began[0], time.perf_counter() - began[1]))
        for kind, name in enumerate(("processor", "clock")):
            ratios = [torch_[kind] / onnx[kind] for torch_, onnx in zip(seconds["torch"], seconds["onnx"], strict=True)]
            rates = {way: len(texts) / median(each[kind] for each in seconds[way]) for way in ways}
            found[f"{batch} {name}"] = {**rates, "ratio": median(ratios), "low": min(ratios), "high": max(ratios)}
    sys.stdout.write(f"largest difference of a coordinate: {difference:.1e}; a ratio above 1: ONNX Runtime is faster\n")
    for name, row in found.items():
        rates = f"ONNX Runtime {row['onnx']:8.1f} texts/s, torch {row['torch']:8.1f} texts/s"
        sys.stdout.write(
            f"batch {name:<14} {rates}, ratio {row['ratio']:.2f} ({row['low']:.2f} to {row['high']:.2f})\n"
        )
    sys.stdout.write(
        json.dumps({"threads": arguments.threads, "load": os.getloadavg()[1], "difference": difference, **found}) + "\n"
    )


def _ways(threads: int) -> tuple[dict[str, object], float]:
    import torch
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

    from dcdctl.core import models
    from dcdctl.core.models import onnx
    from dcdctl.core.search.dual_vectors import DualVectors

    torch.set_num_threads(threads)
    tokenizer = models.word_piece(CAPTIONS)
    vision = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "image_size": 32,
        "patch_size": 16,
    }
    text = {
        "eos_token_id": tokenizer.sep_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.cls_token_id,
    }
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        CLIPModel(CLIPConfig(vision_config=vision, text_config=text)).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
        model = models.load_dual(folder)
        difference = onnx.export_text_tower(model, Path(folder, "text"))
        tower = models.TextTower.open(Path(folder, "text"), model.digest, threads)
    return {"onnx": tower, "torch": DualVectors(model, torch.device("cpu"))}, difference


if __name__ == "__main__":
    main()
