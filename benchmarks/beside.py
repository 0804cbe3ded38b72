"""What takes time in dcdctl, alone and beside one and two trainings, by how long the threads of torch spin.

    python benchmarks/beside.py --spins 300000 1000 --rounds 5
    python benchmarks/beside.py --spins 300000 0 1000 10000 --only "scoring" "eval" --rounds 2

libgomp lets a thread that waits for the others look GOMP_SPINCOUNT times before it sleeps; its own default is 300,000,
and `import dcdctl` sets another one. All values are measured in turns in every round, the first one last in every
second. Each has a process that measures, and two that train: a training is the other work, with the same value, as two
commands of dcdctl have it. They are stopped (SIGSTOP) while nothing is to run beside. Starts and imports are not in the
times; the first turn of a case is not counted.

A ratio is that of the times of the first value and of another one, the median of the rounds: above 1 the other value
is faster. "beside 1" and "beside 2" also have how much longer a case takes than alone.

The trainings beside a case also wait for cores by their value: by one that spins they do less.

Ends with one JSON line, with the load of the machine at the start: numbers of a machine with other work are not those
of "alone".
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from reports import facts, say, table

STEPS, SCORED, SEARCHES = 12, 16, 100
"""Steps of a training, images whose captions are scored, and requests to the service, in one turn."""
SCENES = {"counts.train": 256, "counts.val": 8, "counts.test": 256, "side_px": 64}
KINDS = {
    "dual": ("demo-dual-alone", {"batch.size": 32}),
    "late": ("demo-late", {"batch.size": 32, "loss.terms": {"infonce": 1.0}}),
    "fusion": ("demo-fusion", {"batch.size": 12}),
    "query": ("query-minilm", {"batch.size": 64, "model.text": "", "model.hidden_size": 128, "model.vocab_size": 1000}),
}
"""Recipe of a student of each kind, and its settings here."""
OTHERS = (0, 1, 2)


class Stage:
    """The data and the models that the cases use, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data, self.dual, self.late = (str(folder / name) for name in ("data", "dual", "late"))
        self.caches = {"fusion": str(folder / "fusion-cache"), "query": str(folder / "texts")}

    def make(self) -> None:
        """Make them by commands."""
        scenes = ("--teacher", "scenes-vilt", "--data", self.data)
        for words in (
            ["prepare", "scenes", "--out", self.data, *_sets(SCENES)],
            ["distill", "demo-dual-alone", "--data", self.data, *_sets({"optimizer.steps": 2}), "--out", self.dual],
            ["cache-teacher", *scenes, "--recipe", "demo-fusion", "--out", self.caches["fusion"]],
            ["cache-texts", "--teacher", self.dual, "--texts", self.data, "--out", self.caches["query"]],
            ["index", self.dual, "--images", self.data, "--out", str(self.folder / "index")],
        ):
            done = subprocess.run([sys.executable, "-m", "dcdctl", *words], capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"{' '.join(words)}:\n{done.stderr}")

    def train(self, kind: str, out: Path) -> None:
        import dcdctl

        name, settings = KINDS[kind]
        recipe = dcdctl.load_recipe(name, {**settings, "optimizer.steps": STEPS, "validation.every": 0})
        given: dict[str, Any] = {"cache": self.caches[kind]} if kind in self.caches else {}
        if kind == "fusion":
            given["teacher"] = "scenes-vilt"
        dcdctl.distill(recipe, None if kind == "query" else self.data, out, **given)

    def score(self, out: Path) -> None:
        import dcdctl

        dcdctl.evaluate("scenes-vilt", self.data, out=out, max_images=SCORED)

    def evaluate(self, out: Path) -> None:
        import dcdctl

        dcdctl.evaluate(self.dual, self.data, out=out)

    def index(self, out: Path) -> None:
        import dcdctl

        dcdctl.Index.build(self.dual, self.data, out)


class Service:
    """`dcdctl serve` of the index, and the requests to it."""

    def __init__(self, stage: Stage) -> None:
        words = ["serve", str(stage.folder / "index"), "--port", "0", "--json"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "dcdctl", *words], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert self.process.stdout is not None
        self.url = json.loads(self.process.stdout.readline())["url"]

    def search(self, out: Path) -> None:
        for number in range(SEARCHES):
            with urllib.request.urlopen(f"{self.url}search?text=a+red+circle+{number}") as answer:
                answer.read()


