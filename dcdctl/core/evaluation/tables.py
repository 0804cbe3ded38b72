"""The documents of evaluations as tables of text, for a terminal and a notebook."""

from __future__ import annotations

from collections.abc import Sequence

from dcdctl.core.artifacts import Document
from dcdctl.core.data import Direction
from dcdctl.core.evaluation.agreement import AGREEMENT
from dcdctl.core.evaluation.document import Agreement, Evaluation, Measures, PoolEvaluation
from dcdctl.core.evaluation.estimates import Interval
from dcdctl.core.evaluation.measures import MEASURES, RECALL_NAMES
from dcdctl.core.evaluation.published import published_table
from dcdctl.core.progress import counted
from dcdctl.core.templates import Table


def evaluation_tables(evaluation: Evaluation | PoolEvaluation) -> list[Table]:
    """Recalls with their intervals, beside those that others report, and by source and language of the captions; then
    the depths of a cascade, the judgments of ECCV Caption, and the agreement with a teacher, if there are any. A pool
    has that alone."""
    if isinstance(evaluation, PoolEvaluation):
        return [_agreement(evaluation.agreement, evaluation)]
    tables = [_measures(evaluation)]
    if found := evaluation.published:
        tables.append(published_table(found))
    for label, groups in evaluation.image_recalls_by_label.items():
        rows = [_with_recalls(name, recalls, RECALL_NAMES) for name, recalls in groups.items()]
        tables.append(Table(f"image retrieval by {label} of the caption", ["", *RECALL_NAMES], rows))
    if evaluation.depths:
        tables.append(_depths(evaluation))
    if evaluation.eccv_caption and evaluation.cxc:
        columns = (*RECALL_NAMES, "mAP@R", "R-Precision")
        rows = []
        for title, both in (("ECCV Caption", evaluation.eccv_caption), ("CrissCrossed Captions", evaluation.cxc)):
            rows += [_with_recalls(f"{title}, {way.title}", both[way.key], columns) for way in Direction]
        tables.append(Table("including the positives that COCO's own pairs lack", ["", *columns], rows))
    if evaluation.agreement is not None:
        tables.append(_agreement(evaluation.agreement, evaluation))
    return tables


def _with_recalls(label: str, measures: Measures, names: Sequence[str]) -> list[str]:
    """A row of percentages; a measure that it lacks is an empty cell."""
    return [label, *(f"{measures[name]:.2f}" if name in measures else "" for name in names)]


def _agreement(agreement: Agreement, evaluation: Evaluation | PoolEvaluation) -> Table:
    rows = []
    both = {Direction.TEXT: agreement.text_retrieval, Direction.IMAGE: agreement.image_retrieval}
    for direction, measures in both.items():
        if measures is not None:
            cells = [row.show(measures[row.name]) for row in AGREEMENT]
            rows.append([direction.title, *cells, f"{measures['queries']:,}", f"{measures['candidates']:,.1f}"])
            bounds = [agreement.intervals[direction.key][row.name] for row in AGREEMENT]
            interval = f"  {agreement.level:.0%} interval"
            rows.append([interval, *(f"{low:.2f} to {high:.2f}" for low, high in bounds), "", ""])
    return Table(
        f"agreement of {_model(evaluation)} with {agreement.teacher} on {evaluation.split}: "
        f"{counted(evaluation.images, 'images')}, {counted(evaluation.captions, 'texts')}",
        ["", *(row.title for row in AGREEMENT), "queries", "candidates"],
        rows,
        f"nDCG@10 {agreement.ndcg:.2f}, the mean of both directions; over {agreement.candidates_in_words}.",
    )


def _model(evaluation: Evaluation | PoolEvaluation) -> str:
    """The model, and the query student that embeds its texts."""
    texts = "" if evaluation.query_model is None else f", texts by {evaluation.query_model}"
    return f"{evaluation.model}{texts}"


def _measures(evaluation: Evaluation) -> Table:
    """Each direction with all of its measures, and below them the intervals of those that have one."""
    protocol, rows = evaluation.protocol, []
    shown = [row for row in MEASURES if row.name in evaluation.text_retrieval]
    for direction in Direction:
        measures, intervals = evaluation.measures(direction), evaluation.intervals.of(direction)
        rows.append([direction.title, *(row.show(measures[row.name]) for row in shown)])
        bounds = [str(Interval(*intervals[row.name])) if row.name in intervals else "" for row in shown]
        rows.append([f"  {evaluation.intervals.level:.0%} interval", *bounds])
    folds = f" ({protocol.folds} folds)" if protocol.folds > 1 else ""
    precision = "" if protocol.precision == "float32" else f", {protocol.precision}"
    model = f"{_model(evaluation)} ({protocol.model_in_words})"
    return Table(
        f"{model} on {evaluation.split}, protocol {protocol.name}{folds}: "
        f"{counted(evaluation.images, 'images')}, {counted(evaluation.captions, 'captions')}{precision}",
        ["", *(row.title for row in shown)],
        rows,
        f"rsum {evaluation.rsum:.2f} ({evaluation.rsum_estimate.interval}), mean recall {evaluation.mean_recall:.2f}, "
        f"{evaluation.seconds:,.1f} s",
    )


def _depths(evaluation: Evaluation) -> Table:
    rows = []
    for depth in evaluation.depths:
        recalls = [_three_recalls(depth.text_retrieval), _three_recalls(depth.image_retrieval)]
        rows.append(
            [
                str(depth.depth) if depth.depth else "0 (first only)",
                *recalls,
                f"{depth.rsum:.2f}",
                f"{depth.ms_per_query:,.2f} ms",
                f"{depth.pairs:,}",
                "*" if depth.on_front else "",
            ]
        )
    return Table(
        f"re-ranked by {evaluation.reranker}",
        ["depth", "text R@1/5/10", "image R@1/5/10", "rsum", "query", "pairs", "front"],
        rows,
        "Query: one caption against the encoded images. *: on the Pareto front, no other depth is both as good "
        "and as fast.",
    )


def vector_table(document: Document) -> Table:
    """The document of `run_vector_table`."""
    rows = []
    for row in document["rows"]:
        rescored = "" if row["rescore"] is None else f", first {row['rescore']:,} by float32"
        recalls = [_three_recalls(row["text_retrieval"]), _three_recalls(row["image_retrieval"])]
        rows.append(
            [
                f"{row['kind']}{rescored}",
                f"{row['dims']:,}",
                *recalls,
                f"{row['rsum']:.2f}",
                f"{row['rsum_change']:+.2f}",
                f"{row['bytes_per_image']:,}",
            ]
        )
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
