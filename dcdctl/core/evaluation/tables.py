"""The documents of evaluations as tables of text, for a terminal and a notebook."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dcdctl.core.data import Direction
from dcdctl.core.evaluation.agreement import MEASURES, NDCG, NDCG_NAME
from dcdctl.core.evaluation.document import TOLERANCE, Agreement, Evaluation, Measures, PoolEvaluation, Reproduction
from dcdctl.core.evaluation.recall import RECALL_NAMES
from dcdctl.core.progress import counted
from dcdctl.core.templates import Table


def evaluation_tables(evaluation: Evaluation | PoolEvaluation) -> list[Table]:
    """Recalls with their intervals, beside those that others report, and by source and language of the captions; then
    the depths of a cascade, the judgments of ECCV Caption, and the agreement with a teacher, if there are any. A pool
    has that alone."""
    if isinstance(evaluation, PoolEvaluation):
        return [_agreement(evaluation.agreement, evaluation)]
    tables = [_recalls(evaluation)]
    if found := evaluation.published:
        tables.append(_published(found))
    for label, groups in evaluation.image_recalls_by_label.items():
        rows = [[name, *(f"{recalls[k]:.2f}" for k in RECALL_NAMES)] for name, recalls in groups.items()]
        tables.append(Table(f"image retrieval by {label} of the caption", ["", *RECALL_NAMES], rows))
    if evaluation.depths:
        tables.append(_depths(evaluation))
    if evaluation.eccv_caption and evaluation.cxc:
        judgments = {"ECCV Caption": evaluation.eccv_caption, "CrissCrossed Captions": evaluation.cxc}
        columns = (*RECALL_NAMES, "mAP@R", "R-Precision")
        rows = [
            [
                f"{title}, {way.title}",
                *(f"{both[way.key][name]:.2f}" if name in both[way.key] else "" for name in columns),
            ]
            for title, both in judgments.items()
            for way in Direction
        ]
        tables.append(Table("including the positives that COCO's own pairs lack", ["", *columns], rows))
    if evaluation.agreement is not None:
        tables.append(_agreement(evaluation.agreement, evaluation))
    return tables


def _agreement(agreement: Agreement, evaluation: Evaluation | PoolEvaluation) -> Table:
    rows = []
    both = {Direction.TEXT: agreement.text_retrieval, Direction.IMAGE: agreement.image_retrieval}
    for direction, measures in both.items():
        if measures is not None:
            cells = [f"{measures[name]:.2f}" for name in MEASURES]
            rows.append([direction.title, *cells, f"{measures['queries']:,}", f"{measures['candidates']:,.1f}"])
            bounds = (agreement.intervals[direction.key][name] for name in MEASURES)
            interval = f"  {agreement.level:.0%} interval"
            rows.append([interval, *(f"{low:.2f} to {high:.2f}" for low, high in bounds), "", ""])
    over = {"all": "all candidates", "cached": "the candidates that the cache has scores of"}[agreement.over]
    return Table(
        f"agreement of {evaluation.model} with {agreement.teacher} on {evaluation.split}: "
        f"{counted(evaluation.images, 'images')}, {counted(evaluation.captions, 'texts')}",
        ["", "same first", *MEASURES[NDCG:], "queries", "candidates"],
        rows,
        f"nDCG@10 {agreement.ndcg:.2f}, the mean of both directions; over {over}.",
    )


def _recalls(evaluation: Evaluation) -> Table:
    protocol, rows = evaluation.protocol, []
    names = [*RECALL_NAMES, *[NDCG_NAME] * (NDCG_NAME in evaluation.text_retrieval)]
    for direction in Direction:
        measures = evaluation.measures(direction)
        ranks = [f"{measures['median_rank']:,.1f}".removesuffix(".0"), f"{measures['mean_rank']:,.1f}"]
        rows.append([direction.title, *(f"{measures[name]:.2f}" for name in (*names, "mAP@R")), *ranks])
        bounds = (str(evaluation.recall(direction, name).interval) for name in names)
        rows.append([f"  {evaluation.intervals.level:.0%} interval", *bounds, "", "", ""])
    kind = f"{protocol.kind} of depth {protocol.depth}" if protocol.depth else protocol.kind
    folds = f" ({protocol.folds} folds)" if protocol.folds > 1 else ""
    precision = "" if protocol.precision == "float32" else f", {protocol.precision}"
    texts = "" if evaluation.query_model is None else f", texts by {evaluation.query_model}"
    return Table(
        f"{evaluation.model}{texts} ({kind}) on {evaluation.split}, protocol {protocol.name}{folds}: "
        f"{counted(evaluation.images, 'images')}, {counted(evaluation.captions, 'captions')}{precision}",
        ["", *names, "mAP@R", "median rank", "mean rank"],
        rows,
        f"rsum {evaluation.rsum:.2f} ({evaluation.rsum_estimate.interval}), mean recall {evaluation.mean_recall:.2f}, "
        f"{evaluation.seconds:,.1f} s",
    )


def _published(found: Reproduction) -> Table:
    row = found.row
    verdict = f"PASS: all within {TOLERANCE} points."
    differs = (
        f"DIFFERS: not all within {TOLERANCE} points. The usual reasons are text case, padding, crop and split. "
        f"Published with: {'; '.join(row.conditions)}; the weights as released."
    )
    return Table(
        f"published: {row.models[0]}, {row.setting}, {row.ranking}, protocol {row.protocol}",
        ["", "published", "measured", "difference"],
        [[name, f"{a:.2f}", f"{b:.2f}", f"{b - a:+.2f}"] for name, (a, b) in found.recalls.items()],
        f"{verdict if found.passes else differs} Source: {', '.join(row.sources)}",
    )


def _depths(evaluation: Evaluation) -> Table:
    rows = [
        [
            str(depth.depth) if depth.depth else "0 (first only)",
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
        f"{counted(document['images'], 'images')}, {counted(document['captions'], 'captions')}",
        ["vectors", "dims", "text R@1/5/10", "image R@1/5/10", "rsum", "change", "bytes per image"],
        rows,
        "Change: of rsum, from float32 at full width. Bytes: what a search reads per image, without the float "
        "vectors of candidates.",
    )


def _three_recalls(measures: Measures) -> str:
    return " / ".join(f"{measures[name]:.2f}" for name in RECALL_NAMES)