def cases(stage: Stage) -> dict[str, Callable[[Path], None]]:
    """What is timed, by name; each is given a folder that does not exist."""
    service: list[Service] = []

    def search(out: Path) -> None:
        if not service:
            service.append(Service(stage))
        service[0].search(out)

    trainings = {f"training, {kind}": lambda out, kind=kind: stage.train(kind, out) for kind in KINDS}
    return {"scoring": stage.score, **trainings, "index": stage.index, "eval": stage.evaluate, "serve": search}


NAMES = tuple(cases(Stage(Path())))


def measure_asked(stage: Stage) -> None:
    """Time the case of each line of stdin, and print its seconds."""
    timed = cases(stage)
    for line in sys.stdin:
        out = Path(tempfile.mkdtemp(dir=stage.folder)) / "out"
        started = time.perf_counter()
        timed[line.strip()](out)
        seconds = time.perf_counter() - started
        shutil.rmtree(out.parent)
        sys.stdout.write(f"{seconds}\n")
        sys.stdout.flush()


def train_on(stage: Stage) -> None:
    """Train until stopped, and print a line once it has begun."""
    while True:
        out = Path(tempfile.mkdtemp(dir=stage.folder)) / "out"
        stage.train("late", out)
        shutil.rmtree(out.parent)
        sys.stdout.write("trains\n")
        sys.stdout.flush()


class Bench:
    """The processes of one value: one that measures, and those that train beside it."""

    def __init__(self, stage: Stage, spins: str, ends: ExitStack) -> None:
        environment = {**os.environ, "GOMP_SPINCOUNT": spins}
        self.measuring, *self.others = (
            subprocess.Popen(
                [sys.executable, __file__, "--stage", str(stage.folder), "--do", what],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                start_new_session=True,
            )
            for what in ("measure", *["train"] * max(OTHERS))
        )
        for process in (self.measuring, *self.others):
            ends.callback(os.killpg, process.pid, signal.SIGKILL)
        for other in self.others:
            assert other.stdout is not None
            other.stdout.readline()
            other.send_signal(signal.SIGSTOP)

    def seconds(self, case: str, num_others: int) -> float:
        for other in self.others[:num_others]:
            other.send_signal(signal.SIGCONT)
        assert self.measuring.stdin is not None
        assert self.measuring.stdout is not None
        self.measuring.stdin.write(f"{case}\n")
        self.measuring.stdin.flush()
        line = self.measuring.stdout.readline()
        for other in self.others:
            other.send_signal(signal.SIGSTOP)
        if not line:
            raise SystemExit(f"{case} failed: run it with --stage DIR --do measure to see why")
        return float(line)


def _sets(settings: dict[str, object]) -> list[str]:
    return [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]


def run(stage: Stage, spins: Sequence[str], only: Sequence[str], rounds: int) -> dict[str, Any]:
    """Seconds of each case by value, number of others and round."""
    with ExitStack() as ends:
        benches = {value: Bench(stage, value, ends) for value in spins}
        times: dict[str, Any] = {case: {value: {n: [] for n in OTHERS} for value in spins} for case in only}
        for number in range(-1, rounds):
            for case in only:
                for others in OTHERS if number >= 0 else (0,):
                    for value in sorted(spins, key=spins.index, reverse=number % 2 == 1):
                        spent = benches[value].seconds(case, others)
                        if number >= 0:
                            times[case][value][others].append(spent)
                            say(f"round {number + 1}: {case}, {others} others, {value}: {spent:.3f} s")
    return times


def summary(times: dict[str, Any], spins: Sequence[str]) -> list[list[str]]:
    """A row for each case and value."""
    rows = []
    for case, of_case in times.items():
        for value in spins:
            cells = [case, value]
            for others in OTHERS:
                pairs = zip(of_case[spins[0]][others], of_case[value][others], strict=True)
                ratio = statistics.median(first / own for first, own in pairs)
                cells.append(f"{statistics.median(of_case[value][others]):.2f} s, {ratio:.2f}")
            rows.append(cells)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spins", nargs="+", default=["300000", "0", "1000", "10000"])
    parser.add_argument("--only", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--stage", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--do", choices=["measure", "train"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.do:
        return {"measure": measure_asked, "train": train_on}[args.do](Stage(args.stage))
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as scratch:
        stage = Stage(Path(scratch))
        stage.make()
        times = run(stage, args.spins, args.only, args.rounds)
    head = ["", "spins", "alone", "beside 1", "beside 2"]
    sys.stdout.write(table(head, summary(times, args.spins)) + "\n")
    found = {**facts("transformers"), "load": load, "rounds": args.rounds, "seconds": times}
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
