"""How deep a cascade must re-rank to be as good as its re-ranker alone: recall, time and pairs per query at every
depth.

    python benchmarks/evidence.py scenes-cascade --work work/scenes-cascade          trains the students
    python benchmarks/cascade_depths.py --work work/scenes-cascade                   500 test scenes, all seeds

The teacher and the fusion students score all 1,250,000 pairs of the test split once; every cascade is computed from
these scores by the code of `dcdctl eval --rerank`. The scores of each 20 images are a file in WORK/scores, so a killed
benchmark resumes. With --times, the queries of the first seed are timed as well. Writes
docs/results/scenes-cascade/depths.json and prints the tables.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from evidence_cascade import DEPTHS, DUAL, FUSION, STUDENTS, TEACHER, run_name
from evidence_steps import SEEDS
from numpy.typing import NDArray

from dcdctl.core import models, scoring
from dcdctl.core.data import Corpus
from dcdctl.core.devices import ON_CPU
from dcdctl.core.evaluation import cascade, ranks, recall

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results" / "scenes-cascade"
BLOCK_IMAGES = 20
TOLERANCE = 1.0
"""Points of R@1 that a cascade may lose in each direction."""


@dataclass(frozen=True)
class Gallery:
    """The test split, and the folder of a plan."""

    corpus: Corpus
    work: Path

    def pair_scorer(self, ref: str) -> scoring.PairScorer:
        scorer = models.load_fusion(ref)
        scorer.eval()
        sizes = range(self.corpus.num_images), range(self.corpus.num_captions)
        source = scoring.open_source(self.corpus, scorer, ON_CPU)
        return scoring.PairScorer(scorer=scorer, source=source, images=sizes[0], texts=sizes[1], compute=ON_CPU)

    def scores(self, ref: str) -> NDArray[np.float32]:
        """(I, T): the logits of all pairs, from the files of earlier runs where there are any."""
        folder = self.work / "scores" / Path(ref).name
        folder.mkdir(parents=True, exist_ok=True)
        firsts = range(0, self.corpus.num_images, BLOCK_IMAGES)
        missing = [first for first in firsts if not (folder / f"{first}.npy").exists()]
        pairs = self.pair_scorer(ref) if missing else None
        for first in missing:
            assert pairs is not None
            started = time.process_time()
            images = np.arange(first, min(first + BLOCK_IMAGES, self.corpus.num_images))
            texts = np.arange(self.corpus.num_captions)
            scores_P = pairs.score(np.repeat(images, len(texts)), np.tile(texts, len(images)))
            unfinished = folder / f"{first}.tmp.npy"
            np.save(unfinished, scores_P.reshape(len(images), len(texts)))
            unfinished.replace(folder / f"{first}.npy")
            say(
                f"{ref}: images {first} to {images[-1]}, {len(scores_P) / (time.process_time() - started):,.0f} "
                "pairs per processor second"
            )
        return np.concatenate([np.load(folder / f"{first}.npy") for first in firsts])

    def embedded(self, run: str) -> tuple[Any, Any, Any]:
        """A dual encoder, and its vectors of images and captions."""
        model = models.load_dual(self.work / run)
        embedder = scoring.dual_embedder(model, ON_CPU.device)
        vectors = scoring.embed_all(embedder, scoring.open_source(self.corpus, model, ON_CPU), ON_CPU, normalize=False)
        return model, vectors.images_ID, vectors.texts_TD

    def row(self, label: str, seed: int | None, depth: int | None, rankings: ranks.Rankings) -> dict[str, Any]:
        """One measured system. Depth None stands for a model without re-ranking."""
        recalls = recall.Recalls.from_ranks(rankings.ranks)
        both = {"text_retrieval": recalls.text_retrieval, "image_retrieval": recalls.image_retrieval}
        return {"system": label, "seed": seed, "depth": depth, **both, "rsum": recalls.rsum}


def measure(gallery: Gallery, seeds: list[int]) -> Iterator[dict[str, Any]]:
    """The rows of all systems: the teacher, then the students and cascades of each seed."""
    image_T = gallery.corpus.caption_image
    teacher_IT = gallery.scores(TEACHER)
    yield gallery.row("teacher", None, None, rank_all(teacher_IT, image_T))
    for seed in seeds:
        run = run_name(FUSION, seed)
        fusion_IT = gallery.scores(str(gallery.work / run)) if (gallery.work / run).exists() else None
        if fusion_IT is not None:
            yield gallery.row(FUSION, seed, None, rank_all(fusion_IT, image_T))
        for label in STUDENTS:
            if not (gallery.work / run_name(label, seed) / "model").exists():
                continue
            _, image_ID, text_TD = gallery.embedded(run_name(label, seed))
            deepest = max(DEPTHS)
            first = ranks.rank_embeddings(image_ID, text_TD, image_T, num_top=deepest)
            yield gallery.row(label, seed, None, first)
            shortlists = cascade.Shortlists(first, image_T, deepest)
            scorers = {"teacher": teacher_IT} | ({} if fusion_IT is None else {FUSION: fusion_IT})
            for scorer, scores_IT in scorers.items():
                for depth in DEPTHS:
                    yield gallery.row(
                        f"{label}, by {scorer}", seed, depth, shortlists.rerank(scores_IT[shortlists.pairs], depth)
                    )


def rank_all(scores_IT: NDArray[np.float32], image_T: NDArray[np.int64]) -> ranks.Rankings:
    """The rankings of a fusion scorer alone, by the code of `dcdctl eval`."""
    positive_T = scores_IT[image_T, np.arange(len(image_T))]
    counter = ranks.RankCounter(positive_T, image_T, margin=scoring.LOGIT_ROUNDING)
    counter.add(scores_IT)
    return counter.rankings()


def times(gallery: Gallery, scorer: str) -> dict[str, float]:
    """Milliseconds of a caption at each depth, for the dual student of the first seed; depth 0 is the dual student
    alone."""
    model, image_ID, _ = gallery.embedded(run_name(next(iter(STUDENTS)), SEEDS[0]))
    depths = (0, *DEPTHS, gallery.corpus.num_images)
    measured = cascade.query_ms(model, image_ID, gallery.pair_scorer(scorer), gallery.corpus, depths)
    return dict(zip(map(str, depths), measured, strict=True))


def tables(rows: list[dict[str, Any]], times_ms: dict[str, dict[str, float]]) -> str:
    """One line per system and depth: the means over the seeds, and each seed's loss of R@1 against the teacher."""
    teacher = next(row for row in rows if row["system"] == "teacher")
    lines = [
        "| | pairs per query | ms per query | text R@1/5/10 | image R@1/5/10 | R@1 of each seed, minus the teacher's |",
        "|" + "---|" * 6,
    ]
    groups: dict[tuple[str, int | None], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["system"], row["depth"]), []).append(row)
    for (label, depth), members in groups.items():
        recalls = [
            "/".join(f"{mean(row[side][k] for row in members):.1f}" for k in ("R@1", "R@5", "R@10"))
            for side in ("text_retrieval", "image_retrieval")
        ]
        losses = ", ".join(
            "/".join(
                f"{row[side]['R@1'] - teacher[side]['R@1']:+.1f}" for side in ("text_retrieval", "image_retrieval")
            )
            for row in members
        )
        scorer = "teacher" if label.endswith("teacher") else FUSION
        is_dual = label in STUDENTS
        place = "0" if is_dual else "500" if depth is None else str(depth)
        ms = times_ms.get(scorer, {}).get(place)
        pairs = "0" if is_dual else "2,500 and 500" if depth is None else str(depth)
        lines.append(f"| {label} | {pairs} | {'' if ms is None else f'{ms:,.1f}'} | {' | '.join(recalls)} | {losses} |")
    return "\n".join(lines) + "\n"


