"""`dcdctl eval`: measure how well a model retrieves, alone or in a cascade."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, cast

from dcdctl.cli.declare import Ref, assignments, optional_path, optional_ref, path
from dcdctl.cli.option_groups import Inference
from dcdctl.cli.options import (
    DEPTH_HELP,
    Data,
    Dims,
    Json,
    MaxImages,
    ModelSet,
    QueryRef,
    Rerank,
    RerankSet,
    Split,
    configures,
    model_argument,
    reads,
    reads_model,
    sizes,
)
from dcdctl.cli.views.scoring import show_workload
from dcdctl.cli.views.terminal import bar, note, show_json, show_tables

if TYPE_CHECKING:
    from dcdctl.core.evaluation import EvalJob
    from dcdctl.core.models import Model
    from dcdctl.core.progress import Say

ModelOrRef: TypeAlias = "Ref | Model"


@dataclass(frozen=True)
class Evaluate(Inference):
    """A model or a cascade, and the split to measure it on."""

    model: Annotated[ModelOrRef, model_argument, str]
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
    # Any for Typer, which takes a list in one word by `parser`, not by its type.
    depth: Annotated[
        int | Sequence[int] | None, configures("--depth", DEPTH_HELP, "N,...", parser=sizes, show_default="50"), Any
    ] = None
    against: Annotated[
        Ref | None,
        reads_model(
            "--against",
            "Teacher whose order is compared, without labels: a model, or (of a cross-encoder) its cache of the split.",
            "TEACHER",
        ),
        str,
    ] = None
    relevance: Annotated[
        Ref | None,
        reads(
            "--relevance",
            "Parquet, CSV or JSON lines with image_id, caption_id and relevance: also measure nDCG@10.",
            "FILE",
        ),
        Path,
    ] = None
    max_images: MaxImages = None
    model_overrides: ModelSet = None
    eccv: Annotated[bool, configures("--eccv", "With coco-5k: ECCV Caption and CxC (extra eccv).")] = False
    out: Annotated[
        Ref | None, configures("--out -o", "Folder for the results; by default the run folder.", "DIR"), Path
    ] = None
    dims: Dims = None
    vectors: Annotated[
        Literal["float32", "int8", "binary"],
        configures("--codes", "Vectors as float32, int8 or binary.", "FORM"),
    ] = "float32"
    rescore: Annotated[
        int | None,
        configures("--rescore", "With int8 or binary: first N again by float32.", "N", min=1),
    ] = None

    def job(self, say: Say) -> EvalJob:
        """The same as the core takes it."""
        from dcdctl.core.evaluation import EvalJob

        # A loaded model has no reference: the document names its class and digest.
        loaded = None if isinstance(self.model, str | os.PathLike) else self.model
        name = self.model if loaded is None else f"{type(loaded).__name__} {loaded.digest[:8]}"
        return EvalJob(
            model=os.fspath(cast("Ref", name)),
            loaded=loaded,
            data=path(self.data),
            split=self.split,
            protocol=self.protocol,
            max_images=self.max_images,
            query_model=optional_ref(self.query_model),
            rerank=optional_ref(self.rerank),
            rerank_sets=assignments(self.rerank_overrides),
            against=optional_ref(self.against),
            relevance=optional_path(self.relevance),
            depths=(self.depth,) if isinstance(self.depth, int) else tuple(self.depth or ()),
            model_sets=assignments(self.model_overrides),
            with_eccv=self.eccv,
            dims=self.dims,
            codes=self.vectors,
            rescore=self.rescore,
            compute=self.compute(say),
            out=optional_path(self.out),
        )


def evaluate(
    arguments: Evaluate,
    vector_table: Annotated[
        bool,
        configures("--vector-table", "Only what shorter, int8 and binary vectors cost."),
    ] = False,
    json: Json = False,
) -> None:
    """Measure the retrieval of a model or a cascade. It prints recalls with intervals, mAP@R, and the ranks of the
    positives."""
    from dcdctl.core.config import to_table
    from dcdctl.core.evaluation import evaluation_tables, run_evaluation, run_vector_table
    from dcdctl.core.evaluation import vector_table as vector_costs

    job = arguments.job(note)
    if vector_table:
        costs = run_vector_table(job, track=bar, say=note)
        return show_json(costs) if json else show_tables([vector_costs(costs)])
    evaluation = run_evaluation(job, track=bar, on_workload=show_workload, say=note)
    if json:
        found = evaluation.published
        return show_json({**evaluation.document, **to_table({"published": found} if found else {})})
    show_tables(evaluation_tables(evaluation))
    if evaluation.folder is not None:
        note(f"results -> {evaluation.folder}")
