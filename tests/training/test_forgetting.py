"""What a training loses on other corpora than its own: measured, bounded, and returned by an average with the start."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from duals import save_dual
from safetensors.torch import load_file
from tiny import contents, make_corpus, make_pool, make_splits, model_contents
from training_steps import TINY_DUAL, KilledError, distill, killed_after

from dcdctl.core import models
from dcdctl.core.data import Corpus
from dcdctl.core.errors import ConfigError, InputError, StaleError
from dcdctl.core.evaluation import evaluate
from dcdctl.core.integrity import verify
from dcdctl.core.training import InputRefs, Run, checkpoints, validation, validation_document, validation_table
from dcdctl.core.training.runs import BEST

STEPS = [
    *("model.kind=dual", "model.layers=[]", "batch.size=8", "loss.terms={ infonce = 1.0 }", "optimizer.steps=6"),
    *("optimizer.lr=3e-3", "optimizer.warmup_share=0.0", "optimizer.save_every=2"),
]
WORDS = ("bird", "boat", "cat", "door", "egg", "fish", "goat", "hat", "ink", "jar", "kite", "leaf")


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> Path:
    """A corpus that the training does not read."""
    folder = tmp_path_factory.mktemp("other") / "other"
    make_splits(folder, {"val": [[f"a {word}", f"the {word}"] for word in WORDS]}, has_colors=True)
    return folder


@pytest.fixture(scope="module")
def train(corpus, scenes_corpus_dir, other, tmp_path_factory) -> Callable[..., Run]:
    """Trains from a tiny CLIP on scenes, and validates on scenes and on the other corpus."""
    start = tmp_path_factory.mktemp("start") / "start"
    models.save(models.load_dual(save_dual("CLIP", corpus.captions, start)), start)

    def train(
        out: Path,
        *sets: str,
        data: tuple[Path, ...] = (scenes_corpus_dir, other),
        trained: Path = scenes_corpus_dir,
        **more: Any,
    ) -> Run:
        refs = InputRefs(data=trained, validation_data=data)
        return distill(refs, out, *STEPS, f"model.start={start}", *sets, **more)

    return train


@pytest.fixture(scope="module")
def measured(train, tmp_path_factory) -> Run:
    """A run whose bound is never reached, measured after each step on both corpora; it keeps the best on scenes."""
    return train(tmp_path_factory.mktemp("measured") / "run", "validation.every=1", "validation.max_loss_elsewhere=600")


def rsum(model: Any, folder: Path) -> float:
    return evaluate.evaluate_model(model, Corpus.open(folder, "val")).rsum


def losses(run: Run) -> list[float]:
    """How far RSUM on the other corpus is below the start's, after each step."""
    lines = run.metrics()
    return [lines[0]["made/start_rsum"] - line["made/val_rsum"] for line in lines if "made/val_rsum" in line]


def test_a_further_corpus_is_measured_at_the_start_and_as_it_is_saved(train, scenes_corpus_dir, other, tmp_path):
    run = train(tmp_path / "run", "validation.every=2")
    first, *_, last = run.metrics()
    start, saved = models.load(run.facts()["recipe"]["model"]["start"]), models.load(run.folder)
    for name, folder in (("", scenes_corpus_dir), ("made/", other)):
        assert first[f"{name}start_rsum"] == rsum(start, folder)
        assert last[f"{name}saved_rsum"] == rsum(saved, folder)
    # Without a bound, the validations between the two are on the first corpus alone.
    assert not any("made/val_rsum" in line for line in run.metrics())
    document = validation_document(run)
    assert document["corpora"] == [
        {"corpus": "scenes", "start": first["start_rsum"], "saved": last["saved_rsum"]},
        {"corpus": "made", "start": first["made/start_rsum"], "saved": last["made/saved_rsum"]},
    ]
    assert document["share"] == 0.0
    table = validation_table(document)
    assert table.columns == ["corpus", "start", "saved model", "change"]
    before, after = first["made/start_rsum"], last["made/saved_rsum"]
    assert table.rows[1] == ["made", f"{before:.2f}", f"{after:.2f}", f"{after - before:+.2f}"]
    assert run.facts()["inputs"]["validation"] == Corpus.open(scenes_corpus_dir, "val").fingerprint
    assert run.facts()["inputs"]["validation_elsewhere"] == {"made": Corpus.open(other, "val").fingerprint}


