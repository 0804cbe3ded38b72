"""The plan `fewer-questions`: may a teacher be asked half as often?

    python benchmarks/evidence.py fewer-questions --work work/fewer-questions

Two students of the plan `picked`, late interaction with positions of the built-in ViLT of the scenes. With all captions
(`late-mined`), a student of the captions proposes 20 images for each caption: 107,520 pairs. Without a caption
(`pool-picked`, then `late-mined`), a dual student proposes in three rounds, and then 20 images for each text: 209,028
pairs, of which 106,648 are those of the rounds.

Rows ask for 100, 50 or 25 % of these pairs: the first images of what the student proposes; images spread evenly over
its order, from the top through the middle to the bottom; random ones; and, with all captions, first a quarter of the
pairs and then as many where student and teacher differ most (`--extend` with `--max-pairs`, `teacher.budget`).
Without a caption, rounds with `pool.max_pairs` ask that way from the second round on. There the random row has half of
its images from the top, since a random image is a text's own one time in a thousand, and no pick could be expected.

Only the spread needs more than today's options: `chosen_pairs.py` takes it from a wide cache of the 40 first images of
each text and 20 random ones. Two thirds of a spread thus lie in the first 40 places of the student's order, and one
third anywhere behind them. The pairs of the wide cache that are not chosen do not count as questions.

Candidates also decide which images meet in a batch. So a row tells of both, what is asked and what is in a batch, and
the rows with labels alone have the batches without the scores. With all captions these labels alone are within 1 of the
teacher's scores in the plan `picked` (591.6 and 592.4): there, half of the pairs can cost nothing only because all of
them bring nearly nothing. Without a caption the pairs are all that the student has.

One core takes about 7 hours. From published costs of the plan `picked`: 10 minutes for `late-mined`, 4 minutes for each
further student, 6 minutes without a caption, 2 to 3 for the dual student, and 1,000 pairs a second for the teacher.
A seed takes 10 + 9 x 4 + 8 minutes with all captions, and 3 x 2.5 + 3 x 6 + 4 x 5 + 10 without.

Expected, written on 2026-12-03 before the runs: the rows of `EXPECTED`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import evidence_picked
from evidence_picked import ALONE, BY_TEACHER, FROM_CLIP, PICKED, TEACHER, TEST
from evidence_steps import SEEDS, Step, sets
from evidence_wrong import EVERY_CAPTION

CHOOSE = "choose"
"""The command of `chosen_pairs.py`, the only one that is not `dcdctl`."""
RECIPE = "late-mined"
CAPTIONED, UNPAIRED = "All captions, 500 test scenes", "No caption, 500 test scenes"
OF_DUAL, OF_LATE = 106_648, 102_380
"""Pairs without a caption: of the dual student's rounds, and of late interaction."""
NUM_PAIRS = {CAPTIONED: 107_520, UNPAIRED: OF_DUAL + OF_LATE}
TOP, SPREAD, RANDOM = "the first of the proposals", "spread over the student's order", "random images"
DIFFER = "first a quarter, then where student and teacher differ"
HALF_RANDOM = "the first of the proposals and as many random images"
ALONE_SUFFIX = ", labels alone"
WIDE = sets(candidates__per_query=60, candidates__random_per_query=20)
BY_CHANCE = sets(candidates__kind="random", candidates__model="")
EXPECTED = {
    CAPTIONED: {
        (TOP, 100): 592,
        (TOP, 50): 592,
        (TOP, 25): 591,
        (SPREAD, 50): 589,
        (SPREAD, 25): 586,
        (RANDOM, 50): 583,
        (RANDOM, 25): 580,
        (DIFFER, 50): 592,
        (f"{TOP}{ALONE_SUFFIX}", 50): 591,
        (f"{SPREAD}{ALONE_SUFFIX}", 50): 586,
    },
    UNPAIRED: {
        (TOP, 100): 589,
        (TOP, 50): 586,
        (TOP, 25): 578,
        (SPREAD, 50): 575,
        (SPREAD, 25): 560,
        (HALF_RANDOM, 50): 583,
        (HALF_RANDOM, 25): 570,
    },
}
"""RSUM of each row by the share of the pairs, a mean of three seeds; within 3, a row is as expected."""


def label(way: str, percent: int) -> str:
    return f"{way}, {percent} % of the pairs"


BASE = label(TOP, 100)
PARTS = {
    CAPTIONED: {
        "half of the pairs": (label(TOP, 50), BASE),
        "a quarter of the pairs": (label(TOP, 25), BASE),
        "spread, in place of the first, half of the pairs": (label(SPREAD, 50), label(TOP, 50)),
        "random, in place of the first, half of the pairs": (label(RANDOM, 50), label(TOP, 50)),
        "where they differ, in place of the first": (label(DIFFER, 50), label(TOP, 50)),
        "the teacher's scores, half of the pairs": (label(TOP, 50), label(f"{TOP}{ALONE_SUFFIX}", 50)),
    },
    UNPAIRED: {
        "half of the pairs": (label(TOP, 50), BASE),
        "a quarter of the pairs": (label(TOP, 25), BASE),
        "spread, in place of the first, half of the pairs": (label(SPREAD, 50), label(TOP, 50)),
        "half random, in place of the first, half of the pairs": (label(HALF_RANDOM, 50), label(TOP, 50)),
    },
}
"""Differences of rows with an interval over queries and seeds."""


