"""`dcdctl search` on the command line, and with queries from stdin; and what reaches the terminal."""

from __future__ import annotations

import io
import json
import math
import re
import shutil

import pytest
from html_page import Page
from made_index import searcher_of, update
from noise_index import CAPTIONS, NAMES, make_index
from tiny import run_script
from typer.testing import CliRunner

from dcdctl.cli.app import app
from dcdctl.cli.views import terminal
from dcdctl.core.search import CombinedQuery, FolderIndex, index_facts

TEXT = CAPTIONS[0]
CPU = ["--device", "cpu"]
UNSAFE = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]")


@pytest.fixture(scope="module")
def index(noise_index):
    return noise_index


@pytest.fixture(scope="module")
def searcher(index):
    return searcher_of(index)


def run_cli(*words, stdin=None):
    return CliRunner().invoke(app, ["search", *map(str, words)], input=stdin, catch_exceptions=False)


def names_in(answer):
    return [terminal.printable(hit.name) for hit in answer.hits]


def test_each_hit_is_one_line_and_names_cannot_control_the_terminal(index, searcher):
    result = run_cli(index, *TEXT.split(), "--k", 12, *CPU)
    assert result.exit_code == 0, result.stderr
    head, *lines = result.stdout.splitlines()
    assert head.split() == ["#", "cosine", "image"]
    answer = searcher.by_text(TEXT, 12)
    assert [line.split(maxsplit=2)[2] for line in lines] == names_in(answer)
    assert [line.split()[:2] for line in lines] == [
        [str(place), f"{hit.score:.4f}"] for place, hit in enumerate(answer.hits, start=1)
    ]
    assert not UNSAFE.search(result.stdout)
    assert {"[red]brackets[.png", r"esc\u001b[31m.png", r"\u202egnp.png"} <= {
        line.split(maxsplit=2)[2] for line in lines
    }
    assert f"12 of {len(NAMES)} images in " in result.stderr


def test_json_is_one_document_with_unchanged_names(index, searcher):
    result = run_cli(index, TEXT, "-k", 12, "--json", *CPU)
    document = json.loads(result.stdout)
    assert [hit["name"] for hit in document["hits"]] == [hit.name for hit in searcher.by_text(TEXT, 12).hits]
    assert not UNSAFE.search(result.stdout)
    assert result.stderr == ""


def test_a_reranker_shows_both_scores_and_a_page_is_written(index, tmp_path):
    words = ["--rerank", index.parent / "fusion", "--depth", 3, "--k", 4, "--html", tmp_path / "found.html"]
    result = run_cli(index, TEXT, *words, *CPU)
    assert result.exit_code == 0, result.stderr
    head, *lines = result.stdout.splitlines()
    assert head.split() == ["#", "logit", "cosine", "image"]
    logits = [line.split()[1] for line in lines]
    assert logits[3] == "-"
    assert sorted(map(float, logits[:3]), reverse=True) == list(map(float, logits[:3]))
    assert len(Page((tmp_path / "found.html").read_text()).all("img")) == 4
    assert f"page -> {tmp_path / 'found.html'}" in result.stderr


@pytest.fixture(scope="module")
def hybrid(noise_index, tmp_path_factory):
    """The index with the words of its file names."""
    folder = tmp_path_factory.mktemp("hybrid") / "index"
    shutil.copytree(noise_index, folder)
    update(folder, sets=("keywords=true",))
    return folder


def word_bytes(index):
    return sum(path.stat().st_size for path in (index / "keywords").iterdir())


