"""The Dockerfile and compose.yaml, which no test builds: what they copy exists, and the commands that they run are
commands of dcdctl."""

from __future__ import annotations

import json
import re
import tomllib
from fnmatch import fnmatch

import pytest
from paths import ROOT
from typed_commands import parse

yaml = pytest.importorskip("yaml", reason="PyYAML comes with the extra docs")

DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
COMPOSE = (ROOT / "compose.yaml").read_text(encoding="utf-8")
VARIABLES = {
    "DATA": "/srv",
    "POSTGRES_PASSWORD": "database-password",
    "DCDCTL_API_KEY": "a-key-for-the-search-page",
    "TORCH_INDEX": "",
}


def lines_of(instruction: str) -> list[str]:
    return re.findall(rf"^{instruction} +(.*)", DOCKERFILE, re.MULTILINE)


def compose() -> dict:
    """The file as compose reads it, with its variables filled in."""
    return yaml.safe_load(re.sub(r"\$\{(\w+)(:[?-][^}]*)?\}", lambda match: VARIABLES[match[1]], COMPOSE))


def test_everything_that_the_image_copies_exists_and_is_sent_to_the_builder():
    sent = [
        line[1:] for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line.startswith("!")
    ]
    copied = [name for line in lines_of("COPY") if not line.startswith("--from") for name in line.split()[:-1]]
    assert "dcdctl" in copied
    for name in copied:
        assert (ROOT / name).exists(), name
        assert any(fnmatch(name, pattern) for pattern in sent), name
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    build_needs = {
        project["project"]["readme"],
        *project["project"]["license-files"],
        *project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"],
    }
    build_needs |= set(project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"])
    assert build_needs | {"pyproject.toml", "constraints.txt"} == set(copied)
    extras = re.search(r"^ARG EXTRAS=(.*)", DOCKERFILE, re.MULTILINE)[1].split(",")
    assert set(extras) <= set(project["project"]["optional-dependencies"])


def test_the_commands_of_both_files_parse():
    (entry,), (command,) = lines_of("ENTRYPOINT"), lines_of("CMD")
    commands = [
        json.loads(command),
        *(service["command"] for service in compose()["services"].values() if service.get("image") == "dcdctl"),
    ]
    assert json.loads(entry) == ["dcdctl"]
    assert len(commands) == 3
    for words in commands:
        parse(" ".join(["dcdctl", *(f"'{word}'" for word in words)]))
