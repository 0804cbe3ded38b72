"""Charts as SVG that is part of a page: its text is the page's text, its colours are the page's variables, light and dark.

matplotlib draws them; what it wrote is made to fit into a page among others. The same numbers give the same bytes.
"""

from __future__ import annotations

import io
import itertools
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Literal
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from matplotlib.transforms import Bbox

from dcdctl.core.evaluation import DIRECTIONS, Direction
from dcdctl.core.report.report import Report, System, Training

NUM_COLOURS = 8
"""Variables --c0 to --c7 of a page; --text and --quiet are colours too."""
SMALL, LARGE = (340.0, 230.0), (480.0, 340.0)
"""Width and height in pixels of the page: a chart among others, and one that has a place of its own."""
_FONT_PX = 11.0
_MARKERS = "osD^vPX*"
_VARIABLES = ("text", "quiet", "line", "page", *(f"c{number}" for number in range(NUM_COLOURS)))
# Colours that nothing else has, each standing for a variable until the SVG is written.
_PLACEHOLDERS = {name: f"#0b1d{number:02x}" for number, name in enumerate(_VARIABLES)}
_LOOK: dict[Any, Any] = {
    "svg.fonttype": "none",
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
_SIDES: tuple[tuple[tuple[int, int], Literal["left", "right"], Literal["top", "bottom"]], ...] = (
    ((6, -3), "left", "top"),
    ((-6, 3), "right", "bottom"),
    ((6, 3), "left", "bottom"),
    ((-6, -3), "right", "top"),
)
"""Where a point's name may stand: how far from it in pixels, and which corner of the name is there."""
_SVG = "http://www.w3.org/2000/svg"
ElementTree.register_namespace("", _SVG)
ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")


@dataclass(frozen=True, kw_only=True)
class Series:
    """Points of one kind; its colour is "text", "quiet" or "c0" to "c7", and told apart by more than that."""

    label: str
    colour: str
    x: Sequence[float]
    y: Sequence[float]
    names: Sequence[str] = ()
    """What is written beside each point of a scatter plot."""


@dataclass(frozen=True, kw_only=True)
class About:
    """What a chart is called, in the page and to those who do not see it."""

    name: str
    """Of letters, digits and dashes; no other chart of a page has it."""
    title: str
    description: str
    x_label: str
    y_label: str


def lines(about: About, series: Sequence[Series]) -> str:
    """Curves, each with its label at its end."""

    def draw(axes: Axes) -> None:
        for number, one in enumerate(series):
            dashes: Any = "-" if number == 0 else (0, (6, 1 + number)) if number < 4 else (0, (1 + number, 2, 1, 2))
            axes.plot(one.x, one.y, color=_PLACEHOLDERS[one.colour], linewidth=1.4, linestyle=dashes)
        axes.margins(x=0.02)
        axes.grid(axis="y")
        low, high = axes.get_ylim()
        ends = [(one.y[-1] - low) / (high - low) for one in series]
        for one, place in zip(series, spread(ends, gap=1.25 * _FONT_PX / (0.78 * SMALL[1])), strict=True):
            axes.text(1.02, place, one.label, color=_PLACEHOLDERS[one.colour], transform=axes.transAxes, va="center")

    return _figure(about, SMALL, draw)


def mirrored(about: About, edges: Sequence[float], above: Series, below: Series) -> str:
    """Two histograms over the same bins, the second upside down; `y` of each are counts."""

    def draw(axes: Axes) -> None:
        most = max(1.0, *above.y, *below.y)
        for one, sign in ((above, 1), (below, -1)):
            colour = _PLACEHOLDERS[one.colour]
            axes.stairs([sign * count for count in one.y], edges, fill=True, color=colour, alpha=0.75)
            axes.text(
                0.02, 0.97 if sign > 0 else 0.03, one.label, color=colour, transform=axes.transAxes, va="top" if sign > 0 else "bottom"
            )
        axes.axhline(0, color=_PLACEHOLDERS["quiet"], linewidth=0.8)
        axes.set_ylim(-1.25 * most, 1.25 * most)
        axes.yaxis.set_major_locator(MaxNLocator("auto", integer=True))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{abs(value):g}"))

    return _figure(about, SMALL, draw)


def scatter(about: About, series: Sequence[Series], front: Sequence[tuple[float, float]]) -> str:
    """Points with their names, x logarithmic; `front` is a line that joins the best of them."""

    def draw(axes: Axes) -> None:
        axes.set_xscale("log")
        axes.plot([x for x, _ in front], [y for _, y in front], color=_PLACEHOLDERS["quiet"], linewidth=1, linestyle="--", zorder=1)
        for number, one in enumerate(series):
            axes.scatter(one.x, one.y, s=44, color=_PLACEHOLDERS[one.colour], marker=_MARKERS[number % len(_MARKERS)], zorder=2)
        axes.margins(0.14, 0.12)
        axes.grid(which="major")
        # Times may span less than a power of ten: a label for each, or there would be none.
        span = [x for one in series for x in one.x]
        every = FuncFormatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_major_formatter(every)
        if max(span) < 10 * min(span):
            axes.xaxis.set_minor_formatter(every)
        _name_points(axes, series)

    return _figure(about, LARGE, draw)


def spread(places: Sequence[float], gap: float) -> list[float]:
    """Places from 0 to 1 moved apart until each is at least `gap` from the next; none beyond 1.

    >>> spread([0.5, 0.5], gap=0.1), spread([1.0, 0.2, 1.0], gap=0.25)
    ([0.5, 0.6], [0.75, 0.2, 1.0])
    """
    order = sorted(range(len(places)), key=lambda i: places[i])
    moved = list(places)
    for before, i in itertools.pairwise(order):
        moved[i] = max(moved[i], moved[before] + gap)
    ceiling = 1.0
    for i in reversed(order):
        moved[i] = min(moved[i], ceiling)
        ceiling = moved[i] - gap
    return [round(place, 6) for place in moved]


def _name_points(axes: Axes, series: Sequence[Series]) -> None:
    """Write the names of points beside them, each on the first side where nothing is; a rising front is not on the first."""
    figure = axes.get_figure()
    assert isinstance(figure, Figure)
    figure.draw_without_rendering()
    points = [(x, y) for one in series for x, y in zip(one.x, one.y, strict=True)]
    taken = [Bbox.from_bounds(x - 4, y - 4, 8, 8) for x, y in axes.transData.transform(points)]
    for one in series:
        for x, y, name in zip(one.x, one.y, one.names, strict=True):
            text = axes.annotate(name, (x, y), _SIDES[0][0], textcoords="offset pixels", color=_PLACEHOLDERS[one.colour])
            for offset, horizontal, vertical in _SIDES:
                text.set(position=offset, horizontalalignment=horizontal, verticalalignment=vertical)
                box = text.get_window_extent()
                if axes.bbox.x0 < box.x0 and box.x1 < axes.bbox.x1 and not any(box.overlaps(other) for other in taken):
                    break
            taken.append(box)


def _figure(about: About, size: tuple[float, float], draw: Callable[[Axes], None]) -> str:
    """An HTML figure: the title, then the SVG of what `draw` puts on axes."""
    # A pixel of the page is a point of the SVG, and a point of the figure.
    with mpl.rc_context({**_LOOK, "svg.hashsalt": about.name}), warnings.catch_warnings():
        # Letters that matplotlib has no font for are drawn by the reader's browser.
        warnings.filterwarnings("ignore", message="Glyph ")
        figure = Figure(figsize=(size[0] / 72, size[1] / 72), dpi=72, layout="constrained")
        axes = figure.add_subplot()
        axes.set_axisbelow(True)
        axes.set_xlabel(about.x_label)
        axes.set_ylabel(about.y_label)
        draw(axes)
        stream = io.StringIO()
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return f'<figure class="chart"><figcaption>{escape(about.title)}</figcaption>{_fitted(stream.getvalue(), about)}</figure>'


def _fitted(svg: str, about: About) -> str:
    """The SVG as a part of a page: nothing that reaches beyond it, ids of its own, variables for colours, a title and a description."""
    root = ElementTree.fromstring(svg)
    for child in list(root):
        # Who made it, and a style that would hold for the whole page.
        if child.tag == f"{{{_SVG}}}metadata" or child.find(f"{{{_SVG}}}style") is not None:
            root.remove(child)
    for number, (tag, text) in enumerate((("title", about.title), ("desc", about.description))):
        root.insert(number, ElementTree.Element(f"{{{_SVG}}}{tag}", id=tag))
        root[number].text = text
    for element in root.iter():
        element.attrib = {name: _renamed(value, about.name) if name != "id" else f"{about.name}-{value}" for name, value in element.items()}
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-labelledby": f"{about.name}-title {about.name}-desc"}
    return re.sub(r"\s*\n\s*", " ", ElementTree.tostring(root, encoding="unicode"))


def _renamed(value: str, prefix: str) -> str:
    """An attribute, with the ids it names and the colours in it those of the page."""
    value = re.sub(r"^#|(?<=url\(#)", lambda found: f"{found.group()}{prefix}-", value)
    for name, placeholder in _PLACEHOLDERS.items():
        value = value.replace(placeholder, f"var(--{name})")
    return value


NUM_BINS = 36
_NO_PART = {"step", "loss", "lr", "seconds"}
"""What is logged beside the parts of a loss."""


def colours(report: Report) -> dict[str, str]:
    """The colour of each label: the teacher's and the baseline's are those of text, the others have one each as long as there are any."""
    labels = dict.fromkeys([*(one.label for one in report.systems), *(one.label for one in report.trainings)])
    roles = {one.label: one.role for one in report.systems}
    others = iter(range(len(labels)))
    fixed = {"teacher": "text", "baseline": "quiet"}
    return {label: fixed[roles[label]] if roles[label] in fixed else f"c{next(others) % NUM_COLOURS}" for label in labels}


def training_curves(report: Report) -> list[str]:
    """A chart of the loss and its parts for each training, then recall and learning rate of all."""
    logged = [one for one in report.trainings if one.metrics]
    shared = [
        ("recall", "Recall on the validation split", "val_rsum", "RSUM"),
        ("rate", "Learning rate", "lr", "learning rate"),
    ]
    found = [_loss(number, one) for number, one in enumerate(logged)]
    for name, title, key, label in shared:
        series = [_curve(one, key, one.label, colours(report)[one.label]) for one in logged if any(key in line for line in one.metrics)]
        if series:
            about = About(name=f"training-{name}", title=title, description=_ends(series), x_label="step", y_label=label)
            found.append(lines(about, series))
    return found


def _loss(number: int, training: Training) -> str:
    parts = [key for key in training.metrics[0] if key not in _NO_PART and not key.startswith("val_")]
    # A loss of one part is that part.
    keys = ["loss", *parts] if len(parts) > 1 else ["loss"]
    names = {"loss": "all" if len(parts) > 1 else (parts or ["loss"])[0]}
    series = [
        _curve(training, key, names.get(key, key), "text" if key == "loss" else f"c{place}") for place, key in enumerate(keys, start=-1)
    ]
    about = About(name=f"loss-{number}", title=f"Loss of {training.label}", description=_ends(series), x_label="step", y_label="loss")
    return lines(about, series)


def _curve(training: Training, key: str, label: str, colour: str) -> Series:
    points = [(line["step"], line[key]) for line in training.metrics if key in line]
    return Series(label=label, colour=colour, x=[x for x, _ in points], y=[y for _, y in points])


def _ends(series: Iterable[Series]) -> str:
    return "; ".join(f"{one.label}: from {one.y[0]:.4g} at step {one.x[0]} to {one.y[-1]:.4g} at step {one.x[-1]}" for one in series)


def speed_against_recall(report: Report) -> str:
    """Milliseconds a query against RSUM, every depth of a cascade a point; empty where there are no two points."""
    colour = colours(report)
    found = [series for one in report.systems if (series := _speed_and_recall(one, colour[one.label])) is not None]
    points = [(x, y, name) for series in found for x, y, name in zip(series.x, series.y, series.names, strict=True)]
    if len(points) < 2:
        return ""
    told = "; ".join(f"{name}: {x:,.3g} ms, RSUM {y:.1f}" for x, y, name in sorted(points))
    title = "Speed against recall; the broken line joins what nothing else beats in both"
    about = About(name="speed-recall", title=title, description=told, x_label="ms per query, logarithmic", y_label="RSUM")
    return scatter(about, found, front([(x, y) for x, y, _ in points]))


def _speed_and_recall(system: System, colour: str) -> Series | None:
    result, times = system.result, system.times
    if result is not None and result.depths:
        points = [(one.query_ms, one.rsum, f"top {one.depth}") for one in result.depths]
        points[-1] = (*points[-1][:2], system.label)
    elif result is not None and times is not None:
        points = [(times.query_ms, result.rsum.value, system.label)]
    else:
        return None
    x, y, names = zip(*points, strict=True)
    return Series(label=system.label, colour=colour, x=x, y=y, names=names)


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points than which none is both as fast and better, fastest first.

    >>> front([(3.0, 9.0), (1.0, 5.0), (2.0, 4.0)])
    [(1.0, 5.0), (3.0, 9.0)]
    """
    best: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda point: (point[0], -point[1])):
        if not best or y > best[-1][1]:
            best.append((x, y))
    return best


def scores(report: Report) -> dict[Direction, list[str]]:
    """By direction a chart a model: the scores of what is right, and of the hardest of what is not.

    A cascade's scores are of two models, and not drawn.
    """
    drawn = [one for one in report.answering if one.answers is not None and one.answers.own_scores and not one.is_cascade]
    return {way: [_scores(f"scores-{way}-{number}", way, one) for number, one in enumerate(drawn)] for way in DIRECTIONS}


def _scores(name: str, way: Direction, system: System) -> str:
    assert system.answers is not None
    own_Q, other_Q = system.answers.own_scores[way], system.answers.top[way].hardest_negative_Q
    other_Q = other_Q[~np.isnan(other_Q)]
    edges = np.histogram_bin_edges(np.concatenate([own_Q, other_Q]), NUM_BINS)
    above, below = (
        Series(label=label, colour=colour, x=[], y=np.histogram(values, edges)[0].tolist())
        for label, colour, values in (("its own", "c0", own_Q), ("hardest other", "c1", other_Q))
    )
    told = f"its own: median {np.median(own_Q):.3g}; hardest other: median {np.median(other_Q):.3g}" if len(other_Q) else ""
    title = f"{system.label}: {'captions of an image' if way == 'text' else 'images of a caption'}"
    about = About(name=name, title=title, description=told, x_label="score", y_label="queries")
    return mirrored(about, edges.tolist(), above, below)
