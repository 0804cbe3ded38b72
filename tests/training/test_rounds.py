"""Rounds of a training on a pool: mine with the student, score, train again."""

from __future__ import annotations

import functools
import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import command_line
import numpy as np
import pytest
import torch
from tiny import contents, make_corpus, make_pool, make_teacher, make_wide_dual, model_contents
from training_steps import TINY_DUAL

from dcdctl.core import models
from dcdctl.core.data import Corpus
from dcdctl.core.devices import CPU
from dcdctl.core.engines import Compute
from dcdctl.core.errors import ConfigError, DcdError, StaleError
from dcdctl.core.evaluation import EvalJob, run_evaluation
from dcdctl.core.teacher import CacheJob, CandidateConfig, build, cache_scores, read_cache
from dcdctl.core.training import (
    InputRefs,
    Run,
    TrainingJob,
    TrainingOptions,
    command_after_training,
    load_recipe,
    preview,
    rounds,
    runs,
    train_in_rounds,
)

CAPTIONS = [[f"a {color} {thing} {place}" for place in ("here", "there")] for color in ("red", "blue", "tan")
            for thing in ("car", "dog", "hat")]  # fmt: skip
SETS = [
    *TINY_DUAL[:-1],
    *("loss.terms={ kl = 1.0 }", "optimizer.steps=3", "pool.images=6", "pool.texts=8"),
    *("candidates.kind=random", "candidates.per_query=3", "candidates.directions=['image']"),
]


@pytest.fixture(scope="module")
def refs(tmp_path_factory) -> InputRefs:
    """A pool, and a fusion teacher, which cannot score every pair of a step."""
    folder = tmp_path_factory.mktemp("rounds")
    pool = make_pool(folder / "pool", CAPTIONS, has_colors=True)
    models.save(make_teacher(pool.captions), folder / "teacher")
    make_corpus(folder / "captioned", CAPTIONS, has_colors=True)
    return InputRefs(data=folder / "pool", teachers=[str(folder / "teacher")])


def train(refs: InputRefs, out: Any, *sets: str, resume: bool = False, **more: Any) -> Any:
    job = TrainingJob("distill", "tiny-student", [*SETS, *sets], out, resume)
    return train_in_rounds(job, refs, options=TrainingOptions(), **more)


def test_each_round_adds_what_the_student_of_the_one_before_finds(refs, tmp_path):
    said: list[str] = []
    run = train(refs, tmp_path / "run", "pool.rounds=3", "candidates.per_query=6", say=said.append)
    folder = tmp_path / "run-rounds"
    assert run.folder == tmp_path / "run"
    assert sorted(path.name for path in folder.iterdir()) == ["cache-1", "cache-2", "cache-3", "run-1", "run-2"]
    caches = [read_cache(folder / f"cache-{number}") for number in (1, 2, 3)]
    kinds = [(cache.plan["candidates"]["kind"], cache.plan["candidates"]["model"]) for cache in caches]
    assert [cache.plan["candidates"]["random_per_query"] for cache in caches] == [0, 1, 1]
    assert kinds == [("random", ""), *(("embedding", str(folder / f"run-{number}")) for number in (1, 2))]
    pairs = [set(zip(cache.image_P.tolist(), cache.text_P.tolist(), strict=True)) for cache in caches]
    assert pairs[0] < pairs[1] < pairs[2]
    assert [line for line in said if line.startswith("round")] == [
        f"round {number} of 3: {len(part):,} pairs have a score" for number, part in enumerate(pairs, start=1)
    ]
    # The run learned from the last cache.
    assert run.facts()["inputs"]["cache"] == caches[-1].plan


@pytest.mark.parametrize(
    ("sets", "kinds", "random_per_query"),
    [
        (["candidates.per_query=20"], ["random", "embedding", "embedding"], [0, 3, 3]),
        (["candidates.kind=blocks", "candidates.block_size=3"], ["blocks"] * 3, [0, 0, 0]),
    ],
)
def test_the_teacher_scores_in_float32_and_each_round_draws_with_another_seed(
    refs, tmp_path, monkeypatch, sets, kinds, random_per_query
):
    """Whatever the precision of the training and its stored features: these are of the student."""
    jobs: list[CacheJob] = []
    monkeypatch.setattr(rounds, "train_model", lambda job, *more, **options: Run(job.out))
    monkeypatch.setattr(
        rounds, "cache_scores", lambda job, **more: jobs.append(job) or SimpleNamespace(num_pairs=1, folder=job.out)
    )
    monkeypatch.setattr(
        rounds, "rehearse", lambda *_, **__: SimpleNamespace(notes=())
    )  # a new model has no encoders to store features of
    options = TrainingOptions(compute=Compute(device=CPU, precision="bfloat16", features=tmp_path / "features"))
    job = TrainingJob("distill", "tiny-student", [*SETS, *sets, "pool.rounds=3", "candidates.seed=7"], tmp_path / "run")
    train_in_rounds(job, refs, options=options)
    assert [job.candidates.seed for job in jobs] == [7, 8, 9]
    assert {(job.compute.precision, job.compute.features) for job in jobs} == {("float32", None)}
    assert [job.candidates.kind for job in jobs] == kinds
    assert [job.candidates.random_per_query for job in jobs] == random_per_query


