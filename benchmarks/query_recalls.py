"""What query students keep of their teacher: recalls of captions, and the first image of queries without one.

    python benchmarks/query_recalls.py --work work/elsewhere --outside queries.txt --out queries.json

For the folder of the plan `elsewhere`: the teachers runs/big-SEED and their students. Each teacher embeds
the images of a split once, from stored features, for itself and for its students; `dcdctl eval --query-model` would
embed them for each. A tie counts against the positive, as in `dcdctl eval`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from evidence_steps import SEEDS
from reports import commit, say
from torch import Tensor

from dcdctl.core import models, scoring
from dcdctl.core.data import Corpus
from dcdctl.core.engines import ON_CPU
from dcdctl.core.evaluation import measures

SPLITS = {"further": ("held", "test"), "chosen on": ("held", "val"), "val": ("data", "val")}
"""The corpus and the split of the three sets of photos."""
CAPTIONS_PER_BATCH = 512


def embed(model: Any, captions: Sequence[str]) -> Tensor:
    """The vectors of captions, T x D."""
    model.eval()
    with torch.inference_mode():
        parts = [captions[at : at + CAPTIONS_PER_BATCH] for at in range(0, len(captions), CAPTIONS_PER_BATCH)]
        return torch.cat([model.embed_texts(model.preprocess.texts(part)) for part in parts])


def recalls(score_TI: Tensor, corpus: Corpus) -> dict[str, float]:
    """R@K of both directions and RSUM, in percent."""
    image_T = torch.from_numpy(corpus.caption_image)
    is_own_TI = image_T[:, None] == torch.arange(corpus.num_images)
    by_image = measures.recall_at_k(_ranks(score_TI, is_own_TI))
    by_text = measures.recall_at_k(_ranks(score_TI.T, is_own_TI.T))
    found = {f"image {name}": value for name, value in by_image.items()}
    found |= {f"text {name}": value for name, value in by_text.items()}
    return found | {"RSUM": measures.rsum(by_text, by_image)}


def _ranks(score_QG: Tensor, is_own_QG: Tensor) -> Any:
    best_Q = score_QG.masked_fill(~is_own_QG, -torch.inf).amax(dim=1)
    # The number of other candidates that score at least as high.
    return (((score_QG >= best_Q[:, None]) & ~is_own_QG).sum(dim=1) + 1).numpy()


def measure(work: Path, seed: int, outside: Sequence[str]) -> dict[str, Any]:
    """The numbers of a teacher and its students, and the share of outside queries for which a student has its teacher's
    first image first."""
    big = work / f"runs/big-{seed}"
    teacher = models.load_dual(big)
    runs = sorted(path for path in (work / "runs").glob(f"*-{seed}") if path != big and (path / "cost.json").exists())
    named = {path.name.rpartition("-")[0]: path for path in runs}
    sides = {"teacher": teacher} | {name: models.with_queries(teacher, path) for name, path in named.items()}
    document: dict[str, Any] = {name: {} for name in sides}
    compute = replace(ON_CPU, features=work / "features")
    for label, (folder, split) in SPLITS.items():
        corpus = Corpus.open(work / folder, split)
        source = scoring.open_source(corpus, teacher, compute)
        images_ID = scoring.embed_with_model(teacher, source, ON_CPU.device).images_ID
        firsts = {}
        for name, side in sides.items():
            document[name][label] = recalls(embed(side, corpus.captions) @ images_ID.T, corpus)
            if label == "further":
                firsts[name] = (embed(side, outside) @ images_ID.T).argmax(dim=1)
                same = firsts[name] == firsts["teacher"]
                document[name]["outside, same first image"] = 100 * same.float().mean().item()
            say(f"{name}, seed {seed}, {label}: {document[name][label]}")
    return document


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--outside", type=Path, required=True, help="queries of another source, one a line")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    outside = args.outside.read_text().splitlines()
    document = json.loads(args.out.read_text()) if args.out.exists() else {"commit": commit(), "seeds": {}}
    for seed in SEEDS:
        if (args.work / f"runs/big-{seed}/result.json").exists():
            document["seeds"][str(seed)] = measure(args.work, seed, outside)
    args.out.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
