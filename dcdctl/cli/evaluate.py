"""`dcdctl eval`: measure how well a model retrieves, alone or in a cascade."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from dcdctl.cli.options import (
    CODES_HELP,
    DEPTH_HELP,
    DIMS_HELP,
    Data,
    Device,
    Features,
    Json,
    MaxImages,
    ModelRef,
    ModelSet,
    PairBatchSize,
    Precision,
    Rerank,
    RerankSet,
    Split,
    Threads,
    Workers,
    check_output_file,
)
from dcdctl.cli.views.scoring import precision_on, show_workload
from dcdctl.cli.views.terminal import bar, note, show_json, show_tables

ProtocolName = Annotated[
    str,
    typer.Option(
        "--protocol",
        help="flickr30k-1k, coco-5k, coco-1k (five folds), whole or first-N; auto uses the corpus's own.",
        metavar="NAME",
    ),
]
Depth = Annotated[
    str | None,
    typer.Option("--depth", help=DEPTH_HELP, show_default="50", metavar="N,..."),
]
Eccv = Annotated[
    bool, typer.Option("--eccv", help="With coco-5k: also measure ECCV Caption and CrissCrossed Captions (extra eccv).")
]
OutFolder = Annotated[
    Path | None, typer.Option("--out", "-o", help="Folder for the results; by default the run folder.", metavar="DIR")
]
RanksFile = Annotated[
    Path | None,
    typer.Option("--ranks", help="Also write the ranks to this file.", callback=check_output_file, metavar="FILE"),
]

Dims = Annotated[str | None, typer.Option("--dims", help=DIMS_HELP, metavar="N,...")]
Vectors = Annotated[
    Literal["float32", "int8", "binary"],
    typer.Option("--codes", help=CODES_HELP, metavar="float32|int8|binary"),
]
Rescore = Annotated[
    int | None,
    typer.Option(
        "--rescore", help="With int8 or binary: score the first N again by float32 vectors.", min=1, metavar="N"
    ),
]
VectorTable = Annotated[
    bool,
    typer.Option(
        "--vector-table", help="Only print what shorter, int8 and binary vectors cost, from one embedding of the split."
    ),
]


def evaluate(
    model: ModelRef,
    data: Data,
    split: Split = "test",
    protocol: ProtocolName = "auto",
    rerank: Rerank = None,
    rerank_set: RerankSet = None,
    depth: Depth = None,
    max_images: MaxImages = None,
    workers: Workers = None,
    batch_size: PairBatchSize = None,
    device: Device = "auto",
    threads: Threads = None,
    precision: Precision = "fp32",
    model_set: ModelSet = None,
    features: Features = None,
    eccv: Eccv = False,
    out: OutFolder = None,
    ranks: RanksFile = None,
    dims: Dims = None,
    vectors: Vectors = "float32",
    rescore: Rescore = None,
    vector_table: VectorTable = False,
    json: Json = False,
) -> None:
    """Measure the retrieval of a model or a cascade. It prints recalls with intervals, mAP@R, and the ranks of the
    positives."""
    from dcdctl.core import devices
    from dcdctl.core.devices import Compute
    from dcdctl.core.evaluation import EvalJob, SplitChoice, evaluation_tables, run_evaluation, run_vector_table
    from dcdctl.core.evaluation import vector_table as vector_costs

    devices.use_threads(threads)
    place = devices.choose(device)
    numbers = precision_on(precision, place)
    compute = Compute(device=place, precision=numbers, batch_size=batch_size, workers=workers, features=features)
    job = EvalJob(
        model=model,
        choice=SplitChoice(data, split, protocol, max_images),
        rerank=rerank,
        rerank_sets=tuple(rerank_set or ()),
        depth=depth,
        model_sets=tuple(model_set or ()),
        with_eccv=eccv,
        dims=dims,
        codes=vectors,
        rescore=rescore,
        compute=compute,
        out=out,
        ranks=ranks,
    )
    if vector_table:
        costs = run_vector_table(job, track=bar, say=note)
        return show_json(costs) if json else show_tables([vector_costs(costs)])
    evaluation = run_evaluation(job, track=bar, on_workload=show_workload, say=note)
    if json:
        return show_json(evaluation.document)
    show_tables(evaluation_tables(evaluation))
    if evaluation.folder is not None:
        note(f"results -> {evaluation.folder}")
