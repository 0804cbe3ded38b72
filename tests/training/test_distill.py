"""From names to a finished run; and that every loss teaches every kind of student."""

from __future__ import annotations

import errno
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from batches import list_batches, pair_batches, recipe_batches
from made_caches import build_cache
from open_inputs import OpenInputs
from plain_scores import plain_score
from tiny import contents, make_models, make_teacher
from training_steps import distill

from dcdctl.core import models, training
from dcdctl.core.engines import Compute
from dcdctl.core.errors import ConfigError, InputError, MissingError, ModelError, StaleError, as_user_error
from dcdctl.core.scoring import CorpusSource
from dcdctl.core.teacher import CandidateConfig, cache, measure_spread
from dcdctl.core.training import (
    InputRefs,
    TrainingJob,
    TrainingOptions,
    grad_cache,
    initial_model,
    train,
)
from dcdctl.core.training import recipe as training_recipe
from dcdctl.core.training.batches.all_pairs import AllPairs
from dcdctl.core.training.batches.lists import CandidateLists
from dcdctl.core.training.coverage import Preview
from dcdctl.core.training.inputs import caches_of
from dcdctl.core.training.losses.table import LOSSES

OPTIONS = TrainingOptions()
SMALL = [
    "model.hidden_size=32",
    "model.num_layers=2",
    "model.num_text_layers=1",
    "model.projection_dim=16",
    "model.vocab_size=200",
]
CANDIDATES = ["candidates.kind=blocks", "candidates.block_size=8", "candidates.per_query=15"]
BATCH = ["batch.size=8", "batch.random_negatives=7", "batch.hard_negatives=3", *CANDIDATES]
FUSION = ["model.layers=[0, 2]", *BATCH]
DUAL = ["model.kind=dual", "model.start=new", "model.layers=[]", *SMALL, *BATCH]