def test_further_corpora_change_no_loss_and_no_weights(train, measured, tmp_path):
    alone = train(tmp_path / "run", "validation.every=1", "validation.at_start=true", data=())
    assert [line["loss"] for line in alone.metrics()] == [line["loss"] for line in measured.metrics() if "loss" in line]
    assert model_contents(alone.model_folder) == model_contents(measured.model_folder)
    assert [each["corpus"] for each in validation_document(alone)["corpora"]] == ["scenes"]


def test_without_validations_between_the_steps_start_and_end_are_measured(train, other, tmp_path):
    run = train(tmp_path / "run", data=(other,))
    assert [line["step"] for line in run.metrics() if "val_rsum" in line] == [5]
    (row,) = validation_table(validation_document(run)).rows
    assert row == ["made", "-", f"{rsum(models.load(run.folder), other):.2f}", "-"]


def stop_at(run: Run) -> tuple[int, float]:
    """A step of a run that loses more elsewhere than all before it, and a bound between both."""
    lost = losses(run)
    step = max(range(len(lost)), key=lambda i: lost[i])
    earlier = max([0.0, *lost[:step]])
    assert lost[step] > earlier, "this training loses nothing elsewhere"
    return step, (lost[step] + earlier) / 2


def test_a_training_that_loses_too_much_elsewhere_ends_with_the_best_weights_before(
    train, measured, scenes_corpus_dir, tmp_path
):
    step, bound = stop_at(measured)
    said: list[str] = []
    sets = ["validation.every=1", f"validation.max_loss_elsewhere={bound}"]
    run = train(tmp_path / "run", *sets, say=said.append)
    lines, whole = run.metrics(), measured.metrics()
    assert [line["loss"] for line in lines if "loss" in line] == [line["loss"] for line in whole[: step + 1]]
    allowed = [lines[0]["start_rsum"], *(line["val_rsum"] for line in lines[:step])]
    assert rsum(models.load(run.folder), scenes_corpus_dir) == max(allowed)
    seal = checkpoints.read_best_seal(run)
    assert seal["step"] == allowed.index(max(allowed))
    assert f"ended after step {step + 1}: " in said[-1]
    assert f"the model has the weights after step {seal['step']}" in said[-1]
    assert validation.run_document(run)["best"]["step"] == seal["step"]
    weights = run.folder / BEST / next(iter(seal["files"]))
    whole_weights = weights.read_bytes()
    weights.write_bytes(whole_weights[:-1])
    assert any(f"{BEST}/{weights.name} is damaged" in problem for problem in verify(run.folder).problems)
    weights.write_bytes(whole_weights)
    # The run is finished: to resume it does nothing.
    before = contents(run.folder)
    assert contents(train(tmp_path / "run", *sets, resume=True).folder) == before


def test_weights_that_lose_too_much_elsewhere_are_not_kept_if_they_are_better(
    train, scenes_corpus_dir, other, tmp_path
):
    """At the first validation RSUM rises on the first corpus, and falls on the other one."""
    sets = ["validation.every=1", "validation.max_loss_elsewhere=1"]
    run = train(tmp_path / "run", *sets, data=(other, scenes_corpus_dir))
    (line, saved) = run.metrics()
    assert line["val_rsum"] > line["start_rsum"] == line["val_best_rsum"] == saved["saved_rsum"]
    assert line["scenes/start_rsum"] - line["scenes/val_rsum"] > 1
    start, kept = (
        load_file(Path(folder) / "model.safetensors")
        for folder in (run.facts()["recipe"]["model"]["start"], run.model_folder)
    )
    assert all(torch.equal(tensor, kept[name]) for name, tensor in start.items())
    assert validation.run_document(run)["best"]["step"] == 0


