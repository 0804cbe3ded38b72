"""Runs the commands behind the numbers of the pages again, and says for each claim PASS, DRIFT or NOT RUN.

    python benchmarks/claims.py                               the runs of up to ten minutes (make claims)
    python benchmarks/claims.py --all --vision DIR --text DIR --karpathy JSON --images ZIP      (make claims-all)
    python benchmarks/claims.py --only demo --only meter-pairs            runs, or claims, by name
    python benchmarks/claims.py --only demo --write           and store what was measured

`claims.toml` has the runs and the claims. A text of a claim stands on its page as it stands there, with the values of
`expected` in place of `{}`; `at` says where a run's files have them. A killed run resumes, and a finished one is not
run again until `dcdctl/` changes; its results are compared with their checksums. `--write` stores what was measured, by
a run or in the committed results, in claims.toml and on the pages, and for each run its date, commit and machine. The
exit status is 1 if a claim drifted or a command failed.
"""

from __future__ import annotations

import argparse
import json
import math
import operator
import os
import platform
import re
import shlex
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from claims_file import CLAIMS, GIVEN, At, Claim, Run, is_within, load, placeholders
from reports import processor, say

from dcdctl.core import artifacts, files
from dcdctl.core.errors import DcdError, StaleError
from dcdctl.core.progress import silent

ROOT = CLAIMS.parent.parent
MARKER = "claims.json"
"""In the folder of a run: what was measured of it, and which code and machine did."""
SHORT_MINUTES = 10
OPERATORS = {"plus": operator.add, "minus": operator.sub, "times": operator.mul, "over": operator.truediv}
PASS, DRIFT, NOT_RUN = "PASS", "DRIFT", "NOT RUN"
BOUNDS = ("low", "high")


class MissingValueError(Exception):
    """No file has the value."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a claim."""

    verdict: str
    measured: Sequence[float] = ()
    why: str = ""
    """Of a claim that was not run."""
    is_failure: bool = False
    """Whether a command failed."""


def read_all(claim: Claim, folder: Path) -> list[float]:
    """The values of a claim in these files; MissingValueError if they lack one."""
    return [read(at, folder, claim.base) for at in claim.at]


def read(at: At, folder: Path, base: str = "") -> float:
    """The value at this place; MissingValueError if there is none, or no finite number."""
    try:
        if isinstance(at, str):
            pattern, *keys = (f"{base} > {at}" if base else at).split(" > ")
            found = [parse(path) for path in sorted(folder.glob(pattern))]
            for key in keys:
                found = [value for each in found for value in select(each, key)]
            if any(isinstance(each, bool) for each in found):
                raise TypeError
            value = statistics.fmean(found)
        elif isinstance(at, list):
            name, *operands = at
            value = OPERATORS[name](*(read(each, folder, base) for each in operands))
        else:
            value = float(at)
        if math.isfinite(value):
            return value
    except (LookupError, ValueError, TypeError, ArithmeticError, RecursionError, OSError):
        pass
    raise MissingValueError(f"{folder} has no {at}")


