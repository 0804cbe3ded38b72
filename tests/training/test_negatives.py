"""Mined negatives of lists: which may come, from which step on, for every kind of teacher."""

from __future__ import annotations

import os
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import processes
import pytest
import torch
from batches import Indices, list_batches, recipe_batches
from byte_level import byte_level_bpe
from encoders import make_pair, save_text, save_vision
from open_inputs import OpenInputs
from paths import FIXTURES
from tiny import make_corpus
from torch.testing import assert_close
from training_steps import KilledError, killed_after
from typer.testing import CliRunner

from dcdctl.cli.app import app
from dcdctl.core import artifacts, models, training
from dcdctl.core.data import Corpus, RaggedArray
from dcdctl.core.errors import ConfigError, ModelError, StaleError
from dcdctl.core.scoring import CorpusSource, embed, open_or_build
from dcdctl.core.teacher import CandidateConfig, Candidates, candidates
from dcdctl.core.training import TrainingJob, TrainingOptions, negatives, runs
from dcdctl.core.training import recipe as training_recipe
from dcdctl.core.training.batches.batch import UNSPLIT
from dcdctl.core.training.batches.step_pairs import CorpusBatches
from dcdctl.core.training.corpus_data import make_batches
from dcdctl.core.training.recipe import BatchConfig, Recipe

NUM_IMAGES = 12
MINED = BatchConfig(size=24, random_negatives=4, hard_negatives=1, negatives="mined")
LR = 1e-3
SETS = [
    "batch.size=4",
    "batch.random_negatives=3",
    f"optimizer.lr={LR}",
    "optimizer.steps=2",
    "optimizer.warmup_share=0.0",
]
MINE = ["batch.negatives=mined", "candidates.per_query=4"]


@pytest.fixture(scope="module")
def pairs_corpus(tmp_path_factory):
    """Image i has captions 2i and 2i + 1; the second captions of images 0 and 1 say the same."""
    texts = [[f"picture {i}", "a twin" if i < 2 else f"number {i}"] for i in range(NUM_IMAGES)]
    return make_corpus(tmp_path_factory.mktemp("made") / "corpus", texts)