def test_hybrid_search_shows_bm25_and_finds_a_file_by_its_name(hybrid, tmp_path):
    result = run_cli(hybrid, "brackets", "red", "--hybrid", *CPU)
    assert result.exit_code == 0, result.stderr
    head, first, second, *_ = result.stdout.splitlines()
    assert head.split() == ["#", "cosine", "BM25", "image"]
    # Two words in one of twelve names, which has no other: of length 2 among a mean of 20 / 12.
    bm25 = 2 * math.log(1 + 11.5 / 1.5) / (1 + 1.2 * (0.25 + 0.75 * 2 / (20 / 12)))
    assert first.split()[2:] == [f"{bm25:.3f}", "[red]brackets[.png"]
    assert second.split()[2] == "-"
    document = json.loads(run_cli(hybrid, "brackets", "--hybrid", "--json", *CPU).stdout)["hits"]
    assert [hit["bm25"] is None for hit in document] == [hit["name"] != "[red]brackets[.png" for hit in document]
    assert [hit["fused"] for hit in document] == sorted((hit["fused"] for hit in document), reverse=True)
    page = tmp_path / "found.html"
    run_cli(hybrid, "brackets", "--hybrid", "--k", 2, "--html", page, *CPU)
    assert page.read_text().count("BM25 ") == 1
    facts = dict(index_facts(FolderIndex.open(hybrid)))
    assert facts["search"] == "flat, and by words with --hybrid"
    assert f"keywords {word_bytes(hybrid):,}" in facts["bytes"]
    lines = run_cli(hybrid, "--hybrid", "--k", 1, *CPU, stdin="brackets red\ngnp\n")
    assert lines.stdout == "brackets red\t[red]brackets[.png\ngnp\t\\u202egnp.png\n"


def test_hybrid_search_needs_words_in_the_index_and_in_the_query(index, hybrid):
    result = run_cli(index, "a dog", "--hybrid", *CPU)
    assert result.exit_code == 1
    assert re.search(
        r"error: .*index has no words of captions and file names; add them: "
        r"dcdctl change .*index --set keywords=true\n",
        result.stderr,
    )
    result = run_cli(hybrid, "--image", index.parent / "images" / "plain.png", "--hybrid", *CPU)
    assert (result.exit_code, "compares the words of a text, and --image has none" in result.stderr) == (2, True)


def test_several_parts_are_one_query(index, searcher, tmp_path):
    photo, page = index.parent / "images" / "plain.png", tmp_path / "found.html"
    words = ["red", "--image", photo, "--also", "circle", "--also", "blue", "--not", "green", "--k", 3]
    result = run_cli(index, *words, "--html", page, *CPU)
    expected = searcher.ask(CombinedQuery("red", photo, ("circle", "blue"), ("green",)), 3)
    assert [line.split(maxsplit=2)[2] for line in result.stdout.splitlines()[1:]] == names_in(expected)
    assert "<title>red, like plain.png, also circle, also blue, not green" in page.read_text()
    document = json.loads(run_cli(index, *words, "--json", *CPU).stdout)
    assert document["query"] == {"text": "red", "image": str(photo), "also": ["circle", "blue"], "not": ["green"]}
    assert [hit["score"] for hit in document["hits"]] == [hit.score for hit in expected.hits]
    assert (document["notes"], expected.background) == ([], None)


def test_a_text_that_is_excluded_too_is_an_error_before_torch_is_imported(index):
    result = run_cli(index, "red", "--not", "Red", *CPU)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "error: 'Red' is both searched for and excluded; leave one of them out\n"


def test_an_image_finds_itself_also_if_its_file_is_gone(tmp_path):
    index = make_index(tmp_path)
    (tmp_path / "images" / "plain.png").rename(tmp_path / "plain.png")
    result = run_cli(index, "--image", tmp_path / "plain.png", "--k", 1, *CPU)
    assert result.stdout.splitlines()[1].split() == ["1", "1.0000", "plain.png"]


def test_each_line_of_stdin_gives_one_line(index, searcher):
    stdin = f"\ufeff{TEXT}\n\n  red  \r\n".encode() + b"caf\xe9\n:k 5\nblue"
    result = run_cli(index, "--k", 2, *CPU, stdin=stdin)
    assert result.exit_code == 1
    found = [line.split("\t") for line in result.stdout.splitlines()]
    assert found[0] == [TEXT, *names_in(searcher.by_text(TEXT, 2))]
    assert [line[0] for line in found] == [TEXT, "red", "caf\ufffd", ":k 5", "blue"]
    assert [len(line) for line in found] == [3, 3, 1, 3, 3]
    assert re.search("^error: line 4: the query holds bytes", result.stderr, re.MULTILINE)
    assert run_cli(index, *CPU, stdin=b"red\n").exit_code == 0


