"""Bugs put into the core one at a time: how many does a test notice?

    python benchmarks/mutation.py map --work work/mutation                    which test runs which line: the whole
        suite once, traced
    python benchmarks/mutation.py run --work work/mutation --mutants 300      draw mutants, run the tests of their lines
    python benchmarks/mutation.py table --work work/mutation                  the score per room, and the mutants
        that no test noticed

It needs the packages of `.[dev]` and coverage (`pip install coverage`), and POSIX: each mutant is tested in a fork of a
process that has imported torch and transformers. A mutant is one change of one expression or statement, drawn uniformly
from all that `mutants_of` lists. `run` resumes: each result is a line of WORK/results-SEED.jsonl. Every 25th trial has
no mutant, and must pass.

A mutant is tested by the tests that ran its line, cheapest first, up to `--budget` seconds of their measured time.
Lines that run at import, or in subprocesses only, are tested by the tests that ran any line of the file, else by the
tests of the room. With `--own-room`, only the tests of the room of the file are run. `WORK/equivalent.json` may name
mutants that cannot change a result, with the reason: {"ID": "reason"}.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import hashlib
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CORE = Path("dcdctl", "core")
SWAPS: dict[type, type] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult,
    ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.BitXor: ast.BitOr, ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip
CONTROL_EVERY = 25
SLOW_SETUP_S = 8.0


@dataclass(frozen=True)
class Mutant:
    """One change: the text between two byte offsets of a file is replaced."""

    file: str
    line: int
    start: int
    stop: int
    kind: str
    old: str
    new: str

    @property
    def id(self) -> str:
        return hashlib.sha256(json.dumps([self.file, self.start, self.old, self.new]).encode()).hexdigest()[:10]

    @property
    def room(self) -> str:
        return _room_of(self.file)


def _room_of(file: str) -> str:
    """The room of a file of the core; `ground` for the modules beside the rooms, whose tests are in tests/ground."""
    room, *inside = Path(file).relative_to(CORE).parts
    return room if inside else "ground"


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def mutants_of(file: str) -> list[Mutant]:
    """Every change of a file that this script can make."""
    raw = (ROOT / file).read_bytes()
    lines = raw.split(b"\n")
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line) + 1)
    found = {}
    for node, kind, new in _changes(ast.parse(raw)):
        start = starts[node.lineno - 1] + node.col_offset
        stop = starts[node.end_lineno - 1] + node.end_col_offset
        mutant = Mutant(file, node.lineno, start, stop, kind, raw[start:stop].decode(), new)
        if mutant.old != new:
            found[mutant.id] = mutant
    return list(found.values())


def _compiles(mutant: Mutant) -> bool:
    with contextlib.suppress(SyntaxError):
        compile(_mutated(mutant), mutant.file, "exec", dont_inherit=True)
        return True
    return False


def _mutated(mutant: Mutant) -> bytes:
    raw = (ROOT / mutant.file).read_bytes()
    return raw[: mutant.start] + mutant.new.encode() + raw[mutant.stop :]


def _changes(tree: ast.AST) -> Iterator[tuple[Any, str, str]]:
    """The node to replace, the kind of the change, and the new text."""
    if isinstance(tree, ast.Assert | ast.JoinedStr | ast.Import | ast.ImportFrom):  # checks of ourselves, and messages
        return
    yield from _changes_here(tree)
    for field, value in ast.iter_fields(tree):
        # Annotations change nothing at run time, and the arguments of an error are its message.
        if field in ("annotation", "returns", "decorator_list") or isinstance(tree, ast.Raise):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _changes(child)


def _changes_here(node: ast.AST) -> Iterator[tuple[Any, str, str]]:
    match node:
        case ast.Compare(ops=[op]) if type(op) in SWAPS:
            yield node, "compare", _with(node, ops=[SWAPS[type(op)]()])
        case ast.BinOp(op=op) if type(op) in SWAPS and not _is_type(node):
            yield node, "arithmetic", f"({_with(node, op=SWAPS[type(op)]())})"
        case ast.BoolOp(op=op):
            yield node, "and/or", f"({_with(node, op=SWAPS[type(op)]())})"
        case ast.UnaryOp(op=ast.Not() | ast.USub(), operand=operand):
            yield node, "unary", f"({ast.unparse(operand)})"
        case ast.Constant(value=bool() as value):
            yield node, "constant", str(not value)
        case ast.Constant(value=int() as value):
            yield node, "constant", str(value + 1)
        case ast.Constant(value=float() as value):
            yield node, "constant", repr(value * 2 or 1.0)
        case ast.If(test=test) | ast.While(test=test) | ast.IfExp(test=test):
            yield test, "condition", f"(not ({ast.unparse(test)}))"
        case ast.comprehension(ifs=[test]):
            yield test, "filter", "True"
        case ast.Expr(value=ast.Call()) | ast.AugAssign() | ast.Raise() | ast.Continue() | ast.Break():
            yield node, "statement", "pass"
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
            yield node, "statement", "pass"
        case ast.Return(value=ast.AST() as value):
            yield value, "return", "None"
        case ast.Call(func=func, args=args, keywords=keywords) if ast.unparse(func) not in (
            "cast",
            "TypeVar",
            "Kind",
            "dataclass",
        ):
            for keyword in keywords:
                yield node, "argument", _with(node, keywords=[other for other in keywords if other is not keyword])
            if len(args) > 1 and not any(isinstance(argument, ast.Starred) for argument in args[:2]):
                yield node, "order", _with(node, args=[args[1], args[0], *args[2:]])
            if ast.unparse(func) in ("min", "max"):
                yield func, "name", "max" if ast.unparse(func) == "min" else "min"


def _is_type(node: ast.BinOp) -> bool:
    """Whether `A | B` is a union of types."""
    return isinstance(node.op, ast.BitOr) and all(
        (isinstance(side, ast.Name) and (side.id[0].isupper() or side.id in ("int", "float", "str", "bool", "list",
        "dict", "tuple")))
        or (isinstance(side, ast.Constant) and side.value is None)
        or isinstance(side, ast.BinOp | ast.Attribute)
        for side in (node.left, node.right)
    )  # fmt: skip


def _with(node: Any, **fields: Any) -> str:
    return ast.unparse(type(node)(**{**dict(ast.iter_fields(node)), **fields}))


def map_lines(work: Path, selection: list[str]) -> None:
    """Run the suite, and note the duration of each test and the tests that ran each line of each file."""
    import coverage
    import pytest

    tracer = coverage.Coverage(data_file=None, source=[str(ROOT / CORE)], config_file=False)
    seconds: dict[str, float] = defaultdict(float)
    users: dict[str, list[str]] = defaultdict(list)
    failed: set[str] = set()

    class Contexts:
        """Lines that a fixture runs belong to all tests that use it, not only to the first one."""

        @pytest.hookimpl(wrapper=True)
        def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
            for name in getattr(item, "fixturenames", ()):
                users[f"fixture {name}"].append(item.nodeid)
            tracer.switch_context(f"test {item.nodeid}")
            self.test = item.nodeid
            return (yield)

        @pytest.hookimpl(wrapper=True)
        def pytest_fixture_setup(self, fixturedef: Any) -> Iterator[None]:
            tracer.switch_context(f"fixture {fixturedef.argname}")
            try:
                return (yield)
            finally:
                tracer.switch_context(f"test {self.test}")

        def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
            seconds[report.nodeid] += report.duration
            if report.failed:
                failed.add(report.nodeid)

    tracer.start()
    pytest.main(["-q", "-p", "no:cacheprovider", "-p", "no:xdist", *selection], plugins=[Contexts()])
    tracer.stop()
    lines: dict[str, dict[int, list[str]]] = {}
    data = tracer.get_data()
    for path in data.measured_files():
        by_line = lines[str(Path(path).relative_to(ROOT))] = {}
        for line, contexts in data.contexts_by_lineno(path).items():
            tests = {context.removeprefix("test ") for context in contexts if context.startswith("test ")}
            tests.update(test for context in contexts if context.startswith("fixture ") for test in users[context])
            by_line[line] = sorted(tests)
    tests = sorted(seconds)
    number = {test: i for i, test in enumerate(tests)}
    document = {
        "failed": sorted(failed),
        "tests": [[test, round(seconds[test], 3)] for test in tests],
        "lines": {
            file: {line: [number[test] for test in found] for line, found in by_line.items()}
            for file, by_line in lines.items()
        },
    }
    (work / "map.json").write_text(json.dumps(document))
    say(f"{len(tests)} tests, {sum(seconds.values()):.0f} s; {len(failed)} failed, and are never run for a mutant")


class LineMap:
    """Which tests to run for a line."""

    def __init__(self, path: Path, own_room: bool) -> None:
        document = json.loads(path.read_text())
        self.tests = [test for test, _ in document["tests"]]
        self.failed = set(document["failed"])
        self._longest: dict[str, float] = defaultdict(float)
        for test, seconds in document["tests"]:
            file = test.partition("::")[0]
            self._longest[file] = max(self._longest[file], seconds)
        self.seconds = [seconds for _, seconds in document["tests"]]
        self.lines = {
            file: {int(line): tests for line, tests in by_line.items()} for file, by_line in document["lines"].items()
        }
        if own_room:
            for file, by_line in self.lines.items():
                # Modules beside the rooms may have a file of tests beside them.
                places = f"tests/{_room_of(file)}/", f"tests/test_{Path(file).stem}.py::"
                own = {i for i, test in enumerate(self.tests) if test.startswith(places)}
                self.lines[file] = {line: [i for i in tests if i in own] for line, tests in by_line.items()}

    def setup(self, i: int) -> float:
        """Seconds that a shared fixture of the test's file may take, which were charged to the first test that used
        it."""
        return self._longest[self.tests[i].partition("::")[0]]

    def select(self, mutant: Mutant, budget: float) -> tuple[list[str], int]:
        """The tests to run, and the number of candidates."""
        by_line = self.lines.get(mutant.file, {})
        numbers = by_line.get(mutant.line) or sorted({test for tests in by_line.values() for test in tests})
        numbers = (
            numbers
            or [i for i, test in enumerate(self.tests) if test.startswith(f"tests/{mutant.room}/")]
            or range(len(self.tests))
        )
        numbers = [i for i in numbers if self.tests[i] not in self.failed]
        stem = Path(mutant.file).stem

        def order(i: int) -> tuple[bool, bool, float]:
            # Tests of the mirrored file early: they are the ones that should notice.
            return self.setup(i) > SLOW_SETUP_S, f"test_{stem}" not in self.tests[i], self.seconds[i]

        chosen, files, spent = [], set(), 0.0
        for i in sorted(numbers, key=order):
            file = self.tests[i].partition("::")[0]
            spent += self.seconds[i] + (0 if file in files else self.setup(i))
            if chosen and spent > budget:
                break
            chosen.append(self.tests[i])
            files.add(file)
        return chosen, len(numbers)


def run(work: Path, *, seed: int, count: int, budget: float, processes: int, only: set[str], own_room: bool) -> None:
    """Test the mutants of a draw that have no result yet."""
    line_map = LineMap(work / "map.json", own_room)
    everything = [
        mutant for path in sorted((ROOT / CORE).rglob("*.py")) for mutant in mutants_of(str(path.relative_to(ROOT)))
    ]
    shuffled = random.Random(seed).sample(everything, len(everything))
    drawn = list(itertools.islice(filter(_compiles, shuffled), count))
    results = work / f"results-{seed}.jsonl"
    done = {json.loads(line)["id"] for line in results.read_text().splitlines()} if results.exists() else set()
    todo = [mutant for mutant in drawn if (mutant.id in only if only else mutant.id not in done)]
    say(f"{len(everything):,} possible mutants, {len(drawn)} drawn with seed {seed}, {len(todo)} to test")
    _import_libraries()
    copies = [_copy_checkout(work / f"copy-{i}") for i in range(processes)]
    jobs: list[Mutant | None] = []
    for i, mutant in enumerate(todo):
        jobs += [None, mutant] if i % CONTROL_EVERY == 0 else [mutant]
    running: dict[int, Trial] = {}
    try:
        while jobs or running:
            while jobs and copies:
                trial = Trial(jobs.pop(0), copies.pop(), line_map, todo, budget)
                running[trial.pid] = trial
            time.sleep(0.05)
            for trial in [trial for trial in running.values() if trial.is_over()]:
                del running[trial.pid]
                copies.append(trial.copy)
                trial.restore()
                _record(trial, results)
    finally:
        for trial in running.values():
            trial.kill()


def _record(trial: Trial, results: Path) -> None:
    if trial.mutant is None:
        assert trial.outcome == "survived", f"the tests fail without a mutant: {trial.log}"
        return
    if trial.outcome == "caught":
        trial.log.unlink()
    facts = {
        "outcome": trial.outcome,
        "seconds": round(time.monotonic() - trial.begin, 1),
        "tests": len(trial.tests),
        "of": trial.candidates,
    }
    with results.open("a") as file:
        file.write(json.dumps({"id": trial.mutant.id, **asdict(trial.mutant), **facts}) + "\n")
    say(f"{trial.outcome:9} {facts['seconds']:6.1f} s  {trial.mutant.file}:{trial.mutant.line} {trial.mutant.kind}")


class Trial:
    """The tests of a mutant in a forked process, in a copy of the checkout; without a mutant it is a control."""

    def __init__(
        self, mutant: Mutant | None, copy: Path, line_map: LineMap, drawn: list[Mutant], budget: float
    ) -> None:
        self.mutant, self.copy, self.log = mutant, copy, copy.parent / f"{mutant.id if mutant else 'control'}.log"
        self.tests, self.candidates = line_map.select(mutant or random.choice(drawn), budget)
        self.begin, self.outcome = time.monotonic(), ""
        """Caught, survived, timeout, or error if pytest itself failed; empty while the tests run."""
        self.limit = 120 + 6 * budget
        if mutant is not None:
            _write(copy, mutant, mutated=True)
        self.pid = os.fork()
        if self.pid == 0:
            self._test()

    def _test(self) -> None:
        os.setsid()
        output = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.chdir(self.copy)
        os.environ |= {"PYTHONPATH": str(self.copy), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
        sys.dont_write_bytecode = True
        sys.path.insert(0, str(self.copy))
        status = 3
        try:
            import pytest

            options = [
                "-q",
                "-x",
                "-p",
                "no:cacheprovider",
                "-p",
                "no:xdist",
                "--rootdir",
                ".",
                "--basetemp",
                f"{self.copy}-temp",
                "--tb=short",
                "-W",
                "ignore::pytest.PytestAssertRewriteWarning",
            ]
            status = int(pytest.main([*options, *self.tests]))
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def is_over(self) -> bool:
        """Whether the tests have ended, or have run for too long."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if pid:
            code = os.waitstatus_to_exitcode(status)
            # 2: a test file cannot be imported; below 0: a signal.
            self.outcome = "survived" if code == 0 else "caught" if code in (1, 2) or code < 0 else "error"
        elif time.monotonic() - self.begin > self.limit:
            self.kill()
            os.waitpid(self.pid, 0)
            self.outcome = "timeout"
        return bool(self.outcome)

    def kill(self) -> None:
        """End the tests and the processes that they left running."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    def restore(self) -> None:
        """Make the copy as it was."""
        self.kill()
        if self.mutant is not None:
            _write(self.copy, self.mutant, mutated=False)


def _write(copy: Path, mutant: Mutant, *, mutated: bool) -> None:
    source = copy / mutant.file
    source.write_bytes(_mutated(mutant) if mutated else (ROOT / mutant.file).read_bytes())
    # A process that a test started may have cached the file of the same second and size.
    for cached in source.parent.glob(f"__pycache__/{source.stem}.*.pyc"):
        cached.unlink()


def _copy_checkout(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    names = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    for name in filter(None, names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder.resolve()


def _import_libraries() -> None:
    """Import what takes seconds, and nothing of dcdctl."""
    import hypothesis
    import matplotlib.pyplot
    import pandas
    import pyarrow.parquet
    import pytest
    import tensorboard
    import torch
    import torch.utils.tensorboard
    import transformers
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer, BertModel, CLIPModel, ViltModel, ViTModel  # noqa: F401

    torch.set_num_threads(1)
    # A fork of a process with running threads would wait for them.
    assert "dcdctl.core" not in sys.modules
    _ = hypothesis, matplotlib.pyplot, pandas, pyarrow.parquet, pytest, tensorboard, transformers


def table(work: Path) -> None:
    """Print the score of each room and of all, and the mutants that survived."""
    reasons = json.loads((work / "equivalent.json").read_text()) if (work / "equivalent.json").exists() else {}
    latest = {}
    for path in sorted(work.glob("results-*.jsonl")):
        latest |= {(path.stem, result["id"]): result for result in map(json.loads, path.read_text().splitlines())}
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for (draw, identity), result in latest.items():
        outcome = "equivalent" if result["outcome"] == "survived" and identity in reasons else result["outcome"]
        for row in (_room_of(result["file"]), f"all, {draw}"):
            counts[row][outcome] += 1
        if outcome == "survived":
            say(f"{identity} {result['file']}:{result['line']} ({result['tests']} of {result['of']} tests)")
            say(f"    - {result['old']}\n    + {result['new']}")
    say(f"\n{'':24}{'mutants':>8}{'caught':>8}{'timeout':>8}{'survived':>9}{'equivalent':>11}{'score':>8}")
    for row, count in counts.items():
        noticed = count["caught"] + count["timeout"]
        score = noticed / max(1, noticed + count["survived"])
        say(
            f"{row:24}{count.total():8}{count['caught']:8}{count['timeout']:8}{count['survived']:9}{count['equivalent']:11}{score:8.1%}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("map", "run", "table"))
    parser.add_argument("--work", type=Path, default=Path("work/mutation"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--mutants", type=int, default=300)
    parser.add_argument("--budget", type=float, default=90, help="seconds of tests per mutant, by their measured time")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--own-room", action="store_true", help="run the tests of the room of the changed file alone")
    parser.add_argument("--only", nargs="*", default=[], help="test these mutants of the draw again")
    parser.add_argument("--tests", nargs="*", default=[], help="with map: only these tests")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the running tests are ended
    arguments.work.mkdir(parents=True, exist_ok=True)
    if arguments.action == "map":
        map_lines(arguments.work, arguments.tests)
    elif arguments.action == "run":
        run(
            arguments.work.resolve(),
            seed=arguments.seed,
            count=arguments.mutants,
            budget=arguments.budget,
            processes=arguments.processes,
            only=set(arguments.only),
            own_room=arguments.own_room,
        )
    else:
        table(arguments.work)


if __name__ == "__main__":
    main()
