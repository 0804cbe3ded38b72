"""The search page, in a browser.

Chromium writes out what the page is once its script has run. What a user would do is done by lines that are added to a
copy of the script.
"""

from __future__ import annotations

import functools
import json
import re
import shutil
from datetime import date
from html import unescape
from urllib.parse import parse_qs, urlencode
from urllib.request import urlopen

import browser
import numpy as np
import pytest
import served
from html_page import Page

from dcdctl.core.search import WEAK
from dcdctl.core.search.background import probe_texts
from dcdctl.core.serve import ServiceConfig, facets, pages
from dcdctl.core.serve import app as serve_app

pytestmark = browser.is_installed

NUM = len(served.NAMES)
OWNERS = ["ann", "<b>'bob'</b>", None, *["ann"] * (NUM - 3)]
DAYS = [date(2024, 1, 1 + number) for number in range(NUM)]
TITLES = [f"50% of_it's {number:02}" for number in range(NUM)]
DEEDS = """
const choose = (field, value) => {
  field.value = value;
  field.dispatchEvent(new Event("change"));
};
const deeds = {
  "#choose": () => choose(document.querySelector("#facets select"),
  document.querySelector("#facets select").options[2].value),
  "#dates": async () => {
    choose(document.querySelectorAll("#facets input")[0], "2024-01-03");
    await new Promise((resolve) => setTimeout(resolve, 500));
    choose(document.querySelectorAll("#facets input")[1], "2024-01-05");
  },
  "#part": () => choose(document.querySelector("#facets details input"), "_it's 03"),
  "#remove": () => document.querySelector("#facets .condition").click(),
  "#click": () => document.querySelector("#results a.image").click(),
  "#type": () => {
    document.getElementById("words").value = "two <b>dogs</b> & 犬";
    document.querySelector("#search button").click();
  },
  "#drop": async () => {
    const dataTransfer = new DataTransfer();
    const photo = await (await fetch("image/0?size=original")).blob();
    dataTransfer.items.add(new File([photo], "<i>mine</i>.png", { type: "image/png" }));
    document.dispatchEvent(new DragEvent("drop", { dataTransfer, bubbles: true }));
  },
  "#large": () => {
    const dataTransfer = new DataTransfer();
    dataTransfer.items.add(new File([new Uint8Array(200000)], "large.png", { type: "image/png" }));
    document.dispatchEvent(new DragEvent("drop", { dataTransfer, bubbles: true }));
  },
  "#keys": () => {
    const press = (key) => document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
    ["/", "ArrowDown", "ArrowRight", "ArrowRight", "ArrowLeft"].forEach(press);
    document.body.dataset.focused = document.activeElement.title;
  },
};
const seen = () => {
  const images = [...document.querySelectorAll("#results img")];
  Object.assign(document.body.dataset, { address: location.search,
  drawn: images.filter((one) => one.naturalWidth > 1).length });
};
setTimeout(() => deeds[location.hash]?.(), 1500);
setTimeout(seen, 4000);
"""


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    with pytest.MonkeyPatch.context() as patch:
        shutil.copytree(pages.ASSETS, folder / "assets")
        with (folder / "assets" / "search.js").open("a", encoding="utf-8") as script:
            script.write(DEEDS)
        patch.setattr(pages, "ASSETS", folder / "assets")
        made = served.make(folder / "all").with_columns(owner=OWNERS, day=DAYS, title=TITLES)
        app = serve_app.build(made.searcher, ServiceConfig(default_k=NUM, max_upload_bytes=100_000))
        patch.setattr(facets, "MAX_CHOICES", NUM - 1)
        with served.serving(app) as url:
            yield url


@pytest.fixture(scope="module")
def see(url, tmp_path_factory):
    @functools.cache
    def look(address: str) -> tuple[str, Page]:
        html = chromium.html(f"{url}/{address}", budget_ms=6000)
        return html, Page(html)

    with browser.started(tmp_path_factory.mktemp("profile")) as chromium:
        yield look


def told(html: str) -> str:
    return unescape(re.search(r'id="status" role="status"[^>]*>(.*?)</p>', html)[1])


def test_a_link_shows_what_its_sender_saw(see):
    html, page = see("?q=a+red+bus")
    assert re.fullmatch(
        rf"{NUM} images in [\d.]+ ms \(encoding [\d.]+, finding [\d.]+\)", told(html).split(";")[1].strip()
    )
    assert page.all("body")[0]["data-drawn"] == str(NUM)
    assert page.all("input")[0]["id"] == "words"
    assert "<title>a red bus | Search index</title>" in html


def test_names_and_words_cannot_become_markup(see):
    _, page = see("?q=a+red+bus")
    assert sorted(one["alt"] for one in page.all("img") if one["alt"]) == sorted(served.NAMES)
    assert sorted(one["title"] for one in page.all("a") if one.get("rel")) == sorted(served.NAMES)
    html, page = see("?q=%3Cimg+src%3Dx+onerror%3Dalert(1)%3E#type")
    assert page.all("b") == []
    assert [one for _, one in page.tags if "onerror" in one] == []
    assert page.all("body")[0]["data-address"] == "?q=two+%3Cb%3Edogs%3C%2Fb%3E+%26+%E7%8A%AC"
    assert "<title>two &lt;b&gt;dogs&lt;/b&gt; &amp; 犬 | Search index</title>" in html


