"""A folder in the place of another: of another kind, the message says what it is, what is expected, and where it
belongs; the model or the log of another run is named."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from command_line import error_of, run
from made_runs import scores_of, write_bench, write_evaluation, write_run
from tiny import make_wide_dual

from dcdctl.core import models
from dcdctl.core.artifacts import kind_of_folder
from dcdctl.core.data import Corpus
from dcdctl.core.errors import InputError
from dcdctl.core.training import Run, loggers, runs

FOLDERS = {
    "a corpus": "corpus.json",
    "an index": "index.json",
    "a teacher cache": "cache.json",
    "stored features": "features.json",
    "a run": "run.json",
    "an evaluation": "result.json",
}
COMMANDS = {
    "eval scenes-vilt --data X": "a corpus",
    "cache-teacher --recipe demo-dual --teacher scenes-vilt --data X --out out": "a corpus",
    "distill demo-dual --data X --cache ABSENT --out out": "a corpus",
    "finetune-teacher vilt-flickr30k-teacher --data X --out out": "a corpus",
    "search X 'a dog'": "an index",
    "serve X": "an index",
    "sync X": "an index",
    "inspect X": "a corpus, a teacher cache or an index",
    "convert X --out out": "a model",
    "export X --out out --to transformers": "a model",
    "compare X ABSENT": "an evaluation",
    "report X": "a run or an evaluation",
    "index scenes-vilt --images X --out out": "a folder of images or a corpus",
}
"""Commands that read a folder X, and what they expect there."""
HINTS = {
    "a run": "give it as RUN",
    "a corpus": "give it to --data",
    "a teacher cache": "give it to --cache",
    "an index": "give it to `dcdctl search`",
}
ACCEPTED = {
    ("convert X --out out", "a run"),  # a run without a model is another error
    ("export X --out out --to transformers", "a run"),
    ("compare X ABSENT", "a run"),
    ("sync X", "a run"),  # the error names `dcdctl index RUN`, which makes an index
}
SWAPPED = [
    (line, kind)
    for line, expected in COMMANDS.items()
    for kind in FOLDERS
    if kind not in expected and (line, kind) not in ACCEPTED
]


@pytest.mark.parametrize(("line", "kind"), SWAPPED)
def test_a_folder_of_another_kind_is_named_with_its_place(line, kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = Path("X")
    folder.mkdir()
    (folder / FOLDERS[kind]).write_text("{}")
    error = error_of(line)
    assert f"X is {kind}, {COMMANDS[line]} is expected; {HINTS.get(kind, 'give')}" in error
    assert error.count("\n") == 1


def test_an_index_that_holds_a_model_and_a_run_that_holds_an_evaluation_are_known(tmp_path):
    for name in ("index.json", "model/config.json"):
        (tmp_path / "index" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "index" / name).touch()
    (tmp_path / "run").mkdir()
    for name in ("run.json", "result.json"):
        (tmp_path / "run" / name).touch()
    assert [kind_of_folder(tmp_path / name) for name in ("index", "index/model", "run", "absent")] == [
        "an index",
        "a saved model",
        "a run",
        "",
    ]


COMMANDS_OF_A_RUN = (
    "eval X --data CORPUS",
    "export X --out out --to transformers",
    "index X --images CORPUS --out out",
    "bench X --teacher scenes-vilt --data CORPUS",
    "convert X/model --out out",
    "report X",
    "compare X Y",
    "distill demo-dual-alone --data CORPUS --out X --resume",
)
"""Commands that read a finished run X."""


@pytest.fixture(scope="module")
def made(scenes_corpus_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two finished runs X and Y of one recipe, with evaluations and benchmarks. Not to be written to."""
    folder, corpus = tmp_path_factory.mktemp("runs"), Corpus.open(scenes_corpus_dir, "test")
    (folder / "CORPUS").symlink_to(scenes_corpus_dir)
    for seed, name in enumerate("XY"):
        write_run(folder / name, "demo-dual-alone", seed=seed)
        torch.manual_seed(seed)
        runs.finish(Run(folder / name), make_wide_dual(corpus.captions))
        write_evaluation(folder / name, corpus, scores_of(corpus, 2, seed))
        write_bench(folder / name, "scenes-vilt")
    return folder


@pytest.fixture
def run_x(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The run X, beside Y, for one test alone; the two are in the working folder."""
    shutil.copytree(made, tmp_path / "runs", symlinks=True)
    monkeypatch.chdir(tmp_path / "runs")
    return Path("X")


def replace(path: Path, other: Path) -> None:
    shutil.rmtree(path)
    shutil.copytree(other, path)


def test_two_runs_are_read_and_a_copy_of_a_model_is_used_elsewhere(run_x):
    run("compare X Y")
    run("report X")
    assert "problem" not in run("verify .").stdout
    shutil.copytree("X/model", "elsewhere/model")
    models.check_ref("elsewhere")
    models.check_ref("X")


@pytest.mark.parametrize("line", COMMANDS_OF_A_RUN)
def test_a_run_with_the_model_of_another_run_is_named_before_any_work(run_x, line):
    replace(run_x / "model", Path("Y/model"))
    assert "X/model does not belong to the run of run.json beside it; restore" in error_of(line)
    assert not Path("out").exists()
    (run_x / "model" / "dcdctl.json").unlink()
    assert "X/model/dcdctl.json cannot be read: No such file or directory; restore" in error_of(line)


def test_verify_names_the_model_of_another_run_and_a_model_without_its_document(run_x):
    replace(run_x / "model", Path("Y/model"))
    assert "problem: X/model does not belong to the run of run.json beside it\n" in run("verify X", code=1).stdout
    (run_x / "model" / "dcdctl.json").unlink()
    assert "problem: X/model/dcdctl.json cannot be read: No such file" in run("verify X", code=1).stdout


@pytest.mark.parametrize("name", ["result.json", "bench.json"])
def test_results_of_a_model_that_was_trained_again_are_named(run_x, name):
    network = models.load_dual(run_x)
    network.network.logit_scale.data.add_(1)
    runs.finish(Run(run_x), network)  # the same run.json, and another model
    problem = f"X/{name} does not belong to the model in the folder model beside it"
    assert problem in run("verify X", code=1).stdout
    if name == "result.json":
        assert f"{problem}; `dcdctl eval X --data DIR` writes it again" in error_of("report X")


def test_the_metrics_of_another_run_are_named(run_x):
    for name in ("metrics.jsonl", "metrics.json"):
        shutil.copy(f"Y/{name}", run_x / name)
    assert "X/metrics.json does not belong to the run of run.json beside it" in error_of("report X")
    problems = run("verify X", code=1).stdout
    assert "problem: X/metrics.json does not belong to the run of run.json beside it\n" in problems
    shutil.rmtree(run_x / "model")  # an unfinished run, which has no seal of its metrics
    named = r"line 1 of X/metrics\.jsonl is damaged, or of another run: .*; restore it, or"
    with pytest.raises(InputError, match=named), loggers.open_logs(Run(run_x), 5):
        pass
