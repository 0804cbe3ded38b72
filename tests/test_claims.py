"""Every number of README, of what docs/evidence/results.md advises and of the heads of recipes is a claim that
`benchmarks/claims.py` can run again, or a fact that claims.toml lists as no measurement."""

from __future__ import annotations

import functools
import importlib
import json
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest
from paths import ROOT
from typed_commands import parse

NUMBER = re.compile(r"(?<![\w@/.,:+%-])[+-]?(?>\d+(?:,\d{3})*(?:[.:]\d+)*(?:e-?\d+)?)(?:x\b|(?!\w))")
NO_PROSE = re.compile(
    r"^ *```.*?^ *```|`[^`\n]*`|!\[[^\n]*?\]\([^)]*\)|\]\([^)]*\)|https?://\S+|--[\w-]+ (?:'[^'\n]*'|\S+)",
    re.MULTILINE | re.DOTALL,
)
"""Code, options with their values, images and the targets of links."""
DOCUMENT = tomllib.loads((ROOT / "benchmarks" / "claims.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def claims():
    """The script; it is no package."""
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(ROOT / "benchmarks")
        yield importlib.import_module("claims")


def without_code(text: str) -> str:
    """The text with blanks in place of what is no prose, so that places stay."""
    return NO_PROSE.sub(lambda found: re.sub(r"[^\n]", " ", found[0]), text)


def section(text: str, title: str) -> str:
    """The part of a page under a heading of the second level, with blank lines in place of the rest."""
    start = text.index(f"\n## {title}\n")
    end = text.find("\n## ", start + 1)
    return "\n" * text.count("\n", 0, start) + text[start : end if end > 0 else None]


def head(text: str) -> str:
    """The comments that a recipe opens with, without its commands."""
    lines = text.split("\n\n", 1)[0].splitlines()
    return "\n".join("" if line.startswith("# dcdctl ") or not line.startswith("#") else line for line in lines)


def passages() -> Iterator[tuple[str, str]]:
    """Page and text whose numbers must have a claim; lines are where the page has them."""
    yield "README.md", (ROOT / "README.md").read_text(encoding="utf-8")
    yield (
        "docs/evidence/results.md",
        section((ROOT / "docs" / "evidence" / "results.md").read_text(encoding="utf-8"), "What we learned"),
    )
    for path in sorted((ROOT / "dcdctl" / "recipes").glob("*.toml")):
        yield str(path.relative_to(ROOT)), head(path.read_text(encoding="utf-8"))


PASSAGES = dict(passages())


def fact_patterns(page: str) -> list[re.Pattern[str]]:
    """What claims.toml lists as no measurement of this page, with any number in place of {}."""
    facts = [fact for fact in DOCUMENT["facts"] if any(fnmatch(page, each) for each in fact["pages"])]
    texts = [fact_pattern(text) for fact in facts for text in fact["texts"]]
    lines = [f".*{re.escape(word)}.*" for fact in facts for word in fact.get("lines", [])]
    return [re.compile(rf"(?<![\d,.])(?:{pattern})") for pattern in [*texts, *lines]]


def fact_pattern(text: str) -> str:
    """The text with any number in place of {}."""
    return r"[\d,.:+e/-]*\d".join(map(re.escape, text.split("{}")))


def without_claim(claims, page: str, text: str) -> list[str]:
    """Line and number of each number that no claim and no fact has."""
    _, all_claims = claims.load()
    shown = [each for claim in all_claims.values() for at, each in claim.shown() if at == page]
    covered = [found.span() for each in shown for found in re.finditer(re.escape(each), text)]
    covered += [found.span() for pattern in fact_patterns(page) for found in pattern.finditer(text)]
    lines = text.splitlines()
    return [
        f"{page}:{text.count(chr(10), 0, found.start()) + 1}: {found[0]} in "
        f"{lines[text.count(chr(10), 0, found.start())].strip()!r}"
        for found in NUMBER.finditer(without_code(text))
        if not any(start <= found.start() and found.end() <= end for start, end in covered)
    ]


@pytest.mark.parametrize("page", PASSAGES)
def test_every_number_is_a_claim_or_a_fact_that_is_no_measurement(claims, page):
    assert without_claim(claims, page, PASSAGES[page]) == []


@pytest.mark.parametrize("fact", DOCUMENT["facts"], ids=lambda fact: fact["why"][:30])
def test_a_fact_stands_on_its_pages(fact):
    pages = [text for page, text in PASSAGES.items() if any(fnmatch(page, each) for each in fact["pages"])]
    unused = [each for each in fact["texts"] if not any(re.search(fact_pattern(each), text) for text in pages)]
    assert unused == []


def test_the_pages_show_the_values_of_the_file(claims):
    _, all_claims = claims.load()
    for name, claim in all_claims.items():
        for page, shown in claim.shown():
            assert (ROOT / page).read_text(encoding="utf-8").count(shown) == 1, (
                f"{name}: {shown!r} is not once on {page}"
            )


def test_committed_results_agree_with_the_expected_values(claims, monkeypatch):
    monkeypatch.setattr(claims, "parse", functools.cache(claims.parse))  # dozens of claims share a file
    runs, all_claims = claims.load()
    differing = {}
    for name, claim in all_claims.items():
        folder = ROOT / runs[claim.run].published
        if claim.at and runs[claim.run].published and is_committed(runs[claim.run], claim, folder):
            measured = claims.read_all(claim, folder)
            if claim.shown(measured) != claim.shown():
                differing[name] = measured
    assert differing == {}


def is_committed(run, claim, folder: Path) -> bool:
    """Whether the value is of a result, and not of what a run of this script alone writes: its times, or what a step
    prints."""
    names = re.findall(r'"([^" ]+\.(?:json|md))', json.dumps([claim.base, claim.at]))
    return not any(
        name == "claims.json" or (Path(name).stem in run.steps and not (folder / name).exists()) for name in names
    )


def command_lines() -> list[str]:
    return [line for run in DOCUMENT["runs"].values() for line in run["steps"].values()]


@pytest.mark.parametrize("line", command_lines())
def test_the_command_of_a_run_parses(claims, line):
    words = shlex.split(line.format(work="work", **dict.fromkeys(claims.GIVEN, "given")))
    if words[0] == "OMP_NUM_THREADS=1":
        words = words[1:]
    if words[0] == "dcdctl":
        parse(shlex.join(words))
        return
    program, script = words[:2]
    assert program == "python"
    if not any(run.get("needs") for run in DOCUMENT["runs"].values() if line in run["steps"].values()):
        source = (ROOT / script).read_text(encoding="utf-8")
        flags = {f"--{name}" for name in re.findall(r'"--([a-z0-9-]+)"', source)}
        assert {word for word in words if word.startswith("--")} <= flags


def test_claims_have_a_run_that_may_have_their_values(claims):
    runs, all_claims = claims.load()
    assert {claim.run for claim in all_claims.values()} == set(runs)
    for claim in all_claims.values():
        assert len(claim.at) in (0, len(claim.expected))
        assert len(claim.tolerance) in (0, len(claim.expected))


@pytest.fixture
def made(claims, monkeypatch, tmp_path):
    """A project of one page and one claim, whose run writes what `value.json` has and counts how often it ran."""
    script = "import json, pathlib, sys; out = pathlib.Path(sys.argv[1]); out.mkdir(exist_ok=True); "
    script += "old = out / 'runs'; old.write_text(old.read_text() + 'x' if old.exists() else 'x'); "
    script += "print(open(sys.argv[2]).read())"
    (tmp_path / "measure.py").write_text(script)
    (tmp_path / "value.json").write_text('{"rows": [{"name": "a", "rsum": 240.04}, {"name": "b", "rsum": 10}]}')
    (tmp_path / "page.md").write_text("It has RSUM 240.0, twice 20 of the other.\n")
    (tmp_path / "claims.toml").write_text(f"""[runs.made]
steps.measure = "python {tmp_path}/measure.py {{work}}/out {tmp_path}/value.json"
minutes = 1
tolerance = 1

[claims.rsum]
run = "made"
expected = [240.0, 20]
at = ["measure.json > rows > name=a > rsum", ["times", "measure.json > rows > name=b > rsum", 2]]
text."page.md" = "RSUM {{:.1f}}, twice {{}} of"

[runs.on-gpu]
steps.bench = "python bench.py"
minutes = 1
needs = "a GPU"

[claims.on-gpu]
run = "on-gpu"
expected = [1]
text."page.md" = ""
""")
    monkeypatch.setattr(claims, "ROOT", tmp_path)
    monkeypatch.setattr(claims, "CLAIMS", tmp_path / "claims.toml")
    monkeypatch.setattr(claims.load, "__defaults__", (tmp_path / "claims.toml",))
    monkeypatch.setattr(claims, "code", lambda: "code")
    return tmp_path


def run(claims, made: Path, *words: str) -> int:
    return claims.main([*words, "--work", str(made / "work")])


def test_a_run_that_gives_the_value_passes_and_is_not_run_again(claims, made, capsys):
    assert run(claims, made) == 0
    assert [line.split()[:2] for line in capsys.readouterr().out.splitlines()] == [["PASS", "rsum"], ["NOT", "RUN"]]
    assert run(claims, made) == 0
    assert (made / "work" / "made" / "out" / "runs").read_text() == "x"


def test_a_change_of_the_code_runs_again(claims, made, monkeypatch):
    run(claims, made)
    (made / "value.json").write_text('{"rows": [{"name": "a", "rsum": 238.9}, {"name": "b", "rsum": 10}]}')
    assert run(claims, made) == 0
    monkeypatch.setattr(claims, "code", lambda: "another")
    assert run(claims, made) == 1


def test_what_drifted_is_stored_on_request_in_the_file_and_on_the_page(claims, made, capsys):
    (made / "value.json").write_text('{"rows": [{"name": "a", "rsum": 251.26}, {"name": "b", "rsum": 9}]}')
    assert run(claims, made) == 1
    assert capsys.readouterr().out.startswith("DRIFT    rsum ")
    assert "240.0" in (made / "page.md").read_text()
    assert run(claims, made, "--write") == 1
    assert (made / "page.md").read_text() == "It has RSUM 251.3, twice 18 of the other.\n"
    runs, stored = claims.load()
    assert stored["rsum"].expected == [251.26, 18]
    assert runs["made"].last["date"]
    assert run(claims, made, "--write") == 0
    assert (made / "claims.toml").read_text().count("\nlast = ") == 1


def test_an_expectation_counts_from_the_commit_that_has_it(claims, made, capsys):
    who = ("-c", "user.name=a", "-c", "user.email=a@b.c")
    for words in (("init", "-q"), ("add", "claims.toml"), (*who, "commit", "-qm", "expected")):
        claims.git(*words)
    commit = claims.git("rev-parse", "--short", "HEAD")
    assert claims.planned()["commit"] == commit
    (made / "other").touch()
    claims.git("add", "other")
    claims.git(*who, "commit", "-qm", "other")
    assert run(claims, made, "--write") == 0
    runs, _ = claims.load()
    assert runs["made"].planned["commit"] == commit
    assert runs["made"].last["commit"].startswith(claims.git("rev-parse", "--short", "HEAD"))
    assert claims.planned() == {}
    assert "that no commit has" in capsys.readouterr().err


def test_a_step_that_fails_is_not_run_and_says_where_its_messages_are(claims, made, capsys):
    (made / "value.json").unlink()
    assert run(claims, made, "--only", "rsum") == 1
    assert re.search(r"NOT RUN .*measure ended with 1; see .*measure\.log", capsys.readouterr().out)


def test_a_step_that_was_killed_runs_again_and_has_no_time(claims, made):
    folder = made / "work" / "made"
    folder.mkdir(parents=True)
    claims.write_marker(folder, {"code": "code", "seconds": {}, "started": "measure"})
    assert run(claims, made) == 0
    assert claims.read_marker(folder)["seconds"] == {"measure": None}


def test_a_training_that_was_killed_resumes(claims, monkeypatch, tmp_path):
    commands = []
    monkeypatch.setattr(
        claims.subprocess,
        "run",
        lambda command, **_: commands.append(command) or claims.argparse.Namespace(returncode=0),
    )
    for name in ("new", "old"):
        (tmp_path / name).mkdir()
    (tmp_path / "old" / "run.json").touch()
    for name in ("new", "old"):
        claims.execute(f"dcdctl distill photos --out {tmp_path / name}", tmp_path / "log.log")
    assert [command[-1] for command in commands] == [str(tmp_path / "new"), "--resume"]


@pytest.mark.parametrize(
    ("name", "edit"),
    [
        ("measure.json", lambda text: text[:20]),
        ("measure.json", lambda text: text.replace("240.04", "240.05")),
        ("measure.json", lambda text: '{"rows": []}'),  # such as the result of another run
        ("claims.json", lambda text: text[:20]),
        ("claims.json", lambda text: text.replace("minutes", "minute")),
    ],
)
def test_a_damaged_file_of_a_finished_run_is_named_and_no_value(claims, made, capsys, name, edit):
    assert run(claims, made, "--only", "made") == 0
    path = made / "work" / "made" / name
    path.write_text(edit(path.read_text()))
    capsys.readouterr()
    assert run(claims, made, "--only", "made") == 1
    assert re.search(rf"^NOT RUN  rsum .*{name}.*; delete \S+made to run it again$", capsys.readouterr().out, re.M)


@pytest.mark.parametrize("value", ["NaN", "Infinity", "null", '"5"', "true", "[1]", "{}", "1e999", "[" * 50_000])
def test_a_result_without_a_finite_number_is_no_value(claims, made, capsys, value):
    (made / "value.json").write_text(f'{{"rows": [{{"name": "a", "rsum": {value}}}, {{"name": "b", "rsum": 10}}]}}')
    page = (made / "page.md").read_text()
    assert run(claims, made, "--only", "made", "--write") == 0
    assert re.search(r"^NOT RUN  rsum .* has no measure.json > rows > name=a > rsum$", capsys.readouterr().out, re.M)
    assert (made / "page.md").read_text() == page


def test_a_quotient_by_zero_is_no_value(claims, tmp_path):
    with pytest.raises(claims.MissingValueError):
        claims.read(["over", 1, 0], tmp_path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("[240.0, 20]", '"240"'),
        ("[240.0, 20]", "[nan, 20]"),
        ("[240.0, 20]", "[240.0, 20, 5]"),
        ('run = "made"', 'run = "other"'),
        ("minutes = 1", 'minutes = "1"'),
        ("minutes = 1", "minute = 1"),
        ("tolerance = 1", 'tolerance = "much"'),
        ("RSUM {:.1f}", "RSUM {:q}"),
        ("twice {}", "twice {} {}"),
        ("{work}/out", "{other}/out"),
        ("{work}/out", "{work/out"),
        ("[runs.made]", "runs.made = " + "[" * 5000),
    ],
)
def test_a_wrong_entry_of_the_file_is_one_line(claims, made, capsys, old, new):
    path = made / "claims.toml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    assert run(claims, made) == 2
    assert re.fullmatch(r"error: \S+claims\.toml.*\n", capsys.readouterr().err)


def test_a_page_that_changed_meanwhile_is_not_written(claims, made, capsys):
    (made / "value.json").write_text('{"rows": [{"name": "a", "rsum": 251.26}, {"name": "b", "rsum": 9}]}')
    (made / "page.md").write_text("It has RSUM 239.0, twice 20 of the other.\n")
    stored = (made / "claims.toml").read_text()
    assert run(claims, made, "--write") == 2
    assert "page.md has the text of rsum 0 times, expected once" in capsys.readouterr().err
    assert (made / "claims.toml").read_text() == stored


@pytest.mark.parametrize("name", ["page.md", "claims.toml"])
def test_killed_between_two_files_the_same_command_writes_the_rest(claims, made, monkeypatch, name):
    (made / "value.json").write_text('{"rows": [{"name": "a", "rsum": 251.26}, {"name": "b", "rsum": 9}]}')
    write = claims.files.write_text

    def killed(path, text):
        if path.name == name:
            raise KeyboardInterrupt
        write(path, text)

    monkeypatch.setattr(claims.files, "write_text", killed)
    with pytest.raises(KeyboardInterrupt):
        run(claims, made, "--write")
    monkeypatch.setattr(claims.files, "write_text", write)
    assert run(claims, made, "--write") == 1
    assert (made / "page.md").read_text() == "It has RSUM 251.3, twice 18 of the other.\n"
    assert claims.load()[1]["rsum"].expected == [251.26, 18]


def test_a_second_run_in_the_same_folder_is_refused(claims, made, capsys):
    with claims.files.lock(made / "work"):
        # flock is per open file, so that this process is refused too.
        assert run(claims, made) == 2
    assert re.fullmatch(r"error: another run is writing to \S+work; .*\n", capsys.readouterr().err)


@pytest.mark.parametrize("words", [["--work", "page.md"], ["--vision", "absent"], ["--only", "absent"]])
def test_a_wrong_option_of_the_command_is_told(claims, made, monkeypatch, capsys, words):
    monkeypatch.chdir(made)
    with pytest.raises(SystemExit, match="2"):
        sys.exit(claims.main(words))
    assert "error: " in capsys.readouterr().err


def test_a_run_needs_what_its_commands_name(claims, tmp_path):
    run = claims.Run(steps={"a": "dcdctl distill photos --set model.vision={vision} --out {work}/a"}, minutes=20)
    assert claims.Bench(tmp_path, {}, True, []).obstacle(run) == "needs --vision"
    assert claims.Bench(tmp_path, {"vision": "v"}, False, []).obstacle(run) == "takes 20 minutes: --all"
    assert claims.Bench(tmp_path, {"vision": "v"}, True, []).obstacle(run) == ""
    assert claims.Bench(tmp_path, {"vision": "v"}, False, ["a"]).obstacle(run) == ""


def test_values_are_read_by_place_and_are_means_of_several_files(claims, tmp_path):
    for seed, rsum in enumerate((100.0, 103.0)):
        (tmp_path / f"run-{seed}.json").write_text(
            json.dumps({"rsum": rsum, "list": [1, {"k": seed, "n": 7}], "interval": [-1, 2]})
        )
    assert claims.read("run-*.json > rsum", tmp_path) == 101.5
    assert claims.read("run-1.json > list > 0", tmp_path) == 1
    assert [claims.read(f"run-1.json > interval > {bound}", tmp_path) for bound in ("low", "high")] == [-1, 2]
    assert claims.read(["over", ["minus", "run-1.json > rsum", "run-0.json > rsum"], 2], tmp_path) == 1.5
    for wrong in ("run-3.json > rsum", "run-1.json > other", "run-1.json > list > 5", "run-1.json > list"):
        with pytest.raises(claims.MissingValueError):
            claims.read(wrong, tmp_path)


def test_values_are_read_from_tables_and_from_the_line_with_which_a_benchmark_ends(claims, tmp_path):
    (tmp_path / "tables.md").write_text(
        "### First\n\n| | mean | base |\n|---|---|---|\n| a, 2x | 227.6 ± 0.3 | +3.7 (-0.6 to +6.9) |\n"
        "\n### Second\n\n| | mean |\n|---|---|\n| a, 2x | 3,990 | \n"
    )
    (tmp_path / "bench.json").write_text('| tower | ms |\n{"results": {"runs/query": [{"ms": 2}, {"ms": 4}]}}\n')
    row = [
        claims.read(f"tables.md > First > a, 2x > {cell}", tmp_path) for cell in ("mean > 0", "base > 1", "base > 2")
    ]
    assert row == [227.6, -0.6, 6.9]
    assert claims.read("tables.md > Second > a, 2x > mean > 0", tmp_path) == 3990
    assert claims.read("bench.json > results > *query > * > ms", tmp_path) == 3


@pytest.mark.parametrize(
    ("value", "spec", "shown"),
    [
        (1234.5, "", "1,234"),
        (46.875, "1", "46.9"),
        (100.0, "1", "100"),
        (1.6, "digits", "1.60"),
        (3.74, "+.1f", "+3.7"),
    ],
)
def test_a_value_is_shown_as_the_pages_show_it(claims, value, spec, shown):
    claims_file = importlib.import_module("claims_file")
    assert f"{claims_file.Shown(value):{spec}}" == shown


@pytest.mark.parametrize(
    ("measured", "tolerance", "is_within"),
    [(101.0, 1, True), (101.1, 1, False), (130.0, "30 %", True), (69.0, "30 %", False), (100.0, 0, True)],
)
def test_a_value_is_near_by_an_amount_or_a_share(claims, measured, tolerance, is_within):
    assert claims.is_within(measured, 100.0, tolerance) is is_within
