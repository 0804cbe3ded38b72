"""Tables and plots of a plan's runs: means over seeds, spreads and paired bootstraps, from the small files under
docs/evidence/results.

The ranks of every query are too large to store there. While they are in the work folder, their comparisons are written
to comparisons.json.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import matplotlib as mpl
import reports
from evidence_steps import Step

from dcdctl.core import artifacts
from dcdctl.core.data import Direction
from dcdctl.core.evaluation import files as evaluation_files
from dcdctl.core.evaluation import significance

mpl.use("Agg")
from matplotlib import pyplot as plt

HEADS = (
    "",
    "text R@1/5/10",
    "image R@1/5/10",
    "RSUM of each seed",
    "mean",
    "against the base, 95 % interval",
    "p",
    "training",
)


def write(
    steps: Iterable[Step],
    work: Path,
    results: Path,
    parts_of: Mapping[str, Mapping[str, tuple[str, str]]] | None = None,
) -> str:
    """Write comparisons.json, tables.md and cost.png, and return the tables.

    `parts_of` names, for tables, differences of two rows; they become a table of their own. In a plan with such parts,
    the intervals cover the seeds of rows with two runs or more (`dcdctl compare --draw-seeds`).
    """
    groups = rows_of([step for step in steps if step.table and (results / step.short / "result.json").exists()])
    parts_of = parts_of or {}
    pairs = {f"{table} / {label}": (table, label, members[0].base) for (table, label), members in groups.items()}
    pairs |= {f"{table} / {part}": (table, *rows) for table, parts in parts_of.items() for part, rows in parts.items()}
    compared = _compared(pairs, groups, work, results, draw_seeds=bool(parts_of))
    parts = []
    for table in dict.fromkeys(table for table, _ in groups):
        rows = [
            _row(members, compared.get(f"{table} / {label}"), results)
            for (title, label), members in groups.items()
            if title == table
        ]
        parts.append(f"### {table}\n\n{reports.table(HEADS, rows)}\n")
    if parts_of:
        parts.append(_parts_table(parts_of, compared))
    document = "\n".join(parts)
    results.mkdir(parents=True, exist_ok=True)
    (results / "tables.md").write_text(document)
    _plot(groups, results)
    return document


def rows_of(steps: list[Step]) -> dict[tuple[str, str], list[Step]]:
    """The runs of each row of each table, one per seed."""
    groups: dict[tuple[str, str], list[Step]] = {}
    for step in steps:
        groups.setdefault((step.table, step.label), []).append(step)
    return groups


def _compared(
    pairs: Mapping[str, tuple[str, str, str]],
    groups: dict[tuple[str, str], list[Step]],
    work: Path,
    results: Path,
    *,
    draw_seeds: bool,
) -> dict[str, Any]:
    """The differences of pairs of rows, each a table, a label and the label of its base, by name.

    Rows whose ranks are not in the work folder keep their earlier comparison.
    """
    path = results / "comparisons.json"
    compared: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    for name, (table, label, base_label) in pairs.items():
        members, base = groups.get((table, label), []), groups.get((table, base_label), [])
        files = [[work / step.out / "ranks.parquet" for step in steps] for steps in (members, base)]
        if (
            not members
            or not base
            or base_label == label
            or not all(file.exists() for paths in files for file in paths)
        ):
            continue
        tables = [[evaluation_files.read_ranks(file) for file in paths] for paths in files]
        draws_seeds = draw_seeds and min(map(len, tables)) >= significance.MIN_DRAWN_SEEDS
        comparison = significance.compare_ranks(*tables, draw_seeds=draws_seeds)
        compared[name] = {"base": base_label, "draws_seeds": draws_seeds, **asdict(comparison)}
    results.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(compared, indent=1) + "\n")
    return compared


def _parts_table(parts_of: Mapping[str, Mapping[str, tuple[str, str]]], compared: Mapping[str, Any]) -> str:
    """A row for each part of a gain and a column for each table: the difference in RSUM with its interval. Where there
    are more tables than parts, a row for each table that has a part."""
    names = list(dict.fromkeys(part for parts in parts_of.values() for part in parts))
    if len(parts_of) > len(names):
        heads = names
        rows = [[table, *(_difference(compared.get(f"{table} / {part}")) for part in names)] for table in parts_of]
        rows = [row for row in rows if any(row[1:])]
    else:
        heads = list(parts_of)
        rows = [[part, *(_difference(compared.get(f"{table} / {part}")) for table in parts_of)] for part in names]
    return f"### Parts of the gain\n\n{reports.table(['', *heads], rows)}\n"


def _difference(compared: dict[str, Any] | None) -> str:
    if compared is None:
        return ""
    rsum = compared["difference"]["rsum"]
    interval = rsum["interval"]
    low, high = interval.values() if isinstance(interval, dict) else interval  # of published comparisons, or a new one
    return f"{rsum['value']:+.1f} ({low:+.1f} to {high:+.1f})"


def _row(members: list[Step], compared: dict[str, Any] | None, results: Path) -> list[str]:
    evaluated = [read(results / step.short / "result.json") for step in members]
    recalls = [
        "/".join(f"{mean(each[direction.key][k] for each in evaluated):.1f}" for k in ("R@1", "R@5", "R@10"))
        for direction in Direction
    ]
    sums = [each["rsum"] for each in evaluated]
    spread = f" ± {stdev(sums):.1f}" if len(sums) > 1 else ""
    difference, p_value = _difference(compared), "" if compared is None else f"{compared['p_value']:.4f}"
    seconds = training_seconds(members, results)
    cost = "" if seconds is None else f"{seconds:,.0f} s"
    return [
        members[0].label,
        *recalls,
        ", ".join(f"{each:.1f}" for each in sums),
        f"{mean(sums):.1f}{spread}",
        difference,
        p_value,
        cost,
    ]


def training_seconds(members: list[Step], results: Path) -> float | None:
    """Mean processor seconds of the trainings, including the start of the program; None if all of them were resumed."""
    costs = [read(results / step.short / "cost.json").get("train_seconds") for step in members]
    known = [cost for cost in costs if cost is not None]
    return mean(known) if known else None


def _plot(groups: dict[tuple[str, str], list[Step]], results: Path) -> None:
    """Plot RSUM against training time: one panel per table, one point per seed."""
    tables = list(dict.fromkeys(table for table, _ in groups))
    if not tables:
        return
    count = -(-len(tables) // 2)
    figure, panels = plt.subplots(count, 2, figsize=(13, 1 + 5 * count), squeeze=False)
    for panel in panels.flat[len(tables) :]:
        panel.set_axis_off()
    for panel, table in zip(panels.flat, tables, strict=False):
        rows = [(label, members) for (title, label), members in groups.items() if title == table]
        for index, (label, members) in enumerate(rows):
            points = [
                (training_seconds([step], results), read(results / step.short / "result.json")["rsum"])
                for step in members
            ]
            known = [(seconds, rsum) for seconds, rsum in points if seconds is not None]
            if known:
                style = {"color": plt.get_cmap("tab20")(index % 20), "marker": "osD^vPX*<>"[index % 10]}
                panel.scatter(*zip(*known, strict=True), label=label, s=36, **style)
        panel.set_title(table, fontsize=10)
        panel.set_xlabel("training, processor seconds")
        panel.set_ylabel("RSUM")
        panel.grid(alpha=0.3)
        if panel.get_legend_handles_labels()[0]:  # a table of evaluations alone has no costs
            panel.legend(fontsize=7, framealpha=0.5)
    figure.tight_layout()
    figure.savefig(results / "cost.png", dpi=110)
    plt.close(figure)


def read(path: Path) -> dict[str, Any]:
    return artifacts.read_document(path, hint="restore it, or run the benchmark again")
