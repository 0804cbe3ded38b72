"""`dcdctl compare` as a user types it: what it prints, and the page."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from evaluations import reseal, write_evaluation, write_ranks, write_top
from html_page import Page
from tiny import make_corpus
from typer.testing import CliRunner

from dcdctl.cli.app import app
from dcdctl.core.errors import CorpusError, StaleError
from dcdctl.core.evaluation import compare
from dcdctl.core.evaluation.bootstrap import holm
from dcdctl.core.report.report import open_corpus

SCRIPT = '"><script>alert(1)</script>'
CAPTIONS = [["a dog", SCRIPT], ["b & <b>c</b>"], ["d"], ["e", "f"], ["g"]]
BASE = ([1, 3, 2, 80, 11], [1, 2, 9, 4, 30, 30, 6])
GAIN = ([1, 1, 2, 1, 5], [1, 1, 9, 1, 3, 40, 6])
MIXED = ([9, 1, 9, 1, 11], [1, 7, 2, 4, 1, 30, 6])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("made") / "corpus", CAPTIONS)


@pytest.fixture
def here(made, tmp_path, monkeypatch):
    """A folder with three evaluations."""
    monkeypatch.chdir(tmp_path)
    for name, ranks in (("base", BASE), ("gain", GAIN), ("mixed", MIXED)):
        write_evaluation(tmp_path / name, made, *ranks)
        write_top(tmp_path / name / "top.parquet", made, [np.arange(7)] * 5, [np.arange(5)] * 7)
    return tmp_path


def run_cli(*words):
    return CliRunner().invoke(app, ["compare", *map(str, words)], catch_exceptions=False)


def document_of(*words):
    result = run_cli(*words, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def test_the_document_has_the_numbers_of_both_and_of_the_difference_by_hand(here, made):
    document = document_of("base", "gain")
    assert {
        key: document[key]
        for key in ("split", "images", "captions", "protocol", "corpus_fingerprint", "resamples", "seed", "level")
    } == {
        "split": "train",
        "images": 5,
        "captions": 7,
        "protocol": "whole",
        "corpus_fingerprint": made.fingerprint,
        "resamples": 10_000,
        "seed": 0,
        "level": 0.95,
    }
    base, gain = document["sides"]
    assert (document["base"], base["side"], base["name"], gain["side"], gain["runs"]) == (
        "A",
        "A",
        "base",
        "B",
        ["gain"],
    )
    assert (base["kind"], base["depth"]) == ("dual", None)
    assert base["text_retrieval"]["R@1"]["value"] == pytest.approx(100 / 5)
    assert gain["image_retrieval"]["R@5"]["value"] == pytest.approx(100 * 4 / 7)
    (comparison,) = document["comparisons"]
    # Hits at 1, 5 and 10: images 1, 3, 3 of 5 and 3, 5, 5; captions 1, 3, 5 of 7 and 3, 4, 6.
    assert comparison["difference"]["rsum"]["value"] == pytest.approx(100 * (6 / 5 + 4 / 7))
    assert comparison["difference"]["text_retrieval"]["MRR"]["value"] == pytest.approx(
        20 * (2 / 3 + 79 / 80 + 1 / 5 - 1 / 11)
    )
    low, high = comparison["difference"]["rsum"]["interval"]
    assert low <= comparison["difference"]["rsum"]["value"] <= high
    # All five images gained, by a caption or as a query: only five equal signs are as far, 2 patterns of 32.
    assert comparison["sign_flip"] == {"p_value": 2 / 32, "holm_p_value": 2 / 32, "exact": True}
    assert comparison["bootstrap"]["p_value"] == comparison["bootstrap"]["holm_p_value"]


def test_the_document_names_the_queries_that_differ_most_both_ways(here):
    comparison = document_of("base", "gain")["comparisons"][0]
    assert {key: comparison["text_queries"][key] for key in ("better", "equal", "worse")} == {
        "better": 3,
        "equal": 2,
        "worse": 0,
    }
    assert comparison["text_queries"]["most_better"] == [
        {"query": 3, "image_id": "i3", "ranks": [1], "base_ranks": [80]},
        {"query": 1, "image_id": "i1", "ranks": [1], "base_ranks": [3]},
        {"query": 4, "image_id": "i4", "ranks": [5], "base_ranks": [11]},
    ]
    assert comparison["image_queries"]["most_worse"] == [
        {"query": 5, "image_id": "i3", "caption_id": 31, "ranks": [40], "base_ranks": [30]}
    ]


def test_p_values_are_adjusted_for_all_comparisons_of_the_call(here):
    comparisons = document_of("base", "gain", "mixed", "base")["comparisons"]
    for test in ("sign_flip", "bootstrap"):
        assert [comparison[test]["holm_p_value"] for comparison in comparisons] == holm(
            [comparison[test]["p_value"] for comparison in comparisons]
        )
    assert comparisons[0]["sign_flip"]["holm_p_value"] == 3 * comparisons[0]["sign_flip"]["p_value"]
    assert comparisons[2]["sign_flip"]["p_value"] == 1


def test_image_retrieval_is_compared_in_each_language_of_the_captions(here, made):
    languages = ["en", "de", "de", "en", "en", "de", None]
    for name, ranks in (("base", BASE), ("gain", GAIN), ("mixed", MIXED)):
        write_ranks(here / name / "ranks.parquet", made, *ranks, language=[None] * 5 + languages)
        reseal(here / name)
    gain, mixed = (one["image_retrieval_by_language"] for one in document_of("base", "gain", "mixed")["comparisons"])
    assert list(gain) == ["en", "de", "unknown"]
    # English captions of the images 0, 2 and 3: ranks 1, 4, 30 in the base, and 1, 1, 3.
    for name in ("R@1", "R@5", "R@10"):
        assert gain["en"]["difference"][name]["value"] == pytest.approx(100 / 3)
    # Image 2 gains one hit and image 3 two: of the four patterns of signs, two are as far.
    assert gain["en"]["sign_flip"]["p_value"] == 2 / 4
    # German ones of the images 0, 1 and 3: ranks 2, 9, 30, and 1, 9, 40.
    assert gain["de"]["difference"]["R@1"]["value"] == pytest.approx(100 / 3)
    assert gain["de"]["sign_flip"]["p_value"] == gain["unknown"]["sign_flip"]["p_value"] == 1
    differences = [one[language]["difference"]["R@1"]["value"] for one in (gain, mixed) for language in gain]
    assert differences == pytest.approx([100 / 3, 100 / 3, 0, 100 / 3, 0, 0])
    for test in ("sign_flip", "bootstrap"):
        tests = [one[language][test] for language in gain for one in (gain, mixed)]
        assert [one["holm_p_value"] for one in tests] == holm([one["p_value"] for one in tests])
    shown = run_cli("base", "gain", "mixed", "--html", here / "page.html").stdout
    assert re.search(r"image R@1, en +│ +33.33 │ +66.67 │ +\+33.33", shown)
    assert "image retrieval, en: p of both tests 1.0000 and " in shown
    assert "image R@1, de" in (here / "page.html").read_text()


def test_a_comparison_without_languages_has_none(here):
    assert document_of("base", "gain")["comparisons"][0]["image_retrieval_by_language"] == {}


def test_the_base_is_the_first(here):
    first, other = document_of("base", "gain", "mixed"), document_of("gain", "base")
    assert first["base"] == "A"
    assert [comparison["side"] for comparison in first["comparisons"]] == ["B", "C"]
    gains = [document["comparisons"][0]["difference"]["rsum"]["value"] for document in (first, other)]
    assert gains[0] == -gains[1] != 0


def test_runs_of_one_side_are_averaged(here):
    both = document_of("base", "gain,mixed")
    alone = document_of("base", "gain", "mixed")["comparisons"]
    values = [comparison["difference"]["rsum"]["value"] for comparison in alone]
    assert both["comparisons"][0]["difference"]["rsum"]["value"] == pytest.approx(sum(values) / 2)
    assert both["sides"][1]["runs"] == ["gain", "mixed"]
    assert {"query": 0, "image_id": "i0", "ranks": [1, 9], "base_ranks": [1]} in both["comparisons"][0]["text_queries"][
        "most_worse"
    ]


def test_drawn_seeds_widen_the_interval_and_are_named(here):
    words = ("base,mixed", "gain,mixed")
    averaged, drawn = document_of(*words), document_of(*words, "--draw-seeds")
    assert (averaged["draws_seeds"], drawn["draws_seeds"]) == (False, True)
    rsums = [document["comparisons"][0]["difference"]["rsum"] for document in (averaged, drawn)]
    assert rsums[0]["value"] == rsums[1]["value"]
    widths = [high - low for low, high in (rsum["interval"] for rsum in rsums)]
    assert widths[1] > 1.2 * widths[0]
    result = run_cli(*words, "--draw-seeds")
    assert "  draws: 10,000 of images and of runs, seed 0" in result.stdout.splitlines()
    assert "95% interval over images and runs." in result.stdout
    assert max(map(len, result.stdout.splitlines()[1:])) <= 75 + len("gain + 1 more") + 3


def test_where_seeds_are_drawn_the_t_test_over_runs_stands_beside_the_bootstrap(here):
    words = ("base,mixed", "gain,mixed")
    (comparison,) = document_of(*words, "--draw-seeds")["comparisons"]
    assert document_of(*words)["comparisons"][0]["t_test"] is None
    averaged = run_cli(*words).stdout.splitlines()
    assert "Intervals and p are about these trainings; for a claim about other seeds add --draw-seeds." in averaged
    # The systems share a run, so the difference is half of gain's +177, and the spread of each is wider than it.
    assert comparison["t_test"]["p_value"] == comparison["t_test"]["holm_p_value"] > 0.2
    lines = run_cli(*words, "--draw-seeds").stdout.splitlines()
    assert any("t-test p" in line and "sign-flip" not in line for line in lines)
    assert lines[-2] == "t-test: over runs. A difference is shown if both p are at most 0.05."


def test_fewer_than_three_seeds_are_warned_of(here, made):
    for seed, ranks in enumerate((BASE, GAIN, GAIN)):
        write_evaluation(here / f"run{seed}", made, *ranks)
    two = run_cli("base,base", "gain,mixed", "--draw-seeds").stdout.splitlines()[-1]
    assert two == "Fewer than 3 seeds per system: a claim about methods needs at least 3."
    assert document_of("base,base", "gain,mixed")["comparisons"][0]["seed_warning"] == two
    three = run_cli("run0,run1,run2", "gain,gain,mixed", "--draw-seeds")
    assert "Fewer than" not in three.stdout
    assert run_cli("base", "gain", "--html", here / "page.html").exit_code == 0
    page = (here / "page.html").read_text()
    assert "<h1>Compared with base</h1>\n<p><b>Not shown to differ: gain against base, RSUM +177.1 (" in page
    assert "<p>Intervals and p are about these trainings; they cover no other seed.</p>" in page
    assert "<p>Fewer than 3 seeds per system: a claim about methods needs at least 3.</p>" in page


def test_a_cascade_is_named_with_its_depth(here, made):
    write_evaluation(here / "base", made, *GAIN, cascade=True)
    assert "base:cascade: base:cascade (cascade of depth 50)" in run_cli("base", "base:cascade").stdout
    side = document_of("base", "base:cascade")["sides"][1]
    assert (side["runs"], side["kind"], side["depth"]) == (["base:cascade"], "cascade", 50)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["base"], 1, "got 1 systems, expected 2 to 26"),
        (["base", "absent"], 1, "there is no finished evaluation in absent"),
        (["base,mixed", "gain", "--draw-seeds"], 1, "gain has 1 run, drawing its seeds needs 2 or more"),
        (["base", "gain", "--data", "x"], 2, "--html"),
        ([], 2, "SYSTEM"),
    ],
)
def test_a_mistake_is_told_and_nothing_is_printed(here, words, code, message):
    result = run_cli(*words)
    assert result.exit_code == code
    assert result.stdout == ""
    assert message in result.stderr


@pytest.fixture
def page(here, made):
    """The page of a comparison in which both systems kept their first places."""
    for name, shift in (("base", 1), ("gain", 0)):
        first_text = [(np.arange(7) + image + shift) % 7 for image in range(5)]
        first_image = [(np.arange(5) + owner + shift) % 5 for owner in made.caption_image]
        write_top(here / name / "top.parquet", made, first_text, first_image)
    result = run_cli("base", "gain", "--html", here / "page.html")
    assert result.exit_code == 0
    assert result.stderr == f"page -> {here / 'page.html'}\n"
    return (here / "page.html").read_text()


def test_the_page_shows_queries_of_each_direction_and_way_with_the_ranks_and_first_places_of_both(page):
    assert "<h2>gain better than base, text retrieval: 3 of 3 images</h2>" in page
    assert "<h2>gain worse than base, image retrieval: 1 of 1 captions</h2>" in page
    assert "gain worse than base, text retrieval" not in page
    first, *_ = page.split('<section class="beside">')[1:]
    assert "<small>i3</small>" in first
    assert "<b>base</b> rank 80" in first
    assert "<b>gain</b> rank 1<" in first
    # Image 3: ours puts the captions 3, 4, 5, 6, 0 first, of which 4 and 5 are its own; the base starts one later.
    ours, base = first.split("<b>gain</b>")[1], first.split("<b>gain</b>")[0]
    assert [item.split("</span>")[0] for item in ours.split('<span dir="auto">')[1:]] == [
        "d",
        "✓ e",
        "✓ f",
        "g",
        "a dog",
    ]
    assert [item.split("</span>")[0] for item in base.split('<span dir="auto">')[1:]][:2] == ["✓ e", "✓ f"]


def test_the_corpus_of_the_page_is_found_or_named(here, made, tmp_path):
    report = compare.compare_systems(["base", "gain"], resamples=100)
    assert open_corpus(report.evaluation, None).folder == made.folder
    write_evaluation(here / "moved", made, *BASE, data="gone/corpus")
    moved = compare.compare_systems(["moved", "moved"], resamples=100)
    assert open_corpus(moved.evaluation, None) is None
    assert open_corpus(moved.evaluation, made.folder).split == "train"
    other = make_corpus(tmp_path / "other", [["x"]] * 5)
    with pytest.raises(StaleError, match=r"other is the corpus .*, the results are on split train of .*; name theirs"):
        open_corpus(moved.evaluation, other.folder)
    with pytest.raises(CorpusError, match="dcdctl prepare"):
        open_corpus(moved.evaluation, here / "absent")


def test_the_page_of_a_corpus_that_is_gone_has_names_and_no_images(here, made):
    for name, ranks in (("moved", BASE), ("better", GAIN)):
        write_evaluation(here / name, made, *ranks, data="gone/corpus")
        write_top(here / name / "top.parquet", made, [np.arange(7)] * 5, [np.arange(5)] * 7)
    result = run_cli("moved", "better", "--html", here / "page.html")
    assert result.exit_code == 0, result.stderr
    assert (
        result.stderr
        == f"page without images -> {here / 'page.html'}; their corpus was not found, --data DIR names it\n"
    )
    text = (here / "page.html").read_text()
    html = Page(text)
    assert html.all("img") == []
    assert len(html.all("section")) == 7
    assert "Without images" in text
    first = text.split('<section class="beside">')[1]
    assert "<small>i3</small>" in first
    assert "<b>moved</b> rank 80" in first
    # The captions are those of the table of ranks, and the first answers of a caption are named by their ids.
    assert '<span dir="auto">✓ e</span>' in first
    assert '<span dir="auto">i0</span>' in text
