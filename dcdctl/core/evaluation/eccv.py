"""ECCV Caption and CrissCrossed Captions: recall and mAP@R on COCO's test split, including the positives that COCO's
own pairs lack.

The package `eccv_caption` (MIT) has the judgments and the measures: Chun et al., ECCV 2022. It includes CrissCrossed
Captions (Apache-2.0): Parekh et al., EACL 2021. The package numbers images and captions as COCO does, knows five
captions per image, and reads the candidates of every query in order.

Shape letters: T texts (captions); Q queries; K candidates.
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

from dcdctl.core.data import Corpus, Direction, Flags, Indices
from dcdctl.core.errors import ConfigError, CorpusError, require_extra
from dcdctl.core.evaluation.measures import KS
from dcdctl.core.evaluation.protocols import Protocol
from dcdctl.core.evaluation.ranking import Ranking, Rankings
from dcdctl.core.places import shown

PROTOCOL = "coco-5k"
"""The protocol whose gallery the judgments cover."""
_KEYS = {Direction.TEXT: "i2t", Direction.IMAGE: "t2i"}
"""The package's names of the directions."""
ECCV = {"R@1": "eccv_r1", "R-Precision": "eccv_rprecision", "mAP@R": "eccv_map_at_r"}
"""Our and the package's names of the measures. Without mAP@R the package does not compute R@1 and R-Precision."""
CXC = {f"R@{k}": f"cxc_r{k}" for k in KS}
Positives = Mapping[str, Mapping[int, list[int]]]
"""Positives of each query, by the package's name of the direction."""


class Judge:
    """The package's judgments for a corpus."""

    def __init__(self, metrics: Any, corpus: Corpus) -> None:
        self._metrics = metrics
        # COCO's number of an image is the digits at the end of its name. A name without digits gets -1, which COCO does
        # not use.
        digits = [re.search(r"\d+$", PurePosixPath(image_id).stem) for image_id in corpus.image_ids]
        self._images = np.array([-1 if match is None else int(match[0]) for match in digits])
        self._texts = corpus.caption_ids
        self._known = set(metrics.coco_gts["t2i"])
        image_of_text = dict(zip(self._texts.tolist(), self._images[corpus.caption_image].tolist(), strict=True))
        for text, (image, *_) in metrics.coco_gts["t2i"].items():
            if image_of_text.get(text) != image:
                fault = f"belongs to {image_of_text[text]}" if text in image_of_text else "is missing"
                raise CorpusError(
                    f"ECCV Caption requires COCO's own numbers: caption {text} belongs to image {image}, "
                    f"but in {shown(corpus.folder)} it {fault}",
                    hint="`dcdctl prepare coco --source karpathy` keeps them",
                )

    @property
    def num_top(self) -> int:
        """Candidates of each query that the measures read, plus the number of captions that the package does not know,
        because these are removed from the candidates."""
        most = max(KS)
        for judgments in (self._metrics.eccv_gts, self._metrics.cxc_gts):
            for by_query in judgments.values():
                for positives in by_query.values():
                    most = max(most, len(set(positives)))
        return most + len(self._texts) - len(self._known)

    def measure(self, rankings: Rankings) -> dict[str, Any]:
        """Measures of both directions in percent, by ECCV Caption and by CrissCrossed Captions."""
        return {
            "eccv_caption": self._measure(rankings, self._metrics.eccv_gts, ECCV, list(ECCV.values())),
            "cxc": self._measure(rankings, self._metrics.cxc_gts, CXC, ["cxc_recalls"]),
        }

    def _measure(
        self, rankings: Rankings, positives: Positives, names: Mapping[str, str], target_metrics: Sequence[str]
    ) -> dict[str, dict[str, float]]:
        is_known_T = np.isin(self._texts, list(self._known))
        i2t = _candidate_lists(
            rankings.text,
            positives["i2t"],
            query_ids=self._images,
            candidate_ids=self._texts,
            is_known=is_known_T,
        )
        t2i = _candidate_lists(
            rankings.image,
            positives["t2i"],
            query_ids=self._texts,
            candidate_ids=self._images,
            is_known=np.ones(len(self._images), dtype=bool),
        )
        # The package shows progress bars that cannot be turned off.
        with contextlib.redirect_stderr(io.StringIO()):
            values = self._metrics.compute_all_metrics(i2t, t2i, target_metrics=target_metrics, Ks=KS)
        percents = {}
        for direction, key in _KEYS.items():
            percents[direction.key] = {ours: 100 * float(values[theirs][key]) for ours, theirs in names.items()}
        return percents


def open_judge(corpus: Corpus, protocol: Protocol) -> Judge:
    """The judgments for a corpus. ConfigError for another gallery than theirs, MissingError without the package,
    CorpusError for a corpus that they do not cover."""
    if protocol.name != PROTOCOL:
        place = shown(corpus.folder)
        raise ConfigError(
            f"ECCV Caption requires the protocol {PROTOCOL}, and {place} is evaluated by {protocol.name}",
            hint="leave --eccv out",
        )
    return Judge(load_package()(), corpus)


def load_package() -> Any:
    """The package's class of judgments and measures; MissingError if it is not installed."""
    require_extra("eccv", "eccv_caption", needed_by="ECCV Caption")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns that a faster JSON reader is not installed
        from eccv_caption import Metrics
    return Metrics


def _candidate_lists(
    ranking: Ranking, positives: Mapping[int, list[int]], *, query_ids: Indices, candidate_ids: Indices, is_known: Flags
) -> dict[int, list[int]]:
    """The candidates of each judged query that the package knows, in order, as COCO numbers.

    A tie counts against positives: they come last among candidates with one score. In a truncated list, positives that
    tie with its last candidate are left out, because candidates beyond the list may come before them.
    """
    lists = {}
    is_truncated = ranking.top_QK.shape[1] < len(candidate_ids)
    for query, candidates, scores in zip(query_ids.tolist(), ranking.top_QK, ranking.top_score_QK, strict=True):
        if query in positives:
            numbers = candidate_ids[candidates]
            is_positive = np.isin(numbers, positives[query])
            # Groups of equal scores, not the scores, because a cascade has two scales.
            tie_group = np.cumsum(np.diff(scores, prepend=scores[0]) != 0)
            order = np.lexsort((is_positive, tie_group))
            # A positive that is left out keeps its position, held by a number that no caption and no image has.
            is_left_out = is_positive & (tie_group == tie_group[-1]) & is_truncated
            numbers = np.where(is_left_out, -1 - np.arange(len(numbers)), numbers)
            known_order = order[is_known[candidates[order]]]
            lists[query] = numbers[known_order].tolist()
    return lists