@pytest.fixture(scope="module")
def hand_made():
    """The captions of the two next images (2i + 2 to 2i + 5 for image i), and these images (i + 1 and i + 2 for its
    captions)."""
    images, texts = np.arange(NUM_IMAGES), np.arange(2 * NUM_IMAGES)
    after_I, after_T = (
        (images[:, None] * 2 + [2, 3, 4, 5]) % (2 * NUM_IMAGES),
        (texts[:, None] // 2 + [1, 2]) % NUM_IMAGES,
    )
    return Candidates(
        RaggedArray.from_pairs(images.repeat(4), after_I.ravel(), NUM_IMAGES),
        RaggedArray.from_pairs(texts.repeat(2), after_T.ravel(), 2 * NUM_IMAGES),
    )


def lists_of(batches: CorpusBatches, step: int) -> tuple[np.ndarray, np.ndarray]:
    batch = batches[step]
    images: Any = batch.images
    texts: Any = batch.texts
    return images[batch.image_ix_RC.numpy()], texts[batch.text_ix_RC.numpy()]


def mined_in(batches: CorpusBatches, step: int) -> list[int]:
    """Of each list, how many negatives are among the query's hand-made ones."""
    image_BN, text_BN = lists_of(batches, step)
    lists = batches.pairs.mined
    return [
        len(set(texts[1:]) & set(lists.texts_of_image[images[0]]))
        if len(set(images)) == 1
        else len(set(images[1:]) & set(lists.images_of_text[texts[0]]))
        for images, texts in zip(image_BN, text_BN, strict=True)
    ]


@pytest.mark.parametrize(("direction", "num_mined"), [("text", 4), ("image", 2)])
def test_negatives_are_the_mined_ones_and_random_ones_where_these_are_too_few(
    pairs_corpus, hand_made, direction, num_mined
):
    config = replace(MINED, directions=(direction,))
    batches = list_batches(Indices(pairs_corpus), config, 0, None, mined=hand_made)
    for step in range(4):
        assert mined_in(batches, step) == [num_mined] * 24
        if direction == "image":
            images_BN, _ = lists_of(batches, step)
            assert all(len(set(images)) == 5 for images in images_BN)


@pytest.mark.parametrize("per_query", [1, 4])
def test_no_negative_is_the_querys_own_or_says_the_same_or_comes_twice(pairs_corpus, per_query):
    # Hand-made ones are taken as they are; the guards of mining are what leaves out twins.
    guarded = negatives.mine(
        Indices(pairs_corpus), Recipe(batch=MINED, candidates=CandidateConfig(per_query=per_query))
    )
    batches = list_batches(Indices(pairs_corpus), replace(MINED, random_negatives=8), 0, None, mined=guarded)
    texts_T = [" ".join(caption.split()) for caption in pairs_corpus.captions]
    for step in range(6):
        for images, texts in zip(*lists_of(batches, step), strict=True):
            positives = {texts_T[text] for text in pairs_corpus.captions_of(images[0])}
            if len(set(images)) == 1:
                assert not positives & {texts_T[text] for text in texts[1:]}
                assert len(set(texts)) == 9
            else:
                assert len(set(texts)) == 1
                assert len(set(images)) == 9
                assert not any(
                    texts_T[texts[0]] in {texts_T[text] for text in pairs_corpus.captions_of(image)}
                    for image in images[1:]
                )


def test_where_there_are_no_others_random_ones_come_again(tmp_path):
    few = make_corpus(tmp_path / "corpus", [["a"], ["b"], ["c"]])
    mined = negatives.mine(Indices(few), Recipe(batch=MINED, candidates=CandidateConfig(per_query=1)))
    images, _ = lists_of(list_batches(Indices(few), replace(MINED, directions=("image",)), 0, None, mined=mined), 0)
    assert all(set(row[1:]) == {0, 1, 2} - {row[0]} for row in images.tolist())


def test_what_is_mined_is_what_a_cache_would_hold_in_the_directions_of_the_batch(pairs_corpus):
    config = CandidateConfig(kind="lexical", per_query=3)
    recipe = Recipe(batch=replace(MINED, directions=("image",)), candidates=config)
    mined, cached = negatives.mine(Indices(pairs_corpus), recipe), candidates.draw_candidates(pairs_corpus, config)
    assert np.array_equal(mined.images_of_text.values, cached.images_of_text.values)
    assert len(mined.images_of_text.values) == 24 * 3
    assert not len(mined.texts_of_image.values)


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (["candidates.kind=blocks"], "candidates.kind blocks makes batches"),
        (["loss.terms={ infonce = 1.0 }"], "loss infonce is on all pairs of a batch"),
        (['candidates.directions=["text"]'], "candidates.directions lacks image"),
        (["candidates.relative_margin=0.1"], "candidates.relative_margin is for the candidates of a cache"),
    ],
)
def test_a_recipe_that_cannot_be_mined_for_leaves_no_run_folder(corpus, tmp_path, sets, message):
    small = ["model.hidden_size=16", "model.vocab_size=100"]
    with pytest.raises(ConfigError, match=message):
        training.train_model(
            TrainingJob("finetune-teacher", "tiny-teacher", [*small, *SETS, *MINE, *sets], tmp_path / "run"),
            OpenInputs(corpus, [], None),
            options=TrainingOptions(),
        )
    assert not (tmp_path / "run").exists()


SMALL = ["model.hidden_size=16", "model.num_layers=2", "model.vocab_size=100", *SETS, *MINE, "candidates.kind=lexical"]
STEPS = ["optimizer.steps=15", "optimizer.save_every=4"]


def trained(corpus: Any, out: Path, *sets: str, resume: bool = False, watch: Any = None) -> list[dict[str, float]]:
    """What a training with mined negatives logged, but for the time it took."""
    job = TrainingJob("finetune-teacher", "tiny-teacher", [*SMALL, *STEPS, *sets], out, resume)
    run = training.train_model(job, OpenInputs(corpus, [], None), options=TrainingOptions(), watch=watch)
    return [{name: value for name, value in line.items() if name != "seconds"} for line in run.metrics()]


def test_a_run_that_was_killed_goes_on_with_what_it_mined(corpus, tmp_path, monkeypatch):
    whole = trained(corpus, tmp_path / "whole")
    with pytest.raises(KilledError):
        trained(corpus, tmp_path / "killed", watch=killed_after(13))
    saved = (tmp_path / "killed" / "mined.safetensors").read_bytes()
    monkeypatch.setattr(candidates, "mine_candidates", lambda *_: pytest.fail("mined again"))
    assert trained(corpus, tmp_path / "killed", resume=True) == whole
    assert [line["step"] for line in whole] == [0, 10, 14]
    weights = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("whole", "killed")]
    assert weights[0] == weights[1]
    assert (
        saved
        == (tmp_path / "killed" / "mined.safetensors").read_bytes()
        == (tmp_path / "whole" / "mined.safetensors").read_bytes()
    )


