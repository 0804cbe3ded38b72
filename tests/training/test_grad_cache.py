"""A batch computed in micro-batches, by one process or several: the loss and the weights of the whole."""

from __future__ import annotations

import copy
import functools
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import processes
import pytest
import torch
from batches import recipe_batches
from duals import save_dual
from encoders import make_pair
from forks import run_forked
from made_caches import build_cache
from open_inputs import OpenInputs
from paths import ROOT, SUPPORT
from safetensors.torch import load_file
from shards import rows_of, write_shards
from tiny import make_teacher, make_wide_dual, model_contents
from torch import nn
from training_steps import (
    KINDS,
    STARTS,
    Student,
    distill,
    gradients_of,
    make_student,
    relative_differences,
)

from dcdctl.core import models, training
from dcdctl.core.engines import Compute
from dcdctl.core.errors import ConfigError
from dcdctl.core.scoring import CorpusSource
from dcdctl.core.teacher import CandidateConfig, TextCacheJob, cache, cache_texts
from dcdctl.core.training import InputRefs, TrainingJob, TrainingOptions, initial_model
from dcdctl.core.training import recipe as training_recipe
from dcdctl.core.training import runs as training_runs
from dcdctl.core.training.batches.batch import MicroBatchPlan
from dcdctl.core.training.grad_cache import Step, backward
from dcdctl.core.training.loop import _check_micro_batches
from dcdctl.core.training.objective import PairObjective

NO_DROPOUT = models.ViltSize(
    hidden_size=32,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=64,
    image_size=64,
    patch_size=16,
    hidden_dropout_prob=0.0,
)
Gradients = tuple[dict[str, float], dict[str, torch.Tensor]]
"""A loss with its terms, and the gradients of the parameters."""
SHORT = ["optimizer.steps=4", "optimizer.lr=1e-3", "optimizer.warmup_share=0.0", "optimizer.max_grad_norm=0.5"]


@pytest.fixture(scope="module")
def calm(corpus) -> models.ViltScorer:
    """A teacher without dropout."""
    return make_teacher(corpus.captions, size=NO_DROPOUT)


