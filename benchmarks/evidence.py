"""Does a teacher pay? Trains, measures and compares the students of a plan: `evidence_flickr8k.py` and `evidence_scenes.py`.

    python benchmarks/evidence.py flickr8k --work work/flickr8k --vision EFFICIENTNET --text MINILM --karpathy JSON --images ZIP
    python benchmarks/evidence.py scenes --work work/scenes
    python benchmarks/evidence.py small --work work/small            (make results-small)
    python benchmarks/evidence.py flickr8k --work work/flickr8k --table "Dual students, 6,000 photos"
    python benchmarks/evidence.py flickr8k --work work/flickr8k --tables-only

Every step is a `dcdctl` command that could be typed in the work folder. What is done is not done again, so a killed plan goes on: whole
steps are skipped, a half-made one is resumed. Runs of which no result is kept go first. Steps run --jobs at a time, one thread each, and
their cost is in processor seconds. Into docs/results/PLAN go run.json and result.json of every run, what it cost, the comparisons, the
tables and the plot.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import evidence_flickr8k
import evidence_scenes
import evidence_tables
from evidence_steps import Step

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results"
PLANS = {"flickr8k": evidence_flickr8k.flickr8k, "scenes": evidence_scenes.scenes, "small": evidence_scenes.small}


@dataclass(frozen=True)
class Place:
    """Where a plan runs."""

    plan: str
    work: Path

    @property
    def results(self) -> Path:
        return RESULTS / self.plan

    def folder(self, step: Step) -> Path:
        return self.work / step.out

    def is_done(self, step: Step) -> bool:
        sign = "cost.json" if step.is_run else "cache.json" if step.command == "cache-teacher" else "corpus.json"
        return (self.folder(step) / sign).exists()

    def is_kept(self, step: Step) -> bool:
        return (self.results / step.out.split("/", 1)[-1] / "result.json").exists()

    def run(self, step: Step) -> None:
        """One step with its measurement; RuntimeError with the end of its log if a command fails."""
        folder = self.folder(step)
        resume = ["--resume"] if step.is_run and (folder / "run.json").exists() else []
        cost = {"train_seconds": self._dcdctl(step, [step.command, *step.words, "--out", step.out, *resume])}
        if step.is_run:
            cost["eval_seconds"] = self._measure(step)
            if resume:
                del cost["train_seconds"]  # those of a part
            (folder / "cost.json").write_text(json.dumps(cost) + "\n")
        self.keep(step)

    def _measure(self, step: Step) -> float:
        """Evaluate a run into its own folder, alone or as what re-ranks another's results: the files have the same names either way."""
        who = [step.out] if not step.measured else [step.measured, "--rerank", step.out]
        seconds = self._dcdctl(step, ["eval", *who, *step.measure, "--out", step.out])
        if step.measured:
            folder = self.folder(step)
            (folder / "result.json").unlink(missing_ok=True)
            for made, name in (
                ("cascade-ranks.parquet", "ranks.parquet"),
                ("cascade-top.parquet", "top.parquet"),
                ("cascade.json", "result.json"),
            ):
                (folder / made).replace(folder / name)
        return seconds

    def keep(self, step: Step) -> None:
        """Copy what is small into docs/results, but for runs that only make what others need."""
        if step.is_run and not step.table:
            return
        names = ("run.json", "result.json", "cost.json") if step.is_run else ("cache.json",)
        for name in names:
            if (self.folder(step) / name).exists():
                target = self.results / step.out.split("/", 1)[-1] / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(self.folder(step) / name, target)

    def _dcdctl(self, step: Step, words: list[str]) -> float:
        """Processor seconds of a command: what it would take on a core of its own, whatever else runs."""
        log = self.work / "logs" / f"{step.name}.log"
        log.parent.mkdir(exist_ok=True)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        with log.open("a") as talk:
            talk.write("dcdctl " + " ".join(words) + "\n")
            talk.flush()
            command = [sys.executable, "-m", "dcdctl", *words]
            with subprocess.Popen(command, cwd=self.work, env=environment, stdout=talk, stderr=talk) as process:
                _, status, usage = os.wait4(process.pid, 0)
                process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise RuntimeError(f"{step.name} ended with {process.returncode}; the end of {log}:\n" + log.read_text()[-1500:])
        return usage.ru_utime + usage.ru_stime


