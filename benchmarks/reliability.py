"""Counts for docs/evidence/reliability.md: kills, changed inputs, damaged files, full disks, wrong places, hostile
teachers, pools, files, photos and queries, and wrong command lines, on tiny artifacts.

    python benchmarks/reliability.py [--share 0.1] [--seed 0] [--only kills changes damages disks places rounds files
        photos queries lines combined] [--jobs "distill, pool" ...] [--json]

`--jobs` limits kills, disks and places to some commands of `reliability_trials.Stage`, damages to some artifacts,
changes to some trainings, and combined command lines to some groups.

Each trial is a command, or the reading of an artifact, in a fork of this process, in a temporary folder. It ends in one
of these ways:

- named: an error of one line that names the file or its folder, or a usage error, with exit status 1 or 2
- harmless: the result of an undisturbed run; for kills and full disks, after the same command ran again
- unnamed: an error of one line that does not name the damaged file
- wrong: another result, or a wrong value that was accepted
- traceback: any other exception, another exit status, or a signal
- hang: more than 60 s of processor time, or 300 s

Prints one table, or one JSON document. All columns but the first two must be 0. Parts give the same counts alone and
together.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.extend(
    str(Path(__file__).parent.parent / "tests" / name) for name in ("support", "ground", "data", "models", "cli")
)

import numpy as np
from damage import Artifact, as_new_process, damages, digest_of
from every_command import without_root
from reliability_artifacts import kinds_of
from reliability_cases import command_lines, hostile_files
from reliability_changes import changed_inputs
from reliability_inputs import hostile_photos, hostile_queries
from reliability_lines import combined_lines
from reliability_rounds import hostile_rounds
from reliability_trials import CPU, GOOD, OUTCOMES, Ended, Job, Part, Stage, Trial, dcdctl, in_fork, outcome_of, trained
from test_corruption import KINDS

from dcdctl.core.config import to_table
from dcdctl.core.training import load_recipe

KILL_TRIES = 5
"""Moments that are tried for one kill. The processor time of a command varies, so some come when it has finished."""
MOST_MORE_KILLS = 2
"""Kills of a command that resumes after a kill."""


def kills(stage: Stage, rng: random.Random, trials: int) -> Iterator[Trial]:
    """SIGKILL at a random moment of processor time, up to three times in a row, then the same command: its result must
    be that of an undisturbed run.

    A command that has finished before its first kill is no trial.
    """
    for job in stage.jobs:
        _, expected, seconds = stage.undisturbed(job)
        for trial in range(trials):
            for attempt in range(KILL_TRIES):
                out = stage.folder / "kills" / f"{job.name.replace(' ', '-')}-{trial}-{attempt}"
                out.parent.mkdir(exist_ok=True)
                job.start(out)
                moment = rng.uniform(0.0, 0.95 * seconds)
                killed = in_fork(lambda out=out, job=job: dcdctl(*job.words(out)), kill_at_cpu_s=moment)
                if killed.kind == "killed":
                    moments = [
                        moment,
                        *(rng.uniform(0.0, 0.95 * seconds) for _ in range(rng.randrange(MOST_MORE_KILLS + 1))),
                    ]
                    for further in moments[1:]:
                        in_fork(lambda out=out, job=job: dcdctl(*job.words(out)), kill_at_cpu_s=further)
                    details = f"killed after {', '.join(f'{each:.3f}' for each in moments)} of {seconds:.3f} s"
                    yield f"kill, {job.name}", *_again(job, out, expected, details)
                shutil.rmtree(out, ignore_errors=True)
                if killed.kind == "killed":
                    break


def _again(job: Job, out: Path, expected: str, details: str) -> tuple[str, str]:
    """The outcome of the same command again, which must end well."""

    def work() -> str:
        dcdctl(*job.words(out))
        return job.result(out)

    ended = in_fork(work)
    outcome = outcome_of(ended, expected)
    return "wrong" if outcome == "named" else outcome, f"{details}: {ended}"


def damaged_files(stage: Stage, rng: random.Random, trials: int) -> Iterator[Trial]:
    """Flipped bits, zeros, truncated, longer and swapped files, then a full read."""
    kinds = {**KINDS, **run_kinds(stage), **kinds_of(stage)}
    for name in stage.chosen or kinds:
        make = kinds[name]
        folder = stage.folder / "damages" / name.replace(" ", "-")
        folder.mkdir(parents=True)
        artifact = make(folder)
        seeds = np.random.default_rng(rng.randrange(2**32))

        def read(artifact: Artifact = artifact) -> str:
            as_new_process()
            return digest_of(artifact.read(artifact.folder))

        intact_result = in_fork(read)
        if intact_result.kind != "ok":
            raise SystemExit(f"the intact {name}: {intact_result}")
        cases = [
            case for case in damages(artifact, seeds, 1 + trials // (3 * len(artifact.files))) if _is_damage(case[1])
        ]
        for kind, changed in rng.sample(cases, min(trials, len(cases))):
            intact = {path: path.read_bytes() for path in changed}
            for path, data in changed.items():
                path.write_bytes(data)
            ended = in_fork(read)
            for path, data in intact.items():
                path.write_bytes(data)
            about = [word for path in changed for word in (path.name, str(path.parent))]
            yield (
                f"damage, {name}",
                outcome_of(ended, intact_result.text, about),
                f"{kind} of {', '.join(map(str, changed))}: {ended}",
            )


def _is_damage(changed: dict[Path, bytes]) -> bool:
    """Whether the new contents differ from those on disk: zeros over zeros are no damage."""
    return any(path.read_bytes() != data for path, data in changed.items())


def run_kinds(stage: Stage) -> dict[str, Callable[[Path], Artifact]]:
    """A run folder as commands read it, the features of an evaluation, and a recipe."""

    def finished(folder: Path) -> Artifact:
        shutil.copytree(stage.dual, folder / "made")

        def read(path: Path) -> Any:
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                evaluated = json.loads(
                    dcdctl("eval", path, "--data", stage.corpus, *CPU, "--json", "--out", f"{scratch}/eval")
                )
                dcdctl("report", path, "--out", f"{scratch}/page.html", "--to-csv", f"{scratch}/numbers.csv")
                return evaluated | {"seconds": 0}, Path(scratch, "numbers.csv").read_bytes()

        # The checkpoints of a finished run are removed, and nothing reads the logs of TensorBoard.
        return Artifact(
            folder / "made", folder / "absent", read, lambda path: not {"checkpoints", "tensorboard"} & {*path.parts}
        )

    def unfinished(folder: Path) -> Artifact:
        killed = in_fork(lambda: dcdctl(*stage.distill, "--out", folder / "made"), kill_at_cpu_s=1e9)
        if killed.kind != "ok":
            raise SystemExit(f"the run to resume: {killed}")
        shutil.rmtree(folder / "made" / "model")

        def read(path: Path) -> Any:
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                # Training changes the run, so each reading has a copy.
                copy = shutil.copytree(path, Path(scratch) / "made")
                dcdctl(*stage.distill, "--out", copy)
                return trained(copy)

        return Artifact(folder / "made", folder / "absent", read, lambda path: "tensorboard" not in path.parts)

    def recipe(folder: Path) -> Artifact:
        """A recipe has no checksum: what is left as a valid recipe is what the user wrote, so only how it ends
        counts."""
        (folder / "made").mkdir()
        shutil.copy(
            Path(__file__).parent.parent / "dcdctl" / "recipes" / "demo-dual.toml", folder / "made" / "recipe.toml"
        )

        def read(path: Path) -> Any:
            to_table(load_recipe(str(path / "recipe.toml"), []))

        return Artifact(folder / "made", folder / "absent", read)

    return {
        "finished run (eval, report)": finished,
        "unfinished run (distill --resume)": unfinished,
        "recipe TOML": recipe,
    }


PAGE = 4096
"""What a tmpfs gives to files, in bytes."""


def full_disks(stage: Stage, rng: random.Random, trials: int) -> Iterator[Trial]:
    """A small file system, or a limit on the size of files where none can be mounted; then the same command with
    room."""
    for job in [*stage.jobs, *stage.more_jobs]:
        undisturbed, expected, _ = stage.undisturbed(job)
        sizes = [path.stat().st_size for path in undisturbed.rglob("*") if path.is_file()]
        for trial in range(trials):
            level = (trial + rng.random()) / trials
            disk = stage.folder / "disks" / f"{job.name.replace(' ', '-')}-{trial}"
            disk.mkdir(parents=True)
            is_mounted = _mount(disk, "size=256M")
            try:
                job.start(disk / "out")
                # A tmpfs of size 0 has no limit, so that a page is filled beside what the command writes.
                (disk / "filler").write_bytes(bytes(PAGE))
                file_system = os.statvfs(disk)
                used = (file_system.f_blocks - file_system.f_bfree) * file_system.f_frsize
                needed = sum(-(-size // PAGE) * PAGE for size in sizes) + PAGE
                if is_mounted:
                    # A command that changes a file needs room beside it, also where the sum stays as it is.
                    _mount(disk, f"remount,size={used + int(level * max(0, needed - used)) // PAGE * PAGE}")
                mechanism = "tmpfs" if is_mounted else "RLIMIT_FSIZE"

                largest = None if is_mounted else int(level * max(sizes))
                ended = in_fork(lambda job=job, out=disk / "out", largest=largest: _limited(job.words(out), largest))
                yield f"full disk ({mechanism}), {job.name}", outcome_of(ended), f"filled at {level:.2f}: {ended}"
                if is_mounted:
                    _mount(disk, "remount,size=256M")
                yield f"with room again, {job.name}", *_again(job, disk / "out", expected, f"was filled at {level:.2f}")
            finally:
                if is_mounted:
                    subprocess.run(["umount", str(disk)], check=True)
                shutil.rmtree(disk, ignore_errors=True)


def _limited(words: list[object], largest: int | None) -> str:
    """Run a command that may write files up to a size."""
    if largest is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, resource.RLIM_INFINITY))
    return dcdctl(*words)


def _mount(folder: Path, options: str) -> bool:
    return (
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, check=False
        ).returncode
        == 0
    )


PLACES = ("/proc/x", "pipe", "pipe/x", "FILE", "FILE/x", "no-permission/x", "x" * 300, "loop", "loop/x", "dangling/x")


def wrong_places(stage: Stage, rng: random.Random, trials: int) -> Iterator[Trial]:
    """An output that cannot be written: no permission, a file, a pipe, a loop of links. The order is random."""
    os.mkfifo(stage.folder / "pipe")
    (stage.folder / "no-permission").mkdir(mode=0o500)
    (stage.folder / "loop").symlink_to("loop")
    (stage.folder / "dangling").symlink_to("/proc/nowhere")
    # These two change their first argument.
    jobs = [job for job in [*stage.jobs, *stage.more_jobs] if job.name not in ("index --add", "bench")]
    cases = [(job, place) for job in jobs for place in PLACES]
    for job, place in rng.sample(cases, min(len(cases), trials * len(jobs))):

        def work(job: Job = job, place: str = place) -> str:
            with without_root():
                return dcdctl(*job.words(Path(stage.folder / place)))

        ended = in_fork(work)
        yield (
            "no permission, or a wrong place",
            _refused(ended, (place[:4], "/proc/nowhere")),
            f"{job.name} into {place[:20]}: {ended}",
        )


def _refused(ended: Ended, about: tuple[str, ...]) -> str:
    return "wrong" if ended.kind == "ok" else outcome_of(ended, about=about)


PARTS: dict[str, tuple[Part, int]] = {
    "kills": (kills, 14),
    "changes": (changed_inputs, 6),
    "damages": (damaged_files, 60),
    "disks": (full_disks, 4),
    "places": (wrong_places, len(PLACES)),
    "rounds": (hostile_rounds, 150),
    "files": (hostile_files, 120),
    "photos": (hostile_photos, 20),
    "queries": (hostile_queries, 200),
    "lines": (command_lines, 200),
    "combined": (combined_lines, 500),
}
"""What is tried, and the number of trials per row, or of cases of a table."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--share", type=float, default=1.0, help="share of the trials per row")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--jobs", nargs="+", help="commands, artifacts or groups of lines, by their names")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    counts: dict[str, Counter[str]] = {}
    bad: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        stage = Stage(Path(folder))
        stage.make_inputs()
        stage.chosen = options.jobs or ()
        if options.jobs:
            stage.jobs = [job for job in stage.jobs if job.name in options.jobs]
            stage.more_jobs = [job for job in stage.more_jobs if job.name in options.jobs]
        for part in options.only:
            started = time.monotonic()
            attempt, trials = PARTS[part]
            for row, outcome, details in attempt(
                stage, random.Random(f"{options.seed} {part}"), max(1, round(options.share * trials))
            ):
                counts.setdefault(row, Counter())[outcome] += 1
                if outcome not in GOOD:
                    bad.append(f"{row}: {outcome}: {details}")
                    sys.stderr.write(bad[-1][:1500] + "\n")
            sys.stderr.write(f"{part}: {time.monotonic() - started:,.0f} s\n")
    rows = [
        {"row": row, "trials": count.total(), **{name: count[name] for name in OUTCOMES}}
        for row, count in counts.items()
    ]
    if options.json:
        sys.stdout.write(json.dumps({"seed": options.seed, "rows": rows, "bad": bad}) + "\n")
        return
    sys.stdout.write(f"| | trials | {' | '.join(OUTCOMES)} |\n|---|{'---|' * (1 + len(OUTCOMES))}\n")
    for counted in rows:
        sys.stdout.write(
            f"| {' | '.join(f'{value:,}' if isinstance(value, int) else str(value) for value in counted.values())} |\n"
        )


if __name__ == "__main__":
    main()
