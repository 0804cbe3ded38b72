"""What the docs name in backticks and in examples is there: commands, their options, files, and fields of recipes."""

from __future__ import annotations

import dataclasses
import re
import tomllib
import typing
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, NamedTuple

import processes
from paths import ROOT
from typed_commands import PAGES, command_tree

from dcdctl.core.bench import BenchConfig
from dcdctl.core.search import IndexConfig
from dcdctl.core.serve import ServiceConfig
from dcdctl.core.training.recipe import Recipe

DOCUMENTS = [*PAGES, ROOT / "CHANGELOG.md"]
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")
OTHERS = {"accelerate", "apt", "curl", "docker", "hf", "make", "mypy", "pip", "ray", "torchrun"}
"""Programs whose options are their own, up to the `dcdctl` that they start."""
WRITTEN = {
    "html": "report demo/report",
    "json": "bench cache cascade checkpoint config config_sentence_transformers corpus dcdctl features gpu "
    "index library metrics modules open_clip_config plan pool prepare result run study text texts tokenizer wandb "
    "text/text INDEX/skipped-N RUN/mined /openapi",
    "jsonl": "metrics shards RUN/shards",
    "md": "gpu",
    "npy": "text/probes",
    "onnx": "image model text text/model text-N/model",
    "parquet": "cascade-ranks cascade-top pool-agreement ranks top",
    "safetensors": "RUN/mined",
}
"""Files that commands write or answer with, and those of a model's folder."""
EXAMPLES = {
    "ckpt": "",
    "csv": "captions doubted",
    "jpg": "hubble_deep_field rocket",
    "png": "astronaut brick camera chelsea clock_motion coffee grass gravel",
    "toml": "clip",
    "txt": "queries",
}
"""Files that a reader has or makes, and those of the photos in README."""
NOT_HERE = {
    f"{name}.{ending}" for files in (WRITTEN, EXAMPLES) for ending, names in files.items() for name in names.split(" ")
}
FOLDERS = ("benchmarks/", "data_manifests/", "dcdctl/", "docs/", "examples/", "tests/")
ENDINGS = (
    "ckpt|csv|css|html|ipynb|jpg|js|json|jsonl|md|npy|onnx|parquet|png|pt|py|pyi|safetensors|svg|toml|txt|yaml|zip"
)
A_FILE = re.compile(rf"[\w.*/-]*[\w*]\.(?:{ENDINGS})|\.ckpt")
TABLE = re.compile(r"\[\[?([a-z_]+)[^\]]*\]\]?")
OTHER_TABLES = {"expected", "facts", "files", "sources"}
"""Tables of manifests and of claims.toml."""
SETTINGS = {"index": IndexConfig, "change": IndexConfig, "bench": BenchConfig, "serve": ServiceConfig}
"""What --set changes in a command; in a training, a cache and a study it is the recipe."""


class Span(NamedTuple):
    """Code on a page: what is between backticks, or a line of an example."""

    page: Path
    number: int
    line: str
    """The whole line of the page."""
    code: str
    is_example: bool

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.number}: {self.code}"


def spans(page: Path) -> Iterator[Span]:
    """All code of a page. A line of an example that ends with a backslash is joined with the next."""
    is_fenced, start = False, ""
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if line.lstrip().startswith("```"):
            is_fenced = not is_fenced
        elif not is_fenced and not line.startswith("    "):
            yield from (Span(page, number, line, code, False) for code in re.findall(r"`([^`]+)`", line))
        elif line.endswith("\\"):
            start += line[:-1]
        elif whole := (start + line).strip().removeprefix("$ "):
            yield Span(page, number, whole, whole, True)
            start = ""


@cache
def all_spans() -> list[Span]:
    return [span for page in DOCUMENTS for span in spans(page)]


@cache
def options_of_commands() -> dict[str, set[str]]:
    """The options of each command, with those that all have."""
    tree = command_tree()
    shared = {"--help", "--version", "--install-completion", "--show-completion"}
    return {
        name: shared.union(*(option.opts + option.secondary_opts for option in command.params))
        for name, command in tree.commands.items()
    }