def test_an_empty_page_shows_a_sample_and_example_queries_and_names_the_index(see):
    html, page = see("")
    assert "<h1>Search index</h1>" in html
    assert page.all("body")[0]["data-drawn"] == str(NUM)
    assert sorted(one["alt"] for one in page.all("img") if one["alt"]) == sorted(served.NAMES)
    links = [one["href"] for one in page.all("a") if one["href"].startswith("?q=")]
    assert links == [f"?{urlencode({'q': text})}" for text in pages.EXAMPLES]
    assert 'class="score"' not in html
    assert '<p id="examples" hidden' in see("?q=a+red+bus")[0]


def test_long_names_are_shortened_in_the_middle(see):
    html, _ = see("?q=a+red+bus")
    assert ">&lt;img src=\u2026lert(1)&gt;.png</a>" in html
    assert ">photo.jpg</a>" in html


def test_a_text_that_scores_as_nonsense_is_a_weak_match(see, url):
    def ask(text):
        with urlopen(f"{url}/search?{urlencode({'text': text, 'k': NUM})}") as response:
            return json.load(response)

    best = [ask(text)["results"][0]["score"] for text in probe_texts()]
    limit = np.quantile(best, 0.95)
    # The tiny model knows no word of the probes; of the words that it knows, this one is nearer to an image than the
    # limit.
    weak, strong = probe_texts()[0], "red"
    assert [ask(text)["weak"] for text in (weak, strong)] == [
        ask(text)["results"][0]["score"] <= limit for text in (weak, strong)
    ]
    pages = [see(f"?{urlencode({'q': text})}")[0] for text in (weak, strong)]
    assert [told(html).startswith(WEAK) for html in pages] == [True, False]
    shares = [[float(share) for share in re.findall(r"--share: ([\d.]+)", html)] for html in pages]
    assert shares[1] == pytest.approx(ask(strong)["bars"], abs=1e-3)
    assert shares[1][0] > 0.5 >= shares[0][0]


def test_a_click_on_an_image_searches_by_it(see):
    html, page = see("?q=a+red+bus#click")
    first = page.all("body")[0]["data-address"]
    assert re.fullmatch(r"\?row=\d+", first)
    assert page.all(
        "a",
    )[1]["href"] == first or first in [one["href"] for one in page.all("a")]
    assert '<p class="numbers">1.000</p>' in html


def test_an_image_that_is_dropped_is_searched_by(see):
    html, page = see("#drop")
    assert "Images like &lt;i&gt;mine&lt;/i&gt;.png" in html
    assert page.all("i") == []
    assert page.all("body")[0]["data-drawn"] == str(NUM)
    assert '<p class="numbers">1.000</p>' in html


def test_invalid_queries_show_an_error(see):
    html, _ = see("#large")
    assert told(html) == "large.png has 0.2 MiB; at most 0.1 MiB can be sent."
    html, page = see("?row=99")
    assert told(html) == "image 99 is not in this index, or not where it was"
    assert page.all("li") == []


def test_arrows_move_among_the_images(see):
    _, page = see("?q=a+red+bus#keys")
    titles = [one["title"] for one in page.all("a") if one.get("class") == "image"]
    assert page.all("body")[0]["data-focused"] == titles[1]


def address(page: Page) -> dict[str, list[str]]:
    return parse_qs(page.all("body")[0]["data-address"].removeprefix("?"))


def alts(page: Page) -> set[str]:
    return {one["alt"] for one in page.all("img") if one["alt"]}


def test_a_choice_filters_and_its_value_cannot_become_markup(see):
    html, page = see("?q=a+red+bus#choose")
    assert address(page) == {"q": ["a red bus"], "where": ["\"owner\" = '<b>''bob''</b>'"]}
    assert alts(page) == {served.NAMES[1]}
    assert "&lt;b&gt;'bob'&lt;/b&gt; (1)</option>" in html
    assert page.all("b") == []
    assert "owner &lt;b&gt;'bob'&lt;/b&gt;, day 2024-01-02, title 50% of_it's 01</p>" in html


def test_a_third_column_is_under_more_filters_and_is_found_by_a_part_of_its_text(see):
    html, page = see("?q=a+red+bus#part")
    assert address(page) == {"q": ["a red bus"], "where": ["\"title\" like '%\\_it''s 03%'"]}
    assert alts(page) == {served.NAMES[3]}
    hidden = r"<details><summary>More filters</summary><label><span>title</span><input[^>]*></label></details>"
    assert re.search(hidden, html)


def test_a_range_filters_and_the_address_keeps_it(see):
    _, page = see("?q=a+red+bus#dates")
    assert address(page)["where"] == ["\"day\" >= '2024-01-03'", "\"day\" <= '2024-01-05'"]
    assert alts(page) == set(served.NAMES[2:5])
    # A link with the same conditions shows the same, in the fields and not as other conditions.
    again = see(page.all("body")[0]["data-address"])[1]
    assert alts(again) == alts(page)
    assert [one for one in again.all("button") if one.get("class") == "condition"] == []


def test_another_condition_of_a_link_can_be_removed(see):
    query = f"?{urlencode({'q': 'a red bus', 'where': 'owner is null'})}"
    html, page = see(query)
    assert alts(page) == {served.NAMES[2]}
    assert "owner is null \u00d7</button>" in html
    _, page = see(f"{query}#remove")
    assert (address(page), len(alts(page))) == ({"q": ["a red bus"]}, NUM)


def test_a_condition_that_no_image_meets_says_so(see):
    html, page = see(f"?{urlencode({'q': 'a red bus', 'where': 'day is null'})}")
    assert (told(html), alts(page)) == ("no image meets the condition", set())
