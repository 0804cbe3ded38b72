"""`dcdctl eval`: measure how well a model retrieves, alone or in a cascade."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

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
from dcdctl.cli.views.terminal import bar, note, show_json, show_table

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

RECALLS = ("R@1", "R@5", "R@10")


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
    from dcdctl.core.evaluation import EvalJob, EvalOptions, FormChoice, SplitChoice, run_evaluation, run_vector_table

    choice = SplitChoice(data, split, protocol, max_images)
    sets, rerank_sets = tuple(model_set or ()), tuple(rerank_set or ())
    forms = FormChoice(dims=dims, kind=vectors, rescore=rescore)
    job = EvalJob(
        model=model,
        choice=choice,
        rerank=rerank,
        depth=depth,
        with_eccv=eccv,
        forms=forms,
        model_sets=sets,
        rerank_sets=rerank_sets,
    )
    devices.use_threads(threads)
    place = devices.choose(device)
    numbers = precision_on(precision, place)
    compute = Compute(device=place, precision=numbers, batch_size=batch_size, workers=workers, features=features)
    options = EvalOptions(compute=compute)
    if vector_table:
        table = run_vector_table(job, options, out=out, ranks=ranks, track=bar, say=note)
        return show_json(table) if json else _show_vector_table(table)
    outcome = run_evaluation(job, options, out=out, ranks=ranks, track=bar, on_workload=show_workload, say=note)
    if json:
        return show_json(outcome.document)
    _show(outcome.document)
    if outcome.folder is not None:
        note(f"results -> {outcome.folder}")


def _show(document: dict[str, Any]) -> None:
    from dcdctl.core.data import Direction

    protocol, intervals = document["protocol"], document["intervals"]
    kind = f"{protocol['kind']} of depth {protocol['depth']}" if protocol["depth"] else protocol["kind"]
    folds = f" ({protocol['folds']} folds)" if protocol["folds"] > 1 else ""
    title = f"{document['model']} ({kind}) on {document['split']}, protocol {protocol['name']}{folds}: "
    rows = []
    for direction in Direction:
        measures, bounds = document[direction.key], intervals[direction.key]
        ranks = [f"{measures['median_rank']:,.1f}".removesuffix(".0"), f"{measures['mean_rank']:,.1f}"]
        rows.append([direction.title, *(f"{measures[column]:.2f}" for column in (*RECALLS, "mAP@R")), *ranks])
        rows.append(
            [f"  {intervals['level']:.0%} interval", *(_between(bounds[recall]) for recall in RECALLS), "", "", ""]
        )
    rsum = f"rsum {document['rsum']:.2f} ({_between(intervals['rsum'])}), mean recall {document['mean_recall']:.2f}"
    precision = f", {protocol['precision']}" if "precision" in protocol else ""
    counts = f"{document['images']:,} images, {document['captions']:,} captions{precision}"
    show_table(
        title + counts,
        ["", *RECALLS, "mAP@R", "median rank", "mean rank"],
        rows,
        caption=f"{rsum}, {document['seconds']:,.1f} s",
    )
    if "depths" in document:
        _show_depths(document)
    if "eccv_caption" in document:
        _show_eccv(document)


def _show_vector_table(document: dict[str, Any]) -> None:
    from dcdctl.core.data import Direction

    columns = ["vectors", "dims", "text R@1/5/10", "image R@1/5/10", "rsum", "change", "bytes per image"]
    rows = [
        [
            row["kind"] if row["rescore"] is None else f"{row['kind']}, first {row['rescore']:,} by float32",
            f"{row['dims']:,}",
            *(" / ".join(f"{row[direction.key][name]:.2f}" for name in RECALLS) for direction in Direction),
            f"{row['rsum']:.2f}",
            f"{row['rsum_change']:+.2f}",
            f"{row['bytes_per_image']:,}",
        ]
        for row in document["rows"]
    ]
    title = f"{document['model']} on {document['split']}, protocol {document['protocol']['name']}: "
    caption = (
        "Change: of rsum, from float32 at full width. Bytes: what a search reads per image, without the float "
        "vectors of candidates."
    )
    show_table(
        f"{title}{document['images']:,} images, {document['captions']:,} captions", columns, rows, caption=caption
    )


def _show_depths(document: dict[str, Any]) -> None:
    from dcdctl.core.data import Direction

    columns = ["depth", "text R@1/5/10", "image R@1/5/10", "rsum", "query", "pairs", "front"]
    rows = [
        [
            str(result["depth"]) if result["depth"] else "0 (dual alone)",
            *(" / ".join(f"{result[direction.key][name]:.2f}" for name in RECALLS) for direction in Direction),
            f"{result['rsum']:.2f}",
            f"{result['ms_per_query']:,.2f} ms",
            f"{result['pairs']:,}",
            "*" if result["on_front"] else "",
        ]
        for result in document["depths"]
    ]
    caption = (
        "Query: one caption against the encoded images. *: on the Pareto front, no other depth is both as good "
        "and as fast."
    )
    show_table(f"re-ranked by {document['reranker']}", columns, rows, caption=caption)


def _show_eccv(document: dict[str, Any]) -> None:
    from dcdctl.core.data import Direction

    columns = (*RECALLS, "mAP@R", "R-Precision")
    rows = [
        [
            f"{title}, {direction.title}",
            *(f"{measures[column]:.2f}" if column in measures else "" for column in columns),
        ]
        for judge, title in (("eccv_caption", "ECCV Caption"), ("cxc", "CrissCrossed Captions"))
        for direction in Direction
        for measures in [document[judge][direction.key]]
    ]
    show_table("including the positives that COCO's own pairs lack", ["", *columns], rows)


def _between(bounds: list[float]) -> str:
    return f"{bounds[0]:.1f} to {bounds[1]:.1f}"
