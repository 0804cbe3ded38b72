"""What short, int8 and binary vectors cost on the distilled students of the plan `clip-scenes`, trained with `loss.dims` and without.

    python benchmarks/evidence.py clip-scenes --work work/clip-scenes --jobs 1 --forks        trains the students
    python benchmarks/clip_vectors.py --work work/clip-scenes

Each row is that of `dcdctl eval RUN --data data --vector-table --dims 16,32,64,128,256 --json`, a mean over the seeds. Writes
docs/results/clip-scenes/vectors.json and prints the table.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from evidence_clip import DIMS, SEEDS

from dcdctl.core.evaluation import EvalJob, EvalOptions, FormChoice, SplitChoice, run_vector_table

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results" / "clip-scenes"
STUDENTS = {"full width": "taught", "loss.dims": "dims"}
"""How a student was trained -> the name of its runs."""


def measure(work: Path, run: str) -> list[dict[str, Any]]:
    """The rows of one run on the test scenes."""
    forms = FormChoice(dims=",".join(map(str, DIMS)))
    job = EvalJob(model=str(work / "runs" / run), choice=SplitChoice(work / "data", "test", "auto", None), forms=forms)
    rows: list[dict[str, Any]] = run_vector_table(job, EvalOptions())["rows"]
    return rows


def table(measured: dict[str, list[list[dict[str, Any]]]]) -> str:
    """One line per form: RSUM of each kind of student, mean and standard deviation over seeds."""
    lines = [
        "| numbers | vectors | bytes per image | " + " | ".join(f"RSUM, {name}" for name in measured) + " |",
        "|" + "---|" * (3 + len(measured)),
    ]
    first = next(iter(measured.values()))
    for index, form in enumerate(first[0]):
        kind = form["kind"] if form["rescore"] is None else f"{form['kind']}, first {form['rescore']} by float32"
        sums = [[rows[index]["rsum"] for rows in seeds] for seeds in measured.values()]
        cells = [f"{mean(each):.1f}" + (f" ± {stdev(each):.1f}" if len(each) > 1 else "") for each in sums]
        lines.append(f"| {form['dims']} | {kind} | {form['bytes_per_image']:,} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of the plan clip-scenes")
    work = parser.parse_args().work
    seeds = [seed for seed in SEEDS if all((work / "runs" / f"{name}-{seed}" / "model").exists() for name in STUDENTS.values())]
    measured = {label: [measure(work, f"{name}-{seed}") for seed in seeds] for label, name in STUDENTS.items()}
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "vectors.json").write_text(json.dumps({"seeds": seeds, "rows": measured}, indent=1) + "\n")
    sys.stdout.write(table(measured))


if __name__ == "__main__":
    main()
