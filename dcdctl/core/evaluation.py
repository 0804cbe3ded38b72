"""Evaluations: how a model retrieves on a corpus, as numbers, as a document, and as the table of ranks that models are compared by."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from typing_extensions import TypeIs

from dcdctl.core import comparison, models, ranking, retrieval, tally
from dcdctl.core.cascade import DepthResult
from dcdctl.core.comparison import RankTable
from dcdctl.core.config import apply_sets
from dcdctl.core.corpus import Corpus
from dcdctl.core.errors import ModelError
from dcdctl.core.models.protocols import DualEncoder, FusionScorer
from dcdctl.core.progress import Track, silent
from dcdctl.core.protocol import Fold, Protocol, folds_of
from dcdctl.core.ranking import EvalOptions, Tell, Work
from dcdctl.core.retrieval import Rankings, Recalls

Kind = Literal["dual", "fusion", "cascade"]
DEFAULT = EvalOptions()
RESAMPLES = 10_000
"""Draws of an interval."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """How a model retrieves on a corpus."""

    text_retrieval: dict[str, float]
    """`retrieval.measures`, means over the protocol's folds."""
    image_retrieval: dict[str, float]
    rankings: Rankings
    """Of all folds, by indices of the corpus; places and candidates are those within a fold."""
    table: RankTable
    """The ranks, with the names of the queries."""
    kind: Kind
    protocol: Protocol
    depth: int | None
    """cascade: candidates re-ranked of each query."""
    depths: tuple[DepthResult, ...]
    """cascade of several depths: each of them."""
    features: Literal["float16"] | None
    """How the outputs of encoders were kept, where they were."""
    pairs_scored: int
    """Pairs that went through fusion layers."""
    seconds: float
    """Wall clock for everything, reading the images included."""
    fingerprint: str
    """Of the corpus."""
    data: str
    """Where the corpus was."""

    @property
    def recalls(self) -> Recalls:
        return retrieval.recalls_in(self.text_retrieval, self.image_retrieval)

    @property
    def text_ranks(self) -> NDArray[np.int64]:
        """Rank of the best own caption of each image."""
        return self.table.text_ranks

    @property
    def image_ranks(self) -> NDArray[np.int64]:
        """Rank of the image of each caption."""
        return self.table.image_ranks


def load_models(
    ref: str, rerank: str | None = None, model_sets: Sequence[str] = (), track: Track = silent
) -> tuple[FusionScorer | DualEncoder, FusionScorer | None]:
    """The model to evaluate, with settings such as "image_size=384", and the fusion scorer that re-ranks, if there is one."""
    scorer = _load(models.load, ref, apply_sets({}, model_sets), track)
    return scorer, None if rerank is None else _load(models.load_fusion, rerank, {}, track)


def evaluate(
    model: FusionScorer | DualEncoder,
    corpus: Corpus,
    *,
    rerank: FusionScorer | None = None,
    options: EvalOptions = DEFAULT,
    track: Track = silent,
    tell: Tell | None = None,
) -> Evaluation:
    """Rank every caption for every image and every image for every caption; with `rerank`, the first of each anew.

    `tell` hears how many pairs there are and how long they will take, by a short trial, before a fusion scorer scores them.
    """
    started = time.perf_counter()
    work = Work(corpus, options, folds_of(corpus, options.protocol), track, tell)
    if options.features is not None and is_dual(model) and not isinstance(model, models.EncoderDual) and rerank is None:
        raise ModelError("a dual encoder's features are its vectors, which are computed once in any case", hint="leave --features out")
    kind: Kind
    if not is_dual(model):
        if rerank is not None:
            raise ModelError("only a dual encoder's results can be re-ranked, and the model is a fusion scorer")
        kind, found = "fusion", ranking.fusion(model, work)
    elif rerank is None:
        kind, found = "dual", ranking.dual(model, work)
    else:
        kind, found = "cascade", ranking.cascaded(model, rerank, work)
    rankings = _joined(found.folds, work.folds)
    text_retrieval, image_retrieval = retrieval.mean_measures(found.folds)
    return Evaluation(
        text_retrieval=text_retrieval,
        image_retrieval=image_retrieval,
        rankings=rankings,
        table=RankTable(tuple(corpus.image_ids), corpus.caption_ids, corpus.caption_image, rankings.text.ranks, rankings.image.ranks),
        kind=kind,
        protocol=options.protocol,
        depth=options.depths[-1] if kind == "cascade" else None,
        depths=found.depths,
        features=None if options.features is None else "float16",
        pairs_scored=found.num_pairs,
        seconds=time.perf_counter() - started,
        fingerprint=corpus.fingerprint,
        data=str(corpus.folder),
    )