def parse(path: Path) -> Any:
    """A JSON file, the JSON line with which a benchmark ends, or the tables of a page: by heading, row and column the
    numbers of a cell."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        return json.loads(text if text[:1] in ("{", "[") else text.splitlines()[-1])
    tables: dict[str, dict[str, dict[str, list[float]]]] = {}
    for part in text.split("### ")[1:]:
        title, *lines = part.splitlines()
        columns, _, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line[:1] == "|")
        tables[title] = {row[0]: dict(zip(columns, map(numbers, row), strict=True)) for row in rows}
    return tables


def numbers(cell: str) -> list[float]:
    """The numbers of a cell: `+3.7 (0.6 to 6.9)` has three."""
    return [float(each.replace(",", "")) for each in re.findall(r"[+-]?\d[\d,]*\.?\d*(?<!,)", cell)]


def select(value: Any, key: str) -> list[Any]:
    """The entry of a table with this name, or whose name ends so (`*name`); the entries of a list at this place, with
    these fields, or all (`*`). `low` and `high` are also those of an interval that is a list."""
    if isinstance(value, dict):
        names = [name for name in value if key[:1] == "*" and name.endswith(key[1:])]
        return [value[name] for name in names or [key]]
    if key in BOUNDS:
        return [value[BOUNDS.index(key)]]
    if key == "*" or key.isdigit():
        return list(value) if key == "*" else [value[int(key)]]
    fields = [part.split("=", 1) for part in key.split(" & ")]
    return [each for each in value if all(str(each[name]) == wanted for name, wanted in fields)]


def judge(claim: Claim, run: Run, folder: Path) -> Outcome:
    """Compare a claim with the files of its finished run."""
    if not claim.at:
        return Outcome(verdict=NOT_RUN, why="no file of the run has it")
    try:
        measured = read_all(claim, folder)
    except MissingValueError as error:
        return Outcome(verdict=NOT_RUN, why=str(error))
    tolerances = claim.tolerance or [run.tolerance] * len(measured)
    is_shown = claim.shown(measured) == claim.shown()
    is_near = all(map(is_within, measured, claim.expected, tolerances))
    return Outcome(verdict=PASS if is_shown or is_near else DRIFT, measured=measured)


@dataclass(frozen=True)
class Bench:
    """Where runs are made, and with what."""

    work: Path
    given: Mapping[str, str]
    is_all: bool
    only: Sequence[str]

    def folder(self, name: str) -> Path:
        return self.work / name

    def filled(self, line: str, folder: Path) -> str:
        """A line with the folder of its run and what was given."""
        return line.format(**{name: shlex.quote(value) for name, value in {"work": str(folder), **self.given}.items()})

    def obstacle(self, run: Run) -> str:
        """Why a run cannot start here; empty if it can."""
        lacking = [f"--{name}" for name in GIVEN if name in placeholders(run) and name not in self.given]
        if run.needs or lacking:
            return f"needs {run.needs or ' '.join(lacking)}"
        is_meant = self.is_all or self.only
        return f"takes {run.minutes:g} minutes: --all" if run.minutes > SHORT_MINUTES and not is_meant else ""

    def finish(self, name: str, run: Run) -> str:
        """Run the steps that this code has not done yet. Why it failed; empty if it did not. StaleError if a file is
        not as a finished run left it."""
        folder = self.folder(name)
        marker = read_marker(folder)
        if marker.get("code") != code():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            marker = {"code": code(), "planned": planned(), "seconds": {}, "last": {}}
        elif run.steps.keys() <= marker["seconds"].keys():
            artifacts.check_files(folder, marker["files"], hint=f"delete {folder} to run it again")
        for step, line in run.steps.items():
            if step in marker["seconds"]:
                continue
            is_resumed = marker.get("started") == step
            write_marker(folder, marker | {"started": step})
            say(f"{time.strftime('%H:%M:%S')} {name}: {line}")
            started = time.perf_counter()
            if status := execute(self.filled(line, folder), folder / f"{step}.log"):
                return f"{step} ended with {status}; see {folder / step}.log"
            # A resumed step was measured in part.
            marker["seconds"][step] = None if is_resumed else round(time.perf_counter() - started, 2)
            marker["megabytes"] = megabytes(folder)
            names = (path for path in folder.rglob("*") if path.suffix in (".json", ".md") and path.name != MARKER)
            marker["files"] = artifacts.list_files(folder, sorted(str(path.relative_to(folder)) for path in names))
            marker["last"] = machine() | {
                "minutes": round(sum(map(float, filter(None, marker["seconds"].values()))) / 60, 1)
            }
            write_marker(folder, marker)
        return ""


def execute(line: str, log: Path) -> int:
    """Run a line with this Python; a training that was killed resumes. What it prints, such as a `--json` document, is
    the file of the step. Its exit status. A line may begin with variables, as in a shell: OMP_NUM_THREADS=1."""
    words = shlex.split(line)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    while "=" in words[0]:
        name, _, environment[name] = words.pop(0).partition("=")
    if (
        words[:2] in (["dcdctl", "distill"], ["dcdctl", "finetune-teacher"])
        and "--out" in words[:-1]
        and (Path(words[words.index("--out") + 1]) / "run.json").exists()
    ):
        words.append("--resume")
    program = [sys.executable, "-m", "dcdctl"] if words[0] == "dcdctl" else [sys.executable]
    with log.open("a") as errors, log.with_suffix(".json").open("w") as output:
        command = [*program, *words[1:]]
        return subprocess.run(command, cwd=ROOT, env=environment, stdout=output, stderr=errors, check=False).returncode


def read_marker(folder: Path) -> dict[str, Any]:
    """What was measured; StaleError for a damaged file."""
    path = folder / MARKER
    return artifacts.read_document(path, hint=f"delete {folder} to run it again") if path.exists() else {}


def write_marker(folder: Path, marker: Mapping[str, Any]) -> None:
    artifacts.write_document(folder / MARKER, marker)


def megabytes(folder: Path) -> dict[str, float]:
    """The size of each folder in it, and of each folder in these."""
    places = [path for pattern in ("*/", "*/*/") for path in folder.glob(pattern)]
    sizes = {place: sum(path.stat().st_size for path in place.rglob("*") if path.is_file()) for place in places}
    return {str(place.relative_to(folder)): size / 1e6 for place, size in sizes.items()}


def git(*words: str) -> str:
    command = ["git", "-C", str(ROOT), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def code() -> str:
    """The package as committed: a commit that changes pages alone lets finished runs stand."""
    return git("rev-parse", "--short", "HEAD:dcdctl")


def planned() -> dict[str, str]:
    """Date and commit of the expectations; nothing if they are not committed."""
    if git("status", "--porcelain", "--", str(CLAIMS)):
        say("claims.toml has changes that no commit has: an expectation counts if it is committed before the run")
        return {}
    date, _, commit = git("log", "-1", "--format=%cs %h", "--", str(CLAIMS)).partition(" ")
    return {"date": date, "commit": commit}


def machine() -> dict[str, str]:
    """Date, commit and machine of a run."""
    python = platform.python_version()
    return {
        "date": time.strftime("%Y-%m-%d"),
        "commit": git("describe", "--always", "--dirty=+", "--exclude=*"),
        "machine": f"{os.cpu_count()} cores, {processor()}, Python {python}",
    }


def check(runs: Mapping[str, Run], claims: Mapping[str, Claim], bench: Bench) -> dict[str, Outcome]:
    """Make the runs that can be made here, and judge the claims."""
    outcomes: dict[str, Outcome] = {}
    for name, run in runs.items():
        mine = {claim_id: claim for claim_id, claim in claims.items() if claim.run == name}
        if bench.only:
            mine = {claim_id: claim for claim_id, claim in mine.items() if {name, claim_id} & set(bench.only)}
        if not mine:
            continue
        obstacle = bench.obstacle(run)
        try:
            failure = "" if obstacle else bench.finish(name, run)
        except DcdError as error:
            failure = str(error)
        for claim_id, claim in mine.items():
            outcome = Outcome(verdict=NOT_RUN, why=obstacle or failure, is_failure=bool(failure))
            outcomes[claim_id] = outcome if outcome.why else judge(claim, run, bench.folder(name) / run.results)
            say_outcome(claim_id, claim, outcomes[claim_id])
    return outcomes


def say_outcome(claim_id: str, claim: Claim, outcome: Outcome) -> None:
    """One line: verdict, claim, expected and measured values, or why there are none."""
    expected = ", ".join(f"{value:g}" for value in claim.expected)
    measured = ", ".join(f"{value:.4g}" for value in outcome.measured)
    sys.stdout.write(f"{outcome.verdict:7}  {claim_id:28}  {expected:28}  {measured or outcome.why}\n")
    sys.stdout.flush()


def store(runs: Mapping[str, Run], claims: Mapping[str, Claim], outcomes: Mapping[str, Outcome], bench: Bench) -> None:
    """Write what was measured into claims.toml and the pages; StaleError, before a file is written, if a page does not
    have the text of a claim once. Killed between two files, the same command writes the rest."""
    texts = {CLAIMS: CLAIMS.read_text(encoding="utf-8")}
    for claim_id, outcome in outcomes.items():
        claim = claims[claim_id]
        measured = outcome.measured or published(claim, runs[claim.run])
        if not measured or claim.shown(measured) == claim.shown():
            continue
        for (page, old), (_, new) in zip(claim.shown(), claim.shown(measured), strict=True):
            path = ROOT / page
            text = texts.get(path) or path.read_text(encoding="utf-8")
            if text.count(old) != 1 and new not in text:
                problem = f"{page} has the text of {claim_id} {text.count(old)} times, expected once"
                raise StaleError(problem, hint="was it changed meanwhile? Run the command again")
            texts[path] = text.replace(old, new)
        values = ", ".join(f"{value:.6g}" for value in measured)
        texts[CLAIMS] = set_line(texts[CLAIMS], f"claims.{claim_id}", "expected", f"[{values}]")
    for name in {claims[claim_id].run for claim_id in outcomes}:
        marker = read_marker(bench.folder(name))
        for key in ("planned", "last"):
            if marker.get(key):
                pairs = ", ".join(f"{field} = {json.dumps(value)}" for field, value in marker[key].items())
                texts[CLAIMS] = set_line(texts[CLAIMS], f"runs.{name}", key, f"{{ {pairs} }}")
    # claims.toml last: what it says is on the pages.
    for path in [*texts][::-1]:
        files.write_text(path, texts[path])
    say("stored; python tests/support/recipe_table.py writes docs/recipes.md if a recipe's head changed")


def published(claim: Claim, run: Run) -> list[float]:
    """The values of the committed results; none if there are none."""
    try:
        return read_all(claim, ROOT / run.published) if run.published else []
    except MissingValueError:
        return []


def set_line(document: str, table: str, key: str, value: str) -> str:
    """Replace a key of a table, or add it below the minutes of a run, leaving all else as it is."""
    head, start, rest = document.partition(f"[{table}]\n")
    body, separator, tail = rest.partition("\n[")
    line = f"{key} = {value}"
    if not re.search(rf"^{key} = ", body, re.MULTILINE):
        body = re.sub(r"^minutes = .*$", rf"\g<0>\n{key} = ", body, flags=re.MULTILINE)
    body = re.sub(rf"^{key} = .*$", lambda _: line, body, flags=re.MULTILINE)
    return head + start + body + separator + tail


def existing(path: str) -> str:
    if not path or not Path(path).exists():
        raise argparse.ArgumentTypeError(f"{path!r} does not exist")
    return str(Path(path).resolve())


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="also runs of more than ten minutes")
    parser.add_argument("--only", action="append", default=[], help="a run or a claim; repeatable")
    parser.add_argument("--write", action="store_true", help="store what was measured in claims.toml and the pages")
    parser.add_argument("--work", type=Path, default=ROOT / "work" / "claims", help="folder of the runs")
    for name in GIVEN:
        parser.add_argument(f"--{name}", type=existing, help="see evidence.py")
    args = parser.parse_args(arguments)
    given = {name: getattr(args, name) for name in GIVEN if getattr(args, name)}
    bench = Bench(args.work.resolve(), given, args.all, args.only)
    try:
        runs, claims = load()
        if unknown := set(args.only) - {*runs, *claims}:
            parser.error(f"claims.toml has no {', '.join(sorted(unknown))}")
        files.check_output_folder(bench.work)
        with files.lock(bench.work):
            outcomes = check(runs, claims, bench)
        verdicts = [outcome.verdict for outcome in outcomes.values()]
        say(", ".join(f"{verdicts.count(each)} {each}" for each in (PASS, DRIFT, NOT_RUN)))
        if args.write:
            with files.lock(CLAIMS.parent, wait=silent):
                store(runs, claims, outcomes, bench)
    except DcdError as error:
        say(f"error: {error}")
        return 2
    return int(DRIFT in verdicts or any(outcome.is_failure for outcome in outcomes.values()))


if __name__ == "__main__":
    sys.exit(main())