def test_each_line_of_stdin_gives_one_json_document(index):
    result = run_cli(index, "--k", 1, "--json", *CPU, stdin=b"red\n\xff\nblue\n")
    documents = [json.loads(line) for line in result.stdout.splitlines()]
    assert [document["query"]["text"] for document in documents] == ["red", "\ufffd", "blue"]
    assert ["error" in document for document in documents] == [False, True, False]
    assert len(documents[0]["hits"]) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--also", "red"], "there is none: add a text or --image"),
        (["--not", "red"], "there is none: add a text or --image"),
        (["red", "--also", "blue", "--rerank", "fusion"], "this query has several parts"),
        (["red", "--not", "blue", "--hybrid"], "this query has several parts"),
        (["red", "--image", "images/plain.png", "--hybrid"], "this query has several parts"),
        (["red", "--depth", "5"], "add --rerank"),
        (["--image", "images/plain.png", "--rerank", "fusion"], "scores an image with a text"),
        (["--html", "x.html"], "add a text"),
        (["red", "--k", "0"], "greater than or equal to 1"),
    ],
)
def test_options_without_effect_exit_with_2(index, monkeypatch, words, message):
    monkeypatch.chdir(index.parent)
    result = run_cli(index, *words)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stdout == ""


def test_a_terminal_without_a_query_is_told_what_to_give(index, monkeypatch):
    monkeypatch.setattr("sys.stdin", type("Terminal", (io.StringIO,), {"isatty": lambda _: True})())
    with pytest.raises(SystemExit) as exit_:
        app(["search", str(index)])
    assert exit_.value.code == 2


def test_a_wrong_index_or_query_is_an_error_before_torch_is_imported(index, tmp_path):
    script = """
import sys
from dcdctl.cli.app import app
for words in ([sys.argv[2], "red"], [sys.argv[1], " "], [sys.argv[1], "--image", "absent.png"]):
    try:
        app(["search", *words])
    except SystemExit as end:
        print(end.code)
print(sorted({"torch", "transformers", "rich"} & set(sys.modules)))
"""
    assert run_script(script, index, tmp_path).splitlines() == ["1", "1", "1", "[]"]


@pytest.mark.parametrize("command", ["search", "serve"])
def test_a_model_in_place_of_an_index_is_told_how_an_index_is_made(index, tmp_path, monkeypatch, command):
    run = tmp_path / "my run"
    run.mkdir()
    (run / "run.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    for place, shown, what in (
        (run, f"'{run}'", f"{run} is a run, an index is expected; give it as RUN to make one: "),
        (index.parent / "dual", index.parent / "dual", f"{index.parent / 'dual'} is a saved model, an index is "),
        ("openai/clip-vit-base-patch32", "openai/clip-vit-base-patch32", "there is no index openai/clip-vit-base-"),
    ):
        words = [command, str(place)] + (["dog"] if command == "search" else [])
        result = CliRunner().invoke(app, words, catch_exceptions=False)
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr.startswith(f"error: {what}")
        assert f"`dcdctl index {shown} --images DIR --out INDEX`" in result.stderr


def test_only_unprintable_characters_are_escaped():
    for unsafe, shown in (
        ("\x1b[2J", r"\u001b[2J"),
        ("\x9b", r"\u009b"),
        ("\u202e", r"\u202e"),
        ("\n", r"\n"),
        ("\udce9", r"\udce9"),
    ):
        assert terminal.printable(f"a{unsafe}") == f"a{shown}"
    for safe in ("caf\u00e9 [red]", "\u72ac", "\U0001f469\u200d\U0001f680", "\u00a0"):
        assert terminal.printable(safe) == safe
    assert json.loads(f'"{terminal.printable(chr(0xE0001))}"') == chr(0xE0001)
