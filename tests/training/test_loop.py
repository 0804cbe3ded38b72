"""The one loop: the released schedule and optimiser, and a run that is killed and goes on as if it had not been."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from forks import run_forked
from paths import FIXTURES
from torch import nn
from torch.utils.data import Dataset

from dcdctl.core.engines import Compute
from dcdctl.core.errors import ConfigError, CorpusError
from dcdctl.core.training import TrainingOptions, checkpoints, loop, runs
from dcdctl.core.training.loop import learning_rate_factor, make_optimizer
from dcdctl.core.training.recipe import OptimizerConfig, Recipe

RELEASED = json.loads((FIXTURES / "optim_a.json").read_text())


def test_the_schedule_is_the_released_one():
    config = OptimizerConfig(lr=0.01, warmup_share=RELEASED["config"]["warmup"])
    for step, released in enumerate(RELEASED["steps"]):
        factor = learning_rate_factor(step, RELEASED["config"]["max_steps"], config)
        assert 0.01 * factor == pytest.approx(released["lr"]["stu_rank_output.weight"], abs=1e-12)
        # Fusion parts have five times the rate.
        assert 0.05 * factor == pytest.approx(released["lr"]["stu_cross_modal_image_pooler.dense.bias"], abs=1e-12)


def test_vectors_do_not_decay_and_frozen_parameters_are_left_out():
    model = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2), nn.Linear(2, 2))
    model[2].requires_grad_(False)
    groups = make_optimizer(model, OptimizerConfig(weight_decay=0.3)).param_groups
    assert [(group["decay"], [tuple(p.shape) for p in group["params"]]) for group in groups] == [
        (0.3, [(2, 3)]),
        (0.0, [(2,), (2,), (2,)]),
    ]


def test_the_rates_of_a_step_are_the_recipes_factor_and_the_official_decay():
    model = nn.ModuleDict({"head": nn.Linear(3, 2), "rest": nn.Linear(2, 2)})
    optimizer = make_optimizer(model, OptimizerConfig(weight_decay=0.3, betas=(0.5, 0.7), lr_factors={"head": 5.0}))
    assert {(group["betas"], group["eps"]) for group in optimizer.param_groups} == {((0.5, 0.7), 1e-8)}
    loop.set_rates(optimizer, 0.1, 3)
    rates = {tuple(group["params"][0].shape): (group["lr"], group["weight_decay"]) for group in optimizer.param_groups}
    # Rate a (1 - a w) and decay w / (1 - a w), with a = 0.1 times the factor; the vectors of either part do not decay.
    assert len(optimizer.param_groups) == 4
    assert rates[2, 3] == pytest.approx((0.5 * (1 - 0.5 * 0.3), 0.3 / (1 - 0.5 * 0.3)))
    assert rates[2, 2] == pytest.approx((0.1 * (1 - 0.1 * 0.3), 0.3 / (1 - 0.1 * 0.3)))
    assert sorted(group["lr"] for group in optimizer.param_groups if not group["decay"]) == pytest.approx([0.1, 0.5])
    # Eps over the square root of 1 - 0.7^3, each time from the recipe's eps.
    for _ in range(2):
        loop.set_rates(optimizer, 0.1, 3)
        assert [group["eps"] for group in optimizer.param_groups] == pytest.approx([1e-8 / math.sqrt(0.657)] * 4)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_schedule_rises_from_0_to_1_and_falls(schedule):
    config = OptimizerConfig(schedule=schedule, warmup_share=0.2)
    factors = [learning_rate_factor(step, 50, config) for step in range(50)]
    assert factors[:11] == pytest.approx([step / 10 for step in range(11)])
    assert all(before > after > 0 for before, after in pairwise(factors[10:]))
    assert learning_rate_factor(30, 50, config) == pytest.approx(0.5)
    assert learning_rate_factor(0, 1, OptimizerConfig(warmup_share=0.0)) == 1
    # 5.8 steps of warm-up are rounded down, as in the released code.
    config = OptimizerConfig(schedule=schedule, warmup_share=0.1)
    assert [learning_rate_factor(step, 58, config) for step in (4, 5)] == pytest.approx([0.8, 1])


class Batch:
    def __init__(self, x: torch.Tensor, y: torch.Tensor) -> None:
        self.x, self.y = x, y

    def to(self, device: torch.device) -> Batch:
        return Batch(self.x.to(device), self.y.to(device))


class Lines(Dataset[Batch]):
    """Points of y = 2x + 1; a function of the step."""

    def __getitem__(self, step: int) -> Batch:
        x = torch.randn(16, 1, generator=torch.Generator().manual_seed(step))
        return Batch(x, 2 * x + 1)


def squares(model: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
    error = (model(batch.x) - batch.y).float()
    return {"square": 0.5 * error.square().mean(), "absolute": 0.1 * error.abs().mean()}


def train(
    folder: Path, objective=squares, *, steps=60, options=None, batches=None, **config
) -> tuple[runs.Run, nn.Module]:
    recipe = Recipe(
        optimizer=OptimizerConfig(**{"lr": 0.1, "steps": steps, "weight_decay": 0.0, "save_every": 25, **config})
    )
    run = runs.start_run(folder, recipe, "test", {}, resume=True)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 8), nn.Dropout(0.1), nn.Linear(8, 1))
    options = options or TrainingOptions()
    learner = loop.Learner(model, objective, recipe.optimizer, num_steps=steps, seed=0, options=options)
    loop.train(run, learner, batches or Lines())
    return run, model


def test_training_lowers_the_loss_and_logs_the_parts(tmp_path):
    run, model = train(tmp_path)
    metrics = run.metrics()
    assert [line["step"] for line in metrics] == [0, 10, 20, 30, 40, 50, 59]
    assert metrics[-1]["loss"] < 0.2 * metrics[0]["loss"]
    for line in metrics:
        assert line["loss"] == pytest.approx(line["square"] + line["absolute"], rel=1e-6)
    assert metrics[0]["lr"] == 0
    assert metrics[1]["lr"] == pytest.approx(0.1 * (60 - 10) / (60 - 6))
    assert run.checkpoint_steps() == [25, 50]
    assert not model.training


def test_the_last_step_leaves_no_checkpoint_because_the_model_follows(tmp_path):
    run, _ = train(tmp_path, steps=6, save_every=3)
    assert run.checkpoint_steps() == [3]


@pytest.mark.parametrize(("bad", "loss"), [(math.nan, "nan"), (math.inf, "inf"), (-math.inf, "-inf")])
@pytest.mark.parametrize("name", ["square", "absolute"])
def test_a_loss_that_is_not_finite_is_an_error_that_names_step_and_part_and_changes_no_weight(
    tmp_path, name, bad, loss
):
    before: list[torch.Tensor] = []
    models_seen: list[nn.Module] = []

    def broken(model: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        parts = squares(model, batch)
        if float(batch.x[0]) == float(Lines()[7].x[0]):
            models_seen.append(model)
            before.extend(parameter.detach().clone() for parameter in model.parameters())
            parts[name] = parts[name] * bad
        return parts

    values = {part: re.escape(loss) if part == name else r"\d.*" for part in ("square", "absolute")}
    listed = rf"the loss of step 7 is {re.escape(loss)} \(square {values['square']}, absolute {values['absolute']}\)"
    with pytest.raises(ConfigError, match=f"^{listed}") as error:
        train(tmp_path, broken)
    assert error.value.hint == "try a lower optimizer.lr or set optimizer.max_grad_norm"
    assert all(torch.equal(*both) for both in zip(before, models_seen[0].parameters(), strict=True))


def test_terms_that_are_finite_and_whose_sum_is_not_are_an_error_too(tmp_path):
    def broken(model: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        return {name: part * 0 + 3e38 for name, part in squares(model, batch).items()}

    with pytest.raises(ConfigError, match=r"the loss of step 0 is inf \(square 3\.\S*e\+38, absolute 3\.\S*e\+38\)"):
        train(tmp_path, broken)


def test_half_precision_computes_in_it_and_learns(tmp_path):
    seen = set()

    def objective(model: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        seen.add(model(batch.x).dtype)
        return squares(model, batch)

    run, _ = train(tmp_path, objective, options=TrainingOptions(compute=Compute(precision="bfloat16")))
    assert seen == {torch.bfloat16}
    assert run.metrics()[-1]["loss"] < 0.3 * run.metrics()[0]["loss"]
    assert not list(tmp_path.glob("checkpoints/*/scaler.json"))


def test_float16_gradients_are_clipped_without_their_loss_scale():
    def clipped(scale: float) -> list[torch.Tensor]:
        torch.manual_seed(0)
        learner = loop.Learner(
            nn.Linear(3, 2),
            lambda model, batch: {"square": 10 * model(batch).square().sum()},
            OptimizerConfig(max_grad_norm=0.5),
            num_steps=1,
            seed=0,
            options=TrainingOptions(),
        )
        learner.scaler = torch.amp.GradScaler("cpu", init_scale=scale, enabled=scale > 1)
        learner.step(torch.ones(4, 3), 0)
        return [parameter.grad for parameter in learner.model.parameters()]

    plain, scaled = clipped(1), clipped(1024)
    assert float(torch.cat([gradient.flatten() for gradient in scaled]).norm()) == pytest.approx(0.5, rel=1e-4)
    assert all(torch.allclose(*both) for both in zip(plain, scaled, strict=True))


class Pushes(Dataset[torch.Tensor]):
    """Gradients of a step, about as large as eps."""

    def __init__(self, size: float, overflows: tuple[int, ...] = ()) -> None:
        self.size, self.overflows = size, overflows

    def __getitem__(self, step: int) -> torch.Tensor:
        push = self.size * (
            1 + 0.5 * torch.rand(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        )
        return torch.full_like(push, 1e305) if step in self.overflows else push


class Pushed(nn.Module):
    """A matrix whose gradient is the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.linspace(-1, 1, 6, dtype=torch.float64).view(3, 2))


