"""Picks: the image of each text that a teacher scores highest, and the score above which a pick counts as a caption.

Shape letters: T texts, P scored pairs, N scores.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from dcdctl.core.data import Corpus, Flags, Indices, Values
from dcdctl.core.teacher.scores import TeacherScores

TEXTS_AT_ONCE = 256
"""Texts whose scores with all images are looked up at once."""
NO_PICK = -1
FEW = 20
"""Scores of which no share is measured, and no modes are found."""
NUM_ROUNDS = 200
"""Of the fit of two modes; it converges in some dozens."""
SEPARATION = 2.0
"""Two modes are apart if their means differ by this many standard deviations (Ashman's D, Ashman et al. 1994)."""
SMALLEST_MODE = 0.02
"""Share of the scores that a mode has at least."""


class Picks(NamedTuple):
    """The best image of each text, and its score."""

    image_T: Indices
    """NO_PICK for a text without a scored image."""
    score_T: Values
    """Minus infinity for a text without one."""

    def above(self, threshold: float) -> Indices:
        """The images of the picks whose scores are above a threshold, T; NO_PICK for the others."""
        return np.where(self.score_T > threshold, self.image_T, NO_PICK)


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """The score above which picks count as captions, and why."""

    value: float | None
    """None if no pick is taken."""
    precision: float | None
    """Share of these picks that are right: measured on captioned images, or expected from two modes; None if neither
    is known."""
    reason: str

    def __str__(self) -> str:
        found = "no pick" if self.value is None else f"{self.value:.4g}"
        return f"pool.pseudo_positive_above is auto: {found}, {self.reason}"


def find_picks(scores: TeacherScores, corpus: Corpus) -> Picks:
    """The best scored image of each text; of equal scores, the image that comes first."""
    image_T = np.full(corpus.num_captions, NO_PICK)
    score_T = np.full(corpus.num_captions, -np.inf)
    if (scored := scores.scored_pairs) is not None:
        image_P, text_P = scored
        score_P = scores.lookup(image_P, text_P)
        # The highest score of a text comes last, and stays.
        order = np.argsort(-score_P, kind="stable")[::-1]
        image_T[text_P[order]] = image_P[order]
        score_T[text_P[order]] = score_P[order]
        return Picks(image_T, score_T)
    images = np.arange(corpus.num_images)[:, None]
    for start in range(0, corpus.num_captions, TEXTS_AT_ONCE):
        texts = np.arange(start, min(start + TEXTS_AT_ONCE, corpus.num_captions))
        score_IT = scores.lookup(images, texts[None])
        image_T[texts], score_T[texts] = score_IT.argmax(axis=0), score_IT.max(axis=0)
    return Picks(image_T, score_T)


def threshold_by_captions(score_T: Values, is_right_T: Flags, precision: float) -> Threshold:
    """The lowest threshold at which picks of captions are right as often as asked, found on every second caption and
    measured on the others; the highest score if they never are.

    >>> right = np.arange(100) >= 50
    >>> found = threshold_by_captions(np.arange(100.0), right, 0.9)
    >>> found.value, round(found.precision, 2)
    (44.0, 0.89)
    """
    chosen, measured = slice(0, None, 2), slice(1, None, 2)
    order = np.argsort(-score_T[chosen], kind="stable")
    right_N = is_right_T[chosen][order].cumsum() / np.arange(1, len(order) + 1)
    enough = np.flatnonzero(right_N >= precision)
    scores_N = score_T[chosen][order]
    # Just below the last pick that is kept.
    kept = int(enough[-1]) + 1 if len(enough) else 0
    value = float(scores_N[kept]) if kept < len(scores_N) else float(np.nextafter(scores_N[-1], -np.inf))
    is_kept = score_T[measured] > value
    share = float(is_right_T[measured][is_kept].mean()) if is_kept.any() else None
    found = f"right in {share:.1%} of the captions that were held out" if share is not None else "above every caption"
    return Threshold(value=value, precision=share, reason=f"{found}, where {precision:.0%} are asked")


def better_half(score_T: Values, reason: str) -> Threshold:
    """The threshold of the better half of the picks, where nothing tells how often they are right."""
    return Threshold(value=float(np.median(score_T)), precision=None, reason=f"the better half, because {reason}")


def threshold_by_modes(score_T: Values, precision: float) -> Threshold | None:
    """The lowest threshold above which the picks are expected to be right as often as asked, if those of the upper of
    two modes of the best scores are right; None without two modes."""
    found = two_modes(score_T)
    if found is None:
        return None
    order = np.argsort(-score_T, kind="stable")
    expected_N = found.share_of_upper(score_T[order]).cumsum() / np.arange(1, len(order) + 1)
    enough = np.flatnonzero(expected_N >= precision)
    kept = int(enough[-1]) + 1 if len(enough) else 0
    value = float(score_T[order][kept]) if kept < len(order) else float(np.nextafter(score_T.min(), -np.inf))
    share = float(expected_N[kept - 1]) if kept else None
    upper, lower = max(found.means), min(found.means)
    return Threshold(
        value=value, precision=share, reason=f"between two modes of the best scores, at {lower:.3g} and {upper:.3g}"
    )


class Modes(NamedTuple):
    """A mixture of two normal distributions, the lower one first."""

    means: tuple[float, float]
    stds: tuple[float, float]
    weights: tuple[float, float]

    def share_of_upper(self, scores_N: Values) -> Values:
        """The probability that a score is of the upper mode. Above its mean it is at least that of the mean: the wider
        mode would win far outside again."""
        lower, upper = (_log_density(scores_N, *mode) for mode in zip(*self, strict=True))
        share_N = 1 / (1 + np.exp(np.clip(lower - upper, -700, 700)))
        order = np.argsort(scores_N, kind="stable")
        rising = np.empty_like(share_N)
        rising[order] = np.maximum.accumulate(share_N[order])
        low = scores_N < self.means[0]
        rising[low] = np.minimum(rising[low], share_N[low])
        return rising


def two_modes(score_T: Values) -> Modes | None:
    """The two normal distributions that the scores are most likely drawn from, by expectation maximization from the
    halves; None if they are not apart, or if one has hardly any score."""
    if len(score_T) < FEW or np.ptp(score_T) == 0:
        return None
    ordered = np.sort(score_T)
    halves = np.array_split(ordered, 2)
    means = np.array([half.mean() for half in halves])
    floor = 1e-3 * ordered.std()
    stds = np.maximum([half.std() for half in halves], floor)
    weights = np.array([0.5, 0.5])
    for _ in range(NUM_ROUNDS):
        logs_2T = np.stack([_log_density(ordered, *mode) for mode in zip(means, stds, weights, strict=True)])
        share_2T = np.exp(logs_2T - np.logaddexp(logs_2T[0], logs_2T[1]))
        counts = share_2T.sum(axis=1)
        if counts.min() < SMALLEST_MODE * len(ordered):
            return None
        means = share_2T @ ordered / counts
        spread = (share_2T * (ordered - means[:, None]) ** 2).sum(axis=1) / counts
        stds, weights = np.maximum(np.sqrt(spread), floor), counts / len(ordered)
    lower, upper = np.argsort(means)
    separation = math.sqrt(2) * (means[upper] - means[lower]) / math.hypot(stds[lower], stds[upper])
    if separation < SEPARATION:
        return None
    pick: Sequence[int] = (int(lower), int(upper))
    first, second = pick
    return Modes(
        means=(float(means[first]), float(means[second])),
        stds=(float(stds[first]), float(stds[second])),
        weights=(float(weights[first]), float(weights[second])),
    )


def _log_density(scores_N: Values, mean: float, std: float, weight: float) -> Values:
    """The logarithm of the weighted density of a normal distribution, without the constant that both modes share."""
    return math.log(weight) - math.log(std) - 0.5 * ((scores_N - mean) / std) ** 2
