"""How often picks are right where `pool.pseudo_positive_above` auto takes some: drawn scores, whose right images are
known.

    python benchmarks/picks.py > picks.md        (three minutes of a CPU core)

Each mixture has 200 draws for each number of texts (100, 300, 1,000 and 5,000 texts with 8 scored images each; 1,000
with 5, 20 and 100). A right image, where there is one, scores N(right, 1) and all others N(0, 1), unless the mixture
says otherwise. Prints a Markdown table of the share of draws with picks, the share of these picks that is right, and,
for the worst number of texts, the share of draws whose picks are right less often than asked by more than 0.03. Ends
with one JSON line: the worst mixture.

Shape letters: T texts, K scored images of a text.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from reports import say

from dcdctl.core.teacher.picks import Picks, Threshold, find_threshold

Array = NDArray[np.float64]
Rights = NDArray[np.bool_]
Mixture = Callable[[np.random.Generator, Array], Rights]
"""Changes scores T x K that are N(0, 1), and gives the right ones."""
SIZES = ((100, 8), (300, 8), (1000, 8), (5000, 8), (1000, 5), (1000, 20), (1000, 100))
ASKED = (0.5, 0.6, 0.8, 0.95)
TOLERANCE = 0.03


def _right(rng: np.random.Generator, scores: Array, mean: float, there: float = 1.0) -> Rights:
    """Give a share of the texts a right image, in column 0."""
    right = np.zeros(scores.shape, dtype=bool)
    right[:, 0] = rng.random(len(scores)) < there
    scores[right] += mean
    return right


def one(mean: float, there: float = 1.0) -> Mixture:
    return lambda rng, scores: _right(rng, scores, mean, there)


def look_alike(mean: float, there: float, alike: float, share: float) -> Mixture:
    """Another image of a share of the texts, whether the right one is there or not, scores N(alike, 1)."""

    def draw(rng: np.random.Generator, scores: Array) -> Rights:
        scores[rng.random(len(scores)) < share, 1] += alike
        return _right(rng, scores, mean, there)

    return draw


def modes(rng: np.random.Generator, scores: Array) -> Rights:
    """A tenth of all images score N(3, 1); the right image of half of the texts scores N(6, 1)."""
    scores[rng.random(scores.shape) < 0.1] += 3
    return _right(rng, scores, 6.0, 0.5)


def half_seen(rng: np.random.Generator, scores: Array) -> Rights:
    """All texts have a right image, and the teacher finds it in half of them."""
    right = np.zeros(scores.shape, dtype=bool)
    right[:, 0] = True
    scores[rng.random(len(scores)) < 0.5, 0] += 6
    scores[:, 1:][rng.random((len(scores), scores.shape[1] - 1)) < 0.1] += 3
    return right


def several(rng: np.random.Generator, scores: Array) -> Rights:
    """One to three images of each text are right."""
    right = np.arange(scores.shape[1]) < rng.integers(1, 4, (len(scores), 1))
    scores[right] += 4
    return right


def offset(mean: float, there: float, deviation: float) -> Mixture:
    """All scores of a text are higher or lower by one number."""

    def draw(rng: np.random.Generator, scores: Array) -> Rights:
        right = _right(rng, scores, mean, there)
        scores += rng.normal(0, deviation, (len(scores), 1))
        return right

    return draw


def hubs(mean: float, there: float) -> Mixture:
    """One image in thirty scores 3 more with every text."""

    def draw(rng: np.random.Generator, scores: Array) -> Rights:
        scores[rng.random(scores.shape) < 1 / 30] += 3
        return _right(rng, scores, mean, there)

    return draw


def graded(mixture: Mixture, lowest: float, highest: float) -> Mixture:
    """The scores of another mixture as whole numbers."""

    def draw(rng: np.random.Generator, scores: Array) -> Rights:
        right = mixture(rng, scores)
        scores[:] = np.clip(np.round(scores), lowest, highest)
        return right

    return draw


def constant(rng: np.random.Generator, scores: Array) -> Rights:
    scores[:] = 1.0
    return _right(rng, scores, 0.0)


MIXTURES: dict[str, Mixture] = {
    "noise": one(0.0, 0.0),
    "noise, an offset of each text": offset(0.0, 0.0, 2.0),
    "noise, hubs": hubs(0.0, 0.0),
    "inverted: the right image at -3": one(-3.0),
    "one score for all": constant,
    "grades 0 to 4 of noise": graded(one(0.0, 0.0), 0, 4),
    "yes or no of noise": graded(one(0.0, 0.0), 0, 1),
    "right at 1": one(1.0),
    "right at 2": one(2.0),
    "right at 3": one(3.0),
    "right at 4": one(4.0),
    "right at 3 for half of the texts": one(3.0, 0.5),
    "right at 3 for 1 % of the texts": one(3.0, 0.01),
    "right at 3 for 99 % of the texts": one(3.0, 0.99),
    "look-alikes at 3 of half of the texts, right at 3": look_alike(3.0, 1.0, 3.0, 0.5),
    "look-alikes at 2 of half of the texts, right at 3 for half": look_alike(3.0, 0.5, 2.0, 0.5),
    "a decoy at 2 of every text, right at 3 for 70 %": look_alike(3.0, 0.7, 2.0, 1.0),
    "hubs, right at 3 for 70 %": hubs(3.0, 0.7),
    "three modes: others at 0 and 3, right at 6 for half": modes,
    "three modes, and half of the right ones not found": half_seen,
    "one to three right images at 4": several,
    "an offset of each text, right at 4 for 70 %": offset(4.0, 0.7, 1.0),
    "grades 0 to 4, right at 3 for 70 %": graded(one(3.0, 0.7), 0, 4),
    "yes or no, right at 2 for 70 %": graded(one(2.0, 0.7), 0, 1),
}


def trial(mixture: Mixture, seed: int, num_texts: int, num_scored: int) -> list[tuple[float, float] | None]:
    """For each asked precision the share of texts that are picked, and the share of the picks that is right; None if
    no pick is taken."""
    rng = np.random.default_rng([seed, num_texts, num_scored])
    scores = rng.normal(size=(num_texts, num_scored))
    right = mixture(rng, scores)
    # Which of tied images is the pick is chance.
    order = np.lexsort((rng.random(scores.shape), -scores), axis=1)
    best, second = np.take_along_axis(scores, order, axis=1)[:, :2].T
    picks = Picks(order[:, 0], best, second, np.full(num_texts, num_scored))
    is_right = right[np.arange(num_texts), order[:, 0]]
    results: list[tuple[float, float] | None] = []
    for precision in ASKED:
        found = find_threshold(picks, precision)
        kept = best > found.value if isinstance(found, Threshold) else None
        results.append(None if kept is None else (float(kept.mean()), float(is_right[kept].mean())))
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=200)
    draws = parser.parse_args().draws
    say("| scores | " + " | ".join(f"asked {precision:g}" for precision in ASKED) + " |")
    say("|---|" + "---|" * len(ASKED))
    worst = (0.0, "")
    for name, mixture in MIXTURES.items():
        by_size = {size: [trial(mixture, seed, *size) for seed in range(draws)] for size in SIZES}
        cells = []
        for column, precision in enumerate(ASKED):
            wrong = {}
            taken = []
            for size, results in by_size.items():
                told = [result[column] for result in results if result[column] is not None]
                wrong[size] = sum(right < precision - TOLERANCE for _, right in told) / draws
                taken += told
            worst = max(worst, (max(wrong.values()), f"{name}, asked {precision:g}, {max(wrong, key=wrong.get)}"))
            share = len(taken) / draws / len(SIZES)
            right = f"{np.mean([right for _, right in taken]):.2f}" if taken else "-"
            cells.append(f"{share:.0%}, {right}, {max(wrong.values()):.1%}")
        say(f"| {name} | " + " | ".join(cells) + " |")
    say(json.dumps({"draws": draws, "most draws below what was asked less 0.03": worst[0], "where": worst[1]}))


if __name__ == "__main__":
    main()
