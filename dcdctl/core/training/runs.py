"""Run folders: the settings of a training run, its metrics, its checkpoints and its model.

RUN/run.json             resolved recipe, fingerprints, versions, command line, seed; written once
RUN/metrics.jsonl        one line per logged step, each with a short checksum
RUN/metrics.json         size and SHA-256 of metrics.jsonl, written when the training ends
RUN/tensorboard/         the same as TensorBoard events
RUN/checkpoints/step-N/  weights (safetensors), optimizer state, loss scale (float16 only); the two newest are kept
RUN/checkpoints/best/    weights with the highest sum of recalls so far
RUN/mined.safetensors    mined negatives, if the recipe mines (`negatives.py`), with RUN/mined.json, their seal
RUN/shards.jsonl         samples of each shard that was read to its end, in a training on a stream (`stream_data.py`)
RUN/wandb.json           id of the run at Weights & Biases, with --wandb
RUN/model/               the trained model, with tokenizer and image processor; completion marker, written last
RUN/result.json          from `dcdctl eval`;  RUN/cascade.json  with --rerank;  RUN/bench.json  from `dcdctl bench`

All JSON files hold a checksum of their own (`artifacts.write_document`).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from dcdctl.core import artifacts, files, models
from dcdctl.core.config import to_table
from dcdctl.core.errors import InputError, StaleError
from dcdctl.core.places import shown

if TYPE_CHECKING:  # a run is read without torch
    from dcdctl.core.models import Model
    from dcdctl.core.training.recipe import Recipe

BEST = Path("checkpoints", "best")
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
    rounds: Sequence[artifacts.Document] = ()
    """What each round up to this training proposed, scored and picked, for run.json."""


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

    def facts(self) -> artifacts.Document:
        """run.json; InputError if it is damaged, or if the model in the folder is another run's."""
        return models.read_run(self.folder, error=InputError)[0]

    @cached_property
    def digest(self) -> str:
        """Names the run in its other files: SHA-256 of run.json."""
        return files.digest_of(self.facts())

    def metrics(self) -> list[artifacts.Document]:
        """The logged steps, oldest first; see `read_lines`.

        InputError that names a damaged line, or the file if a run has another one than it wrote.
        """
        path = self.folder / METRICS_FILE
        if path.exists() and self.is_finished:
            listed = self.metrics_seal()
            artifacts.check_files(self.folder, listed, error=InputError, hint=RESTORE_METRICS)
        return self.read_lines(METRICS_FILE, RESTORE_METRICS)

    def log_line(self, values: Mapping[str, Any]) -> str:
        """A line of metrics.jsonl or shards.jsonl, with a checksum that only this run gives it."""
        return json.dumps({**values, artifacts.CHECKSUM: self._line_checksum(values)}) + "\n"

    def append(self, name: str, values: Mapping[str, Any]) -> None:
        """Append a line of `log_line` to metrics.jsonl or shards.jsonl."""
        # Closed after each line, so a killed run leaves at most one incomplete line, which `read_lines` skips.
        with (self.folder / name).open("a", encoding="utf-8", newline="\n") as file:
            file.write(self.log_line(values))

    def read_lines(self, name: str, hint: str) -> list[artifacts.Document]:
        """The lines that `log_line` made, without a last one that a killed run left incomplete; none without a file.

        InputError with `hint` names a damaged line, or one of another run.
        """
        path, lines = self.folder / name, []
        if path.exists():
            # Bytes, because a damaged line may be no UTF-8. A killed run leaves at most one line without its end.
            with path.open("rb") as file:
                for number, line in enumerate(file, start=1):
                    if line.endswith(b"\n"):
                        lines.append(self._read_line(path, number, line, hint))
        return lines

    def _line_checksum(self, values: Mapping[str, Any]) -> str:
        return files.digest_of({**values, artifacts.RUN: self.digest})[:SHORT]

    def _read_line(self, path: Path, number: int, line: bytes, hint: str) -> artifacts.Document:
        try:
            values: artifacts.Document = json.loads(line.decode())
            is_intact = isinstance(values, dict) and values.pop(artifacts.CHECKSUM, "") == self._line_checksum(values)
        # RecursionError: a damaged line may hold any number of brackets.
        except (ValueError, RecursionError):
            is_intact = False
        if not is_intact:
            raise InputError(
                f"line {number} of {path} is damaged, or of another run: it does not match its checksum", hint=hint
            )
        return values

    def check_logs(self) -> None:
        """InputError for a damaged or a missing metrics.jsonl, or a damaged shards.jsonl."""
        if self.is_finished and (self.folder / METRICS_SEAL).exists():
            artifacts.check_files(self.folder, self.metrics_seal(), error=InputError, hint=RESTORE_METRICS)
        self.metrics()
        self.read_lines(SHARDS_FILE, RECOUNT_SHARDS)

    def metrics_seal(self) -> dict[str, artifacts.Document]:
        """What metrics.json of a finished run lists."""
        path = self.folder / METRICS_SEAL
        document = artifacts.read_document(path, error=InputError, hint=RESTORE_METRICS)
        # Not `expect_run`: it is written before the model.
        if document.get(artifacts.RUN) != self.digest:
            raise InputError(f"{path} does not belong to the run of run.json beside it", hint=RESTORE_METRICS)
        return artifacts.listed_files(path, document, error=InputError, hint=RESTORE_METRICS)

    def checkpoint_steps(self) -> list[int]:
        """Steps with a complete checkpoint, ascending."""
        paths = (self.folder / "checkpoints").glob("step-*")
        steps = (path.name.removeprefix("step-") for path in paths)
        return sorted(int(step) for step in steps if step.isdigit())


