"""Charts of a report as SVG inside the page: text is the page's text, colors are the page's CSS variables.

matplotlib draws each chart; its SVG is then adapted to a page with other charts. The same numbers give the same bytes.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from dcdctl.core import templates
from dcdctl.core.data import Direction
from dcdctl.core.evaluation import on_front
from dcdctl.core.report.gallery import TITLES
from dcdctl.core.report.report import ModelResults, Report, Training

NUM_COLORS = 8
"""CSS variables --c0 to --c7 of a page; "text" and "quiet" are colors too."""
# Narrow enough to see two peaks, wide enough that 1,000 queries give smooth bars.
NUM_BINS = 36
SMALL, LARGE = (340, 230), (430, 320)
"""Width and height in CSS pixels: a chart in a grid, and a chart by itself."""
# As the text of the page around a chart, so that a chart in it needs no scaling.
_FONT_PX = 11.0
# Shapes that differ in print too, and to readers who cannot tell the colors apart.
_MARKERS = "osD^vPX*"
_NOT_A_LOSS = {"step", "loss", "lr", "seconds", "scored", "pool_scored"}
"""Keys of metrics.jsonl that are not a part of the loss."""
_VARIABLES = ("text", "quiet", "line", "page", *(f"c{number}" for number in range(NUM_COLORS)))
# Colors that nothing else uses; each is replaced by its variable in the finished SVG.
_PLACEHOLDERS = {name: f"#0b1d{number:02x}" for number, name in enumerate(_VARIABLES)}
_LOOK: dict[Any, Any] = {
    # Text stays text, in the page's font, instead of outlines.
    "svg.fonttype": "none",
    # Labels come from users and may contain dollar signs.
    "text.parse_math": False,
    "axes.formatter.use_mathtext": False,
    "font.size": _FONT_PX,
    "axes.labelsize": _FONT_PX,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _PLACEHOLDERS["quiet"],
    "axes.labelcolor": _PLACEHOLDERS["quiet"],
    "xtick.color": _PLACEHOLDERS["quiet"],
    "ytick.color": _PLACEHOLDERS["quiet"],
    "grid.color": _PLACEHOLDERS["line"],
    "text.color": _PLACEHOLDERS["text"],
}


@dataclass(frozen=True, kw_only=True)
class Series:
    """Points of one kind."""

    label: str
    color: str
    """"text", "quiet" or "c0" to "c7"; series also differ in dashes or markers."""
    x: Sequence[float]
    y: Sequence[float]
    names: Sequence[str] = ()
    """The name of each point of a scatter plot; one that is the label is not written beside its point."""


@dataclass(frozen=True, kw_only=True)
class ChartLabels:
    """The texts of a chart."""

    name: str
    """Letters, digits and dashes, unique in a page: the prefix of the chart's ids."""
    title: str
    description: str
    """Read out by screen readers."""
    x_label: str
    y_label: str


def colors(report: Report) -> dict[str, str]:
    """The color of each label: "text" for the teacher, "quiet" for the baseline, "c0", "c1", ... for the students."""
    roles = {model.label: model.role for model in report.models}
    students = iter(range(len(roles)))
    fixed = {"teacher": "text", "baseline": "quiet"}
    return {label: fixed[role] if role in fixed else f"c{next(students) % NUM_COLORS}" for label, role in roles.items()}


def training_curves(report: Report) -> list[Markup]:
    """For each training a chart of the loss and its parts; then validation recall and learning rate of all
    trainings."""
    logged = [training for training in report.trainings if training.metrics]
    charts = [_loss(number, training) for number, training in enumerate(logged)]
    color = colors(report)
    for name, title, key, label in (
        ("recall", "Recall on the validation split", "val_rsum", "RSUM"),
        ("agreement", "Agreement with the teacher on the validation split", "val_ndcg", "nDCG@10"),
        ("rate", "Learning rate", "lr", "learning rate"),
    ):
        of_trainings = [_curve(training, key, training.label, color[training.label]) for training in logged]
        series = [curve for curve in of_trainings if curve.x]
        if series:
            labels = ChartLabels(
                name=f"training-{name}", title=title, description=_ends(series), x_label="step", y_label=label
            )
            charts.append(lines(labels, series))
    return charts


def _loss(number: int, training: Training) -> Markup:
    parts = []
    for key in training.metrics[0]:
        # The first line also has the recalls of the start, if it is validated.
        is_recall = key.rpartition("/")[2].startswith(("val_", "start_"))
        if key not in _NOT_A_LOSS and not is_recall:
            parts.append(key)
    if len(parts) > 1:
        series = [_curve(training, "loss", "all", "text")]
        for color, part in enumerate(parts):
            series.append(_curve(training, part, part, f"c{color % NUM_COLORS}"))
    else:
        # A loss with a single part equals that part.
        series = [_curve(training, "loss", parts[0] if parts else "loss", "text")]
    labels = ChartLabels(
        name=f"loss-{number}",
        title=f"Loss of {training.label}",
        description=_ends(series),
        x_label="step",
        y_label="loss",
    )
    return lines(labels, series)


