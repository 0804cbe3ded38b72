"""How far our numbers are from the official code's, fixture by fixture, as a table in Markdown; then one line of JSON.

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


def row(fixture: str, what: str, found: list[Comparison]) -> dict[str, object]:
    """One line of the table: the largest differences of some comparisons."""
    return {
        "fixture": fixture,
        "compared": what,
        "numbers": sum(one.official.numel() for one in found),
        "absolute": max(one.absolute for one in found),
        "relative": max(one.relative for one in found),
        "bound": found[0].bound,
    }


def measure() -> list[dict[str, object]]:
    """A row for each kind of thing that a fixture holds."""
    groups: dict[tuple[str, str], list[Comparison]] = {}
    for compare in (official.COMPARISONS | official_training.COMPARISONS).values():
        for one in compare():
            groups.setdefault((one.fixture, one.what), []).append(one)
    return [row(*key, found) for key, found in groups.items()]


def shown(value: object) -> str:
    return "none" if value == 0 else f"{value:.1e}"


def main() -> None:
    torch.set_num_threads(1)
    rows = measure()
    lines = [
        "| fixture | compared | numbers | largest difference | over the tensor's largest entry | asserted |",
        "|---|---|---|---|---|---|",
    ]
    for one in rows:
        bound = "exact" if one["bound"] == 0 else f"{one['bound']:.0e}"
        differences = f"{shown(one['absolute'])} | {shown(one['relative'])}"
        lines.append(f"| `{one['fixture']}` | {one['compared']} | {one['numbers']:,} | {differences} | {bound} |")
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.write(json.dumps({"torch": torch.__version__, "threads": torch.get_num_threads(), "rows": rows}) + "\n")


if __name__ == "__main__":
    main()
