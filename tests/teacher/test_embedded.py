"""Dual teachers without a cache: the scores of a cache of all pairs, and the batches of a training without a
teacher."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from batches import recipe_batches
from duals import save_dual
from encoders import save_text, save_vision
from families import late
from open_inputs import OpenInputs
from tiny import contents, make_wide_dual, model_contents

from dcdctl.core import artifacts, models, training
from dcdctl.core.engines import Compute
from dcdctl.core.errors import ConfigError, ModelError, StaleError
from dcdctl.core.models import ImageBatch, ProjectionSize, TextBatch
from dcdctl.core.models import late as models_late
from dcdctl.core.models.networks import maxsim
from dcdctl.core.report import teachers_of
from dcdctl.core.scoring import CorpusSource, score_pairs
from dcdctl.core.teacher import (
    EmbeddedTeacher,
    EmbeddedTeachers,
    TeacherCache,
    cache_format,
    candidate_lists,
    candidates,
    embed_corpus,
)
from dcdctl.core.teacher.cache import TeacherEnsemble
from dcdctl.core.training import (
    InputRefs,
    TrainingJob,
    TrainingOptions,
    checkpoints,
    corpus_data,
    initial_model,
    load_recipe,
    loop,
)
from dcdctl.core.training.objective import PairObjective

SMALL = [
    "model.hidden_size=16",
    "model.num_layers=1",
    "model.num_text_layers=1",
    "model.num_heads=2",
    "model.projection_dim=8",
]
BATCH = ["batch.size=8", "batch.random_negatives=7", "batch.hard_negatives=3", "model.vocab_size=200"]
DUAL = ["model.kind=dual", "model.start=new", "model.layers=[]", *SMALL, *BATCH]


def noisy(model: Any, seed: int) -> Any:
    """The model with other weights, and vectors far from each other."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.fixture(scope="module")
def duals(corpus, tmp_path_factory) -> list[models.DualEncoder]:
    """Two dual encoders: one reads images of 48 px and 12 tokens, the other has frozen encoders of its own and reads 32
    px."""
    folder = tmp_path_factory.mktemp("encoders")
    refs = save_vision("tokens", folder / "vision"), save_text("bert", corpus.captions, folder / "text")
    frozen = models.new_frozen_dual(*refs, ProjectionSize(projection_dim=6), max_text_len=20)
    noisy(frozen.network.projections, 2)
    return [noisy(make_wide_dual(corpus.captions), 1), frozen]


@pytest.fixture(scope="module")
def embedded(duals, corpus) -> list[EmbeddedTeacher]:
    return [embed_corpus([("dual", model)], corpus, Compute()) for model in duals]


@torch.no_grad()
def logits_of(model: models.DualEncoder, corpus: Any) -> np.ndarray:
    """The logits of all images with all captions, by one forward pass."""
    source = CorpusSource(corpus, model.preprocess)
    images: ImageBatch = source.images(range(corpus.num_images))
    texts: TextBatch = source.texts(range(corpus.num_captions))
    bias = 0 if model.logit_bias is None else model.logit_bias
    logits_IT: torch.Tensor = model.logit_scale * model.embed_images(images) @ model.embed_texts(texts).T + bias
    return logits_IT.numpy()


def cache_of(logits_IT: np.ndarray, corpus: Any, folder: Path) -> TeacherCache:
    """A cache of all pairs, in one shard."""
    folder.mkdir()
    image, text = (index.flatten() for index in np.indices(logits_IT.shape))
    is_own = corpus.caption_image[text] == image
    role = np.where(is_own, candidate_lists.POSITIVE, candidate_lists.TEXT_CANDIDATE + candidate_lists.IMAGE_CANDIDATE)
    name = cache_format.pairs_name(0)
    cache_format.write_pairs(folder / name, cache_format.Pairs(image, text, logits_IT.flatten(), role))
    plan = {
        "images": corpus.num_images,
        "captions": corpus.num_captions,
        "images_per_shard": corpus.num_images,
        "corpus": "",
        "teacher": "",
    }
    plan["candidates"] = {"relative_margin": None}
    return TeacherCache(folder, plan, {"files": {name: artifacts.seal_of(folder / name, pairs=len(image))}})


