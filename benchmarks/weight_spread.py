"""The spread of DCD's weights over a batch of B lists, for entropies of a real teacher (docs/losses.md).

    python benchmarks/weight_spread.py --data data/flickr8k --cache cache/pair --recipe photos-fusion

The lists are those that the recipe draws from the cache. They are cut into batches of B, as `loss.weight_group` cuts
them into groups. The script ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from dcdctl.core.data import Corpus, Index
from dcdctl.core.teacher import read_cache
from dcdctl.core.training.batches.lists import CandidateListBatches
from dcdctl.core.training.losses import weights
from dcdctl.core.training.recipe import load_recipe

SIZES = (4, 8, 16, 32, 64, 128, 256, 512)


@dataclass(frozen=True)
class Indices:
    """A source that returns the requested indices in place of images and captions: only scores are needed."""

    corpus: Corpus

    def images(self, image_ix: Index) -> Index:
        return image_ix

    def texts(self, text_ix: Index) -> Index:
        return text_ix


def spread(teacher_BN: Tensor, size: int) -> dict[str, float]:
    """Smallest, largest and standard deviation of n r, and standard deviation of n w, in groups of n = `size` lists."""
    w_B, r_B = (len(teacher_BN) * each_B for each_B in weights.dcd_weights(teacher_BN, group=size))
    values = {"r_min": r_B.min(), "r_max": r_B.max(), "r_std": r_B.std(), "w_std": w_B.std()}
    return {"lists": size, **{name: round(value.item(), 4) for name, value in values.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--recipe", default="photos-fusion")
    parser.add_argument("--lists", type=int, default=8192, help="a multiple of 512")
    parser.add_argument("--set", action="append", default=[], dest="sets")
    options = parser.parse_args()
    recipe = load_recipe(options.recipe, [*options.sets, f"batch.size={options.lists}"])
    corpus = Corpus.open(options.data, "train")
    source: Any = Indices(corpus)
    teacher_BN = CandidateListBatches(source, recipe.batch, recipe.seed, read_cache(options.cache, corpus=corpus))[
        0
    ].teacher_RC
    entropy_B = weights.entropy(teacher_BN)
    rows = [spread(teacher_BN, size) for size in SIZES]
    sys.stdout.write(
        "| lists | n r: smallest | largest | standard deviation | n w: standard deviation |\n|---|---|---|---|---|\n"
    )
    for row in rows:
        sys.stdout.write(
            f"| {row['lists']} | {row['r_min']:.3f} | {row['r_max']:.3f} | {row['r_std']:.4f} | {row['w_std']:.3f} |\n"
        )
    entropy = {
        "mean": round(entropy_B.mean().item(), 4),
        "relative_std": round((entropy_B.std() / entropy_B.mean()).item(), 4),
    }
    sys.stdout.write(
        json.dumps({"lists": len(teacher_BN), "columns": teacher_BN.shape[1], "entropy": entropy, "rows": rows}) + "\n"
    )


if __name__ == "__main__":
    main()
