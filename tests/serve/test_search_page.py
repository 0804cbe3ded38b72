"""The search page, in a browser.

Chromium writes out what the page is once its script has run. What a user would do is done by lines that are added to a
copy of the script.
"""

from __future__ import annotations

import functools
import json
import re
import shutil
from datetime import date, datetime
from html import unescape
from urllib.parse import parse_qs, urlencode
from urllib.request import urlopen

import browser
import numpy as np
import pytest
import served
from html_page import Page
from made_index import update

from dcdctl.core.search import WEAK
from dcdctl.core.search.background import probe_texts
from dcdctl.core.serve import ServiceConfig, facets, pages
from dcdctl.core.serve import app as serve_app

pytestmark = browser.is_installed

NUM = len(served.NAMES)
OWNERS = ["ann", "<b>'bob'</b>", None, *["ann"] * (NUM - 3)]
DAYS = [date(2024, 1, 1 + number) for number in range(NUM)]
TAKEN = datetime(2022, 5, 12, 17, 20)
TITLES = [f"50% of_it's {number:02}" for number in range(NUM)]
DEEDS = """
const choose = (field, value) => {
  field.value = value;
  field.dispatchEvent(new Event("change"));
};
const press = (key) => document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
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
  "#click": () => document.querySelector("#results a.similar").click(),
  "#open": () => {
    document.querySelectorAll("#results a.image")[1].click();
    press("ArrowRight");
    press("ArrowLeft");
    press("ArrowLeft");
  },
  "#close": () => {
    press("ArrowDown");
    press("ArrowRight");
    document.activeElement.click();
    document.getElementById("viewer").close();
    setTimeout(() => (document.body.dataset.focused = document.activeElement.title), 200);
  },
  "#s": () => {
    press("ArrowDown");
    press("s");
  },
  "#copies": () => {
    const real = window.fetch;
    window.fetch = async (...words) => {
      const answer = await (await real(...words)).json();
      answer.results[0].copies = ["b.jpg", "<i>c</i>.jpg"];
      return new Response(JSON.stringify(answer));
    };
    dispatchEvent(new PopStateEvent("popstate"));
  },
  "#more": () => document.getElementById("more").click(),
  "#also": () => {
    const [also, not] = document.querySelectorAll("#refine input");
    also.value = "<b>snow</b>";
    also.form.requestSubmit();
    setTimeout(() => {
      document.querySelectorAll("#refine input")[1].value = "a man";
      document.querySelectorAll("#refine input")[1].form.requestSubmit();
    }, 500);
  },
  "#unpart": () => document.querySelector("#refine .part.also").click(),
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
        # Columns that are not offered, each with one value.
        constant = {"taken": [TAKEN] * NUM, "year": [2022] * NUM, "city": ["Oslo"] * NUM}
        made = served.make(folder / "all").with_columns(owner=OWNERS, day=DAYS, title=TITLES, **constant)
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
        look.browser = chromium
        yield look


def told(html: str) -> str:
    return unescape(re.search(r'<p id="status"[^>]*>(.*?)</p>', html)[1])


def warned(html: str) -> str | None:
    """The warning above the results, if it is shown."""
    found = re.search(r'<p id="weak"( hidden="")?>(.*?)</p>', html)
    return None if found[1] else unescape(found[2])


def test_a_link_shows_what_its_sender_saw(see):
    html, page = see("?q=a+red+bus")
    assert re.fullmatch(
        rf"{NUM} images in [\d.]+ ms \(encoding [\d.]+, finding [\d.]+\)", told(html).split(";")[0].strip()
    )
    assert page.all("body")[0]["data-drawn"] == str(NUM)
    assert page.all("input")[0]["id"] == "words"
    assert "<title>a red bus | Search index</title>" in html


def test_names_and_words_cannot_become_markup(see):
    _, page = see("?q=a+red+bus")
    assert sorted(one["alt"] for one in page.all("img") if one["alt"]) == sorted(served.NAMES)
    assert sorted(one["title"] for one in page.all("a") if one.get("class") == "image") == sorted(served.NAMES)
    html, page = see("?q=%3Cimg+src%3Dx+onerror%3Dalert(1)%3E#type")
    assert page.all("b") == []
    assert [one for _, one in page.tags if "onerror" in one] == []
    assert page.all("body")[0]["data-address"] == "?q=two+%3Cb%3Edogs%3C%2Fb%3E+%26+%E7%8A%AC"
    assert "<title>two &lt;b&gt;dogs&lt;/b&gt; &amp; 犬 | Search index</title>" in html


def test_a_page_without_a_query_lists_the_images_by_date_and_names_the_index(see):
    html, page = see("")
    assert told(html) == f"{NUM} images, the newest first. Type what an image shows, or drop an image here."
    assert re.findall(r'<li class="month"><h2>(.*?)</h2></li>', html) == ["May 2022"]
    assert (
        html.count('<p class="when" title="May 12, 2022, 17:20 \u00b7 Oslo" dir="auto">May 12, 2022 \u00b7 Oslo</p>')
        == NUM
    )
    assert 'id="more" hidden' in html
    assert "<h1>Search index</h1>" in html
    assert page.all("body")[0]["data-drawn"] == str(NUM)
    assert sorted(one["alt"] for one in page.all("img") if one["alt"]) == sorted(served.NAMES)
    links = [one["href"] for one in page.all("a") if one.get("href", "").startswith("?q=")]
    assert links == [f"?{urlencode({'q': text})}" for text in pages.EXAMPLES]
    assert 'class="score"' not in html
    assert '<p id="examples" hidden' in see("?q=a+red+bus")[0]


def test_photos_without_any_date_are_neither_the_newest_first_nor_under_a_month(see, tmp_path):
    made = served.make(tmp_path)
    index = update(made.index, sets=("exif=camera",))
    assert index.empty_columns == index.columns.names == ["taken", "year", "camera"]
    with served.serving(serve_app.build(made.searcher, ServiceConfig(default_k=NUM))) as url:
        html = see.browser.html(url, budget_ms=6000)
    assert told(html) == f"{NUM} images. Type what an image shows, or drop an image here."
    assert html.count('class="image"') == NUM
    assert 'class="month"' not in html


def test_long_names_are_shortened_in_the_middle(see):
    html, _ = see("?q=a+red+bus")
    assert ">&lt;img src=\u2026lert(1)&gt;.png</p>" in html
    assert ">photo.jpg</p>" in html


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
    assert [warned(html) for html in pages] == [WEAK, None]
    shares = [[float(share) for share in re.findall(r"--share: ([\d.]+)", html)] for html in pages]
    assert shares[1] == pytest.approx(ask(strong)["bars"], abs=1e-3)
    assert shares[1][0] > 0.5 >= shares[0][0]


@pytest.mark.parametrize("how", ["#click", "#s"])
def test_similar_images_are_a_click_or_a_key_away(see, how):
    html, page = see(f"?q=a+red+bus{how}")
    first = page.all("body")[0]["data-address"]
    assert re.fullmatch(r"\?row=\d+", first)
    assert first in [one["href"] for one in page.all("a") if "href" in one]
    assert '<p class="numbers"><span>1.000</span>' in html


def test_a_click_opens_an_image_and_arrows_go_to_the_others(see):
    html, page = see("?q=a+red+bus#open")
    first = next(one["title"] for one in page.all("a") if one.get("class") == "image")
    viewer = html[html.index('<dialog id="viewer"') :]
    assert viewer.startswith('<dialog id="viewer" aria-labelledby="viewer-name" open="">')
    assert unescape(re.search(r'id="viewer-name"[^>]*>(.*?)</p>', viewer)[1]) == first
    assert "May 12, 2022, 17:20 \u00b7 Oslo" in viewer
    assert re.search(r'class="previous"[^>]* disabled=""', viewer)
    assert re.search(r'<img alt="[^"]*" src="image/\d+\?size=preview">', viewer)


def test_a_closed_image_gives_the_focus_back(see):
    html, page = see("?q=a+red+bus#close")
    titles = [one["title"] for one in page.all("a") if one.get("class") == "image"]
    assert page.all("body")[0]["data-focused"] == titles[1]
    assert '<dialog id="viewer" aria-labelledby="viewer-name">' in html


def test_parts_are_added_to_a_query_and_removed(see):
    html, page = see("?q=a+red+bus#also")
    assert address(page) == {"q": ["a red bus"], "also": ["<b>snow</b>"], "not": ["a man"]}
    assert page.all("b") == []
    assert "also &lt;b&gt;snow&lt;/b&gt; \u00d7</button>" in html
    assert "not a man \u00d7</button>" in html
    # Scores of several parts are on another scale than those of single texts.
    assert ('class="score"' in html, warned(html)) == (False, None)
    assert len(alts(page)) == NUM
    _, page = see(f"{page.all('body')[0]['data-address']}#unpart")
    assert address(page) == {"q": ["a red bus"], "not": ["a man"]}
    html, page = see("?row=0&also=snow")
    assert (len(alts(page)), "Images like " in html, "also snow \u00d7</button>" in html) == (NUM, True, True)


def test_an_image_with_copies_says_how_many(see):
    html, page = see("#copies")
    found = re.findall(r'<p class="copies" title="([^"]*)" dir="auto">(.*?)</p>', html)
    assert [(unescape(title), text) for title, text in found] == [("b.jpg\n<i>c</i>.jpg", "3 copies")]
    assert page.all("i") == []


def test_a_filter_without_a_query_lists_what_meets_it(see):
    html, page = see(f"?{urlencode({'where': 'owner is null'})}")
    assert (alts(page), told(html)) == ({served.NAMES[2]}, "1 image meets the condition")
    html, page = see(f"?{urlencode({'where': 'owner = 1'})}")
    assert told(html).startswith("the condition 'owner = 1' compares owner")


def test_an_image_that_is_dropped_is_searched_by(see):
    html, page = see("#drop")
    assert "Images like &lt;i&gt;mine&lt;/i&gt;.png" in html
    assert page.all("i") == []
    assert page.all("body")[0]["data-drawn"] == str(NUM)
    assert '<p class="numbers"><span>1.000</span>' in html


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


def test_filters_are_in_the_order_in_which_people_ask_and_more_images_are_listed(tmp_path_factory, see):
    folder = tmp_path_factory.mktemp("ordered")
    many = [number % 4 for number in range(NUM)]
    columns = {"a": [number % 2 for number in range(NUM)], "city": list(map(str, many)), "year": many}
    columns["camera"] = [f"camera {number % 3}" for number in range(NUM)]
    columns["taken"] = [TAKEN.replace(month=12 - number) if number < 9 else None for number in range(NUM)]
    made = served.make(folder / "all").with_columns(**columns)
    with served.serving(serve_app.build(made.searcher, ServiceConfig(default_k=5))) as url:
        html = see.browser.html(f"{url}/", budget_ms=3000)
        filters = re.findall(r"<label><span>(.*?)</span>", html)
        assert filters == ["year", "camera", "city", "a", "taken"]
        years = re.search(r"<span>year</span><select>(.*?)</select>", html)[1]
        assert re.findall(r">(\d) \(", years) == ["3", "2", "1", "0"]
        assert re.findall(r"<h2>(.*?)</h2>", html)[:2] == ["December 2022", "November 2022"]
        assert (html.count('class="image"'), 'id="more">' in html) == (5, True)
        html = see.browser.html(f"{url}/#more", budget_ms=3000)
        assert html.count('class="image"') == 10
        # The months go on where they ended.
        months = ["December", "November", "October", "September", "August", "July", "June", "May", "April"]
        assert re.findall(r"<h2>(.*?)</h2>", html) == [*(f"{month} 2022" for month in months), "Without a date"]


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
