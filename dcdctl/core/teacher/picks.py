"""Picks: the image of each text that a teacher scores highest, and the score above which a pick counts as a caption.

Shape letters: T texts, P scored pairs, N scores.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from dcdctl.core.data import Corpus, Flags, Indices, Values
from dcdctl.core.teacher.scores import TeacherScores

TEXTS_AT_ONCE = 256
"""Texts whose scores with all images are looked up at once."""
NO_PICK = -1


class Picks(NamedTuple):
    """The best image of each text, and its score."""

    image_T: Indices
    """NO_PICK for a text without a scored image."""
    score_T: Values
    """Minus infinity for a text without one."""
    second_T: Values
    """The second best score of each text; minus infinity for one without two."""

    def above(self, threshold: float) -> Indices:
        """The images of the picks whose scores are above a threshold, T; NO_PICK for the others."""
        return np.where(self.score_T > threshold, self.image_T, NO_PICK)


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """The score above which picks count as captions, and why."""

    value: float
    precision: float | None
    """Share of these picks that are right: measured on captioned images, or expected from the runners-up; None if
    neither is known."""
    reason: str

    def __str__(self) -> str:
        return f"pool.pseudo_positive_above is auto: {self.value:.4g}, {self.reason}"


@dataclass(frozen=True, kw_only=True)
class NoPicks:
    """No pick counts as a caption, and why."""

    value: ClassVar[None] = None
    reason: str

    def __str__(self) -> str:
        return f"pool.pseudo_positive_above is auto: no pick, because {self.reason}"


def find_picks(scores: TeacherScores, corpus: Corpus) -> Picks:
    """The best scored image of each text; of equal scores, the image that comes first."""
    image_T = np.full(corpus.num_captions, NO_PICK)
    score_T, second_T = (np.full(corpus.num_captions, -np.inf) for _ in range(2))
    if (scored := scores.scored_pairs) is not None:
        image_P, text_P = scored
        score_P = scores.lookup(image_P, text_P)
        order = np.lexsort((image_P, -score_P, text_P))
        texts, first = np.unique(text_P[order], return_index=True)
        image_T[texts], score_T[texts] = image_P[order][first], score_P[order][first]
        has_second = np.diff(first, append=len(order)) > 1
        second_T[texts[has_second]] = score_P[order][first[has_second] + 1]
        return Picks(image_T, score_T, second_T)
    images = np.arange(corpus.num_images)[:, None]
    for start in range(0, corpus.num_captions, TEXTS_AT_ONCE):
        texts = np.arange(start, min(start + TEXTS_AT_ONCE, corpus.num_captions))
        score_IT = scores.lookup(images, texts[None])
        image_T[texts], score_T[texts] = score_IT.argmax(axis=0), score_IT.max(axis=0)
        if len(images) > 1:
            second_T[texts] = np.partition(score_IT, -2, axis=0)[-2]
    return Picks(image_T, score_T, second_T)


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


def threshold_by_runners_up(picks: Picks, precision: float) -> Threshold:
    """The lowest threshold above which the picks are expected to be right as often as asked, from the runners-up: the
    second best score of each text, of an image that does not fit.

    Above a threshold there are b of the T best scores and d of the second best ones. A text whose image is not among
    the scored ones has such a wrong image as its best, so of the b picks

        (T - b) / b d   are expected to be wrong, and at least d.

    As the decoys of proteomics do (Elias and Gygi 2007), the runners-up need no label. Fewer picks than are right are
    expected to be where several images fit a text, and more where the scores of different texts are hard to compare.

    >>> best, second = np.array([9.0, 8.0, 7.0, 2.0]), np.array([1.0, 2.5, 1.0, 1.5])
    >>> threshold_by_runners_up(Picks(np.arange(4), best, second), 0.9).value
    2.5
    """
    best_N = np.sort(picks.score_T[np.isfinite(picks.score_T)])[::-1]
    second_N = np.sort(picks.second_T)[::-1]
    num_best_N = np.arange(1, len(best_N) + 1)
    num_second_N = np.searchsorted(-second_N, -best_N, side="right")
    num_wrong_N = num_second_N * np.maximum((len(picks.score_T) - num_best_N) / num_best_N, 1)
    expected_N = 1 - num_wrong_N / num_best_N
    enough = np.flatnonzero(expected_N >= precision)
    if not len(enough):
        return Threshold(value=float(best_N[0]), precision=None, reason="above which too few are expected to be right")
    last = int(enough[-1])
    # Just below the last pick that is kept, at the next score of any kind.
    lower = max(scores[scores < best_N[last]].max(initial=-np.inf) for scores in (best_N, second_N))
    value = float(lower) if np.isfinite(lower) else float(np.nextafter(best_N[last], -np.inf))
    share = float(expected_N[last])
    return Threshold(
        value=value, precision=share, reason=f"expected to be right in {share:.1%} of the texts by the runners-up"
    )
