"""`dcdctl demo`: all steps on the built-in corpus."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from dcdctl.cli.options import Device, Json, configures, writes
from dcdctl.cli.views.terminal import bar, note, show, show_json, show_table

if TYPE_CHECKING:
    from dcdctl.core.demo import DemoResult, QueryCost

OutFolder = Annotated[Path, writes("--out -o", "Folder to write; steps finished in it are not repeated.", "DIR")]
Steps = Annotated[int | None, configures("--steps", "Training steps per student, for a shorter demo.", "N", min=1)]


def demo(out: OutFolder = Path("demo"), steps: Steps = None, device: Device = "auto", json: Json = False) -> None:
    """Run all steps on generated scenes. It takes minutes on a CPU."""
    from dcdctl.core import demo as core
    from dcdctl.core import devices
    from dcdctl.core.devices import Compute

    compute = Compute(device=devices.choose(device))
    job = core.DemoJob(out=out, compute=compute, steps=steps)
    result = core.run_demo(job, announce=note, track=bar)
    if json:
        show_json(result.to_json())
    else:
        _show(result, out)
    # With --json, stdout holds one document and nothing else.
    (note if json else show)(f"report -> {result.page}")


def _show(result: DemoResult, out: Path) -> None:
    from dcdctl.core.data import Direction
    from dcdctl.core.evaluation import RECALL_NAMES

    first = result.rows[0]
    rows = []
    for row in result.rows:
        both = [
            " ".join(f"{row.evaluation.measures(direction)[name]:4.1f}" for name in RECALL_NAMES)
            for direction in Direction
        ]
        time = f"{row.query.ms:,.1f} ms{_mark(row.query.ms_extrapolated)}"
        rows.append(
            [row.model, *both, f"{row.evaluation.rsum:.1f}", time, _speed_up(row.query), _speed_up(row.large_query)]
        )
    machine = result.machine
    num_scenes, num_images = first.evaluation.images, first.query.num_images
    title = (
        f"{num_scenes} new scenes, {machine['cpu']}, {machine['threads']} "
        f"thread{'' if machine['threads'] == 1 else 's'}"
    )
    heads = (
        "",
        "text retrieval",
        "image retrieval",
        "RSUM",
        "query",
        "speed-up",
        f"{first.large_query.num_images:,} images",
    )
    lines = [
        f"R@1/5/10 among the {num_scenes} scenes; in a larger gallery the right image is less often among the first "
        "that are re-ranked.",
        f"Time and speed-up: one caption against {num_images:,} encoded images.",
    ]
    if any(cost.speed_up_extrapolated for row in result.rows for cost in (row.query, row.large_query)):
        lines.append(
            "* extrapolated: time grows linearly with the number of images; re-ranking takes the same time in every "
            "gallery."
        )
    lines.append(f"All files are in {out}.")
    show_table(title, heads, rows, caption="\n".join(lines))
    show(f"\n{result.summary}\n")


def _speed_up(cost: QueryCost) -> str:
    return f"{cost.speed_up:,.0f}x{_mark(cost.speed_up_extrapolated)}"


def _mark(is_extrapolated: bool) -> str:
    return "*" if is_extrapolated else ""
