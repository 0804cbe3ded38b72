"""Run folders: what is in them, and when they are taken up again."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from dcdctl.core.config import to_table
from dcdctl.core.errors import InputError, MissingError, StaleError
from dcdctl.core.training import loggers, runs
from dcdctl.core.training.recipe import LossConfig, Recipe

RECIPE = Recipe(seed=3)


def start(folder, recipe=RECIPE, inputs=None, *, resume=False):
    return runs.start_run(folder, recipe, "distill", inputs or {"corpus": "c" * 64}, resume=resume)


def test_a_new_run_says_what_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["/home/someone/dcdctl/__main__.py", "distill", "r"])
    facts = start(tmp_path / "run").facts()
    assert facts["recipe"] == to_table(RECIPE)
    assert (facts["what"], facts["seed"], facts["inputs"]) == ("distill", 3, {"corpus": "c" * 64})
    assert facts["versions"]["torch"] == torch.__version__
    assert facts["command"] == ["dcdctl", "distill", "r"]
    assert not runs.open_run(tmp_path / "run").is_finished


def test_a_taken_folder_is_refused_without_resume(tmp_path):
    start(tmp_path / "run")
    with pytest.raises(StaleError, match="already holds a run; resume with --resume"):
        start(tmp_path / "run")
    start(tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"recipe": Recipe(seed=3, loss=LossConfig(alpha=0.5))}, r"another recipe\.loss\.alpha \(0\.2, not 0\.5\)"),
        ({"recipe": Recipe(seed=4)}, r"another recipe\.seed \(3, not 4\)"),
        ({"inputs": {"corpus": "d"}}, r"another inputs\.corpus \(c+, not d\)"),
    ],
)
def test_another_recipe_or_input_is_named(tmp_path, change, message):
    start(tmp_path / "run")
    with pytest.raises(StaleError, match=message):
        start(tmp_path / "run", **change, resume=True)


def test_a_folder_of_something_else_is_refused_and_one_of_leftovers_is_not(tmp_path):
    (tmp_path / "run.json.12.partial").write_text("{")
    start(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("dear")
    with pytest.raises(StaleError, match="holds something that is not a run"):
        start(tmp_path / "other", resume=True)


def test_no_run_says_how_to_make_one(tmp_path):
    with pytest.raises(MissingError, match="holds no run; make one with `dcdctl distill`"):
        runs.open_run(tmp_path)


def test_damaged_files_of_a_run_are_named(tmp_path):
    run = start(tmp_path / "run")
    (run.folder / "metrics.jsonl").write_text('{"step": 0}\n{"st\n{"step": 20}\n')
    with pytest.raises(InputError, match=r"metrics\.jsonl has a line that is not JSON"):
        run.metrics()
    (run.folder / "run.json").write_text('{"what": ')
    with pytest.raises(InputError, match=r"run\.json is not JSON: .*; restore it"):
        start(tmp_path / "run", resume=True)


def test_a_log_drops_what_comes_after_the_step_it_goes_on_from(tmp_path):
    run = start(tmp_path / "run")
    log = loggers.Log(run, 0)
    for step in range(0, 50, 10):
        log.write(step, {"loss": step / 7})
    log.close()
    with (run.folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 50, "lo')
    assert [line["step"] for line in run.metrics()] == [0, 10, 20, 30, 40]
    log = loggers.Log(run, 25)
    log.write(30, {"loss": 1.0})
    log.close()
    assert [(line["step"], line["loss"]) for line in run.metrics()] == [(0, 0.0), (10, 10 / 7), (20, 20 / 7), (30, 1.0)]
    events = EventAccumulator(str(run.folder / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [
        (0, 0.0),
        (10, pytest.approx(10 / 7)),
        (20, pytest.approx(20 / 7)),
        (30, 1.0),
    ]


class Tied(nn.Module):
    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.first = nn.Linear(width, width)
        self.second = nn.Linear(width, width)
        self.second.weight = self.first.weight


def optimizer_of(model: nn.Module) -> torch.optim.AdamW:
    return torch.optim.AdamW(model.parameters(), lr=0.1)


def step(model: Tied, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model.second(model.first(torch.ones(2, 3))).square().sum().backward()
    optimizer.step()


def test_a_checkpoint_brings_back_weights_moments_and_loss_scale_and_two_are_kept(tmp_path):
    run, model = start(tmp_path / "run"), Tied()
    optimizer = optimizer_of(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=512.0)
    for count in (1, 2, 3):
        step(model, optimizer)
        runs.save_checkpoint(run, count, model, optimizer, scaler)
    assert run.checkpoint_steps() == [2, 3]
    scale = run.folder / "checkpoints" / "step-3" / "scaler.json"
    written = scale.read_text()
    scale.write_text(written[:-9])
    with pytest.raises(InputError, match=r"step-3/scaler\.json is not JSON: .*; delete .*step-3 to resume"):
        runs.load_checkpoint(run, Tied(), optimizer, scaler)
    scale.write_text(written)
    fresh = Tied()
    fresh_optimizer, fresh_scaler = optimizer_of(fresh), torch.amp.GradScaler("cpu")
    assert runs.load_checkpoint(run, fresh, fresh_optimizer, fresh_scaler) == 3
    assert fresh_scaler.get_scale() == 512.0
    assert fresh.first.weight is fresh.second.weight
    step(model, optimizer)
    step(fresh, fresh_optimizer)
    assert all(torch.equal(trained, loaded) for trained, loaded in zip(model.parameters(), fresh.parameters(), strict=True))


def test_no_checkpoint_is_step_0_and_one_of_another_model_is_refused(tmp_path):
    run, model = start(tmp_path / "run"), Tied()
    assert runs.load_checkpoint(run, model, optimizer_of(model)) == 0
    runs.save_checkpoint(run, 4, model, optimizer_of(model))
    loaded = nn.Linear(3, 3)
    with pytest.raises(StaleError, match=r"step-4 is of another model: it differs in bias"):
        runs.load_checkpoint(run, loaded, optimizer_of(loaded))


def test_a_half_written_checkpoint_is_none_and_is_cleared_away(tmp_path):
    run = start(tmp_path / "run")
    (run.folder / "checkpoints" / "step-9.77.partial").mkdir(parents=True)
    (run.folder / "model.77.partial").mkdir()
    assert run.checkpoint_steps() == []
    start(run.folder, resume=True)
    assert sorted(path.name for path in run.folder.iterdir()) == ["checkpoints", "run.json"]
    assert not list((run.folder / "checkpoints").iterdir())


def test_tied_weights_are_kept_once(tmp_path):
    run, model = start(tmp_path / "run"), Tied()
    runs.save_checkpoint(run, 1, model, optimizer_of(model))
    assert set(load_file(run.folder / "checkpoints" / "step-1" / "weights.safetensors")) == {"first.weight", "first.bias", "second.bias"}
    assert json.loads((run.folder / "run.json").read_text())["what"] == "distill"
