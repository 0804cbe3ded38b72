"""The logs of a training: metrics.jsonl, TensorBoard, and Weights & Biases if requested."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from dcdctl.core import artifacts, distributed, files
from dcdctl.core.errors import InputError, require_extra
from dcdctl.core.training.runs import METRICS_FILE, Run

Write = Callable[[int, Mapping[str, float]], None]
"""Writes the numbers of a step."""


@contextmanager
def open_logs(run: Run, first_step: int, project: str | None = None) -> Iterator[Write]:
    """A function that writes the numbers of a step to metrics.jsonl, TensorBoard and the Weights & Biases project, if
    there is one. It does nothing outside the main process.

    Later lines than `first_step`, logged by a run that was killed, are removed.
    """
    if not distributed.is_main():
        yield lambda step, values: None
        return
    earlier = [line for line in run.metrics() if line["step"] < first_step]
    files.write_text(run.folder / METRICS_FILE, "".join(map(run.log_line, earlier)))
    with ExitStack() as stack:
        # Event files are not rewritten: purge_step hides what a killed run logged after its last checkpoint.
        events = SummaryWriter(str(run.folder / "tensorboard"), purge_step=first_step or None)
        stack.callback(events.close)
        wandb_run = None
        if project is not None:
            wandb_run = _start_wandb(run, project)
            stack.callback(wandb_run.finish)

        def write(step: int, values: Mapping[str, float]) -> None:
            run.append(METRICS_FILE, {"step": step, **values})
            for name, value in values.items():
                events.add_scalar(name, value, step)
            if wandb_run is not None:
                wandb_run.log({"step": step, **values})

        yield write


def _start_wandb(run: Run, project: str) -> Any:
    """A run of a Weights & Biases project, configured with the recipe; a resumed run keeps its id, saved in
    RUN/wandb.json."""
    path = run.folder / "wandb.json"
    hint = "delete it to start another run at Weights & Biases"
    run_id = artifacts.read_document(path, error=InputError, hint=hint).get("id") if path.exists() else None
    # "allow" also starts a run whose id is not known yet, so the first start and a resumed one are the same call.
    wandb_run = require().init(
        project=project,
        name=run.folder.name,
        dir=str(run.folder),
        config=run.facts()["recipe"],
        id=run_id,
        resume="allow",
    )
    if run_id is None:
        artifacts.write_document(path, {"project": project, "id": wandb_run.id})
    # Log the step as a value: the step counter of Weights & Biases cannot go back to a checkpoint.
    wandb_run.define_metric("*", step_metric="step")
    return wandb_run


def require() -> Any:
    """The package wandb; MissingError if it is not installed."""
    require_extra("wandb", "wandb", needed_by="--wandb")
    import wandb

    return wandb
