"""`dcdctl report` on the command line."""

from __future__ import annotations

import pytest
from made_runs import write_demo, write_run
from typer.testing import CliRunner

from dcdctl.cli.app import app
from dcdctl.core.data import Corpus


def run_cli(*words):
    return CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)


@pytest.fixture(scope="module")
def folders(scenes_corpus_dir, tmp_path_factory):
    return write_demo(tmp_path_factory.mktemp("command") / "demo", Corpus.open(scenes_corpus_dir, "test"))


def test_a_page_a_markdown_file_and_a_table_are_written_and_the_page_is_named(folders, tmp_path):
    teacher, dual, fusion, alone = folders
    files = {"--out": tmp_path / "r.html", "--to-markdown": tmp_path / "r.md", "--to-csv": tmp_path / "r.csv"}
    options = [word for option, path in files.items() for word in (option, path)]
    result = run_cli("report", dual, fusion, "--teacher-eval", teacher, "--baseline", alone, "--queries", 3, *options)
    assert result.exit_code == 0, result.stderr
    assert result.stdout == f"report -> {tmp_path / 'r.html'}\n"
    assert files["--out"].read_text().count('<li class="query"') == 6
    assert files["--to-markdown"].read_text().startswith("# Report\n")
    assert len(files["--to-csv"].read_text().splitlines()) == 6


def test_a_missing_part_is_reported_with_the_command_that_makes_it(tmp_path):
    run = write_run(tmp_path / "run")
    result = run_cli("report", run, "--out", tmp_path / "r.html")
    assert result.exit_code == 0
    assert f"left out: times of run: `dcdctl bench {run} --teacher REF --data DIR`\n" in result.stderr


def test_an_empty_folder_exits_with_1_and_writes_no_page(tmp_path):
    result = run_cli("report", tmp_path / "absent", "--out", tmp_path / "r.html")
    assert result.exit_code == 1
    assert "holds nothing to show" in result.stderr
    assert "dcdctl eval" in result.stderr
    assert not (tmp_path / "r.html").exists()


def test_a_run_is_required():
    assert run_cli("report").exit_code == 2
