"""Run folders: the settings of a training run, its metrics, its checkpoints and its model.

RUN/run.json             resolved recipe, fingerprints, versions, command line, seed; written once
RUN/metrics.jsonl        one line per logged step
RUN/tensorboard/         the same as TensorBoard events
RUN/checkpoints/step-N/  weights (safetensors), optimizer state, loss scale (float16 only); the two newest are kept
RUN/checkpoints/best/    weights with the highest sum of recalls so far; `step` and `rsum` in their header
RUN/mined.safetensors    mined negatives, if the recipe mines (`negatives.py`)
RUN/wandb.json           id of the run at Weights & Biases, with --wandb
RUN/model/               the trained model, with tokenizer and image processor; completion marker, written last
RUN/result.json          from `dcdctl eval`;  RUN/cascade.json  with --rerank;  RUN/bench.json  from `dcdctl bench`
"""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dcdctl.core import artifacts, files, models
from dcdctl.core.config import to_table
from dcdctl.core.devices import versions
from dcdctl.core.errors import InputError, MissingError, StaleError
from dcdctl.core.models import Model

KEPT_CHECKPOINTS = 2
"""One more than needed, in case the newest turns out damaged."""
BEST_WEIGHTS = Path("checkpoints", "best", "weights.safetensors")


@dataclass(frozen=True)
class Run:
    """A run folder."""

    folder: Path

    @property
    def model_folder(self) -> Path:
        return self.folder / "model"

    @property
    def is_finished(self) -> bool:
        return self.model_folder.is_dir()

    def facts(self) -> dict[str, Any]:
        """run.json."""
        return files.read_json(self.folder / "run.json", hint="restore it, or train into another folder")

    def metrics(self) -> list[dict[str, Any]]:
        """The logged steps, oldest first, without a last line that a killed run left incomplete."""
        path = self.folder / "metrics.jsonl"
        complete, _, _ = (path.read_text(encoding="utf-8") if path.exists() else "").rpartition("\n")
        try:
            return [json.loads(line) for line in complete.splitlines()]
        except ValueError as error:
            raise InputError(f"{path} has a line that is not JSON: {error}", hint="remove the line") from error

    def checkpoint_steps(self) -> list[int]:
        """Steps with a complete checkpoint, ascending."""
        paths = (self.folder / "checkpoints").glob("step-*")
        return sorted(int(path.name.removeprefix("step-")) for path in paths if path.name.removeprefix("step-").isdigit())


class SeededConfig(Protocol):
    """A frozen config with a seed: a recipe, or a config of the built-in teacher."""

    @property
    def seed(self) -> int: ...


def check_folder(folder: Path, recipe: SeededConfig, kind: str, *, resume: bool) -> None:
    """StaleError if a folder cannot take a run of this recipe: it is taken and `resume` is not set, or it holds something else.

    InputError if it cannot be written. Looks at run.json alone, before anything is loaded; `start_run` compares what the run reads.
    """
    files.check_output_folder(folder)
    _check_taken(folder, {"what": kind, "recipe": to_table(recipe)}, resume=resume)


def start_run(folder: Path, recipe: SeededConfig, kind: str, inputs: dict[str, Any], *, resume: bool) -> Run:
    """Make a run folder, or resume the one that is there.

    `inputs` are the fingerprints of what the run reads. StaleError if the folder is taken and `resume` is not set, or if its run was
    started with another recipe or other inputs.
    """
    facts = {"what": kind, "recipe": to_table(recipe), "inputs": inputs}
    _check_taken(folder, facts, resume=resume)
    for part in (folder, folder / "checkpoints", folder / BEST_WEIGHTS.parent):
        files.remove_partials(part)
    if not (folder / "run.json").exists():
        files.write_json(folder / "run.json", {**facts, "seed": recipe.seed, "command": _command(), "versions": versions()})
    return Run(folder)


