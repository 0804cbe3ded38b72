"""What an evaluation measures before it becomes a document: how a model ranked a corpus."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dcdctl.core.data import Corpus, Direction
from dcdctl.core.evaluation import significance
from dcdctl.core.evaluation.agreement import Lookup
from dcdctl.core.evaluation.document import (
    RESAMPLES,
    Bounds,
    Depth,
    Evaluation,
    HowMeasured,
    Intervals,
    Measures,
)
from dcdctl.core.evaluation.measures import RECALL_NAMES, recall_at_k, rsum
from dcdctl.core.evaluation.ranking import Rankings, RankTable
from dcdctl.core.evaluation.significance import LEVEL


@dataclass(frozen=True, kw_only=True)
class Measured:
    """How a model ranked a corpus: the ranks, which no document has, and what a document is made of."""

    corpus: Corpus
    protocol: HowMeasured
    text_retrieval: Measures
    image_retrieval: Measures
    rankings: Rankings
    """For all folds, with indices of the corpus; positions and candidates are those within a fold."""
    table: RankTable
    """The ranks, with the names of the queries."""
    depths: tuple[Depth, ...]
    pairs_scored: int
    seconds: float
    order: Lookup | None = None
    """What gives the model's score of any pair, if it was kept."""

    @property
    def rsum(self) -> float:
        return rsum(self.text_retrieval, self.image_retrieval)

    @property
    def image_recalls_by_label(self) -> dict[str, dict[str, Measures]]:
        """As in `Evaluation`, over all folds together."""
        by_label: dict[str, dict[str, Measures]] = {}
        for label, groups in self.corpus.captions_by_label.items():
            by_label[label] = {name: recall_at_k(self.table.image_ranks[texts]) for name, texts in groups.items()}
        return by_label

    def evaluation(self, model: str, **more: Any) -> Evaluation:
        """The evaluation of the model of this name, with its intervals; `more` are further entries."""
        # Always with seed 0, so that evaluating again gives the same intervals.
        estimates = significance.bootstrap([self.table], resamples=RESAMPLES)
        bounds: dict[Direction, dict[str, Bounds]] = {}
        for direction, measures in ((Direction.TEXT, self.text_retrieval), (Direction.IMAGE, self.image_retrieval)):
            # Without what comparisons alone have.
            compared = estimates.of(direction).items()
            bounds[direction] = {name: estimate.interval for name, estimate in compared if name in measures}
        return Evaluation(
            **Evaluation.facts(self.corpus),
            model=model,
            text_retrieval=self.text_retrieval,
            image_retrieval=self.image_retrieval,
            rsum=self.rsum,
            mean_recall=self.rsum / (2 * len(RECALL_NAMES)),
            intervals=Intervals(
                level=LEVEL,
                resamples=RESAMPLES,
                rsum=estimates.rsum.interval,
                text_retrieval=bounds[Direction.TEXT],
                image_retrieval=bounds[Direction.IMAGE],
            ),
            protocol=self.protocol,
            pairs_scored=self.pairs_scored,
            seconds=self.seconds,
            depths=self.depths,
            image_recalls_by_label=self.image_recalls_by_label,
            **more,
        )
