"""The filters of a report's page, in a browser.

Chromium writes out what a page is once its script has run. What would be clicked is clicked by a line that is added to
a copy of the page.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from html import unescape
from urllib.parse import quote

import browser
import numpy as np
import pytest

from dcdctl.core.report import write

pytestmark = browser.is_installed


@dataclass(frozen=True)
class Seen:
    """A page after its script has run."""

    html: str
    told: str
    shown: list[tuple[str, tuple[int, ...], str]]
    """Direction, ranks and words of the queries that are not hidden, in their order."""

    @property
    def address(self) -> str:
        """The part of the address after #, if the script of a test wrote it into the page."""
        return unescape(re.findall(r'data-address="([^"]*)"', self.html)[0])


@pytest.fixture(scope="module")
def see(found, tmp_path_factory):
    folder = tmp_path_factory.mktemp("script")
    write.write_report_page(folder / "report.html", found)
    page = (folder / "report.html").read_text(encoding="utf-8")

    @functools.cache
    def look(address: str = "", script: str = "") -> Seen:
        (folder / "copy.html").write_text(
            page.replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8"
        )
        return read(chromium.html(f"file://{folder}/copy.html{address}"))

    with browser.started(folder / "profile") as chromium:
        yield look


def read(html: str) -> Seen:
    cards = re.findall(
        r'<li class="query" data-direction="(\w+)" data-ranks="([\d ]+)"( hidden="")?>(.*?)<div class="answers">',
        html,
        re.DOTALL,
    )
    shown = [
        (way, tuple(map(int, ranks.split())), unescape(" ".join(re.findall(r'<p dir="auto">(.*?)</p>', words))))
        for way, ranks, hidden, words in cards
        if not hidden
    ]
    return Seen(html, unescape(re.findall(r'id="status" role="status">(.*?)</p>', html)[0]), shown)


def test_at_first_twelve_caption_queries_and_the_filters_are_shown(see):
    seen = see()
    assert [way for way, _, _ in seen.shown] == ["image"] * 12
    assert '<form id="filters">' in seen.html
    assert seen.told.startswith("60 of the 60 queries on this page.")


def test_wins_are_those_of_the_student_over_the_baseline_largest_first(see):
    seen = see("#show=wins")
    gains = [ranks[-1] / ranks[1] for _, ranks, _ in seen.shown]
    assert gains == sorted(gains, reverse=True)
    assert min(gains) > 1


@pytest.mark.parametrize(
    ("show", "is_right"),
    [("both-hit", lambda one, other: one == other == 1), ("both-miss", lambda one, other: min(one, other) > 1)],
)
def test_filters_for_hits_and_misses_of_both_models(see, show, is_right):
    shown = see(f"#show={show}&direction=both").shown
    assert shown
    assert all(is_right(ranks[1], ranks[-1]) for _, ranks, _ in shown)


def test_counts_cover_the_whole_split(see, found):
    ours, base = (found.models[place].ranked.table.ranks("text") for place in (1, -1))
    expected = (
        f"Over all 16 queries, dual wins {np.sum(ours < base)} and loses {np.sum(ours > base)} against dual-alone; "
    )
    assert (
        expected + f"both hit {np.sum((ours == 1) & (base == 1))}, both miss {np.sum((ours > 1) & (base > 1))}"
        in see("#direction=text").told
    )


def test_any_two_models_can_be_compared(see):
    seen = see(f"#show=wins&ours={quote('dual + fusion, top 10')}&base=fusion&direction=both")
    assert seen.shown
    assert all(ranks[2] < ranks[3] for _, ranks, _ in seen.shown)
    assert "dual + fusion, top 10 wins" in seen.told
    assert '<span class="ours">dual + fusion, top 10</span> wins' in seen.html


def test_the_word_filter_searches_the_query(see):
    word = see("#direction=both").shown[0][2].split()[1]
    shown = see(f"#direction=both&words={word}").shown
    assert shown
    assert all(word in words for _, _, words in shown)
    assert see("#words=nosuchword").shown == []


def test_clicks_and_typing_act_like_the_address_and_update_it(see):
    script = """
      document.querySelector('input[value="wins"]').click();
      document.querySelector('input[value="both"]').click();
      const words = document.querySelector('input[name="words"]');
      words.value = "a";
      words.dispatchEvent(new Event("input", { bubbles: true }));
      document.body.dataset.address = location.hash;
    """
    clicked, linked = see("", script), see("#show=wins&direction=both&words=a")
    assert clicked.shown == linked.shown
    assert clicked.told == linked.told
    assert clicked.address == "#show=wins&direction=both&words=a"


def test_a_link_to_a_section_does_not_change_the_filters(see):
    script = """
      document.querySelector('input[value="losses"]').click();
      location.hash = "results";
    """
    assert see("", script).shown == see("#show=losses").shown


def test_unknown_values_in_the_address_are_ignored(see):
    assert see("#show=nonsense&ours=nobody&direction=image").shown == see("").shown


def test_a_button_shows_more_queries(see):
    assert len(see("", "document.getElementById('more').click()").shown) == 24


def test_filters_are_reachable_by_keyboard(see):
    script = """
      const form = document.getElementById("filters");
      const isUsable = (one) => one.matches("fieldset") || (one.labels.length === 1 && one.tabIndex === 0);
      const fields = Array.from(form.elements, isUsable);
      document.body.dataset.address = fields.every(Boolean) && fields.length;
    """
    # Two groups with five and three buttons, two selects, one search field.
    assert see("", script).address == "13"
