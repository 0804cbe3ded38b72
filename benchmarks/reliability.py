"""Counts for docs/reliability.md: kills, damaged files, full disks, hostile files and wrong command lines, on tiny artifacts.

    python benchmarks/reliability.py [--trials 20] [--seed 0] [--only kills damages disks files lines] [--json]

Each trial is a command in a process of its own, in a temporary folder. It ends in one of four ways:

- named: one line that starts with "error:", or a usage error, with exit status 1 or 2
- harmless: the result of an undisturbed run; for kills and full disks, after the same command ran again
- wrong: another result
- traceback: any other exception, another exit status, or a signal

`--trials` is the number per row. Prints one table, or one JSON document. Wrong and traceback must be 0.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))
sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "ground"))

import numpy as np
import torch
import typer
from damage import Artifact, as_new_process, damages, digest_of
from hostile_images import LARGER, OF_SIZE, encoded
from test_corruption import KINDS
from typer.testing import CliRunner

from dcdctl.cli.app import app
from dcdctl.core.errors import DcdError

OUTCOMES = ("named", "harmless", "wrong", "traceback")
LIMIT_S = 120
"""A trial that takes longer is ended; a wrong command line may start a service that runs until it is stopped."""
CPU = ("--device", "cpu")
SIZES = ("model.hidden_size=32", "model.num_layers=2", "model.num_text_layers=1", "model.vocab_size=200", "model.projection_dim=16")
BATCH = ("batch.size=8", "batch.random_negatives=4", "batch.hard_negatives=2")


@dataclass(frozen=True)
class Ended:
    """How a process ended: `kind` is ok, named, traceback, signal or stopped."""

    kind: str
    text: str = ""
    """The result, or the message."""


def in_fork(work: Callable[[], str], *, limit_s: float = LIMIT_S, kill_after_s: float | None = None) -> Ended:
    """Do the work in a child process, which writes how it ended into a file."""
    with tempfile.TemporaryFile("w+", encoding="utf-8") as file:
        child = os.fork()
        if not child:
            with contextlib.redirect_stderr(io.StringIO()):
                json.dump(vars(_ended(work)), file)
                file.flush()
            os._exit(0)
        ends = time.monotonic() + (limit_s if kill_after_s is None else kill_after_s)
        is_stopped = False
        while not (ended := os.waitpid(child, os.WNOHANG))[0]:
            if time.monotonic() > ends and not is_stopped:
                os.kill(child, signal.SIGKILL)
                is_stopped = True
            time.sleep(0.001)
        file.seek(0)
        data = file.read()
    if data and ended[1] == 0:
        return Ended(**json.loads(data))
    return Ended("stopped") if is_stopped else Ended("signal", f"wait status {ended[1]}")


def _ended(work: Callable[[], str]) -> Ended:
    torch.set_num_threads(1)
    try:
        return Ended("ok", work())
    except DcdError as error:
        return Ended("named", str(error))
    except SystemExit as error:
        return Ended("named", str(error))
    except BaseException as error:
        return Ended("traceback", repr(error)[:2000])


def dcdctl(*words: object) -> str:
    """stdout of a command; SystemExit with the message for an error that it names, else the exception."""
    result = CliRunner().invoke(app, list(map(str, words)))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    lines = result.stderr.strip().splitlines()
    if result.exit_code == 0:
        return result.stdout
    if result.exit_code == 2 or (result.exit_code == 1 and lines and lines[-1].startswith("error:")):
        raise SystemExit(lines[-1])
    raise RuntimeError(f"exit status {result.exit_code}: {result.stderr[-500:]}")


def sets(*assignments: str) -> list[str]:
    """The assignments as options."""
    return [word for assignment in assignments for word in ("--set", assignment)]


def contents(folder: Path) -> str:
    """A checksum of all files of a folder."""
    return digest_of({str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()})


def trained(folder: Path) -> str:
    """A checksum of a run's weights and metrics, without the times."""
    drop = ("seconds", "checksum")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    values = [{key: value for key, value in line.items() if key not in drop and "per_s" not in key} for line in lines]
    return digest_of([values, (folder / "model" / "model.safetensors").read_bytes()])


@dataclass(frozen=True)
class Job:
    """A command that writes `out`, and what its result is."""

    name: str
    words: Callable[[Path], list[object]]
    result: Callable[[Path], str] = contents


