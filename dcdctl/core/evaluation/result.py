"""Results of an evaluation: as values, as the document that `dcdctl eval` writes, and as the summary read back from
that document."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dcdctl.core import artifacts
from dcdctl.core.config import build_document, to_table
from dcdctl.core.data import Direction
from dcdctl.core.errors import InputError
from dcdctl.core.evaluation import significance
from dcdctl.core.evaluation.protocols import Protocol
from dcdctl.core.evaluation.ranking import Rankings, RankTable
from dcdctl.core.evaluation.recall import KS, Recalls
from dcdctl.core.evaluation.significance import Interval
from dcdctl.core.evaluation.vector_form import VectorForm

Kind = Literal["dual", "fusion", "cascade"]
RESAMPLES = 10_000
"""Bootstrap draws of an interval."""


@dataclass(frozen=True)
class FileNames:
    """The names of the files of an evaluation; None for a file that it does not have."""

    ranks: str
    top: str | None = None
    result: str | None = None


MODEL_FILES = FileNames("ranks.parquet", "top.parquet", "result.json")
CASCADE_FILES = FileNames("cascade-ranks.parquet", "cascade-top.parquet", "cascade.json")


@dataclass(frozen=True, kw_only=True)
class DepthResult:
    """A cascade at one depth; depth 0 is the dual encoder alone."""

    depth: int
    text_retrieval: dict[str, float]
    image_retrieval: dict[str, float]
    ms_per_query: float
    """One caption against images that both models encoded before, see `query_ms`."""
    num_pairs: int
    """Pairs that the fusion scorer scores for all queries of both directions."""
    is_on_front: bool = False
    """Whether no other depth is at least as good and as fast, and better or faster."""

    @property
    def rsum(self) -> float:
        return Recalls.from_measures(self.text_retrieval, self.image_retrieval).rsum


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """How a model retrieves on a corpus."""

    text_retrieval: dict[str, float]
    """`recall.measures`, means over the protocol's folds."""
    image_retrieval: dict[str, float]
    rankings: Rankings
    """For all folds, with indices of the corpus; positions and candidates are those within a fold."""
    table: RankTable
    """The ranks, with the names of the queries."""
    kind: Kind
    protocol: Protocol
    depth: int | None
    """cascade: candidates per query that are re-ranked."""
    depths: tuple[DepthResult, ...]
    """cascade: each of several depths; empty for one depth."""
    form: VectorForm
    """dual: how its vectors were compared."""
    features: Literal["float16"] | None
    """Number type of the stored encoder outputs; None if none were read."""
    precision: str
    """Torch name of the type that the models computed in."""
    pairs_scored: int
    """Pairs that went through fusion layers."""
    seconds: float
    """Wall-clock time, reading the images included."""
    fingerprint: str
    """Fingerprint of the corpus."""
    data: str
    """Folder of the corpus."""

    @property
    def recalls(self) -> Recalls:
        return Recalls.from_measures(self.text_retrieval, self.image_retrieval)

    @property
    def text_ranks(self) -> NDArray[np.int64]:
        """(I,): rank of the best positive caption of each image."""
        return self.table.text_ranks

    @property
    def image_ranks(self) -> NDArray[np.int64]:
        """(T,): rank of the image of each caption."""
        return self.table.image_ranks


def evaluation_document(evaluation: Evaluation, model_name: str, split: str) -> dict[str, Any]:
    """The evaluation as a JSON-able document; recalls and mAP@R are percentages, with bootstrap intervals over
    images."""
    recalls = evaluation.recalls
    document = {
        "model": model_name,
        "split": split,
        "images": len(evaluation.text_ranks),
        "captions": len(evaluation.image_ranks),
        Direction.TEXT.key: evaluation.text_retrieval,
        Direction.IMAGE.key: evaluation.image_retrieval,
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
            **({} if evaluation.precision == "float32" else {"precision": evaluation.precision}),
            **({} if evaluation.form == VectorForm() else {"vectors": evaluation.form.to_document()}),
        },
        "pairs_scored": evaluation.pairs_scored,
        "seconds": evaluation.seconds,
        "corpus_fingerprint": evaluation.fingerprint,
        "data": evaluation.data,
    }
    return document | ({"depths": [_depth_document(depth) for depth in evaluation.depths]} if evaluation.depths else {})


def _depth_document(result: DepthResult) -> dict[str, Any]:
    return {
        "depth": result.depth,
        Direction.TEXT.key: result.text_retrieval,
        Direction.IMAGE.key: result.image_retrieval,
        "rsum": result.rsum,
        "ms_per_query": result.ms_per_query,
        "pairs": result.num_pairs,
        "on_front": result.is_on_front,
    }


def _intervals(table: RankTable) -> dict[str, Any]:
    # Always with seed 0, so that evaluating again gives the same intervals.
    estimates = significance.bootstrap([table], resamples=RESAMPLES)
    both = {Direction.TEXT: estimates.text_retrieval, Direction.IMAGE: estimates.image_retrieval}
    bounds = {
        direction.key: {name: [estimate.interval.low, estimate.interval.high] for name, estimate in recalls.items()}
        for direction, recalls in both.items()
    }
    rsum = [estimates.rsum.interval.low, estimates.rsum.interval.high]
    return {"level": significance.LEVEL, "resamples": RESAMPLES, "rsum": rsum, **bounds}


