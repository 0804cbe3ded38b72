"""Charts that are parts of a page."""

from __future__ import annotations

import functools
import re
from xml.etree import ElementTree

import pytest

from dcdctl.core.report import charts
from dcdctl.core.report.charts import ChartLabels, Series

HOSTILE = 'a<b>&"$x$ \N{CJK UNIFIED IDEOGRAPH-6F22}'


def labels(name: str = "one", title: str = "Loss") -> ChartLabels:
    return ChartLabels(name=name, title=title, description="from 3 to 1", x_label="step", y_label="loss")


def curve(label: str, *y: float, color: str = "c0") -> Series:
    return Series(label=label, color=color, x=range(len(y)), y=y)


@functools.cache
def made() -> dict[str, str]:
    """One of each kind."""
    bins = [0.0, 1.0, 2.0, 3.0]
    points = [
        Series(label="a", color="c0", x=[1.0, 10.0], y=[200.0, 300.0], names=["a, top 1", "a"]),
        Series(label="b", color="c7", x=[2.0], y=[250.0], names=["b"]),
    ]
    return {
        "lines": charts.lines(labels("lines"), [curve("a", 3, 2, 1), curve("b", 3, 1, 1, color="c1")]),
        "mirrored": charts.mirrored(
            labels("mirrored"), bins, curve("own", 1, 5, 2), curve("other", 4, 1, 0, color="c1")
        ),
        "scatter": charts.scatter(labels("scatter"), points, [(1.0, 200.0), (10.0, 300.0)]),
    }


def svg_of(figure: str) -> ElementTree.Element:
    return ElementTree.fromstring(figure[figure.index("<svg") : figure.index("</svg>") + len("</svg>")])


def texts_of(figure: str) -> list[tuple[str, float, float]]:
    """The texts on the axes and beside them, with their places."""
    found = []
    for element in svg_of(figure).iter("{http://www.w3.org/2000/svg}text"):
        x, y = element.attrib.get("x"), element.attrib.get("y")
        if x is None or y is None:
            x, y = re.findall(r"translate\(([-\d.]+) ([-\d.]+)\)", element.attrib["transform"])[0]
        found.append(("".join(element.itertext()), float(x), float(y)))
    return found


def frame_of(figure: str) -> tuple[float, float, float]:
    """The left, the bottom and the top of the axes; heights grow downward."""
    left, bottom, _, _, _, top = re.findall(r"[\d.]+", figure.partition('axes_1">')[2].partition(' d="')[2])[:6]
    return float(left), float(bottom), float(top)


@pytest.mark.parametrize("kind", ["lines", "mirrored", "scatter"])
def test_a_chart_has_a_role_a_title_and_a_description(kind):
    svg = svg_of(made()[kind])
    names = svg.attrib["aria-labelledby"].split()
    texts = {element.attrib["id"]: element.text for element in svg.iter() if "id" in element.attrib}
    assert svg.attrib["role"] == "img"
    assert [texts[name] for name in names] == ["Loss", "from 3 to 1"]


def test_nothing_is_fetched_and_nothing_styles_the_rest_of_the_page():
    page = "".join(made().values())
    assert set(re.findall(r'https?://[^"]+', page)) <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert "<style" not in page
    assert "<metadata" not in page


def test_text_is_escaped_and_not_read_as_a_formula():
    figure = charts.lines(labels(title=HOSTILE), [curve(HOSTILE, 3, 1)])
    svg = svg_of(figure)
    texts = ["".join(element.itertext()) for element in svg.iter("{http://www.w3.org/2000/svg}text")]
    assert HOSTILE in texts
    assert "<b>" not in figure
    assert figure.startswith('<figure class="chart"><figcaption>a&lt;b&gt;&amp;')


def test_every_color_is_a_variable_of_the_page():
    used = set(re.findall(r"(?:fill|stroke|color): ([^;\"]+)", "".join(made().values())))
    assert {color for color in used if not color.startswith("var(--")} == {"none"}


def test_the_histograms_are_named_on_their_own_sides_in_the_frame_and_counts_have_no_sign():
    texts = texts_of(made()["mirrored"])
    heights = {text: y for text, _, y in texts}
    _, bottom, top = frame_of(made()["mirrored"])
    quarter = (bottom - top) / 4
    assert top < heights["own"] < top + quarter
    assert bottom - quarter < heights["other"] < bottom
    own, other = (
        [float(y) for y in re.findall(r"[ML] \S+ (\S+)", path)]
        for path in re.findall(r'<path d="([^"]*)"[^>]*fill: var', made()["mirrored"])
    )
    # Five queries upward from the same line as four downward.
    assert max(own) == min(other)
    assert (max(own) - min(own)) / (max(other) - min(other)) == pytest.approx(5 / 4)
    ticks = [text for text, _, _ in texts if text.isdecimal()]
    assert ticks == ["6", "4", "2", "0", "2", "4", "6"]


def test_a_point_is_named_once_beside_itself_or_beside_the_axes():
    names = [text for text, _, _ in texts_of(made()["scatter"]) if text.startswith(("a", "b"))]
    assert names == ["a, top 1", "a", "b"]


@pytest.mark.parametrize(
    ("longest", "shown"),
    [(90, ["1", "2", "5", "10", "20", "50", "100"]), (110, ["1", "10", "100"])],
    ids=["short", "long"],
)
def test_times_are_labeled_more_often_on_a_short_axis(longest, shown):
    series = [Series(label="a", color="c0", x=[1, longest], y=[200, 300], names=["a", "a"])]
    figure = charts.scatter(labels(), series, [])
    left, _, _ = frame_of(figure)
    # The numbers of the y axis stand left of the frame.
    assert [text for text, x, _ in texts_of(figure) if x > left and text.isdecimal()] == shown


def test_curves_and_points_differ_without_their_colors():
    count = charts.NUM_COLORS
    figure = charts.lines(labels(), [curve(f"line {number}", 3, number, color="c0") for number in range(count)])
    curves = re.findall(r'<path d="[^"]*" clip-path[^>]*style="([^"]*stroke: var\(--c0\)[^"]*)"', figure)
    assert len(set(curves)) == len(curves) == count
    points = [Series(label=f"{n}", color="c0", x=[n + 1], y=[n], names=[f"{n}"]) for n in range(count)]
    shapes = re.findall(
        r'<path id="[^"]*" d="([^"]*)" style="stroke: var\(--c0\)', charts.scatter(labels(), points, [])
    )
    # Each once on the axes and once beside them.
    assert len(set(shapes)) == count
