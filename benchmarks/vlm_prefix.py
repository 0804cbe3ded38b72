"""Rate of a vision-language cross-encoder: captions that share the computation of their image, against
`CrossEncoder.predict`.

    OMP_NUM_THREADS=1 python benchmarks/vlm_prefix.py [--captions 16] [--images 1] [--layers 2] [--rounds 3]
        [--batch-sizes 1 4 16]

The network has the widths of Qwen3-VL-2B (text 2048 with 16 heads, 8 key-value heads and an MLP of 6144; vision 1024
with 16 heads and an MLP of 4096; a patch of 16 px), `--layers` layers in both parts, random weights and a small
vocabulary. An image of 640 x 480 px makes 300 tokens, the template about 45, a caption 12. Float32 on the CPU.

`predict` runs with each batch size once, and then with the fastest in rounds, each before or after dcdctl in turn.
Seconds are those of the processor (all threads), which other work on the machine disturbs less. dcdctl scores through
the same loop as `cache-teacher`, with new images in every round. Ends with one JSON line: pairs per second, medians
over the rounds; their ratio, a median over the rounds; and the largest difference of the logits.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers.utils import logging

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))
from vlm import save_reranker

from dcdctl.core import devices, models
from dcdctl.core.devices import Compute
from dcdctl.core.scoring.pairs import score_block

WORDS = (
    "a the red blue small large dog cat child man woman ball street field table near under behind beside runs "
    "sits stands holds"
)
WORDS_PER_CAPTION = 12
TEXT = {"hidden_size": 2048, "intermediate_size": 6144, "num_attention_heads": 16, "num_key_value_heads": 8}
VISION = {"hidden_size": 1024, "intermediate_size": 4096, "num_heads": 16, "deepstack_visual_indexes": [0]}
PROMPT = (
    "Judge whether the document meets the requirements of the query and the instruction. Answer with yes or no only. "
    "Instruction: find the image that the text describes, or the text that describes the image."
)
IMAGE_SIZE = (640, 480)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("captions", 16), ("images", 1), ("layers", 2), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 4, 16])
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    rng = random.Random(0)
    captions = [" ".join(rng.choices(WORDS.split(), k=WORDS_PER_CAPTION)) for _ in range(arguments.captions)]
    with tempfile.TemporaryDirectory() as folder:
        scorer = make_scorer(Path(folder) / "reranker", captions, arguments.layers)
    print(json.dumps(measure(scorer, captions, arguments)))  # noqa: T201


def make_scorer(folder: Path, captions: list[str], layers: int) -> Any:
    """A random model of real widths, whose weights are spread so that scores depend on the inputs."""
    text, vision = {**TEXT, "num_hidden_layers": layers}, {**VISION, "depth": layers}
    save_reranker(
        folder, [*captions, PROMPT], text=text, vision=vision, head_dim=128, spread=1.5, pixels=(256 * 256,
        1280 * 1024), patch_size=16,
        vocab_size=2000,
    )  # fmt: skip
    return models.load_fusion(folder, {"prompt": PROMPT})


def measure(scorer: Any, captions: list[str], arguments: argparse.Namespace) -> dict[str, Any]:
    """The rates of both ways, and how far their logits are apart."""
    noise = np.random.default_rng(0)

    def new_images(count: int) -> list[Image.Image]:
        return [
            Image.fromarray(noise.integers(0, 256, (IMAGE_SIZE[1], IMAGE_SIZE[0], 3), dtype=np.uint8))
            for _ in range(count)
        ]

    def plain(images: list[Image.Image], batch_size: int) -> Tensor:
        pairs = [({"image": image}, {"text": caption}) for image in images for caption in captions]
        options = {"activation_fn": nn.Identity(), "convert_to_tensor": True, "show_progress_bar": False}
        return scorer.encoder.predict(pairs, prompt=scorer.prompt, batch_size=batch_size, **options)

    def shared(images: list[Image.Image]) -> Tensor:
        states = (
            scorer.encode_images(scorer.preprocess.images(images)),
            scorer.encode_texts(scorer.preprocess.texts(captions)),
        )
        image_ix, text_ix = (
            torch.arange(len(images)).repeat_interleave(len(captions)),
            torch.arange(len(captions)).repeat(len(images)),
        )
        return score_block(scorer, *states, image_ix, text_ix, Compute())

    # The first call compares a few scores with the plain way, and knows no token ids yet.
    shared(new_images(1))
    assert scorer.shares_prefix
    trial = new_images(1)
    seconds = {size: timed(partial(plain, trial, size))[0] for size in arguments.batch_sizes}
    best = min(seconds, key=seconds.__getitem__)
    rates: dict[str, list[float]] = {"predict": [], "dcdctl": []}
    differences = []
    for round_number in range(arguments.rounds):
        images = new_images(arguments.images)
        ways: dict[str, Callable[[], Tensor]] = {
            "predict": partial(plain, images, best),
            "dcdctl": partial(shared, images),
        }
        found = {}
        for name in sorted(ways, reverse=bool(round_number % 2)):
            took, found[name] = timed(ways[name])
            rates[name].append(len(images) * len(captions) / took)
        differences.append(float((found["predict"] - found["dcdctl"]).abs().max()))
    return {
        "captions_per_image": len(captions),
        "layers": arguments.layers,
        "tokens_of_a_pair": scorer.encoder.preprocess([({"image": trial[0]}, {"text": captions[0]})], prompt=PROMPT)[
            "input_ids"
        ].shape[1],
        "predict_s_by_batch_size": seconds,
        "batch_size": best,
        "pairs_per_s": {name: statistics.median(values) for name, values in rates.items()},
        "ratio": statistics.median(
            ours / theirs for ours, theirs in zip(rates["dcdctl"], rates["predict"], strict=True)
        ),
        "largest_difference": max(differences),
        "logit_deviation": float(found["dcdctl"].std()),
        "machine": devices.describe(torch.device("cpu")),
    }


def timed(work: Callable[[], Tensor]) -> tuple[float, Tensor]:
    """Processor seconds, and the result."""
    started = time.process_time()
    result = work()
    return time.process_time() - started, result


if __name__ == "__main__":
    main()
