"""Run folders: what is in them, and when they are taken up again."""

from __future__ import annotations

import importlib.metadata
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from dcdctl.core import models
from dcdctl.core.artifacts import write_document
from dcdctl.core.config import to_table
from dcdctl.core.errors import InputError, StaleError
from dcdctl.core.integrity import verify
from dcdctl.core.training import checkpoints, loggers, loop, runs
from dcdctl.core.training.grad_cache import UNSCALED
from dcdctl.core.training.losses.table import LossConfig
from dcdctl.core.training.recipe import Recipe

RECIPE = Recipe(seed=3)


def start(folder, recipe=RECIPE, inputs=None, *, resume=False):
    return runs.start_run(folder, recipe, "distill", inputs or {"corpus": "c" * 64}, resume=resume)


def test_a_new_run_says_what_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["/home/someone/dcdctl/__main__.py", "distill", "r"])
    facts = start(tmp_path / "run").facts()
    assert facts["recipe"] == to_table(RECIPE)
    assert (facts["what"], facts["seed"], facts["inputs"]) == ("distill", 3, {"corpus": "c" * 64})
    assert facts["versions"]["torch"] == importlib.metadata.version("torch")
    assert facts["command"] == ["dcdctl", "distill", "r"]
    assert not runs.Run(tmp_path / "run").is_finished


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


def test_damaged_files_of_a_run_are_named(tmp_path):
    run = start(tmp_path / "run")
    for content, message in (
        (
            run_json(run).replace('"seed": 3', '"seed": 4'),
            r"run\.json is damaged: its content does not match its checksum; restore it",
        ),
        ('{"what": ', r"run\.json is not JSON: .*; restore it"),
    ):
        (run.folder / "run.json").write_text(content)
        with pytest.raises(InputError, match=message):
            start(tmp_path / "run", resume=True)


def run_json(run):
    return (run.folder / "run.json").read_text()


def logged(run, *losses):
    with loggers.open_logs(run, 0) as log:
        for step, loss in enumerate(losses):
            log(step, {"loss": loss})
    return (run.folder / "metrics.jsonl").read_bytes()


def test_every_flipped_byte_of_the_metrics_is_named_with_its_line(tmp_path):
    run = start(tmp_path / "run")
    content = logged(run, 1.5, 0.25, 0.125)
    ends = [k for k, byte in enumerate(content) if byte == ord("\n")]
    for k in range(len(content)):
        (run.folder / "metrics.jsonl").write_bytes(content[:k] + bytes([content[k] ^ 1]) + content[k + 1 :])
        if k == ends[-1]:
            assert [line["step"] for line in run.metrics()] == [
                0,
                1,
            ]  # as if it was killed while it wrote the last line
            continue
        with pytest.raises(
            InputError,
            match=rf"line {1 + sum(end < k for end in ends)} of .*metrics\.jsonl is damaged, .*; restore it, or",
        ):
            run.metrics()


def test_a_line_of_an_earlier_version_or_with_another_number_is_damaged(tmp_path):
    run = start(tmp_path / "run")
    content = logged(run, 1.5)
    for changed in (b'{"step": 0, "loss": 1.5}\n', content.replace(b"1.5", b"1.6"), b"[1]\n", b"\xff\n"):
        (run.folder / "metrics.jsonl").write_bytes(changed)
        with pytest.raises(InputError, match=r"line 1 of .*metrics\.jsonl is damaged"):
            run.metrics()


def test_a_log_that_resumes_after_an_incomplete_line_has_equal_bytes(tmp_path):
    run = start(tmp_path / "run")
    content = logged(run, 1 / 3, float("nan"), 2e-9)
    for length in range(content.rindex(b"\n", 0, -1) + 1, len(content)):
        (run.folder / "metrics.jsonl").write_bytes(content[:length])
        with loggers.open_logs(run, 2) as log:
            log(2, {"loss": 2e-9})
        assert (run.folder / "metrics.jsonl").read_bytes() == content


def test_a_finished_run_names_metrics_that_it_did_not_write(tmp_path, monkeypatch):
    run = start(tmp_path / "run")
    content = logged(run, 1.5, 0.25)
    monkeypatch.setattr(models, "save", lambda _, folder, half, run: write_document(folder / "dcdctl.json", run))
    runs.finish(run, nn.Linear(1, 1))
    assert [line["loss"] for line in run.metrics()] == [1.5, 0.25]
    (run.folder / "metrics.jsonl").write_bytes(content[: content.index(b"\n") + 1])  # every line of it is intact
    with pytest.raises(InputError, match=r"metrics\.jsonl is damaged: it has \d+ bytes, not \d+; restore it, or"):
        run.metrics()