def push(model: Pushed, batch: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"push": (model.matrix * batch).sum()}


NUM_PUSHES = 12
PUSHED = OptimizerConfig(lr=0.01, steps=NUM_PUSHES, weight_decay=0.1)


def pushed(folder: Path, pushes: Pushes, *, until: int | None = None, precision: str = "float32") -> torch.Tensor:
    """The matrix after all pushes, or after `until` of them, with a checkpoint."""
    run, model = runs.start_run(folder, Recipe(optimizer=PUSHED), "test", {}, resume=True), Pushed()
    config = PUSHED if until is None else replace(PUSHED, save_every=until)

    @contextmanager
    def stopped(**counts: Any) -> Iterator[Any]:
        def on_step(done: int, values: Any) -> None:
            if done == until:
                raise KeyboardInterrupt

        yield on_step

    with suppress(KeyboardInterrupt):
        options = TrainingOptions(compute=Compute(precision=precision))
        learner = loop.Learner(model, push, config, num_steps=NUM_PUSHES, seed=0, options=options)
        loop.train(run, learner, pushes, watch=stopped)
    return model.matrix.detach()


def transformers_adamw(pushes: Pushes) -> torch.Tensor:
    """The AdamW of transformers 4.6 (`correct_bias=True`), written out; a step with an overflow changes and counts
    nothing."""
    matrix, (beta_1, beta_2) = Pushed().matrix.detach(), PUSHED.betas
    first = second = torch.zeros_like(matrix)
    update = 0
    for step in range(NUM_PUSHES):
        if step in pushes.overflows:
            continue
        update, rate = update + 1, PUSHED.lr * learning_rate_factor(step, NUM_PUSHES, PUSHED)
        first = beta_1 * first + (1 - beta_1) * pushes[step]
        second = beta_2 * second + (1 - beta_2) * pushes[step].square()
        step_size = rate * math.sqrt(1 - beta_2**update) / (1 - beta_1**update)
        matrix = matrix - step_size * first / (second.sqrt() + 1e-8)
        matrix = matrix - rate * PUSHED.weight_decay * matrix
    return matrix