@pytest.mark.parametrize("more", [[], ["model.average_with_start=auto"]])
def test_a_killed_run_resumes_to_the_same_end(train, measured, tmp_path, more):
    # Without an average, the recalls of the start are read again from the log.
    bound = 5.0 if more else sorted(losses(measured))[-1] - 1e-6
    sets = ["validation.every=1", f"validation.max_loss_elsewhere={bound}", *more]
    whole = train(tmp_path / "whole", *sets)
    with pytest.raises(KilledError):
        train(tmp_path / "killed", *sets, watch=killed_after(3))
    assert checkpoints.read_best_seal(Run(tmp_path / "killed")) is not None
    killed = train(tmp_path / "killed", *sets, resume=True)
    assert model_contents(killed.model_folder) == model_contents(whole.model_folder)
    assert validation_document(killed) == validation_document(whole)
    seconds = {"seconds"}
    assert [{k: v for k, v in line.items() if k not in seconds} for line in killed.metrics()] == [
        {k: v for k, v in line.items() if k not in seconds} for line in whole.metrics()
    ]


def test_a_resumed_run_needs_the_recalls_of_its_start(train, tmp_path):
    sets = ["validation.every=1", "validation.max_loss_elsewhere=600"]
    with pytest.raises(KilledError):
        train(tmp_path / "run", *sets, watch=killed_after(3))
    (tmp_path / "run" / "metrics.jsonl").unlink()
    with pytest.raises(InputError, match=r"metrics.jsonl has no recalls of the start.*; restore it, or name another"):
        train(tmp_path / "run", *sets, resume=True)


def test_another_further_corpus_refuses_to_resume(train, scenes_corpus_dir, tmp_path):
    with pytest.raises(KilledError):
        train(tmp_path / "run", watch=killed_after(3))
    with pytest.raises(StaleError, match=r"was made with another inputs.validation_elsewhere"):
        train(tmp_path / "run", data=(scenes_corpus_dir, scenes_corpus_dir), resume=True)


@pytest.fixture(scope="module")
def averages(measured, scenes_corpus_dir, other) -> tuple[list[dict[str, Any]], dict[str, Any], dict[str, Any]]:
    """The curve of eleven averages, and the weights of the start and of the training."""
    start, end = (
        load_file(Path(folder) / "model.safetensors")
        for folder in (measured.facts()["recipe"]["model"]["start"], measured.model_folder)
    )
    model, curve = models.load_dual(measured.folder), []
    for tenth in range(11):
        share = tenth / 10
        weights = {
            name: (1 - share) * tensor + share * start[name] if tensor.is_floating_point() else tensor
            for name, tensor in end.items()
        }
        model.network.load_state_dict(weights, strict=False)
        curve.append({"share": share, "rsum": [rsum(model, scenes_corpus_dir), rsum(model, other)]})
    return curve, start, end


@pytest.mark.parametrize("bound", [None, 3.0])
def test_the_share_of_the_start_is_the_best_of_eleven(train, averages, tmp_path, bound):
    sets = [] if bound is None else [f"validation.max_loss_elsewhere={bound}"]
    said: list[str] = []
    run = train(tmp_path / "run", "validation.every=1", "model.average_with_start=auto", *sets, say=said.append)
    expected, start, end = averages
    document = validation_document(run)
    logged = [line for line in run.metrics() if "saved_rsum" in line]
    # The last line is that of the saved model.
    assert [
        {"share": line["share"], "rsum": [line["saved_rsum"], line["made/saved_rsum"]]} for line in logged[:-1]
    ] == expected
    best, best_value = 0, -1.0
    for i, (own, elsewhere) in enumerate(each["rsum"] for each in expected):
        value = own + elsewhere if bound is None else own
        if value > best_value and (bound is None or expected[-1]["rsum"][1] - elsewhere <= bound):
            best, best_value = i, value
    assert document["share"] == best / 10
    assert [each["saved"] for each in document["corpora"]] == expected[best]["rsum"]
    assert said[-1] == f"model.average_with_start is auto: {best / 10:g}"
    saved = load_file(run.model_folder / "model.safetensors")
    share = best / 10
    assert all(
        torch.equal(saved[name], (1 - share) * tensor + share * start[name])
        for name, tensor in end.items()
        if tensor.is_floating_point()
    )


