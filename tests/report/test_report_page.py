"""The page of a report, as a file: complete, safe and self-contained."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from evaluations import reseal
from made_runs import scores_of, write_evaluation, write_run
from PIL import Image
from tiny import make_corpus

from dcdctl.core.report import gallery, report, write

HOSTILE = "</script><script>alert(1)</script> <img src=x onerror=alert(2)> \" ' & <b>"
VOID = {"meta", "br", "input", "img", "use", "path", "image"}


class Page(HTMLParser):
    """Elements with their attributes; asserts that every tag is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self._open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    def all(self, tag, **attributes):
        return [found for name, found in self.elements if name == tag and attributes.items() <= found.items()]


@pytest.fixture(scope="module")
def text(found, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    write.write_report_page(path, found)
    return path.read_text(encoding="utf-8")


def page_of(folders: list[Path], tmp_path: Path) -> str:
    write.write_report_page(tmp_path / "report.html", report.read_report(folders))
    return (tmp_path / "report.html").read_text(encoding="utf-8")


def test_the_page_is_self_contained(text):
    page = Page(text)
    links = [
        value
        for _, attributes in page.elements
        for name in ("src", "href", "xlink:href")
        if (value := attributes.get(name))
    ]
    assert links
    assert all(link.startswith(("#", "data:image/webp;base64,")) for link in links)
    styles = "".join(re.findall(r"<style>(.*?)</style>", text, re.DOTALL))
    assert "@import" not in styles
    assert "url(" not in styles
    assert page.all("link") == []
    assert [one for one in page.all("script") if "src" in one] == []
    assert "default-src 'none'" in page.all("meta", **{"http-equiv": "Content-Security-Policy"})[0]["content"]
    assert not re.search(r"\bfetch\(|XMLHttpRequest|import\(", text)


def test_the_same_report_is_the_same_page(found, text, tmp_path):
    write.write_report_page(tmp_path / "again.html", found)
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == text


def test_every_variable_that_is_used_has_a_value(text):
    used = set(re.findall(r"var\((--[a-z0-9]+)\)", text))
    assert used <= set(re.findall(r"(--[a-z0-9]+):", text))


def test_every_linked_section_exists_and_ids_are_unique(text):
    page = Page(text)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    names = ["results", "scores", "training", "what-was-run", "queries"]
    assert [one["href"] for one in page.all("a")] == [f"#{name}" for name in names]
    assert set(names) <= set(ids)


def test_a_query_shows_five_answers_of_every_model_and_marks_positives(text, found):
    cards = re.findall(r'<li class="query" data-direction="image".*?</div></li>\n', text, re.DOTALL)
    assert len(cards) == 60
    query = next(
        one for one in range(80) if f'<p dir="auto">{found.models[0].ranked.table.captions[one]}</p>' in cards[0]
    )
    for system, section in zip(found.ranked, re.findall('<div class="answer".*?</div>', cards[0]), strict=True):
        top = system.ranked.top["image"]
        assert [int(number) for number in re.findall(r'href="#p(\d+)"', section)] == top.candidate_QK[
            query, :5
        ].tolist()
        assert ["class=own" in item for item in re.findall("<li.*?</li>", section)] == top.is_positive_QK[
            query, :5
        ].tolist()
        assert f"rank {system.ranked.table.ranks('image')[query]}<" in section


def test_every_image_is_in_the_page_once_as_a_thumbnail(text):
    page = Page(text)
    sources = [one["href"] for one in page.all("image")]
    assert len(sources) == len(set(sources)) == 16
    for source in sources:
        picture = Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))
        assert max(picture.size) <= gallery.THUMBNAIL_PX
    shown = {one["href"] for one in page.all("use") if re.fullmatch(r"#p\d+", one.get("href", ""))}
    assert shown == {f"#{one['id']}" for one in page.all("symbol")}


def test_images_have_labels_for_screen_readers(text, split):
    named = [one["aria-label"] for one in Page(text).all("svg", role="img") if "aria-label" in one]
    assert named
    assert {name.removesuffix(", a positive") for name in named} <= set(split.image_ids)


def test_captions_ids_and_paths_cannot_become_markup(tmp_path):
    corpus = make_corpus(tmp_path / "data", [[f"{HOSTILE} {image} {text}" for text in range(2)] for image in range(4)])
    folders = []
    for number, skill in enumerate((2, 1)):
        folder = write_evaluation(tmp_path / f"<img src=x>&{number}", corpus, scores_of(corpus, skill, number))
        for name in ("ranks.parquet", "top.parquet"):
            table = pd.read_parquet(folder / name)
            if "image_id" in table:
                table.assign(image_id=[f"<i onclick=x>{one}" for one in table["image_id"]]).to_parquet(
                    folder / name, index=False
                )
        reseal(folder)
        folders.append(write_run(folder))
    text = page_of(folders, tmp_path)
    page = Page(text)
    assert page.all("img") == []
    assert page.all("b", onclick="x") == []
    assert [one for one in page.elements if "onerror" in one[1] or "onclick" in one[1]] == []
    assert len(page.all("script")) == 2
    assert any(HOSTILE in one for one in page.texts)


def test_a_single_model_is_shown_without_comparisons(split, tmp_path):
    folder = write_evaluation(tmp_path / "run", split, scores_of(split, 1))
    text = page_of([folder], tmp_path)
    page = Page(text)
    assert page.all("select") == []
    assert {one["value"] for one in page.all("input", name="show")} == {"all", "both-hit", "both-miss"}
    assert "queries for captions of an image are shown: drawn at random (seed 0)." in "".join(page.texts)


def test_without_the_corpus_image_names_are_shown(split, tmp_path):
    folder = write_evaluation(tmp_path / "run", split, scores_of(split, 1), data="/nowhere")
    text = page_of([folder], tmp_path)
    page = Page(text)
    assert page.all("symbol") == []
    assert f"<span>{split.image_ids[0]}</span>" in text
    assert "without images (--data DIR)" in "".join(page.texts)


def test_missing_parts_are_left_out_and_named(tmp_path):
    folder = write_run(tmp_path / "run")
    page = Page(page_of([folder], tmp_path))
    assert [one["href"] for one in page.all("a")] == ["#training", "#what-was-run"]
    assert "not evaluated (dcdctl eval)" in "".join(page.texts)
