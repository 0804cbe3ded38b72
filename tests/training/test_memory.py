"""The trial of the first step: a batch that does not fit into memory is split, and a run that runs out of memory says
what needs less."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from batches import recipe_batches
from training_steps import TINY_DUAL, distill

from dcdctl.core.data import Corpus
from dcdctl.core.errors import InputError
from dcdctl.core.scoring import CorpusSource
from dcdctl.core.training import TrainingOptions, initial_model, memory, recipe, runs
from dcdctl.core.training.grad_cache import Step, backward
from dcdctl.core.training.objective import PairObjective

AUTO = TrainingOptions(tries_micro_batches=True, tries_precision=True)
DUAL = [
    *TINY_DUAL,
    "model.dropout=0.1",
    *("optimizer.steps=4", "optimizer.save_every=2", "optimizer.lr=1e-3", "optimizer.warmup_share=0.0"),
]
CUDA = torch.OutOfMemoryError("Tried to allocate 2 GiB")


@pytest.fixture
def limit(monkeypatch) -> dict[str, Any]:
    """The most images that a forward pass may have, and the error of one with more."""
    limit: dict[str, Any] = {"images": 8, "error": CUDA, "passes": []}
    make_model = initial_model.make_model

    def check(_module: Any, _arguments: Any, named: dict[str, Any]) -> None:
        limit["passes"].append(len(named["pixel_values"]))
        if limit["passes"][-1] > limit["images"]:
            raise limit["error"]

    def make_limited(*arguments: Any) -> Any:
        model: Any = make_model(*arguments)
        model.network.vision_model.register_forward_pre_hook(check, with_kwargs=True)
        return model

    monkeypatch.setattr(initial_model, "make_model", make_limited)
    return limit


def train(
    corpus: Corpus, folder: Path, options: TrainingOptions = AUTO, *, resume: bool = False, **more: Any
) -> runs.Run:
    return distill(corpus, folder, *DUAL, resume=resume, options=options, **more)


def weights(run: runs.Run) -> bytes:
    return (run.model_folder / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def weights_of(corpus, tmp_path_factory) -> Callable[[int], bytes]:
    """The weights of a run with a number of micro-batches, without a trial."""

    @functools.cache
    def trained(micro_batches: int) -> bytes:
        return weights(
            train(corpus, tmp_path_factory.mktemp("plain") / "run", TrainingOptions(micro_batches=micro_batches))
        )

    return trained


def at_step(number: int, act: Callable[[], None]) -> Any:
    """A watch that acts after a step."""

    @contextmanager
    def watch(**_: Any) -> Iterator[Any]:
        yield lambda done, _: act() if done == number else None

    return watch


def test_a_batch_that_fits_is_trained_as_without_a_trial(corpus, weights_of, tmp_path):
    said: list[str] = []
    run = train(corpus, tmp_path / "auto", say=said.append)
    assert weights(run) == weights_of(1)
    assert (run.facts()["micro_batches"], run.facts()["inputs"]["precision"]) == (1, "float32")
    assert not any("auto" in line for line in said)


def test_a_batch_is_halved_until_it_fits(corpus, tmp_path, limit, weights_of):
    said: list[str] = []
    limit["images"] = 3
    run = train(corpus, tmp_path / "auto", say=said.append)
    assert limit["passes"][:3] == [8, 4, 2]
    assert said[-1] == "--accumulate auto is 4: a batch of 8 does not fit into memory in fewer parts"
    assert run.facts()["micro_batches"] == 4
    limit["images"] = 8
    assert weights(run) == weights_of(4)
    # Dropout is drawn for each micro-batch, so the number shows in the weights.
    assert weights(run) != weights_of(1)


def test_a_resumed_run_has_the_number_of_its_start(corpus, tmp_path, limit, weights_of):
    class StoppedError(Exception):
        pass

    def stop() -> None:
        raise StoppedError

    limit["images"] = 3
    with pytest.raises(StoppedError):
        train(corpus, tmp_path / "run", watch=at_step(3, stop))
    limit |= {"images": 8, "passes": []}
    resumed = train(corpus, tmp_path / "run", resume=True)
    assert set(limit["passes"]) == {2}, "neither tried again nor split otherwise"
    assert weights(resumed) == weights_of(4)


def test_a_row_that_does_not_fit_is_an_error_that_names_what_needs_less_memory(corpus, tmp_path, limit):
    limit["images"] = 0
    with pytest.raises(InputError) as raised:
        train(corpus, tmp_path / "run")
    assert limit["passes"] == [8, 4, 2, 1]
    found = "there is too little memory for this training with 8 micro-batches per batch"
    assert str(raised.value) == f"{found}; try --precision bf16, --checkpoint-activations, or a smaller batch.size"
    assert not (tmp_path / "run" / "run.json").exists()


def test_memory_that_runs_out_later_is_an_error_that_names_what_needs_less(corpus, tmp_path, limit):
    with pytest.raises(
        InputError, match=r"too little memory .* 1 micro-batch per batch; try --accumulate 2, --precision bf16, --check"
    ) as raised:
        train(corpus, tmp_path / "run", watch=at_step(2, lambda: limit.update(images=1)))
    assert raised.value.__cause__ is CUDA
    limit |= {"images": 8, "error": RuntimeError("another one")}
    with pytest.raises(RuntimeError, match="another one"):
        train(corpus, tmp_path / "other", watch=at_step(2, lambda: limit.update(images=1)))


def test_without_a_trial_nothing_is_split(corpus, tmp_path, limit):
    limit["images"] = 3
    with pytest.raises(InputError, match="try --accumulate 2"):
        train(corpus, tmp_path / "run", TrainingOptions())


@pytest.mark.parametrize("slow", ["float32", "bfloat16"])
def test_the_precision_is_the_one_with_the_shorter_step(corpus, slow, monkeypatch):
    loaded, said = recipe.load_recipe("tiny-student", DUAL), []
    model: Any = initial_model.make_model(loaded, corpus.captions, None)

    def wait(*_: Any) -> None:
        if torch.is_autocast_enabled("cpu") == (slow == "bfloat16"):
            time.sleep(0.1)

    model.network.vision_model.register_forward_pre_hook(wait)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    source = CorpusSource(corpus, model.preprocess)
    monkeypatch.setattr(memory, "precisions", lambda options: ("float32", "bfloat16"))

    def trial(options: TrainingOptions) -> None:
        plan = options.micro_batch_plan
        step = Step(number=0, seed=0, compute=options.compute, micro_batch_plan=plan)
        backward(model, PairObjective(loaded.loss), recipe_batches(source, loaded, None, plan)[0], step)

    found = memory.settle(AUTO, model, loaded.batch.size, trial, said.append)
    assert found == replace(
        AUTO.settled(), compute=replace(AUTO.compute, precision="bfloat16" if slow == "float32" else "float32")
    )
    assert len(said) == (1 if slow == "float32" else 0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_on_a_cpu_only_float32_is_tried():
    assert memory.precisions(AUTO) == ("float32",)
