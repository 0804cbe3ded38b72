"""A training that is validated by the agreement of its student with its teacher, which needs no labels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from open_inputs import OpenInputs
from tiny import make_corpus, make_splits, make_wide_dual, model_contents, write_pool
from training_steps import TINY_DUAL, KilledError, distill, killed_after

from dcdctl.core import evaluation, models
from dcdctl.core.artifacts import write_document
from dcdctl.core.data import Corpus
from dcdctl.core.errors import ConfigError, StaleError
from dcdctl.core.evaluation import EvalJob, run_evaluation
from dcdctl.core.teacher import CacheJob, CandidateConfig, cache_scores
from dcdctl.core.training import (
    InputRefs,
    Run,
    checkpoints,
    run_document,
    validation_document,
    validation_table,
)

CAPTIONS = [[f"a {color} {thing} {place}" for place in ("here", "there")] for color in ["red", "blue", "tan"]
            for thing in ["car", "dog", "hat", "bus"]]  # fmt: skip
BY_AGREEMENT = [
    *(*TINY_DUAL[:-1], "loss.terms={ kl = 1.0 }", "optimizer.steps=6", "optimizer.save_every=2", "optimizer.lr=3e-3"),
    *("optimizer.warmup_share=0.0", "validation.metric=agreement", "validation.every=2", "validation.at_start=true"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A pool with the splits train and val."""
    folder = tmp_path_factory.mktemp("pool") / "pool"
    folder.mkdir()
    rng = np.random.default_rng(1)
    parts = {"train": CAPTIONS, "val": CAPTIONS[3:10]}
    splits = {split: write_pool(folder, split, texts, rng, has_colors=True) for split, texts in parts.items()}
    write_document(folder / "corpus.json", {"format": 2, "name": "pool", "splits": splits})
    return folder


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("teacher") / "teacher"
    models.save(make_wide_dual([text for texts in CAPTIONS for text in texts]), folder)
    return folder


@pytest.fixture(scope="module")
def train(folder, teacher) -> Callable[..., Run]:
    def train(out: Path, *sets: str, **more: Any) -> Run:
        return distill(InputRefs(data=folder, teachers=[str(teacher)]), out, *BY_AGREEMENT, *sets, **more)

    return train


@pytest.fixture(scope="module")
def measured(train, tmp_path_factory) -> Run:
    return train(tmp_path_factory.mktemp("measured") / "run")


@pytest.fixture(scope="module")
def caches(folder, teacher, tmp_path_factory) -> dict[str, Path]:
    """A cache of each split of the pool, by one teacher."""
    out = tmp_path_factory.mktemp("caches")
    return {split: cache(folder, split, teacher, out / split) for split in ("train", "val")}


def cache(folder: Path, split: str, teacher: Path, out: Path) -> Path:
    candidates = CandidateConfig(per_query=5)
    cache_scores(CacheJob(data=folder, split=split, out=out, candidates=candidates, teacher=str(teacher)))
    return out


def agreement(model: Path, folder: Path, against: Path) -> float:
    return run_evaluation(EvalJob(model=str(model), data=folder, split="val", against=str(against))).agreement.ndcg


def logged(run: Run, name: str) -> list[float]:
    return [line[name] for line in run.metrics() if name in line]


def test_the_agreement_with_the_dual_teacher_chooses_the_weights(measured, folder, teacher):
    values = logged(measured, "val_ndcg")
    assert logged(measured, "val_best_ndcg") == [
        max(logged(measured, "start_ndcg") + values[: k + 1]) for k in range(len(values))
    ]
    best = max(logged(measured, "start_ndcg") + values)
    # What `eval --against` finds on the same split.
    assert agreement(measured.folder, folder, teacher) == pytest.approx(best, abs=1e-9)
    seal = checkpoints.read_best_seal(measured)
    document = run_document(measured)
    assert document["best"] == {"step": seal["step"], "epoch": document["best"]["epoch"], "ndcg": best}
    assert seal["value"] == best
    assert document["validation"]["corpora"] == [
        {"corpus": "pool", "start": logged(measured, "start_ndcg")[0], "saved": best}
    ]
    assert validation_table(document["validation"]).title == "Validation, nDCG@10"
    assert not any("rsum" in key for line in measured.metrics() for key in line)


@pytest.mark.parametrize(("values", "step"), [([40, 70, 60], 4), ([40, 40, 30], 2), ([10, 20, 30], 6)])
def test_the_first_of_the_highest_values_is_kept(train, tmp_path, monkeypatch, values, step):
    """After 2, 4 and 6 steps."""
    queue = iter(values)
    monkeypatch.setattr(evaluation, "agreement_of", lambda *_: SimpleNamespace(ndcg=float(next(queue))))
    run = train(tmp_path / "run", "validation.at_start=false")
    assert logged(run, "val_ndcg") == values
    assert logged(run, "val_best_ndcg") == [max(values[: k + 1]) for k in range(3)]
    assert checkpoints.read_best_seal(run)["step"] == run_document(run)["best"]["step"] == step


