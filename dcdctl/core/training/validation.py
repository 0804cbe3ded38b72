"""Validation during a training: recalls on a split between steps, the weights with the highest sum of recalls, and the
best validation of a finished run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dcdctl.core import distributed, evaluation, models
from dcdctl.core.data import Corpus, Direction, share_split
from dcdctl.core.devices import Compute
from dcdctl.core.errors import ConfigError
from dcdctl.core.evaluation import KS, EvalOptions
from dcdctl.core.training import checkpoints
from dcdctl.core.training.recipe import ValidationConfig
from dcdctl.core.training.runs import Run


@dataclass(frozen=True)
class Validation:
    """Validates a model between the steps of a run. If there are several processes, the main one does so while the
    others wait."""

    run: Run
    corpus: Corpus
    config: ValidationConfig
    compute: Compute

    def measure(self, model: Any, done: int) -> dict[str, float]:
        """Recalls of both directions in percent, also of the captions of each source, their sum, and the best sum so
        far; nothing outside the main process.

        Saves the weights if their sum is the best so far. Leaves the model in evaluation mode.
        """
        values: dict[str, float] = {}
        if distributed.is_main():
            # Always in float32, like `dcdctl eval`: recalls of runs of different precision stay comparable.
            options = EvalOptions(compute=replace(self.compute, precision="float32"))
            measured = evaluation.evaluate_model(model, self.corpus, options=options)
            for direction, measures in (
                (Direction.TEXT, measured.text_retrieval),
                (Direction.IMAGE, measured.image_retrieval),
            ):
                values |= {f"val_{direction}_r{k}": measures[f"R@{k}"] for k in KS}
            for name, recalls in measured.image_recalls_by_source.items():
                values |= {f"val_image_r{k}_{name.replace(' ', '_')}": recalls[f"R@{k}"] for k in KS}
            best = checkpoints.best_rsum(self.run)
            if measured.rsum > best:
                checkpoints.save_best(self.run, done, measured.rsum, model)
            values |= {"val_rsum": measured.rsum, "val_best_rsum": max(best, measured.rsum)}
        distributed.barrier()
        return values

    def choose(self, model: Any) -> None:
        """Load the best weights into a trained model if the recipe keeps these; it has the last ones."""
        if self.config.keep == "best":
            checkpoints.load_best(self.run, model)


def open_corpus(corpus: Corpus, config: ValidationConfig, folder: Path | None = None) -> Corpus:
    """The split that a training on `corpus` is validated on, of that corpus or of another one; CorpusError if there is
    no such split.

    ConfigError if the training reads that split too: recalls on its own images would choose the weights that know them
    best by heart.
    """
    is_same = folder is None or folder == corpus.folder
    if is_same and share_split(corpus.split, config.split):
        hint = f"set validation.split to another split, set validation.every to 0, or train without {config.split}"
        raise ConfigError(
            f"validation.split is {config.split}, and the training reads --split {corpus.split}", hint=hint
        )
    return Corpus.open(folder or corpus.folder, config.split, config.max_images)


def run_document(run: Run) -> dict[str, Any]:
    """The result of a finished run for JSON. Loads the model, whose fingerprint is that of caches and indexes made with
    it.

    `best` is the validation with the highest sum of recalls, None for a run without one; `kept` says which weights the
    model has. InputError for a damaged log.
    """
    facts, metrics = run.facts(), run.metrics()
    return {
        "run": str(run.folder),
        "model": str(run.model_folder),
        "model_digest": models.load(str(run.folder)).digest,
        "steps": metrics[-1]["step"] + 1,
        "kept": facts["recipe"]["validation"]["keep"] if facts["recipe"]["validation"]["every"] else "last",
        "best": _best(metrics, facts.get("batches_per_epoch")),
    }


def _best(metrics: list[dict[str, Any]], batches_per_epoch: float | None) -> dict[str, Any] | None:
    # The names of the initial model's recalls begin with start_, all others with val_.
    lines = [("start", 0, line) for line in metrics if "start_rsum" in line]
    lines += [("val", line["step"] + 1, line) for line in metrics if "val_rsum" in line]
    if not lines:
        return None
    # The first of equals: later weights replace earlier ones only if they are better.
    prefix, step, line = max(lines, key=lambda each: float(each[2][f"{each[0]}_rsum"]))
    recalls = {direction.key: {f"R@{k}": line[f"{prefix}_{direction}_r{k}"] for k in KS} for direction in Direction}
    epoch = None if batches_per_epoch is None else round(step / batches_per_epoch, 3)
    return {"step": step, "epoch": epoch, **recalls, "rsum": float(line[f"{prefix}_rsum"])}
