"""An evaluation, and the cost of shorter vectors, as tables of text for the terminal and for notebooks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dcdctl.core.data import Direction
from dcdctl.core.evaluation.recall import RECALL_NAMES
from dcdctl.core.templates import Table

if TYPE_CHECKING:  # it shows itself in notebooks
    from dcdctl.core.evaluation.document import Evaluation


def evaluation_tables(evaluation: Evaluation) -> list[Table]:
    """Recalls with their intervals; then the depths of a cascade, and the judgments of ECCV Caption, if there are
    any."""
    tables = [_recalls(evaluation)]
    if evaluation.depths:
        tables.append(_depths(evaluation))
    if evaluation.eccv_caption and evaluation.cxc:
        tables.append(_judgments({"ECCV Caption": evaluation.eccv_caption, "CrissCrossed Captions": evaluation.cxc}))
    return tables


def _recalls(evaluation: Evaluation) -> Table:
    protocol, rows = evaluation.protocol, []
    for direction in Direction:
        measures = evaluation.measures(direction)
        ranks = [f"{measures['median_rank']:,.1f}".removesuffix(".0"), f"{measures['mean_rank']:,.1f}"]
        rows.append([direction.title, *(f"{measures[name]:.2f}" for name in (*RECALL_NAMES, "mAP@R")), *ranks])
        bounds = (evaluation.recall(direction, name).interval for name in RECALL_NAMES)
        interval = f"  {evaluation.intervals.level:.0%} interval"
        rows.append([interval, *(f"{low:.1f} to {high:.1f}" for low, high in bounds), "", "", ""])
    kind = f"{protocol.kind} of depth {protocol.depth}" if protocol.depth else protocol.kind
    folds = f" ({protocol.folds} folds)" if protocol.folds > 1 else ""
    precision = "" if protocol.precision == "float32" else f", {protocol.precision}"
    low, high = evaluation.intervals.rsum
    return Table(
        f"{evaluation.model} ({kind}) on {evaluation.split}, protocol {protocol.name}{folds}: "
        f"{evaluation.images:,} images, {evaluation.captions:,} captions{precision}",
        ["", *RECALL_NAMES, "mAP@R", "median rank", "mean rank"],
        rows,
        f"rsum {evaluation.rsum:.2f} ({low:.1f} to {high:.1f}), mean recall {evaluation.mean_recall:.2f}, "
        f"{evaluation.seconds:,.1f} s",
    )


def _depths(evaluation: Evaluation) -> Table:
    rows = [
        [
            str(depth.depth) if depth.depth else "0 (dual alone)",
            *map(_three_recalls, (depth.text_retrieval, depth.image_retrieval)),
            f"{depth.rsum:.2f}",
            f"{depth.ms_per_query:,.2f} ms",
            f"{depth.pairs:,}",
            "*" if depth.on_front else "",
        ]
        for depth in evaluation.depths
    ]
    return Table(
        f"re-ranked by {evaluation.reranker}",
        ["depth", "text R@1/5/10", "image R@1/5/10", "rsum", "query", "pairs", "front"],
        rows,
        "Query: one caption against the encoded images. *: on the Pareto front, no other depth is both as good "
        "and as fast.",
    )


def _judgments(judgments: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Table:
    columns = (*RECALL_NAMES, "mAP@R", "R-Precision")
    rows = [
        [
            f"{title}, {direction.title}",
            *(f"{measures[column]:.2f}" if column in measures else "" for column in columns),
        ]
        for title, by_direction in judgments.items()
        for direction in Direction
        for measures in [by_direction[direction.key]]
    ]
    return Table("including the positives that COCO's own pairs lack", ["", *columns], rows)


def vector_table(document: Mapping[str, Any]) -> Table:
    """The document of `run_vector_table`."""
    rows = [
        [
            row["kind"] if row["rescore"] is None else f"{row['kind']}, first {row['rescore']:,} by float32",
            f"{row['dims']:,}",
            *(_three_recalls(row[direction.key]) for direction in Direction),
            f"{row['rsum']:.2f}",
            f"{row['rsum_change']:+.2f}",
            f"{row['bytes_per_image']:,}",
        ]
        for row in document["rows"]
    ]
    return Table(
        f"{document['model']} on {document['split']}, protocol {document['protocol']['name']}: "
        f"{document['images']:,} images, {document['captions']:,} captions",
        ["vectors", "dims", "text R@1/5/10", "image R@1/5/10", "rsum", "change", "bytes per image"],
        rows,
        "Change: of rsum, from float32 at full width. Bytes: what a search reads per image, without the float "
        "vectors of candidates.",
    )


def _three_recalls(measures: Mapping[str, float]) -> str:
    return " / ".join(f"{measures[name]:.2f}" for name in RECALL_NAMES)
