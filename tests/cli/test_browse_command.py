"""`dcdctl search` without a query: a list of images, from which stdin it is read, and the paths of images."""

from __future__ import annotations

import io
import json
import os
import shutil
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pytest
from made_index import build, update
from noise_index import NAMES
from tiny import run_script
from typer.testing import CliRunner

from dcdctl.cli.app import app
from dcdctl.cli.views import terminal

FILES = [name if name.endswith(".png") else f"{name}.png" for name in NAMES]
TAKEN = [datetime(2020 + number % 3, 1, 1 + number) if number else None for number in range(len(FILES))]
NEWEST = [FILES[number] for number in sorted(range(1, len(FILES)), key=lambda number: TAKEN[number], reverse=True)]
NEWEST.append(FILES[0])
OF_2022 = [name for name in NEWEST if FILES.index(name) and TAKEN[FILES.index(name)].year == 2022]
CPU = ["--device", "cpu"]


@pytest.fixture(scope="module")
def index(noise_index, tmp_path_factory):
    folder = tmp_path_factory.mktemp("browse") / "index"
    shutil.copytree(noise_index, folder)
    years = [None if moment is None else moment.year for moment in TAKEN]
    update(folder, metadata=pa.table({"image": FILES, "taken": TAKEN, "year": years}))
    return folder


@pytest.fixture(scope="module")
def photos(noise_index):
    return noise_index.parent / "images"


def run(*words, stdin=None):
    return CliRunner().invoke(app, ["search", *map(str, words)], input=stdin, catch_exceptions=False)


def names_of(text):
    """The names in a list, without its head and the lines of columns."""
    return [line.split(maxsplit=1)[1] for line in text.splitlines()[1:] if line.strip()[0].isdigit()]


def shown(names):
    return [terminal.printable(name) for name in names]


@pytest.fixture
def stdin_of(tmp_path, monkeypatch):
    """Replace stdin by one of a kind."""
    with ExitStack() as stack:

        def replace(kind):
            stdin = None
            if kind == "terminal":
                stdin = type("Terminal", (io.StringIO,), {"isatty": lambda _: True})()
            elif kind != "closed":
                path = Path(os.devnull) if kind == "null" else tmp_path / "lines"
                if kind != "null":
                    path.write_text("red\n" if kind == "lines" else "", encoding="utf-8")
                stdin = stack.enter_context(path.open(encoding="utf-8"))
            monkeypatch.setattr("sys.stdin", stdin)

        yield replace


@pytest.mark.parametrize("words", [["--order", "taken desc"], ["--where", "year = 2022"]])
@pytest.mark.parametrize("kind", ["terminal", "closed", "null", "lines", "empty"])
def test_stdin_is_read_only_if_it_is_piped_and_there_is_no_order(index, stdin_of, capfd, words, kind):
    stdin_of(kind)
    with pytest.raises(SystemExit) as exit_:
        app(["search", str(index), *words, "-k", "99", *CPU])
    out = capfd.readouterr().out
    assert exit_.value.code == 0
    if words[0] == "--order":
        assert names_of(out) == shown(NEWEST)
    elif kind in ("lines", "empty"):
        first, *names = out.rstrip("\n").split("\t")
        expected = ("red", set(shown(OF_2022))) if kind == "lines" else ("", set())
        assert (first, set(names)) == expected
    else:
        assert names_of(out) == shown(OF_2022)


@pytest.mark.parametrize("kind", ["terminal", "closed"])
def test_without_a_query_and_without_lines_the_user_is_told_what_to_give(index, stdin_of, capfd, kind):
    stdin_of(kind)
    with pytest.raises(SystemExit) as exit_:
        app(["search", str(index)])
    assert exit_.value.code == 2
    assert "give a text, --image, --where or --order, or one query per line" in capfd.readouterr().err


def test_a_list_counts_what_meets_the_condition_and_has_no_scores(index):
    result = run(index, "--order", "year", "--where", "year = 2022", "-k", 2)
    assert result.stdout.splitlines()[0].split() == ["#", "image"]
    assert f"2 of {len(OF_2022)} images in " in result.stderr
    document = json.loads(run(index, "--order", "taken desc", "-k", 3, "--json").stdout)
    assert (document["query"], document["total"]) == ({"order": "taken desc"}, len(FILES))
    assert [(hit["name"], hit["score"]) for hit in document["hits"]] == [(name, None) for name in NEWEST[:3]]
    assert document["hits"][0]["columns"]["taken"].startswith("2022-")