@dataclass(frozen=True)
class Figure:
    """A number with its interval, if one was estimated."""

    value: float
    interval: Interval | None = None


@dataclass(frozen=True, kw_only=True)
class Retrieval:
    """How a model retrieves in one direction."""

    recalls: dict[str, Figure]
    """R@1, R@5 and R@10 in percent."""
    map_at_r: float | None
    """mAP@R in percent; None in documents of versions that did not measure it."""
    median_rank: float | None
    """None as for `map_at_r`."""


@dataclass(frozen=True, kw_only=True)
class Depth:
    """A cascade at one depth."""

    depth: int
    rsum: float
    query_ms: float
    is_on_front: bool
    """Whether no other depth is both faster and better."""


@dataclass(frozen=True, kw_only=True)
class EvalSummary:
    """The contents of result.json or cascade.json."""

    model: str
    split: str
    num_images: int
    num_captions: int
    retrieval: dict[Direction, Retrieval]
    rsum: Figure
    kind: str
    depth: int | None
    protocol: str | None
    """flickr30k-1k, whole, ...; None in documents of versions that did not name it."""
    num_folds: int
    ties: str | None
    """How ties count."""
    fingerprint: str
    """Fingerprint of the corpus."""
    data: str | None
    """Folder of the corpus."""
    reranker: str | None
    depths: tuple[Depth, ...]
    """cascade: its depths above 0, ascending."""
    dual_query_ms: float | None
    """cascade: time of its depth 0, which is the dual encoder alone; None if that depth was not measured."""
    files: dict[str, artifacts.Document]
    """Size and SHA-256 of the tables beside the document, by file name."""

    @property
    def gallery_size(self) -> int:
        """Images that a caption is compared with."""
        return self.num_images // self.num_folds

    @property
    def basis(self) -> tuple[object, ...]:
        """What must be equal for two results to be compared."""
        return self.fingerprint, self.split, self.protocol, self.num_folds

    @property
    def about_basis(self) -> str:
        """The basis in words."""
        protocol = "" if self.protocol is None else f", protocol {self.protocol}"
        folds = f" in {self.num_folds} folds" if self.num_folds > 1 else ""
        return f"split {self.split} of the corpus {self.fingerprint[:12]}{protocol}{folds}"


def read_summary(path: Path) -> EvalSummary | None:
    """The contents of result.json or cascade.json; None if there is no such file. InputError for a damaged one."""
    if not path.exists():
        return None
    hint = f"`dcdctl eval {path.parent} --data DIR` writes it again"
    document = artifacts.read_document(path, error=InputError, hint=hint)
    artifacts.expect_run(path, document, error=InputError, hint=hint)
    listed = artifacts.listed_files(path, document, error=InputError, hint=hint)
    try:
        summary = _summary(document, listed)
    except KeyError as error:
        raise InputError(f"{path} is not as `dcdctl eval` writes it: it has no {error}", hint=hint) from error
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{path} is not as `dcdctl eval` writes it ({type(error).__name__}: {error})", hint=hint
        ) from error
    build_document(EvalSummary, to_table(summary), path, error=InputError, hint=hint)
    return summary


def _summary(document: dict[str, Any], listed: dict[str, artifacts.Document]) -> EvalSummary:
    model, protocol, intervals = document["model"], document["protocol"], document.get("intervals") or {}
    depths = [
        Depth(depth=row["depth"], rsum=row["rsum"], query_ms=row["ms_per_query"], is_on_front=row["on_front"])
        for row in document.get("depths") or ()
    ]
    return EvalSummary(
        model=model,
        split=document["split"],
        num_images=document["images"],
        num_captions=document["captions"],
        retrieval={
            direction: _retrieval(document[direction.key], intervals.get(direction.key) or {})
            for direction in Direction
        },
        rsum=_figure(document["rsum"], intervals.get("rsum")),
        kind=protocol["kind"],
        depth=protocol["depth"],
        protocol=protocol.get("name"),
        num_folds=protocol.get("folds", 1),
        ties=protocol.get("ties"),
        fingerprint=document["corpus_fingerprint"],
        data=document.get("data"),
        reranker=document.get("reranker"),
        # Depth 0 re-ranks nothing: it is the dual encoder, which has a result of its own.
        depths=tuple(sorted((depth for depth in depths if depth.depth), key=lambda depth: depth.depth)),
        dual_query_ms=next((depth.query_ms for depth in depths if not depth.depth), None),
        files=listed,
    )


def _retrieval(measures: dict[str, float], intervals: dict[str, list[float]]) -> Retrieval:
    recalls = {f"R@{k}": _figure(measures[f"R@{k}"], intervals.get(f"R@{k}")) for k in KS}
    return Retrieval(recalls=recalls, map_at_r=measures.get("mAP@R"), median_rank=measures.get("median_rank"))


def _figure(value: float, interval: list[float] | None) -> Figure:
    return Figure(value, None if interval is None else Interval(*interval))
