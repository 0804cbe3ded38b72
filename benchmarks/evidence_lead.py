"""The table that docs/evidence/results.md leads with: what a teacher, its students and their cascades find, and what
that costs; and two plots of it.

Every number is of the small files that a plan has published: result.json, cost.json, cache.json and bench.json.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import reports
from evidence_steps import Step
from evidence_tables import plt, read, rows_of, training_seconds

from dcdctl.core.data import Direction
from dcdctl.core.progress import digits

HEADS = ("", "text, image R@1", "RSUM", "ms", "speed-up", "bytes", "minutes", "pairs")
GALLERY = 1000
MILLION = 1_000_000
COLORS = {"teacher": "#222222", "fusion": "#8c510a", "dual": "#1f77b4", "late interaction": "#d1495b"}
PLACED = "#2a9d5c"
"""Late interaction with positions is a model of its own."""
HOLLOW = "o^"


@dataclass(frozen=True, kw_only=True)
class Row:
    """A kind of model, as means over its seeds; what was not measured is None."""

    label: str
    recalls: tuple[float, ...]
    """R@1 of text and image retrieval, in percent."""
    rsum: float
    spread: float | None
    """Standard deviation over the seeds."""
    ms: float | None
    """Of a query over `GALLERY` images that are encoded before; of a cascade, with the re-ranking."""
    speed_up: float | None
    """The teacher's time in the same process divided by it: the machine is not equally fast at all times."""
    bytes_per_image: float | None
    """Vectors in float32, or what a model of pairs keeps of an image."""
    minutes: float | None
    """Processor minutes of all trainings that it needs, its own and, for example, that of a query student's teacher."""
    pairs: int | None
    """Pairs that the teacher has scored for these trainings."""


def write(steps: list[Step], results: Path) -> str:
    """Write lead.md, time.png and pairs.png, and return the table."""
    rows = list(lead_rows(steps, results))
    table = reports.table(HEADS, [_cells(row) for row in rows]) + "\n"
    title = next(step.table for step in steps if step.table)
    (results / "lead.md").write_text(f"### {title}\n\n{table}")
    _plot(rows, "ms", f"ms per query over {GALLERY:,} images", results / "time.png")
    _plot(rows, "pairs", "pairs scored by the teacher", results / "pairs.png")
    return table


def lead_rows(steps: list[Step], results: Path) -> Iterator[Row]:
    """The rows that have a result, in the order of the plan, with cascades at the end."""
    by_out = {step.out: step for step in steps}
    measured = [step for step in steps if step.table and (results / step.short / "result.json").exists()]
    groups = sorted(rows_of(measured).items(), key=lambda item: (depth_of(item[1][0]), not _is_teacher(item[1][0])))
    for (_, label), members in groups:
        found = [read(results / step.short / "result.json") for step in members]
        sums = [each["rsum"] for each in found]
        ms, speed_up, num_bytes = _times(members[0], results)
        needed = [_needed(step, by_out) for step in members]
        yield Row(
            label=label,
            recalls=tuple(mean(each[direction.key]["R@1"] for each in found) for direction in Direction),
            rsum=mean(sums),
            spread=stdev(sums) if len(sums) > 1 else None,
            ms=ms,
            speed_up=speed_up,
            bytes_per_image=num_bytes,
            minutes=_mean([_minutes(each, results) for each in needed]),
            pairs=None if _is_teacher(members[0]) else max(_pairs(each, results) for each in needed),
        )


def depth_of(step: Step) -> int:
    """How many candidates a cascade re-ranks; 0 for other rows."""
    return int(step.words[step.words.index("--depth") + 1]) if "--depth" in step.words else 0


def _is_teacher(step: Step) -> bool:
    return not step.trains and not depth_of(step)


def _needed(step: Step, by_out: Mapping[str, Step]) -> dict[str, Step]:
    """The step and all steps that it needs, by their output."""
    found = {step.out: step}
    for before in step.after:
        found |= _needed(by_out[before], by_out)
    return found


