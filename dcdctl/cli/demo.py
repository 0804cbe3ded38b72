"""`dcdctl demo`: all steps on the built-in corpus."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dcdctl.cli.options import Device, Json
from dcdctl.cli.views.terminal import bar, note, show, show_json, show_table

if TYPE_CHECKING:
    from dcdctl.core.demo import DemoResult

OutFolder = Annotated[Path, typer.Option("--out", "-o", help="Folder to write; steps finished in it are not repeated.", metavar="DIR")]
TrainTeacher = Annotated[bool, typer.Option("--train-teacher", help="First train the built-in teacher again (long on a CPU).")]
Steps = Annotated[int | None, typer.Option("--steps", help="Training steps per student, for a shorter demo.", min=1, metavar="N")]


def demo(
    out: OutFolder = Path("demo"), train_teacher: TrainTeacher = False, steps: Steps = None, device: Device = "auto", json: Json = False
) -> None:
    """Run all steps on generated scenes, in minutes on a CPU."""
    from dcdctl.core import demo as core
    from dcdctl.core import devices
    from dcdctl.core.devices import Compute

    compute = Compute(device=devices.choose(device))
    config = core.DemoConfig(steps=steps)
    result = core.run_demo(out, train_teacher=train_teacher, config=config, compute=compute, announce=note, track=bar)
    show_json(result.to_json()) if json else _show(result, out)
    (note if json else show)(f"report -> {result.page}")


def _show(result: DemoResult, out: Path) -> None:
    rows = []
    for row in result.rows:
        recalls = row.evaluation.recalls
        both = [" ".join(f"{value:4.1f}" for value in recall.values()) for recall in (recalls.text_retrieval, recalls.image_retrieval)]
        rows.append([row.model, *both, f"{recalls.rsum:.1f}", f"{row.query_ms:,.1f} ms", f"{row.speed_up:,.0f}x"])
    machine = result.machine
    title = f"{len(result.rows[0].evaluation.text_ranks)} new scenes, {machine['cpu']}, {machine['threads']} threads"
    caption = f"R@1/5/10. Time: one caption against {result.gallery_size:,} encoded images. All files are in {out}."
    show_table(title, ("", "text retrieval", "image retrieval", "RSUM", "query", "speed-up"), rows, caption=caption)