@pytest.fixture(scope="module")
def cache_folder(corpus, calm, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cache") / "cache"
    build_cache(corpus, calm, folder, CandidateConfig(kind="blocks", block_size=8))
    return folder


@pytest.fixture(scope="module")
def inputs(corpus, calm, cache_folder) -> OpenInputs:
    return OpenInputs(corpus, [cache.read_cache(cache_folder, corpus=corpus, teacher=calm.digest)], calm)


@pytest.fixture(scope="module")
def starts(corpus, tmp_path_factory) -> Path:
    """A folder with a tiny model of each family of `STARTS`."""
    folder = tmp_path_factory.mktemp("starts")
    for family in {kind.split()[0] for kind in STARTS}:
        save_dual(family, corpus.captions, folder / family)
    return folder


@pytest.fixture(scope="module")
def student_of(inputs, starts) -> Callable[[str], Student]:
    """The student of a kind, made once, because a step changes no weights."""
    return functools.cache(functools.partial(make_student, inputs, starts=starts))


@pytest.fixture(scope="module")
def whole_gradients(inputs, student_of) -> Callable[[str], Gradients]:
    """The loss and the gradients of each kind, by one process from a whole batch."""
    return functools.cache(lambda kind: gradients_of(inputs, student_of(kind), MicroBatchPlan()))


def assert_same_gradients(gradients: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Equal within the rounding of float32, parameter by parameter: a factor of two in one scalar is 20,000 times as
    much."""
    assert gradients.keys() == expected.keys()
    total = torch.cat([gradient.flatten() for gradient in expected.values()]).norm()
    for name, difference in relative_differences(gradients, expected).items():
        # Some gradients are zero but for rounding: softmax cancels the bias of keys, and margins cancel an offset of
        # the logits.
        if float(expected[name].norm()) > 1e-6 * total:
            assert difference < 5e-5, name
        else:
            assert float(gradients[name].norm()) < 2e-6 * total, name


@pytest.mark.parametrize("count", [3, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_of_micro_batches_is_that_of_the_whole(inputs, student_of, whole_gradients, kind, count):
    whole, expected = whole_gradients(kind)
    split, gradients = gradients_of(inputs, student_of(kind), MicroBatchPlan(count, range(count)))
    assert split == pytest.approx(whole, abs=1e-6, rel=1e-6)
    assert_same_gradients(gradients, expected)


@pytest.mark.parametrize(("count", "factor"), [(1, 1), (2, 3)])
def test_gradients_of_micro_batches_are_added_over_processes(
    inputs, student_of, whole_gradients, monkeypatch, count, factor
):
    """Those of a whole batch are averaged by DistributedDataParallel."""

    def of_three_alike(parameters):
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad *= 3

    monkeypatch.setattr("dcdctl.core.distributed.sum_gradients", of_three_alike)
    kind = next(iter(KINDS))
    _, gradients = gradients_of(inputs, student_of(kind), MicroBatchPlan(count, range(count)))
    assert_same_gradients(gradients, {name: factor * each for name, each in whole_gradients(kind)[1].items()})


@pytest.mark.parametrize("kind", STARTS)
def test_a_student_of_clip_or_siglip_has_the_gradient_of_the_whole_batch(inputs, student_of, whole_gradients, kind):
    _, gradients = gradients_of(inputs, student_of(kind), MicroBatchPlan(3, range(3)))
    assert_same_gradients(gradients, whole_gradients(kind)[1])
    nonzero = {name for name, gradient in gradients.items() if gradient.any()}
    assert ("network.logit_bias" in nonzero) == kind.startswith("SigLIP")
    adapters = {name for name in nonzero if ".lora_A." in name or ".lora_B." in name}
    # Six linear layers in each of two layers of two towers, with two factors each.
    assert len(adapters) == (2 * 2 * 6 * 2 if "LoRA" in kind else 0)
    assert any(".layers.0." in name for name in nonzero) == ("last" not in kind)


def trained(inputs: OpenInputs, kind: str, folder: Path, *sets: str, **options: object) -> training_runs.Run:
    chosen = [*KINDS[kind], *SHORT, *sets]
    return distill(inputs, folder, *chosen, options=TrainingOptions(**options))


def weights(run: training_runs.Run) -> dict[str, torch.Tensor]:
    return load_file(run.model_folder / "model.safetensors")


@pytest.fixture(scope="module")
def whole_run(inputs, tmp_path_factory) -> Callable[..., training_runs.Run]:
    """The run of a kind, by one process from whole batches."""
    return functools.cache(lambda kind, *sets: trained(inputs, kind, tmp_path_factory.mktemp("whole") / "run", *sets))


@pytest.mark.parametrize("kind", ["fusion lists", "dual all pairs"])
@pytest.mark.parametrize("micro_batches", [2, 3])
def test_a_training_in_micro_batches_is_the_training_of_the_whole(inputs, whole_run, kind, micro_batches, tmp_path):
    assert_same_training(whole_run(kind), trained(inputs, kind, tmp_path / "run", micro_batches=micro_batches))


def test_features_of_frozen_encoders_come_in_micro_batches_too(corpus, tmp_path):
    inputs = OpenInputs(corpus, [], make_pair(corpus.captions, tmp_path / "pair", dropout=0.0))
    sets = ["model.layers=[0, 2]", "batch.size=6", "batch.random_negatives=3", "loss.terms={ ranking = 1.0 }", *SHORT]
    both = [
        distill(
            inputs,
            tmp_path / f"run-{micro_batches}",
            *sets,
            options=TrainingOptions(micro_batches=micro_batches, compute=Compute(features=tmp_path / "f")),
        )
        for micro_batches in (1, 3)
    ]
    assert_same_training(*both)


def assert_same_training(whole_run: training_runs.Run, split_run: training_runs.Run) -> None:
    """Within rounding; but AdamW divides by the gradient's size, so where that is rounding alone (a bias that softmax
    cancels, one number in a hundred others), the step is too."""
    for before, after in zip(whole_run.metrics(), split_run.metrics(), strict=True):
        assert {**after, "seconds": 0} == pytest.approx({**before, "seconds": 0}, rel=1e-5, abs=1e-5)
    split_weights = weights(split_run)
    for name, tensor in weights(whole_run).items():
        if not name.endswith("key.bias"):
            assert int(((split_weights[name] - tensor).abs() > 1e-6).sum()) <= max(1, 0.01 * tensor.numel()), name


def test_dropout_is_the_same_in_both_passes_and_another_in_each_micro_batch(inputs):
    """With dropout in both passes alike, the gradient is that of the loss: a step against it lowers the loss by its
    squared length."""
    recipe = training_recipe.load_recipe("tiny-student", [*KINDS["dual all pairs"], "model.dropout=0.3"])
    micro_batch_plan = MicroBatchPlan(2, range(2))
    model = initial_model.make_model(recipe, inputs.corpus.captions, None).train()
    batch = recipe_batches(CorpusSource(inputs.corpus, model.preprocess), recipe, inputs.caches[0], micro_batch_plan)[0]
    step = Step(number=0, seed=0, micro_batch_plan=micro_batch_plan)
    before = backward(model, PairObjective(recipe.loss), batch, step)["loss"]
    gradient = [None if parameter.grad is None else parameter.grad.clone() for parameter in model.parameters()]
    squared = sum(float(part.square().sum()) for part in gradient if part is not None)
    with torch.no_grad():
        for parameter, part in zip(model.parameters(), gradient, strict=True):
            if part is not None:
                parameter -= 1e-3 / squared * part
    after = backward(model, PairObjective(recipe.loss), batch, step)["loss"]
    assert before - after == pytest.approx(1e-3, rel=0.05)
    drawn = []
    for part in (0, 1, None):
        step.seed_dropout(part)
        drawn.append(float(torch.rand(())))
    assert len(set(drawn)) == 3


def test_what_cannot_be_split_is_refused(inputs, tmp_path):
    with pytest.raises(
        ConfigError,
        match=r"batch\.size is 8, too few for 9 micro-batches in all processes together; set a smaller --accumulate",
    ):
        trained(inputs, "fusion lists", tmp_path / "small", micro_batches=9)
    model = copy.deepcopy(inputs.teacher)
    model.network.extra = nn.BatchNorm1d(3)
    # Its output would depend on how a batch is split.
    assert not model.train().network.extra.training
    with pytest.raises(ConfigError, match="cannot split a batch into micro-batches; leave --accumulate out"):
        _check_micro_batches(lambda model, batch: {}, TrainingOptions(micro_batches=2))


def trained_on_two_threads(inputs: OpenInputs, kind: str, folder: Path, **options: object) -> training_runs.Run:
    """A run of two steps with dropout."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        return trained(inputs, kind, folder, "model.dropout=0.1", "optimizer.steps=2", **options)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("kind", KINDS)
def test_activations_that_are_computed_again_change_no_number(inputs, kind, tmp_path):
    stored = trained_on_two_threads(inputs, kind, tmp_path / "stored")
    again = trained_on_two_threads(inputs, kind, tmp_path / "again", checkpoint_activations=True)
    assert [{**line, "seconds": 0} for line in stored.metrics()] == [{**line, "seconds": 0} for line in again.metrics()]
    assert all(torch.equal(tensor, weights(again)[name]) for name, tensor in weights(stored).items())
    assert (stored.model_folder / "config.json").read_bytes() == (again.model_folder / "config.json").read_bytes()


SCRIPT = """
import json, socket, sys
import peft, torch, torch._dynamo, typer.main
from huggingface_hub import constants
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from dcdctl.cli.app import app
from training_steps import save_shared_gradients

def run(commands):
    for words in commands:
        if words[0] == "gradients":
            save_shared_gradients(*words[1:])
            continue
        try:
            command(words, prog_name="dcdctl")
        except SystemExit as end:
            assert not end.code, end.code

constants.HF_HUB_OFFLINE = True
command = typer.main.get_command(app)
with socket.create_server(("localhost", 0)) as server:
    port = server.getsockname()[1]
# What `torchrun --nproc-per-node 2` does, but in forks: in two new processes the imports would take as long as the
# commands.
rendezvous = {"rdzv_backend": "static", "rdzv_endpoint": f"localhost:{port}", "rdzv_configs": {"rank": 0}}
place = LaunchConfig(1, 1, 2, run_id="two", start_method="fork", max_restarts=0, **rendezvous)
elastic_launch(place, run)(json.loads(sys.argv[1]))
"""
QUERY = [
    *("model.kind=query", "model.start=new", "model.layers=[]", "model.hidden_size=16", "model.num_text_layers=1"),
    *("model.num_heads=2", "model.vocab_size=200", "loss.terms={ embedding-cosine = 1.0 }", "batch.size=8"),
    *("batch.random_negatives=7", "batch.hard_negatives=3"),
]
MEASURED = ["validation.every=2", "optimizer.save_every=2"]
TOGETHER: dict[str, tuple[str, list[str], list[str]]] = {
    "lists": ("fusion lists", [], []),
    "pairs": ("dual all pairs", [], []),
    "stopped": ("dual all pairs", [], ["--resume", "--accumulate", "2"]),
    "dropout": ("dual all pairs", ["model.dropout=0.2"], []),
    "late": ("late dual all pairs", ["model.position_norm=0.7"], []),
    "dual teacher": ("dual lists", [], []),
    "stream": ("dual all pairs", ["loss.terms={ infonce = 1.0, kl = 0.5 }", "stream.window=24"], []),
    "vectors": ("dual all pairs", ["loss.terms={ infonce = 1.0, embedding-cosine = 0.5 }"], []),
    "texts": ("query of texts", [], []),
    "rounds": ("dual all pairs", ["candidates.kind=embedding", "candidates.model=start"], []),
    "images": ("query", ["loss.terms={ kl = 1.0, embedding-cosine = 1.0 }"], []),
}
"""Trainings by two processes: what is trained, more of the recipe, more options."""


SHARD_SIZES = (9, 14, 12)


def start(*command: str) -> subprocess.CompletedProcess[str]:
    """What Python did with a command line."""
    path = os.pathsep.join([str(ROOT), str(SUPPORT)])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return processes.run([sys.executable, *command], env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def together(inputs, calm, cache_folder, student_of, scenes_corpus_dir, tmp_path_factory) -> tuple[Path, str, str]:
    """The folder of the runs that two processes made, one after the other, and what they said."""
    make = functools.partial(
        by_two_processes,
        inputs=inputs,
        calm=calm,
        cache_folder=cache_folder,
        student_of=student_of,
        corpus_dir=scenes_corpus_dir,
    )
    return processes.make_once(tmp_path_factory, "two-processes", make)


def by_two_processes(folder: Path, inputs, calm, cache_folder, student_of, corpus_dir) -> tuple[Path, str, str]:
    models.save(calm, folder / "teacher")
    trained(inputs, "dual all pairs", folder / "stopped", *MEASURED)
    shutil.rmtree(folder / "stopped" / "model")
    commands = []
    students = folder / "students.pickle"
    students.write_bytes(pickle.dumps({kind: student_of(kind) for kind in [*KINDS, *STARTS]}))
    commands.append(
        ["gradients", *map(str, (corpus_dir, folder / "teacher", cache_folder, students, folder / "gradients"))]
    )
    models.save(make_wide_dual(inputs.corpus.captions), folder / "dual")
    cache_texts(TextCacheJob(out=folder / "texts-cache", texts=[str(corpus_dir)], teacher=str(folder / "dual")))
    shards = str(Path(write_shards(folder / "shards", rows_of(SHARD_SIZES))[0]).with_name("*.tar"))
    for name, (kind, more, options) in TOGETHER.items():
        data = [shards, "--validation-data", corpus_dir] if name == "stream" else [corpus_dir]
        places = [*([] if name == "texts" else ["--data", *data]), "--out", folder / name, "--device", "cpu"]
        has_dual = name in ("dual teacher", "vectors", "stream", "images")
        cached = folder / "texts-cache" if name == "texts" else cache_folder
        if name != "rounds":
            places += ["--teacher", folder / "dual"] if has_dual else ["--cache", cached]
        places += ["--teacher", folder / "teacher"] if kind.startswith("fusion") or name == "rounds" else []
        own = QUERY if kind.startswith("query") else KINDS[kind]
        sets = [word for assignment in [*own, *SHORT, *MEASURED, *more] for word in ("--set", assignment)]
        commands.append(["distill", "tiny-student", *map(str, places), *sets, *options])
    return folder, *run_forked(SCRIPT, json.dumps(commands))


def test_of_two_processes_one_speaks(together):
    _, printed, messages = together
    assert printed.count("student -> ") == len(TOGETHER)
    # A student of the captions comes before the one that learns from what it proposes.
    assert messages.count("train: 4/4 steps, loss ") == len(TOGETHER) + 1


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("kind", [*KINDS, *STARTS])
def test_two_processes_have_the_gradient_of_one(together, whole_gradients, kind, count):
    """The gradients themselves: AdamW hides a factor, and one scalar among many weights would pass unnoticed."""
    first, second = (load_file(together[0] / "gradients" / f"{kind}-{count}-{rank}.safetensors") for rank in (0, 1))
    assert_same_gradients(first, whole_gradients(kind)[1])
    assert first.keys() == second.keys()
    assert all(torch.equal(gradient, second[name]) for name, gradient in first.items())


def test_processes_start_from_the_weights_of_the_first_and_sum_the_gradients_that_any_of_them_has(together):
    for rank in (0, 1):
        shared = {
            name: tensor.tolist()
            for name, tensor in load_file(together[0] / "gradients" / f"shared-{rank}.safetensors").items()
        }
        assert shared == {
            "weights.weight": [[1, 1]] * 3,
            "weights.bias": [1, 1, 1],
            "weights.mean": [1, 1],
            "weights.count": rank + 1,  # whole numbers, such as positions, are no weights
            "gradient.both": [3, 3, 3],
            "gradient.second": [4, 5],
            "gradient.scalar": 2,
        }


@pytest.mark.parametrize("name", ["lists", "pairs"])
def test_two_processes_train_what_one_does(together, whole_run, name):
    alone = whole_run(TOGETHER[name][0], *MEASURED)
    assert [line["step"] for line in alone.metrics()] == [0, 1, 3]
    assert_same_training(alone, training_runs.Run(together[0] / name))


def test_two_processes_learn_from_a_dual_teacher_what_one_does(together, inputs, tmp_path):
    """The first process embeds the corpus. Without its vectors the other would keep other negatives of every list."""
    dual = make_wide_dual(inputs.corpus.captions)
    alone = trained(OpenInputs(inputs.corpus, [], None, [dual]), "dual lists", tmp_path / "alone", *MEASURED)
    assert_same_training(alone, training_runs.Run(together[0] / "dual teacher"))


def test_two_processes_learn_from_vectors_what_one_does(together, inputs, tmp_path):
    """The gradient of the projection comes from one process."""
    kind, more, _ = TOGETHER["vectors"]
    alone = trained(
        OpenInputs(inputs.corpus, [], None, [make_wide_dual(inputs.corpus.captions)]),
        kind,
        tmp_path / "alone",
        *MEASURED,
        *more,
    )
    assert_same_training(alone, training_runs.Run(together[0] / "vectors"))


def test_two_processes_train_on_a_stream_what_one_does(together, scenes_corpus_dir, tmp_path):
    """Each decodes a part of a batch, and embeds it with the teacher. The stream is read by both, over the end of its
    first epoch."""
    folder, (kind, more, _) = together[0], TOGETHER["stream"]
    shards = [str(path) for path in sorted((folder / "shards").glob("*.tar"))]
    refs = InputRefs(data=shards, teachers=[str(folder / "dual")], validation_data=[scenes_corpus_dir])
    job = TrainingJob("distill", "tiny-student", [*KINDS[kind], *SHORT, *MEASURED, *more], tmp_path / "alone")
    alone = training.train_model(job, refs, options=TrainingOptions())
    shared = training_runs.Run(folder / "stream")
    assert_same_training(alone, shared)
    assert alone.read_lines("shards.jsonl", "") == shared.read_lines("shards.jsonl", "")


@pytest.mark.parametrize("name", ["texts", "images"])
def test_two_processes_train_a_query_encoder_like_one(together, scenes_corpus_dir, tmp_path, name):
    more, dual = TOGETHER[name][1], str(together[0] / "dual")
    refs = InputRefs(caches=[together[0] / "texts-cache"])
    if name == "images":
        refs = InputRefs(data=scenes_corpus_dir, teachers=[dual])
    job = TrainingJob("distill", "tiny-student", [*QUERY, *SHORT, *MEASURED, *more], tmp_path / "alone")
    alone = training.train_model(job, refs, options=TrainingOptions())
    assert_same_training(alone, training_runs.Run(together[0] / name))


def test_a_run_of_one_process_goes_on_with_two(together, whole_run):
    assert_same_training(whole_run("dual all pairs", *MEASURED), training_runs.Run(together[0] / "stopped"))


def test_two_processes_draw_the_dropout_of_two_micro_batches(together, inputs, tmp_path):
    alone = trained(inputs, "dual all pairs", tmp_path / "alone", *MEASURED, "model.dropout=0.2", micro_batches=2)
    assert_same_training(alone, training_runs.Run(together[0] / "dropout"))
    whole = trained(inputs, "dual all pairs", tmp_path / "whole", *MEASURED, "model.dropout=0.2")
    assert abs(whole.metrics()[-1]["loss"] - alone.metrics()[-1]["loss"]) > 1e-4


def test_two_processes_have_the_cache_and_the_student_of_one_in_rounds(together, scenes_corpus_dir, tmp_path):
    """The first process scores what the student of the captions proposes, and both learn from it."""
    kind, more, _ = TOGETHER["rounds"]
    refs = InputRefs(data=scenes_corpus_dir, teachers=[str(together[0] / "teacher")])
    job = TrainingJob("distill", "tiny-student", [*KINDS[kind], *SHORT, *MEASURED, *more], tmp_path / "alone")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in each of the two
    try:
        alone = training.train_in_rounds(job, refs, options=TrainingOptions(micro_batches=2))
    finally:
        torch.set_num_threads(threads)
    cache_of_two = together[0] / "rounds-rounds" / "cache-1"
    assert pairs_of(cache_of_two) == pairs_of(tmp_path / "alone-rounds" / "cache-1")
    assert model_contents(alone.folder / "model") == model_contents(together[0] / "rounds" / "model")


def pairs_of(folder: Path) -> list[bytes]:
    """The pairs of a cache, without its plan, which names a student by its folder."""
    return [path.read_bytes() for path in sorted(folder.glob("pairs-*.parquet"))]


def test_two_processes_are_two_micro_batches_to_the_bit(together, inputs, tmp_path):
    """Whatever differs from the whole batch is the rounding of another order, which a training of many steps makes
    large where a maximum or a division by the gradient's size stands."""
    kind, more, _ = TOGETHER["late"]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in each of the two
    try:
        alone = trained(inputs, kind, tmp_path / "alone", *MEASURED, *more, micro_batches=2)
    finally:
        torch.set_num_threads(threads)
    shared = training_runs.Run(together[0] / "late")
    assert model_contents(alone.folder / "model") == model_contents(shared.folder / "model")


@pytest.mark.slow
def test_what_the_first_process_refuses_ends_the_others_without_a_traceback(inputs, tmp_path):
    trained(inputs, "dual all pairs", tmp_path / "run")
    words = [
        "distill",
        "tiny-student",
        "--data",
        str(inputs.corpus.folder),
        "--out",
        str(tmp_path / "run"),
        "--device",
        "cpu",
    ]
    words += [
        word
        for assignment in [*KINDS["dual all pairs"], "loss.terms={ infonce = 1.0 }"]
        for word in ("--set", assignment)
    ]
    done = start("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "dcdctl", *words)
    assert done.returncode != 0
    # The first that ends may be ended by torchrun before the other has said that it stops.
    assert "already holds a run; resume with --resume" in done.stderr
    assert "torch/distributed/distributed_c10d.py" not in done.stderr
