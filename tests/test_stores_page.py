"""The page on stores: its commands, from a finished run to a search in PostgreSQL, run as they are written."""

from __future__ import annotations

import re
import shlex
import shutil
from urllib.parse import parse_qs, urlsplit

import postgres
import processes
from paths import DOCS
from typer.testing import CliRunner

from dcdctl.cli.app import app

PAGE = (DOCS / "stores.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^```\n(createdb .*?)^```", PAGE, re.MULTILINE | re.DOTALL)[0].splitlines()


def test_the_four_commands_of_the_page_search_in_postgresql(postgres_url, noise_index, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(noise_index.parent / "dual", "runs/student")
    shutil.copytree(noise_index.parent / "images", "photos")
    # The reader's server is found by libpq itself.
    monkeypatch.setenv("PGHOST", parse_qs(urlsplit(postgres_url).query)["host"][0])
    monkeypatch.setenv("PGUSER", "tester")
    createdb, *commands = map(shlex.split, COMMANDS)
    processes.run([postgres.find_binaries() / createdb[0], *createdb[1:]], check=True)
    assert len(commands) == 3
    for command in commands:
        assert command[0] == "dcdctl"
        result = CliRunner().invoke(app, command[1:], catch_exceptions=False)
        assert result.exit_code == 0, result.stderr
    assert "12 of 12 images" not in result.stderr
    assert "10 of 12 images" in result.stderr
