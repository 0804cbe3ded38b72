"""`dcdctl demo`: all steps on the built-in corpus."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from dcdctl.cli.options import Json
from dcdctl.cli.views.terminal import bar, note, show, show_json, show_table
from dcdctl.core.arguments import configures
from dcdctl.core.options import Device

if TYPE_CHECKING:
    from dcdctl.core.study import DemoResult

OutFolder = Annotated[Path, configures("--out -o", "Folder to write; steps finished in it are not repeated.", "DIR")]
Steps = Annotated[int | None, configures("--steps", "Training steps per student, for a shorter demo.", "N", min=1)]


def demo(out: OutFolder = Path("demo"), steps: Steps = None, device: Device = "auto", json: Json = False) -> None:
    """Run all steps on generated scenes. It takes minutes on a CPU."""
    from dcdctl.core import devices
    from dcdctl.core.engines import Compute
    from dcdctl.core.study import DemoJob, run_demo

    compute = Compute(device=devices.choose(device))
    job = DemoJob(out=out, compute=compute, steps=steps)
    result = run_demo(job, announce=note, track=bar)
    if json:
        show_json(result.to_json())
    else:
        _show(result, out)
    # With --json, stdout holds one document and nothing else.
    (note if json else show)(f"report -> {result.page}")


def _show(result: DemoResult, out: Path) -> None:
    from dcdctl.core.data import Direction
    from dcdctl.core.evaluation import RECALL_NAMES
    from dcdctl.core.progress import digits

    rows = []
    for row in result.rows:
        found = ["", "", ""]
        if row.evaluation is not None:
            for place, direction in enumerate(Direction):
                measures = row.evaluation.measures(direction)
                found[place] = " ".join(f"{measures[name]:4.1f}" for name in RECALL_NAMES)
            found[2] = f"{row.evaluation.rsum:.1f}"
        cost = f"{digits(row.query_ms)} ms", f"{digits(row.speed_up)}x"
        rows.append([row.model, *found, f"{row.gallery_recall:.1f}", *cost])
    machine = result.machine
    title = f"New scenes; {machine['cpu']}, threads: {machine['threads']}"
    gallery = f"{result.gallery_size:,} images"
    heads = (
        "",
        "text retrieval",
        "image retrieval",
        "RSUM",
        f"image R@1, {result.num_queries} captions",
        "query",
        "speed-up",
    )
    caption = (
        f"All students are the same late-interaction model. Text and image retrieval: R@1/5/10 among {gallery}, which "
        f"the teacher would rank for an hour. Image R@1: of {result.num_queries} captions, for all models. Query: a "
        f"caption over {gallery}, which are encoded.\nAll files are in {out}."
    )
    show_table(title, heads, rows, caption=caption)
    show(f"\n{result.summary}\n")
