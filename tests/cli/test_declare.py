"""One declaration, two faces: words of a command line become values by the type of a field, and Python has the same
fields as keywords."""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated, Literal

import pytest
import typer
from typer.testing import CliRunner

from dcdctl.api.arguments import takes
from dcdctl.cli.declare import as_typer
from dcdctl.core import arguments
from dcdctl.core.arguments import Ref, Refs, Settings, argument, computes, configures, reads
from dcdctl.core.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Base:
    """What others inherit."""

    device: Annotated[str, computes("--device", "Where.", "NAME")] = "cpu"
    progress: bool = False


@dataclass(frozen=True)
class Job(Base):
    """A field of each type."""

    model: Annotated[Ref, argument("The model.", "MODEL", "model")]
    _: KW_ONLY
    out: Annotated[Ref | None, configures("--out -o", "A folder.", "DIR")] = None
    data: Annotated[Ref | None, reads("--data", "A folder or a URL.", "DIR", "place")] = None
    images: Annotated[Refs | None, reads("--images", "Folders.", "DIR")] = None
    sets: Annotated[list[str] | None, configures("--set", "A field.", "KEY=VALUE", is_keyword=False)] = None
    settings: Annotated[Settings | None, configures("--model-set", "A setting.", "NAME=VALUE")] = None
    seeds: Annotated[Sequence[int], configures("--seeds", "Seeds.", "N,...")] = (0, 1)
    splits: Annotated[Sequence[str], reads("--splits", "Splits.", "NAMES")] = ()
    parts: Annotated[int | Literal["auto"], computes("--parts", "Parts.", "N")] = "auto"
    form: Annotated[Literal["a", "b"], configures("--form", "Its form.", "FORM")] = "a"
    depth: Annotated[int | None, configures("--depth", "Its depth.", "N", min=1)] = None


def typed(line: str) -> Job:
    """The job of a command line."""
    found: list[Job] = []

    def command(job: Job) -> None:
        found.append(job)

    app = typer.Typer()
    app.command()(as_typer(command))
    result = CliRunner().invoke(app, shlex.split(line), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return found[0]


@pytest.mark.parametrize(
    ("line", "field", "value"),
    [
        ("runs/./a", "model", "runs/./a"),
        ("m -o a//b", "out", Path("a/b")),
        ("m", "out", None),
        ("m --data s3://bucket//x", "data", "s3://bucket//x"),
        ("m --images a --images b", "images", [Path("a"), Path("b")]),
        ("m --set seed=1", "sets", ["seed=1"]),
        ("m --model-set a=1 --model-set b=2", "settings", ["a=1", "b=2"]),
        ("m", "seeds", (0, 1)),
        ("m --seeds 3,5", "seeds", (3, 5)),
        ("m --splits 'train, val'", "splits", ("train", "val")),
        ("m", "splits", ()),
        ("m", "parts", "auto"),
        ("m --parts 4", "parts", 4),
        ("m --form c", "form", "c"),  # the core refuses it
        ("m --depth 7", "depth", 7),
        ("m --device cuda", "device", "cuda"),
    ],
)
def test_words_become_a_value_by_the_type_of_the_field(line, field, value):
    found = getattr(typed(line), field)
    assert (found, type(found)) == (value, type(value))


def test_a_url_is_refused_where_a_path_of_this_machine_is_expected():
    with pytest.raises(InputError, match=r"^s3://bucket/x is a URL, and --out takes a path of this machine"):
        typed("m --out s3://bucket/x")


def test_python_has_the_fields_as_keywords_and_no_option_alone():
    @takes(Job)
    def function(job: Job) -> Job:
        return job

    signature = inspect.signature(function)
    fields = set(inspect.signature(Job).parameters)
    assert fields - set(signature.parameters) == {"sets"}
    assert signature.parameters["parts"].annotation == int | Literal["auto"]
    assert function("m", out="a", progress=True) == Job("m", out="a", progress=True)
    with pytest.raises(TypeError, match=r"function\(\) has no argument sets; did you mean "):
        function("m", sets=["seed=1"])


def test_own_fields_come_before_inherited_ones_and_options_alone_come_last():
    assert list(arguments.declared(Job))[-3:] == ["device", "progress", "sets"]


def test_an_empty_path_is_an_error_and_a_tilde_is_the_folder_of_the_user(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert arguments.path("~/a") == tmp_path / "a"
    with pytest.raises(InputError, match=r"^a path is empty; name a file or a folder"):
        arguments.path("")
