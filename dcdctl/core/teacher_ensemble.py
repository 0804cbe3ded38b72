"""Several teachers as one: caches of one corpus, whose scores are brought to one scale and averaged.

Logits of two teachers have scales of their own; each teacher's scores are brought to one mean and standard deviation over the pairs that
all teachers have scored, the weighted means of theirs, then averaged with weights. So the average is a logit like theirs, and a temperature
means what it means for one of them. Only those pairs count: an average over fewer teachers would be a score of another kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dcdctl.core.cache_files import Index
from dcdctl.core.candidates import Candidates, Lists
from dcdctl.core.errors import ConfigError, StaleError
from dcdctl.core.teacher_cache import TeacherCache


class TeacherEnsemble:
    """Reads like a `TeacherCache`; its candidates are those of the first cache that all teachers have scored."""

    def __init__(self, caches: Sequence[TeacherCache], weights: Sequence[float] = ()) -> None:
        """`weights` are shares, brought to a sum of 1; none for equal ones. StaleError if the caches are of several corpora."""
        if weights and len(weights) != len(caches):
            raise ConfigError(f"teachers.weights has {len(weights)} numbers, and there are {len(caches)} caches")
        if len({cache.plan["corpus"] for cache in caches}) > 1:
            raise StaleError("the caches are of different corpora", hint="make each with the same --data, --split and --max-images")
        self.caches = list(caches)
        shares = np.array(weights or [1.0] * len(caches))
        self.weights = shares / shares.sum()
        self.plan: list[dict[str, Any]] = [cache.plan for cache in caches]

    @property
    def image_P(self) -> Index:
        return self.caches[0].image_P[self._is_shared]

    @property
    def text_P(self) -> NDArray[np.int32]:
        return self.caches[0].text_P[self._is_shared]

    def lookup(self, image_ix: NDArray[Any], text_ix: NDArray[Any]) -> NDArray[np.float32]:
        """The average scores of these pairs, in their shape; NaN where a teacher has not scored a pair."""
        parts = zip(self.caches, self.weights, self._moments, strict=True)
        total = sum(weight * (cache.lookup(image_ix, text_ix) - mean) / spread for cache, weight, (mean, spread) in parts)
        mean, spread = np.average(self._moments, axis=0, weights=self.weights)
        return np.asarray(total * spread + mean, dtype=np.float32)

    @cached_property
    def candidates(self) -> Candidates:
        """The first cache's candidates that all teachers have scored."""
        first = self.caches[0].candidates
        return Candidates(
            self._shared(first.texts_of_image, is_image_query=True),
            self._shared(first.images_of_text, is_image_query=False),
            first.dropped,
        )

    def _shared(self, lists: Lists, *, is_image_query: bool) -> Lists:
        query = np.repeat(np.arange(len(lists)), np.diff(lists.offsets))
        pairs = (query, lists.values) if is_image_query else (lists.values, query)
        kept = ~np.isnan([cache.lookup(*pairs) for cache in self.caches]).any(axis=0)
        counts = np.bincount(query[kept], minlength=len(lists))
        return Lists(np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), lists.values[kept])

    @cached_property
    def _scores_KP(self) -> NDArray[np.float32]:
        """Every teacher's scores of the first cache's pairs."""
        first = self.caches[0]
        return np.stack([cache.lookup(first.image_P, first.text_P) for cache in self.caches])

    @cached_property
    def _is_shared(self) -> NDArray[np.bool_]:
        shared: NDArray[np.bool_] = np.logical_and.reduce(~np.isnan(self._scores_KP))
        if not shared.any():
            raise StaleError("no pair is scored in all caches", hint="make both with the same candidates")
        return shared

    @cached_property
    def _moments(self) -> list[tuple[float, float]]:
        """Mean and standard deviation of each teacher's scores."""
        shared = self._scores_KP[:, self._is_shared].astype(np.float64)
        return [(float(scores.mean()), float(scores.std()) or 1.0) for scores in shared]


def read_as_one(caches: Sequence[TeacherCache], weights: Sequence[float]) -> TeacherCache | TeacherEnsemble | None:
    """None, the cache as it is, or an ensemble of several; ConfigError for weights of fewer or more than there are."""
    if len(caches) > 1:
        return TeacherEnsemble(caches, weights)
    if len(weights) not in (0, len(caches)):
        raise ConfigError(f"teachers.weights has {len(weights)} numbers, and there are {len(caches)} caches")
    return caches[0] if caches else None
