"""The documents of `dcdctl eval` and `dcdctl bench` read back: recalls with their intervals, and times."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from dcdctl.core.answers import DIRECTIONS, Direction
from dcdctl.core.comparison import Interval
from dcdctl.core.errors import InputError
from dcdctl.core.retrieval import KS

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


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; InputError where the file holds something else."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}", hint="delete it and make it anew") from error
    if not isinstance(document, dict):
        raise InputError(f"{path} holds no JSON object", hint="delete it and make it anew")
    return document


def _read(path: Path, parse: Callable[[dict[str, Any]], T], command: str) -> T | None:
    if not path.exists():
        return None
    try:
        return parse(read_json(path))
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
        retrieval={way: _retrieval(document[f"{way}_retrieval"], intervals.get(f"{way}_retrieval") or {}) for way in DIRECTIONS},
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
