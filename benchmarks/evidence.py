"""Does a teacher help? Trains, evaluates and compares the students of a plan: `evidence_flickr8k.py`,
`evidence_scenes.py` ...

    python benchmarks/evidence.py flickr8k --work work/flickr8k --vision EFFICIENTNET --text MINILM --karpathy JSON
        --images ZIP
    python benchmarks/evidence.py picked --work work/picked (and the options of flickr8k)
    python benchmarks/evidence.py elsewhere --work work/elsewhere --outside TEXTS --wordnet TEXTS
        (and the options of flickr8k)
    python benchmarks/evidence.py towers --work work/towers --lite2 DIR --resnet50 DIR (and the options of flickr8k)
    python benchmarks/evidence.py wrong-captions --work work/wrong-captions (and the options of flickr8k, for photos)
    python benchmarks/evidence.py images --work work/images --resnet50 DIR (and the options of flickr8k)
    python benchmarks/evidence.py noisy-weights --work work/noisy-weights
    python benchmarks/evidence.py fewer-questions --work work/fewer-questions
    python benchmarks/evidence.py ten-thousand --work work/ten-thousand
    python benchmarks/evidence.py scenes --work work/scenes
    python benchmarks/evidence.py students --work work/students
    python benchmarks/evidence.py clip-scenes --work work/clip-scenes --jobs 1 --forks
    python benchmarks/evidence.py small --work work/small            (make results-small)
    python benchmarks/evidence.py flickr8k --work work/flickr8k --table "Dual students, 6,000 photos"
    python benchmarks/evidence.py flickr8k --work work/flickr8k --tables-only

Every step is a `dcdctl` command that could be typed in the work folder, or `chosen_pairs.py`. A killed plan resumes:
finished steps are skipped, and an unfinished step is resumed. Runs without a published result come first. --jobs steps
run at the same time with one thread each, and their cost is given in processor seconds. The folder
docs/evidence/results/PLAN receives run.json, result.json and the cost of every run, the comparisons, the tables and the
plot. The plan `students` also times its models with `dcdctl bench`, at its end, and writes lead.md with two plots; run
these steps on an idle machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import evidence_clip
import evidence_doubts
import evidence_fair
import evidence_flickr8k
import evidence_forks
import evidence_images
import evidence_lead
import evidence_noisy_weights
import evidence_picked
import evidence_pools
import evidence_questions
import evidence_scenes
import evidence_students
import evidence_tables
import evidence_ten_thousand
import evidence_towers
import evidence_weights
import evidence_wrong
import wrong_captions
from evidence_steps import Step
from reports import commit, processor, say

from dcdctl.core import artifacts

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "evidence" / "results"
CHOSEN_PAIRS = ROOT / "benchmarks" / "chosen_pairs.py"
PLANS = {
    "clip-scenes": evidence_clip.clip_scenes,
    "elsewhere": evidence_students.elsewhere,
    "fair": evidence_fair.fair,
    "fewer-questions": evidence_questions.fewer_questions,
    "flickr8k": evidence_flickr8k.flickr8k,
    "images": evidence_images.images,
    "noisy-weights": evidence_noisy_weights.noisy_weights,
    "picked": evidence_picked.picked,
    "pools": evidence_pools.pools,
    "queries": evidence_students.queries,
    "scenes": evidence_scenes.scenes,
    "small": evidence_scenes.small,
    "students": evidence_students.students,
    "ten-thousand": evidence_ten_thousand.ten_thousand,
    "towers": evidence_towers.towers,
    "weights": evidence_weights.weights,
    "wrong-captions": evidence_wrong.wrong_captions,
}
PARTS = {
    "fair": {evidence_fair.TABLE.format(size): evidence_fair.PARTS for size in evidence_fair.SIZES},
    "clip-scenes": dict.fromkeys((evidence_clip.TABLE, evidence_clip.HOLD_OUT), evidence_clip.PARTS),
    "fewer-questions": evidence_questions.PARTS,
    "noisy-weights": dict.fromkeys(evidence_noisy_weights.TABLES, evidence_noisy_weights.PARTS),
    "ten-thousand": {evidence_ten_thousand.TABLE: evidence_ten_thousand.PARTS},
    "wrong-captions": dict.fromkeys(evidence_wrong.TABLES, evidence_wrong.PARTS),
}
"""Differences of rows that a plan reports besides those from the base of a table."""


@dataclass(frozen=True)
class Workspace:
    """The folders of a plan: its work folder and its published results."""

    plan: str
    work: Path
    forks: bool = False
    """Whether commands are forks of this process (`evidence_forks`)."""
    published: Path = RESULTS
    """Where the results of plans are."""

    @property
    def results(self) -> Path:
        return self.published / self.plan

    def folder(self, step: Step) -> Path:
        return self.work / step.out

    def is_done(self, step: Step) -> bool:
        if step.command == "bench":
            return (self._timed(step) / "bench.json").exists()
        cache = "texts.json" if "--texts" in step.words else "cache.json"
        makes_cache = step.command in ("cache-teacher", evidence_questions.CHOOSE)
        marker = "cost.json" if step.is_run else cache if makes_cache else "corpus.json"
        return (self.folder(step) / marker).exists()

    def is_published(self, step: Step) -> bool:
        return (self.results / step.short / "result.json").exists()

    def _timed(self, step: Step) -> Path:
        """The folder of the run that a step times."""
        return self.work / "runs" / step.short

    def run(self, step: Step) -> None:
        """Run a step and measure it; RuntimeError with the end of its log if a command fails."""
        folder = self.folder(step)
        if step.is_run and not step.trains:
            artifacts.write_document(folder / "cost.json", {"eval_seconds": self._measure(step, step.words)})
            return self.publish(step)
        has_begun = (folder / "run.json").exists() or Path(f"{folder}-rounds").exists()
        resume = ["--resume"] if step.is_run and has_begun else []
        cost = {"train_seconds": self._dcdctl(step, [*step.arguments, *resume])}
        if step.is_run:
            model = (step.out,) if not step.measured else (step.measured, step.role, step.out)
            if step.table:
                cost["eval_seconds"] = self._measure(step, (*model, *step.measure))
            if resume:
                del cost["train_seconds"]  # a resumed run measures only its last part
            artifacts.write_document(folder / "cost.json", cost)
        return self.publish(step)

    def _measure(self, step: Step, words: tuple[str, ...]) -> float:
        """Evaluate a model, or a cascade; the folder of the step gets files of the same names in both cases."""
        seconds = self._dcdctl(step, ["eval", *words, "--out", step.out])
        folder = self.folder(step)
        if (folder / "cascade.json").exists():
            (folder / "result.json").unlink(missing_ok=True)
            document = artifacts.read_document(folder / "cascade.json")
            for name in list(document[artifacts.FILES]):
                target = name.removeprefix("cascade-")
                (folder / name).replace(folder / target)
                document[artifacts.FILES][target] = document[artifacts.FILES].pop(name)
            artifacts.write_document(folder / "result.json", document)
            (folder / "cascade.json").unlink()
        return seconds

    def publish(self, step: Step) -> None:
        """Copy the small files into docs/evidence/results; of a run that belongs to no table, its cost."""
        names, folder = ("cache.json",), self.folder(step)
        if step.is_run:
            names = ("run.json", "result.json", "cost.json") if step.table else ("cost.json",)
        elif step.command == "bench":
            names, folder = ("bench.json",), self._timed(step)
        for name in names:
            if (folder / name).exists():
                document = artifacts.read_document(folder / name)
                if "data" in document:  # without a path of this machine
                    document["data"] = os.path.relpath(self.work / document["data"], self.work)
                target = self.results / step.short / name
                target.parent.mkdir(parents=True, exist_ok=True)
                artifacts.write_document(target, document)

    def _dcdctl(self, step: Step, words: list[str]) -> float:
        """Run a command and return its processor seconds, which depend little on what else runs."""
        log = self.work / "logs" / f"{step.name}.log"
        log.parent.mkdir(exist_ok=True)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        with log.open("a") as output:
            output.write("dcdctl " + " ".join(words) + "\n")
            output.flush()
            if self.forks and step.command != evidence_questions.CHOOSE:
                _, status, usage = os.wait4(evidence_forks.start(words, self.work, output), 0)
                code = os.waitstatus_to_exitcode(status)
            else:
                program = ["-m", "dcdctl", *words]
                if step.command == evidence_questions.CHOOSE:
                    program = [str(CHOSEN_PAIRS), *words[1:]]
                with subprocess.Popen(
                    [sys.executable, *program], cwd=self.work, env=environment, stdout=output, stderr=output
                ) as process:
                    _, status, usage = os.wait4(process.pid, 0)
                    code = process.returncode = os.waitstatus_to_exitcode(status)
        if code:
            raise RuntimeError(f"{step.name} ended with {code}; the end of {log}:\n" + log.read_text()[-1500:])
        return usage.ru_utime + usage.ru_stime


def run_all(workspace: Workspace, steps: list[Step], jobs: int) -> list[str]:
    """Run the unfinished steps, each after the steps it needs. Returns the names of those that failed or could not
    start."""
    done = {step.out for step in steps if workspace.is_done(step)}
    waiting = [step for step in steps if step.out not in done]
    running: dict[Future[None], Step] = {}
    failed: list[str] = []
    with ThreadPoolExecutor(jobs) as pool:
        while waiting or running:
            ready = [step for step in waiting if done.issuperset(step.after)][: jobs - len(running)]
            for step in ready:
                waiting.remove(step)
                say(f"{time.strftime('%H:%M:%S')} start {step.name} ({len(waiting)} waiting)")
                running[pool.submit(workspace.run, step)] = step
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


def select_steps(workspace: Workspace, steps: list[Step], tables: list[str]) -> list[Step]:
    """The runs of the named tables, or of all tables, with the steps that they need; runs without a published result
    first."""
    by_out = {step.out: step for step in steps}
    selected: dict[str, Step] = {}

    def select(step: Step) -> None:
        for before in step.after:
            select(by_out[before])
        selected.setdefault(step.out, step)

    runs = [step for step in steps if not tables or step.table in tables]
    for step in sorted(runs, key=workspace.is_published):
        select(step)
    return list(selected.values())


def machine() -> dict[str, str]:
    """Hardware and software of the measurement."""
    import torch
    import transformers

    return {
        "cpu": processor(),
        "cores": str(os.cpu_count()),
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", choices=sorted(PLANS))
    parser.add_argument("--work", type=Path, required=True, help="folder for the corpus, features, caches and runs")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for results (docs/evidence/results)")
    parser.add_argument(
        "--vision", type=Path, help="flickr8k: folder of EfficientNet-Lite0 in the format of transformers"
    )
    parser.add_argument("--text", type=Path, help="flickr8k: folder of all-MiniLM-L6-v2")
    parser.add_argument("--lite2", type=Path, help="towers: folder of EfficientNet-Lite2")
    parser.add_argument("--resnet50", type=Path, help="towers, images: folder of a ResNet-50")
    parser.add_argument("--karpathy", type=Path, help="flickr8k: dataset_flickr8k.json")
    parser.add_argument("--images", type=Path, help="flickr8k: folder or zip of the photos")
    parser.add_argument("--outside", type=Path, help="elsewhere: texts of another source, one a line (.txt)")
    parser.add_argument("--wordnet", type=Path, help="elsewhere: texts of wordnet_texts.py, one a line (.txt)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--forks",
        action="store_true",
        help="fork commands from this process; costs then leave the start of the program out",
    )
    parser.add_argument(
        "--table", action="append", default=[], help="run only this table and the steps it needs; repeatable"
    )
    parser.add_argument(
        "--tables-only", action="store_true", help="run nothing; compare existing runs and write the tables"
    )
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    for name in ("vision", "text", "lite2", "resnet50", "images", "karpathy.json", "outside.txt", "wordnet.txt"):
        # Links in the work folder keep paths of this machine out of run.json.
        path, link = getattr(args, name.partition(".")[0]), args.work / name
        if path is not None and not link.is_symlink():
            link.symlink_to(path.resolve())
    if args.plan == "pools" and args.karpathy is not None:
        evidence_pools.write_inputs(args.karpathy, args.images, args.work)
    if args.plan == "towers" and args.karpathy is not None:
        evidence_towers.write_inputs(args.karpathy, args.images, args.work)
        evidence_towers.write_augmented(args.images, args.work)
    if args.plan == "images" and args.karpathy is not None:
        evidence_images.write_inputs(args.karpathy, args.images, args.work)
    if args.plan == "clip-scenes" and not args.tables_only:
        evidence_clip.write_inputs(args.work)
    if args.plan == "elsewhere" and not args.tables_only:
        evidence_students.write_inputs(args.karpathy, args.work)
    if args.plan in ("fewer-questions", "picked", "ten-thousand") and not args.tables_only:
        evidence_picked.write_inputs(args.work)
    if args.plan == "ten-thousand" and not args.tables_only:
        evidence_ten_thousand.write_inputs(args.work)
    if args.plan == "noisy-weights" and not args.tables_only:
        wrong_captions.write_inputs(args.work)
    if args.plan == "picked" and not args.tables_only and args.karpathy is not None:
        evidence_pools.write_inputs(args.karpathy, args.images, args.work)
        evidence_picked.write_photos(args.work)
    if args.plan == "wrong-captions" and not args.tables_only:
        wrong_captions.write_inputs(args.work)
        if args.karpathy is not None:
            wrong_captions.write_photos(args.work)
    workspace, steps = Workspace(args.plan, args.work.resolve(), args.forks, args.results.resolve()), PLANS[args.plan]()
    started = time.perf_counter()
    if unknown := set(args.table) - {step.table for step in steps}:
        parser.error(
            f"no table {', '.join(unknown)}; there are "
            f"{', '.join(dict.fromkeys(step.table for step in steps if step.table))}"
        )
    if args.forks:
        evidence_forks.import_all()
    failed = [] if args.tables_only else run_all(workspace, select_steps(workspace, steps, args.table), args.jobs)
    for step in filter(workspace.is_done, steps):
        workspace.publish(step)
    if not args.tables_only:
        workspace.results.mkdir(parents=True, exist_ok=True)
        (workspace.results / "machine.json").write_text(json.dumps(machine(), indent=1) + "\n")
    sys.stdout.write(evidence_tables.write(steps, workspace.work, workspace.results, PARTS.get(args.plan)))
    if any(step.command == "bench" for step in steps):
        sys.stdout.write(evidence_lead.write(steps, workspace.results))
    if args.plan == "wrong-captions":
        sys.stdout.write(evidence_doubts.write(steps, workspace.work, workspace.results))
    if args.plan == "ten-thousand":
        sys.stdout.write(evidence_ten_thousand.write(steps, workspace.work, workspace.results))
    say(f"{(time.perf_counter() - started) / 60:.1f} minutes")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