def test_a_killed_run_resumes_to_the_same_end(train, measured, tmp_path):
    with pytest.raises(KilledError):
        train(tmp_path / "run", watch=killed_after(3))
    run = train(tmp_path / "run", resume=True)
    assert model_contents(run.model_folder) == model_contents(measured.model_folder)
    assert validation_document(run) == validation_document(measured)
    for name in ("loss", "val_ndcg", "val_best_ndcg"):
        assert logged(run, name) == logged(measured, name)


def test_a_cache_of_the_validation_split_gives_the_scores_of_any_other_teacher(folder, caches, tmp_path):
    refs = InputRefs(data=folder, caches=list(caches.values()))
    run = distill(refs, tmp_path / "run", *BY_AGREEMENT)
    assert agreement(run.folder, folder, caches["val"]) == pytest.approx(
        max(logged(run, "start_ndcg") + logged(run, "val_ndcg")), abs=1e-9
    )
    inputs = run.facts()["inputs"]
    assert inputs["validation_teachers"]["pool"]["corpus"] == Corpus.open(folder, "val").fingerprint
    assert inputs["cache"]["corpus"] == Corpus.open(folder, "train").fingerprint
    # A cache of the validation split is no cache of the training: its loss is that of a training without it.
    alone = distill(InputRefs(data=folder, caches=[caches["train"]]), tmp_path / "alone", *BY_AGREEMENT[:-3])
    assert logged(alone, "loss") == [line["loss"] for line in run.metrics() if line["step"] in (0, 5)]


def test_a_training_without_a_teacher_is_validated_by_a_cache(folder, caches, tmp_path):
    captioned = make_corpus(tmp_path / "captioned", CAPTIONS, has_colors=True)
    refs = InputRefs(data=captioned.folder, caches=[caches["val"]], validation_data=[folder])
    sets = [*BY_AGREEMENT, "loss.terms={ infonce = 1.0 }"]
    run = distill(refs, tmp_path / "run", *sets)
    assert agreement(run.folder, folder, caches["val"]) == checkpoints.read_best_seal(run)["value"]
    # Another teacher is another run.
    models.save(make_wide_dual(["a dog"]), tmp_path / "teacher")
    other = cache(folder, "val", tmp_path / "teacher", tmp_path / "other")
    refs = InputRefs(data=captioned.folder, caches=[other], validation_data=[folder])
    with pytest.raises(StaleError, match=r"inputs\.validation_teachers\.pool"):
        distill(refs, tmp_path / "run", *sets, resume=True)


def test_further_corpora_are_measured_by_agreement_too(folder, teacher, tmp_path):
    captioned = make_splits(tmp_path / "captioned", {"val": CAPTIONS}, has_colors=True)
    refs = InputRefs(data=folder, teachers=[str(teacher)], validation_data=[folder, captioned.folder])
    run = distill(refs, tmp_path / "run", *BY_AGREEMENT)
    second = validation_document(run)["corpora"][1]
    assert second["saved"] == pytest.approx(agreement(run.folder, captioned.folder, teacher), abs=1e-9)
    assert second["corpus"] == "made"


def test_what_an_agreement_needs_is_named(folder, caches, teacher, tmp_path):
    def refused(refs: InputRefs | OpenInputs, *sets: str) -> str:
        with pytest.raises((ConfigError, StaleError)) as caught:
            distill(refs, tmp_path / "run", *BY_AGREEMENT, *sets)
        assert not (tmp_path / "run").exists()
        return str(caught.value)

    assert "no teacher has scores of " in refused(InputRefs(data=folder, caches=[caches["train"]]))
    message = refused(InputRefs(data=folder, caches=[caches["train"]]))
    assert f"(val); make a cache with `dcdctl cache-teacher --data {folder} --split val`" in message
    assert "no loss of the recipe has scores for it" in refused(InputRefs(data=folder, caches=[caches["val"]]))
    captioned = make_corpus(tmp_path / "captioned", CAPTIONS, has_colors=True)
    only_val = InputRefs(data=captioned.folder, caches=[caches["val"]], validation_data=[folder])
    assert "no cache is of the training's split; name one with --cache" in refused(only_val)
    dual = InputRefs(data=folder, teachers=[str(teacher)])
    assert "is a pool, and recalls need captions; set validation.metric to agreement" in refused(
        dual, "validation.metric=rsum"
    )
    # Without agreement, a cache of the validation split is a cache of another corpus.
    both = InputRefs(data=captioned.folder, caches=[caches["val"]], validation_data=[])
    assert "was made with another corpus" in refused(
        both, "validation.metric=rsum", "validation.every=0", "validation.at_start=false"
    )
