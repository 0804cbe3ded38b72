"""ECCV Caption and CrissCrossed Captions: recall and mAP@R on COCO's test split, with the positives that COCO's own pairs leave out.

Which captions are true of which pictures, and the measures, are those of the package `eccv_caption` (MIT; it brings along the
CrissCrossed Captions, Apache-2.0): Chun et al., ECCV 2022; Parekh et al., EACL 2021. It numbers pictures and captions as COCO does, knows
five captions of each picture, and wants the candidates of every query in order, as many as a query has positives at most.

Shape letters: Q queries, K candidates.
"""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dcdctl.core.data import Corpus, Direction
from dcdctl.core.errors import CorpusError, require_extra
from dcdctl.core.evaluation.ranks import Ranking, Rankings
from dcdctl.core.evaluation.recall import KS

PROTOCOL = "coco-5k"
"""The gallery that the package's measures are of."""
_KEYS = {Direction.TEXT: "i2t", Direction.IMAGE: "t2i"}
"""What the package calls a direction."""
ECCV = {"R@1": "eccv_r1", "R-Precision": "eccv_rprecision", "mAP@R": "eccv_map_at_r"}
"""What the package calls these measures; it has the other two only where it is asked for mAP@R as well."""
CXC = {f"R@{k}": f"cxc_r{k}" for k in KS}
Numbers = NDArray[np.int64]
Truth = Mapping[str, Mapping[int, list[int]]]
"""Positives of each query, by direction."""


class Judge:
    """The package's judgements, for a corpus that they are about."""

    def __init__(self, metrics: Any, corpus: Corpus) -> None:
        self._metrics = metrics
        self._images, self._texts = _image_numbers(corpus), corpus.caption_ids
        self._known = set(metrics.coco_gts["t2i"])
        owners = dict(zip(self._texts.tolist(), self._images[corpus.caption_image].tolist(), strict=True))
        for text, (image, *_) in metrics.coco_gts["t2i"].items():
            if owners.get(text) != image:
                found = f"is of {owners[text]}" if text in owners else "is not there"
                raise CorpusError(
                    f"ECCV Caption wants COCO's own numbers, by which caption {text} is of picture {image}; in {corpus.folder} it {found}",
                    hint="`dcdctl prepare coco --source karpathy` keeps them",
                )

    @property
    def num_top(self) -> int:
        """Candidates of each query that no measure looks beyond, and those of captions that the package does not know."""
        counts = [
            len(set(own)) for truth in (self._metrics.eccv_gts, self._metrics.cxc_gts) for way in truth.values() for own in way.values()
        ]
        return max(*KS, *counts) + len(self._texts) - len(self._known)

    def measure(self, rankings: Rankings) -> dict[str, Any]:
        """Measures of both directions in percent, by ECCV Caption and by CrissCrossed Captions."""
        return {
            "eccv_caption": self._measure(rankings, self._metrics.eccv_gts, ECCV, list(ECCV.values())),
            "cxc": self._measure(rankings, self._metrics.cxc_gts, CXC, ["cxc_recalls"]),
        }

    def _measure(self, rankings: Rankings, truth: Truth, measures: Mapping[str, str], wanted: Sequence[str]) -> dict[str, dict[str, float]]:
        is_known_T = np.isin(self._texts, list(self._known))
        i2t = _lists(rankings.text, truth["i2t"], self._images, self._texts, is_known_T)
        t2i = _lists(rankings.image, truth["t2i"], self._texts, self._images, np.ones(len(self._images), dtype=bool))
        # The package shows progress of its own, whatever it is told.
        with contextlib.redirect_stderr(io.StringIO()):
            found = self._metrics.compute_all_metrics(i2t, t2i, target_metrics=wanted, Ks=KS)
        return {way.key: {ours: 100 * float(found[theirs][key]) for ours, theirs in measures.items()} for way, key in _KEYS.items()}


def open_judge(corpus: Corpus) -> Judge:
    """The judgements on a corpus; MissingError without the package, CorpusError for a corpus that they are not about."""
    return Judge(load_package()(), corpus)


def load_package() -> Any:
    """The package's class of judgements and measures; MissingError where it is not installed."""
    require_extra("eccv", "eccv_caption", needed_by="ECCV Caption")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a faster JSON reader is not installed
        from eccv_caption import Metrics
    return Metrics


def _lists(
    ranking: Ranking, positives: Mapping[int, list[int]], query_ids: Numbers, candidate_ids: Numbers, is_known: NDArray[np.bool_]
) -> dict[int, list[int]]:
    """The known candidates in order, by number, of each query that has positives.

    A tie counts against positives: they stand last among candidates of one score, and those that tie with the last candidate of a list
    that is cut there are left out, as others may stand before them.
    """
    lists, is_cut = {}, ranking.top_QK.shape[1] < len(candidate_ids)
    for query, candidates, scores in zip(query_ids.tolist(), ranking.top_QK, ranking.top_score_QK, strict=True):
        if query in positives:
            names = candidate_ids[candidates]
            is_own = np.isin(names, positives[query])
            # Not by score: a cascade's are on two scales.
            tied_with = np.cumsum(np.diff(scores, prepend=scores[0]) != 0)
            order = np.lexsort((is_own, tied_with))
            # Places that are left out stay taken, each by a number that is no caption's and no picture's.
            names = np.where(is_own & (tied_with == tied_with[-1]) & is_cut, -1 - np.arange(len(names)), names)
            lists[query] = names[order][is_known[candidates[order]]].tolist()
    return lists


def _image_numbers(corpus: Corpus) -> Numbers:
    """COCO's number of each picture: the digits that its name ends with."""
    found = [re.search(r"\d+$", PurePosixPath(image_id).stem) for image_id in corpus.image_ids]
    return np.array([-1 if digits is None else int(digits[0]) for digits in found])
