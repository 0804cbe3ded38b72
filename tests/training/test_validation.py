"""Measuring a model between the steps of its training, and which weights are left."""

from __future__ import annotations

import re
from typing import Any

import pytest
from made_caches import build_cache
from open_inputs import OpenInputs
from tiny import contents, make_corpus, make_splits
from training_steps import distill

from dcdctl.core import models
from dcdctl.core.data import Corpus
from dcdctl.core.errors import ConfigError, CorpusError
from dcdctl.core.evaluation import Measured, evaluate
from dcdctl.core.teacher import CandidateConfig
from dcdctl.core.training import InputRefs, TrainingOptions, checkpoints, initial_model, runs
from dcdctl.core.training.objective import PairObjective

DUAL = [
    *(
        "model.kind=dual",
        "model.start=new",
        "model.layers=[]",
        "model.hidden_size=32",
        "model.num_layers=2",
        "model.num_text_layers=1",
    ),
    *("model.projection_dim=16", "model.vocab_size=200", "batch.size=8", "loss.terms={ infonce = 1.0 }"),
    *("optimizer.steps=12", "optimizer.lr=1e-3", "optimizer.warmup_share=0.0"),
]


def train(corpus: Corpus, folder, *sets: str) -> runs.Run:
    options = TrainingOptions()
    return distill(corpus, folder, *DUAL, *sets, resume=True, options=options)


def rsum(run: runs.Run, corpus: Corpus) -> float:
    return evaluate.evaluate_model(models.load(run.folder), corpus).rsum


@pytest.fixture(scope="module")
def val(scenes_corpus_dir) -> Corpus:
    return Corpus.open(scenes_corpus_dir, "val")


@pytest.fixture(scope="module")
def measured(corpus, tmp_path_factory) -> runs.Run:
    """A run measured after 4, 8 and 12 steps."""
    return train(corpus, tmp_path_factory.mktemp("measured") / "run", "validation.every=4", "optimizer.save_every=5")


def test_a_model_is_measured_every_so_often_and_at_the_end(measured, val):
    lines = [line for line in measured.metrics() if "val_rsum" in line]
    assert [line["step"] for line in lines] == [3, 7, 11]
    for line in lines:
        assert line["loss"] > 0
        assert line["val_rsum"] == pytest.approx(
            sum(line[f"val_{direction}_r{k}"] for direction in ("text", "image") for k in (1, 5, 10))
        )
    sums = [line["val_rsum"] for line in lines]
    assert [line["val_best_rsum"] for line in lines] == [max(sums[: k + 1]) for k in range(3)]


def test_the_weights_that_did_best_become_the_model(measured, val):
    lines = [line for line in measured.metrics() if "val_rsum" in line]
    best = max(lines, key=lambda line: line["val_rsum"])
    assert rsum(measured, val) == best["val_rsum"]
    seal = checkpoints.read_best_seal(measured)
    assert (seal["step"], seal["value"]) == (best["step"] + 1, best["val_rsum"])
    assert list(seal["files"]) == [f"weights-{best['step'] + 1}.safetensors"]


def test_the_last_weights_become_the_model_where_the_recipe_says_so(corpus, val, measured, tmp_path):
    run = train(corpus, tmp_path / "run", "validation.every=5", "validation.keep=last", "optimizer.lr=0.05")
    assert [line["step"] for line in run.metrics() if "val_rsum" in line] == [4, 9, 11]
    assert rsum(run, val) == run.metrics()[-1]["val_rsum"]


def test_measuring_changes_no_loss_and_a_run_without_has_no_best(corpus, measured, tmp_path):
    run = train(corpus, tmp_path / "run")
    losses = {line["step"]: line["loss"] for line in run.metrics()}
    assert losses.items() <= {line["step"]: line["loss"] for line in measured.metrics()}.items()
    assert checkpoints.best_value(run) == -101
    assert not any("best" in name for name in contents(run.folder))


def test_dropout_goes_on_after_a_validation(corpus, teacher, tmp_path, monkeypatch):
    """It computes without dropout; a step that did too would train another model without a word."""
    modes: list[bool] = []

    def loss(objective: PairObjective, model: Any, *outputs: Any, real: Any = PairObjective.loss) -> Any:
        modes.append(all(module.training for module in model.modules()))
        return real(objective, model, *outputs)

    monkeypatch.setattr(PairObjective, "loss", loss)
    sets = [*DUAL, "model.dropout=0.1", "optimizer.steps=3", "validation.max_images=3", "validation.every=1"]
    cache = build_cache(corpus, teacher, tmp_path / "cache", CandidateConfig(per_query=2))
    distill(OpenInputs(corpus, [cache], teacher), tmp_path / "run", *sets)
    assert modes == [True] * 3


