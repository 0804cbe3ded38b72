"""Run folders: the settings of a training run, its metrics, its checkpoints and its model.

RUN/run.json             resolved recipe, fingerprints, versions, command line, seed; written once
RUN/metrics.jsonl        one line per logged step, each with a short checksum
RUN/metrics.json         size and SHA-256 of metrics.jsonl, written when the training ends
RUN/tensorboard/         the same as TensorBoard events
RUN/checkpoints/step-N/  weights (safetensors), optimizer state, loss scale (float16 only); the two newest are kept
RUN/checkpoints/best/    weights with the highest sum of recalls so far
RUN/mined.safetensors    mined negatives, if the recipe mines (`negatives.py`)
RUN/shards.jsonl         samples of each shard that was read to its end, in a training on a stream (`stream_data.py`)
RUN/wandb.json           id of the run at Weights & Biases, with --wandb
RUN/model/               the trained model, with tokenizer and image processor; completion marker, written last
RUN/result.json          from `dcdctl eval`;  RUN/cascade.json  with --rerank;  RUN/bench.json  from `dcdctl bench`

A folder of checkpoints has a seal, checkpoint.json: the run, the step, and size and SHA-256 of its files. They are
compared before one of them is loaded. All JSON files hold a checksum of their own (`artifacts.write_document`).
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from dcdctl.core import artifacts, files, models
from dcdctl.core.config import to_table
from dcdctl.core.errors import DcdError, InputError, MissingError, StaleError
from dcdctl.core.files import shown

if TYPE_CHECKING:  # a run is read without torch, which its checkpoints import
    import torch
    from torch import Tensor, nn

    from dcdctl.core.models import Model
    from dcdctl.core.training.recipe import Recipe

KEPT_CHECKPOINTS = 2
"""One more than needed, in case the newest turns out damaged."""
WEIGHTS_FILE, OPTIMIZER_FILE, SCALER_FILE = "weights.safetensors", "optimizer.pt", "scaler.json"
BEST = Path("checkpoints", "best")
UNNAMED = "REF"
"""In a command line: a model that was given in memory, without a name."""
SEAL_FILE = "checkpoint.json"
CHECKPOINT_FORMAT = 2
"""Checkpoints of format 1 have no seal."""
SHARDS_FILE = "shards.jsonl"
METRICS_FILE, METRICS_SEAL = "metrics.jsonl", "metrics.json"
SHORT = 16
"""Hexadecimal digits of the checksum of a line of metrics: all 64 would be longer than the numbers."""


@dataclass(frozen=True)
class TrainingJob:
    """What to train, by which recipe, into which folder."""

    kind: Literal["distill", "finetune-teacher"]
    recipe: str | Recipe
    """A name, a .toml file, or a recipe in memory."""
    sets: Sequence[str]
    """Recipe fields to override: loss.alpha=0.5."""
    out: Path
    resume: bool = False
    """Resume the run in `out`, if there is one."""


@dataclass(frozen=True)
class Run:
    """A run folder."""

    folder: Path

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    def __fspath__(self) -> str:
        return str(self.folder)

    @property
    def model_folder(self) -> Path:
        return self.folder / "model"

    @property
    def is_finished(self) -> bool:
        return self.model_folder.is_dir()

    def facts(self) -> dict[str, Any]:
        """run.json."""
        return artifacts.read_document(
            self.folder / "run.json", error=InputError, hint="restore it, or train into another folder"
        )

    @cached_property
    def digest(self) -> str:
        """Names the run in the seals of its checkpoints: SHA-256 of run.json."""
        return files.digest_of(self.facts())

    def metrics(self) -> list[dict[str, Any]]:
        """The logged steps, oldest first; see `read_lines`.

        InputError that names a damaged line, or the file if a finished run has another one than it wrote.
        """
        path = self.folder / METRICS_FILE
        if path.exists() and self.is_finished:
            listed = self.metrics_seal()
            artifacts.check_files(self.folder, listed, error=InputError, hint=RESTORE_METRICS)
        return read_lines(path, RESTORE_METRICS)

    def log_damages(self) -> Iterator[str]:
        """What is wrong with metrics.jsonl and shards.jsonl, every damaged line included."""
        path = self.folder / METRICS_FILE
        if self.is_finished and ((self.folder / METRICS_SEAL).exists() or path.exists()):
            try:
                yield from artifacts.damages(self.folder, self.metrics_seal())
            except DcdError as error:  # also of run.json
                yield str(error.args[0])
        yield from _line_damages(path, RESTORE_METRICS)
        yield from _line_damages(self.folder / SHARDS_FILE, RECOUNT_SHARDS)

    def checkpoint_seals(self) -> dict[Path, Callable[[], artifacts.Document]]:
        """The folder of each checkpoint, and of the best weights, with a function that reads its seal or raises
        StaleError."""
        seals: dict[Path, Callable[[], artifacts.Document]] = {
            _checkpoint_folder(self, step): partial(read_checkpoint_seal, self, step)
            for step in self.checkpoint_steps()
        }
        if (self.folder / BEST / SEAL_FILE).exists():
            seals[self.folder / BEST] = partial(_read_seal, self, self.folder / BEST, "rsum", "")
        return seals

    def metrics_seal(self) -> dict[str, artifacts.Document]:
        """What metrics.json of a finished run lists."""
        path = self.folder / METRICS_SEAL
        document = artifacts.read_document(path, error=InputError, hint=RESTORE_METRICS)
        artifacts.expect_run(path, document, error=InputError, hint=RESTORE_METRICS)
        return artifacts.listed_files(path, document, error=InputError, hint=RESTORE_METRICS)

    def checkpoint_steps(self) -> list[int]:
        """Steps with a complete checkpoint, ascending."""
        paths = (self.folder / "checkpoints").glob("step-*")
        return sorted(
            int(path.name.removeprefix("step-")) for path in paths if path.name.removeprefix("step-").isdigit()
        )


RECOUNT_SHARDS = "delete it: the shards are then counted again"
RESTORE_METRICS = f"restore it, or delete {METRICS_FILE}: the curves of a report need it, and nothing else does"


def log_line(values: Mapping[str, Any]) -> str:
    """A line of metrics.jsonl or shards.jsonl, with its checksum."""
    return json.dumps({**values, artifacts.CHECKSUM: files.digest_of(values)[:SHORT]}) + "\n"


def read_lines(path: Path, hint: str) -> list[dict[str, Any]]:
    """The lines that `log_line` made, without a last one that a killed run left incomplete; none without a file.

    InputError with `hint` names a damaged line.
    """
    if not path.exists():
        return []
    *complete, _ = path.read_bytes().split(b"\n")
    return [_read_line(path, number, line, hint) for number, line in enumerate(complete, start=1)]


def _line_damages(path: Path, hint: str) -> Iterator[str]:
    """What is wrong with each damaged line of a file of `log_line`."""
    if path.exists():
        for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
            try:
                _read_line(path, number, line, hint)
            except InputError as error:
                yield str(error.args[0])


def _read_line(path: Path, number: int, line: bytes, hint: str) -> dict[str, Any]:
    try:
        values = json.loads(line.decode())
        is_intact = isinstance(values, dict) and values.pop(artifacts.CHECKSUM, "") == files.digest_of(values)[:SHORT]
    except (ValueError, RecursionError):
        is_intact = False
    if not is_intact:
        raise InputError(f"line {number} of {path} is damaged: it does not match its checksum", hint=hint)
    result: dict[str, Any] = values
    return result


class SeededConfig(Protocol):
    """A frozen config with a seed: a recipe, or a config of the built-in teacher."""

    @property
    def seed(self) -> int: ...


def check_folder(
    folder: Path, recipe: SeededConfig, kind: str, *, resume: bool, inputs: Mapping[str, Any] | None = None
) -> None:
    """StaleError if a folder cannot take a run of this recipe: it is taken and `resume` is not set, or it holds
    something else.

    InputError if it cannot be written. Looks at run.json alone, before anything is loaded; `start_run` compares what
    the run reads, and here `inputs`, if that is known already, is what it reads at least.
    """
    files.check_output_folder(folder)
    _check_taken(folder, {"what": kind, "recipe": to_table(recipe)}, resume=resume)
    if inputs is not None and (folder / "run.json").exists():
        known, expected = (
            {f"inputs.{name}": value for name, value in part.items()}
            for part in (Run(folder).facts()["inputs"], inputs)
        )
        artifacts.expect(folder, known, expected, hint="name another folder with --out")


def start_run(
    folder: Path,
    recipe: SeededConfig,
    kind: str,
    inputs: dict[str, Any],
    *,
    resume: bool,
    measured: Mapping[str, Any] | None = None,
) -> Run:
    """Make a run folder, or resume the one that is there.

    `inputs` are the fingerprints of what the run reads. StaleError if the folder is taken and `resume` is not set, or
    if its run was started with another recipe or other inputs. `measured` is kept beside them and not compared: it
    follows from them. Neither are the CPU threads compared, which change a sum by its rounding.
    """
    facts = {"what": kind, "recipe": to_table(recipe), "inputs": inputs}
    _check_taken(folder, facts, resume=resume)
    for part in (folder, folder / "checkpoints", folder / BEST):
        files.remove_partials(part)
    if not (folder / "run.json").exists():
        import torch

        from dcdctl.core.devices import versions

        more = {"seed": recipe.seed, "command": _command(), "threads": torch.get_num_threads(), "versions": versions()}
        artifacts.write_document(folder / "run.json", {**facts, **(measured or {}), **more})
    return Run(folder)


def _check_taken(folder: Path, facts: dict[str, Any], *, resume: bool) -> None:
    """StaleError if a folder holds a run with other facts, any run at all without `resume`, or something that is not a
    run."""
    if (folder / "run.json").exists():
        if not resume:
            raise StaleError(
                f"{folder} already holds a run", hint="resume with --resume, or name another folder with --out"
            )
        artifacts.expect(folder, Run(folder).facts(), facts, hint="name another folder with --out")
    elif not files.is_vacant(folder):
        raise StaleError(f"{folder} holds something that is not a run", hint="name another folder with --out")


def _command() -> list[str]:
    """The command line, without the program's folder, which would mean nothing on another machine, and without queries
    of URLs."""
    name = Path(sys.argv[0]).name
    return ["dcdctl" if name == "__main__.py" else name, *map(_without_secrets, sys.argv[1:])]


def _without_secrets(word: str) -> str:
    """A word of a command line, as it is saved: a URL, also as --data=URL, has no password and no query."""
    option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    return f"{option}{equals}{shown(value)}"


def command_of(facts: Mapping[str, Any]) -> list[str]:
    """The command line that trains a run, by its run.json.

    It is the one that was typed; for a training in `dcdctl demo`, `dcdctl study` or a program, the `dcdctl distill`
    that equals it.
    """
    return list(facts.get("equivalent_command") or facts["command"])


def equivalent_command(job: TrainingJob, inputs: Sequence[str]) -> dict[str, list[str]]:
    """The command line of a job as an entry of run.json, if another one was typed; `inputs` are its options that name
    what it reads."""
    if _command()[1:2] == [job.kind]:
        return {}
    sets = [word for text in job.sets for word in ("--set", text)]
    # A recipe in memory has no name; run.json has all of it.
    recipe = job.recipe if isinstance(job.recipe, str) else "RECIPE.toml"
    words = [job.kind, recipe, *inputs, *sets, "--out", str(job.out)]
    return {"equivalent_command": ["dcdctl", *map(_without_secrets, words)]}


def open_run(folder: Path) -> Run:
    """An existing run; MissingError if there is none."""
    if not (folder / "run.json").exists():
        make = "make one with `dcdctl distill`"
        raise artifacts.other_folder_error(folder, "run", make) or MissingError(f"{folder} holds no run", hint=make)
    return Run(folder)


def save_checkpoint(
    run: Run, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler | None = None
) -> None:
    """Save atomically everything that the steps after `step` depend on, and delete old checkpoints."""
    import torch
    from safetensors.torch import save_file

    with files.atomic_folder(_checkpoint_folder(run, step)) as partial:
        save_file(_unshared(model), partial / WEIGHTS_FILE)
        torch.save(optimizer.state_dict(), partial / OPTIMIZER_FILE)
        names = [WEIGHTS_FILE, OPTIMIZER_FILE]
        if scaler is not None and scaler.is_enabled():
            files.write_json(partial / SCALER_FILE, scaler.state_dict())
            names.append(SCALER_FILE)
        _write_seal(partial, run, names, step=step, best_rsum=best_rsum(run))
    # Only after the new checkpoint is complete, so that a kill at any time leaves one.
    for old in run.checkpoint_steps()[:-KEPT_CHECKPOINTS]:
        shutil.rmtree(_checkpoint_folder(run, old))


def load_checkpoint(
    run: Run, model: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler | None = None
) -> int:
    """Load the newest checkpoint into model, optimizer and loss scale; returns the step to resume with, 0 without a
    checkpoint.

    StaleError that names the file and says how to resume from the checkpoint before it, if this one is damaged or not
    the one of its name.
    """
    import torch

    *earlier, step = [0, *run.checkpoint_steps()]
    if not earlier:
        return 0
    folder = _checkpoint_folder(run, step)
    hint = f"delete {folder} to resume from {f'step {earlier[-1]}' if earlier[-1] else 'the first step'}"
    seal = read_checkpoint_seal(run, step, hint)
    artifacts.check_files(folder, seal[artifacts.FILES], hint=hint)
    check_best(run, seal)
    _load_weights(folder / WEIGHTS_FILE, model, hint)
    # weights_only, because unpickling a file must not run its code.
    # On the CPU first: a tensor that was saved on cuda:0 would come back on cuda:0, in every process and on a machine
    # without it.
    optimizer.load_state_dict(torch.load(folder / OPTIMIZER_FILE, map_location="cpu", weights_only=True))
    if scaler is not None and scaler.is_enabled() and SCALER_FILE in seal[artifacts.FILES]:
        scaler.load_state_dict(files.read_json(folder / SCALER_FILE, error=StaleError, hint=hint))
    return step


def check_best(run: Run, seal: artifacts.Document) -> None:
    """StaleError if the best weights that a run had at a checkpoint are gone: it would take worse ones for the best."""
    if best_rsum(run) < seal["best_rsum"]:
        found = (
            f"{run.folder / BEST / SEAL_FILE} is missing or old: at step {seal['step']} the best RSUM was "
            f"{seal['best_rsum']:.3f}"
        )
        raise StaleError(found, hint="restore it, or train into another folder")


def _checkpoint_folder(run: Run, step: int) -> Path:
    return run.folder / "checkpoints" / f"step-{step}"


def _write_seal(folder: Path, run: Run, names: Sequence[str], **facts: Any) -> None:
    document = {
        "format": CHECKPOINT_FORMAT,
        artifacts.RUN: run.digest,
        **facts,
        artifacts.FILES: artifacts.list_files(folder, names),
    }
    artifacts.write_document(folder / SEAL_FILE, document)


def read_checkpoint_seal(run: Run, step: int, hint: str = "") -> artifacts.Document:
    """The seal of the checkpoint of a step; StaleError if it is damaged, of an earlier format, of another step, or of
    another run."""
    folder = _checkpoint_folder(run, step)
    if not (folder / SEAL_FILE).exists():
        found = (
            f"{folder} has no {SEAL_FILE}, so it is of format 1 and has no checksums; this dcdctl reads format "
            f"{CHECKPOINT_FORMAT}"
        )
        raise StaleError(found, hint="train into another folder with --out")
    seal = _read_seal(run, folder, "best_rsum", hint)
    if seal["step"] != step:
        raise StaleError(f"{folder} holds the checkpoint of step {seal['step']}", hint=hint)
    return seal


def _read_seal(run: Run, folder: Path, own_key: str, hint: str) -> artifacts.Document:
    path = folder / SEAL_FILE
    seal = artifacts.read_document(path, CHECKPOINT_FORMAT, hint=hint)
    artifacts.listed_files(path, seal, hint=hint)
    if seal[artifacts.RUN] != run.digest:
        raise StaleError(
            f"{folder} holds a checkpoint of another run: {path.name} and run.json do not belong together", hint=hint
        )
    # Only the best weights have an RSUM of their own, and only checkpoints know the best one of their run.
    if own_key not in seal:
        raise StaleError(f"{path} belongs to another folder of checkpoints: it has no {own_key}", hint=hint)
    return seal


def _load_weights(path: Path, model: nn.Module, hint: str) -> None:
    from safetensors.torch import load_file

    weights = load_file(path)
    if different := set(weights) ^ set(_unshared(model)):
        raise StaleError(
            f"{path.parent} is of another model: it differs in {min(different)}", hint="name another folder with --out"
        )
    models.check_finite(weights, path, error=StaleError, hint=hint)
    # Not strict: the file has tied weights under one name only. All other differences are found above.
    model.load_state_dict(weights, strict=False)


def best_rsum(run: Run) -> float:
    """The sum of recalls of the best weights saved so far; -1 if there are none."""
    seal = read_best_seal(run)
    return -1.0 if seal is None else float(seal["rsum"])


def read_best_seal(run: Run) -> artifacts.Document | None:
    """The seal of the best weights; None if there are none. StaleError if it is damaged or of another run."""
    folder = run.folder / BEST
    if not (folder / SEAL_FILE).exists():
        return None
    return _read_seal(run, folder, "rsum", f"restore {folder}, or train into another folder")


def save_best(run: Run, step: int, rsum: float, model: nn.Module) -> None:
    """Save atomically the weights after `step` steps as the best so far."""
    from safetensors.torch import save_file

    folder = run.folder / BEST
    # A name of its own, so that the seal switches from the old weights to the new ones in one rename.
    name = f"weights-{step}.safetensors"
    with files.atomic_path(folder / name) as partial:
        save_file(_unshared(model), partial)
    _write_seal(folder, run, [name], step=step, rsum=rsum)
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


def finish(run: Run, model: Model, *, half: bool = False) -> None:
    """Seal the metrics, then save the trained model in the run folder, atomically; its presence marks the run as
    finished."""
    if (run.folder / METRICS_FILE).exists():
        listed = artifacts.list_files(run.folder, [METRICS_FILE])
        artifacts.write_document(run.folder / METRICS_SEAL, {artifacts.RUN: run.digest, artifacts.FILES: listed})
    models.save(model.to("cpu"), run.model_folder, half=half)


def _unshared(model: nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers, each storage once: tied weights are restored through the one parameter that is
    kept."""
    # safetensors refuses tensors that share memory.
    first: dict[int, str] = {}
    state = model.state_dict()
    return {name: tensor for name, tensor in state.items() if first.setdefault(tensor.data_ptr(), name) == name}