ELSEWHERE = "name another folder with --out"
RECOUNT_SHARDS = "delete it: the shards are then counted again"
RESTORE_METRICS = f"restore it, or delete {METRICS_FILE}: the curves of a report need it, and nothing else does"


class SeededConfig(Protocol):
    """A frozen config with a seed: a recipe, or a config of the built-in teacher."""

    @property
    def seed(self) -> int: ...


def check_folder(folder: Path, facts: Mapping[str, Any], *, resume: bool) -> artifacts.Document | None:
    """run.json of the run that `folder` holds, None if it is vacant; StaleError if it cannot take a run of these facts:
    it holds one with others, any run at all without `resume`, or something that is not a run.

    InputError if it cannot be written.
    """
    files.check_output_folder(folder)
    if not (folder / "run.json").exists():
        if not files.is_vacant(folder):
            raise StaleError(f"{folder} holds something that is not a run", hint=ELSEWHERE)
        return None
    if not resume:
        raise StaleError(f"{folder} already holds a run", hint=f"resume with --resume, or {ELSEWHERE}")
    known = Run(folder).facts()
    artifacts.expect(folder, known, facts, hint=ELSEWHERE)
    return known


def start_run(
    folder: Path,
    recipe: SeededConfig,
    kind: str,
    inputs: artifacts.Document,
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
    known = check_folder(folder, facts, resume=resume)
    # A killed process leaves unfinished files, which nothing else would remove.
    for part in (folder, folder / "checkpoints", folder / BEST):
        files.remove_partials(part)
    if known is None:
        # Here, because a run is read without torch.
        import torch

        from dcdctl.core.devices import versions

        more = {"seed": recipe.seed, "command": _command(), "threads": torch.get_num_threads(), "versions": versions()}
        artifacts.write_document(folder / "run.json", {**facts, **(measured or {}), **more})
    return Run(folder)


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


def finish(run: Run, model: Model, *, half: bool = False) -> None:
    """Seal the metrics, then save the trained model in the run folder, atomically; its presence marks the run as
    finished."""
    if (run.folder / METRICS_FILE).exists():
        # Before the model, whose folder marks the run as finished: from then on the seal is expected.
        listed = artifacts.list_files(run.folder, [METRICS_FILE])
        artifacts.write_document(run.folder / METRICS_SEAL, {artifacts.RUN: run.digest, artifacts.FILES: listed})
    models.save(model.to("cpu"), run.model_folder, half=half, run={artifacts.RUN: run.digest})
