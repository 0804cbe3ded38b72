"""What counts as a weak match in an index: the scores of texts that its images do not show.

The scale of cosines differs between models, so no fixed number tells a match from a chance. The probes are texts
without visible things, such as "tax policy theory": their best scores in the index are what a query reaches that no
image answers. A text side holds their vectors. The scores are computed for the first text that a searcher answers, and
are not stored, so that they fit every index, also after images were added or removed.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np

from dcdctl.core.search.exact import Floats
from dcdctl.core.search.protocol import ImageIndex

# The 95th percentile is then about the fourth highest score.
NUM_PROBES = 64
LEVEL = 0.95
"""Share of the probes whose best score is a weak match."""
SAMPLE = 1024
"""Images, spread evenly over the rows, for the typical scores."""
WORDS = (
    "tax invoice quarter policy theory verb decimal treaty melody rumor honesty algebra budget clause deadline "
    "election fiction grammar "
    "hypothesis interest justice kilobyte liability metaphor nitrogen opinion parliament quota rhetoric salary "
    "tenure urgency variable "
    "wisdom yield abstract bankruptcy consent doctrine evidence formula gravity hierarchy inflation jurisdiction "
    "knowledge logic mortgage "
    "notation obligation philosophy quotient revenue syntax tariff usage velocity warranty"
)
"""Words for things that cannot be seen. Captions of photos have hardly one of them."""


@dataclass(frozen=True)
class Background:
    """The scores of an index that mean nothing."""

    typical: float
    """Median score of a probe and an image."""
    limit: float
    """Best score in the index that 95 of 100 probes do not exceed; up to here, the best score of a text is weak."""

    def share(self, score: float) -> float:
        """Where the score of a text lies, from 0 to 1: 0 is the typical score and 0.5 the limit.

        >>> background = Background(typical=0.0, limit=0.25)
        >>> [background.share(score) for score in (-0.1, 0.25, 0.4)]
        [0.0, 0.5, 0.8]
        """
        # Images that are all equal have no spread to divide by.
        return min(1.0, max(0.0, (score - self.typical) / max(2 * (self.limit - self.typical), 1e-6)))


def probe_texts() -> list[str]:
    """The probes, always the same: two to six of the words. Others are another `text_tower.FORMAT`."""
    # Seeded, so that all workers of a service call the same answers weak.
    draw = random.Random(0)
    return [" ".join(draw.sample(WORDS.split(), 2 + number % 5)) for number in range(NUM_PROBES)]


def measure_background(index: ImageIndex, probes_PD: Floats) -> Background | None:
    """The background of an index, by the vectors that its own model gives the probes, P x D (or P x L x D); None for an
    index without images."""
    rows = index.spread_rows(SAMPLE)
    if not rows:
        return None
    probes_PD = probes_PD[..., : index.dim]
    # A model may have no vector for words that it does not know.
    numbers = probes_PD.reshape(len(probes_PD), -1)
    probes_PD = probes_PD[np.isfinite(numbers).all(axis=1) & numbers.any(axis=1)]
    if not len(probes_PD):
        return None
    best_P = np.array([hits[0].score for hits in index.search(probes_PD, 1)], dtype=np.float64)
    sample = index.stored(np.array(rows, dtype=np.int64))
    scores = [sample.rough(probe) for probe in probes_PD]
    return Background(typical=float(np.median(scores)), limit=float(np.quantile(best_P, LEVEL)))
