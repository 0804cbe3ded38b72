"""Does agreement with a teacher choose what recalls choose? On data with labels, which agreement does not read.

    python benchmarks/evidence.py pools --work work/pools ...      trains the teachers and the students
    python benchmarks/agreement.py --work work/pools               compares them, and trains further ones

- Winners: of two students, does the one with the higher nDCG@10 of agreement have the higher RSUM? All pairs of
  students of different rows of the plan, by the distance of their RSUMs.
- Checkpoints: trainings with many validations, once by RSUM and once by agreement, which changes no weights. What is
  lost of the best RSUM by keeping the weights that agreement chooses, and by keeping the last ones?
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import statistics
from pathlib import Path

import evidence_pools
from evidence_steps import sets

from dcdctl.core import progress
from dcdctl.core.devices import Compute
from dcdctl.core.evaluation import EvalJob, Evaluation, SavedEvaluation, run_evaluation
from dcdctl.core.training import InputRefs, Run, TrainingJob, TrainingOptions, train_model

GAPS = (0.0, 2.0, 5.0, 10.0, 20.0, 1000.0)
"""Bounds of distances in RSUM."""
STEPS, EVERY = 600, 25
COMPUTE = Compute(features=Path("features"), workers=0)
LABELLED, POOL, EVERYTHING = Path("data/labelled"), Path("data/pool"), Path("data/target")
CHECKPOINTS: dict[str, tuple[Path, tuple[str, ...], tuple[str, ...]]] = {
    "200 captioned photos": (LABELLED, evidence_pools.TEACHERS, (*evidence_pools.BOTH, *sets(batch__size=200))),
    "200 captioned photos, InfoNCE weighs most": (
        LABELLED, evidence_pools.TEACHERS, sets(loss__terms="{infonce=4.0,kl=0.2}", batch__size=200),
    ),
    "800 photos and 3,990 texts without pairing": (POOL, evidence_pools.TEACHERS, evidence_pools.KL),
    "the same, a teacher of 200 captioned photos": (POOL, ("runs/few-alone-0",), evidence_pools.KL),
    "1,000 captioned photos": (EVERYTHING, evidence_pools.TEACHERS, evidence_pools.BOTH),
}  # fmt: skip
"""Corpus, teachers and settings of each training."""


def winners() -> list[str]:
    """Rows of a table: how often two students are ordered alike by both."""
    students = []
    for folder in sorted(Path("runs").glob("*-[0-2]")):
        if folder.name.startswith(("teacher", "scenes")) or not (folder / "result.json").exists():
            continue
        teacher = evidence_pools.TEACHERS[0]
        job = EvalJob(model=str(folder), data=EVERYTHING, split="val", against=teacher, compute=COMPUTE,
                      out=Path("agreement", folder.name))  # fmt: skip
        saved = SavedEvaluation.find(Path("agreement", folder.name))
        found = run_evaluation(job) if saved is None else saved.evaluation
        assert isinstance(found, Evaluation)
        assert found.agreement is not None
        students.append((re.sub(r"-\d$", "", folder.name), found.rsum, found.agreement.ndcg))
    rows = [f"| distance in RSUM | pairs of {len(students)} students | ordered alike |", "|---|---|---|"]
    pairs = [
        (abs(ours[1] - other[1]), (ours[1] > other[1]) == (ours[2] > other[2]))
        for ours, other in itertools.combinations(students, 2)
        if ours[0] != other[0]
    ]
    for low, high in itertools.pairwise(GAPS):
        alike = [is_alike for gap, is_alike in pairs if low <= gap < high]
        if alike:
            named = f"{low:g} to {high:g}" if high < GAPS[-1] else f"above {low:g}"
            rows.append(f"| {named} | {len(alike)} | {100 * statistics.fmean(alike):.1f} % |")
    return rows


def checkpoints() -> list[str]:
    """Rows of a table: what each choice of weights loses."""
    rows = [
        "| trained on | best RSUM, at step | agreement's choice: step, loss of RSUM | the last weights: loss of RSUM |",
        "|---|---|---|---|",
    ]
    for label, (data, teachers, words) in CHECKPOINTS.items():
        curves = {}
        for metric in ("rsum", "agreement"):
            name = re.sub(r"\W+", "-", label)
            more = sets(optimizer__steps=STEPS, validation__every=EVERY, validation__metric=metric)
            given = (*evidence_pools.FROZEN[2:], *words, *more)[1::2]
            job = TrainingJob("distill", "photos-distilled", given, Path("agreement", f"{name}-{metric}"), resume=True)
            inputs = InputRefs(data=data, teachers=teachers, validation_data=[EVERYTHING])
            run = Run(job.out)
            if not run.is_finished:
                run = train_model(job, inputs, options=TrainingOptions(compute=COMPUTE))
            curves[metric] = {
                line["step"]: line[f"val_{progress.chosen_by(line, 'val')}"]
                for line in run.metrics()
                if progress.chosen_by(line, "val")
            }
        rsums, ndcgs = curves["rsum"], curves["agreement"]
        best, chosen = (max(curve, key=curve.__getitem__) for curve in (rsums, ndcgs))
        top = rsums[best]
        rows.append(
            f"| {label} | {top:.1f}, {best + 1} | {chosen + 1}, {top - rsums[chosen]:.1f} "
            f"| {top - rsums[max(rsums)]:.1f} |"
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of the plan `pools`")
    os.chdir(parser.parse_args().work)
    Path("agreement").mkdir(exist_ok=True)
    tables = {"winners": winners(), "checkpoints": checkpoints()}
    Path("agreement", "tables.json").write_text(json.dumps(tables))
    print("\n\n".join("\n".join(rows) for rows in tables.values()))  # noqa: T201


if __name__ == "__main__":
    main()
