"""How often the 95 % intervals of `dcdctl compare --draw-seeds` contain the true difference, and how often its tests
claim one where there is none.

    python benchmarks/interval_coverage.py

Both systems are trainings of one kind, so their true difference is 0. A training ranks each of 200 images and 1,000
captions with a log-rank that is the query's, plus one number that its seed adds to all queries, plus noise. The columns
are shares of the pairs of systems, and the mean width of the interval in points of RSUM.

Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from statistics import fmean

import numpy as np
import reports

from dcdctl.core.evaluation import RankTable, compare_ranks

NUM_IMAGES, CAPTIONS_PER_IMAGE = 200, 5
NUM_RUNS = (2, 3, 5, 10)
SPREADS = ((0.2, 0.2), (0.05, 0.05), (0.2, 0.0), (0.0, 0.0))
"""Standard deviation, over the runs of each system, of the log-rank."""
LOG_RANK, LOG_RANK_SPREAD, CAPTION_SPREAD, NOISE = 2.0, 1.5, 0.5, 0.5
ALPHA = 0.05
HEADS = ("spread of runs", "runs", "covered", "width", "images and runs", "t-test", "both", "images alone")


class Trainings:
    """Draws trainings that rank the same queries."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._ids = tuple(map(str, range(NUM_IMAGES)))
        self._image_T = np.repeat(np.arange(NUM_IMAGES), CAPTIONS_PER_IMAGE)
        self._image_I = rng.normal(LOG_RANK, LOG_RANK_SPREAD, NUM_IMAGES)
        self._caption_T = self._image_I[self._image_T] + rng.normal(0, CAPTION_SPREAD, len(self._image_T))

    def draw(self, spread: float) -> RankTable:
        of_seed = self._rng.normal(0, spread)
        text_I, image_T = (self._ranks(log_Q + of_seed) for log_Q in (self._image_I, self._caption_T))
        return RankTable(self._ids, np.arange(len(image_T)), self._image_T, text_I, image_T)

    def _ranks(self, log_Q: np.ndarray) -> np.ndarray:
        return np.ceil(np.exp(log_Q + self._rng.normal(0, NOISE, len(log_Q)))).astype(np.int64)


def measure(spreads: tuple[float, float], num_runs: int, num_pairs: int, resamples: int) -> dict[str, object]:
    """The row of one spread and number of runs."""
    rng, found = np.random.default_rng(0), []
    for _ in range(num_pairs):
        trainings = Trainings(rng)
        ours, base = ([trainings.draw(spread) for _ in range(num_runs)] for spread in spreads)
        both, images = (compare_ranks(ours, base, resamples=resamples, draw_seeds=draws) for draws in (True, False))
        low, high = both.difference.rsum.interval
        p_values = (both.p_value, both.t_test_p_value or 0.0, both.method_p_value or 0.0, images.p_value)
        found.append((low <= 0 <= high, high - low, *(p_value <= ALPHA for p_value in p_values)))
    words = " and ".join(f"{spread:g}" for spread in spreads)
    return dict(zip(HEADS, (words, num_runs, *map(fmean, zip(*found, strict=True))), strict=True))


def cells(row: dict[str, object]) -> Iterator[str]:
    for head, value in row.items():
        if isinstance(value, float):
            yield f"{value:.0f}" if head == "width" else f"{100 * value:.1f} %"
        else:
            yield str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=1000, help="Pairs of systems for each row.")
    parser.add_argument("--resamples", type=int, default=1000)
    args = parser.parse_args()
    rows = []
    for spreads in SPREADS:
        for num_runs in NUM_RUNS:
            rows.append(measure(spreads, num_runs, args.pairs, args.resamples))
            reports.say("  ".join(cells(rows[-1])))
    document = {"pairs": args.pairs, "resamples": args.resamples, "commit": reports.commit(), "rows": rows}
    sys.stdout.write(reports.table(HEADS, [list(cells(row)) for row in rows]) + "\n" + json.dumps(document) + "\n")


if __name__ == "__main__":
    main()
