"""Largest differences between dcdctl and the official code, fixture by fixture: a Markdown table, then one JSON line.

python benchmarks/fidelity.py
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))
import official
import official_training
from official import Comparison


def row(fixture: str, part: str, comparisons: list[Comparison]) -> dict[str, object]:
    """One row of the table: the largest differences of some comparisons."""
    return {
        "fixture": fixture,
        "compared": part,
        "numbers": sum(each.official.numel() for each in comparisons),
        "absolute": max(each.absolute for each in comparisons),
        "relative": max(each.relative for each in comparisons),
        "bound": comparisons[0].bound,
    }


def measure() -> list[dict[str, object]]:
    """A row for each part of a fixture."""
    groups: dict[tuple[str, str], list[Comparison]] = {}
    for compare in (official.COMPARISONS | official_training.COMPARISONS).values():
        for comparison in compare():
            groups.setdefault((comparison.fixture, comparison.part), []).append(comparison)
    return [row(*key, comparisons) for key, comparisons in groups.items()]


def as_text(value: object) -> str:
    return "none" if value == 0 else f"{value:.1e}"


def main() -> None:
    torch.set_num_threads(1)
    rows = measure()
    lines = [
        "| fixture | compared | numbers | largest difference | over the tensor's largest entry | asserted |",
        "|---|---|---|---|---|---|",
    ]
    for line in rows:
        bound = "exact" if line["bound"] == 0 else f"{line['bound']:.0e}"
        differences = f"{as_text(line['absolute'])} | {as_text(line['relative'])}"
        lines.append(f"| `{line['fixture']}` | {line['compared']} | {line['numbers']:,} | {differences} | {bound} |")
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.write(json.dumps({"torch": torch.__version__, "threads": torch.get_num_threads(), "rows": rows}) + "\n")


if __name__ == "__main__":
    main()
