"""What benchmarks/reliability.py tries with benchmarks/claims.py: kills while it stores, damaged results, odd entries,
values and options."""

from __future__ import annotations

import contextlib
import io
import os
import random
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import claims
import numpy as np
from damage import Artifact, damages
from reliability_trials import Ended, Stage, Trial, in_fork, outcome_of

CLAIMS = """[runs.a]
steps.measure = "python print.py {work} a.json"
minutes = 1
tolerance = 1
[claims.one]
run = "a"
expected = [240.0, 20]
at = ["measure.json > rows > name=a > rsum", ["over", "measure.json > rows > name=b > rsum", 2]]
text."page.md" = "RSUM {:.1f}, twice {} of"
[runs.b]
steps.measure = "python print.py {work} b.json"
minutes = 1
[claims.two]
run = "b"
expected = [7]
at = ["measure.json > rsum"]
text."page.md" = "the {}"
"""
ENTRIES = {
    "[240.0, 20]": ['"240"', "[nan, 20]", "[240.0, 20, 5]", "[true, 20]", "{}", "[]", "[inf, 20]"],
    'run = "a"': ['run = "c"', "run = 7", "", 'other = "a"'],
    "minutes = 1": ['minutes = "1"', "minute = 1", "minutes = []"],
    "tolerance = 1": ['tolerance = "much"', "tolerance = [1]"],
    "{work} a": ["{other} a", "{work a", "' a"],
    "twice {}": ["twice {:q}", "twice {} {}", "twice {x}"],
    '"over"': ['"under"', "7"],
    "[runs.a]": ["runs = 7\n[x]", "a = " + "[" * 50_000, "[runs.a"],
}
"""Text of claims.toml, and what stands there instead."""
VALUES = ["NaN", "Infinity", "null", '"5"', "true", "[1]", "{}", "1e999", "[" * 50_000, "", "1" + "0" * 400]
OPTIONS = [
    "--work page.md",
    "--vision absent",
    "--only absent",
    "--nonsense",
    "--only",
    "extra",
    "--images ''",
    "--all=1",
]


def _judged(folder: Path, *words: str) -> str:
    """What is found of the claims, and the files with them; SystemExit for a claim that has no value."""
    os.chdir(folder)
    claims.ROOT, claims.CLAIMS, claims.code = folder, folder / "claims.toml", lambda: "code"  # type: ignore[assignment]
    claims.load.__defaults__ = (claims.CLAIMS,)
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
        status = claims.main(["--work", str(folder / "work"), *words])
    if status == 2 or "NOT RUN  " in out.getvalue():
        raise SystemExit(out.getvalue())
    lines = claims.CLAIMS.read_text().splitlines()
    return "\n".join([*(line for line in lines if line[:4] != "last"), (folder / "page.md").read_text()[:60]])


def claims_of_pages(stage: Stage, rng: random.Random, trials: int) -> Iterator[Trial]:
    """Four damages and two odd entries for each kill."""
    made, copy = stage.folder / "claims", stage.folder / "claims-copy"
    made.mkdir()
    (made / "print.py").write_text("import sys; print(open(sys.argv[2]).read())")
    result = '{"rows": [{"name": "a", "rsum": 251.26}, {"name": "b", "rsum": 36}]}'
    for name, text in {"claims.toml": CLAIMS, "a.json": result, "b.json": '{"rsum": 7}'}.items():
        (made / name).write_text(text)
    (made / "page.md").write_text("It has RSUM 240.0, twice 20 of the 7.\n" + "More text.\n" * 400_000)
    states = [
        (made / "page.md").read_text(),
        (made / "page.md").read_text().replace("240.0, twice 20", "251.3, twice 18"),
    ]

    def tried(*words: str, edit: tuple[str, str, str] | None = None, **limits: float) -> Ended:
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(made, copy)
        if edit is not None:
            (copy / edit[0]).write_text((copy / edit[0]).read_text().replace(edit[1], edit[2]))
            shutil.rmtree(copy / "work", ignore_errors=True)
        return in_fork(lambda: _judged(copy, *words), **limits)

    in_fork(lambda: _judged(made))
    whole = tried("--write")
    for _ in range(trials):
        moment = rng.uniform(0, whole.cpu_s)
        if tried("--write", kill_at_cpu_s=moment).kind == "killed":
            is_whole = (copy / "page.md").read_text() in states
            again = in_fork(lambda: _judged(copy, "--write"))
            outcome = outcome_of(again, whole.text) if is_whole else "wrong"
            yield "claims, kill of --write", outcome, f"killed after {moment:.3f} s: {again}"
    folders = made / "work" / "a", made / "work" / "b"
    artifact = Artifact(*folders, lambda _: None, lambda path: path.suffix == ".json")
    cases = list(damages(artifact, np.random.default_rng(rng.randrange(2**32)), 12))
    for kind, changed in rng.sample(cases, min(4 * trials, len(cases))):
        intact = {path: path.read_bytes() for path in changed}
        for path, data in changed.items():
            path.write_bytes(data)
        ended = tried("--only", "a")
        for path, data in intact.items():
            path.write_bytes(data)
        about = [path.name for path in changed]
        if intact != changed:
            expected = whole.text.replace("251.26, 18", "240.0, 20").replace("251.3, twice 18", "240.0, twice 20")
            yield "claims, damage", outcome_of(ended, expected, about), f"{kind} of {', '.join(about)}: {ended}"
    edits = [("claims.toml", old, new) for old, news in ENTRIES.items() for new in news]
    edits += [("a.json", "251.26", value) for value in VALUES]
    for edit in rng.sample(edits, min(2 * trials, len(edits))):
        ended = tried("--write", edit=edit)
        yield "claims, odd entry or value", _refused(ended), f"{edit[2][:40]!r}: {ended}"
    for line in rng.sample(OPTIONS, min(trials, len(OPTIONS))):
        yield "claims, option", _refused(ended := tried(*shlex.split(line))), f"{line}: {ended}"


def _refused(ended: Ended) -> str:
    return "wrong" if ended.kind == "ok" else outcome_of(ended)
