"""What takes time in dcdctl, in turns with another checkout of it: preparing, indexing, evaluating, the demo,
scoring, training.

    git worktree add --detach ../before REVISION
    python benchmarks/before_after.py --before ../before --photos Flicker8k_Dataset.zip
    python benchmarks/before_after.py --before ../before --photos FOLDER --only prepare "a step of late interaction"

A ratio above 1 means that this checkout is slower; it is the median of the rounds' ratios, because other work of the
machine slows both. Every run is a process of its own, and a time is that of a whole command, or of a function that both
checkouts have. `start_times.py --before` has the times until a command begins to work.

Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from photo_library import take_photos
from reports import facts, say, table

HERE = Path(__file__).resolve().parent.parent
MAXSIM = """
import time
from dcdctl.core.models.networks.maxsim import all_maxsims
import torch
generator = torch.Generator().manual_seed(0)
unit = lambda *size: torch.nn.functional.normalize(torch.randn(*size, generator=generator), dim=-1)
images, text, mask = unit(100_000, 17, 64), unit(1, 12, 64), torch.ones(1, 12, dtype=torch.bool)
with torch.inference_mode():
    all_maxsims(images[:1000], None, text, mask)
    started = time.perf_counter()
    for _ in range(3):
        all_maxsims(images, None, text, mask)
print((time.perf_counter() - started) / 3)
"""
"""Seconds of one text's scores of 100,000 images of 17 tokens."""
STEPS = """
import sys, time
import dcdctl
seconds = []
for steps in (4, 64):
    recipe = dcdctl.load_recipe("demo-late", {"optimizer.steps": steps, "loss.terms": {"infonce": 1.0}})
    started = time.perf_counter()
    dcdctl.distill(recipe, sys.argv[1], f"{sys.argv[2]}-{steps}")
    seconds.append(time.perf_counter() - started)
print((seconds[1] - seconds[0]) / 60)
"""
"""Seconds of a step of `demo-late` without a teacher: the difference of a long and a short training."""


@dataclass(frozen=True)
class Case:
    """Something that takes time."""

    words: tuple[str, ...]
    """Arguments of Python: OUT is a new folder, PHOTOS the photos, DATA drawn scenes, and MODEL a dual encoder."""
    prints_seconds: bool = False
    """Whether the last line that it prints is its time; otherwise its time is that of the whole process."""


CASES = {
    "prepare": Case(("-m", "dcdctl", "prepare", "--csv", "captions.csv", "--images", "PHOTOS", "--out", "OUT")),
    "index": Case(("-m", "dcdctl", "index", "MODEL", "--images", "PHOTOS", "--out", "OUT")),
    "eval": Case(("-m", "dcdctl", "eval", "MODEL", "--data", "DATA", "--split", "test", "--out", "OUT")),
    "demo": Case(("-m", "dcdctl", "demo", "--out", "OUT")),
    "MaxSim over 100,000 images": Case(("-c", MAXSIM), prints_seconds=True),
    "a step of late interaction": Case(("-c", STEPS, "DATA", "OUT"), prints_seconds=True),
}
SCORED = {"METER": "meter-6", "ViLT": "vilt-b32"}
"""Models whose `score_pairs` is timed by `scoring.py` of each checkout."""
STAGE = (
    ("prepare", "scenes", "--out", "DATA"),
    ("distill", "demo-dual-alone", "--data", "DATA", "--set", "optimizer.steps=2", "--out", "MODEL"),
)
"""Commands that make DATA and MODEL."""


@dataclass(frozen=True)
class Checkout:
    """A checkout of dcdctl, and the folder of what its own code made."""

    root: Path
    stage: Path

    def python(self, *words: str) -> str:
        """What Python prints with this checkout, for words of which some stand for places."""
        environment = {**os.environ, "PYTHONPATH": str(self.root)}
        places = {name: str(self.stage / name.lower()) for name in ("OUT", "PHOTOS", "DATA", "MODEL")}
        command = [sys.executable, *(places.get(word, word) for word in words)]
        done = subprocess.run(command, cwd=self.stage, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{self.root}: {' '.join(words)}:\n{done.stderr}")
        return done.stdout

    def make_stage(self, photos: Path, count: int) -> None:
        self.stage.mkdir()
        take_photos(photos, self.stage / "photos", count)
        rows = [f"{file.name},a photo of number {number}" for number, file in enumerate(_files(self.stage / "photos"))]
        (self.stage / "captions.csv").write_text("\n".join(["image,caption", *rows]) + "\n")
        for words in STAGE:
            self.python("-m", "dcdctl", *words)

    def seconds(self, case: Case) -> float:
        """The time of one run; what it wrote is removed."""
        started = time.perf_counter()
        printed = self.python(*case.words)
        seconds = float(printed.split()[-1]) if case.prints_seconds else time.perf_counter() - started
        for folder in self.stage.glob("out*"):
            shutil.rmtree(folder)
        return seconds

    def seconds_per_pair(self, model: str) -> float:
        """The time of one pair of an image with 32 captions, each side encoded once."""
        script = self.root / "benchmarks" / "scoring.py"
        options = ("--models", model, "--captions", "32", "--plain-pairs", "1", "--repeats", "1")
        measured = json.loads(self.python(str(script), *options).splitlines()[-1])
        return 1 / float(measured["models"][model]["pairs_per_s"]["factorized"])


def _files(folder: Path) -> Sequence[Path]:
    return sorted(folder.iterdir())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [*CASES, *SCORED]
    parser.add_argument("--before", type=Path, required=True, help="the other checkout")
    parser.add_argument("--photos", type=Path, required=True, help="folder or zip of JPEGs")
    parser.add_argument("--count", type=int, default=1000, help="photos that are prepared and indexed")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    args = parser.parse_args()
    times: dict[str, dict[str, list[float]]] = {name: {"before": [], "now": []} for name in args.only}
    with tempfile.TemporaryDirectory() as scratch:
        roots = {"before": args.before.resolve(), "now": HERE}
        checkouts = {way: Checkout(root, Path(scratch, way)) for way, root in roots.items()}
        for checkout in checkouts.values():
            checkout.make_stage(args.photos, args.count)
        for number in range(args.rounds):
            for name in args.only:
                # Each begins in every second round: what runs second finds files in the system's cache.
                for way in sorted(checkouts, reverse=number % 2 == 1):
                    checkout = checkouts[way]
                    is_scored = name in SCORED
                    spent = checkout.seconds_per_pair(SCORED[name]) if is_scored else checkout.seconds(CASES[name])
                    times[name][way].append(spent)
                    say(f"round {number + 1}: {name}, {way}: {spent:.3f} s")
    found = {name: _summary(each) for name, each in times.items()}
    rows = [[name, *(f"{each[key]:.3g}" for key in ("before", "now", "ratio"))] for name, each in found.items()]
    sys.stdout.write(table(["", "before, s", "now, s", "ratio"], rows) + "\n")
    sys.stdout.write(json.dumps({**facts("transformers"), "rounds": args.rounds, "found": found}) + "\n")


def _summary(times: dict[str, list[float]]) -> dict[str, float]:
    """The medians of both, and of the ratios of each round."""
    ratios = [now / before for before, now in zip(times["before"], times["now"], strict=True)]
    return {**{way: statistics.median(each) for way, each in times.items()}, "ratio": statistics.median(ratios)}


if __name__ == "__main__":
    main()