def _check_taken(folder: Path, facts: dict[str, Any], *, resume: bool) -> None:
    """StaleError if a folder holds a run with other facts, any run at all without `resume`, or something that is not a run."""
    if (folder / "run.json").exists():
        if not resume:
            raise StaleError(f"{folder} already holds a run", hint="resume with --resume, or name another folder with --out")
        artifacts.expect(folder, Run(folder).facts(), facts, hint="name another folder with --out")
    elif not files.is_vacant(folder):
        raise StaleError(f"{folder} holds something that is not a run", hint="name another folder with --out")


def _command() -> list[str]:
    """The command line, without the program's folder, which would mean nothing on another machine."""
    name = Path(sys.argv[0]).name
    return ["dcdctl" if name == "__main__.py" else name, *sys.argv[1:]]


def open_run(folder: Path) -> Run:
    """An existing run; MissingError if there is none."""
    if not (folder / "run.json").exists():
        raise MissingError(f"{folder} holds no run", hint="make one with `dcdctl distill`")
    return Run(folder)


def save_checkpoint(
    run: Run, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler | None = None
) -> None:
    """Save atomically everything that the steps after `step` depend on, and delete old checkpoints."""
    with files.atomic_folder(run.folder / "checkpoints" / f"step-{step}") as partial:
        save_file(_unshared(model), partial / "weights.safetensors")
        torch.save(optimizer.state_dict(), partial / "optimizer.pt")
        if scaler is not None and scaler.is_enabled():
            files.write_json(partial / "scaler.json", scaler.state_dict())
    # Only after the new checkpoint is complete, so that a kill at any time leaves one.
    for old in run.checkpoint_steps()[:-KEPT_CHECKPOINTS]:
        shutil.rmtree(run.folder / "checkpoints" / f"step-{old}")


def load_checkpoint(run: Run, model: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler | None = None) -> int:
    """Load the newest checkpoint into model, optimizer and loss scale; returns the step to resume with, 0 without a checkpoint."""
    steps = run.checkpoint_steps()
    if not steps:
        return 0
    folder = run.folder / "checkpoints" / f"step-{steps[-1]}"
    _load_weights(folder / "weights.safetensors", model)
    # weights_only, because unpickling a file must not run its code.
    optimizer.load_state_dict(torch.load(folder / "optimizer.pt", weights_only=True))
    scale = folder / "scaler.json"
    if scaler is not None and scaler.is_enabled() and scale.exists():
        scaler.load_state_dict(files.read_json(scale, hint=f"delete {folder} to resume from the checkpoint before it"))
    return steps[-1]


def _load_weights(path: Path, model: nn.Module) -> None:
    weights = load_file(path)
    if different := set(weights) ^ set(_unshared(model)):
        raise StaleError(f"{path.parent} is of another model: it differs in {min(different)}", hint="name another folder with --out")
    # Not strict: the file has tied weights under one name only. All other differences are found above.
    model.load_state_dict(weights, strict=False)


def best_rsum(run: Run) -> float:
    """The sum of recalls of the best weights saved so far; -1 if there are none."""
    path = run.folder / BEST_WEIGHTS
    if not path.exists():
        return -1.0
    with safe_open(path, framework="pt") as file:
        return float(file.metadata()["rsum"])


def save_best(run: Run, step: int, rsum: float, model: nn.Module) -> None:
    """Save atomically the weights after `step` steps as the best so far."""
    with files.atomic_path(run.folder / BEST_WEIGHTS) as partial:
        # repr keeps every digit: a resumed run that reaches this sum again must not exceed it.
        save_file(_unshared(model), partial, metadata={"step": str(step), "rsum": repr(rsum)})


def load_best(run: Run, model: nn.Module) -> None:
    """Load the best weights into the model."""
    _load_weights(run.folder / BEST_WEIGHTS, model)


def finish(run: Run, model: Model, *, half: bool = False) -> None:
    """Save the trained model in the run folder, atomically; its presence marks the run as finished."""
    models.save(model.to("cpu"), run.model_folder, half=half)


def _unshared(model: nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers, each storage once: tied weights are restored through the one parameter that is kept."""
    # safetensors refuses tensors that share memory.
    first: dict[int, str] = {}
    state = model.state_dict()
    return {name: tensor for name, tensor in state.items() if first.setdefault(tensor.data_ptr(), name) == name}