def torch_adamw(pushes: Pushes) -> torch.Tensor:
    """The same rates and decays with torch's eps, which is added after the correction of the second moment's bias."""
    model = Pushed()
    optimizer = make_optimizer(model, PUSHED)
    for step in range(NUM_PUSHES):
        loop.set_rates(optimizer, PUSHED.lr * learning_rate_factor(step, NUM_PUSHES, PUSHED), step + 1)
        optimizer.param_groups[0]["eps"] = 1e-8
        model.matrix.grad = pushes[step]
        optimizer.step()
    return model.matrix.detach()


@pytest.mark.parametrize("size", [1e-7, 1e-9])
def test_tiny_gradients_move_weights_as_in_the_released_optimizer(tmp_path, size):
    released = transformers_adamw(Pushes(size))
    assert torch.allclose(pushed(tmp_path, Pushes(size)), released, rtol=0, atol=1e-11 * PUSHED.lr)
    assert (torch_adamw(Pushes(size)) - released).abs().min() > 0.4 * PUSHED.lr


def test_a_resumed_run_counts_the_updates_before_it(tmp_path):
    whole = pushed(tmp_path / "whole", Pushes(1e-9))
    pushed(tmp_path / "halves", Pushes(1e-9), until=5)
    assert torch.equal(pushed(tmp_path / "halves", Pushes(1e-9)), whole)