@pytest.fixture(scope="module")
def caches(duals, corpus, tmp_path_factory) -> list[TeacherCache]:
    folder = tmp_path_factory.mktemp("caches")
    return [cache_of(logits_of(model, corpus), corpus, folder / str(i)) for i, model in enumerate(duals)]


class Uncached:
    """The scores of a cache of all pairs, to be drawn from like those of an embedded teacher."""

    candidates = None
    scored_pairs = None

    def __init__(self, cache: TeacherCache | TeacherEnsemble) -> None:
        self.plan, self.lookup = cache.plan, cache.lookup


def batches_of(corpus: Any, recipe: Any, scores: Any) -> tuple[Any, Any]:
    """The initial model of a recipe, and its batches."""
    model = initial_model.make_model(recipe, corpus.captions, None).eval()
    return model, recipe_batches(CorpusSource(corpus, model.preprocess), recipe, scores)


def test_scores_are_the_logits_of_the_model_for_any_shape_of_pairs(duals, embedded, corpus):
    rng = np.random.default_rng(0)
    image, text = rng.integers(0, 32, (40, 9)), rng.integers(0, 160, (40, 9))
    for model, teacher in zip(duals, embedded, strict=True):
        logits_IT = logits_of(model, corpus)
        assert logits_IT.std() > 0.5
        for pairs in (
            (image, text),
            (image[:, :1], text),
            (image[:, :1], text[:1]),
            (image[0], text[0]),
            (image[0, 0], text[0, 0]),
        ):
            np.testing.assert_allclose(teacher.lookup(*pairs), logits_IT[pairs], rtol=1e-4, atol=1e-4)
        for outside in ((-1, 0), (0, 160), (32, 0)):
            with pytest.raises(ValueError, match="indices must lie in"):
                teacher.lookup(*map(np.array, outside))