def _curve(training: Training, key: str, label: str, color: str) -> Series:
    points = [(line["step"], line[key]) for line in training.metrics if key in line]
    return Series(label=label, color=color, x=[x for x, _ in points], y=[y for _, y in points])


def _ends(curves: Iterable[Series]) -> str:
    """The first and last point of each curve, in words."""
    ends = []
    for curve in curves:
        first, last = f"{curve.y[0]:.4g} at step {curve.x[0]}", f"{curve.y[-1]:.4g} at step {curve.x[-1]}"
        ends.append(f"{curve.label}: from {first} to {last}")
    return "; ".join(ends)


def speed_against_recall(report: Report) -> Markup | None:
    """RSUM, or nDCG@10 of a pool, against milliseconds per query, all among `report.gallery_size` images, with a point
    for each depth of a cascade.

    None with fewer than two points.
    """
    color = colors(report)
    timed: list[Series] = []
    points: list[tuple[float, float, str]] = []
    for model in report.models:
        result, ms = model.result, model.query_ms
        if result is not None and ms and model.gallery_size == report.gallery_size:
            depths = result.reranked
            totals = [depth.rsum for depth in depths] or [result.total]
            # The deepest is the result of the cascade, so it has the name of the model.
            names = [*(f"top {depth.depth}" for depth in depths[:-1]), model.label]
            timed.append(Series(label=model.label, color=color[model.label], x=ms, y=totals, names=names))
            points += zip(ms, totals, names, strict=True)
    kind = report.result
    if kind is None or len(points) < 2:
        return None
    labels = ChartLabels(
        name="speed-recall",
        title=f"{kind.quality} against query time; the broken line is the Pareto front",
        description="; ".join(f"{name}: {x:,.3g} ms, {kind.total_title} {y:.1f}" for x, y, name in sorted(points)),
        x_label=f"ms per query among {report.gallery_size:,} images (logarithmic)",
        y_label=kind.total_title,
    )
    is_best = on_front([y for _, y, _ in points], [x for x, _, _ in points])
    front = sorted({(x, y) for (x, y, _), is_on_front in zip(points, is_best, strict=True) if is_on_front})
    return scatter(labels, timed, front)


def scores(report: Report) -> dict[Direction, list[Markup]]:
    """For each direction a chart per model: scores of the positives and of the hardest negatives.

    Cascades have none: their scores come from two models.
    """
    scored, charts = [model for model in report.ranked if not model.is_cascade], {}
    for direction in Direction:
        charts[direction] = [_scores(f"scores-{direction}-{at}", direction, model) for at, model in enumerate(scored)]
    return charts


def _scores(name: str, direction: Direction, model: ModelResults) -> Markup:
    saved = model.ranked
    positive_Q, negative_Q = saved.table.scores[direction], saved.top[direction].hardest_negative_Q
    negative_Q = negative_Q[~np.isnan(negative_Q)]
    edges = np.histogram_bin_edges(np.concatenate([positive_Q, negative_Q]), NUM_BINS)
    counts, other_counts = np.histogram(positive_Q, edges)[0], np.histogram(negative_Q, edges)[0]
    above = Series(label="best positive", color="c0", x=[], y=counts.tolist())
    below = Series(label="hardest negative", color="c1", x=[], y=other_counts.tolist())
    description = ""
    if len(negative_Q):
        positives, negatives = f"{np.median(positive_Q):.3g}", f"{np.median(negative_Q):.3g}"
        description = f"best positive: median {positives}; hardest negative: median {negatives}"
    labels = ChartLabels(
        name=name,
        title=f"{model.label}: {dict(TITLES)[direction]}",
        description=description,
        x_label="score",
        y_label="queries",
    )
    return mirrored(labels, edges.tolist(), above, below)


def lines(labels: ChartLabels, curves: Sequence[Series]) -> Markup:
    """Curves, with their labels beside them."""

    def draw(axes: Axes) -> None:
        for number, curve in enumerate(curves):
            # Dashes too, for readers who cannot tell the colors apart: longer gaps, then dashes and dots.
            dashes: Any = "-"
            if number >= 4:
                dashes = (0, (1 + number, 2, 1, 2))
            elif number:
                dashes = (0, (6, 1 + number))
            color = _PLACEHOLDERS[curve.color]
            axes.plot(curve.x, curve.y, label=curve.label, color=color, linewidth=1.4, linestyle=dashes)
        # The first and the last point do not touch the frame.
        axes.margins(x=0.02)
        axes.grid(axis="y")
        _name_series(axes)

    return _chart(labels, SMALL, draw)


