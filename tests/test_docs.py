"""What README and docs tell the user to type is there."""

from __future__ import annotations

import importlib
import re

import pytest
import typer
import yaml
from paths import ROOT
from typed_commands import PAGES, commands, parse, typed_lines

from dcdctl.cli.app import COMMANDS


@pytest.mark.parametrize("line", commands())
def test_every_command_in_the_docs_parses(line):
    parse(line)


@pytest.mark.parametrize("line", ["dcdctl distill r --data d --out o --alpha 1", "dcdctl search x --images y", "dcdctl bench run --data d"])
def test_a_wrong_command_would_be_found(line):
    with pytest.raises(typer.TyperException):
        parse(line)


def test_the_readme_shows_commands():
    assert any(line.startswith("dcdctl ") for line in typed_lines(ROOT / "README.md"))


def test_every_command_is_in_the_docs():
    assert {name for name, *_ in COMMANDS} <= {line.split()[1] for line in commands()}


def imported_names() -> list[tuple[str, str]]:
    """What the code blocks of CONTRIBUTING.md import from dcdctl."""
    lines = [line for line in typed_lines(ROOT / "CONTRIBUTING.md") if line.startswith("from dcdctl.")]
    return [(module, name) for line in lines for module, names in [line[5:].split(" import ")] for name in names.split(", ")]


@pytest.mark.parametrize(("module", "name"), imported_names())
def test_what_the_examples_for_contributors_import_is_there(module, name):
    if name != "verify_corpus":  # added by the example
        assert hasattr(importlib.import_module(module), name)


@pytest.mark.parametrize(
    "path",
    sorted(set(re.findall(r"`((?:dcdctl|tests|docs)/[a-z_/]+\.(?:py|md))`", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")))),
)
def test_the_files_for_contributors_are_there(path):
    assert (ROOT / path).is_file()


def test_the_make_targets_in_the_docs_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = {line.split()[1] for page in PAGES for line in typed_lines(page) if re.match(r"make [a-z]", line)}
    named |= {target for page in PAGES for target in re.findall(r"`make ([a-z-]+)", page.read_text(encoding="utf-8"))}
    assert named <= targets


def test_the_links_between_pages_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:|mailto:|#)([^)#\s]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_files_that_the_docs_name_exist():
    for page in PAGES:
        for name in re.findall(r"\b(?:tests|benchmarks|dcdctl)/[\w/]+\.py\b", page.read_text(encoding="utf-8")):
            is_placeholder = re.search("FAMILY|FORMAT|NAME", name)
            assert is_placeholder or (ROOT / name).exists(), f"{page.name}: {name}"


def test_the_site_lists_every_page():
    pages = {str(page.relative_to(ROOT / "docs")) for page in PAGES if page.is_relative_to(ROOT / "docs")}
    navigation = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    listed = [page for section in navigation for pages in section.values() for page in ([pages] if isinstance(pages, str) else pages)]
    assert sorted(listed) == sorted(page for page in pages if not page.startswith("results/"))


@pytest.mark.parametrize("room", sorted(path.parent.name for path in (ROOT / "dcdctl" / "core").glob("*/__init__.pyi")))
def test_every_room_has_a_reference_page(room):
    assert f"\n::: dcdctl.core.{room}\n" in (ROOT / "docs" / "reference" / f"{room}.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("fixture", sorted({path.stem for path in (ROOT / "tests" / "fixtures").iterdir()}))
def test_the_page_on_fidelity_says_what_became_of_each_fixture(fixture):
    assert f"`{fixture}`" in (ROOT / "docs" / "fidelity.md").read_text(encoding="utf-8")