@torch.inference_mode()
def test_the_states_of_its_images_have_its_scores_with_captions_that_are_encoded_now(duals, embedded, corpus):
    image, text, token_model = np.arange(40) % 32, np.arange(40, 80), late(duals[0], is_pooled=False)
    scorers = [*map(models.DualScorer, duals), token_model]
    teachers = [*embedded, embed_corpus([("late", token_model)], corpus, Compute())]
    for scorer, teacher in zip(scorers, teachers, strict=True):
        texts = scorer.encode_texts(CorpusSource(corpus, scorer.preprocess).texts(text))
        scores = scorer.score_pairs(teacher.image_states, texts, torch.from_numpy(image), torch.arange(40))
        np.testing.assert_allclose(scores.numpy(), teacher.lookup(image, text), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("is_pooled", [True, False])
def test_a_late_interaction_teacher_has_the_scores_of_its_cache_of_all_pairs(duals, corpus, tmp_path, is_pooled):
    model = late(duals[0], is_pooled=is_pooled)
    source = CorpusSource(corpus, model.preprocess)
    image, text = (index.flatten() for index in np.indices((32, 160)))
    scores = score_pairs(model, source, image, text, compute=Compute()).reshape(32, 160)
    cache = cache_of(scores, corpus, tmp_path / "cache")
    teacher = embed_corpus([("late", model)], corpus, Compute(precision="bf16"))
    rows, columns = np.array([[3], [7], [3]]), np.array([[9, 0, 159]])
    for pairs in ((rows, columns), (rows[:, 0], columns[0]), np.indices((32, 160))):
        np.testing.assert_allclose(teacher.lookup(*pairs), cache.lookup(*pairs), rtol=1e-5, atol=1e-5)
    recipe = load_recipe("tiny-student", [*DUAL, "loss.terms={ infonce = 1.0, kl = 1.0 }"])
    losses = []
    for each in (teacher, cache):
        student, batches = batches_of(corpus, recipe, each)
        losses.append(float(PairObjective(recipe.loss)(student, batches[0])["kl"].detach()))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    with pytest.raises(ConfigError, match="late is a late-interaction model, and only scores of dual encoders are"):
        embed_corpus([("dual", duals[1]), ("late", model)], corpus, Compute())


@pytest.mark.parametrize("direction", ["text", "image"])
@pytest.mark.parametrize("is_pooled", [True, False])
def test_a_late_interaction_model_proposes_from_blocks_what_all_scores_say(
    duals, corpus, monkeypatch, is_pooled, direction
):
    """Of all pairs at once, the tokens of COCO's captions would be copied for every block of queries."""
    model = late(duals[0], is_pooled=is_pooled, position_norm=0.7)
    teacher = embed_corpus([("late", model)], corpus, Compute())
    scores_IT = teacher.lookup(*np.indices((32, 160)))
    config = candidates.CandidateConfig(kind="embedding", model="late", per_query=3, directions=(direction,))
    at_once = []

    def all_maxsims(images, mask_IN, texts, mask_TL, **options):
        at_once.append((len(images), len(texts)))
        return maxsim.all_maxsims(images, mask_IN, texts, mask_TL, **options)

    monkeypatch.setattr(models_late, "all_maxsims", all_maxsims)
    monkeypatch.setattr("dcdctl.core.teacher.embedded.STATES_AT_A_TIME", 7)
    monkeypatch.setattr("dcdctl.core.teacher.miners.MAX_MATRIX_ENTRIES", 20 * 160)
    found = candidates.mine_candidates(corpus, config, teacher)
    assert np.max(at_once) == 7
    own_IT = corpus.caption_image == np.arange(32)[:, None]
    ranked = np.where(own_IT, -np.inf, scores_IT)
    ranked, lists = (ranked, found.texts_of_image) if direction == "text" else (ranked.T, found.images_of_text)
    for query, scores in enumerate(ranked):
        assert sorted(lists[query].tolist()) == sorted(np.argsort(-scores, kind="stable")[:3].tolist())


@pytest.mark.parametrize("loss", ["kl", "dcd-kl", "margin-mse", "dcd", "dcd-released", "wsl"])
def test_losses_are_those_of_a_cache_that_holds_the_same_scores(embedded, caches, corpus, loss):
    recipe = load_recipe("tiny-student", [*DUAL, f"loss.terms={{ {loss} = 1.0 }}", "loss.temperature=2.0"])
    scores = [embedded[0], Uncached(caches[0]) if recipe.loss.on_lists else caches[0]]
    for step in (0, 3, 5):
        losses = []
        for each in scores:
            model, batches = batches_of(corpus, recipe, each)
            losses.append(float(PairObjective(recipe.loss)(model, batches[step])[loss].detach()))
        assert losses[0] == pytest.approx(losses[1], rel=2e-5)
        assert losses[0] > 0


def test_batches_of_all_pairs_are_those_of_a_training_without_a_teacher(embedded, corpus):
    recipe = load_recipe("tiny-student", [*DUAL, "loss.terms={ infonce = 1.0, kl = 1.0 }"])
    _, taught = batches_of(corpus, recipe, embedded[0])
    _, alone = batches_of(corpus, load_recipe("tiny-student", [*DUAL, "loss.terms={ infonce = 1.0 }"]), None)
    assert taught.pairs.batches_per_epoch == alone.pairs.batches_per_epoch
    for step in range(10):
        for ours, theirs in zip(taught.pairs._pairs(step), alone.pairs._pairs(step), strict=True):
            assert np.array_equal(ours, theirs)
        assert not taught[step].teacher_RC.isnan().any()
        assert alone[step].teacher_RC.isnan().all()
    assert taught.pairs.coverage(3).scored == taught.pairs.coverage(3).queries == 1.0


def test_lists_keep_the_hardest_of_fresh_draws_from_the_whole_corpus(embedded, corpus):
    """Every draw is seen without a teacher; with one, the positive and the hardest of the same draw are left."""
    sets = [*DUAL, "batch.directions=['text']", "batch.random_negatives=12"]
    _, taught = batches_of(corpus, load_recipe("tiny-student", [*sets, "loss.terms={ dcd = 1.0 }"]), embedded[1])
    _, alone = batches_of(corpus, load_recipe("tiny-student", [*sets, "loss.terms={ ranking = 1.0 }"]), None)
    negatives: dict[int, set[int]] = {}
    for step in range(60):
        drawn = [alone.pairs._list(sample) for sample in range(8 * step, 8 * step + 8)]
        image_BN, text_BN = (np.stack(indices) for indices in zip(*drawn, strict=True))
        if step % 20 == 0:
            scores_BN = embedded[1].lookup(image_BN, text_BN)
            expected = [[row[0], *sorted(row[1:], reverse=True)[:3]] for row in scores_BN.tolist()]
            np.testing.assert_allclose(taught[step].teacher_RC, expected, rtol=1e-5)
        for images, texts in zip(image_BN.tolist(), text_BN.tolist(), strict=True):
            negatives.setdefault(images[0], set()).update(texts[1:])
    # 15 lists of 12 per image: about 100 different ones of 160, where a cache of 12 would show the same 12.
    assert np.mean([len(texts) for texts in negatives.values()]) > 80
    for image, texts in negatives.items():
        assert not {corpus.captions[text] for text in texts} & {
            corpus.captions[text] for text in corpus.captions_of(image)
        }


def test_the_offset_of_a_siglip_is_part_of_its_scores(corpus, tmp_path):
    model = models.load_dual(save_dual("SigLIP", corpus.captions, tmp_path))
    model.network.logit_bias.data.fill_(-3.0)
    teacher = embed_corpus([("dual", model)], corpus, Compute())
    scores_IT = logits_of(model, corpus)
    assert scores_IT.mean() < -2.5
    np.testing.assert_allclose(teacher.lookup(np.arange(3)[:, None], np.arange(4)[None]), scores_IT[:3, :4], rtol=1e-5)
    np.testing.assert_allclose(teacher.moments, (scores_IT.mean(), scores_IT.std()), rtol=1e-4)


def test_several_teachers_are_averaged_as_their_caches_are(embedded, caches, duals, corpus):
    ensemble, expected = EmbeddedTeachers(embedded), TeacherEnsemble(caches)
    np.testing.assert_allclose(ensemble._moments, expected._moments, rtol=1e-4)
    everything = np.indices((32, 160))
    np.testing.assert_allclose(ensemble.lookup(*everything), expected.lookup(*everything), rtol=1e-3, atol=1e-4)
    assert ensemble.plan == [teacher.plan for teacher in embedded]
    with pytest.raises(
        ConfigError, match="the teachers a and c are one model, by their fingerprints; name each teacher once"
    ):
        embed_corpus([("a", duals[0]), ("b", duals[1]), ("c", duals[0])], corpus, Compute())


TERMS = [
    *DUAL,
    "loss.terms={ infonce = 1.0, kl = 2.0 }",
    "loss.temperature=2.0",
    "optimizer.steps=6",
    "optimizer.save_every=4",
]


def train(corpus: Any, out: Path, duals: Any, *sets: str, **job: Any) -> Any:
    plan = TrainingJob("distill", "tiny-student", [*TERMS, *sets], out, **job)
    return training.train_model(plan, OpenInputs(corpus, [], None, duals), options=TrainingOptions())


def losses_of(run: Any) -> list[dict[str, float]]:
    return [{name: value for name, value in line.items() if name != "seconds"} for line in run.metrics()]


def test_a_run_names_its_teachers_and_resumes_with_them_alone(duals, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "LOG_EVERY", 1)
    whole = train(corpus, tmp_path / "whole", duals)
    inputs = whole.facts()["inputs"]
    assert inputs["cache"] is None
    assert (inputs["covered_queries"], inputs["scored_share"]) == (1.0, 1.0)
    assert teachers_of(inputs) == [model.digest for model in duals]

    def killed(*arguments: Any, save: Any = checkpoints.save_checkpoint) -> None:
        save(*arguments)
        raise KeyboardInterrupt

    folder = tmp_path / "killed"
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save_checkpoint", killed)
        with pytest.raises(KeyboardInterrupt):
            train(corpus, folder, duals)
    for others in (duals[::-1], duals[:1]):
        with pytest.raises(StaleError, match=r"made with another inputs\.teachers"):
            train(corpus, folder, others, resume=True)
    resumed = train(corpus, folder, duals, resume=True)
    assert losses_of(resumed) == losses_of(whole)
    assert model_contents(resumed.model_folder) == model_contents(whole.model_folder)
    with monkeypatch.context() as patch:
        patch.setattr(corpus_data, "embed_corpus", None)  # a finished run needs no scores
        assert train(corpus, folder, duals, resume=True).is_finished


def test_a_teacher_reads_its_own_pixels_or_its_own_features(duals, embedded, corpus, tmp_path):
    """Student and teacher have other encoders; the features of both lie in one folder, and a second teacher over the
    same finds them."""
    pixels, frozen = duals
    refs = save_vision("map", tmp_path / "vision"), save_text("bert", corpus.captions, tmp_path / "text")
    sets = [
        f"model.vision={refs[0]}",
        f"model.text={refs[1]}",
        "model.vision_levels=[]",
        "model.vision_grid=2",
        "batch.size=8",
    ]
    for name, model in (("pixels", pixels), ("frozen", frozen)):
        models.save(model, tmp_path / name)
    teachers = [str(tmp_path / "frozen"), str(tmp_path / "pixels")]
    job = TrainingJob(
        "distill", "photos-self", [*sets, "model.projection_dim=8", "optimizer.steps=2"], tmp_path / "run"
    )
    options, lines = TrainingOptions(compute=Compute(features=tmp_path / "features")), []
    run = training.train_model(job, InputRefs(data=corpus.folder, teachers=teachers), options=options, say=lines.append)
    assert lines == [
        "102 of 160 captions are cut to 24 word pieces (model.max_text_len)",
        "captions are checked, and every one counts: by 3,967 scores with other images, right captions cannot be told "
        "from wrong ones",
        "the dual teacher scores every pair, so batches are drawn as without a teacher",
    ]
    assert [plan["features"] for plan in run.facts()["inputs"]["teachers"]] == ["float16", None]
    assert len(list((tmp_path / "features").iterdir())) == 2
    before = contents(tmp_path / "features")
    everything = np.indices((32, 160))
    for model, expected, close in ((pixels, embedded[0], {"rtol": 0}), (frozen, embedded[1], {"atol": 0.02})):
        teacher = embed_corpus([("dual", model)], corpus, options.compute)
        np.testing.assert_allclose(teacher.lookup(*everything), expected.lookup(*everything), **close)
    assert contents(tmp_path / "features") == before


def test_vectors_that_are_not_finite_are_refused_and_leave_no_run(duals, corpus, tmp_path):
    broken = copy.deepcopy(duals[1])
    with torch.no_grad():
        broken.network.projections.image_projection.bias[2] = torch.nan
    with pytest.raises(ModelError, match="vectors that are NaN or infinite"):
        train(corpus, tmp_path / "run", [broken])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("dual_teachers", "caches", "sets", "message"),
    [
        (2, 1, [], "--cache and --teacher dual teacher 1 both give scores"),
        (1, 0, ["loss.terms={ infonce = 1.0 }"], "dual teacher 1 has no fusion layers to start from"),
        (1, 0, ["candidates.relative_margin=0.1"], r"candidates\.relative_margin is for the candidates of a cache"),
        (
            0,
            0,
            [],
            "needs the teacher's scores; name a cache with --cache.*or with --teacher a dual encoder or a "
            "late-interaction model, which needs no cache",
        ),
    ],
)
def test_what_a_dual_teacher_cannot_do_is_refused_before_anything_is_read(
    duals, corpus, tmp_path, dual_teachers, caches, sets, message
):
    inputs = OpenInputs(corpus, [cast(Any, None)] * caches, None, duals[:dual_teachers])
    with pytest.raises((ConfigError, ModelError), match=message):
        training.resolve(
            TrainingJob("distill", "tiny-student", [*TERMS, *sets], tmp_path / "run"), inputs, TrainingOptions()
        )


def test_two_models_to_start_from_are_refused(tmp_path):
    job = TrainingJob("finetune-teacher", "tiny-teacher", [], tmp_path / "run")
    with pytest.raises(ConfigError, match="--teacher names 2 models, expected the one that the student starts from"):
        training.resolve(job, InputRefs(data=tmp_path, teachers=["scenes-vilt", "scenes-vilt"]), TrainingOptions())
