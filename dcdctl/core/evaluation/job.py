"""What to evaluate and what to compare: the jobs of `dcdctl eval` and `dcdctl compare`, and of their functions."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

from dcdctl.core.arguments import Ref, Refs, argument, configures, many, reads
from dcdctl.core.engines import Inference
from dcdctl.core.options import (
    DEPTH_HELP,
    Data,
    Dims,
    MaxImages,
    ModelSet,
    Page,
    QueryRef,
    Rerank,
    RerankSet,
    Split,
    model_argument,
)

if TYPE_CHECKING:  # torch
    from dcdctl.core.models import Model

ModelOrRef: TypeAlias = "Ref | Model"


@dataclass(frozen=True)
class EvalJob(Inference):
    """A model or a cascade, and the split to measure it on."""

    model: Annotated[ModelOrRef, model_argument]
    data: Data
    _: KW_ONLY
    split: Split = "test"
    protocol: Annotated[
        str,
        configures(
            "--protocol",
            "flickr30k-1k, coco-5k, coco-1k (five folds) or whole.",
            "NAME",
            show_default="auto, the corpus's own",
        ),
    ] = "auto"
    query_model: QueryRef = None
    rerank: Rerank = None
    rerank_overrides: RerankSet = None
    depth: Annotated[int | Sequence[int] | None, configures("--depth", DEPTH_HELP, "N,...", show_default="50")] = None
    against: Annotated[
        Ref | None,
        reads(
            "--against",
            "Teacher whose order is compared, without labels: a model, or (of a cross-encoder) its cache of the split.",
            "TEACHER",
            "model",
        ),
    ] = None
    relevance: Annotated[
        Ref | None,
        reads(
            "--relevance",
            "Parquet, CSV or JSON lines with image_id, caption_id and relevance: also measure nDCG@10.",
            "FILE",
        ),
    ] = None
    max_images: MaxImages = None
    model_overrides: ModelSet = None
    eccv: Annotated[bool, configures("--eccv", "With coco-5k: ECCV Caption and CxC (extra eccv).")] = False
    out: Annotated[Ref | None, configures("--out -o", "Folder for the results; by default the run folder.", "DIR")] = (
        None
    )
    dims: Dims = None
    vectors: Annotated[
        Literal["float32", "int8", "binary"],
        configures("--codes", "Vectors as float32, int8 or binary.", "FORM"),
    ] = "float32"
    rescore: Annotated[
        int | None,
        configures("--rescore", "With int8 or binary: first N again by float32.", "N", min=1),
    ] = None

    @property
    def ref(self) -> str | None:
        """The reference of the model; None for a model in memory."""
        return os.fspath(self.model) if isinstance(self.model, str | os.PathLike) else None

    @property
    def name(self) -> str:
        """What results call the model: its reference, or the class and the digest of a model in memory."""
        if isinstance(self.model, str | os.PathLike):
            return os.fspath(self.model)
        return f"{type(self.model).__name__} {self.model.digest[:8]}"

    @property
    def depths(self) -> tuple[int, ...]:
        """The depths of the cascade in order, each once; none for the default."""
        depths = [self.depth] if isinstance(self.depth, int) else self.depth or ()
        return tuple(sorted(set(depths)))


@dataclass(frozen=True)
class CompareJob:
    """Systems, and how to compare them."""

    systems: Annotated[
        Sequence[Refs],
        argument(
            "Two or more systems: a run or another folder with an evaluation, FOLDER:cascade, or FOLDER:agreement; "
            "A,B,C are seeds of one system. The others are compared with the first.",
            "SYSTEM",
            "place",
        ),
    ]
    _: KW_ONLY
    data: Annotated[
        Ref | None,
        reads("--data", "Corpus of the images on the page; by default that of the evaluation.", "DIR", "place"),
    ] = None
    html: Page = None
    draw_seeds: Annotated[
        bool,
        configures(
            "--draw-seeds",
            "Cover other seeds in intervals and p-values too; needs two or more per system.",
        ),
    ] = False

    @property
    def names(self) -> list[str]:
        """Each system as `compare_systems` takes it."""
        return [",".join(many(system)) for system in self.systems]
