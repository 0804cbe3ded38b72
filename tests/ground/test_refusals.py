"""What the ground refuses: settings, files and folders, artifacts, devices and missing packages."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Literal

import pytest
import refusals
from nested_configs import Outer
from refusals import Refusal

from dcdctl.core import artifacts, config, devices, files, machine
from dcdctl.core.artifacts import Build, Kind
from dcdctl.core.config import ASCENDING, DISTINCT, NOT_EMPTY, Count, Positive, Share, between, settle_fields
from dcdctl.core.errors import ConfigError, InputError, MissingError, StaleError, require_extra
from dcdctl.core.toml import apply_sets, read_toml


@dataclass(frozen=True, kw_only=True)
class Ranged:
    rate: Positive = 0.1
    share: Share = 1.0
    dropout: Annotated[float, between(0, 1, "[)")] = 0.0
    most: Count | None = None
    steps: Annotated[tuple[Count, ...], ASCENDING] = ()
    betas: tuple[Share, Share] = (0.9, 0.98)
    sides: Annotated[tuple[Literal["text", "image"], ...], NOT_EMPTY, DISTINCT] = ("text",)
    weights: Mapping[str, Positive] = field(default_factory=dict)
    kind: Literal["a", "b"] = "a"
    cut: Share | Literal["auto", "none"] = "auto"

    def __post_init__(self) -> None:
        settle_fields(self, "ranged")


@dataclass(frozen=True, kw_only=True)
class WithRanged:
    ranged: Ranged = field(default_factory=Ranged)


TABLES = [
    (
        {"name": "x", "inner": {"rat": 1}},
        r"unknown key inner\.rat; did you mean inner\.rate\? known keys here: rate",
    ),
    ({}, "name is missing"),
    ({"name": 3}, "name must be str, got 3"),
    ({"name": "x", "inner": {"rate": "fast"}}, r"inner\.rate must be float, got 'fast'"),
    ({"name": "x", "inner": {"rate": True}}, r"inner\.rate must be float, got True"),
    ({"name": "x", "inner": {"kind": "c"}}, r"inner\.kind must be one of a, b, got 'c'"),
    ({"name": "x", "inner": {"sizes": 3}}, r"inner\.sizes must be a list, got 3"),
    ({"name": "x", "inner": {"sizes": [1, "two"]}}, r"inner\.sizes\[1\] must be int, got 'two'"),
    ({"name": "x", "inner": {"most": 1.5}}, r"inner\.most must be int, got 1\.5"),
    ({"name": "x", "inner": {"is_on": 1}}, r"inner\.is_on must be bool, got 1"),
    ({"name": "x", "inner": 3}, "inner must be a table, got 3"),
    ({"name": "x", "weights": {"kl": "much"}}, r"weights\.kl must be float"),
    ({"name": "x", "weights": "kl"}, r"weights must be a table, got 'kl'"),
]
RANGES = [
    ({"rate": 0.0}, r"ranged\.rate must lie in \(0, 1000000000\], got 0\.0"),
    ({"share": 2.0}, r"ranged\.share must lie in \[0, 1\], got 2\.0"),
    ({"share": 10**400}, r"ranged\.share must (lie in|be at most) .*, got"),
    ({"dropout": 1.0}, r"ranged\.dropout must lie in \[0, 1\), got 1\.0"),
    ({"most": 0}, r"ranged\.most must lie in \[1, 1000000000\], got 0"),
    ({"steps": (0,)}, r"ranged\.steps\[0\] must lie in \[1, .*, got 0"),
    ({"steps": (4, 2)}, r"ranged\.steps must ascend, got \[4, 2\]"),
    ({"betas": (0.9, 1.5)}, r"ranged\.betas\[1\] must lie in \[0, 1\], got 1\.5"),
    ({"betas": (0.9,)}, r"ranged\.betas must have 2 items, got \[0\.9\]"),
    ({"sides": ()}, r"ranged\.sides must not be empty, got \[\]"),
    ({"sides": ("text", "text")}, r"ranged\.sides must not repeat an item, got \['text', 'text'\]"),
    ({"sides": ("left",)}, r"ranged\.sides\[0\] must be one of text, image, got 'left'"),
    ({"weights": {"kl": -1.0}}, r"ranged\.weights\.kl must lie in \(0, .*, got -1\.0"),
    ({"kind": "c"}, r"ranged\.kind must be one of a, b, got 'c'"),
    ({"cut": 2.0}, r"ranged\.cut must lie in \[0, 1\], got 2\.0; or auto, none$"),
    ({"cut": "half"}, r"ranged\.cut must .*'half'"),
]
TOY = Kind(
    name="toy", format=3, seal_file="toy.json", files=("part-*",), make="run `make toy`", make_again="run `make toy`"
)


@pytest.fixture
def place(tmp_path):
    """Files and folders that are not what a command expects."""
    for folder in ("folder", "tables", "tables/in", "empty"):
        (tmp_path / folder).mkdir()
    for name, text in (
        ("file", "dear"),
        ("toml", "a = 1\nb = = 2\n"),
        ("tables/in/a.csv", ""),
        ("tables/note.txt", ""),
    ):
        (tmp_path / name).write_text(text)
    (tmp_path / "empty" / "note.txt").touch()
    os.mkfifo(tmp_path / "pipe")
    return tmp_path


def of_path(read, name: str):
    return lambda place: read(place / name)


def find_tables(path: Path) -> None:
    files.find_named([str(path)], [".csv", ".jsonl"], what="table", option="--rows")


NAMED = [
    ("absent.csv", r"absent\.csv does not exist; --rows takes a file, a folder or a pattern in quotes"),
    ("*.parquet", r"\*\.parquet does not exist; --rows takes"),
    ("tables/note.txt", r"note\.txt is no table by its name; a table ends with \.csv, \.jsonl"),
    ("tables/*", r" is no table by its (name|kind); a table ends"),
    ("tables/i?", r"in is no table by its kind; a table ends"),
    ("empty", r"empty holds no table; a table ends with \.csv, \.jsonl"),
]
OUTPUTS = [
    (files.check_output_folder, "file", "file is a file, a folder is expected; name another folder"),
    (files.check_output_folder, "file/new/out", "new/out cannot be written to: .*/file is a file; name another folder"),
    (files.check_output_file, "folder", "folder is a folder, a file is expected; name a file"),
    (files.check_output_file, "file/page.html", "file cannot be written to: .*/file is a file; name another folder"),
]


def without_rights(check, *, is_read_only: bool):
    """Check an output below a folder that nothing can be written to."""

    def do(tmp_path, monkeypatch):
        monkeypatch.setattr(os, "access", lambda path, mode, **_: mode == os.F_OK and path == tmp_path)
        monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_flag=os.ST_RDONLY * is_read_only))
        check(tmp_path / "new" / "out")

    return do


DOCUMENTS = [
    (None, r"plan\.json cannot be read: No such file or directory"),
    (b'{"a": ', r"plan\.json is not JSON: Expecting value: line 1 column 7"),
    (b'{"a": "\xff"}', r"plan\.json is not JSON: 'utf-8' codec can't decode"),
    (b"[" * 100_000, r"plan\.json is not JSON"),
    (b"[1]", r"plan\.json holds no JSON object"),
]
UNSEALED = [
    (b'{"seed": 3}', "has no checksum, so an earlier version of dcdctl or another program wrote it; build it again"),
    (b'{"name": "\\ud800", "checksum": ""}', "(is damaged|has no checksum).*; build it again"),
    (b'{"a":' * 900 + b"1" + b"}" * 900, "(is not JSON|is damaged|has no checksum).*; build it again"),
]
SEALS = [
    ('{"format": 2}', r"toy\.json is of format 2, this dcdctl reads format 3; delete the folder and run `make toy`"),
    ("{", r"toy\.json is not JSON"),
]
LISTS = [
    (None, "does not list the size"),
    ([], "does not list the size"),
    ({"a": 3}, "does not list the size"),
    ({"a": {"bytes": 3}}, "does not list the size"),
    ({"/dev/zero": {"bytes": 0, "sha256": ""}}, "lists a file outside of its folder: /dev/zero"),
    ({"../a": {"bytes": 0, "sha256": ""}}, r"lists a file outside of its folder: \.\./a"),
]


def of_document(read, content: bytes | None):
    """Read a document of these bytes."""

    def do(tmp_path):
        if content is not None:
            (tmp_path / "plan.json").write_bytes(content)
        read(tmp_path / "plan.json", error=StaleError, hint="build it again")

    return do


def of_seal(text: str):
    """Read the seal of a build that was begun."""

    def do(tmp_path):
        Build(tmp_path / "toy", {"format": 3}, TOY).begin()
        if text:
            (tmp_path / "toy" / "toy.json").write_text(text)
        TOY.read_seal(tmp_path / "toy")

    return do


def of_a_small_machine(monkeypatch):
    monkeypatch.setattr(machine, "memory_bytes", lambda: 3 * 10**9)
    machine.require_memory(3 * 10**9, "the weights", "take fewer")
    machine.require_memory(4 * 10**9, "the weights", "take fewer")


def without_packages(monkeypatch):
    monkeypatch.setitem(sys.modules, "blocked", None)
    require_extra("index", "blocked", "no_such", needed_by="codes", or_else="--set flat_up_to=9")


ROWS = [
    *(Refusal(f"table {table}", partial(config.build, Outer, table), ConfigError, says) for table, says in TABLES),
    *(
        Refusal(f"{way} {wrong}", partial(make, wrong), ConfigError, says)
        for wrong, says in RANGES
        for way, make in (
            ("constructor", lambda wrong: Ranged(**wrong)),
            ("table", lambda wrong: config.build(WithRanged, {"ranged": wrong})),
        )
    ),
    *(
        Refusal(f"setting {line}", partial(apply_sets, {"inner": {"rate": 0.1}}, [line]), ConfigError, says)
        for line, says in (
            ("rate", "^a setting must be KEY=VALUE, got 'rate'; write its name, an equals sign and its value$"),
            ("=3", "got '=3'"),
            ("inner.rate.x=1", "^inner.rate.x: rate is a value, not a table; set rate itself$"),
        )
    ),
    Refusal("TOML", of_path(read_toml, "toml"), ConfigError, "toml is not valid TOML: .*line 2"),
    Refusal(
        "document",
        lambda: config.build_document(Outer, {"name": 1}, "a.json", error=StaleError, hint="make it again"),
        StaleError,
        r"^a\.json is not as this dcdctl writes it: name must be str, got 1; make it again$",
    ),
    *(Refusal(f"named {name}", of_path(find_tables, name), InputError, says) for name, says in NAMED),
    *(Refusal(f"{check.__name__} {name}", of_path(check, name), InputError, says) for check, name, says in OUTPUTS),
    *(
        Refusal(
            f"{check.__name__} pipe",
            of_path(check, "pipe"),
            InputError,
            "pipe is a device or a pipe, a file is expected; name another",
        )
        for check in (files.check_output_folder, files.check_output_file)
    ),
    *(
        Refusal(
            f"{check.__name__} {why}", without_rights(check, is_read_only=is_read_only), InputError, f": {why}; {do}"
        )
        for check in (files.check_output_folder, files.check_output_file)
        for is_read_only, why, do in (
            (False, "permission denied", "change its permissions"),
            (True, "read-only file system", "name another"),
        )
    ),
    *(
        Refusal(f"JSON {str(content)[:20]}", of_document(files.read_json, content), StaleError, f"{says}.*; build it")
        for content, says in DOCUMENTS
    ),
    *(
        Refusal(f"unsealed {content[:20]!r}", of_document(artifacts.read_document, content), StaleError, says)
        for content, says in UNSEALED
    ),
    Refusal("no seal", lambda tmp_path: TOY.read_seal(tmp_path), MissingError, r"no toy in .*\(no toy\.json\); run `m"),
    Refusal("begun", of_seal(""), MissingError, "the toy in .*toy is not finished; run `make toy`: it resumes"),
    *(Refusal(f"seal {text}", of_seal(text), StaleError, says) for text, says in SEALS),
    *(
        Refusal(
            f"list {listed}",
            lambda tmp_path, listed=listed: artifacts.listed_files(
                tmp_path / "seal.json", {"files": listed}, hint="make it again"
            ),
            StaleError,
            rf"seal\.json {says}.*; make it again$",
        )
        for listed, says in LISTS
    ),
    Refusal("gpu", partial(devices.choose, "gpu"), ConfigError, "gpu is unknown, expected auto, .*; try --device cpu"),
    Refusal("GPU 99", partial(devices.choose, "cuda:99"), ConfigError, "cuda:99 cannot be used here: .*--device auto"),
    Refusal("memory", of_a_small_machine, ConfigError, "take at least 4.00 GB, .* are 3.00 GB of memory; take fewer"),
    Refusal(
        "package",
        lambda: require_extra("watch", "json", "no_such_package", needed_by="--watch"),
        MissingError,
        "^--watch needs no-such-package, which is not installed; pip install 'watchfiles[^' ]*'$",
    ),
    Refusal(
        "packages",
        without_packages,
        MissingError,
        "needs blocked, no-such, which are not installed; pip install 'faiss-cpu.*', or --set flat_up_to=9$",
    ),
]


@pytest.mark.parametrize("refusal", ROWS, ids=lambda row: row.what)
def test_a_refusal_names_what_is_wrong_and_what_would_be_right(refusal, request):
    refusals.check(refusal, request)