def test_the_budget_is_of_all_rounds(refs, tmp_path):
    train(refs, tmp_path / "run", "pool.rounds=3", "pool.max_pairs=100")
    caches = [read_cache(tmp_path / "run-rounds" / f"cache-{number}") for number in (1, 2, 3)]
    counts = np.diff([0, *(cache.num_pairs for cache in caches)])
    # The third student finds few pairs that have no score yet.
    assert counts[:2].tolist() == [34, 33]
    assert 0 < counts[2] <= 33


def test_killed_rounds_resume_to_the_same_model(refs, tmp_path, monkeypatch):
    whole = train(refs, tmp_path / "whole", "pool.rounds=2")

    def killed(*arguments: Any, train: Any = rounds.train_model, **more: Any) -> Any:
        done = train(*arguments, **more)
        if done.folder.name == "run-1":
            patch.setattr(build, "seal", interrupt)
        return done

    with monkeypatch.context() as patch:
        patch.setattr(rounds, "train_model", killed)
        with pytest.raises(KeyboardInterrupt):
            train(refs, tmp_path / "killed", "pool.rounds=2")
    # The same folder by another path.
    resumed = train(refs, tmp_path / "whole" / ".." / "killed", "pool.rounds=2", resume=True)
    # The candidates of the second round name the folder of the first run, so only what they found is compared.
    scores = [read_cache(tmp_path / f"{name}-rounds" / "cache-2").score_P.tolist() for name in ("whole", "killed")]
    assert scores[0] == scores[1]
    assert model_contents(resumed.model_folder) == model_contents(whole.model_folder)


STEPS = ["run-0", "cache-captions", "cache-1", "run-1", "cache-2", "run"]
"""Of two rounds on a pool with captioned images, in order."""


def test_rounds_that_are_killed_in_each_step_resume_to_the_same_bytes(refs, tmp_path, monkeypatch):
    """Each step is killed before its last file."""
    both = replace(refs, data=Path(refs.data).with_name("captioned"), pool=refs.data)
    sets = [*BY_START, "loss.terms={ infonce = 1.0, kl = 1.0 }", "pool.rounds=2", "optimizer.save_every=1"]
    steps: list[str] = []
    folders = (tmp_path / "run", tmp_path / "run-rounds")

    def bytes_of(root: Path) -> dict[str, Any]:
        models_of = {name: model_contents(root / place / "model") for name, place in
                     (("run", "run"), ("run-0", "run-rounds/run-0"), ("run-1", "run-rounds/run-1"))}  # fmt: skip
        caches = {name: contents(root / "run-rounds" / name) for name in STEPS if name.startswith("cache")}
        return {**models_of, **caches}

    def noted(*arguments: Any, step: Any, **more: Any) -> Any:
        steps.append(arguments[0].out.name)
        return step(*arguments, **more)

    with monkeypatch.context() as patch:
        for name in ("train_model", "cache_scores"):
            patch.setattr(rounds, name, functools.partial(noted, step=getattr(rounds, name)))
        train(both, folders[0], *sets)
    assert steps == STEPS
    (tmp_path / "whole").mkdir()
    for folder in folders:
        folder.rename(tmp_path / "whole" / folder.name)

    for name in STEPS:
        with monkeypatch.context() as patch:
            kill_in(patch, name)
            with pytest.raises(KeyboardInterrupt):
                train(both, folders[0], *sets, resume=True)
    train(both, folders[0], *sets, resume=True)
    assert bytes_of(tmp_path) == bytes_of(tmp_path / "whole")


def kill_in(patch: pytest.MonkeyPatch, name: str) -> None:
    """End the step of this name before its last file, as a kill would."""

    def ends(*arguments: Any, step: Any, **more: Any) -> Any:
        if arguments[0].out.name != name:
            return step(*arguments, **more)
        with pytest.MonkeyPatch.context() as inner:
            for module, last in ((build, "seal"), (runs, "finish")):
                inner.setattr(module, last, interrupt)
            return step(*arguments, **more)

    for step in ("train_model", "cache_scores"):
        patch.setattr(rounds, step, functools.partial(ends, step=getattr(rounds, step)))