def enough(rows: list[dict[str, Any]]) -> str:
    """For each cascade and seed the smallest depth that loses at most `TOLERANCE` in both directions."""
    teacher = next(row for row in rows if row["system"] == "teacher")
    sides = ("text_retrieval", "image_retrieval")
    found: dict[tuple[str, int], int] = {}
    for row in rows:
        if row["depth"] is not None and all(teacher[side]["R@1"] - row[side]["R@1"] <= TOLERANCE for side in sides):
            found.setdefault((row["system"], row["seed"]), row["depth"])
    return "".join(
        f"{system}, seed {seed}: within {TOLERANCE} of the teacher's R@1 at depth {depth}\n"
        for (system, seed), depth in found.items()
    )


def say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of the plan scenes-cascade")
    parser.add_argument(
        "--only-scores", metavar="REF", help="score all pairs by this model and stop: scenes-vilt or a run"
    )
    parser.add_argument("--times", action="store_true", help="also time the queries; leave the machine alone meanwhile")
    args = parser.parse_args()
    gallery = Gallery(Corpus.open(args.work / "data", "test"), args.work)
    if args.only_scores:
        gallery.scores(args.only_scores)
        return
    seeds = [seed for seed in SEEDS if (args.work / run_name(DUAL, seed) / "model").exists()]
    rows = list(measure(gallery, seeds))
    path = RESULTS / "depths.json"
    times_ms = json.loads(path.read_text())["ms_per_query"] if path.exists() else {}
    if args.times:
        fusion = args.work / run_name(FUSION, SEEDS[0])
        scorers = {"teacher": TEACHER, **({FUSION: str(fusion)} if fusion.exists() else {})}
        times_ms = {name: times(gallery, scorer) for name, scorer in scorers.items()}
    RESULTS.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"rows": rows, "ms_per_query": times_ms}, indent=1) + "\n")
    sys.stdout.write(tables(rows, times_ms) + "\n" + enough(rows))


if __name__ == "__main__":
    main()
