"""A training as a user asks for it, and what there is to say when it has ended."""

from __future__ import annotations

import time
from dataclasses import dataclass

from dcdctl.core.artifacts import Document
from dcdctl.core.progress import Say, Track, Watch, silent, unsaid
from dcdctl.core.training import rounds
from dcdctl.core.training.coverage import Preview
from dcdctl.core.training.next_step import command_after_training
from dcdctl.core.training.requests import TrainingRun
from dcdctl.core.training.runs import Run
from dcdctl.core.training.validation import run_document


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A finished training."""

    run: Run
    seconds: float
    already_there: bool
    """Whether an earlier call had finished it."""
    next: str
    """The command that uses the model."""

    def to_json(self) -> Document:
        """The run and its validation, with the time and the next command."""
        return {
            **run_document(self.run),
            "seconds": self.seconds,
            "already_there": self.already_there,
            "next": self.next,
        }


def run_training(
    request: TrainingRun, *, track: Track = silent, watch: Watch | None = None, say: Say = unsaid
) -> Trained:
    """Train a model, in rounds if the recipe has them. Raises what `train_in_rounds` raises."""
    job, refs, options = request.settle()
    started, already_there = time.monotonic(), Run(job.out).is_finished
    run = rounds.train_in_rounds(job, refs, options=options, track=track, watch=watch, say=say)
    return Trained(
        run=run,
        seconds=round(time.monotonic() - started, 3),
        already_there=already_there,
        next=command_after_training(job, refs),
    )


def preview_training(request: TrainingRun, *, track: Track = silent) -> Preview:
    """What `run_training` would do; writes nothing and loads no model."""
    return rounds.preview(*request.settle(), track=track)
