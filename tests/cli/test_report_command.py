"""`dcdctl report` on the command line."""

from __future__ import annotations

import pytest
from command_line import error_of, run
from made_runs import write_demo, write_run

from dcdctl.core.data import Corpus


@pytest.fixture(scope="module")
def folders(scenes_corpus_dir, tmp_path_factory):
    return write_demo(tmp_path_factory.mktemp("command") / "demo", Corpus.open(scenes_corpus_dir, "test"))


def test_a_page_a_markdown_file_and_a_table_are_written_and_the_page_is_named(folders, tmp_path):
    teacher, dual, fusion, alone = folders
    page, markdown, table = (tmp_path / f"r.{ending}" for ending in ("html", "md", "csv"))
    files = f"--out {page} --to-markdown {markdown} --csv {table}"
    result = run(f"report {dual} {fusion} --teacher-eval {teacher} --baseline {alone} {files}")
    first, *_, last = result.stdout.splitlines()
    assert first.startswith("Better: dual against dual-alone, RSUM +")
    assert last == f"report -> {page}"
    assert page.read_text().count('<li class="query"') == 76
    assert markdown.read_text().startswith("# Report\n")
    assert len(table.read_text().splitlines()) == 6


def test_a_missing_part_is_reported_with_the_command_that_makes_it(tmp_path):
    folder = write_run(tmp_path / "run")
    said = run(f"report {folder} --out {tmp_path}/r.html").stderr
    assert "not evaluated (dcdctl eval): run\n" in said


def test_an_empty_folder_exits_with_1_and_writes_no_page(tmp_path):
    error = error_of(f"report {tmp_path}/absent --out {tmp_path}/r.html")
    assert "holds nothing to show" in error
    assert "dcdctl eval" in error
    assert not (tmp_path / "r.html").exists()


def test_a_run_is_required():
    run("report", code=2)
