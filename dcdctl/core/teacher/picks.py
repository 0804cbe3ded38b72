"""Picks: the image of each text that a teacher scores highest; and sure picks, above a score, which count as captions.

Shape letters: T texts, P scored pairs, C captions, N scores.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from dcdctl.core.data import Corpus, Flags, Indices, Values
from dcdctl.core.teacher.scores import TeacherScores

TEXTS_AT_ONCE = 256
"""Texts whose scores with all images are looked up at once."""
NO_PICK = -1
FEWEST_SCORED = 5
"""Scored images of a text whose best two scores tell something: of two images, one is always the better one, and of
four in which the right one scores lowest, three are left."""
BOUND = 1.0
"""Standard deviations of a count between its estimate and its bound. With it, the picks of drawn scores are right as
often as asked in 95 % of the draws (benchmarks/picks.py), and with 1.28 they are fewer by a tenth."""


class Picks(NamedTuple):
    """The best image of each text, and its score."""

    image_T: Indices
    """NO_PICK for a text without a scored image."""
    score_T: Values
    """Minus infinity for a text without one."""
    second_T: Values
    """The second best score of each text; minus infinity for one without two."""
    num_scored_T: Indices
    """The scored images of each text."""

    def above(self, threshold: float) -> Indices:
        """The images of the sure picks, whose scores are above a threshold, T; NO_PICK for the others."""
        return np.where(self.score_T > threshold, self.image_T, NO_PICK)

    def at(self, where_T: Flags | Indices) -> Picks:
        """Those of some of the texts."""
        return Picks(self.image_T[where_T], self.score_T[where_T], self.second_T[where_T], self.num_scored_T[where_T])


class CaptionPicks(NamedTuple):
    """The picks of captions, and which image is theirs."""

    picks: Picks
    own_image_C: Indices


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """The score above which a pick is sure, and counts as a caption; and why."""

    value: float
    precision: float
    """Share of these picks that are expected to be right, at least."""
    reason: str

    def __str__(self) -> str:
        return f"pool.pseudo_positive_above is auto: {self.value:.4g}, {self.reason}"


@dataclass(frozen=True, kw_only=True)
class NoPicks:
    """No pick is sure, and why."""

    value: ClassVar[None] = None
    reason: str

    def __str__(self) -> str:
        return f"pool.pseudo_positive_above is auto: no pick, because {self.reason}"


def find_picks(scores: TeacherScores, corpus: Corpus, texts: Indices | None = None) -> Picks:
    """The best scored image of each text, or of some texts; of equal scores, the image that comes first."""
    if texts is not None and scores.scored_pairs is not None:
        return find_picks(scores, corpus).at(texts)
    image_T = np.full(corpus.num_captions, NO_PICK)
    score_T, second_T = (np.full(corpus.num_captions, -np.inf) for _ in range(2))
    if (scored := scores.scored_pairs) is not None:
        image_P, text_P = scored
        score_P = scores.lookup(image_P, text_P)
        order = np.lexsort((image_P, -score_P, text_P))
        texts, first, counts = np.unique(text_P[order], return_index=True, return_counts=True)
        image_T[texts], score_T[texts] = image_P[order][first], score_P[order][first]
        has_second = counts > 1
        second_T[texts[has_second]] = score_P[order][first[has_second] + 1]
        return Picks(image_T, score_T, second_T, np.bincount(text_P, minlength=corpus.num_captions))
    images = np.arange(corpus.num_images)[:, None]
    looked_up = np.arange(corpus.num_captions) if texts is None else texts
    for start in range(0, len(looked_up), TEXTS_AT_ONCE):
        some = looked_up[start : start + TEXTS_AT_ONCE]
        score_IT = scores.lookup(images, some[None])
        image_T[some], score_T[some] = score_IT.argmax(axis=0), score_IT.max(axis=0)
        if len(images) > 1:
            second_T[some] = np.partition(score_IT, -2, axis=0)[-2]
    picks = Picks(image_T, score_T, second_T, np.full(corpus.num_captions, len(images)))
    return picks if texts is None else picks.at(texts)


def find_threshold(picks: Picks, precision: float, captions: CaptionPicks | None = None) -> Threshold | NoPicks:
    """The lowest threshold above which the picks of a pool are expected to be right at least as often as asked, by the
    best two scores of each text and, if there are captions, by the scores of these with other images.

    >>> best, second = np.full(99, 3.0), np.append(np.full(90, 1.0), np.full(9, 3.0))
    >>> picks = Picks(np.arange(99), best, second, np.full(99, 8))
    >>> found = find_threshold(picks, 0.8)
    >>> found.value, round(found.precision, 2)
    (1.0, 0.86)
    >>> print(find_threshold(picks, 0.9).reason)
    by the best two scores of each text, at most 87% of the picks can be expected to be right, where 90% are asked
    """
    _, best_T, second_T, num_scored_T = picks.at(picks.num_scored_T >= FEWEST_SCORED)
    num_texts = len(best_T)
    if not num_texts:
        return NoPicks(reason=f"no text of the pool has {FEWEST_SCORED} scored images or more")
    # Each different score, so that tied picks are taken together.
    score_N = np.unique(best_T)[::-1]
    best_N = _at_least(_num_from(score_N, best_T), num_texts)
    wrong_N = _wrong_by_seconds(best_N, at_most(_num_from(score_N, second_T), num_texts))
    known = "the best two scores of each text"
    if captions is not None:
        wrong_N = np.maximum(wrong_N, _wrong_by_captions(score_N, captions, float(num_scored_T.mean())))
        known += f" and the scores of {len(captions.own_image_C):,} captions with other images"
    right_N = 1 - wrong_N / np.maximum(best_N, 1 / num_texts)
    enough = np.flatnonzero(right_N >= precision)
    if not len(enough):
        most = math.ceil(100 * right_N.max())
        found = f"at most {most}% of the picks can be expected to be right, where {precision:.0%} are asked"
        return NoPicks(reason=f"by {known}, {found if most > 50 else 'right picks cannot be told from wrong ones'}")
    last = int(enough[-1])
    share = float(right_N[last])
    # Just below the last pick that is kept, at the next score of any kind.
    below = max(scores[scores < score_N[last]].max(initial=-np.inf) for scores in (picks.score_T, picks.second_T))
    return Threshold(
        value=float(below) if np.isfinite(below) else float(np.nextafter(score_N[last], -np.inf)),
        precision=share,
        reason=f"above which at least {math.floor(100 * share)}% of the picks are expected to be right, by {known}",
    )


def _wrong_by_seconds(best_N: Values, second_N: Values) -> Values:
    """The share of all texts with a wrong image above each score, at most, from the shares whose best score and whose
    second best one is not below it.

    A share R of the texts has its right image above a score, and a share A a wrong one. Where the one does not depend
    on the other, the best score is above in a share B = A + R - AR, and the second best in D = AR or more: A and R are
    the roots of z^2 - (B + D) z + D. A is the smaller one for a teacher that is more often right than wrong. Without a
    real root the scores tell nothing: the best two of three equally distributed scores or more, as those of noise, are
    above together in more texts than right and wrong ones can be, D > (1 - sqrt(1 - B))^2.

    As the decoys of proteomics (Elias and Gygi 2007), the second best scores need no label.

    >>> right, wrong = 0.6, 0.1
    >>> _wrong_by_seconds(np.array([right + wrong - right * wrong]), np.array([right * wrong])).round(6).tolist()
    [0.1]
    """
    root_N = (best_N + second_N) ** 2 - 4 * second_N
    return np.where(root_N >= 0, (best_N + second_N - np.sqrt(np.maximum(root_N, 0))) / 2, 1.0)


def _wrong_by_captions(score_N: Values, captions: CaptionPicks, num_scored: float) -> Values:
    """The share of all texts with a wrong image above each score, at most, from the highest score of each caption with
    an image that is not its own. One of more images of a text, `num_scored` in the mean, more often lies above."""
    image_C, score_C, second_C, num_scored_C = captions.picks
    wrong_C = np.where(image_C == captions.own_image_C, second_C, score_C)
    wrong_N = at_most(_num_from(score_N, wrong_C), len(wrong_C))
    return 1 - (1 - wrong_N) ** max(num_scored / max(num_scored_C.mean() - 1, 1), 1)


def _num_from(score_N: Values, scores: Values) -> Indices:
    """How many of some scores are not below each score."""
    return np.searchsorted(np.sort(-scores), -score_N, side="right")


def _at_least(num_N: Indices, total: int) -> Values:
    """The lower bound of the shares of which these are counts: an interval of the square root, whose variance does not
    depend on the count."""
    return np.maximum(np.sqrt(num_N) - BOUND / 2 * np.sqrt(1 - num_N / total), 0) ** 2 / total


def at_most(num_N: Indices, total: int) -> Values:
    """The upper bound of the shares of which these are counts: 2.3 of `total` where none was seen."""
    return np.minimum((np.sqrt(num_N + 1) + BOUND / 2) ** 2 / total, 1)
