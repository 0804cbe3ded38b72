"""Captions that a teacher doubts: the score of a caption with its own image is no higher than those with other images.

Noisy correspondence is the field's name for captions of which some are wrong. Shape letters: C captions, P scored pairs
of a caption with an image that is not its own, N limits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Literal

import numpy as np

from dcdctl.core.data import Corpus, Flags, Indices, Values
from dcdctl.core.errors import ConfigError
from dcdctl.core.places import shown
from dcdctl.core.teacher.picks import NO_PICK, at_most, find_picks, find_threshold
from dcdctl.core.teacher.scores import TeacherScores

FEWEST_SCORED = 100
"""Scores of own images, and of other ones, below which no share of wrong captions can be estimated."""
NUM_DRAWN = 4096
"""Other pairs that are drawn where a teacher scores every pair."""
MOST_LOOKED_UP = 2**30
"""Pairs of doubted captions and images that a teacher of every pair scores to pick: seconds by vectors, and half an
hour by late interaction on a few cores. With more, doubted captions have no pick."""
LOW = (0.25, 0.5)
"""Where the scores with other images are cut: this share of the wrong captions lies below, and few right ones do."""
MODES_APART = math.sqrt(12)
"""Distance of the means of a uniform distribution cut in two, in standard deviations of a half; of a normal one it is
2.65."""
COST = 3.0
"""A wrong caption that is kept costs as much as two right ones that are not: it teaches about two images what is not
so, and a right caption that is doubted may be picked for its image again."""
PRECISION = 0.8
"""Share of the kept captions that must be expected to be right, at least, and of the picks of the doubted ones; as
`pool.precision`."""
FEWEST_RIGHT = 0.1
"""Share of the captions that must be kept and right: the few highest of scores that tell nothing lie above all others
by luck."""
NUM_EXAMPLES = 10


Row = dict[str, Any]
"""A doubted caption, by the names of `CheckedCaptions.rows`."""


@dataclass(frozen=True, kw_only=True)
class Limit:
    """The score with its own image that a caption must exceed to count, and why."""

    value: float
    """Minus infinity where every caption counts."""
    reason: str


@dataclass(frozen=True, kw_only=True, eq=False)
class CheckedCaptions:
    """The captions that a teacher doubts, and the images that it picks for them."""

    limit: Limit
    own_C: Values
    """The score of each caption with its own image; NaN without one, and then it counts."""
    is_doubted_C: Flags
    image_C: Indices
    """The image that each caption counts for: its own, for a doubted one the sure pick, or NO_PICK."""
    picked_above: float | None
    """The score above which the pick of a doubted caption is sure; None if none is."""
    examples: Sequence[Row] = ()
    """The first rows."""

    @property
    def num_doubted(self) -> int:
        return int(self.is_doubted_C.sum())

    @property
    def num_picked(self) -> int:
        """The doubted captions with a sure pick, mostly another image, for which they count."""
        return int((self.image_C[self.is_doubted_C] != NO_PICK).sum())

    @property
    def sure_above(self) -> float:
        """A score above which a caption needs no further images: it is kept, or has a sure pick. Few of those below it
        need none either."""
        return max(self.limit.value, -math.inf if self.picked_above is None else self.picked_above)

    def rows(self, corpus: Corpus) -> Iterator[Row]:
        """Each doubted caption, its image, their score, and the image that fits better, None without a sure pick; the
        lowest score first."""
        doubted = np.flatnonzero(self.is_doubted_C)
        for caption in doubted[np.argsort(self.own_C[doubted], kind="stable")].tolist():
            picked = int(self.image_C[caption])
            yield {
                "caption": corpus.captions[caption],
                "image": corpus.image_ids[int(corpus.caption_image[caption])],
                "score": float(self.own_C[caption]),
                "fits_better": None if picked == NO_PICK else corpus.image_ids[picked],
            }

    def __str__(self) -> str:
        if not self.num_doubted:
            return f"captions are checked, and every one counts: {self.limit.reason}"
        doubted = f"{self.num_doubted:,} of {len(self.own_C):,} score {self.limit.value:.4g} or less with their image"
        picked = f"{self.num_picked:,} of these have a sure pick and count for it"
        return f"captions are checked, and {doubted}: {self.limit.reason}; {picked}"

    def to_json(self) -> dict[str, Any]:
        """The facts for run.json."""
        facts: dict[str, Any] = {"doubted": self.num_doubted, "reason": self.limit.reason}
        if not self.num_doubted:
            return facts
        more = {"limit": self.limit.value, "picks": self.num_picked, "examples": list(self.examples)}
        return facts | more | ({} if self.picked_above is None else {"picks_above": self.picked_above})


def check_captions(corpus: Corpus, scores: TeacherScores, checked: float | Literal["auto"]) -> CheckedCaptions:
    """Which captions of a corpus to doubt, by a teacher's scores with own and with other images, and where they belong.

    `checked` is the limit, or auto to find it. The pick of a doubted caption is the image with the highest score among
    those that the teacher has scored; it counts if such picks can be expected to be right. ConfigError for a pool.
    """
    if corpus.is_pool:
        raise ConfigError(f"{shown(corpus.folder)} is a pool, which has no captions to check")
    own_C = scores.lookup(corpus.caption_image, np.arange(corpus.num_captions)).astype(np.float64)
    if checked == "auto":
        others = _scores_of_others(corpus, scores) if scores.has_drawn_pairs else None
        limit = find_limit(own_C[~np.isnan(own_C)], others)
    else:
        limit = Limit(value=checked, reason="captions.checked is this number")
    is_doubted_C = own_C <= limit.value
    doubted = np.flatnonzero(is_doubted_C)
    image_C, picked_above = corpus.caption_image.copy(), None
    image_C[doubted] = NO_PICK
    is_short = scores.scored_pairs is not None or len(doubted) * corpus.num_images <= MOST_LOOKED_UP
    if len(doubted) and is_short:
        # By the scores of the doubted captions alone: kept ones would have to have as many scored images.
        picks = find_picks(scores, corpus, doubted)
        picked_above = find_threshold(picks, PRECISION).value
        if picked_above is not None:
            image_C[doubted] = picks.above(picked_above)
    found = CheckedCaptions(
        limit=limit, own_C=own_C, is_doubted_C=is_doubted_C, image_C=image_C, picked_above=picked_above
    )
    return replace(found, examples=tuple(islice(found.rows(corpus), NUM_EXAMPLES)))


def find_limit(own_C: Values, other_P: Values | None) -> Limit:
    """The limit for captions with these scores, between the two modes of their scores if there are two, or by the
    scores of captions with drawn images that are not theirs; None where such images were proposed.

    >>> others, right = np.linspace(-1, 1, 201), np.full(600, 3.0)
    >>> find_limit(np.concatenate([right, np.linspace(-1, 1, 401)]), others).value, find_limit(right, others).value
    (1.5, -inf)
    """
    counts = {"own images": len(own_C)} | ({} if other_P is None else {"others": len(other_P)})
    if min(counts.values()) < FEWEST_SCORED:
        scored = " and ".join(f"{count:,} with {images}" for images, count in counts.items())
        return Limit(value=-np.inf, reason=f"the scores, {scored}, are fewer than {FEWEST_SCORED} each")
    if (limit := _between_modes(own_C, other_P)) is not None:
        return limit
    if other_P is None:
        return Limit(value=-np.inf, reason="the scores have one mode, and other images were proposed and not drawn")
    return _above_others(own_C, other_P)


def _between_modes(own_C: Values, other_P: Values | None) -> Limit | None:
    """The limit half way between the means of two groups of scores; None if they are one mode that was cut in two.

    It finds errors that are near as well, such as one wrong word: these score above any other image. The means of two
    modes are further apart than those of a uniform distribution cut in two, in standard deviations of a group (Ashman
    et al. 1994).
    """
    low, high = own_C.min(), own_C.max()
    while True:
        is_low_C = own_C <= (low + high) / 2
        if is_low_C.all() or not is_low_C.any():
            return None
        before, (low, high) = (low, high), (own_C[is_low_C].mean(), own_C[~is_low_C].mean())
        if before == (low, high):
            break
    spread = np.sqrt((own_C[is_low_C].var() + own_C[~is_low_C].var()) / 2)
    limit, num_own, num_low = float(low + high) / 2, len(own_C), int(is_low_C.sum())
    # A symmetric lower mode has as many above the limit as below its mirror image; and no smaller share than others.
    mirrored = 2 * np.median(own_C[is_low_C]) - limit
    most_wrong = num_own * float(at_most((own_C <= mirrored).sum(), num_own))
    if other_P is not None:
        share_above = float((other_P > limit).mean())
        most_wrong = max(most_wrong, num_low * share_above / max(1 - share_above, 1 / num_own))
    right = 1 - most_wrong / (num_own - num_low)
    if high - low <= MODES_APART * spread or right < PRECISION:
        return None
    reason = f"the scores have two modes, and at least {math.floor(100 * right)}% of the others are of the higher one"
    return Limit(value=limit, reason=reason)


def _above_others(own_C: Values, other_P: Values) -> Limit:
    """The limit by the scores with images that are not theirs, for modes that overlap.

    A wrong caption is scored with its image as with any other one. So half of them lie below the median of the others,
    and right ones rarely do: that gives the number of wrong captions (Storey 2002), and with it how many lie above each
    limit. The limit keeps most right captions for the wrong ones that it lets through. Every caption counts where too
    few of those above it can be expected to be right.
    """
    num_own, num_others = len(own_C), len(other_P)
    # Each different own score is a limit, and so is one below all of them, which keeps every caption.
    limit_N = np.concatenate([[-np.inf], np.unique(own_C)])
    kept_N = num_own - np.searchsorted(np.sort(own_C), limit_N, side="right")
    above_N = num_others - np.searchsorted(np.sort(other_P), limit_N, side="right")
    low_L = np.quantile(other_P, LOW)
    below_L = np.array([(own_C <= low).sum() for low in low_L])
    share_L = np.array([(other_P <= low).mean() for low in low_L])
    # The lower cut counts fewer right captions, but of few scores it counts by luck.
    most_L = num_own * at_most(below_L, num_own) / share_L
    wrong_N = min(below_L[-1] / share_L[-1], most_L[0]) * above_N / num_others
    best = int((kept_N - COST * wrong_N).argmax())
    most_wrong = most_L.min() * at_most(above_N[best], num_others)
    num_right = kept_N[best] - most_wrong
    right = num_right / max(kept_N[best], 1)
    by = f"by {num_others:,} scores with other images"
    if right < PRECISION or num_right < FEWEST_RIGHT * num_own:
        return Limit(value=-np.inf, reason=f"{by}, right captions cannot be told from wrong ones")
    if not best:
        return Limit(value=-np.inf, reason=f"{by}, none scores as low as wrong ones do")
    expected = f"at least {math.floor(100 * right)}% of the others are right if wrong ones score as these do"
    reason = f"{by}, {expected}"
    return Limit(value=float(limit_N[best]), reason=reason)


def _scores_of_others(corpus: Corpus, scores: TeacherScores) -> Values:
    """The scores of captions with images that are not theirs: of all cached pairs, or of some drawn ones."""
    owner_C = corpus.caption_image
    if (scored := scores.scored_pairs) is not None:
        image_P, text_P = scored
    else:
        rng = np.random.default_rng(0)
        image_P = rng.integers(0, corpus.num_images, NUM_DRAWN)
        text_P = rng.integers(0, corpus.num_captions, NUM_DRAWN)
    is_other_P = image_P != owner_C[text_P]
    return scores.lookup(image_P[is_other_P], text_P[is_other_P]).astype(np.float64)