def interrupt(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_rounds_are_validated_with_a_cache_of_the_validation_split(refs, tmp_path):
    make_pool(tmp_path / "val", CAPTIONS[:4], split="val", has_colors=True)
    job = CacheJob(data=tmp_path / "val", split="val", out=tmp_path / "cache", teacher=refs.teachers[0],
                   candidates=CandidateConfig(per_query=3))  # fmt: skip
    cache_scores(job)
    sets = ["pool.rounds=2", "validation.metric=agreement", "validation.every=3"]
    judged = replace(refs, caches=[job.out], validation_data=[job.data])
    run = train(judged, tmp_path / "run", *sets)
    evaluated = EvalJob(model=str(run.folder), data=job.data, split="val", against=str(job.out))
    assert run.metrics()[-1]["val_ndcg"] == pytest.approx(run_evaluation(evaluated).agreement.ndcg, abs=1e-9)
    assert len(list((tmp_path / "run-rounds").iterdir())) == 3
    with pytest.raises(ConfigError, match=r"pool\.rounds is 2, and validation\.metric agreement needs a cache of the"):
        train(refs, tmp_path / "other", *sets)
    assert not list(tmp_path.glob("other*"))


def test_what_rounds_need_is_named(refs, tmp_path):
    with pytest.raises(
        ConfigError, match=r"asks a teacher .*pool\.rounds.*, and none is named; name it with --teacher"
    ):
        train(InputRefs(data=refs.data), tmp_path / "run", "pool.rounds=2")
    with pytest.raises(ConfigError, match=r"pool\.max_pairs is the budget of pool\.rounds, which is not set"):
        train(refs, tmp_path / "run", "pool.max_pairs=5")
    with pytest.raises(ConfigError, match=r"pool\.max_pairs is 2, fewer than pool\.rounds"):
        train(refs, tmp_path / "run", "pool.max_pairs=2", "pool.rounds=3")
    assert not list(tmp_path.iterdir())


STARTED = [
    *("model.num_text_layers=2", "model.projection_dim=256", "model.hidden_size=128"),
    *("model.num_layers=6", "model.vocab_size=4000"),
]
"""The sizes of the new model of SETS at their defaults."""


def test_rounds_teach_a_student_by_the_picks_of_the_teacher_alone(refs, tmp_path):
    picks = ["loss.terms={ infonce = 1.0 }", "pool.pseudo_positive_above=-1000", "pool.images=3"]
    said: list[str] = []
    run = train(refs, tmp_path / "run", "pool.rounds=2", *picks, say=said.append)
    assert "infonce" in run.metrics()[0]
    assert sum("18 of 18 texts of the pool have a sure pick" in line for line in said) == 1
    # Every pick is sure, so a second round has nothing to ask.
    assert [path.name for path in (tmp_path / "run-rounds").iterdir()] == ["cache-1"]


FUNCTION = """
from pathlib import Path

OWN = {own!r}

def knows(images, texts):
    _note(len(texts))
    return [5.0 if image.tobytes()[:9] == OWN[text] else 0.0 for image, text in zip(images, texts)]

def says_yes(images, texts):
    _note(len(texts))
    return [1.0] * len(texts)

def _note(count):
    with Path(__file__).with_suffix(".log").open("a") as file:
        print(count, file=file)
"""


@pytest.fixture
def functions(refs, tmp_path, monkeypatch) -> Path:
    """A module with two teachers: one knows the image of each text, the other finds that every image fits. The result
    is a file, with the number of pairs of each of their calls."""
    captioned = Corpus.open(Path(*refs.places).parent / "captioned", "train")
    own = {
        text: captioned.image(image).tobytes()[:9]
        for text, image in zip(captioned.captions, captioned.caption_image, strict=True)
    }
    (tmp_path / "of_rounds.py").write_text(FUNCTION.format(own=own))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "of_rounds", raising=False)
    return tmp_path / "of_rounds.log"


EVERY = ["candidates.per_query=9", "pool.rounds=1", "pool.images=3", "pool.pseudo_positive_above=auto"]


def test_auto_is_said_and_the_batches_have_the_same_number(refs, functions, tmp_path):
    said: list[str] = []
    refs = replace(refs, teachers=["of_rounds:knows"])
    train(refs, tmp_path / "run", *EVERY, "loss.terms={ infonce = 1.0 }", say=said.append)
    (line,) = [line for line in said if line.startswith("pool.pseudo_positive_above is auto")]
    assert "auto: 0, above which at least 87% of the picks are expected to be right" in line
    assert "18 of 18 texts of the pool have a sure pick, above 0" in said


