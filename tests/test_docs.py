"""What README and docs tell the user to type is there."""

from __future__ import annotations

import io
import os
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import processes
import pytest
import yaml
from markdown.extensions.toc import slugify
from paths import DOCS, ROOT
from source_facts import SourceFacts, all_facts
from typed_commands import PAGES, commands, commands_of_head, parse, typed_lines

from dcdctl.cli.app import COMMANDS
from dcdctl.core.training import load_recipe
from dcdctl.core.training.recipe.packaged import names as recipe_names


@pytest.fixture(scope="session")
def facts(tmp_path_factory):
    """What every source file says."""
    return all_facts(tmp_path_factory)


@pytest.mark.parametrize("line", commands())
def test_every_command_in_the_docs_parses(line):
    parse(line)


MANIFESTS = {*(ROOT / "data_manifests").rglob("*.toml")} - {ROOT / "data_manifests" / "published.toml"}
PACKAGED = sorted([*(ROOT / "dcdctl" / "recipes").glob("*.toml"), *MANIFESTS])


@pytest.mark.parametrize("path", PACKAGED, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_recipe_or_manifest_opens_with_a_command_that_parses_and_names_it(path):
    assert path.read_text(encoding="utf-8").startswith("# dcdctl ")
    lines = commands_of_head(path)
    for line in lines:
        parse(line)
    named = {word for line in lines for word in line.split()[2:]}
    recipes = [load_recipe(word) for word in named & set(recipe_names())]
    assert path.stem in named | {recipe.model.start for recipe in recipes}


def test_every_command_is_in_the_docs():
    assert {name for name, *_ in COMMANDS} <= {line.split()[1] for line in commands()}


def test_the_make_targets_in_the_docs_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = {line.split()[1] for page in PAGES for line in typed_lines(page) if re.match(r"make [a-z]", line)}
    named |= {target for page in PAGES for target in re.findall(r"`make ([a-z-]+)", page.read_text(encoding="utf-8"))}
    assert named <= targets


def test_the_links_between_pages_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:|mailto:|#)([^)#\s]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def pages_of_site(entry: Any) -> Iterator[str]:
    """The files of an entry of the site's navigation: a page, a titled page, or a group of entries."""
    if isinstance(entry, str):
        yield entry
    else:
        for part in entry.values() if isinstance(entry, dict) else entry:
            yield from pages_of_site(part)


def test_the_site_lists_every_page():
    pages = {str(page.relative_to(ROOT / "docs")) for page in PAGES if page.is_relative_to(ROOT / "docs")}
    navigation = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    assert sorted(pages_of_site(navigation)) == sorted(
        page for page in pages if not page.startswith("evidence/results/")
    )
    assert [group for section in navigation for group in section] == ["Start", "Guides", "Reference", "Evidence"]


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocstrings", reason="the packages of docs/requirements.txt are not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    built = processes.run(
        command, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True
    )
    assert (built.returncode, "WARNING" in built.stderr) == (0, False), built.stderr
    assert 'class="doc doc-heading"' in (tmp_path / "reference" / "evaluation" / "index.html").read_text(
        encoding="utf-8"
    )


def anchors_of(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and the site make them; a repeated heading gets a number."""
    text = re.sub(r"^[ \t]*```.*?^[ \t]*```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return {
        slugify(re.sub(r"[*`]|\]\([^)]*\)|\[", "", title), "-")
        for title in re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_links_to_headings_lead_to_headings(page):
    links = re.findall(r"\]\((?!https?:|mailto:)([^)#\s]*)#([^)\s]+)\)", page.read_text(encoding="utf-8"))
    targets = [(page.parent / path if path else page, anchor) for path, anchor in links]
    wrong = [
        f"{path.name}#{anchor}" for path, anchor in targets if re.sub(r"_\d+$", "", anchor) not in anchors_of(path)
    ]
    assert wrong == []


def messages_in_source(facts: dict[Path, SourceFacts]) -> list[list[str | None]]:
    """The parts of the strings of the package that have fixed text; None is filled in."""
    files = [facts[path] for path in (ROOT / "dcdctl").rglob("*.py")]
    filled = [parts for file in files for parts in file.filled_strings if any(parts)]
    return filled + [[text] for file in files for _, text in file.strings if text]


def quoted_errors() -> list[str]:
    """The messages quoted in docs/faq.md, message and hint apart."""
    lines = [line for line in typed_lines(DOCS / "faq.md") if line.startswith("error: ")]
    return [part for line in lines for part in line.removeprefix("error: ").split("; ", 1)]


def test_the_errors_quoted_in_the_questions_are_those_of_the_program(facts):
    messages = messages_in_source(facts)
    quoted = quoted_errors()
    assert len(quoted) > 15

    def is_known(text: str) -> bool:
        """Half of a message or more is fixed text, so that a pattern such as ".* has no .*" is not enough."""
        for parts in messages:
            fixed = [part for part in parts if part]
            # Most messages differ in a part, which takes less time to see than a pattern to compile. What is filled in
            # matches anything.
            is_possible = all(part in text for part in fixed) and 2 * len("".join(fixed)) >= len(text)
            if is_possible and re.fullmatch("".join(".*" if part is None else re.escape(part) for part in parts), text):
                return True
        return False

    assert [text for text in quoted if not is_known(text)] == []


BRITISH = (
    "(?:optimi|normali|tokeni|factori|quanti|initiali|minimi|maximi"
    "|summari|recogni|synchroni|seriali|memori|organi|speciali)"
)
WORDING = {
    r"go(?:es|ing|ne)? on|went on": "resume, continue",
    r"(?:is|are|was|were|be) wanted": "expected, required",
    r"anew": "again",
    r"can be had|(?:is|are|was|were) to be had|com(?:e|es|ing) by|came by": "available, obtained",
    r"talk goes to": "progress and messages go to",
    r"whole or (?:not at all|absent|nothing)": "written atomically",
    r"the sign that": "completion marker",
    r"nobody's business": "for privacy, ignored because",
    r"the house": "architecture, built-in",
    r"so-manieth": "every N-th",
    r"lets? alone|left alone|leaves? alone": "does nothing if it is complete",
    r"whence": "from where",
    r"pictures?": "image",
    r"\w*colour\w*": "color",
    r"\w*neighbour\w*": "neighbor",
    r"licenc(?:e|es|ed|ing)": "license",
    rf"\w*{BRITISH}s(?:e|es|ed|er|ers|ing|ation|ations)": "the ending -ize, -ization",
    r"cent(?:re|res|red)": "center",
    r"behaviours?": "behavior",
    r"Of (?!course)[^.!?]{1,60}?,": "the subject first",
}
"""Expressions that make a sentence hard to read, and what to write instead. A pattern with a capital holds at the start
of a sentence."""
SENTENCE_START = r"(?:(?<=^)|(?<=[.!?] )|(?<=[|*-] ))"
ALLOWED = {
    ("dcdctl/core/data/corpus_json.py", "licence"): "a key of corpus.json",
    ("dcdctl/core/data/prepare.py", "licence"): "a key of corpus.json",
}
"""Files in which a word of WORDING is data, with the reason."""


def prose_files() -> list[Path]:
    """The files whose text users and contributors read."""
    pages = [page for page in PAGES if page.parent.parent != DOCS / "evidence" / "results"]
    package = [
        path for suffix in ("py", "toml", "html", "j2", "js", "css") for path in (ROOT / "dcdctl").rglob(f"*.{suffix}")
    ]
    return [
        *pages,
        ROOT / "CHANGELOG.md",
        *sorted(package),
        *sorted((ROOT / "benchmarks").glob("*.py")),
        *sorted((ROOT / "data_manifests").rglob("*.toml")),
    ]


def comments(text: str) -> Iterator[tuple[int, str]]:
    """Line number and text of the comments of a Python file that has an expression of WORDING after a "#"; of other
    files none."""
    if any(next(hard_to_read(line), None) for line in text.splitlines() if "#" in line):
        tokens = tokenize.generate_tokens(io.StringIO(text).readline)
        yield from ((token.start[0], token.string) for token in tokens if token.type == tokenize.COMMENT)


def passages(path: Path, facts: dict[Path, SourceFacts]) -> Iterator[tuple[int, str]]:
    """Line number and text of the comments and string literals of a Python file, and of the lines of any other file."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        yield from ((line, part) for line, string in facts[path].strings for part in string.split("\n\n"))
        yield from comments(text)
    elif path.name == "CHANGELOG.md":
        unreleased = text[: text.find("\n## [", text.index("## [Unreleased]") + 1)]
        yield from enumerate(re.sub(r"`[^`\n]*`", "``", unreleased).splitlines(), 1)  # code may be an old name
    else:
        yield from enumerate(text.splitlines(), 1)


# Part of a path is no prose: ~/Pictures.
NOT_BEFORE, NOT_AFTER = r"(?<![\w/-])", r"(?![\w-])"
AT_START = {
    re.compile(f"{SENTENCE_START}(?:{words}){NOT_AFTER}"): better
    for words, better in WORDING.items()
    if words[0].isupper()
}
ANYWHERE = {
    re.compile(f"{NOT_BEFORE}(?:{words}){NOT_AFTER}", re.IGNORECASE): better
    for words, better in WORDING.items()
    if not words[0].isupper()
}
SOMEWHERE = re.compile(
    f"{NOT_BEFORE}(?:{'|'.join(words for words in WORDING if not words[0].isupper())}){NOT_AFTER}", re.IGNORECASE
)
"""A passage in which this finds nothing has none of ANYWHERE; most have none, and this takes less time than each
alone."""


def hard_to_read(text: str) -> Iterator[tuple[str, str]]:
    """The expressions of WORDING in a passage, each with its replacement."""
    flat = " ".join(text.split())
    for pattern, better in {**(ANYWHERE if SOMEWHERE.search(flat) else {}), **AT_START}.items():
        yield from ((match[0], better) for match in pattern.finditer(flat))


@pytest.mark.parametrize("path", prose_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_prose_is_plain_american_english(path, facts):
    name = str(path.relative_to(ROOT))
    found = [(line, words, better) for line, text in passages(path, facts) for words, better in hard_to_read(text)]
    assert [
        f"{name}:{line}: {words!r} -> {better}" for line, words, better in found if (name, words.lower()) not in ALLOWED
    ] == []