class Stage:
    """One of everything, tiny: a corpus, a teacher, a cache, a dual student and images."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.corpus, self.teacher, self.cache, self.dual, self.photos = (
            folder / name for name in ("corpus", "teacher", "cache", "dual", "photos")
        )
        scenes = sets("counts.train=24", "counts.val=4", "counts.test=8", "side_px=32")
        prepare = ["prepare", "scenes", "--workers", 1, *scenes]
        distill = ["distill", "demo-dual", "--data", self.corpus, "--cache", self.cache, *CPU, "--resume"]
        steps = sets(*SIZES, "batch.size=8", "optimizer.steps=6", "optimizer.save_every=2", "validation.every=3", "validation.max_images=4")
        pretrain = ["finetune-teacher", "tiny-teacher", "--data", self.corpus, *CPU, *sets(*SIZES, *BATCH, "optimizer.steps=2")]
        score = ["cache-teacher", "--data", self.corpus, "--teacher", self.teacher, "--recipe", "demo-dual", *CPU]
        self.jobs = [
            Job("prepare", lambda out: [*prepare, "--out", out]),
            Job("cache-teacher", lambda out: [*score, "--out", out]),
            Job("distill", lambda out: [*distill, *steps, "--out", out], trained),
            Job("index", lambda out: ["index", self.dual, "--images", self.photos, "--workers", 0, *CPU, "--out", out]),
        ]
        by_name = {job.name: job for job in self.jobs}
        self.make("prepare", by_name["prepare"].words(self.corpus))
        self.make("finetune-teacher", [*pretrain, "--out", self.teacher])
        self.make("cache-teacher", by_name["cache-teacher"].words(self.cache))
        self.make("distill", by_name["distill"].words(self.dual))
        self.make("eval", ["eval", self.dual, "--data", self.corpus, *CPU])
        self.photos.mkdir()
        for number in range(12):
            noise = np.random.default_rng(number).integers(0, 255, (32, 32, 3), dtype=np.uint8)
            (self.photos / f"{number:02}.png").write_bytes(encoded("PNG", _image(noise)))
        self.distill = [*distill, *steps]

    @staticmethod
    def make(name: str, words: Sequence[object]) -> None:
        if (ended := in_fork(lambda: dcdctl(*words), limit_s=1800)).kind != "ok":
            raise SystemExit(f"{name} did not end well: {ended}")


def _image(array: Any) -> Any:
    from PIL import Image

    return Image.fromarray(array)


def outcome_of(ended: Ended, expected: str | None = None, *, may_run_on: bool = False) -> str:
    """The column of a trial; without `expected`, any result is harmless. A command that hangs counts as a traceback."""
    if ended.kind == "ok":
        return "harmless" if expected in (None, ended.text) else "wrong"
    if ended.kind == "stopped" and may_run_on:
        return "harmless"
    return "named" if ended.kind == "named" else "traceback"


Rows = Iterator[tuple[str, str, str]]
"""Trials: the row of the table, the outcome, and the details of one that must not be."""


def kills(stage: Stage, rng: random.Random, trials: int) -> Rows:
    """SIGKILL at a random moment, then the same command again: its result must be that of an undisturbed run."""
    for job in stage.jobs:
        undisturbed = stage.folder / "undisturbed" / job.name
        started = time.monotonic()
        stage.make(job.name, job.words(undisturbed))
        seconds, expected = time.monotonic() - started, job.result(undisturbed)
        for trial in range(trials):
            out = stage.folder / "kills" / f"{job.name}-{trial}"
            moment = rng.uniform(0.0, seconds)
            in_fork(lambda out=out, job=job: dcdctl(*job.words(out)), kill_after_s=moment)
            yield f"kill, {job.name}", *_again(job, out, expected, f"killed after {moment:.3f} s")
            shutil.rmtree(out, ignore_errors=True)


def _again(job: Job, out: Path, expected: str, details: str) -> tuple[str, str]:
    """The outcome of the same command again."""

    def work() -> str:
        dcdctl(*job.words(out))
        return job.result(out)

    ended = in_fork(work)
    return outcome_of(ended, expected), f"{details}: {ended}"


def damaged_files(stage: Stage, rng: random.Random, trials: int) -> Rows:
    """Flipped bits, zeros, truncated, longer and swapped files, then a full read."""
    for name, make in {**KINDS, **run_kinds(stage)}.items():
        folder = stage.folder / "damages" / name.replace(" ", "-")
        folder.mkdir(parents=True)
        artifact = make(folder)
        seeds = np.random.default_rng(rng.randrange(2**32))

        def read(artifact: Artifact = artifact) -> str:
            as_new_process()
            return digest_of(artifact.read(artifact.folder))

        intact_result = in_fork(read)
        assert intact_result.kind == "ok", intact_result
        cases = list(damages(artifact, seeds, 1 + trials // (3 * len(artifact.files))))
        for kind, changed in rng.sample(cases, min(trials, len(cases))):
            intact = {path: path.read_bytes() for path in changed}
            for path, data in changed.items():
                path.write_bytes(data)
            ended = in_fork(read)
            for path, data in intact.items():
                path.write_bytes(data)
            yield f"damage, {name}", outcome_of(ended, intact_result.text), f"{kind} of {', '.join(map(str, changed))}: {ended}"


def run_kinds(stage: Stage) -> dict[str, Callable[[Path], Artifact]]:
    """A run folder as its readers read it: evaluation and report, and a resumed training."""

    def finished(folder: Path) -> Artifact:
        shutil.copytree(stage.dual, folder / "made")

        def read(path: Path) -> Any:
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                evaluated = dcdctl("eval", path, "--data", stage.corpus, *CPU, "--json", "--out", f"{scratch}/eval")
                dcdctl("report", path, "--out", f"{scratch}/page.html", "--csv", f"{scratch}/numbers.csv")
                return evaluated, Path(scratch, "numbers.csv").read_bytes()

        return Artifact(
            folder / "made", folder / "absent", read, lambda path: "checkpoints" not in path.parts and "tensorboard" not in path.parts
        )

    def unfinished(folder: Path) -> Artifact:
        shutil.copytree(stage.dual, folder / "made")
        shutil.rmtree(folder / "made" / "model")

        def read(path: Path) -> Any:
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                # Training changes the run, so each reading has a copy; the recipe names no folder.
                copy = shutil.copytree(path, Path(scratch) / "made")
                dcdctl(*stage.distill, "--out", copy)
                return trained(copy)

        return Artifact(folder / "made", folder / "absent", read, lambda path: "tensorboard" not in path.parts)

    return {"finished run": finished, "checkpoint": unfinished}


def full_disks(stage: Stage, rng: random.Random, trials: int) -> Rows:
    """A small file system, or a limit on the size of files where none can be mounted; then the same command with room."""
    for job in stage.jobs:
        undisturbed = stage.folder / "with room" / job.name
        stage.make(job.name, job.words(undisturbed))
        expected, sizes = job.result(undisturbed), [path.stat().st_size for path in undisturbed.rglob("*") if path.is_file()]
        for trial in range(trials):
            disk = stage.folder / "disks" / f"{job.name}-{trial}"
            disk.mkdir(parents=True)
            room = max(4096, int(rng.uniform(0, 1) * sum(sizes)))
            mount = ["mount", "-t", "tmpfs", "-o", f"size={room}", "tmpfs", str(disk)]
            is_mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
            largest = None if is_mounted else int(rng.uniform(0, 1) * max(sizes))

            def work(job: Job = job, out: Path = disk / "out", largest: int | None = largest) -> str:
                if largest is not None:
                    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, resource.RLIM_INFINITY))
                return dcdctl(*job.words(out))

            try:
                ended = in_fork(work)
                yield f"full disk, {job.name}", outcome_of(ended), f"room for {room if is_mounted else largest}: {ended}"
                if is_mounted:
                    subprocess.run(["mount", "-o", "remount,size=64M", str(disk)], check=True)
                yield f"full disk, {job.name}, again", *_again(job, disk / "out", expected, "with room")
            finally:
                if is_mounted:
                    subprocess.run(["umount", str(disk)], check=True)
                shutil.rmtree(disk, ignore_errors=True)


def hostile_files(stage: Stage, rng: random.Random, trials: int) -> Rows:
    """Images that promise more than they hold, and tables with random changes, given to `prepare`."""
    header, good = "image,caption\n", encoded("PNG")
    for trial in range(trials):
        folder = stage.folder / "hostile" / str(trial)
        folder.mkdir(parents=True)
        (folder / "good.png").write_bytes(good)
        form, size = rng.choice(list(OF_SIZE)), rng.choice([*LARGER, (60_000, 60_000)])
        data = bytearray(OF_SIZE[form](*size))
        table = bytearray((header + "odd.png,a dog\ngood.png,two cats\n").encode())
        victim = rng.choice(["image header", "image bytes", "table bytes"])
        if victim != "image header":
            changed = data if victim == "image bytes" else table
            for _ in range(rng.randint(1, 8)):
                changed[rng.randrange(len(changed))] = rng.randrange(256)
        (folder / "odd.png").write_bytes(data)
        (folder / "pairs.csv").write_bytes(table)
        words = ["prepare", "--csv", folder / "pairs.csv", "--images", folder, "--out", folder / "out", "--workers", 1]
        ended = in_fork(lambda words=words: dcdctl(*words))
        yield f"hostile file, {victim}", outcome_of(ended), f"{form} {size}: {ended}"
        shutil.rmtree(folder)


VALUES = ("absent", "-1", "0", "", "1e999", "nan", "/proc/x", "../..", "=cmd", "\u202e", "a" * 100_000, "--", "cuda:77", "key=", "\0")


def wrong_lines(stage: Stage, rng: random.Random, trials: int) -> Rows:
    """Valid command lines with one option that has a wrong value or none, or that is unknown."""
    index = stage.folder / "index"
    stage.make("index", ["index", stage.dual, "--images", stage.photos, "--workers", 0, *CPU, "--out", index])
    valid: dict[str, list[object]] = {job.name: job.words(Path("OUT")) for job in stage.jobs}
    valid |= {
        "eval": ["eval", stage.dual, "--data", stage.corpus, *CPU, "--out", "OUT"],
        "report": ["report", stage.dual, "--out", "OUT.html"],
        "inspect": ["inspect", stage.cache],
        "search": ["search", index, "a dog"],
        "export": ["export", stage.dual, "OUT", "--to", "transformers"],
        "compare": ["compare", stage.dual, stage.dual],
        "convert": ["convert", stage.teacher, "OUT"],
        "bench": ["bench", stage.dual, "--teacher", stage.teacher, "--data", stage.corpus, "--split", "test", *CPU],
    }
    tree: Any = typer.main.get_command(app)
    for trial in range(trials):
        name = rng.choice(list(valid))
        scratch = stage.folder / "lines" / str(trial)
        scratch.mkdir(parents=True)
        words, option = list(valid[name]), rng.choice([one for one in tree.commands[name].params if one.name != "help"])
        mistake = rng.choice(["wrong value", "no value", "unknown option"])
        flag = option.opts[0]
        if mistake == "unknown option":
            words.append("--nonsense")
        elif not flag.startswith("--"):
            words[1] = rng.choice(VALUES)
        else:
            words += [flag] if mistake == "no value" else [flag, rng.choice(VALUES)]

        def work(words: list[object] = words, scratch: Path = scratch) -> str:
            os.chdir(scratch)
            return dcdctl(*words)

        ended = in_fork(work, limit_s=20)
        yield f"command line, {mistake}", outcome_of(ended, may_run_on=True), f"{' '.join(map(str, words))[:300]}: {ended}"
        shutil.rmtree(scratch, ignore_errors=True)


PARTS: dict[str, Callable[[Stage, random.Random, int], Rows]] = {
    "kills": kills,
    "damages": damaged_files,
    "disks": full_disks,
    "files": hostile_files,
    "lines": wrong_lines,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=20, help="trials per row")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    counts: dict[str, Counter[str]] = {}
    bad: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        stage = Stage(Path(folder))
        for part in options.only:
            for row, outcome, details in PARTS[part](stage, random.Random(f"{options.seed} {part}"), options.trials):
                counts.setdefault(row, Counter())[outcome] += 1
                if outcome in ("wrong", "traceback"):
                    bad.append(f"{row}: {outcome}: {details}")
                    sys.stderr.write(bad[-1][:1500] + "\n")
    rows = [{"row": row, "trials": count.total(), **{name: count[name] for name in OUTCOMES}} for row, count in counts.items()]
    if options.json:
        sys.stdout.write(json.dumps({"seed": options.seed, "rows": rows, "bad": bad}) + "\n")
        return
    sys.stdout.write(f"| | trials | {' | '.join(OUTCOMES)} |\n|---|---|---|---|---|---|\n")
    for counted in rows:
        sys.stdout.write(f"| {' | '.join(f'{value:,}' if isinstance(value, int) else str(value) for value in counted.values())} |\n")


if __name__ == "__main__":
    main()