def test_a_student_that_only_proposes_learns_from_what_is_more_often_right_than_wrong(refs, functions, tmp_path):
    """Of 9 images 8 are proposed, so that a further round has texts to ask for; no pick of the first round is as sure
    as asked, and InfoNCE has no other teacher."""
    refs = replace(refs, teachers=["of_rounds:knows"])
    sets = [*EVERY[2:], "candidates.per_query=8", "pool.rounds=2", "pool.precision=0.9"]
    with pytest.raises(ConfigError, match=r"by the best two scores of each text, at most .*, where 90% are asked"):
        train(refs, tmp_path / "run", *sets, "loss.terms={ infonce = 1.0 }")
    first = Run(tmp_path / "run-rounds" / "run-1")
    assert first.facts()["recipe"]["pool"]["precision"] == 0.5
    assert first.facts()["inputs"]["pseudo_positive_above"] == 0.0
    sets = ["candidates.per_query=8", "pool.rounds=2", "pool.images=3", "pool.pseudo_positive_above=auto"]
    run = train(refs, tmp_path / "other", *sets, "loss.terms={ infonce = 1.0, kl = 1.0 }")
    assert run.facts()["recipe"]["pool"]["precision"] == 0.8


def test_a_teacher_that_always_says_yes_is_asked_once_and_its_scores_teach_with_another_loss(refs, functions, tmp_path):
    refs = replace(refs, teachers=["of_rounds:says_yes"])
    with pytest.raises(
        ConfigError, match=r"learns from picks alone, and none is taken: by .*,kl=1\.0} --cache .*cache-1$"
    ):
        train(refs, tmp_path / "run", *EVERY, "loss.terms={ infonce = 1.0 }")
    asked = functions.read_text()
    assert sum(map(int, asked.split())) == 9 * 18
    # The command of the error.
    scored = replace(refs, caches=[tmp_path / "run-rounds" / "cache-1"])
    train(scored, tmp_path / "run", *EVERY, "loss.terms={ infonce = 1.0, kl = 1.0 }")
    assert functions.read_text() == asked


def test_the_texts_that_are_not_sure_share_the_images_of_a_further_round(refs, tmp_path):
    sets = ["candidates.per_query=2", "loss.terms={ infonce = 1.0, kl = 1.0 }", "pool.rounds=2", "pool.images=3"]
    train(refs, tmp_path / "all", *sets, "pool.pseudo_positive_above=-1000")
    first = read_cache(tmp_path / "all-rounds" / "cache-1")
    best_T = np.full(18, -np.inf)
    np.maximum.at(best_T, first.text_P, first.score_P)
    threshold = float(np.sort(best_T)[11])  # 6 texts have a higher score
    is_sure_T = best_T > threshold
    run = train(refs, tmp_path / "run", *sets, f"pool.pseudo_positive_above={threshold}")
    second = read_cache(tmp_path / "run-rounds" / "cache-2")
    counts = [np.bincount(cache.text_P, minlength=18) for cache in (first, second)]
    assert (counts[0] == 2).all()
    assert (counts[1][is_sure_T] == 2).all()
    # 2 for each of 18 texts are 3 for each of 12, of which some have a score.
    assert second.plan["candidates"]["per_query"] == 3
    assert (counts[1][~is_sure_T] >= 3).all()
    best_T = np.full(18, -np.inf)
    np.maximum.at(best_T, second.text_P, second.score_P)
    expected = [
        {"texts": 18, "proposals": 36, "scored": 36, "picks": 6, "picks_above": threshold, "precision": None},
        {
            "texts": 12,
            "proposals": 36,
            "scored": second.num_pairs - 36,
            "picks": int((best_T > threshold).sum()),
            "picks_above": threshold,
            "precision": None,
        },
    ]
    assert run.facts()["rounds"] == expected
    assert Run(tmp_path / "run-rounds" / "run-1").facts()["rounds"] == expected[:1]


BY_START = ["candidates.kind=embedding", "candidates.model=start"]


def test_the_start_proposes_the_pairs_of_the_first_round(refs, tmp_path, monkeypatch):
    models.save(make_wide_dual([text for texts in CAPTIONS for text in texts]), tmp_path / "start")
    # A folder may be named as the setting.
    monkeypatch.chdir(tmp_path)
    sets = [*STARTED, *BY_START, "model.start=start", "pool.rounds=2"]
    train(refs, tmp_path / "run", *sets)
    folder = tmp_path / "run-rounds"
    plans = [read_cache(folder / f"cache-{number}").plan["candidates"] for number in (1, 2)]
    assert [plan["model"] for plan in plans] == ["./start", str(folder / "run-1")]
    with pytest.raises(ConfigError, match=r"candidates\.model is start, and model\.start is new: a model with random"):
        train(refs, tmp_path / "other", *BY_START, "pool.rounds=2")
    with pytest.raises(ConfigError, match=r"candidates\.model is start, which proposes candidates in the rounds"):
        cache_scores(
            CacheJob(data=refs.data, out=tmp_path / "cache", teacher=refs.teachers[0],
                     candidates=CandidateConfig(kind="embedding", model="start"))
        )  # fmt: skip