def test_a_step_that_the_loss_scale_skips_is_no_update(tmp_path):
    pushes = Pushes(1e-9, overflows=(0, 3))
    pushed(tmp_path, pushes, until=5, precision="float16")
    resumed = pushed(tmp_path, pushes, precision="float16")
    assert torch.allclose(resumed, transformers_adamw(pushes), rtol=0, atol=1e-11 * PUSHED.lr)


def test_workers_change_no_number(tmp_path):
    _, alone = train(tmp_path / "alone", steps=12)
    _, with_workers = train(tmp_path / "helped", steps=12, options=TrainingOptions(compute=Compute(workers=1)))
    assert all(
        torch.equal(first, second) for first, second in zip(alone.parameters(), with_workers.parameters(), strict=True)
    )


class DamagedLines(Lines):
    """The same, but for the batch of step 3."""

    def __getitem__(self, step: int) -> Batch:
        if step == 3:
            raise CorpusError("image 'x' of split train cannot be decoded")
        return super().__getitem__(step)


def test_an_error_of_a_worker_is_one_line(tmp_path):
    with pytest.raises(CorpusError) as raised:
        train(tmp_path, steps=12, options=TrainingOptions(compute=Compute(workers=1)), batches=DamagedLines())
    assert str(raised.value) == "image 'x' of split train cannot be decoded"


SCRIPT = """
import sys
from pathlib import Path
from typing import Any
import torch
torch.set_num_threads(1)
from kills import kill_often
from made_caches import build_cache
from open_inputs import OpenInputs
from tiny import make_teacher
from dcdctl.core.data import Corpus
from dcdctl.core.teacher import CandidateConfig
from dcdctl.core.training import TrainingJob, TrainingOptions, train_model
corpus = Corpus.open(Path(sys.argv[1]), "train")
sets = ["model.layers=[0, 2]", "batch.size=6", "batch.random_negatives=6", "batch.hard_negatives=3",
"candidates.per_query=6",
        "optimizer.steps=16", "optimizer.save_every=3", "optimizer.lr=1e-3", "validation.every=7",
        "validation.max_images=4"]
def work(folder):
    teacher = make_teacher(corpus.captions)
    cache = build_cache(corpus, teacher, folder.with_name(folder.name + "-cache"), CandidateConfig(per_query=6))
    inputs = OpenInputs(corpus, [cache], teacher)
    job = TrainingJob("distill", "vilt-coco", sets, folder, resume=True)
    train_model(job, inputs, options=TrainingOptions())
kill_often(work, Path(sys.argv[2]), Path(sys.argv[3]), num_kills=4)
"""


def test_killed_again_and_again_a_run_ends_with_the_same_losses_and_weights(scenes_corpus_dir, tmp_path):
    run_forked(SCRIPT, scenes_corpus_dir, tmp_path / "whole", tmp_path / "killed")
    whole, victim = runs.Run(tmp_path / "whole"), runs.Run(tmp_path / "killed")
    timeless = [
        [{key: value for key, value in line.items() if key != "seconds"} for line in run.metrics()]
        for run in (whole, victim)
    ]
    assert timeless[0] == timeless[1]
    assert [line["step"] for line in timeless[0]] == [0, 6, 10, 13, 15]
    assert [checkpoints.best_value(run) for run in (whole, victim)] == [
        max(line.get("val_rsum", 0) for line in timeless[0])
    ] * 2
    files = [(run.model_folder / "model.safetensors").read_bytes() for run in (whole, victim)]
    assert files[0] == files[1]
    assert not list(victim.folder.rglob("*.partial"))