@pytest.mark.parametrize(
    ("curve", "bound", "best"),
    [
        ([(300, 390), (310, 396), (290, 399), (200, 400)], 5, 1),
        ([(300, 390), (310, 396), (290, 399), (200, 400)], 1, 2),
        # Only the start loses nothing, and one of two other corpora is enough to exceed the bound.
        ([(300, 400, 499), (310, 399, 500), (200, 400, 500)], 0, 2),
        ([(300, 390), (310, 380), (290, 399), (200, 400)], None, 0),
        ([(300,), (310,), (310,), (200,)], None, 1),
        ([(300, 100), (200, 200)], None, 0),
    ],
)
def test_the_best_share_by_hand(curve, bound, best):
    assert validation.best_share(curve, bound) == best


@pytest.mark.parametrize(
    ("sets", "data", "message"),
    [
        (["validation.max_loss_elsewhere=1"], 1, r"no second --validation-data is named; name the corpus that chooses"),
        (["model.average_with_start=auto"], 0, r"and there is none; --set model.average_with_start=0.5 needs"),
        (["validation.max_loss_elsewhere=-1"], 2, r"max_loss_elsewhere must lie in"),
        (
            ["validation.max_loss_elsewhere=1", "validation.keep=last"],
            2,
            r"validation.keep is last; set validation.keep to best, or model.average_with_start to auto",
        ),
        (["model.average_with_start=1.5"], 0, r"average_with_start must lie in \[0, 1\], got 1.5; or auto"),
    ],
)
def test_settings_that_need_more_are_named_before_anything_is_written(
    train, scenes_corpus_dir, other, tmp_path, sets, data, message
):
    with pytest.raises(ConfigError, match=message):
        train(tmp_path / "run", *sets, data=(scenes_corpus_dir, other)[:data])
    assert not (tmp_path / "run").exists()


def test_without_a_val_split_a_share_is_set_by_hand_as_the_error_says(train, tmp_path):
    corpus = make_corpus(tmp_path / "corpus", [[f"a dog {i}"] for i in range(8)])
    sets = ["validation.every=1", "model.average_with_start=auto"]
    with pytest.raises(ConfigError, match=r"validation corpus, and there is none; --set \S+ needs none") as raised:
        train(tmp_path / "run", *sets, data=(), trained=corpus.folder)
    assert not (tmp_path / "run").exists()
    [named] = [word for word in str(raised.value).split() if "=" in word]
    assert train(tmp_path / "run", *sets, named, data=(), trained=corpus.folder).is_finished


def test_a_pool_has_no_recalls(train, scenes_corpus_dir, tmp_path):
    make_pool(tmp_path / "pool", [["a cat"], ["a dog"]], split="val")
    with pytest.raises(ConfigError, match=r"is a pool, and recalls need captions; set validation.metric to agreement"):
        train(tmp_path / "run", data=(scenes_corpus_dir, tmp_path / "pool"))
    assert not (tmp_path / "run").exists()


def test_an_average_that_is_chosen_needs_a_pretrained_start(scenes_corpus_dir, tmp_path):
    sets = [*TINY_DUAL, "model.average_with_start=auto", "validation.every=1"]
    with pytest.raises(ConfigError, match=r"average_with_start is for a pretrained model.start"):
        distill(InputRefs(data=scenes_corpus_dir), tmp_path / "run", *sets)


def test_corpora_of_one_name_are_told_apart(train, other, scenes_corpus_dir, tmp_path):
    run = train(tmp_path / "run", "optimizer.steps=1", data=(other, scenes_corpus_dir, other))
    assert run.facts()["validated_on"] == ["made", "scenes", "made-3"]
    first = run.metrics()[0]
    assert first["start_rsum"] == first["made-3/start_rsum"] != first["scenes/start_rsum"]