def test_a_list_needs_neither_a_model_nor_torch(index, tmp_path):
    script = """
import sys
from dcdctl.cli.app import app
try:
    app(["search", sys.argv[1], "--order", "year", "--paths"])
except SystemExit as end:
    print(end.code)
print(sorted({"torch", "transformers", "onnxruntime", "tokenizers", "pandas", "rich"} & set(sys.modules)))
"""
    copy = tmp_path / "index"
    shutil.copytree(index, copy)
    shutil.rmtree(copy / "model")
    assert run_script(script, copy, tmp_path).splitlines()[-2:] == ["0", "[]"]


@pytest.mark.parametrize("query", [["--order", "taken desc"], ["red"]])
def test_paths_are_absolute_and_raw_and_end_as_asked_for(index, photos, query):
    names = NEWEST[:5] if query[0] == "--order" else None
    for option, end in ((), b"\n"), (("-0",), b"\0"), (("--null",), b"\0"):
        result = run(index, *query, "-k", 5, "--paths", *option, *CPU)
        *paths, last = result.stdout_bytes.split(end)
        assert (result.exit_code, last, len(paths)) == (0, b"", 5)
        assert all(Path(os.fsdecode(path)).is_file() for path in paths)
        if names is not None:
            assert paths == [os.fsencode(photos / name) for name in names]
    document = json.loads(run(index, *query, "-k", 5, "--json", *CPU).stdout)
    assert [hit["path"] for hit in document["hits"]] == [os.fsdecode(path) for path in paths]


def test_a_terminal_gets_paths_that_cannot_control_it(index, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    with pytest.raises(SystemExit):
        app(["search", str(index), "--order", "taken", "-k", "99", "--paths"])
    assert "\x1b" not in capsys.readouterr().out


def test_a_line_break_in_a_path_needs_nul(noise_index, tmp_path):
    (tmp_path / "two\nlines").mkdir()
    shutil.copy(noise_index.parent / "images" / "plain.png", tmp_path / "two\nlines" / "a.png")
    build(noise_index.parent / "dual", tmp_path / "two\nlines", tmp_path / "index")
    refused = run(tmp_path / "index", "--order", "path", "--paths")
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert "has a line break, so lines cannot tell paths apart; add -0" in refused.stderr
    found = run(tmp_path / "index", "--order", "path", "--paths", "-0")
    assert found.stdout_bytes == os.fsencode(tmp_path / "two\nlines" / "a.png") + b"\0"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["red", "--order", "year"], "orders a list without a query"),
        (["--order", "year", "--hybrid"], "is for a query"),
        (["--order", "year", "--exact"], "is for a query"),
        (["--order", "year", "--rerank", "x"], "is for a query"),
        (["--order", "year", "--paths", "--json"], "cannot be combined with --json"),
        (["--order", "year", "--null"], "add --paths"),
        (["--paths"], "prints the answer to one query"),
    ],
)
def test_options_without_effect_exit_with_2(index, words, message):
    result = run(index, *words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in " ".join(result.stderr.split())


def test_an_unknown_column_is_one_line(index):
    result = run(index, "--order", "yaer")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("error: there is no column 'yaer' to order by: the columns are taken, year, ")


def test_images_of_a_corpus_have_no_path(dual_run, scenes_corpus_dir, tmp_path):
    build(dual_run, scenes_corpus_dir, tmp_path / "index", split="val")
    result = run(tmp_path / "index", "--order", "image_id", "--paths")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "are in a corpus, and have no file of their own" in result.stderr
    document = json.loads(run(tmp_path / "index", "--order", "image_id", "--json").stdout)
    assert {hit["path"] for hit in document["hits"]} == {None}


def test_a_page_of_a_list_has_no_scores(index, tmp_path):
    page = tmp_path / "list.html"
    result = run(index, "--order", "year", "--where", "year = 2022", "-k", 3, "--html", page)
    assert result.exit_code == 0, result.stderr
    html = page.read_text(encoding="utf-8")
    assert "<h1>Images where year = 2022, by year</h1>" in html
    assert "cosine" not in html
    assert f"3 of {len(OF_2022)} images" in html
