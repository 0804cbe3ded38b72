"""Ray Data scores the work list of a cache, and dcdctl takes the scores back. Run by hand: starting Ray takes 20 s and
more.

    python -m venv rayvenv && rayvenv/bin/pip install 'ray[data]'
    dcdctl prepare scenes --set counts.train=200 --out OUT/scenes
    dcdctl cache-teacher --data OUT/scenes --recipe demo-dual --out OUT/cache --plan-only --with captions,bytes
    RAY_USAGE_STATS_ENABLED=0 rayvenv/bin/python benchmarks/ray_scoring.py OUT/cache/work OUT/scores
    dcdctl cache-teacher --data OUT/scenes --recipe demo-dual --out OUT/cache --scores OUT/scores --teacher-name fake
    python benchmarks/ray_scoring.py --check OUT/cache OUT/scenes

The scorer is made up: sums of the bytes of the image and of the caption. `--check` computes it again from the corpus,
and compares every score of the sealed cache. Scoring imports no dcdctl, so Ray may have an environment of its own. Ends
with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np


class FakeScorer:
    """Stands for a model that each actor loads once."""

    def __call__(self, rows: dict[str, Any]) -> dict[str, Any]:
        """The ids and the scores of a batch of pairs."""
        scores = [fake_score(data, text) for data, text in zip(rows["image_bytes"], rows["caption"], strict=True)]
        return {
            "image_id": rows["image_id"],
            "caption_id": rows["caption_id"],
            "score": np.array(scores, dtype=np.float32),
        }


def fake_score(data: bytes, text: str) -> float:
    return (sum(data) % 997) / 997 + (sum(text.encode()) % 991) / 991


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--actors", type=int, default=1)
    options = parser.parse_args()
    found = (
        check(options.source, options.target)
        if options.check
        else score(options.source, options.target, options.actors)
    )
    sys.stdout.write(json.dumps(found) + "\n")


def score(work: Path, scores: Path, num_actors: int) -> dict[str, Any]:
    """Score a work list with Ray on this machine."""
    import ray

    started = time.monotonic()
    # On loopback, and without a dashboard: nothing listens to other machines.
    ray.init(num_cpus=num_actors + 1, include_dashboard=False, _node_ip_address="127.0.0.1", logging_level="ERROR")
    ready = time.monotonic()
    pairs = ray.data.read_parquet(str(work))
    scored = pairs.map_batches(FakeScorer, batch_size=64, compute=ray.data.ActorPoolStrategy(size=num_actors))
    scored.write_parquet(str(scores))
    seconds = time.monotonic() - ready
    return {
        "ray": ray.__version__,
        "actors": num_actors,
        "pairs": pairs.count(),
        "start_s": round(ready - started, 1),
        "s": round(seconds, 1),
    }


def check(cache: Path, data: Path) -> dict[str, Any]:
    """Compare the scores of a sealed cache with the same scores computed again."""
    from dcdctl.core.data import Corpus
    from dcdctl.core.teacher import read_cache

    corpus = Corpus.open(data, "train")
    read = read_cache(cache, corpus=corpus)
    pairs = zip(read.image_P.tolist(), read.text_P.tolist(), strict=True)
    expected = np.array(
        [fake_score(corpus.image_bytes(image), corpus.captions[text]) for image, text in pairs], dtype=np.float32
    )
    return {"pairs": len(expected), "equal": int((read.score_P == expected).sum()), "teacher": read.teacher_name}


if __name__ == "__main__":
    main()