def is_dual(model: FusionScorer | DualEncoder) -> TypeIs[DualEncoder]:
    """Whether a model embeds images and captions apart."""
    return hasattr(model, "embed_images")


def to_document(evaluation: Evaluation, model_name: str, split: str) -> dict[str, Any]:
    """The evaluation as a JSON-able document; recalls and mAP@R are percentages, with intervals of the bootstrap over images."""
    recalls = evaluation.recalls
    document = {
        "model": model_name,
        "split": split,
        "images": len(evaluation.text_ranks),
        "captions": len(evaluation.image_ranks),
        "text_retrieval": evaluation.text_retrieval,
        "image_retrieval": evaluation.image_retrieval,
        "rsum": recalls.rsum,
        "mean_recall": recalls.mean_recall,
        "intervals": _intervals(evaluation.table),
        "protocol": {
            "name": evaluation.protocol.name,
            "folds": evaluation.protocol.num_folds,
            "kind": evaluation.kind,
            "depth": evaluation.depth,
            "features": evaluation.features,
            "ties": "count against the positive",
        },
        "pairs_scored": evaluation.pairs_scored,
        "seconds": evaluation.seconds,
        "corpus_fingerprint": evaluation.fingerprint,
        "data": evaluation.data,
    }
    return document | ({"depths": [_row(one) for one in evaluation.depths]} if evaluation.depths else {})


def _row(one: DepthResult) -> dict[str, Any]:
    return {
        "depth": one.depth,
        "text_retrieval": one.text_retrieval,
        "image_retrieval": one.image_retrieval,
        "rsum": one.rsum,
        "ms_per_query": one.ms_per_query,
        "pairs": one.num_pairs,
        "on_front": one.is_on_front,
    }


def _intervals(table: RankTable) -> dict[str, Any]:
    found = comparison.bootstrap([table], resamples=RESAMPLES)
    ways = {"text_retrieval": found.text_retrieval, "image_retrieval": found.image_retrieval}
    bounds = {way: {name: [one.interval.low, one.interval.high] for name, one in them.items()} for way, them in ways.items()}
    rsum = [found.rsum.interval.low, found.rsum.interval.high]
    return {"level": comparison.LEVEL, "resamples": RESAMPLES, "rsum": rsum, **bounds}


def _joined(found: list[Rankings], folds: list[Fold]) -> Rankings:
    """Of all folds, by indices of the corpus: text retrieval's candidates are captions, image retrieval's are images."""
    text = tally.joined([one.text for one in found], [fold.texts.start for fold in folds])
    return Rankings(text, tally.joined([one.image for one in found], [fold.images.start for fold in folds]))


def _load(load: Callable[[str, dict[str, Any], Track], Any], ref: str, overrides: dict[str, Any], track: Track) -> Any:
    """A model; where there is none, the ModelError says how a run is made."""
    try:
        return load(ref, overrides, track)
    except ModelError as error:
        if Path(ref).exists():
            raise
        raise ModelError(error.args[0], hint=f"make a run with `dcdctl distill`; {error.hint}".removesuffix("; ")) from error
