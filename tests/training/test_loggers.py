"""Weights & Biases, told by a module that stands in for the package: it is not a dependency, and a test must not call a
server."""

from __future__ import annotations

import shutil
import sys
import types
from typing import Any

import pytest
from training_steps import TINY_DUAL, distill

from dcdctl.core import artifacts
from dcdctl.core.errors import InputError
from dcdctl.core.training import TrainingOptions, runs

SETS = [
    *TINY_DUAL,
    *("optimizer.steps=12", "validation.every=6", "optimizer.save_every=6"),
]


class Told:
    """What the server would know of a run."""

    id = "r4nd0m"

    def __init__(self) -> None:
        self.lines: list[dict[str, float]] = []
        self.axis: tuple[str, str] | None = None
        self.is_finished = False

    def define_metric(self, name: str, *, step_metric: str) -> None:
        self.axis = (name, step_metric)

    def log(self, values: dict[str, float]) -> None:
        self.lines.append(values)

    def finish(self) -> None:
        self.is_finished = True


@pytest.fixture
def server(monkeypatch) -> list[tuple[dict[str, Any], Told]]:
    """The runs that were begun, and how."""
    begun: list[tuple[dict[str, Any], Told]] = []

    def init(**options: Any) -> Told:
        begun.append((options, Told()))
        return begun[-1][1]

    module = types.ModuleType("wandb")
    module.init = init  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)
    return begun


def test_it_is_told_what_the_run_folder_holds_and_a_run_that_goes_on_is_the_same(server, corpus, tmp_path):
    def go() -> runs.Run:
        options = TrainingOptions(wandb="search")
        return distill(corpus, tmp_path / "run", *SETS, resume=True, options=options)

    run = go()
    ((options, wandb_run),) = server
    assert (options["project"], options["name"], options["id"], options["resume"]) == ("search", "run", None, "allow")
    assert options["config"] == run.facts()["recipe"]
    assert wandb_run.lines == run.metrics()
    assert [line["step"] for line in wandb_run.lines] == [0, 5, 10, 11]
    assert "val_rsum" in wandb_run.lines[1]
    assert wandb_run.axis == ("*", "step")
    assert wandb_run.is_finished
    path = run.folder / "wandb.json"
    assert artifacts.read_document(path) == {"project": "search", "id": "r4nd0m"}
    run.model_folder.rename(tmp_path / "model")
    go()
    options, wandb_run = server[1]
    assert options["id"] == "r4nd0m"
    assert [line["step"] for line in wandb_run.lines] == [10, 11]
    shutil.rmtree(run.model_folder)
    path.write_text(path.read_text().replace("r4nd0m", "r5nd0m"))
    with pytest.raises(
        InputError, match=r"wandb\.json is damaged: .*; delete it to start another run at Weights & Biases"
    ):
        go()
