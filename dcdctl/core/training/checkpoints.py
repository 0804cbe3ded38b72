"""The checkpoints of a run, and the best weights by validation.

A folder of checkpoints has a seal, checkpoint.json: the run, the step, and size and SHA-256 of its files. They are
compared before one of them is loaded.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcdctl.core import artifacts, files, models
from dcdctl.core.errors import StaleError
from dcdctl.core.training.runs import BEST, ELSEWHERE, Run

if TYPE_CHECKING:  # `verify` reads seals without torch
    import torch
    from torch import Tensor, nn

KEPT = 2
"""One more than needed, in case the newest turns out damaged."""
WEIGHTS_FILE, OPTIMIZER_FILE, SCALER_FILE = "weights.safetensors", "optimizer.pt", "scaler.json"
SEAL_FILE = "checkpoint.json"
FORMAT = 2


def seals_of(run: Run) -> dict[Path, Callable[[], artifacts.Document]]:
    """The folder of each checkpoint, and of the best weights, with a function that reads its seal or raises
    StaleError."""
    seals: dict[Path, Callable[[], artifacts.Document]] = {}
    for step in run.checkpoint_steps():
        seals[_folder(run, step)] = partial(_read_checkpoint_seal, run, step)
    if (run.folder / BEST / SEAL_FILE).exists():
        seals[run.folder / BEST] = partial(_read_seal, run, run.folder / BEST, "value", "")
    return seals


def save_checkpoint(
    run: Run, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler
) -> None:
    """Save atomically everything that the steps after `step` depend on, and delete old checkpoints."""
    import torch
    from safetensors.torch import save_file

    with files.atomic_folder(_folder(run, step)) as partial:
        save_file(_unshared(model), partial / WEIGHTS_FILE)
        torch.save(optimizer.state_dict(), partial / OPTIMIZER_FILE)
        names = [WEIGHTS_FILE, OPTIMIZER_FILE]
        # Only float16 scales its loss; a scaler that is off has no state to resume with.
        if scaler.is_enabled():
            files.write_json(partial / SCALER_FILE, scaler.state_dict())
            names.append(SCALER_FILE)
        _write_seal(partial, run, names, step=step, best=best_value(run))
    # Only after the new checkpoint is complete, so that a kill at any time leaves one.
    for old in run.checkpoint_steps()[:-KEPT]:
        shutil.rmtree(_folder(run, old))


def load_checkpoint(run: Run, model: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> int:
    """Load the newest checkpoint into model, optimizer and loss scale; returns the step to resume with, 0 without a
    checkpoint.

    StaleError that names the file and says how to resume from the checkpoint before it, if this one is damaged or not
    the one of its name.
    """
    import torch

    *earlier, step = [0, *run.checkpoint_steps()]
    if not earlier:
        return 0
    folder = _folder(run, step)
    before = f"step {earlier[-1]}" if earlier[-1] else "the first step"
    hint = f"delete {folder} to resume from {before}"
    seal = _read_checkpoint_seal(run, step, hint)
    artifacts.check_files(folder, seal[artifacts.FILES], hint=hint)
    check_best(run, seal)
    _load_weights(folder / WEIGHTS_FILE, model, hint)
    # weights_only, because unpickling a file must not run its code.
    # On the CPU first: a tensor that was saved on cuda:0 would come back on cuda:0, in every process and on a machine
    # without it.
    optimizer.load_state_dict(torch.load(folder / OPTIMIZER_FILE, map_location="cpu", weights_only=True))
    if scaler.is_enabled() and SCALER_FILE in seal[artifacts.FILES]:
        scaler.load_state_dict(files.read_json(folder / SCALER_FILE, error=StaleError, hint=hint))
    return step


def check_best(run: Run, seal: artifacts.Document) -> None:
    """StaleError if the best weights that a run had at a checkpoint are gone: it would take worse ones for the best."""
    if best_value(run) < seal["best"]:
        problem = (
            f"{run.folder / BEST / SEAL_FILE} is missing or old: at step {seal['step']} the best validation was "
            f"{seal['best']:.3f}"
        )
        raise StaleError(problem, hint="restore it, or train into another folder")


def _folder(run: Run, step: int) -> Path:
    return run.folder / "checkpoints" / f"step-{step}"


def _write_seal(folder: Path, run: Run, names: Sequence[str], **facts: Any) -> None:
    document = {
        "format": FORMAT,
        artifacts.RUN: run.digest,
        **facts,
        artifacts.FILES: artifacts.list_files(folder, names),
    }
    artifacts.write_document(folder / SEAL_FILE, document)


def _read_checkpoint_seal(run: Run, step: int, hint: str = "") -> artifacts.Document:
    """The seal of the checkpoint of a step; StaleError if it is missing, damaged, of another format, of another step,
    or of another run."""
    folder = _folder(run, step)
    seal = _read_seal(run, folder, "best", hint)
    if seal["step"] != step:
        raise StaleError(f"{folder} holds the checkpoint of step {seal['step']}", hint=hint)
    return seal


def _read_seal(run: Run, folder: Path, own_key: str, hint: str) -> artifacts.Document:
    path = folder / SEAL_FILE
    seal = artifacts.read_document(path, FORMAT, hint=hint)
    artifacts.listed_files(path, seal, hint=hint)
    if seal[artifacts.RUN] != run.digest:
        raise StaleError(
            f"{folder} holds a checkpoint of another run: {path.name} and run.json do not belong together", hint=hint
        )
    # Only the best weights have a value of their own, and only checkpoints know the best one of their run.
    if own_key not in seal:
        raise StaleError(f"{path} belongs to another folder of checkpoints: it has no {own_key}", hint=hint)
    return seal


def _load_weights(path: Path, model: nn.Module, hint: str) -> None:
    from safetensors.torch import load_file

    weights = load_file(path)
    if different := set(weights) ^ set(_unshared(model)):
        raise StaleError(f"{path.parent} is of another model: it differs in {min(different)}", hint=ELSEWHERE)
    models.check_finite(weights, path, error=StaleError, hint=hint)
    # Not strict: the file has tied weights under one name only. All other differences are found above.
    model.load_state_dict(weights, strict=False)


def best_value(run: Run) -> float:
    """The validation of the best weights saved so far, as `validation.metric` measures it; -101 if there are none."""
    seal = read_best_seal(run)
    # Below every value, also cosines in percent, so the first validation is the best so far.
    return -101.0 if seal is None else float(seal["value"])


def read_best_seal(run: Run) -> artifacts.Document | None:
    """The seal of the best weights; None if there are none. StaleError if it is damaged or of another run."""
    folder = run.folder / BEST
    if not (folder / SEAL_FILE).exists():
        return None
    return _read_seal(run, folder, "value", f"restore {folder}, or train into another folder")


def save_best(run: Run, step: int, value: float, model: nn.Module) -> None:
    """Save atomically the weights after `step` steps as the best so far."""
    from safetensors.torch import save_file

    folder = run.folder / BEST
    # A name of its own, so that the seal switches from the old weights to the new ones in one rename.
    name = f"weights-{step}.safetensors"
    with files.atomic_path(folder / name) as partial:
        save_file(_unshared(model), partial)
    _write_seal(folder, run, [name], step=step, value=value)
    # After the new seal: until then the old one names these weights.
    for old in folder.glob("weights*.safetensors"):
        if old.name != name:
            old.unlink()


def load_best(run: Run, model: nn.Module) -> None:
    """Load the best weights into the model; StaleError if they are missing or damaged."""
    folder, seal = run.folder / BEST, read_best_seal(run)
    hint = "restore it, train into another folder, or set validation.keep=last in another run"
    if seal is None:
        raise StaleError(f"{folder / SEAL_FILE} is missing", hint=hint)
    artifacts.check_files(folder, seal[artifacts.FILES], hint=hint)
    (name,) = seal[artifacts.FILES]
    _load_weights(folder / name, model, hint)


def _unshared(model: nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers, each storage once: tied weights are restored through the one parameter that is
    kept."""
    # safetensors refuses tensors that share memory.
    first: dict[int, str] = {}
    state = model.state_dict()
    return {name: tensor for name, tensor in state.items() if first.setdefault(tensor.data_ptr(), name) == name}
