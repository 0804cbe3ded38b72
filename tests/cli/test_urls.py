"""URLs on the command line: where they are read, messages show them as they were typed; elsewhere they are refused.

pathlib writes s3://bucket as s3:/bucket, a relative path, under which an output was once written.
"""

from __future__ import annotations

import re
from pathlib import Path

import fsspec
import pytest
import typer
from command_line import error_of, run

import dcdctl
from dcdctl.cli.app import app
from dcdctl.core.errors import InputError
from dcdctl.core.places import shown

TREE = typer.main.get_command(app)
LOCAL = [
    (command, parameter)
    for command, found in TREE.commands.items()
    for parameter in found.params
    if "Path" in str(parameter.type_descriptor.annotation) and not parameter.hidden
    if parameter.name != "data" and (command, parameter.name) != ("work", "out")
]
"""Each command with a parameter that is a path of this machine."""
REST = {
    "cache-teacher": "--teacher vilt --data d --recipe tiny-student --out o",
    "convert": "c --out o",
    "demo": "",
    "distill": "demo-dual --data d --out o",
    "eval": "m --data d",
    "export": "m --to onnx --out o",
    "finetune-teacher": "tiny-teacher --data d --out o",
    "change": "i",
    "index": "m --images i --out o",
    "sync": "i",
    "verify": "p",
    "photos": "p c --out o",
    "prepare": "scenes",
    "report": "r",
    "search": "i",
    "serve": "i",
    "study": "demo-dual --teacher t --data d --out o",
    "compare": "a b",
    "inspect": "d",
}
"""What else a command requires."""
ONE_SLASH = re.compile(r"\b(?:memory|hf|https|s3):/(?!/)")


@pytest.mark.parametrize(("command", "parameter"), LOCAL, ids=[f"{command} {one.name}" for command, one in LOCAL])
def test_a_path_of_this_machine_cannot_be_a_url(command, parameter, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    url, rest = "s3://me:secret@bucket/x?key=1", REST.get(command, "")
    if parameter.param_type_name == "option":
        values = " ".join([url, *["elsewhere"] * (parameter.nargs - 1)])
        line = re.sub(rf"{parameter.opts[0]} \S+", "", rest) + f" {parameter.opts[0]} {values}"
    else:
        line = re.sub(r"^\S*", url, rest)
    error = error_of(f"{command} {line}")
    assert error.startswith("error: s3://bucket/x is a URL, ")
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_file_url_is_no_path_to_write_to(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert error_of("prepare scenes --out file:///data/scenes").startswith("error: file:///data/scenes is a URL, ")
    assert not list(tmp_path.iterdir())


def test_python_refuses_to_write_to_a_url(tmp_path, monkeypatch, scenes_corpus_dir):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        InputError, match=r"^hf://datasets/me/birds is a URL, which dcdctl does not write to; name a place"
    ):
        dcdctl.distill("demo-dual-alone", scenes_corpus_dir, Path("hf://datasets/me/birds"), device="cpu")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def remote(scenes_corpus_dir):
    system = fsspec.filesystem("memory")
    for path in scenes_corpus_dir.iterdir():
        if path.is_file():
            system.pipe(f"/scenes/{path.name}", path.read_bytes())
    yield "memory://scenes"
    system.rm("/scenes", recursive=True)


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        ("inspect memory://scenes", 0, "scenes, memory://scenes\n"),
        ("inspect memory://scenes --data x", 2, "memory://scenes is a corpus"),
        ("inspect memory://absent", 1, "memory://absent/corpus.json does not exist"),
        ("eval DUAL --data memory://scenes --split absent", 1, "memory://scenes has no split 'absent'"),
        ("eval DUAL --data memory://scenes --split test --protocol coco-5k", 1, "memory://scenes"),
        ("compare memory://a DUAL", 1, "there is no finished evaluation in memory://a"),
        (
            "sync memory://a --add photos",
            1,
            "memory://a is a URL, and the index to change is a folder of this machine",
        ),
        (
            "finetune-teacher tiny-teacher --data memory://scenes --out run --device cpu --set batch.size=4 "
            "--set optimizer.steps=1 --set batch.random_negatives=2 --set model.hidden_size=32 "
            "--set model.num_layers=1 --set model.vocab_size=200",
            0,
            "--data memory://scenes --recipe RECIPE",
        ),
    ],
)
def test_messages_and_pages_show_a_url_as_it_was_typed(line, code, said, remote, dual_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(line.replace("DUAL", str(dual_run)), code=code)
    assert said in result.output.replace("\n│", "")
    written = "".join(path.read_text(errors="replace") for path in tmp_path.rglob("*.html"))
    assert not ONE_SLASH.search(result.output + written)


@pytest.mark.parametrize(
    "line",
    [
        "inspect URL",
        "distill demo-dual-alone --data URL --out run",
        "prepare --csv URL --images URL --out made",
        "index DUAL --images URL --out made",
    ],
)
@pytest.mark.parametrize("link", ["zip://c::https", "simplecache::zip://c::ftp"])
def test_a_password_in_a_later_link_of_a_chain_is_refused_and_not_shown(line, link, dual_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    url = f"{link}://me:secret@127.0.0.1:1/a.zip"
    result = run(line.replace("DUAL", str(dual_run)).replace("URL", url), code=1)
    written = "".join(path.read_text(errors="replace") for path in tmp_path.rglob("*") if path.is_file())
    assert "secret" not in result.output + written
    assert f"{link}://127.0.0.1:1/a.zip" in result.output
    assert len(result.output.splitlines()) == 1


@pytest.mark.parametrize(
    "place",
    [
        *("hf://datasets/me/birds@main", "https://host/a.tar", "s3://bucket/a b"),
        *("zip://c::https://host/a.zip", "zip://c::file:///photos/a.zip"),
    ],
)
def test_a_url_survives_pathlib(place):
    assert shown(Path(place)) == place
