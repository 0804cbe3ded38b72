"""The plan `ten-thousand`: what a teacher brings where recalls are not full, among 10,000 scenes.

    python benchmarks/evidence.py ten-thousand --work work/ten-thousand

The students are the late-interaction ones of the plan `picked`, trained by the same steps. They rank 10,000 test scenes
with one caption each, in both directions. With 500 scenes of 5 captions all of them end at 590 of 600.

The teacher would score 100 million pairs, which takes 27 hours. It ranks all 10,000 scenes for a sample: one caption of
every fiftieth scene, 200 in all, 2 million pairs. `dcdctl eval` cannot do that, since it ranks both sides of a split
and every image has a caption. So the scenes and the sample are a pool, the teacher scores every pair of it, and
the recalls come from that cache. Students have theirs on the same 200 captions (`sample.md`); a tie counts against the
own image.
A recall of 60 % has a 95 % interval of 7 points to each side with a sample of 200.

One more row re-ranks a student's first 20 by the teacher, which any user can: 400,000 pairs.

One core takes about 4 hours. From published costs of the plan `picked`: the students of a seed take 42 minutes, 20 of
which are of `late-mined` without a caption and with 128; a ranking of 10,000 scenes 2 minutes, from the 22 seconds that
20 million pairs took; and 1,000 pairs a second for the teacher, 7 minutes for its first 20 and 35 for its sample.

Expected, written on 2026-12-03 before the runs: the rows of `EXPECTED`, and `EXPECTED_TEACHER` of the sample. A caption
fits several of 10,000 scenes, so R@1 falls for all, and the order of the rows stays as it is with 500 scenes. With all
captions the teacher's scores are expected to bring less than 5.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from statistics import mean, stdev

import evidence_picked
import numpy as np
import pandas as pd
import reports
import scenes_clip
from evidence_picked import CHANCE, DRAWN, ITS_PICKS, OF_128, OF_ALL, OF_NONE, PICKS, TAUGHT, TEACHER
from evidence_steps import SEEDS, Step, sets

from dcdctl.core.data import Corpus, scenes
from dcdctl.core.teacher import TeacherCache, read_cache

NUM_SCENES, EVERY = 10_000, 50
TABLE = "10,000 scenes with one caption each"
MEASURE = ("--data", "data/many", "--split", "test")
SAMPLE = "caches/sample"
RANDOM_BATCHES, PROPOSED = f"{OF_ALL}, no teacher, random batches", f"{OF_ALL}, no teacher, the same proposals"
BY_CHANCE = f"{OF_ALL}, {CHANCE}"
FIRST_20 = f"{TAUGHT}, its first 20 by the teacher"
RUNS = {
    PROPOSED: ("late-all-{}-labels", "runs/late-all-{}-labels"),
    TAUGHT: ("late-all-{}", "runs/late-all-{}"),
    f"{OF_NONE}, {ITS_PICKS}": ("late-0-{}", "runs/late-0-{}"),
    RANDOM_BATCHES: ("late-all-{}", "runs/late-all-{}-rounds/run-0"),
    BY_CHANCE: ("late-all-{}-random", "runs/late-all-{}-random"),
    f"{OF_128}, {PICKS}": ("late-128-{}", "runs/late-128-{}"),
}
"""For each row the run of the plan `picked`, by its seed, and the model that is measured."""
EXPECTED = {
    RANDOM_BATCHES: 440,
    PROPOSED: 505,
    BY_CHANCE: 470,
    TAUGHT: 508,
    FIRST_20: 515,
    f"{OF_NONE}, {ITS_PICKS}": 495,
    f"{OF_128}, {PICKS}": 485,
}
"""RSUM of each row, a mean of three seeds; within 10, a row is as expected."""
EXPECTED_TEACHER = (62, 94, 98)
"""R@1, 5 and 10 of the 200 captions; within 7, 4 and 3, as expected."""
PARTS = {
    "the teacher's scores": (TAUGHT, PROPOSED),
    "proposals, labels alone": (PROPOSED, RANDOM_BATCHES),
    "scores rather than random ones": (TAUGHT, BY_CHANCE),
    "no caption, beside all captions": (f"{OF_NONE}, {ITS_PICKS}", PROPOSED),
    "128 captions, beside all captions": (f"{OF_128}, {PICKS}", PROPOSED),
    "its first 20 by the teacher": (FIRST_20, TAUGHT),
}
"""Differences of rows with an interval over queries and seeds."""


def write_inputs(work: Path) -> None:
    """Write the 10,000 scenes, and the captions of the sample with the scene of each."""
    if (work / "sample.json").exists():
        return
    folder, sample = work / "photos" / "many", {}
    folder.mkdir(parents=True, exist_ok=True)
    for number, item in enumerate(islice(scenes.describe_scenes(0, "test", 1), NUM_SCENES)):
        drawn = scenes.draw_scene(item.scene, scenes_clip.SIDE_PX)
        (folder / f"{number:05}.png").write_bytes(scenes.to_png(drawn))
        if number % EVERY == 0:
            sample[item.statements[0].text] = number
    (work / "sample.txt").write_text("\n".join(sample) + "\n")
    (work / "sample.json").write_text(json.dumps(sample))


def ten_thousand() -> list[Step]:
    """The students seed by seed, each with its ranking, and then the teacher."""
    size = sets(captions=1, counts__train=0, counts__val=0, counts__test=NUM_SCENES)
    pool = ("--images", "photos/many", "--queries", "sample.txt", "--hold-out", "0")
    steps = [
        *evidence_picked.corpora(),
        Step("data/many", "prepare", (*DRAWN, *size)),
        Step("data/sample", "prepare", pool),
    ]
    for seed in SEEDS:
        steps += [*_trainings(seed), *_rankings(seed)]
    every_pair = sets(candidates__kind="random", candidates__model="", candidates__per_query=NUM_SCENES)
    words = ("--data", "data/sample", "--teacher", TEACHER, "--recipe", "late-mined", *every_pair)
    return [*steps, Step(SAMPLE, "cache-teacher", words, ("data/sample",))]


def _trainings(seed: int) -> list[Step]:
    """The steps of the plan `picked` that the rows need; not their results on 500 scenes, which are published there."""
    by_out = {step.out: step for step in evidence_picked.picked()}
    needed: dict[str, Step] = {}

    def add(out: str) -> None:
        for before in by_out[out].after:
            add(before)
        needed.setdefault(out, replace(by_out[out], table="", label="", base="", measure=()))

    for run, _ in RUNS.values():
        add(f"runs/{run.format(seed)}")
    return [step for step in needed.values() if not step.out.startswith("data/")]


def _rankings(seed: int) -> list[Step]:
    rows = {label: (run, model, ()) for label, (run, model) in RUNS.items()}
    rows[FIRST_20] = (*RUNS[TAUGHT], ("--rerank", TEACHER, "--depth", "20"))
    return [
        Step(
            f"runs/rank-{number}-{seed}",
            "eval",
            (model.format(seed), *MEASURE, *more),
            (f"runs/{run.format(seed)}", "data/many"),
            TABLE,
            label,
            PROPOSED,
        )
        for number, (label, (run, model, more)) in enumerate(rows.items())
    ]


def write(steps: Sequence[Step], work: Path, results: Path) -> str:
    """Write sample.md, the recalls of the sample's captions, and return it. Without the work folder it stays as it
    is."""
    path, sample_path = results / "sample.md", work / "sample.json"
    if not sample_path.exists():
        return path.read_text() if path.exists() else ""
    sample: dict[str, int] = json.loads(sample_path.read_text())
    rows = []
    for label in dict.fromkeys(step.label for step in steps if step.table):
        files = [work / step.out / "ranks.parquet" for step in steps if step.label == label]
        ranks = [ranks_of_sample(pd.read_parquet(file), sample) for file in files if file.exists()]
        if ranks:
            rows.append([label, *_recalls(ranks)])
    if (work / SAMPLE / "cache.json").exists():
        corpus = Corpus.open(work / "data" / "sample", "train")
        rows.append(["the teacher, all pairs", *_recalls([ranks_in_cache(read_cache(work / SAMPLE), corpus, sample)])])
    document = f"### {len(sample)} captions among {NUM_SCENES:,} scenes\n\n"
    document += reports.table(["", "image R@1", "R@5", "R@10"], rows) + "\n"
    path.write_text(document)
    return document


def ranks_of_sample(ranks: pd.DataFrame, sample: dict[str, int]) -> list[int]:
    """The ranks of the sample's images, by a table of all ranks, whose queries are the scenes in their order."""
    of_captions = ranks[ranks["direction"] == "image"].set_index("query")
    return [int(rank) for rank in of_captions.loc[list(sample.values()), "rank"]]


def ranks_in_cache(cache: TeacherCache, corpus: Corpus, sample: dict[str, int]) -> list[int]:
    """The ranks of the sample's images by the scores of a pool, in which every pair is scored."""
    images, ranks = np.arange(corpus.num_images), []
    number_of = {int(Path(image_id).stem): image for image, image_id in enumerate(corpus.image_ids)}
    for text, caption in enumerate(corpus.captions):
        score_I = cache.lookup(images, np.full(len(images), text))
        own = score_I[number_of[sample[caption]]]
        ranks.append(int((score_I >= own).sum()))
    return ranks


def _recalls(ranks: Sequence[Sequence[int]]) -> list[str]:
    """R@1, 5 and 10 in percent, a mean over seeds with its standard deviation."""
    cells = []
    for k in (1, 5, 10):
        shares = [100 * mean(rank <= k for rank in of_seed) for of_seed in ranks]
        spread = f" ± {stdev(shares):.1f}" if len(shares) > 1 else ""
        cells.append(f"{mean(shares):.1f}{spread}")
    return cells
