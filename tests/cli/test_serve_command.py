"""`dcdctl serve`: start and end; and the commands of docs/deploy.md, unchanged."""

from __future__ import annotations

import io
import os
import re
import shlex
import shutil
import signal
import socket
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest
import served
from command_line import error_of, run
from forks import run_forked
from paths import ROOT
from PIL import Image
from processes import TIMEOUT_S
from tiny import run_script

from dcdctl.core.errors import install_command

PAGE = ROOT / "docs" / "deploy.md"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> served.Made:
    return served.make(tmp_path_factory.mktemp("command") / "all")


def error_of_serve(words: str) -> str:
    """The line with which `serve` refuses."""
    error = error_of(f"serve {words} --device cpu")
    assert error.count("\n") == 1
    return error


def test_a_missing_index_names_the_command_that_makes_one(tmp_path):
    assert "dcdctl index" in error_of_serve(f"{tmp_path}/absent --port 0")


def test_a_wrong_index_is_an_error_before_torch_is_imported(tmp_path):
    script = """
import sys
from typer.testing import CliRunner
from dcdctl.cli.app import app
result = CliRunner().invoke(app, ["serve", sys.argv[1], "--port", "0"])
print(result.exit_code, sorted({"torch", "transformers", "fastapi"} & set(sys.modules)))
"""
    assert run_script(script, tmp_path / "absent") == "1 []\n"


def test_a_depth_without_a_reranker_is_a_usage_error(made):
    assert "add --rerank REF" in error_of(f"serve {made.index} --depth 5", code=2)


def test_a_half_built_index_is_not_served(made, tmp_path):
    half = tmp_path / "half"
    shutil.copytree(made.index, half)
    (half / "index.json").unlink()
    assert "dcdctl index" in error_of_serve(f"{half} --port 0")


def test_an_index_without_its_model_is_not_served(made, tmp_path):
    half = tmp_path / "half"
    shutil.copytree(made.index, half)
    shutil.rmtree(half / "model")
    assert "model" in error_of_serve(f"{half} --port 0")


def test_a_taken_port_is_an_error_before_anything_is_loaded(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        message = error_of_serve(f"{tmp_path}/absent --port {port}")
    assert message.startswith(
        f"error: cannot listen on 127.0.0.1, port {port} (Address already in use); --host must be"
    )


def test_a_weak_key_is_an_error_before_anything_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setenv("DCDCTL_API_KEY", "short")
    error = error_of_serve(f"{tmp_path}/absent --port 0")
    assert "key 1 of DCDCTL_API_KEY has 5 characters, at least 16 are required" in error


def test_an_unknown_host_is_an_error(tmp_path):
    assert "cannot listen on no such host, port 8000 (Name or service not known)" in error_of_serve(
        f"{tmp_path} --host 'no such host'"
    )
    assert "cannot listen on 192.0.2.1, port 0" in error_of_serve(f"{tmp_path} --host 192.0.2.1 --port 0")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "--set max_kk=5",
            "unknown key max_kk; did you mean max_k? known keys here: host, port",
        ),
        ("--set max_k=0", "max_k must lie in [1, 1000000000], got 0"),
        ("--set max_k=many", "max_k must be int"),
        ("--allow-host a.org:80", "a name without a port"),
    ],
)
def test_a_wrong_limit_is_an_error(tmp_path, words, message):
    assert message in error_of_serve(f"{tmp_path} {words}")


def test_a_package_that_is_missing_is_named_with_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "python_multipart", None)
    assert f"serving needs python-multipart, which is not installed; {install_command('serve')}" in error_of_serve(
        str(tmp_path)
    )


def first_commands() -> list[str]:
    """The first block of the page."""
    block = re.search(r"^```\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return block[1].splitlines()


def resident_bytes(url: str) -> float:
    """The resident memory of the service; 0 where its metrics do not have it (macOS)."""
    lines = httpx2.get(f"{url}metrics", timeout=TIMEOUT_S, verify=False).text.splitlines()
    return next((float(line.split()[1]) for line in lines if line.startswith("process_resident_memory_bytes ")), 0.0)


def assert_memory_of_uploads_is_returned(url: str) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (4000, 4000)).save(stream, "PNG", compress_level=1)
    # The first image loads torch and the model.
    assert httpx2.get(f"{url}search", params={"row": 0}, timeout=TIMEOUT_S, verify=False).status_code == 200
    decoded_bytes, before = 4 * 4000 * 4000, resident_bytes(url)
    for _ in range(2):
        assert (
            httpx2.post(f"{url}search", files={"image": ("a.png", stream.getvalue())}, timeout=TIMEOUT_S).status_code
            == 200
        )
    assert resident_bytes(url) - before < decoded_bytes / 3


RUN = """
import os, sys, warnings
from dcdctl.cli.app import main
pipe = sys.argv.pop(1)
os.chdir(os.path.dirname(pipe))
os.dup2(os.open(pipe, os.O_WRONLY), 1)
print(os.getpid(), flush=True)
warnings.simplefilter("error")
try:
    main()
except SystemExit as end:
    assert not end.code
"""
"""The console script, with its process id before what it prints."""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the service is a fork of the tests")
def test_the_commands_of_the_page_lead_from_a_run_to_a_page(made, tmp_path, monkeypatch):
    install, index, search, serve_it = first_commands()
    extras = re.fullmatch(r"pip install '\.\[(.*)\]'", install)[1].split(",")
    assert set(extras) <= set(
        tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    )

    monkeypatch.chdir(tmp_path)
    Path("RUN").symlink_to(made.run)
    Path("photos").symlink_to(made.photos)
    for command in (f"{index} --workers 0", search):
        result = run(command.removeprefix("dcdctl "))
    assert any(name in result.stdout for name in served.NAMES)

    os.mkfifo(pipe := tmp_path / "stdout")
    with ThreadPoolExecutor(1) as pool:
        service = pool.submit(run_forked, RUN, pipe, *shlex.split(serve_it)[1:], "--port", 0)
        with pipe.open() as stdout:
            process_id, message = int(stdout.readline()), stdout.readline()
            try:
                assert message.startswith(f"{len(served.NAMES)} images at http://127.0.0.1:")
                url = message.split()[-1]
                assert "<form" in httpx2.get(url, timeout=TIMEOUT_S, verify=False).text
                found = httpx2.get(
                    f"{url}search", params={"text": "a red bus", "k": 3}, timeout=TIMEOUT_S, verify=False
                ).json()["results"]
                assert len(found) == 3
                assert (
                    httpx2.get(f"{url}image/{found[0]['row']}", timeout=TIMEOUT_S, verify=False).headers["content-type"]
                    == "image/jpeg"
                )
                assert_memory_of_uploads_is_returned(url)
            finally:
                os.kill(process_id, signal.SIGTERM)
            rest = stdout.read()
    assert (rest, service.result()) == ("", ("", "Ctrl-C stops it\n"))


def in_table(default: object) -> str:
    if isinstance(default, bool):
        return str(default).lower()
    return default if isinstance(default, str) else f"{default:,}" if isinstance(default, int) else f"{default:g}"


def test_every_limit_is_in_the_table_of_the_page():
    from dataclasses import fields

    from dcdctl.core.serve import ServiceConfig

    page = PAGE.read_text(encoding="utf-8")
    for field in fields(ServiceConfig):
        if field.name not in ("host", "port", "allowed_hosts"):
            default = in_table(field.default)
            assert re.search(rf"^\| `{field.name}` \| {default} \|", page, re.MULTILINE), field.name