@cache
def options_of_script(script: str) -> set[str]:
    """The options that a script of benchmarks/, or a script that it imports, reads."""
    path = ROOT / script
    if not path.exists():
        return set()
    names = re.findall(r"^\s*(?:from|import) (\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    files = [path, *(other for name in names if (other := path.with_name(f"{name}.py")).exists())]
    return {option for file in files for option in re.findall(r'"(--[a-z0-9-]+)"', file.read_text(encoding="utf-8"))}


def command_of(code: str) -> tuple[str, str]:
    """The last dcdctl command in code and the code behind it; without a command, "" and all of the code."""
    *_, found = [None, *re.finditer(r"(?:^|[ /])dcdctl ([a-z][a-z-]*)(.*)", re.split(r"\s#", code)[0])]
    return (found[1], found[2]) if found else ("", code)


def unknown_commands(span: Span) -> list[str]:
    command, _ = command_of(span.code)
    is_prose = span.is_example and not span.code.startswith("dcdctl ")
    return [command] if command and command not in options_of_commands() and not is_prose else []


def unknown_options(span: Span) -> list[str]:
    """The options of code that its command or script lacks; without one, those that no command on its line has, or else
    no command at all."""
    commands = options_of_commands()
    command, rest = command_of(span.code)
    first = span.code.split()[0]
    on_line = [name for name in commands if re.search(rf"`(?:dcdctl )?{name}\b", span.line)]
    if script := re.search(r"\bbenchmarks/\w+\.py", span.code):
        known = options_of_script(script[0])
    elif command in commands and not span.code.startswith("error: "):
        known = commands[command]
    elif first in commands:
        known = commands[first]
    elif first in OTHERS or first.startswith("#"):
        return []
    else:
        known = set().union(*(commands[name] for name in ([] if span.is_example else on_line) or commands))
    return [option for option in OPTION.findall(rest) if option not in known]


@cache
def tracked_files() -> list[str]:
    found = processes.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    return found.stdout.splitlines()


@cache
def is_there(name: str) -> bool:
    """Whether the repository has such a file or folder, or one that ends so; FAMILY and NAME stand for any."""
    pattern = re.sub(r"[A-Z]{4,}", "*", name.rstrip("/"))
    ways = (pattern, f"*/{pattern}", f"{pattern}/*", f"*/{pattern}/*")
    return any(fnmatch(path, way) for path in tracked_files() for way in ways)


def named_files(span: Span) -> list[str]:
    """The paths in code: in an example those of the repository alone, as others are the reader's."""
    return [
        word
        for word in span.code.split()
        if word.startswith(FOLDERS) or (A_FILE.fullmatch(word) and not span.is_example)
    ]


def unknown_files(span: Span) -> list[str]:
    return [name for name in named_files(span) if name not in NOT_HERE and not is_there(name)]


def fields_of(kind: Any) -> set[str]:
    """The fields of a dataclass, or of each of several in a union; nothing for other types."""
    if typing.get_origin(kind) is typing.Annotated:
        return fields_of(typing.get_args(kind)[0])
    if isinstance(kind, UnionType):
        return set().union(*map(fields_of, typing.get_args(kind)))
    return {field.name for field in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else set()


@cache
def tables_of(config: type) -> dict[str, set[str]]:
    """The tables of a config with their fields; "" has its own."""
    fields = {name: fields_of(hint) for name, hint in typing.get_type_hints(config, include_extras=True).items()}
    return {"": set(fields), **{name: names for name, names in fields.items() if names}}


def settings_of(command: str) -> dict[str, set[str]]:
    """The tables that --set of a command changes; without a command, those of any, and those of a manifest."""
    if command:
        return tables_of(SETTINGS.get(command, Recipe))
    every: dict[str, set[str]] = {"": {"protocol", "encoding", "columns"}}
    for config in (Recipe, *SETTINGS.values()):
        for table, names in tables_of(config).items():
            every[table] = every.get(table, set()) | names
    return every


def unknown_fields(span: Span) -> list[str]:
    """The fields of recipes, and the settings of --set, that no config has."""
    command, _ = command_of(span.code)
    wrong = []
    for key in re.findall(r"--set '?([a-z_.]+)=", span.code):
        table, _, name = key.rpartition(".")
        if command != "prepare" and name not in settings_of(command).get(table, set()):
            wrong.append(key)
    if not span.is_example and not A_FILE.fullmatch(span.code):
        known = tables_of(Recipe) | {name: names for name, names in tables_of(IndexConfig).items() if name}
        for table, name in re.findall(r"^([a-z]+)\.([a-z_]+)(?=$|[ =])", span.code):
            if table in known and name not in known[table]:
                wrong.append(f"{table}.{name}")
        if (table := TABLE.fullmatch(span.code)) and table[1] not in known.keys() | OTHER_TABLES:
            wrong.append(span.code)
    return wrong


def fields_in_examples() -> Iterator[tuple[str, str, str]]:
    """Page, table and key of each setting in an example that is a part of a recipe."""
    for page in DOCUMENTS:
        text = page.read_text(encoding="utf-8")
        blocks = re.findall(r"^```toml\n(.*?)^```|((?:^    [^\n]*\n)+)", text, re.MULTILINE | re.DOTALL)
        for fenced, indented in blocks:
            block = fenced or re.sub("^    ", "", indented, flags=re.MULTILINE)
            if re.match(r"\[[a-z]+\]\n", block):
                for table, values in tomllib.loads(block).items():
                    yield from ((str(page.relative_to(ROOT)), table, key) for key in values)


def test_the_commands_that_the_docs_name_exist():
    assert [f"{span}: {name}" for span in all_spans() for name in unknown_commands(span)] == []


def test_the_options_that_the_docs_name_exist():
    assert [f"{span}: {name}" for span in all_spans() for name in unknown_options(span)] == []


def test_the_files_that_the_docs_name_are_in_the_repository_or_are_written_by_commands():
    assert [f"{span}: {name}" for span in all_spans() for name in unknown_files(span)] == []


def test_the_lists_have_nothing_that_the_docs_do_not_name():
    assert NOT_HERE - {name for span in all_spans() for name in named_files(span)} == set()


def test_the_fields_that_the_docs_name_are_fields_of_a_recipe_or_settings():
    assert [f"{span}: {name}" for span in all_spans() for name in unknown_fields(span)] == []


def test_the_parts_of_recipes_in_the_docs_have_known_fields():
    recipe, found = tables_of(Recipe), list(fields_in_examples())
    assert len(found) > 5
    assert [place for place in found if place[2] not in recipe.get(place[1], ())] == []
