"""The documents of `dcdctl eval` and `dcdctl bench` read back: recalls with their intervals, and times."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from dcdctl.core.data import Direction
from dcdctl.core.errors import InputError
from dcdctl.core.evaluation import recall, significance
from dcdctl.core.evaluation.cascade import DepthResult
from dcdctl.core.evaluation.protocols import Protocol
from dcdctl.core.evaluation.ranks import Rankings, RankTable
from dcdctl.core.evaluation.recall import KS, Recalls
from dcdctl.core.evaluation.significance import Interval
from dcdctl.core.files import read_json

Kind = Literal["dual", "fusion", "cascade"]
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
        return recall.recalls_in(self.text_retrieval, self.image_retrieval)

    @property
    def text_ranks(self) -> NDArray[np.int64]:
        """Rank of the best own caption of each image."""
        return self.table.text_ranks

    @property
    def image_ranks(self) -> NDArray[np.int64]:
        """Rank of the image of each caption."""
        return self.table.image_ranks


def evaluation_document(evaluation: Evaluation, model_name: str, split: str) -> dict[str, Any]:
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
    found = significance.bootstrap([table], resamples=RESAMPLES)
    ways = {"text_retrieval": found.text_retrieval, "image_retrieval": found.image_retrieval}
    bounds = {way: {name: [one.interval.low, one.interval.high] for name, one in them.items()} for way, them in ways.items()}
    rsum = [found.rsum.interval.low, found.rsum.interval.high]
    return {"level": significance.LEVEL, "resamples": RESAMPLES, "rsum": rsum, **bounds}


T = TypeVar("T")


@dataclass(frozen=True)
class Figure:
    """A number, with the interval it lies in where one was estimated."""

    value: float
    interval: Interval | None = None


@dataclass(frozen=True, kw_only=True)
class Retrieval:
    """How a model retrieves in one direction."""

    recalls: dict[str, Figure]
    """R@1, R@5, R@10 in percent."""
    map_at_r: float | None
    """In percent; None where it was not measured, as are the ranks."""
    median_rank: float | None


@dataclass(frozen=True, kw_only=True)
class Depth:
    """A cascade at one depth."""

    depth: int
    rsum: float
    query_ms: float
    is_on_front: bool
    """No other depth is both faster and better."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """What result.json or cascade.json says."""

    model: str
    split: str
    num_images: int
    num_captions: int
    retrieval: dict[Direction, Retrieval]
    rsum: Figure
    kind: str
    depth: int | None
    protocol: str | None
    """flickr30k-1k, whole, ...; None in documents written before it was told."""
    num_folds: int
    fingerprint: str
    """Of the corpus."""
    data: str | None
    """Where the corpus was."""
    reranker: str | None
    depths: tuple[Depth, ...]

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


@dataclass(frozen=True, kw_only=True)
class Times:
    """How long a model takes, by a bench.json."""

    query_ms: float
    """One caption against `num_images` images that were encoded before."""
    is_extrapolated: bool
    num_images: int
    num_parameters: int
    speed_up: float | None
    """The teacher's time over this; None for the teacher itself."""
    teacher_model: str
    machine: str


def read_result(path: Path) -> Result | None:
    """What an evaluation found; None where there is no such file."""
    return _read(path, _result, "dcdctl eval")


def read_times(path: Path, side: Literal["teacher", "student"]) -> Times | None:
    """The times of the "student" or the "teacher" of a bench.json; None where there is no such file."""
    return _read(path, lambda document: _times(document, side), "dcdctl bench")


def _read(path: Path, parse: Callable[[dict[str, Any]], T], command: str) -> T | None:
    if not path.exists():
        return None
    try:
        return parse(read_json(path, hint=f"run `{command}` again"))
    except (KeyError, TypeError, ValueError, StopIteration) as error:
        raise InputError(
            f"{path} is not as `{command}` writes it ({type(error).__name__}: {error})", hint=f"run `{command}` again"
        ) from error


def _result(document: dict[str, Any]) -> Result:
    intervals, protocol = document.get("intervals") or {}, document["protocol"]
    depths = [
        Depth(depth=one["depth"], rsum=one["rsum"], query_ms=one["ms_per_query"], is_on_front=one["on_front"])
        for one in document.get("depths") or ()
        # At 0 nothing is re-ranked: that is the dual encoder, which has a row of its own.
        if one["depth"]
    ]
    return Result(
        model=document["model"],
        split=document["split"],
        num_images=document["images"],
        num_captions=document["captions"],
        retrieval={way: _retrieval(document[way.key], intervals.get(way.key) or {}) for way in Direction},
        rsum=_figure(document["rsum"], intervals.get("rsum")),
        kind=protocol["kind"],
        depth=protocol["depth"],
        protocol=protocol.get("name"),
        num_folds=protocol.get("folds", 1),
        fingerprint=document["corpus_fingerprint"],
        data=document.get("data"),
        reranker=document.get("reranker"),
        depths=tuple(sorted(depths, key=lambda one: one.depth)),
    )


def _retrieval(found: dict[str, float], intervals: dict[str, list[float]]) -> Retrieval:
    recalls = {f"R@{k}": _figure(found[f"R@{k}"], intervals.get(f"R@{k}")) for k in KS}
    return Retrieval(recalls=recalls, map_at_r=found.get("mAP@R"), median_rank=found.get("median_rank"))


def _figure(value: float, interval: list[float] | None) -> Figure:
    return Figure(value, None if interval is None else Interval(*interval))


def _times(document: dict[str, Any], side: Literal["teacher", "student"]) -> Times:
    size = document["settings"]["headline_size"]
    durations = {name: _headline(document[name]["queries"], size) for name in ("teacher", "student")}
    machine, found = document["machine"], durations[side]
    device = machine["cpu"] if machine["device"] == "cpu" else f"{machine['device']} ({machine['cpu']})"
    return Times(
        query_ms=1000 * found["seconds"],
        is_extrapolated=found["extrapolated"],
        num_images=size,
        num_parameters=document[side]["num_parameters"],
        speed_up=None if side == "teacher" else durations["teacher"]["seconds"] / found["seconds"],
        teacher_model=document["teacher_model"],
        machine=f"{device}, {machine['threads']} threads, torch {machine['torch']}",
    )


def _headline(queries: list[dict[str, Any]], num_images: int) -> dict[str, Any]:
    return next(one["duration"] for one in queries if (one["num_images"], one["is_cached"]) == (num_images, True))


def flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of nested tables by dotted names.

    >>> flat({"seed": 1, "loss": {"terms": {"kl": 1.0}}})
    {'seed': 1, 'loss.terms.kl': 1.0}
    """
    found: dict[str, Any] = {}
    for key, value in table.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return found