def test_a_run_draws_what_it_mined_and_a_trial_mines_nothing(pairs_corpus, tmp_path):
    recipe = Recipe(batch=MINED, candidates=CandidateConfig(kind="lexical", per_query=4))
    parts = [recipe_batches(Indices(pairs_corpus), recipe, None)]
    mined = negatives.mine(Indices(pairs_corpus), recipe)
    negatives.save_mined(tmp_path, mined, pairs_corpus, recipe)
    batches = make_batches(parts, recipe, UNSPLIT, runs.Run(tmp_path))
    assert np.array_equal(batches.pairs.mined.images_of_text.values, mined.images_of_text.values)
    assert mined_in(batches, 0) == [4] * 24
    assert make_batches(parts, recipe, UNSPLIT, None).pairs.mined is None


def test_negatives_of_another_run_and_damaged_ones_are_refused(corpus, tmp_path):
    trained(corpus, tmp_path / "run", "optimizer.steps=1")
    for other, sets, message in (
        (corpus.subset(8), [], f"another corpus ({corpus.fingerprint[:12]}, not {corpus.subset(8).fingerprint[:12]})"),
        (corpus, ["candidates.seed=3"], "another candidates.seed (0, not 3)"),
        (corpus, ['batch.directions=["text"]'], 'another candidates.directions (["text", "image"], not ["text"])'),
    ):
        recipe = training_recipe.load_recipe("tiny-teacher", [*SMALL, *sets])
        with pytest.raises(
            StaleError, match=re.escape(f"mined.json was made with {message}; name another folder with --out")
        ):
            negatives.read_or_mine(tmp_path / "run", Indices(other), recipe)
    with pytest.raises(StaleError, match=r"was made with another inputs\.corpus"):
        trained(corpus.subset(8), tmp_path / "run", "optimizer.steps=1", resume=True)
    # Unfinished again: a finished run reads no negatives.
    shutil.rmtree(tmp_path / "run" / "model")
    path = tmp_path / "run" / "mined.safetensors"
    whole = path.read_bytes()
    for damaged in (whole[:-4], whole[:-1] + bytes([whole[-1] ^ 1])):
        path.write_bytes(damaged)
        with pytest.raises(StaleError, match=r"mined.safetensors is damaged: .*; delete mined.json there and resume"):
            trained(corpus, tmp_path / "run", "optimizer.steps=1", resume=True)
    path.with_name("mined.json").unlink()
    trained(corpus, tmp_path / "run", "optimizer.steps=1", resume=True)
    assert path.read_bytes() == whole
    shutil.rmtree(tmp_path / "run" / "model")
    path.unlink()
    with pytest.raises(StaleError, match=r"mined.safetensors is missing; delete mined.json there and resume"):
        trained(corpus, tmp_path / "run", "optimizer.steps=1", resume=True)


def test_mined_negatives_of_an_earlier_format_are_refused_by_name(pairs_corpus, tmp_path):
    artifacts.write_document(tmp_path / "mined.json", {"format": 2})
    message = (
        r"mined\.json is of format 2, this dcdctl reads format 3; delete mined\.json there and resume with --resume: "
        r"they are mined again"
    )
    with pytest.raises(StaleError, match=message):
        negatives.read_or_mine(tmp_path, Indices(pairs_corpus), Recipe(batch=MINED))


def test_candidates_that_cannot_be_had_leave_no_run_folder(corpus, tmp_path):
    with pytest.raises(ModelError, match=r"absent does not exist; name a folder"):
        trained(corpus, tmp_path / "run", "candidates.kind=embedding", f"candidates.model={tmp_path / 'absent'}")
    assert not (tmp_path / "run").exists()


TOGETHER = """
import os, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from dcdctl.cli.app import app
from dcdctl.core.teacher import candidates
mine = candidates.mine_candidates
def told(*arguments):
    with (Path(sys.argv[1]) / "miners").open("a") as file:
        file.write(os.environ["RANK"])
    return mine(*arguments)
candidates.mine_candidates = told
app(sys.argv[2:], prog_name="dcdctl")
"""


@pytest.mark.slow
def test_of_two_processes_one_mines_and_both_draw_from_it(corpus, scenes_corpus_dir, tmp_path):
    (tmp_path / "script.py").write_text(TOGETHER)
    sets = [word for assignment in [*SMALL, *STEPS] for word in ("--set", assignment)]
    words = [
        "finetune-teacher",
        "tiny-teacher",
        "--data",
        scenes_corpus_dir,
        "--out",
        tmp_path / "run",
        "--device",
        "cpu",
        *sets,
    ]
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        tmp_path / "script.py",
        tmp_path,
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = processes.run(
        [str(word) for word in [*launch, *words]], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "miners").read_text() == "0"
    losses = [line["loss"] for line in runs.Run(tmp_path / "run").metrics()]
    assert losses == pytest.approx([line["loss"] for line in trained(corpus, tmp_path / "alone")], rel=1e-4)