def test_a_start_that_another_model_has_replaced_proposes_nothing_to_a_killed_training(refs, tmp_path):
    """The pairs would be those of the one, and the student from the other."""
    start, captions = tmp_path / "start", [text for texts in CAPTIONS for text in texts]
    models.save(make_wide_dual(captions), start)
    sets = [*STARTED, *BY_START, f"model.start={start}", "pool.rounds=1"]
    with pytest.MonkeyPatch.context() as patch:
        kill_in(patch, "cache-1")
        with pytest.raises(KeyboardInterrupt):
            train(refs, tmp_path / "run", *sets)
    # A damaged model is no other model: whoever reads it names the file.
    before, weights = models.digest_of_files(start), start / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert models.digest_of_files(start) == before
    shutil.rmtree(start)
    models.save(make_wide_dual(captions[:4]), start)
    with pytest.raises(StaleError, match=r"cache-1 was made with another candidates_model \([0-9a-f]{12}, not "):
        train(refs, tmp_path / "run", *sets, resume=True)
    assert not (tmp_path / "run").exists()


def test_with_captioned_images_their_student_proposes_first(refs, tmp_path):
    captioned = make_corpus(tmp_path / "captioned", CAPTIONS, has_colors=True)
    both = replace(refs, data=captioned.folder, pool=refs.data)
    picks = ["loss.terms={ infonce = 1.0, margin-mse = 0.1 }", "pool.pseudo_positive_above=-1000", "pool.images=3"]
    said: list[str] = []
    run = train(both, tmp_path / "run", *BY_START, *picks, "pool.rounds=1", "pool.max_pairs=80", say=said.append)
    assert "a student of the captioned images proposes the first pairs" in said
    folder = tmp_path / "run-rounds"
    # Of 40 pairs, as many for a caption as for a text of the pool; with 20, too few for the captions' own images.
    assert sorted(path.name for path in folder.iterdir()) == ["cache-1", "cache-captions", "run-0"]
    assert read_cache(folder / "cache-1").plan["candidates"]["model"] == str(folder / "run-0")
    alone = Run(folder / "run-0").facts()
    assert alone["recipe"]["loss"]["terms"] == {"infonce": 1.0}
    assert "pool" not in alone["inputs"]
    # From the start again, with the picks.
    assert {"infonce", "pool_infonce", "pool_margin-mse"} <= set(run.metrics()[0])


def test_a_limit_of_images_is_that_of_the_captioned_ones_beside_a_pool(refs, tmp_path):
    captioned = make_corpus(tmp_path / "captioned", CAPTIONS, has_colors=True)
    recipe = load_recipe("tiny-student", [*SETS, "pool.rounds=2"])
    beside = rounds.plan_rounds(replace(refs, data=captioned.folder, pool=refs.data, max_images=4), recipe)
    assert beside is not None
    assert beside.captions is not None
    assert (beside.place.open().num_images, beside.captions.open().num_images) == (9, 4)
    # A pool that is named as --data is what is limited.
    alone = rounds.plan_rounds(replace(refs, max_images=4), recipe)
    assert alone is not None
    assert (alone.place.open().num_images, alone.captions) == (4, None)


