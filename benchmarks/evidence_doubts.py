"""Two further tables of the plan `wrong-captions`: how many wrong captions are found, and which share of the RSUM of
clean captions each row has."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import evidence_tables
import evidence_wrong
import numpy as np
import reports
from evidence_steps import SEEDS, Step
from evidence_wrong import BESIDE, CLEAN, CLEAN_TAUGHT, COMMAND, NO_CHECK, REPAIRED, SKEPTIC, STUDENTS
from wrong_captions import KINDS, SHARES

from dcdctl.core.data import Corpus
from dcdctl.core.teacher import NO_PICK, check_captions, read_cache

SHOWN = (NO_CHECK, SKEPTIC, BESIDE, REPAIRED, COMMAND)
CHECKERS = {"the teacher": "{run}-rounds/cache-{last}", "the student of the captions": "caches/{name}-skeptic"}
"""The scores that tell; the teacher's are those of its last round."""


def write(steps: Sequence[Step], work: Path, results: Path) -> str:
    """Write shares.md, doubts.json and doubts.md, and return the tables. Doubts whose caches are not in the work folder
    keep their earlier counts."""
    shares = f"### Share of the RSUM of clean captions, %\n\n{shares_table(steps, results)}\n"
    (results / "shares.md").write_text(shares)
    path = results / "doubts.json"
    counts: dict[str, dict[str, int]] = json.loads(path.read_text()) if path.exists() else {}
    counts |= count_doubts(work)
    if not counts:  # only photos were run, whose dual teachers need no cache
        return shares
    path.write_text(json.dumps(counts, indent=1) + "\n")
    doubts = f"### Captions that are doubted\n\n{doubts_table(counts)}\n"
    (results / "doubts.md").write_text(doubts)
    return f"{shares}\n{doubts}"


def shares_table(steps: Sequence[Step], results: Path) -> str:
    """For each table, the RSUM of some rows as a share of that of clean captions, seed by seed. The better one of both
    rows of clean captions counts, with the same seed."""
    rsum: dict[tuple[str, str, int], float] = {}
    for step in steps:
        if step.table and (results / step.short / "result.json").exists():
            result = evidence_tables.read(results / step.short / "result.json")
            rsum[step.table, step.label, seed_of(step)] = result["rsum"]
    rows = []
    for table in evidence_wrong.TABLES:
        row = [table]
        for label in SHOWN:
            shares = []
            for seed in SEEDS:
                clean = [rsum[key] for name in (CLEAN, CLEAN_TAUGHT) if (key := (table, name, seed)) in rsum]
                if clean and (table, label, seed) in rsum:
                    shares.append(100 * rsum[table, label, seed] / max(clean))
            row.append(", ".join(f"{share:.1f}" for share in shares))
        if any(row[1:]):
            rows.append(row)
    return reports.table(["", *SHOWN], rows)


def seed_of(step: Step) -> int:
    """The seed in the name of a run.

    >>> seed_of(Step("runs/late-shuffled-40-2-clean", "eval", ()))
    2
    """
    found = re.search(r"-(\d)(?:-[a-z]|$)", step.out)
    assert found is not None
    return int(found[1])


def count_doubts(work: Path) -> dict[str, dict[str, int]]:
    """By corpus, student and seed: which wrong captions each checker doubts, and where it picks the right image."""
    if not (work / "wrong.json").exists():
        return {}
    wrong = json.loads((work / "wrong.json").read_text())
    counts = {}
    for corpus in (*(f"shuffled-{share}" for share in SHARES), *KINDS):
        for student in STUDENTS:
            for seed in SEEDS:
                run = student.run(corpus, seed)
                last = 2 if (work / f"{run}-rounds" / "cache-2").exists() else 1
                for checker, place in CHECKERS.items():
                    cache = work / place.format(run=run, name=run.removeprefix("runs/"), last=last)
                    if (cache / "cache.json").exists():
                        key = f"{student.title}, {corpus}, {checker}, seed {seed}"
                        counts[key] = _count(work, corpus, wrong[corpus], cache)
    return counts


def _count(work: Path, name: str, wrong: list[list[int]], cache: Path) -> dict[str, int]:
    corpus = Corpus.open(work / "data" / name, "train")
    checked = check_captions(corpus, read_cache(cache), "auto")
    image_of = {image_id: image for image, image_id in enumerate(corpus.image_ids)}
    is_wrong_C = np.zeros(corpus.num_captions, dtype=bool)
    for image, number in wrong:
        is_wrong_C[corpus.captions_of(image_of[f"{image:04}.png"])[number]] = True
    right_of = _right_images(work)
    picked = np.flatnonzero(checked.is_doubted_C & (checked.image_C != NO_PICK))
    right = [
        int(corpus.image_ids[int(checked.image_C[text])].removesuffix(".png"))
        in right_of.get(corpus.captions[text], ())
        for text in picked.tolist()
    ]
    return {
        "captions": corpus.num_captions,
        "wrong": int(is_wrong_C.sum()),
        "doubted": checked.num_doubted,
        "doubted_wrong": int((checked.is_doubted_C & is_wrong_C).sum()),
        "picks": len(picked),
        "right_picks": sum(right),
    }


def _right_images(work: Path) -> dict[str, set[int]]:
    """The scenes of each caption, where all are right; a changed text has none."""
    right_of: dict[str, set[int]] = {}
    for number, line in enumerate((work / "shuffled-0.jsonl").read_text().splitlines()):
        for text in json.loads(line)["captions"]:
            right_of.setdefault(text, set()).add(number)
    return right_of


def doubts_table(counts: dict[str, dict[str, int]]) -> str:
    """Means over the seeds."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for key, of_seed in counts.items():
        groups.setdefault(key.rpartition(", ")[0], []).append(of_seed)
    rows = []
    for name, members in groups.items():
        total = {key: sum(each[key] for each in members) for key in members[0]}
        rows.append(
            [
                name,
                f"{mean(each['wrong'] for each in members):,.0f}",
                f"{mean(each['doubted'] for each in members):,.0f}",
                _percent(total["doubted_wrong"], total["doubted"]),
                _percent(total["doubted_wrong"], total["wrong"]),
                f"{mean(each['picks'] for each in members):,.0f}",
                _percent(total["right_picks"], total["picks"]),
            ]
        )
    heads = ["", "wrong", "doubted", "of these wrong", "of the wrong ones doubted", "picks", "of these right"]
    return reports.table(heads, rows)


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else ""