def mirrored(labels: ChartLabels, edges: Sequence[float], above: Series, below: Series) -> Markup:
    """Two histograms over the same bins, the second upside down; the `y` of each are counts."""

    def draw(axes: Axes) -> None:
        # At least 1, because the axis of two empty histograms needs a height too.
        highest = max(1.0, *above.y, *below.y)
        for series, sign in ((above, 1), (below, -1)):
            color = _PLACEHOLDERS[series.color]
            axes.stairs([sign * count for count in series.y], edges, fill=True, color=color, alpha=0.75)
            height, alignment = (0.97, "top") if sign > 0 else (0.03, "bottom")
            axes.text(0.02, height, series.label, color=color, transform=axes.transAxes, va=alignment)
        axes.axhline(0, color=_PLACEHOLDERS["quiet"], linewidth=0.8)
        # The labels of both histograms stand in the quarter that the bars leave free.
        axes.set_ylim(-1.25 * highest, 1.25 * highest)
        axes.yaxis.set_major_locator(MaxNLocator("auto", integer=True))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{abs(value):g}"))

    return _chart(labels, SMALL, draw)


def scatter(labels: ChartLabels, series: Sequence[Series], front: Sequence[tuple[float, float]]) -> Markup:
    """Points over a logarithmic x axis, with the labels of the series beside them; a broken line joins the points of
    `front`."""

    def draw(axes: Axes) -> None:
        axes.set_xscale("log")
        on_front = [x for x, _ in front], [y for _, y in front]
        axes.plot(*on_front, color=_PLACEHOLDERS["quiet"], linewidth=1, linestyle="--", zorder=1)
        for number, points in enumerate(series):
            color, marker = _PLACEHOLDERS[points.color], _MARKERS[number % len(_MARKERS)]
            axes.scatter(points.x, points.y, s=44, label=points.label, color=color, marker=marker, zorder=2)
            for x, y, name in zip(points.x, points.y, points.names, strict=True):
                if name != points.label:
                    axes.annotate(name, (x, y), (8, -12), textcoords="offset pixels", color=color)
        # Room for the names beside the outermost points.
        axes.margins(0.14, 0.12)
        axes.grid(which="major")
        times = [x for points in series for x in points.x]
        # More labels would overlap on a long axis.
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if max(times) < 100 * min(times) else (1.0,)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        _name_series(axes)

    return _chart(labels, LARGE, draw)


def _name_series(axes: Axes) -> None:
    # Beside the axes, where no name covers a point or a curve.
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, labelcolor="linecolor")


def _chart(labels: ChartLabels, size: tuple[int, int], draw: Callable[[Axes], None]) -> Markup:
    """An HTML figure: the title, then the SVG of what `draw` puts on the axes."""
    # One CSS pixel is one point of the SVG and of the figure.
    # Without a salt, the ids in the SVG would be random.
    with mpl.rc_context({**_LOOK, "svg.hashsalt": labels.name}), warnings.catch_warnings():
        # The browser draws the letters that matplotlib has no font for.
        warnings.filterwarnings("ignore", message="Glyph ")
        figure = Figure(figsize=(size[0] / 72, size[1] / 72), dpi=72, layout="constrained")
        axes = figure.add_subplot()
        axes.set_axisbelow(True)
        axes.set_xlabel(labels.x_label)
        axes.set_ylabel(labels.y_label)
        draw(axes)
        stream = io.StringIO()
        figure.savefig(stream, format="svg", transparent=True)
    return templates.render(
        "chart.html",
        labels=labels,
        width=size[0],
        height=size[1],
        # matplotlib has escaped the texts in the SVG.
        content=Markup(_for_page(stream.getvalue(), labels.name)),
    )


def _for_page(svg: str, prefix: str) -> str:
    """The content of an SVG adapted to a page: unique ids, and CSS variables for colors."""
    # Before it are the metadata with the date, by which equal numbers would give other bytes, and a style, which would
    # apply to the whole page.
    content = svg.partition("</defs>")[2].rpartition("</svg>")[0]

    def adapt(tag: re.Match[str]) -> str:
        text = re.sub(r' id="|href="#|url\(#', lambda match: f"{match.group()}{prefix}-", tag.group())
        for name, placeholder in _PLACEHOLDERS.items():
            text = text.replace(placeholder, f"var(--{name})")
        return text

    # Tags only: a label may look like an attribute, and matplotlib writes its brackets as entities.
    return re.sub(r"\s*\n\s*", " ", re.sub(r"<[^>]*>", adapt, content))