def run_all(place: Place, steps: list[Step], jobs: int) -> list[str]:
    """Run what is not done yet, each step after those it needs; the names of those that failed or could not be tried."""
    done = {step.out for step in steps if place.is_done(step)}
    waiting = [step for step in steps if step.out not in done]
    running: dict[Future[None], Step] = {}
    failed: list[str] = []
    with ThreadPoolExecutor(jobs) as pool:
        while waiting or running:
            ready = [step for step in waiting if done.issuperset(step.after)][: jobs - len(running)]
            for step in ready:
                waiting.remove(step)
                say(f"{time.strftime('%H:%M:%S')} start {step.name} ({len(waiting)} wait)")
                running[pool.submit(place.run, step)] = step
            if not running:
                failed.extend(f"{step.name} (needs {', '.join(set(step.after) - done)})" for step in waiting)
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                step = running.pop(future)
                error = future.exception()
                if error is None:
                    done.add(step.out)
                else:
                    say(str(error))
                    failed.append(step.name)
    return failed


def of_tables(place: Place, steps: list[Step], tables: list[str]) -> list[Step]:
    """The runs of these tables, of all where none is named, with all that they need; those whose result is not kept yet first."""
    by_out = {step.out: step for step in steps}
    chosen: dict[str, Step] = {}

    def take(step: Step) -> None:
        for before in step.after:
            take(by_out[before])
        chosen.setdefault(step.out, step)

    wanted = [step for step in steps if not tables or step.table in tables]
    for step in sorted(wanted, key=place.is_kept):
        take(step)
    return list(chosen.values())


def say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def machine() -> dict[str, str]:
    """What the numbers were measured with."""
    import torch
    import transformers

    cpu = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "")
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "python": platform.python_version()}
    return {
        "cpu": cpu or platform.processor(),
        "cores": str(os.cpu_count()),
        "commit": commit,
        "date": time.strftime("%Y-%m-%d"),
        **versions,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", choices=sorted(PLANS))
    parser.add_argument("--work", type=Path, required=True, help="folder for the corpus, features, caches and runs")
    parser.add_argument("--vision", type=Path, help="flickr8k: folder of EfficientNet-Lite0, as transformers saves it")
    parser.add_argument("--text", type=Path, help="flickr8k: folder of all-MiniLM-L6-v2")
    parser.add_argument("--karpathy", type=Path, help="flickr8k: dataset_flickr8k.json")
    parser.add_argument("--images", type=Path, help="flickr8k: folder or zip of the photos")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--table", action="append", default=[], help="only the runs of this table and what they need; repeatable")
    parser.add_argument("--tables-only", action="store_true", help="compare and write the tables of the runs that are there")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    for name in ("vision", "text", "karpathy", "images"):
        # Under names of the work folder, so that no run.json holds a path of this machine.
        path = getattr(args, name)
        link = args.work / (f"{name}.json" if name == "karpathy" else name)
        if path is not None and not link.is_symlink():
            link.symlink_to(path.resolve())
    place, steps = Place(args.plan, args.work.resolve()), PLANS[args.plan]()
    started = time.perf_counter()
    if unknown := set(args.table) - {step.table for step in steps}:
        parser.error(f"no table {', '.join(unknown)}; there are {', '.join(dict.fromkeys(step.table for step in steps if step.table))}")
    failed = [] if args.tables_only else run_all(place, of_tables(place, steps, args.table), args.jobs)
    if not args.tables_only:
        place.results.mkdir(parents=True, exist_ok=True)
        (place.results / "machine.json").write_text(json.dumps(machine(), indent=1) + "\n")
    sys.stdout.write(evidence_tables.write(steps, place.work, place.results))
    say(f"{(time.perf_counter() - started) / 60:.1f} minutes")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
