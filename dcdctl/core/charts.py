"""Charts as SVG that is part of a page: its text is the page's text, its colours are the page's variables, light and dark.

matplotlib draws them; what it wrote is made to fit into a page among others. The same numbers give the same bytes.
"""

from __future__ import annotations

import io
import itertools
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Literal
from xml.etree import ElementTree

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from matplotlib.transforms import Bbox

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