def _minutes(needed: Mapping[str, Step], results: Path) -> float | None:
    """Processor minutes of the trainings; None without any, or if the time of one is not known."""
    trained = [step for step in needed.values() if step.trains]
    if not trained or not all((results / step.short / "cost.json").exists() for step in trained):
        return None
    seconds = [training_seconds([step], results) for step in trained]
    return None if None in seconds else sum(each for each in seconds if each is not None) / 60


def _pairs(needed: Mapping[str, Step], results: Path) -> int:
    """Scored pairs of the caches; a cache of texts has none."""
    caches = [results / step.short / "cache.json" for step in needed.values() if step.command == "cache-teacher"]
    return sum(read(path)["pairs"] for path in caches if path.exists())


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return mean(known) if known else None


def _times(step: Step, results: Path) -> tuple[float | None, float | None, float | None]:
    """Milliseconds of a query, speed-up and bytes per image of a row, whose first seed was timed; of the teacher, the
    median over all times of it."""
    depth = depth_of(step)
    if _is_teacher(step):
        times = [_timed(read(path)["teacher"], GALLERY) for path in results.glob("*/bench.json")]
        return (median(ms for ms, _ in times), 1, times[0][1]) if times else (None, None, None)
    path = results / (step.words[0].split("/")[-1] if depth else step.short) / "bench.json"
    if not path.exists():
        return None, None, None
    bench = read(path)
    ms, num_bytes = _timed(bench["student"], GALLERY)
    ms += _timed(bench["teacher"], depth)[0] if depth else 0
    return ms, _timed(bench["teacher"], GALLERY)[0] / ms, num_bytes


def _timed(times: Mapping[str, Any], num_images: int) -> tuple[float, float]:
    queries = {query["num_images"]: query["seconds"] for query in times["queries"] if query["is_cached"]}
    num_bytes = times["footprint"]["index_bytes_per_million_images"]["float32"]
    return 1000 * queries[num_images], num_bytes / MILLION


def _cells(row: Row) -> tuple[str, ...]:
    def shown(value: float | None, text: str) -> str:
        return "" if value is None else text.format(value)

    return (
        row.label,
        ", ".join(f"{each:.1f}" for each in row.recalls),
        f"{row.rsum:.1f}{shown(row.spread, ' ± {:.1f}')}",
        "" if row.ms is None else digits(row.ms),
        shown(row.speed_up, "{:,.0f}x"),
        shown(row.bytes_per_image, "{:,.0f}"),
        shown(row.minutes, "{:.1f}"),
        shown(row.pairs, "{:,}"),
    )


def _plot(rows: list[Row], field: str, axis: str, path: Path) -> None:
    """RSUM against a cost: a color for each model, a shape for what was made of it, and the depth of a cascade."""
    figure, panel = plt.subplots(figsize=(7, 4))
    for row in rows:
        if (value := getattr(row, field)) is None:
            continue
        color, marker = _style(row.label)
        face = "white" if marker in HOLLOW else color
        label = row.label.replace(" and families", "")
        panel.errorbar(value, row.rsum, yerr=row.spread or 0, color=color, lw=1, zorder=2)
        panel.scatter(
            [value], [row.rsum], label=label, s=50, marker=marker, edgecolors=color, facecolors=face, zorder=3
        )
        if found := re.search(r"its first (\d+)", label):
            panel.annotate(found[1], (value, row.rsum), (7, -3), textcoords="offset points", fontsize=8, color=color)
    if field == "ms":
        panel.set_xscale("log")
    panel.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    panel.set_xlabel(axis)
    panel.set_ylabel("RSUM")
    panel.grid(alpha=0.3)
    panel.legend(fontsize=8, frameon=False, ncol=2, loc="upper center", bbox_to_anchor=(0.5, -0.15))
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)


def _style(label: str) -> tuple[str, str]:
    """Color and marker of a row."""
    color = PLACED if "positions" in label else next(COLORS[name] for name in COLORS if label.startswith(name))
    for part, marker in (("query student", "^"), ("its first", "s"), ("no teacher", "o")):
        if part in label:
            return color, marker
    return color, "D"
