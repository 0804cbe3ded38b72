"""How a model retrieves while it is trained, and the weights with which it did best."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from dcdctl.core import distributed, evaluation
from dcdctl.core.data import Corpus, Direction
from dcdctl.core.devices import Compute
from dcdctl.core.evaluation import EvalOptions
from dcdctl.core.training import runs
from dcdctl.core.training.recipe import ValidationConfig
from dcdctl.core.training.runs import Run


@dataclass(frozen=True)
class Validation:
    """Measures a model between the steps of a run. One of several processes does it while the others wait."""

    run: Run
    corpus: Corpus
    config: ValidationConfig
    compute: Compute

    def is_due(self, done: int, num_steps: int) -> bool:
        """Whether the model is measured after so many steps: every so often, and at the end."""
        return done % self.config.every == 0 or done == num_steps

    def measure(self, model: Any, done: int) -> dict[str, float]:
        """Recalls both ways in percent, their sum, and the best sum so far, the weights of which are kept; nothing in other processes.

        The model is in evaluation mode afterwards.
        """
        values: dict[str, float] = {}
        if distributed.is_main():
            # Always in float32, like `dcdctl eval`: recalls of runs of different precision stay comparable.
            options = EvalOptions(compute=replace(self.compute, precision="float32"))
            recalls = evaluation.evaluate_model(model, self.corpus, options=options).recalls
            for way, found in ((Direction.TEXT, recalls.text_retrieval), (Direction.IMAGE, recalls.image_retrieval)):
                values |= {f"val_{way}_r{k.removeprefix('R@')}": value for k, value in found.items()}
            best = runs.best_rsum(self.run)
            if recalls.rsum > best:
                runs.keep_best(self.run, done, recalls.rsum, model)
            values |= {"val_rsum": recalls.rsum, "val_best_rsum": max(best, recalls.rsum)}
        distributed.wait()
        return values

    def choose(self, model: Any) -> None:
        """Give a trained model the weights that the recipe wants: the best, or the last, which it has."""
        if self.config.keep == "best":
            runs.load_best(self.run, model)


def open_corpus(corpus: Corpus, config: ValidationConfig) -> Corpus:
    """What a training on `corpus` is measured on; CorpusError if its folder has no such split."""
    return Corpus.open(corpus.folder, config.split, config.max_images)
