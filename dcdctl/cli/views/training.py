"""The view of a training on stderr: a moving line on a terminal, otherwise a line every few seconds."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dcdctl.cli.views.terminal import bar, changing_line, clock, is_main, note, rate, show, show_json, show_tables

if TYPE_CHECKING:
    from dcdctl.core.progress import OnStep
    from dcdctl.core.training import Preview, Trained, TrainingRun


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
        first, best = self.values[f"val_{name}"], self.values[f"val_best_{name}"]
        parts = [f"val {CHOSEN[name]} {first:.1f}", f"best {best:.1f}"]
        elsewhere = f"/val_{name}"
        for key, value in self.values.items():
            if key.endswith(elsewhere):
                parts.append(f"{key.removesuffix(elsewhere)} {value:.1f}")
        return ", ".join(parts)


@contextmanager
def view(*, total: int, done: int, unit: str = "steps", per_step: int = 1) -> Iterator[OnStep]:
    """A Watch (`core/progress.py`) on stderr; of several processes only the first shows its steps."""
    state = TrainingProgress(total=total, first=done, unit=unit, per_step=per_step, done=done)
    started = time.monotonic()
    with changing_line(state.line, lambda: f"{state.line()}, {clock(state.seconds)} in all") as show_line:

        def on_step(steps: int, values: Mapping[str, float]) -> None:
            state.done, state.seconds = steps, time.monotonic() - started
            state.values.update(values)
            show_line()

        yield on_step


def train(request: TrainingRun, *, dry_run: bool, json: bool) -> None:
    """Train, and print the model and the next command, or one JSON document; or print what the training would do."""
    from dcdctl.core import training

    if dry_run:
        preview = training.preview_training(request, track=bar)
        return show_json(preview.to_json()) if json else _show_preview(preview)
    trained = training.run_training(request, track=bar, watch=view, say=note)
    if not json:
        return show_trained(trained, request.kind)
    if is_main():
        show_json(trained.to_json())


def show_trained(trained: Trained, kind: str) -> None:
    """Print the validation of a model, its folder, and the next command."""
    from dcdctl.core import training

    if is_main() and (validated := training.validation_document(trained.run)) is not None:
        show_tables([training.validation_table(validated)])
    made = "student" if kind == "distill" else "teacher"
    show(f"{made} -> {trained.run.model_folder}; next: {trained.next}")


def _show_preview(preview: Preview) -> None:
    for line in (*preview.facts(), *preview.lines()):
        show(line)
    if preview.seconds is not None:
        unit, per_step = preview.work_per_step
        speed = rate(preview.num_steps * per_step, unit, preview.seconds)
        show(f"about {clock(preview.seconds)} for each training{speed} in a trial")
    for line in preview.warnings():
        note(line)