@pytest.fixture(scope="module")
def teacher_folder(teacher, tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher") / "teacher"
    models.save(teacher, folder)
    return folder


@pytest.fixture(scope="module")
def cache_folder(corpus, teacher, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache") / "cache"
    build_cache(corpus, teacher, folder, CandidateConfig(kind="blocks", block_size=8))
    return folder


@pytest.fixture(scope="module")
def inputs(corpus, teacher, cache_folder) -> OpenInputs:
    return OpenInputs(corpus, [cache.read_cache(cache_folder, corpus=corpus, teacher=teacher.digest)], teacher)


def terms(*names: str) -> str:
    return "loss.terms={ " + ", ".join(f"{name} = 1.0" for name in names) + " }"


def test_temperature_auto_is_that_of_the_cache_and_trains_like_the_number(inputs, tmp_path):
    said: list[str] = []
    found = measure_spread(inputs.caches[0]).temperature
    assert found is not None
    assert abs(found - 1) > 0.1
    runs_by_value = {}
    for value in ("auto", str(found), "1.0"):
        sets = [*DUAL, terms("kl"), f"loss.temperature={value}", "optimizer.steps=2"]
        job = TrainingJob("distill", "tiny-student", sets, tmp_path / value)
        runs_by_value[value] = training.train_model(
            job, OpenInputs(inputs.corpus, inputs.caches, None), options=OPTIONS, say=said.append
        )
    losses = {value: [step["loss"] for step in run.metrics()] for value, run in runs_by_value.items()}
    assert losses["auto"] == losses[str(found)] != losses["1.0"]
    facts = runs_by_value["auto"].facts()
    assert (facts["recipe"]["loss"]["temperature"], facts["inputs"]["temperature"]) == ("auto", found)
    assert said.count(f"loss.temperature is auto: {found:g} for these scores") == 1
    # The run resumes with the same recipe.
    again = TrainingJob(
        "distill",
        "tiny-student",
        [*DUAL, terms("kl"), "loss.temperature=auto", "optimizer.steps=2"],
        tmp_path / "auto",
        True,
    )
    assert training.train_model(again, OpenInputs(inputs.corpus, inputs.caches, None), options=OPTIONS).is_finished
    preview = training.preview(
        replace(again, out=tmp_path / "new"), OpenInputs(inputs.corpus, inputs.caches, None), OPTIONS
    )
    assert f"temperature: {found:g}" in preview.facts()


def test_temperature_auto_without_a_cache_is_an_error(inputs, corpus, tmp_path):
    _, dual = make_models(corpus.captions)
    job = TrainingJob("distill", "tiny-student", [*DUAL, terms("kl"), "loss.temperature=auto"], tmp_path / "run")
    with pytest.raises(
        ConfigError,
        match=r"temperature is auto, which is taken from the scores of a cache, and there is none; name one with",
    ):
        training.train_model(job, OpenInputs(corpus, [], None, [dual]), options=OPTIONS)


@pytest.mark.parametrize("kind", [FUSION, DUAL], ids=["fusion", "dual"])
@pytest.mark.parametrize("loss", ["dcd", "infonce"])
@torch.no_grad()
def test_logits_stand_in_the_columns_of_their_pairs(inputs, kind, loss):
    recipe = training_recipe.load_recipe("tiny-student", [*kind, terms(loss)])
    model = initial_model.make_model(recipe, inputs.corpus.captions, inputs.teacher)
    batch = recipe_batches(CorpusSource(inputs.corpus, model.preprocess), recipe, inputs.caches[0])[1]
    logits_RC, _ = model.logits(model.outputs(batch), batch)
    for row, column in ((0, 0), (2, 3), (7, 1)):
        i, t = int(batch.image_ix_RC[row, column]), int(batch.text_ix_RC[row, column])
        images = models.ImageBatch(batch.images.pixel_values[i : i + 1], None)
        texts = models.TextBatch(batch.texts.input_ids[t : t + 1], batch.texts.attention_mask[t : t + 1])
        if isinstance(model, models.DualEncoder):
            alone = model.logit_scale * (model.embed_images(images) * model.embed_texts(texts)).sum()
        else:
            alone = plain_score(
                model, images.pixel_values, texts.input_ids, texts.attention_mask, batch.images.pixel_mask[i : i + 1]
            )[0]
        assert float(logits_RC[row, column]) == pytest.approx(float(alone), abs=2e-5)


RUN_FILES = {"run.json", "metrics.jsonl", "metrics.json", "tensorboard", "checkpoints", "model"}


def test_a_distilled_student_is_a_run_that_loads_again(inputs, teacher, tmp_path):
    before = teacher.digest
    sets = [*FUSION, "optimizer.steps=3", "optimizer.save_every=2"]
    run = distill(inputs, tmp_path / "run", *sets)
    assert teacher.digest == before
    student = models.load_fusion(run.folder)
    assert len(student.layers) == 2
    assert student.digest != before
    facts = run.facts()
    assert facts["recipe"]["optimizer"]["steps"] == 3
    assert facts["inputs"]["corpus"] == inputs.corpus.fingerprint
    assert facts["inputs"]["cache"]["teacher"] == before
    assert facts["inputs"]["start"] == teacher.student([0, 2]).digest
    assert {path.name for path in run.folder.iterdir()} == RUN_FILES


def test_a_finished_run_is_left_alone(inputs, tmp_path):
    sets = [*DUAL, terms("infonce"), "optimizer.steps=2"]
    distill(inputs, tmp_path / "run", *sets)
    before = contents(tmp_path / "run")
    distill(inputs, tmp_path / "run", *sets, resume=True)
    assert contents(tmp_path / "run") == before
    with pytest.raises(StaleError, match=r"another recipe\.optimizer\.lr \(0\.0001, not 0\.5\)"):
        distill(inputs, tmp_path / "run", *sets, "optimizer.lr=0.5", resume=True)
    half = TrainingOptions(compute=Compute(precision="bfloat16"))
    with pytest.raises(StaleError, match=r"another inputs\.precision \(float32, not bfloat16\)"):
        distill(inputs, tmp_path / "run", *sets, resume=True, options=half)
    assert contents(tmp_path / "run") == before


def test_a_full_disk_names_resume_once_there_is_a_run(inputs, tmp_path, monkeypatch):
    def fill_up(*_: object, **__: object) -> None:
        raise as_user_error(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "disk"))

    job = TrainingJob("distill", "tiny-student", [*DUAL, "optimizer.steps=1"], tmp_path / "run")
    hints = {"make_model": "try again", "finish": "resume with --resume"}
    for name, hint in hints.items():
        with monkeypatch.context() as patched:
            patched.setattr(initial_model if name == "make_model" else train, name, fill_up)
            with pytest.raises(InputError, match=f"no room left for disk; make room and {hint}$"):
                training.train_model(job, inputs, options=OPTIONS)
    monkeypatch.setattr(train, "finish", fill_up)
    with pytest.raises(InputError, match=r"make room and run the same command again$"):
        training.train_model(replace(job, resume=True), inputs, options=OPTIONS)


def test_a_recipe_of_a_student_fine_tunes_no_teacher(inputs, tmp_path):
    job = TrainingJob("finetune-teacher", "tiny-student", [], tmp_path / "run")
    with pytest.raises(ConfigError, match="trains a student; finetune-teacher expects"):
        training.resolve(job, inputs, OPTIONS)


def test_finetuning_lowers_the_ranking_loss_and_leaves_the_model_it_starts_from(corpus, teacher, tmp_path):
    before = teacher.digest
    sets = [
        "model.start=teacher",
        "optimizer.steps=30",
        "optimizer.lr=1e-3",
        "batch.size=8",
        "batch.random_negatives=3",
    ]
    run = training.train_model(
        TrainingJob("finetune-teacher", "tiny-teacher", sets, tmp_path / "run"),
        OpenInputs(corpus, [], teacher),
        options=OPTIONS,
    )
    losses = [line["ranking"] for line in run.metrics()]
    assert sum(losses[-2:]) < 0.95 * sum(losses[:2])
    assert teacher.digest == before
    assert len(models.load_fusion(run.folder).layers) == len(teacher.layers)


def test_every_size_of_a_recipe_reaches_a_new_model(corpus):
    """No two of the numbers are alike, and none is the default."""
    sets = [
        "hidden_size=24",
        "num_heads=3",
        "num_layers=4",
        "image_size=48",
        "patch_size=12",
        "image_mean=0.3",
        "image_std=0.2",
    ]
    sets = [f"model.{assignment}" for assignment in [*sets, "max_text_len=17", "vocab_size=60", "dropout=0.15"]]
    shared = {"hidden_size": 24, "num_attention_heads": 3, "intermediate_size": 96, "hidden_dropout_prob": 0.15}
    vision = {**shared, "num_hidden_layers": 4, "image_size": 48, "patch_size": 12}

    fusion = initial_model.make_model(training_recipe.load_recipe("tiny-teacher", sets), corpus.captions, None)
    start = [
        "model.kind=dual",
        "model.start=new",
        "model.layers=[]",
        "model.num_text_layers=2",
        "model.projection_dim=10",
    ]
    dual = initial_model.make_model(training_recipe.load_recipe("tiny-student", [*start, *sets]), corpus.captions, None)
    config = dual.network.config
    for part, expected in (
        (fusion.network.config, {**vision, "max_position_embeddings": 17, "vocab_size": 60}),
        (config.vision_config, vision),
        (config.text_config, {**shared, "num_hidden_layers": 2, "max_position_embeddings": 17, "vocab_size": 60}),
        (config, {"projection_dim": 10}),
    ):
        assert {name: getattr(part, name) for name in expected} == expected
    for model in (fusion, dual):
        processor = model.preprocess.image_processor
        assert (set(processor.image_mean), set(processor.image_std)) == ({0.3}, {0.2})
        assert (model.preprocess.max_text_len, len(model.preprocess.tokenizer)) == (17, 60)


def test_the_seed_of_a_recipe_reaches_batches_and_dropout(inputs, tmp_path, monkeypatch):
    steps: list[tuple[int, int]] = []

    def backward(model: Any, objective: Any, batch: Any, step: Any, real: Any = grad_cache.backward) -> Any:
        steps.append((step.seed, step.number))
        return real(model, objective, batch, step)

    monkeypatch.setattr(grad_cache, "backward", backward)
    sets = [*DUAL, terms("infonce"), "optimizer.steps=2", "seed=7"]
    distill(inputs.corpus, tmp_path / "run", *sets)
    assert steps == [(7, 0), (7, 1)]
    for loss, kind in (("infonce", pair_batches), ("ranking", list_batches)):
        recipe = training_recipe.load_recipe("tiny-student", [*DUAL, terms(loss), "seed=7"])
        source = CorpusSource(inputs.corpus, initial_model.make_model(recipe, inputs.corpus.captions, None).preprocess)
        batch, expected, other = (
            drawn.texts.input_ids.tolist()
            for drawn in (
                recipe_batches(source, recipe, None)[1],
                *(kind(source, recipe.batch, seed, None)[1] for seed in (7, 0)),
            )
        )
        assert batch == expected != other


def test_steps_are_what_is_set_or_what_the_epochs_take(inputs):
    def num_steps(name: str, *sets: str) -> int:
        return Preview(recipe=training_recipe.load_recipe(name, sets), batches_per_epoch=7.5).num_steps

    assert num_steps("tiny-student", *DUAL, "optimizer.steps=100") == 100
    assert num_steps("vilt-coco") == 75
    assert num_steps("vilt-coco", "optimizer.epochs=0.01") == 1
    # 3.75 steps are rounded down, as in the released code.
    assert num_steps("vilt-coco", "optimizer.epochs=0.5") == 3


@pytest.mark.parametrize(
    ("loss", "kind"),
    [
        ("dcd", CandidateLists),
        ("ranking", CandidateLists),
        ("infonce", AllPairs),
        ("kl", AllPairs),
    ],
)
def test_a_loss_has_the_batches_it_works_on_and_needs_scores_or_not(inputs, teacher, loss, kind, tmp_path):
    recipe = training_recipe.load_recipe("tiny-student", [*FUSION, terms(loss)])
    assert isinstance(
        recipe_batches(CorpusSource(inputs.corpus, teacher.preprocess), recipe, inputs.caches[0]).pairs, kind
    )
    if LOSSES[loss].teacher:
        job = TrainingJob("distill", "tiny-student", [*FUSION, terms(loss)], tmp_path / "run")
        with pytest.raises(ConfigError, match=f"loss {loss} needs the teacher's scores; .*name a cache with --cache"):
            training.resolve(job, OpenInputs(inputs.corpus, [], teacher), OPTIONS)
    else:
        assert recipe_batches(CorpusSource(inputs.corpus, teacher.preprocess), recipe, None)[0].teacher_RC.isnan().all()


def read_all(refs: InputRefs) -> None:
    """Open the files, then load the teacher, as a training does."""
    corpora, caches = refs.open()
    refs.load_teacher(caches_of(corpora, caches)[0])


def test_inputs_that_do_not_belong_together_are_refused(
    scenes_corpus_dir, corpus, teacher_folder, cache_folder, tmp_path
):
    read_all(InputRefs(data=scenes_corpus_dir, caches=[cache_folder], teachers=[str(teacher_folder)]))
    with pytest.raises(StaleError, match="another corpus"):
        read_all(
            InputRefs(data=scenes_corpus_dir, max_images=10, caches=[cache_folder], teachers=[str(teacher_folder)])
        )
    with pytest.raises(StaleError, match="another corpus"):
        read_all(InputRefs(data=scenes_corpus_dir, split="val", caches=[cache_folder]))
    models.save(make_teacher(corpus.captions, seed=1), tmp_path / "other")
    with pytest.raises(StaleError, match="another teacher"):
        read_all(InputRefs(data=scenes_corpus_dir, caches=[cache_folder], teachers=[str(tmp_path / "other")]))
    with pytest.raises(StaleError, match="none of the caches was made with the teacher"):
        read_all(
            InputRefs(data=scenes_corpus_dir, caches=[cache_folder, cache_folder], teachers=[str(tmp_path / "other")])
        )
    with pytest.raises(StaleError, match="another teacher"):
        read_all(
            InputRefs(
                data=scenes_corpus_dir,
                caches=[cache_folder],
                teachers=[str(teacher_folder)],
                model_set=["max_text_len=9"],
            )
        )
    with pytest.raises(MissingError, match="there is no teacher cache"):
        read_all(InputRefs(data=scenes_corpus_dir, caches=[tmp_path / "absent"]))
    with pytest.raises(ConfigError, match="--model-set is for the model named by --teacher"):
        InputRefs(data=scenes_corpus_dir, model_set=["max_text_len=9"])


MISSING_REFS: dict[str, Any] = {
    "data": Path("absent/data"),
    "caches": [Path("absent/cache")],
    "teachers": ["absent/teacher"],
}
"""Files that are not there: an error about anything else shows that none was opened."""


@pytest.mark.parametrize(
    ("recipe", "sets", "refs", "message"),
    [
        ("nosuchrecipe", [], {}, "no recipe nosuchrecipe"),
        ("tiny-student", ["batch.sise=8"], {}, "unknown key batch.sise"),
        ("tiny-student", ["batch.size=1"], {}, "batch.size must lie in"),
        ("tiny-student", [], {"caches": []}, "needs the teacher's scores"),
        ("tiny-student", [], {"teachers": []}, "starts from its teacher, and no teacher is given"),
        ("tiny-student", ["batch.negatives=mined"], {}, "with a cache the negatives are those of the cache"),
    ],
)
def test_a_wrong_recipe_fails_before_any_file_is_opened(tmp_path, recipe, sets, refs, message):
    job, named = TrainingJob("distill", recipe, sets, tmp_path / "run"), InputRefs(**{**MISSING_REFS, **refs})
    with pytest.raises((ConfigError, ModelError), match=message):
        training.train_model(job, named, options=OPTIONS)
    assert not (tmp_path / "run").exists()


def test_a_run_says_in_what_its_cache_differs_and_how_much_of_a_batch_it_covers(inputs, tmp_path):
    lines: list[str] = []
    sets = [*DUAL, terms("infonce", "kl"), "optimizer.steps=2", "candidates.block_size=16", "candidates.seed=3"]
    run = distill(inputs, tmp_path / "run", *sets, say=lines.append)
    differences = [
        "candidates.block_size is 16 in the recipe and 8 in the cache",
        "candidates.seed is 3 in the recipe and 0 in the cache",
    ]
    assert lines == [
        *differences,
        "the cache covers 100% of the queries of a batch with a negative or more, and has scores of 100.0% of the "
        "negatives of a batch",
        "captions are checked, and every one counts: by 1,120 scores with other images, right captions cannot be told "
        "from wrong ones",
    ]
    assert run.facts()["inputs"]["different_candidates"] == differences
    assert (run.facts()["inputs"]["covered_queries"], run.facts()["inputs"]["scored_share"]) == (1.0, 1.0)
    assert [line["scored"] for line in run.metrics()] == [1.0, 1.0]


def test_a_run_whose_cache_is_its_recipes_says_no_difference_and_lists_their_queries(inputs, tmp_path):
    lines: list[str] = []
    sets = [*FUSION, "optimizer.steps=1"]
    run = distill(inputs, tmp_path / "run", *sets, say=lines.append)
    found = "the captions with batch.random_negatives = 7 candidates"
    assert lines[0] == f"the cache covers 100% of {found}, and has scores of 100.0% of the negatives of a batch"
    assert len(lines) == 3
    assert "different_candidates" not in run.facts()["inputs"]
    assert (run.facts()["inputs"]["covered_queries"], run.metrics()[0]["scored"]) == (1.0, 1.0)


def test_a_cache_that_covers_too_little_of_a_batch_or_too_few_queries_is_refused(corpus, teacher, tmp_path):
    own = ["candidates.kind=random", "candidates.per_query=1", "candidates.directions=['text']"]
    everything = [*DUAL, "batch.size=32", terms("infonce", "kl"), "optimizer.steps=2"]
    recipe = training.load_recipe("tiny-student", [*everything, *own])
    few = build_cache(corpus, teacher, tmp_path / "few", recipe.candidates)
    given = OpenInputs(corpus, [few], teacher)
    # Every image has one negative, and a batch has a fifth of all captions: about a fifth of the queries have theirs.
    with pytest.raises(
        ConfigError,
        match=r"covers [12]\d% of the queries .* of 0\.\d% of the negatives.*; 33% of the queries are expected; make",
    ):
        distill(given, tmp_path / "run", *everything)
    # Not the cache of the recipe's own candidates, which may have taken hours: the training says what it lacks.
    lines: list[str] = []
    distill(given, tmp_path / "own", *everything, *own, say=lines.append)
    assert re.fullmatch(r"warning: the teacher teaches nothing about [78]\d% of the queries: let it .*", lines[2])
    # With a margin, candidates are removed after they are scored, and lists become short.
    scores = inputs_of(corpus, teacher, tmp_path / "margin", CandidateConfig(per_query=6, relative_margin=0.0))
    lists = [
        "model.layers=[0, 2]",
        "batch.size=4",
        "batch.random_negatives=5",
        "batch.hard_negatives=1",
        "optimizer.steps=1",
    ]
    with pytest.raises(
        ConfigError,
        match=r"covers \d+% of the captions with .* = 5 candidates.*; 33% of the queries are expected; set batch\.rand",
    ):
        distill(scores, tmp_path / "run", *lists)
    assert not (tmp_path / "run").exists()


def inputs_of(corpus: Any, teacher: Any, folder: Path, config: CandidateConfig) -> OpenInputs:
    return OpenInputs(corpus, [build_cache(corpus, teacher, folder, config)], teacher)