def test_with_a_cache_the_negatives_are_its_own():
    with pytest.raises(ConfigError, match="with a cache the negatives are those of the cache"):
        negatives.check(training_recipe.load_recipe("tiny-teacher", MINE), has_cache=True)
    negatives.check(training_recipe.load_recipe("tiny-student"), has_cache=True)


def test_vectors_of_features_are_those_of_the_images(corpus, tmp_path, monkeypatch):
    refs = save_vision("tokens", tmp_path / "vision"), save_text("bert", corpus.captions, tmp_path / "text")
    dual = models.new_frozen_dual(*refs, models.ProjectionSize(projection_dim=8), max_text_len=12)
    artifacts.write_document(tmp_path / "run" / "run.json", {"seed": 0})
    runs.finish(runs.Run(tmp_path / "run"), dual)
    expected = embed.embed_source(str(tmp_path / "run"), CorpusSource(corpus, dual.preprocess), torch.device("cpu"))
    stored = open_or_build(tmp_path / "features", corpus, dual)
    monkeypatch.setattr(Corpus, "images", lambda *_: pytest.fail("an image was read"))
    vectors = embed.embed_source(str(tmp_path / "run"), stored, torch.device("cpu"))
    # float16 keeps three digits.
    assert_close(vectors.images_ID, expected.images_ID, rtol=0, atol=2e-3)
    assert_close(vectors.texts_TD, expected.texts_TD, rtol=0, atol=2e-3)


def _finetune(data: Path, out: Path, *words: object) -> Any:
    settings = [word for assignment in SETS for word in ("--set", assignment)]
    line = [
        "finetune-teacher",
        "tiny-teacher",
        "--data",
        data,
        "--out",
        out,
        "--max-images",
        8,
        *settings,
        *words,
        "--device",
        "cpu",
    ]
    return CliRunner().invoke(app, [str(word) for word in line], catch_exceptions=False)


def _pretrained(name: str, corpus: Any, folder: Path) -> tuple[list[object], dict[str, Any]]:
    """A released checkpoint as pre-training leaves it, without a ranking head: the words that name it, and its
    weights."""
    content = torch.load(FIXTURES / f"{name}.ckpt", weights_only=True)
    state = {key: tensor for key, tensor in content["state_dict"].items() if not key.startswith("rank_output")}
    torch.save({**content, "state_dict": state}, folder / "pretrained.ckpt")
    is_meter = name.startswith("meter")
    tokenizer = byte_level_bpe(corpus.captions, 110) if is_meter else models.word_piece(corpus.captions, 80)
    tokenizer.save_pretrained(folder / "tokenizer")
    heads = ["--model-set", "text.num_attention_heads=3"] if is_meter else []
    return ["--teacher", folder / "pretrained.ckpt", "--model-set", f"tokenizer={folder / 'tokenizer'}", *heads], state


@pytest.mark.parametrize("name", ["vilt_tiny_a", "meter_tiny_a"])
def test_a_pretraining_checkpoint_goes_on_from_its_matching_row_with_mined_negatives(
    name, scenes_corpus_dir, corpus, tmp_path
):
    words, state = _pretrained(name, corpus, tmp_path)
    mined = [word for assignment in [*MINE, "candidates.kind=lexical"] for word in ("--set", assignment)]
    result = _finetune(scenes_corpus_dir, tmp_path / "run", *words, *mined)
    assert result.exit_code == 0, result.stderr
    losses = [line["ranking"] for line in runs.Run(tmp_path / "run").metrics()]
    assert len(losses) == 2
    assert np.isfinite(losses).all()
    head, row = models.load_fusion(tmp_path / "run").network.rank_output.weight, state["itm_score.fc.weight"][1:]
    # Adam moves a weight by about the learning rate a step.
    assert 0 < (head - row).abs().max() < 3 * LR


def test_a_co_attention_teacher_mines_by_another_runs_vectors(scenes_corpus_dir, corpus, tmp_path):
    models.save(make_pair(corpus.captions, tmp_path), tmp_path / "pair")
    refs = str(tmp_path / "vision"), str(tmp_path / "text")
    dual = models.new_frozen_dual(*refs, models.ProjectionSize(projection_dim=8), max_text_len=12)
    models.save(dual, tmp_path / "dual")
    sets = [*MINE, "candidates.kind=embedding", f"candidates.model={tmp_path / 'text'}"]
    result = _finetune(
        scenes_corpus_dir,
        tmp_path / "run",
        "--teacher",
        tmp_path / "pair",
        *[word for assignment in sets for word in ("--set", assignment)],
    )
    assert result.exit_code == 0, result.stderr
    assert "embed captions" in result.stderr
    assert not models.load_fusion(tmp_path / "run").network.rank_output.weight.equal(
        models.load_fusion(tmp_path / "pair").network.rank_output.weight
    )
