"""The two tables of the plan `clip-scenes` in docs/results.md: its rows on the target and on the web, and the cost of
short vectors.

    python benchmarks/evidence.py clip-scenes --work work/clip-scenes --jobs 1 --forks        trains and compares
    python benchmarks/clip_tables.py --work work/clip-scenes

The first table puts the plan's tables TABLE and HOLD_OUT side by side, from the small files under
docs/results/clip-scenes. A row of the second is that of `dcdctl eval RUN --data data --vector-table --dims
16,32,64,128,256 --json`; vectors.json keeps these rows.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from evidence_clip import DIMS, HOLD_OUT, SEEDS, TABLE, clip_scenes

from dcdctl.core.data import Direction
from dcdctl.core.evaluation import EvalJob, EvalOptions, FormChoice, SplitChoice, run_vector_table

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results" / "clip-scenes"
STUDENTS = {"full width": "taught", "`loss.dims`": "dims"}
"""How a student was trained -> the name of its runs."""
HEADS = (
    "",
    "text R@1",
    "image R@1",
    "RSUM",
    "against fine-tuned",
    "RSUM on the web",
    "against fine-tuned, on the web",
    "training",
)


def rows_table() -> str:
    """One line per row of the plan, means over the seeds; differences are those of comparisons.json."""
    compared = json.loads((RESULTS / "comparisons.json").read_text())
    measured: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for step in clip_scenes():
        folder = RESULTS / step.out.removeprefix("runs/")
        if step.table in (TABLE, HOLD_OUT) and (folder / "result.json").exists():
            documents = measured.setdefault(step.label, {}).setdefault(step.table, [])
            documents.append(
                {**json.loads((folder / "cost.json").read_text()), **json.loads((folder / "result.json").read_text())}
            )
    lines = [_line(HEADS), _line(["---"] * len(HEADS))]
    for label, tables in measured.items():
        target, web = tables.get(TABLE, []), tables.get(HOLD_OUT, [])
        recalls = [f"{mean(each[direction.key]['R@1'] for each in target):.1f}" for direction in Direction]
        seconds = [each["train_seconds"] for each in target if "train_seconds" in each]
        differences = [_difference(compared.get(f"{table} / {label}")) for table in (TABLE, HOLD_OUT)]
        sums = [_spread([each["rsum"] for each in documents]) for documents in (target, web)]
        cost = f"{mean(seconds):.0f} s" if seconds else ""
        lines.append(_line([label, *recalls, sums[0], differences[0], sums[1], differences[1], cost]))
    return "\n".join(lines) + "\n"


def measure_vectors(work: Path, run: str) -> list[dict[str, Any]]:
    """The forms of the vectors of a run, on the test scenes."""
    forms = FormChoice(dims=",".join(map(str, DIMS)))
    job = EvalJob(model=str(work / "runs" / run), choice=SplitChoice(work / "data", "test", "auto", None), forms=forms)
    rows: list[dict[str, Any]] = run_vector_table(job, EvalOptions())["rows"]
    return rows


def vectors_table(measured: dict[str, list[list[dict[str, Any]]]]) -> str:
    """One line per form: RSUM of each kind of student."""
    lines = [_line(["numbers", "vectors", "bytes per image", *(f"RSUM, trained for {name}" for name in measured)])]
    lines.append(_line(["---"] * (3 + len(measured))))
    for index, form in enumerate(next(iter(measured.values()))[0]):
        kind = form["kind"] if form["rescore"] is None else f"{form['kind']}, first {form['rescore']} by float32"
        sums = [_spread([rows[index]["rsum"] for rows in seeds]) for seeds in measured.values()]
        lines.append(_line([str(form["dims"]), kind, f"{form['bytes_per_image']:,}", *sums]))
    return "\n".join(lines) + "\n"


def _line(cells: tuple[str, ...] | list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _spread(values: list[float]) -> str:
    """Mean and standard deviation."""
    if not values:
        return ""
    return f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def _difference(compared: dict[str, Any] | None) -> str:
    if compared is None:
        return ""
    rsum = compared["difference"]["rsum"]
    return f"{rsum['value']:+.1f} ({rsum['interval']['low']:+.1f} to {rsum['interval']['high']:+.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="folder of the plan clip-scenes; measures the vectors again")
    work = parser.parse_args().work
    sys.stdout.write(rows_table() + "\n")
    path = RESULTS / "vectors.json"
    if work is not None:
        seeds = [
            seed
            for seed in SEEDS
            if all((work / "runs" / f"{name}-{seed}" / "model").exists() for name in STUDENTS.values())
        ]
        measured = {
            label: [measure_vectors(work, f"{name}-{seed}") for seed in seeds] for label, name in STUDENTS.items()
        }
        path.write_text(json.dumps(measured, indent=1) + "\n")
    if path.exists():
        sys.stdout.write(vectors_table(json.loads(path.read_text())))


if __name__ == "__main__":
    main()