def test_captions_are_learned_with_the_negatives_that_a_student_of_them_proposes(refs, tmp_path):
    captioned = make_corpus(tmp_path / "captioned", CAPTIONS, has_colors=True)
    teachers = replace(refs, data=captioned.folder)
    late = ["model.kind=late", "model.token_dim=8", "model.position_norm=0.7"]
    terms = "loss.terms={ infonce = 1.0, margin-mse = 0.1 }"
    run = train(teachers, tmp_path / "run", *BY_START, *late, terms, "pool.images=none", "pool.texts=none")
    folder = tmp_path / "run-rounds"
    assert sorted(path.name for path in folder.iterdir()) == ["cache-1", "run-0"]
    proposer = models.load(folder / "run-0")
    assert proposer.kind == "late"
    cache = read_cache(folder / "cache-1")
    assert cache.plan["candidates"]["model"] == str(folder / "run-0")
    # The three best images of each caption, and its own.
    assert cache.num_pairs == 4 * captioned.num_captions
    images, texts = (
        proposer.preprocess.images([captioned.image(i) for i in range(9)]),
        proposer.preprocess.texts(CAPTIONS[0]),
    )
    with torch.no_grad():
        score_IT = proposer(images, texts, *(torch.arange(18) // 2, torch.arange(18) % 2)).view(9, 2)
    for text in range(2):
        others = [image for image in score_IT[:, text].argsort(descending=True).tolist() if image != 0][:3]
        assert sorted(cache.image_P[cache.text_P == text]) == sorted([0, *others])
    assert run.facts()["inputs"]["cache"] == cache.plan
    assert models.load(run.folder).kind == "late"
    # A teacher that is a dual encoder scores every pair, so there is nothing to propose.
    models.save(make_wide_dual(captioned.captions), tmp_path / "dual")
    train(replace(teachers, teachers=[str(tmp_path / "dual")]), tmp_path / "by-dual", *BY_START, *late, terms,
          "pool.images=none", "pool.texts=none")  # fmt: skip
    assert not (tmp_path / "by-dual-rounds").exists()


def test_a_pool_that_a_start_proposes_for_needs_its_rounds(refs, tmp_path):
    with pytest.raises(ConfigError, match=r"pool\.rounds is not set, and --data is a pool, which .*; set pool\.rounds"):
        train(refs, tmp_path / "run", *BY_START)
    assert not list(tmp_path.iterdir())


def test_a_dry_run_on_a_manifest_knows_the_steps_alone(refs, tmp_path):
    job = TrainingJob("distill", "tiny-student", [*SETS, *BY_START, "optimizer.steps=7"], tmp_path / "run")
    found = preview(job, replace(refs, data=Path("flickr30k")), TrainingOptions())
    assert (found.num_steps, found.most_pairs) == (7, None)
    assert "only counted" in " ".join(found.warnings())


def test_a_dry_run_of_rounds_says_how_many_pairs_the_teacher_scores_at_most(refs, tmp_path, monkeypatch):
    monkeypatch.setattr(rounds, "cache_scores", lambda *_, **__: pytest.fail("the teacher was called"))

    def asked(*sets: str) -> list[str]:
        job = TrainingJob("distill", "tiny-student", [*SETS, "pool.rounds=2", *sets], tmp_path / "run")
        return list(preview(job, refs, TrainingOptions()).lines())

    # Three of nine images for each of 18 texts, in each round.
    assert asked() == ["2 rounds, each with a training such as this; the teacher scores 108 pairs at most"]
    assert asked("pool.max_pairs=50")[0].endswith("the teacher scores 50 pairs at most")
    assert not list(tmp_path.iterdir())


def test_a_budget_that_leaves_the_first_round_no_block_is_refused(refs, tmp_path):
    """A block of N images and N texts of the pool has N x N pairs; of an odd budget the first round gets one more."""

    def plan(inputs: InputRefs, size: int, max_pairs: int) -> None:
        blocks = ["candidates.kind=blocks", f"candidates.block_size={size}", "candidates.captions_per_image=1"]
        sets = [*SETS, *blocks, "pool.rounds=2", f"pool.max_pairs={max_pairs}"]
        preview(TrainingJob("distill", "tiny-student", sets, tmp_path / "run"), inputs, TrainingOptions())

    plan(refs, 3, 17)
    with pytest.raises(ConfigError, match=r"pool\.max_pairs leaves 8 pairs for the first blocks, and each has 9"):
        plan(refs, 3, 16)
    # Half of the budget is for the captions, of which there are as many as texts.
    captioned = make_corpus(tmp_path / "captioned", CAPTIONS, has_colors=True)
    both = replace(refs, data=captioned.folder, pool=refs.data)
    plan(both, 4, 62)
    with pytest.raises(ConfigError, match=r"pool\.max_pairs leaves 15 pairs for the first blocks, and each has 16"):
        plan(both, 4, 60)


def test_the_commands_after_a_training_in_rounds_measure_it(refs, tmp_path):
    """Those for a teacher that cannot score every pair: its scores of the split, and the agreement with them."""
    run = train(refs, tmp_path / "run", "pool.rounds=1")
    job = TrainingJob("distill", "tiny-student", SETS, run.folder)
    lines = command_after_training(job, refs).split(" &&\n")
    assert len(lines) == 2
    for line in lines:
        command_line.run(line.removeprefix("dcdctl "))
    scores = read_cache(tmp_path / "run-scores")
    # All pairs of nine images and 18 texts are in one block.
    assert scores.num_pairs == 9 * 18
    measured = json.loads((run.folder / "pool.json").read_text())["agreement"]
    assert (measured["teacher"], measured["over"]) == (str(tmp_path / "run-scores"), "cached")


def test_what_is_named_with_against_by_mistake_is_answered_by_the_command_for_its_scores(refs, tmp_path):
    run = train(refs, tmp_path / "run", "pool.rounds=1")
    (tmp_path / "other").mkdir()
    other = make_pool(tmp_path / "other" / "pool", CAPTIONS[:5], split="test", has_colors=True)
    line = f"eval {run.folder} --data {other.folder} --split test --against"
    scored = f"dcdctl cache-teacher --data {other.folder} --split test --teacher %s --recipe pool-distilled --out CACHE"
    assert scored % refs.teachers[0] in command_line.error_of(line, refs.teachers[0])
    # The scores that the training learned from, which are of another split, and must not be deleted.
    error = command_line.error_of(line, tmp_path / "run-rounds" / "cache-1")
    assert scored % "TEACHER" in error
    assert "delete" not in error


def test_a_dry_run_of_rounds_shows_the_sizes_that_the_pool_has_and_a_time(refs, tmp_path):
    words = f"--data {refs.data} --teacher {refs.teachers[0]} --out {tmp_path / 'run'} --dry-run".split()
    sets = [word for text in (*SETS[:-5], *SETS[-3:], "optimizer.steps=4", "pool.rounds=2") for word in ("--set", text)]
    shown = command_line.run("distill tiny-student", *words, *sets, "--set", "batch.size=512").stdout
    assert "pool.images 9" in shown
    assert "batch size: 9\nimages per step: 9\n" in shown
    assert re.search(r"^about \d+:\d\d for each training, .* images/s in a trial$", shown, re.MULTILINE)
    with_captions = InputRefs(data=refs.data.parent / "captioned", pool=refs.data, teachers=refs.teachers)
    job = TrainingJob("distill", "tiny-student", [*SETS, "pool.rounds=2", "batch.size=512", "pool.images=4"], tmp_path)
    assert preview(job, with_captions, TrainingOptions()).work_per_step == ("images", 9 + 4)


ON_CAPTIONS = [*BY_START, "pool.rounds=none"]
REFUSED: dict[str, tuple[list[str], dict[str, Any], dict[str, Any], str]] = {
    "a loss of vectors": (["loss.terms={ embedding-cosine = 1.0 }"], {}, {}, "needs the vectors of one dual teacher"),
    "a loss that needs a positive": (["loss.terms={ infonce = 1.0, kl = 1.0 }"], {}, {}, "infonce needs a positive"),
    "picks for lists": (
        ["loss.terms={ dcd = 1.0 }", "pool.pseudo_positive_above=0"],
        {},
        {},
        "pool.pseudo_positive_above is for losses on all pairs",
    ),
    "a loss that needs a bias": (
        [*STARTED, "loss.terms={ sigmoid-kl = 1.0 }", "model.start=START"],
        {},
        {},
        "have no bias",
    ),
    "a width that the vectors have not": (["loss.dims=[8, 999]"], {}, {}, "loss.dims ends with 999"),
    "a start that is not there": ([*STARTED, "model.start=absent"], {}, {}, "absent does not exist"),
    "a start of another kind": ([*STARTED, "model.start=TEACHER"], {}, {}, "expected a dual"),
    "layers that the start lacks": (
        [*STARTED, "model.start=START", "model.vision_layers=[7]"],
        {},
        {},
        "model.vision_layers is",
    ),
    "layers that a fusion student lacks": (
        [*STARTED, "model.kind=fusion", "model.start=teacher", "model.layers=[0, 9]", "pool.rounds=1"],
        {},
        {},
        r"layers? 0 to 3|has 4 layers|\b9\b",
    ),
    "a part that the model lacks": (
        ["optimizer.lr_factors={ nothing = 2.0 }"],
        {},
        {},
        "lr_factors.nothing is no part",
    ),
    "no validation corpus": (["validation.every=1"], {"validation_data": [Path("absent")]}, {}, "absent"),
    "a validation split that is not there": (["validation.every=1", "validation.split=test"], {}, {}, "test"),
    "features of trained encoders": ([], {}, {"compute": Compute(features=Path("features"))}, "no encoders of its own"),
    "too many micro-batches": ([], {}, {"micro_batches": 99}, "batch.size is 8, too few for 99 micro-batches"),
    "no data": ([], {"data": Path("absent")}, {}, "absent"),
    "two teachers": ([], {"teachers": ["a/b", "c/d"]}, {}, "--teacher names 2 models"),
    "a fusion student that would propose": (
        [*STARTED, "model.kind=fusion", "model.start=teacher"],
        {},
        {},
        "a fusion student scores pairs, and proposes none",
    ),
    "a fusion student of captions that would propose": (
        [*STARTED, "model.kind=fusion", "model.start=teacher", *ON_CAPTIONS],
        {"data": "CAPTIONED"},
        {},
        "a fusion student scores pairs, and proposes none",
    ),
    "blocks by a late student": (
        ["candidates.kind=blocks", "model.kind=late", "model.token_dim=8"],
        {},
        {},
        "a late model has none",
    ),
    "a start without vectors of random candidates": (
        ["candidates.model=start"],
        {},
        {},
        "no model proposes candidates of kind random",
    ),
    "a model that has no vectors": (
        ["candidates.kind=embedding", "candidates.model=TEACHER"],
        {},
        {},
        "is a fusion scorer, expected",
    ),
    "a margin below positives of a pool": (
        ["candidates.relative_margin=0.5"],
        {"data": "CAPTIONED", "pool": "POOL"},
        {},
        "candidates.relative_margin is 0.5 and needs positives",
    ),
    "words of images that have none": (
        ["candidates.kind=lexical"],
        {"data": "CAPTIONED", "pool": "POOL"},
        {},
        "candidates.kind is lexical, and the paths and columns",
    ),
    "a pool without rounds": (
        [*ON_CAPTIONS],
        {"data": "CAPTIONED", "pool": "POOL"},
        {},
        "pool.rounds is not set, and --pool is a pool",
    ),
    "rounds on captions": ([], {"data": "CAPTIONED"}, {}, r"captioned \(train\) has captions; name a pool"),
    "lists in a direction without candidates": (
        [*ON_CAPTIONS, "loss.terms={ dcd = 1.0 }", "batch.random_negatives=3", "batch.hard_negatives=2"],
        {"data": "CAPTIONED"},
        {},
        "random_negatives is 3, and the candidates are 0 at most for each image",
    ),
    "lists longer than the candidates": (
        [
            "loss.terms={ mse = 1.0 }",
            "batch.directions=['image']",
            "batch.random_negatives=3",
            "batch.hard_negatives=2",
        ],
        {},
        {},
        "random_negatives is 3, and the candidates are 3 at most for each caption; set candidates.per_query",
    ),
    "a temperature of single scores": (
        ["loss.temperature=auto", "pool.max_pairs=30"],
        {},
        {},
        "loss.temperature is auto, .* no query has two; set a number, or set pool.max_pairs higher",
    ),
    "a budget below a block": (
        ["candidates.kind=blocks", "candidates.block_size=4", "pool.max_pairs=100"],
        {},
        {},
        "pool.max_pairs leaves 50 pairs for the first blocks, and each has 72; set pool.max_pairs",
    ),
}
"""Settings, inputs and options of a training that cannot begin, and what its error says."""


@pytest.mark.parametrize("name", REFUSED)
def test_a_training_that_cannot_begin_is_refused_before_the_teacher_scores(refs, tmp_path, monkeypatch, name):
    sets, inputs, options, message = REFUSED[name]
    monkeypatch.chdir(tmp_path)
    models.save(make_wide_dual(CAPTIONS[0]), tmp_path / "start")
    monkeypatch.setattr(rounds, "cache_scores", lambda *_, **__: pytest.fail("the teacher was called"))
    named = {"START": str(tmp_path / "start"), "TEACHER": refs.teachers[0]}
    sets = [functools.reduce(lambda line, name: line.replace(name, named[name]), named, line) for line in sets]
    folders = {"CAPTIONED": Path(refs.data).with_name("captioned"), "POOL": refs.data}
    inputs = {name: folders.get(value, value) if isinstance(value, str) else value for name, value in inputs.items()}
    job = TrainingJob("distill", "tiny-student", [*SETS, "pool.rounds=2", *sets], tmp_path / "run")
    with pytest.raises(DcdError, match=message):
        train_in_rounds(job, replace(refs, **inputs), options=TrainingOptions(**options))
    assert not list(tmp_path.glob("run*"))


@pytest.mark.parametrize("taken", ["notes.txt", "cache-1/notes.txt", "run-1/notes.txt"])
def test_a_folder_of_rounds_that_holds_something_else_is_left_as_it_is(refs, tmp_path, monkeypatch, taken):
    monkeypatch.setattr(rounds, "cache_scores", lambda *_, **__: pytest.fail("the teacher was called"))
    path = tmp_path / "run-rounds" / taken
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    with pytest.raises(StaleError, match=r"run-rounds.* holds something|run-rounds/cache-1 "):
        train(refs, tmp_path / "run", "pool.rounds=2")
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == [path]