def test_a_log_that_lost_its_last_lines_is_named_and_one_that_was_deleted_is_not(tmp_path):
    run, steps = start(tmp_path / "run"), [0, 10, 20]
    with loggers.open_logs(run, 0) as log:
        for step in steps:
            log(step, {"loss": 1.0})
    loop._check_log(run, steps)
    content = (run.folder / "metrics.jsonl").read_bytes()
    for kept, lost in ((2, 20), (1, 10), (0, 0)):
        (run.folder / "metrics.jsonl").write_bytes(b"".join(content.splitlines(keepends=True)[:kept]))
        with pytest.raises(
            InputError, match=rf"metrics\.jsonl has lost the line of step {lost}; restore it, or delete"
        ):
            loop._check_log(run, steps)
    (run.folder / "metrics.jsonl").unlink()
    loop._check_log(run, steps)
    with loggers.open_logs(run, 30) as log:
        log(30, {"loss": 1.0})
    loop._check_log(run, [*steps, 30])


def test_a_log_drops_what_comes_after_the_step_it_goes_on_from(tmp_path):
    run = start(tmp_path / "run")
    with loggers.open_logs(run, 0) as log:
        for step in range(0, 50, 10):
            log(step, {"loss": step / 7})
    with (run.folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 50, "lo')
    assert [line["step"] for line in run.metrics()] == [0, 10, 20, 30, 40]
    with loggers.open_logs(run, 25) as log:
        log(30, {"loss": 1.0})
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
        checkpoints.save_checkpoint(run, count, model, optimizer, scaler)
    assert run.checkpoint_steps() == [2, 3]
    fresh = Tied()
    fresh_optimizer, fresh_scaler = optimizer_of(fresh), torch.amp.GradScaler("cpu")
    assert checkpoints.load_checkpoint(run, fresh, fresh_optimizer, fresh_scaler) == 3
    assert fresh_scaler.get_scale() == 512.0
    assert fresh.first.weight is fresh.second.weight
    step(model, optimizer)
    step(fresh, fresh_optimizer)
    assert all(
        torch.equal(trained, loaded) for trained, loaded in zip(model.parameters(), fresh.parameters(), strict=True)
    )


def test_a_checkpoint_of_a_gpu_loads_on_a_machine_without_one(tmp_path, monkeypatch):
    run, model = start(tmp_path / "run"), Tied()
    optimizer = optimizer_of(model)
    step(model, optimizer)
    # torch writes the device of each tensor into the file, and by default loads it to the device of that name.
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:1")
    checkpoints.save_checkpoint(run, 1, model, optimizer, UNSCALED)
    fresh = Tied()
    fresh_optimizer = optimizer_of(fresh)
    assert checkpoints.load_checkpoint(run, fresh, fresh_optimizer, UNSCALED) == 1
    moments = [[state["exp_avg"] for state in each.state.values()] for each in (optimizer, fresh_optimizer)]
    assert moments[0]
    assert all(torch.equal(*pair) for pair in zip(*moments, strict=True))


def test_no_checkpoint_is_step_0_and_one_of_another_model_is_refused(tmp_path):
    run, model = start(tmp_path / "run"), Tied()
    assert checkpoints.load_checkpoint(run, model, optimizer_of(model), UNSCALED) == 0
    checkpoints.save_checkpoint(run, 4, model, optimizer_of(model), UNSCALED)
    loaded = nn.Linear(3, 3)
    with pytest.raises(StaleError, match=r"step-4 is of another model: it differs in bias"):
        checkpoints.load_checkpoint(run, loaded, optimizer_of(loaded), UNSCALED)


@pytest.fixture
def trained(tmp_path):
    """A run with checkpoints after 2 and 3 steps and best weights, and a function that resumes it with another
    model."""
    run, model = start(tmp_path / "run"), Tied()
    optimizer, scaler = optimizer_of(model), torch.amp.GradScaler("cpu", init_scale=512.0)
    checkpoints.save_best(run, 1, 1 / 3, model)
    for count in (1, 2, 3):
        step(model, optimizer)
        checkpoints.save_checkpoint(run, count, model, optimizer, scaler)

    def resume(into: runs.Run = run) -> int:
        fresh = Tied()
        return checkpoints.load_checkpoint(into, fresh, optimizer_of(fresh), torch.amp.GradScaler("cpu"))

    return run, resume


@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.pt", "scaler.json", "checkpoint.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "zero", "unlink"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_resumes(trained, name, damage):
    run, resume = trained
    folder = run.folder / "checkpoints" / "step-3"
    content = (folder / name).read_bytes()
    middle = len(content) // 2
    changed = {
        "flip": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
        "cut": content[:-9],  # the last byte of JSON is a line end, which nothing depends on
        "zero": bytes(len(content)),
    }
    (folder / name).unlink()
    if damage in changed:
        (folder / name).write_bytes(changed[damage])
    with pytest.raises(StaleError, match=rf"step-3.*{name}") as caught:
        resume()
    if (name, damage) != ("checkpoint.json", "unlink"):
        assert caught.value.hint == f"delete {folder} to resume from step 2"
    shutil.rmtree(folder)
    assert resume() == 2
    (run.folder / "checkpoints" / "step-2" / "optimizer.pt").write_bytes(b"")
    with pytest.raises(
        StaleError, match=r"step-2/optimizer\.pt is damaged: .*; delete .*step-2 to resume from the first step"
    ):
        resume()


def test_a_checkpoint_of_another_step_or_run_is_noticed(trained, tmp_path):
    run, resume = trained
    two, three = (run.folder / "checkpoints" / f"step-{count}" for count in (2, 3))
    other = start(tmp_path / "other", Recipe(seed=4))
    shutil.copytree(run.folder / "checkpoints", other.folder / "checkpoints")
    with pytest.raises(StaleError, match=r"other/checkpoints/best holds a checkpoint of another run"):
        checkpoints.best_value(other)
    with pytest.raises(StaleError, match=r"other/checkpoints/step-3 holds a checkpoint of another run"):
        resume(other)
    shutil.copy(two / "weights.safetensors", three)
    with pytest.raises(StaleError, match=r"step-3/weights\.safetensors is damaged: its SHA-256 is"):
        resume()
    shutil.rmtree(three)
    two.rename(three)
    with pytest.raises(StaleError, match=r"step-3 holds the checkpoint of step 2"):
        resume()


def test_seals_of_a_checkpoint_and_of_the_best_weights_are_not_exchanged(trained):
    run, resume = trained
    paths = [run.folder / "checkpoints" / name / "checkpoint.json" for name in ("best", "step-3")]
    best, newest = (path.read_text() for path in paths)
    paths[0].write_text(newest)
    with pytest.raises(
        StaleError, match=r"best/checkpoint\.json belongs to another folder of checkpoints: it has no value"
    ):
        checkpoints.best_value(run)
    paths[1].write_text(best)
    with pytest.raises(
        StaleError, match=r"step-3/checkpoint\.json belongs to another folder of checkpoints: it has no best"
    ):
        resume()
    assert len(verify(run.folder).problems) > 2


def test_weights_of_a_checkpoint_that_are_not_finite_are_named(tmp_path):
    run, model = start(tmp_path / "run"), Tied()
    with torch.no_grad():
        model.second.bias[1] = float("inf")
    checkpoints.save_checkpoint(run, 4, model, optimizer_of(model), UNSCALED)
    with pytest.raises(
        StaleError, match=r"weights\.safetensors: 1 of 3 numbers of the weights second\.bias are not finite; delete"
    ):
        checkpoints.load_checkpoint(run, Tied(), optimizer_of(model), UNSCALED)


def test_the_best_weights_are_those_that_their_seal_names(trained):
    run, resume = trained
    assert checkpoints.best_value(run) == 1 / 3
    best = Tied()
    checkpoints.save_best(run, 3, 0.5, best)
    folder = run.folder / "checkpoints" / "best"
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint.json", "weights-3.safetensors"]
    loaded = Tied()
    checkpoints.load_best(run, loaded)
    assert torch.equal(loaded.first.bias, best.first.bias)
    seal = (folder / "checkpoint.json").read_text()
    for name, content, message in (
        (
            "weights-3.safetensors",
            (folder / "weights-3.safetensors").read_bytes()[:-1],
            r"weights-3\.safetensors is damaged: it has",
        ),
        ("checkpoint.json", seal.replace("0.5", "0.6").encode(), r"best/checkpoint\.json is damaged: its content"),
    ):
        (folder / name).write_bytes(content)
        with pytest.raises(StaleError, match=message):
            checkpoints.load_best(run, Tied())
    (folder / "checkpoint.json").unlink()
    with pytest.raises(
        StaleError, match=r"best/checkpoint\.json is missing or old: at step 3 the best validation was 0\.333"
    ):
        resume()


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
    checkpoints.save_checkpoint(run, 1, model, optimizer_of(model), UNSCALED)
    assert set(load_file(run.folder / "checkpoints" / "step-1" / "weights.safetensors")) == {
        "first.weight",
        "first.bias",
        "second.bias",
    }
    assert json.loads((run.folder / "run.json").read_text())["what"] == "distill"


def test_a_saved_command_has_no_query_and_no_password_of_a_url(tmp_path, monkeypatch):
    words = [
        "distill",
        "--data",
        "https://me:pass@host/a.tar?signature=x",
        "--data=s3://host/b.tar?key=y",
        "--set",
        "loss.terms={ kl = 1.0 }",
    ]
    monkeypatch.setattr("sys.argv", ["/bin/dcdctl", *words])
    run = runs.start_run(tmp_path / "run", Recipe(), "distill", {}, resume=False)
    saved = ["distill", "--data", "https://host/a.tar", "--data=s3://host/b.tar", "--set", "loss.terms={ kl = 1.0 }"]
    assert run.facts()["command"] == ["dcdctl", *saved]
