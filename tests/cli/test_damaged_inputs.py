"""Whatever is wrong with a file that a command reads: one line that names it, or no difference; never a traceback."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from command_line import run
from every_command import COMMANDS, NEW, inside, make_stage, without_root

CORPUS_FILES = "corpus/corpus.json corpus/test-00000-of-00001.parquet"
TEACHER_FILES = (
    "teacher/config.json teacher/dcdctl.json teacher/model.safetensors teacher/tokenizer.json "
    "teacher/tokenizer_config.json teacher/preprocessor_config.json"
)
DUAL_FILES = TEACHER_FILES.replace("teacher", "dual")
CACHE_FILES = "cache/plan.json cache/cache.json cache/items.parquet cache/pairs-00000.parquet"
INDEX_FILES = "index/index.json index/model/config.json index/model/model.safetensors index/model/tokenizer.json"
EVALUATION_FILES = "evaluation/result.json evaluation/ranks.parquet evaluation/top.parquet"
RUN_FILES = "run/run.json run/metrics.jsonl"
READS = {
    "prepare": "manifest.toml",
    "prepare csv": "pairs.csv photos/a.png",
    "prepare jsonl": "pairs.jsonl",
    "prepare karpathy": "karpathy.json",
    "prepare zip": "photos.zip",
    "prepare again": CORPUS_FILES,
    "photos": "pairs.csv photos/a.png",
    "inspect corpus": CORPUS_FILES,
    "inspect cache": CACHE_FILES,
    "inspect index": "index/index.json",
    "cache-teacher": f"{CORPUS_FILES} {TEACHER_FILES}",
    "cache-teacher --extend": CACHE_FILES,
    "work": f"tasks/tasks-00000.parquet {TEACHER_FILES}",
    "work images": f"images/tasks-00000.parquet {DUAL_FILES}",
    "finetune-teacher": "recipe.toml corpus/corpus.json",
    "distill": f"{CACHE_FILES} corpus/test-00000-of-00001.parquet teacher/model.safetensors",
    "distill --resume": RUN_FILES,
    "convert": TEACHER_FILES,
    "eval": f"{CORPUS_FILES} {DUAL_FILES}",
    "bench": "corpus/test-00000-of-00001.parquet dual/model.safetensors teacher/config.json",
    "compare": f"{EVALUATION_FILES} {CORPUS_FILES}",
    "report": f"{EVALUATION_FILES} evaluation/bench.json {RUN_FILES}",
    "export": DUAL_FILES,
    "index": "dual/config.json dual/model.safetensors photos/a.png",
    "index corpus": CORPUS_FILES,
    "sync --add": f"{INDEX_FILES} photos/a.png",
    "search": INDEX_FILES,
    "search --image": "photos/a.png",
}
"""What each command reads that a trial damages. Parts of an index are found by `stage`."""
TYPES = [None, [], "text", 10**400, {}, -1]
Damage = Callable[[Path], None]


def _tables(path: Path) -> Any:
    return json.loads(path.read_text())


def _every_value(change: Callable[[Any], Any]) -> Damage:
    def damage(path: Path) -> None:
        table = _tables(path)
        path.write_text(json.dumps(change(table)))

    return damage


def _nest(path: Path) -> None:
    path.write_bytes(b'{"a": ' * 3000 if path.suffix == ".json" else b"a = " + b"[" * 100_000)


def _link(target: str) -> Damage:
    def damage(path: Path) -> None:
        path.unlink()
        path.symlink_to(target or path.name)

    return damage


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _numbers(value: Any, number: Any) -> Any:
    if isinstance(value, dict):
        return {key: _numbers(item, number) for key, item in value.items()}
    if isinstance(value, list):
        return [_numbers(item, number) for item in value]
    return number if type(value) in (int, float) else value


DAMAGES: dict[str, Damage] = {
    "missing": Path.unlink,
    "a folder": _folder,
    "no permission": lambda path: path.chmod(0),
    "empty": lambda path: path.write_bytes(b"") and None,
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "garbage": lambda path: path.write_bytes(bytes(range(256)) * 9) and None,
    "nested": _nest,
    "a dangling link": _link("/nowhere/at/all"),
    "a loop of links": _link(""),
}
JSON_DAMAGES: dict[str, Damage] = {
    "huge numbers": _every_value(lambda table: _numbers(table, 10**12)),
    "negative numbers": _every_value(lambda table: _numbers(table, -7)),
    "numbers as text": _every_value(lambda table: _numbers(table, "x")),
    "a list": lambda path: path.write_text("[1, 2]") and None,
    "null": lambda path: path.write_text("null") and None,
}
"""Of JSON files; and every key in turn with a value of another type."""


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_stage(tmp_path_factory.mktemp("stage"))


def trial(stage: Path, command: str, file: str, damage: Damage) -> tuple[str, str]:
    """named, harmless, unnamed or traceback, and what was printed; everything is as before afterwards."""
    path, new = stage / file, stage / NEW
    kept, owner = path.read_bytes(), path.parent
    before = {
        entry: entry.read_bytes()
        for part in (owner, stage / "corpus", stage / "index", stage / "run")
        for entry in part.rglob("*")
        if entry.is_file()
    }
    try:
        damage(path)
    except (ValueError, TypeError, AttributeError):
        return "", ""  # this damage is not for this file
    try:
        with inside(stage), without_root(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = run(COMMANDS[command], code=None, catch_exceptions=True)
    finally:
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink(missing_ok=True)
        for part in (owner, stage / "corpus", stage / "index", stage / "run"):
            for entry in part.rglob("*"):
                if entry.is_file() and entry not in before:
                    entry.unlink()
        for entry, data in before.items():
            with suppress(OSError):
                entry.chmod(0o644)
            if not entry.exists() or entry.read_bytes() != data:
                entry.parent.mkdir(parents=True, exist_ok=True)
                entry.write_bytes(data)
        assert path.read_bytes() == kept
        shutil.rmtree(new, ignore_errors=True)
        for page in stage.glob("*.html"):
            page.unlink()
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        return "traceback", f"{type(result.exception).__name__}: {result.exception}"
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    if result.exit_code == 0:
        return "harmless", ""
    parts = {path.name, file, str(path.parent.name)}
    if result.exit_code == 1 and len(errors) == 1 and any(part in errors[0] for part in parts):
        return "named", errors[0]
    return "unnamed", f"exit {result.exit_code}: {result.stderr[-500:]}"


def cases(stage: Path) -> Iterator[tuple[str, str, str, Damage]]:
    """Every command, file and damage, in order."""
    index = [
        str(path.relative_to(stage))
        for path in sorted((stage / "index").rglob("*"))
        if path.is_file() and "model" not in path.parts
    ]
    for command, names in READS.items():
        for file in dict.fromkeys([*names.split(), *(index if "index/index.json" in names else [])]):
            yield from ((command, file, name, damage) for name, damage in DAMAGES.items())
            if file.endswith(".json"):
                yield from ((command, file, name, damage) for name, damage in JSON_DAMAGES.items())
                for number, key in enumerate(_keys(stage / file)):
                    value = TYPES[(number + len(file)) % len(TYPES)]
                    yield (
                        command,
                        file,
                        f"{key} = {str(value)[:6]}",
                        _every_value(lambda table, key=key, value=value: {**table, key: value}),
                    )


def _keys(path: Path) -> list[str]:
    table = _tables(path)
    return list(table) if isinstance(table, dict) else []


def check(stage: Path, chosen: Iterator[tuple[str, str, str, Damage]]) -> None:
    counts: Counter[str] = Counter()
    wrong = []
    for command, file, name, damage in chosen:
        outcome, line = trial(stage, command, file, damage)
        counts[outcome] += 1
        if outcome in ("traceback", "unnamed"):
            wrong.append(f"{outcome}: {command}: {file}: {name}: {line}")
        if name == "no permission" and re.search(r"\b(delete|remove)\b", line):
            wrong.append(f"tells to delete: {command}: {file}: {line}")
    sys.stdout.write(f"{dict(counts)}\n")
    assert not wrong, "\n".join(wrong)


@pytest.mark.slow
def test_every_damage_of_every_file_of_every_command(stage):
    check(stage, cases(stage))


def test_damages_of_every_file_of_every_command(stage):
    """One damage in turn for each."""
    check(stage, (case for number, case in enumerate(cases(stage)) if number % 97 == 0))
