"""The view of a training on stderr: a moving line on a terminal, otherwise a line every few seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dcdctl.cli.views.terminal import (
    SECONDS_BETWEEN_LINES,
    bar,
    clock,
    is_main,
    note,
    rate,
    show,
    show_json,
    show_tables,
)

if TYPE_CHECKING:
    from dcdctl.core.progress import OnStep
    from dcdctl.core.training import InputRefs, Preview, TrainingJob, TrainingOptions

SECONDS_BETWEEN_FRAMES = 0.2
"""How often the line is redrawn."""


@dataclass
class TrainingProgress:
    """The state of a training."""

    total: int
    first: int
    """Steps done by an earlier run that was interrupted."""
    unit: str
    per_step: int
    done: int = 0
    seconds: float = 0.0
    values: dict[str, float] = field(default_factory=dict)
    """The newest value of each."""

    def line(self) -> str:
        """The state on one line.

        >>> values = {"loss": 0.5, "dcd": 0.5, "lr": 1e-4}
        >>> TrainingProgress(100, 0, "pairs", 8, done=25, seconds=10.0, values=values).line()
        'train: 25/100 steps, loss 0.5000, 20 pairs/s, 0:30 left'
        """
        steps = self.done - self.first
        loss = f"loss {self.values['loss']:.4f}" if "loss" in self.values else ""
        parts = [f"{self.done:,}/{self.total:,} steps", loss, self.measured()]
        if steps:
            parts.append(rate(steps * self.per_step, self.unit, self.seconds).removeprefix(", "))
            if self.done < self.total:
                parts.append(f"{clock((self.total - self.done) * self.seconds / steps)} left")
        return f"train: {', '.join(filter(None, parts))}"

    def measured(self) -> str:
        """The last validation and the best one; empty if there was none."""
        from dcdctl.core.progress import CHOSEN, chosen_by

        name = chosen_by(self.values)
        if not name:
            return ""
        elsewhere = f"/val_{name}"
        others = (
            f", {key.removesuffix(elsewhere)} {value:.1f}"
            for key, value in self.values.items()
            if key.endswith(elsewhere)
        )
        own, best = self.values[f"val_{name}"], self.values[f"val_best_{name}"]
        return f"val {CHOSEN[name]} {own:.1f}, best {best:.1f}{''.join(others)}"


@contextmanager
def view(*, total: int, done: int, unit: str = "steps", per_step: int = 1) -> Iterator[OnStep]:
    """A Watch (`core/progress.py`) on stderr; of several processes only the first shows its steps."""
    state = TrainingProgress(total, done, unit, per_step, done)
    with _live_line(state) if is_main() and sys.stderr.isatty() else _sparse_lines(state) as show:
        started = time.monotonic()

        def on_step(steps: int, values: Mapping[str, float]) -> None:
            state.done, state.seconds = steps, time.monotonic() - started
            state.values.update(values)
            show()

        yield on_step


@contextmanager
def _live_line(state: TrainingProgress) -> Iterator[Callable[[], None]]:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    drawn = 0.0
    # Rich would redirect stdout to this console, which is stderr: only right if both are the same screen.
    with Live(
        "",
        console=Console(file=sys.stderr, highlight=False),
        auto_refresh=False,
        redirect_stdout=sys.stdout.isatty(),
    ) as live:

        def show() -> None:
            nonlocal drawn
            now = time.monotonic()
            # Drawing takes milliseconds, and a step of a small model does not take longer.
            if now - drawn >= SECONDS_BETWEEN_FRAMES or state.done == state.total:
                drawn = now
                live.update(Text(state.line()), refresh=True)

        yield show
        live.update(Text(state.line()), refresh=True)


@contextmanager
def _sparse_lines(state: TrainingProgress) -> Iterator[Callable[[], None]]:
    last_line = time.monotonic()

    def show() -> None:
        nonlocal last_line
        if time.monotonic() - last_line >= SECONDS_BETWEEN_LINES:
            last_line = time.monotonic()
            note(state.line())

    yield show
    # A training shorter than the interval has printed nothing yet.
    note(f"{state.line()}, {clock(state.seconds)} in all")


def run_training(job: TrainingJob, refs: InputRefs, options: TrainingOptions, *, dry_run: bool, json: bool) -> None:
    """Train, and print the model and the next command, or one JSON document; or print what the training would do."""
    from dcdctl.core import training
    from dcdctl.core.training import Run, command_after_training

    if dry_run:
        overview = training.preview(job, refs, options, track=bar)
        return show_json(overview.to_json()) if json else _show_preview(overview)
    started, already_there = time.monotonic(), Run(job.out).is_finished
    run = training.train_in_rounds(job, refs, options=options, track=bar, watch=view, say=note)
    if not json:
        if is_main() and (validated := training.validation_document(run)) is not None:
            show_tables([training.validation_table(validated)])
        return show(
            f"{'student' if job.kind == 'distill' else 'teacher'} -> {run.model_folder}; next: "
            f"{command_after_training(job, refs)}"
        )
    if is_main():
        seconds = round(time.monotonic() - started, 3)
        show_json(
            {
                **training.run_document(run),
                "seconds": seconds,
                "already_there": already_there,
                "next": command_after_training(job, refs),
            }
        )


def _show_preview(preview: Preview) -> None:
    for line in (*preview.facts(), *preview.lines()):
        show(line)
    for line in preview.warnings():
        note(line)
