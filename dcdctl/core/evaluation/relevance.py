"""nDCG@10 by graded relevance that a file gives: how relevant which caption is to which image.

The gain of a candidate is its relevance itself, as in trec_eval (not 2^relevance - 1), and 0 for pairs that the file
does not name. A gain is divided by log2(1 + position), and their sum over the first ten candidates by that of the best
order (Järvelin & Kekäläinen 2002). Among equal scores the least relevant candidate comes first.

Shape letters: P pairs, T texts, R rows of a file, B rows of a batch, Q queries, K candidates.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dcdctl.core.data import Corpus, Direction, Indices, Values
from dcdctl.core.errors import NUM_EXAMPLES, Faults, InputError
from dcdctl.core.evaluation.agreement import DEPTH, DISCOUNTS
from dcdctl.core.evaluation.ranking import Ranking
from dcdctl.core.teacher import READERS, RowNames, read_batches

NUM_TOP = DEPTH + 1
"""Candidates that nDCG@10 needs of a query: the last one shows whether the tenth ties with others."""


@dataclass(frozen=True, eq=False)
class Relevance:
    """The relevant pairs of a corpus, each once."""

    num_texts: int
    key_P: Indices
    """Image times the number of captions, plus caption; ascending."""
    gain_P: Values

    def ndcg(self, direction: Direction, ranking: Ranking, gallery: int) -> Values:
        """(Q,): nDCG@10 of each query, from its first NUM_TOP candidates; NaN for a query without a relevant one."""
        top_QK, score_QK = ranking.top_QK, ranking.top_score_QK
        images, texts = direction.query_first(np.arange(len(top_QK))[:, None], top_QK)
        key_QK = images * self.num_texts + texts
        place_QK = np.minimum(np.searchsorted(self.key_P, key_QK), len(self.key_P) - 1)
        gain_QK = np.where(self.key_P[place_QK] == key_QK, self.gain_P[place_QK], 0.0)
        # Groups of equal scores, not the scores, because a cascade has two scales.
        tie_QK = np.cumsum(np.diff(score_QK, prepend=score_QK[:, :1], axis=1) != 0, axis=1)
        if top_QK.shape[1] < gallery:
            # Candidates that are not kept may tie with the last one, and come before it.
            gain_QK = np.where(tie_QK == tie_QK[:, -1:], 0.0, gain_QK)
        order_QK = np.lexsort((gain_QK, tie_QK), axis=1)[:, :DEPTH]
        dcg_Q = np.take_along_axis(gain_QK, order_QK, axis=1) @ DISCOUNTS[: order_QK.shape[1]]
        query_P, _ = direction.query_first(*np.divmod(self.key_P, self.num_texts))
        best_P = np.lexsort((-self.gain_P, query_P))
        at_P = np.arange(len(best_P)) - np.searchsorted(query_P[best_P], query_P[best_P])
        is_first_P = at_P < DEPTH
        best = self.gain_P[best_P[is_first_P]] * DISCOUNTS[at_P[is_first_P]]
        ideal_Q = np.bincount(query_P[best_P[is_first_P]], best, minlength=len(top_QK))
        return np.divide(dcg_Q, ideal_Q, out=np.full(len(top_QK), np.nan), where=ideal_Q > 0)


def read_relevance(path: Path, corpus: Corpus) -> Relevance:
    """The relevance of the pairs in a file: Parquet, CSV or JSON lines, a pair per row, with image_id, caption_id (or
    the caption) and relevance.

    Rows beyond the first images of a split are left out. InputError for a file that cannot be read, for ids that the
    split does not have, for a relevance that is negative or not finite, for a pair with two of them, and if no pair is
    relevant.
    """
    if path.suffix.lower() not in READERS:
        raise InputError(f"{path} is no file of relevance by its name", hint=f"it ends with {', '.join(READERS)}")
    names = RowNames(corpus.whole)
    num_texts, faults = corpus.whole.num_captions, Faults(f"{path} does not fit split {corpus.split}")
    keys, gains = [np.empty(0, np.int64)], [np.empty(0)]
    for batch in read_batches(path):
        if "relevance" not in batch.schema.names:
            raise InputError(f"{path} has no column relevance (it has {', '.join(batch.schema.names)})")
        image_B, text_B = names.index(batch, "image"), names.index(batch, "caption")
        gain_B = batch.column("relevance").fill_null(np.nan).to_numpy(zero_copy_only=False)
        for kind, is_wrong in (
            ("rows of unknown images", image_B < 0),
            ("rows of unknown captions", text_B < 0),
            ("relevances that are no number of at least 0", ~np.isfinite(gain_B) | (gain_B < 0)),
        ):
            rows = np.flatnonzero(is_wrong)
            faults.add(kind, list(map(str, batch.take(rows[:NUM_EXAMPLES]).to_pylist())), len(rows))
        keys.append(image_B * num_texts + text_B)
        gains.append(gain_B)
    faults.check()
    key_P, first_P, pair_P = np.unique(np.concatenate(keys), return_index=True, return_inverse=True)
    gain_R = np.concatenate(gains)
    gain_P = gain_R[first_P]
    rows = np.flatnonzero(gain_P[pair_P] != gain_R)
    examples = [f"{gain_P[pair_P[row]]:g} and {gain_R[row]:g}" for row in rows[:NUM_EXAMPLES]]
    faults.add("rows of pairs with two relevances", examples, len(rows))
    faults.check()
    images, texts = np.divmod(key_P, num_texts)
    kept = (images < corpus.num_images) & (texts < corpus.num_captions) & (gain_P > 0)
    if not kept.any():
        raise InputError(f"{path} has no pair of split {corpus.split} with a relevance above 0")
    return Relevance(corpus.num_captions, images[kept] * corpus.num_captions + texts[kept], gain_P[kept])
