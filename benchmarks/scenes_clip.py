"""The training of the built-in CLIP: a small CLIPModel of transformers, pretrained on drawn scenes as a CLIP is on the
web.

    python benchmarks/scenes_clip.py --out work/scenes-clip      three minutes on one idle thread; resumes

InfoNCE on a "web" of scenes whose captions are poor: they name some objects by color and shape, without sizes, places
or relations. So the model knows what is in a scene, and what a target data set tells besides is left to learn.
"""

from __future__ import annotations

import argparse
import json
import random
from itertools import islice
from pathlib import Path

import torch
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

import dcdctl
from dcdctl.core import models
from dcdctl.core.data import scenes

NAME = "scenes-clip"
SIDE_PX = 64
WEB_SEED, WEB_COUNTS = 101, {"train": 16_000, "test": 500}
CAPTIONS = 5
WEB_NAMES = (1, 2, 2, 3)
"""How many objects a caption of the web names, each as often as it stands here."""
NUM_VOCABULARY_SCENES = 1000
"""Scenes whose full captions train the word pieces."""
WIDTH, LAYERS, VECTOR = 128, 2, 256
NUM_TOKENS = 32
RECIPE = "demo-dual-alone"
SETTINGS = {"optimizer.steps": 2000, "batch.size": 64, "seed": WEB_SEED}
"""Changes to the recipe, besides the start."""


def write_web(folder: Path) -> None:
    """Write the web's images, and its captions as web.jsonl, unless they are there."""
    table = folder / "web.jsonl"
    if table.exists():
        return
    (folder / "web-images").mkdir(parents=True, exist_ok=True)
    rng, rows = random.Random(f"web/{WEB_SEED}"), []
    for split, count in WEB_COUNTS.items():
        for index, item in enumerate(islice(scenes.describe_scenes(WEB_SEED, split, CAPTIONS), count)):
            name = f"{split}-{index:05}.png"
            (folder / "web-images" / name).write_bytes(scenes.to_png(scenes.draw_scene(item.scene, SIDE_PX)))
            rows.append({"image": name, "captions": web_captions(rng, item), "split": split})
    # Last, because the captions tell that the images are complete.
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))


def web_captions(rng: random.Random, item: scenes.DescribedScene) -> list[str]:
    """Captions as poor as the web's: what is in the scene by color and shape, but neither sizes nor places nor
    relations."""
    captions = []
    for _ in item.statements:
        named = rng.sample(item.scene.objects, rng.choice(WEB_NAMES))
        captions.append(
            " and ".join(f"{'an' if thing.color == 'orange' else 'a'} {thing.color} {thing.shape}" for thing in named)
        )
    return captions


def write_new_clip(folder: Path, seed: int) -> None:
    """A CLIPModel of random weights, 64 px in patches of 16, with a tokenizer of all words of the scenes."""
    described = islice(scenes.describe_scenes(0, "train"), NUM_VOCABULARY_SCENES)
    tokenizer = models.word_piece([statement.text for item in described for statement in item.statements], 400)
    size = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": 4}
    words = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": NUM_TOKENS,
        "bos_token_id": 2,
        "eos_token_id": 3,
        "pad_token_id": 0,
    }
    vision = {**size, "image_size": SIDE_PX, "patch_size": 16}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = CLIPModel(CLIPConfig(vision_config=vision, text_config={**size, **words}, projection_dim=VECTOR))
    square = {"size": {"shortest_edge": SIDE_PX}, "crop_size": {"height": SIDE_PX, "width": SIDE_PX}}
    # The pale backgrounds of the scenes then lie near 0, as in recipe demo-dual.
    processor = CLIPImageProcessorPil(**square, image_mean=[0.92] * 3, image_std=[1.0] * 3)
    for part in (network, tokenizer, processor):
        part.save_pretrained(folder)


def pretrain(out: Path) -> Path:
    """Pretrain the built-in CLIP in a work folder, and return the folder of the model, in half precision."""
    write_web(out)
    dcdctl.prepare(jsonl=out / "web.jsonl", images=out / "web-images", out=out / "web", progress=True)
    write_new_clip(out / "new", seed=0)
    recipe = dcdctl.load_recipe(RECIPE, {**SETTINGS, "model.start": str(out / "new")})
    run = dcdctl.distill(recipe, data=out / "web", out=out / "run", resume=True, progress=True)
    # In half precision, because the weights are part of the package.
    models.save(models.load(run.folder), out / NAME, half=True)
    return out / NAME


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help=f"work folder; the model is OUT/{NAME}")
    pretrain(parser.parse_args().out)


if __name__ == "__main__":
    main()
