"""Ray Data embeds a list of images, and dcdctl makes an index of the vectors. Run by hand: starting Ray takes 20 s and
more.

    python -m venv rayvenv && rayvenv/bin/pip install 'ray[data]' pillow
    python benchmarks/ray_embedding.py --make OUT
    dcdctl index OUT/model --images OUT/photos --plan-only --out OUT/list
    RAY_USAGE_STATS_ENABLED=0 rayvenv/bin/python benchmarks/ray_embedding.py OUT/list OUT/vectors
    dcdctl index OUT/model --images OUT/photos --vectors OUT/vectors --verify 0 --out OUT/index
    python benchmarks/ray_embedding.py --check OUT/index OUT/photos

The vectors are made up: the mean colors of 4 x 4 fields of an image, and its number of bytes, repeated. So Ray may have
an environment without torch and dcdctl, and `--verify`, which embeds a few images with the model, is left out.
`--check` computes the vectors again, and compares each stored number. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

NUM_PHOTOS = 600
WIDTH = 256
"""Of a vector."""


class FakeEmbedder:
    """Stands for a model that each actor loads once."""

    def __call__(self, rows: dict[str, Any]) -> dict[str, Any]:
        """The ids, the digest of the model, and the vectors of a batch of images; None for a file that is no image."""
        vectors = [fake_vector(Path(path).read_bytes()) for path in rows["path"]]
        return {"image_id": rows["image_id"], "model_digest": rows["model_digest"], "vector": as_objects(vectors)}


def as_objects(vectors: list[list[float] | None]) -> Any:
    """Lists of numbers in an array of objects, which Ray writes as lists and nulls."""
    column = np.empty(len(vectors), dtype=object)
    column[:] = vectors
    return column


def fake_vector(data: bytes) -> list[float] | None:
    try:
        image = Image.open(io.BytesIO(data)).convert("RGB").resize((4, 4), Image.Resampling.BOX)
    except UnidentifiedImageError:
        return None
    vector = np.full(WIDTH, len(data) % 97 - 48, dtype=np.float32)
    vector[:48] = np.asarray(image, dtype=np.float32).ravel()
    return [float(number) for number in vector]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("places", type=Path, nargs="+")
    parser.add_argument("--make", action="store_true")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--actors", type=int, default=1)
    options = parser.parse_args()
    work = make if options.make else check if options.check else partial(embed, num_actors=options.actors)
    found = work(*options.places)
    sys.stdout.write(json.dumps(found) + "\n")


def make(out: Path) -> dict[str, Any]:
    """Write a random dual encoder and a folder of images, with one file that is none."""
    from dcdctl.core import models

    shared = {
        "hidden_size": 32,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "image_size": 32,
        "patch_size": 16,
        "max_text_len": 8,
    }
    size = models.DualSize(num_vision_layers=1, num_text_layers=1, projection_dim=WIDTH, **shared)
    models.save(models.new_dual(size, models.word_piece(["a photo"], 50)), out / "model")
    (out / "photos").mkdir()
    rng = np.random.default_rng(0)
    for number in range(NUM_PHOTOS):
        Image.fromarray(rng.integers(256, size=(40, 60, 3), dtype=np.uint8)).save(out / "photos" / f"{number:04d}.png")
    (out / "photos" / "notes.txt").write_text("no image")
    return {"images": NUM_PHOTOS}


def embed(listed: Path, vectors: Path, num_actors: int) -> dict[str, Any]:
    """Embed a list of images with Ray on this machine."""
    import ray

    started = time.monotonic()
    # On loopback, and without a dashboard: nothing listens to other machines.
    ray.init(num_cpus=num_actors + 1, include_dashboard=False, _node_ip_address="127.0.0.1", logging_level="ERROR")
    ready = time.monotonic()
    images = ray.data.read_parquet(str(listed))
    embedded = images.map_batches(FakeEmbedder, batch_size=64, compute=ray.data.ActorPoolStrategy(size=num_actors))
    embedded.write_parquet(str(vectors))
    seconds = time.monotonic() - ready
    return {
        "ray": ray.__version__,
        "actors": num_actors,
        "images": images.count(),
        "start_s": round(ready - started, 1),
        "s": round(seconds, 1),
    }


def check(folder: Path, photos: Path) -> dict[str, Any]:
    """Compare the vectors of an index with the same vectors computed again."""
    from dcdctl.core.search import Index

    index = Index.open(folder)
    equal = 0
    for row in range(index.num_rows):
        vector = np.array(fake_vector((photos / index.image_id(row)).read_bytes()), dtype=np.float32)
        expected = (vector / np.linalg.norm(vector)).astype(np.float16)
        equal += int(np.array_equal(index.vectors(np.array([row]))[0], expected))
    return {"images": index.num_images, "equal": equal, "skipped": index.document["skipped"]["count"]}


if __name__ == "__main__":
    main()