def fewer_questions() -> list[Step]:
    """With all captions, then without, seed by seed."""
    steps = evidence_picked.corpora()
    for seed in SEEDS:
        steps += Captioned(seed).steps()
    for seed in SEEDS:
        steps += Unpaired(seed).steps()
    return steps


@dataclass(frozen=True)
class Captioned:
    """The rows of a seed with all captions."""

    seed: int

    def steps(self) -> Iterator[Step]:
        data, every = "data/scenes", f"runs/late-all-{self.seed}"
        proposer = f"{every}-rounds/run-0"
        model = sets(candidates__model=proposer)
        words = (RECIPE, "--data", data, *BY_TEACHER, *sets(seed=self.seed))
        yield Step(every, "distill", words, (data,), CAPTIONED, BASE, "", TEST)
        scored = ("--data", data, "--teacher", TEACHER, "--recipe", RECIPE)
        caches, number = f"caches/late-{{}}-{self.seed}", NUM_PAIRS[CAPTIONED]
        wide, quarter = caches.format("wide"), ("--max-pairs", str(number // 4))
        extended = (*scored, *model, *WIDE, "--extend", f"{every}-rounds/cache-1")
        yield Step(wide, "cache-teacher", extended, (every,))
        for percent in (50, 25):
            pairs = str(number * percent // 100)
            top, spread, chance = (caches.format(f"{name}-{percent}") for name in ("top", "spread", "random"))
            yield Step(top, "cache-teacher", (*scored, *model, "--max-pairs", pairs), (every,))
            chosen = ("--cache", wide, "--data", data, "--model", proposer, "--pairs", pairs)
            yield Step(spread, CHOOSE, chosen, (wide,))
            yield Step(chance, "cache-teacher", (*scored, *BY_CHANCE, "--max-pairs", pairs), (data,))
            yield self._train(top, model, label(TOP, percent))
            yield self._train(spread, (*model, *WIDE), label(SPREAD, percent))
            yield self._train(chance, BY_CHANCE, label(RANDOM, percent))
        first, differ = caches.format("top-25"), caches.format("differ-50")
        yield Step(differ, "cache-teacher", (*scored, *model, "--extend", first, *quarter), (first,))
        yield self._train(differ, model, label(DIFFER, 50))
        for way, settings in {TOP: model, SPREAD: (*model, *WIDE)}.items():
            cache = caches.format("top-50" if way == TOP else "spread-50")
            yield self._train(cache, (*settings, *ALONE), label(f"{way}{ALONE_SUFFIX}", 50), "-labels")

    def _train(self, cache: str, settings: tuple[str, ...], row: str, suffix: str = "") -> Step:
        own = (*sets(seed=self.seed), *settings, *EVERY_CAPTION)
        words = (RECIPE, "--data", "data/scenes", "--cache", cache, *own)
        out = f"runs/{cache.removeprefix('caches/')}{suffix}"
        return Step(out, "distill", words, (cache,), CAPTIONED, row, BASE, TEST)


@dataclass(frozen=True)
class Unpaired:
    """The rows of a seed without a caption."""

    seed: int

    def steps(self) -> Iterator[Step]:
        for percent in (100, 50, 25):
            dual = f"runs/dual-0-{percent}-{self.seed}"
            budget = sets(pool__max_pairs=OF_DUAL * percent // 100) if percent < 100 else ()
            by_rounds = ("pool-picked", "--data", "data/unpaired", *BY_TEACHER, *FROM_CLIP, *sets(seed=self.seed))
            yield Step(dual, "distill", (*by_rounds, *budget), ("data/unpaired",))
            pairs = OF_LATE * percent // 100
            asked = (*BY_TEACHER, *sets(candidates__model=dual, pool__rounds=1))
            first = sets(pool__max_pairs=pairs) if percent < 100 else ()
            yield self._train(f"late-0-{percent}", (*asked, *first), (dual,), label(TOP, percent))
            if percent < 100:
                yield from self._others(percent, dual, pairs)

    def _others(self, percent: int, dual: str, pairs: int) -> Iterator[Step]:
        data, model = "data/unpaired", sets(candidates__model=dual)
        scored = ("--data", data, "--teacher", TEACHER, "--recipe", RECIPE)
        wide, spread = f"caches/late-0-wide-{percent}-{self.seed}", f"caches/late-0-spread-{percent}-{self.seed}"
        yield Step(wide, "cache-teacher", (*scored, *model, *WIDE), (dual,))
        chosen = ("--cache", wide, "--data", data, "--model", dual, "--pairs", str(pairs))
        yield Step(spread, CHOOSE, chosen, (wide,))
        row = label(SPREAD, percent)
        yield self._train(f"late-0-spread-{percent}", ("--cache", spread, *model, *WIDE), (spread,), row)
        # The recipe's 20 images for each text, by the share.
        count = 20 * percent // 100
        mixed = sets(candidates__per_query=count, candidates__random_per_query=count // 2, pool__rounds=1)
        row = label(HALF_RANDOM, percent)
        yield self._train(f"late-0-random-{percent}", (*BY_TEACHER, *model, *mixed), (dual,), row)

    def _train(self, name: str, words: tuple[str, ...], after: tuple[str, ...], row: str) -> Step:
        arguments = (RECIPE, "--data", "data/unpaired", *PICKED, *sets(seed=self.seed), *words)
        needs = (*after, "data/scenes")
        return Step(f"runs/{name}-{self.seed}", "distill", arguments, needs, UNPAIRED, row, BASE, TEST)