def test_only_a_higher_sum_is_better(corpus, val, tmp_path, monkeypatch):
    """Equal sums leave the weights that came first."""
    monkeypatch.setattr(Measured, "rsum", 100.0)
    run = train(corpus, tmp_path / "run", "validation.every=4")
    assert checkpoints.read_best_seal(run)["step"] == 4


def test_some_images_of_another_split_are_measured(corpus, scenes_corpus_dir, tmp_path):
    run = train(corpus, tmp_path / "run", "validation.every=12", "validation.split=test", "validation.max_images=3")
    assert run.metrics()[-1]["val_rsum"] == rsum(run, Corpus.open(scenes_corpus_dir, "test", 3))
    assert run.facts()["inputs"]["validation"] == Corpus.open(scenes_corpus_dir, "test", 3).fingerprint


def test_a_split_that_is_not_there_is_an_error_before_anything_is_written(corpus, tmp_path):
    with pytest.raises(CorpusError, match="has no split 'restval'; it has train, val, test"):
        train(corpus, tmp_path / "run", "validation.every=4", "validation.split=restval")
    assert not (tmp_path / "run").exists()


def test_a_split_of_few_images_adapts_batch_and_validation_and_says_so_before_the_model(corpus, tmp_path, monkeypatch):
    said: list[str] = []
    few, makes = make_corpus(tmp_path / "few", [[f"scene {number}"] for number in range(6)]), initial_model.make_model
    monkeypatch.setattr(initial_model, "make_model", lambda *args: said.append("model") or makes(*args))
    sets = [*DUAL, "batch.size=8", "validation.every=4", "validation.at_start=true"]
    run = distill(few, tmp_path / "run", *sets, say=said.append)
    adapted = "adapted to the data, which have no more: validation.every 0, batch.size 6; optimizer.lr is left at 0.001"
    assert said[:2] == [adapted, "model"]
    assert (run.facts()["adapted"], run.facts()["recipe"]["batch"]["size"]) == (
        {"validation.every": 0, "batch.size": 6},
        8,
    )
    own = distill(few, tmp_path / "own", *sets[:-3], "batch.size=6")
    assert [line["loss"] for line in own.metrics()] == [line["loss"] for line in run.metrics()]
    assert "adapted" not in own.facts()
    assert distill(few, tmp_path / "run", *sets, resume=True).is_finished


@pytest.mark.parametrize(("trained", "measured"), [("train+val", "val"), ("val+train", "test+val"), ("train", "train")])
def test_a_split_that_is_trained_on_does_not_choose_the_weights(scenes_corpus_dir, tmp_path, trained, measured):
    joined = Corpus.open(scenes_corpus_dir, trained)
    message = (
        rf"validation\.split is {re.escape(measured)}, and the training reads --split {re.escape(trained)}; "
        r"set validation\.split"
    )
    with pytest.raises(ConfigError, match=message):
        train(joined, tmp_path / "run", "validation.every=12", f"validation.split={measured}")
    assert not (tmp_path / "run").exists()


def test_a_training_on_joined_splits_is_measured_on_another_one(scenes_corpus_dir, tmp_path):
    joined = Corpus.open(scenes_corpus_dir, "train+val")
    run = train(joined, tmp_path / "run", "validation.every=12", "validation.split=test")
    inputs = run.facts()["inputs"]
    assert (inputs["split"], inputs["corpus"]) == ("train+val", joined.fingerprint)
    assert run.metrics()[-1]["val_rsum"] > 0


@pytest.mark.parametrize(
    ("splits", "trained", "flags"),
    [
        (("train", "val", "test"), "train", ""),
        (("train", "val"), "train", " --split val"),
        (("train", "val"), "train+val", " --split train"),
        (("test", "train"), "test", " --split train"),
        (("train",), "train", " --split train"),
    ],
)
def test_the_next_step_names_a_split_that_the_corpus_has(tmp_path, splits, trained, flags):
    make_splits(tmp_path / "corpus", {split: [["a"], ["b"]] for split in splits})
    refs = InputRefs(data=tmp_path / "corpus", split=trained)
    assert refs.evaluation_of("RUN", cache="CACHE") == f"dcdctl eval RUN --data {tmp_path / 'corpus'}{flags}"
    assert InputRefs(data=["a-{0..3}.tar"]).evaluation_of("RUN", cache="CACHE") == "dcdctl eval RUN --data CORPUS"


def test_the_next_step_after_a_stream_names_the_corpus_of_the_validation(tmp_path):
    make_splits(tmp_path / "corpus", {"val": [["a"]]})
    refs = InputRefs(data=["a-{0..3}.tar"], validation_data=[tmp_path / "corpus"])
    assert refs.evaluation_of("RUN", cache="CACHE") == f"dcdctl eval RUN --data {tmp_path / 'corpus'} --split val"
