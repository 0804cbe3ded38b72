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


def draw() -> dict[str, str]:
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


made = functools.cache(draw)


def svg_of(figure: str) -> ElementTree.Element:
    return ElementTree.fromstring(figure[figure.index("<svg") : figure.index("</svg>") + len("</svg>")])


def test_the_same_numbers_give_the_same_bytes():
    assert draw() == made()


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
