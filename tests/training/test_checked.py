"""Trainings on captions of which a teacher doubts some."""

from __future__ import annotations

import csv
import io
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from score_table import ScoreTable
from tiny import contents, make_corpus, make_pool, make_wide_dual, model_contents
from training_steps import TINY_DUAL
from typer.testing import CliRunner

from dcdctl.cli.app import app
from dcdctl.core import models
from dcdctl.core.data import Corpus
from dcdctl.core.errors import ConfigError
from dcdctl.core.teacher import CacheJob, Candidates, build, cache_scores, false_negative_filter, read_cache
from dcdctl.core.training import (
    InputRefs,
    Run,
    TrainingJob,
    TrainingOptions,
    load_recipe,
    picking,
    rounds,
    train_in_rounds,
    train_model,
)
from dcdctl.core.training.batches.all_pairs import AllPairs
from dcdctl.core.training.batches.lists import CandidateLists
from dcdctl.core.training.settled import choose_pairs

NUM_IMAGES, PER_IMAGE = 20, 6
NUM_WRONG = 30
WORDS = ("car", "dog", "hat", "cup", "box")
SETS = [
    *TINY_DUAL[:-1],
    *("loss.terms={ infonce = 1.0, kl = 1.0 }", "optimizer.steps=3", "batch.size=8"),
    *("candidates.kind=random", "candidates.per_query=6", "candidates.directions=['image']"),
]
FUNCTION = """
SHOWN = {shown!r}

def knows(images, texts):
    return [5.0 if image.tobytes()[:9] == SHOWN.get(text) else 0.0 for image, text in zip(images, texts)]
"""


def captions_of(image: int) -> list[str]:
    return [f"{WORDS[image % 5]} {image // 5} {number}" for number in range(PER_IMAGE)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Corpus:
    """Every fourth caption has moved by two images."""
    texts = [text for image in range(NUM_IMAGES) for text in captions_of(image)]
    texts[::4] = texts[12::4] + texts[:12:4]
    captions = [texts[first : first + PER_IMAGE] for first in range(0, len(texts), PER_IMAGE)]
    return make_corpus(tmp_path_factory.mktemp("checked") / "corpus", captions, has_colors=True)


@pytest.fixture(scope="module")
def true_C(corpus) -> Any:
    """The image that each caption is of."""
    return np.where(np.arange(120) % 4, corpus.caption_image, (corpus.caption_image + 2) % NUM_IMAGES)


@pytest.fixture
def refs(corpus, true_C, tmp_path, monkeypatch) -> InputRefs:
    """The captions, and a teacher that knows which image each is of."""
    shown = {
        text: corpus.image(image).tobytes()[:9] for text, image in zip(corpus.captions, true_C.tolist(), strict=True)
    }
    (tmp_path / "of_captions.py").write_text(FUNCTION.format(shown=shown))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "of_captions", raising=False)
    return InputRefs(data=corpus.folder, teachers=["of_captions:knows"])


def cached(refs: InputRefs, out: Path, *sets: str) -> InputRefs:
    """The same captions with a cache of the teacher's scores."""
    candidates = load_recipe("tiny-student", [*SETS, *sets]).candidates
    cache_scores(CacheJob(data=Path(*refs.places), out=out, candidates=candidates, teacher=refs.teachers[0]))
    return replace(refs, caches=[out], teachers=())


def train(refs: InputRefs, out: Path, *sets: str, resume: bool = False, **more: Any) -> Run:
    job = TrainingJob("distill", "tiny-student", [*SETS, *sets], out, resume)
    return train_in_rounds(job, refs, options=TrainingOptions(), **more)


def half_moved(corpus: Corpus, true_C: Any) -> Any:
    """The images that captions count for, if every other wrong one counts for none."""
    image_T = true_C.copy()
    image_T[::8] = -1
    return image_T


def pairs_of(corpus: Corpus, kind: str, scores: Any, image_T: Any, *sets: str) -> Any:
    recipe = load_recipe("tiny-student", [*SETS, *sets])
    assert recipe.loss.on_lists == (kind == "lists")
    return choose_pairs(corpus, recipe, scores, false_negative_filter(corpus, None), image_T=image_T)


def scores_of(true_C: Any) -> ScoreTable:
    scores = np.random.default_rng(0).normal(size=(NUM_IMAGES, len(true_C)))
    scores[true_C, np.arange(len(true_C))] += 9
    return ScoreTable(scores.astype(np.float32))


def test_captions_count_for_the_images_that_are_picked_for_them(corpus, true_C):
    image_T = half_moved(corpus, true_C)
    pairs = pairs_of(corpus, "pairs", scores_of(true_C), image_T)
    assert isinstance(pairs, AllPairs)
    seen = set()
    for step in range(200):
        found = pairs.of_step(step)
        images, texts = found.image_RC[:, 0], found.text_RC[0]
        assert np.array_equal(images, image_T[texts])
        # Another image whose caption this is by the corpus is a negative.
        assert not found.same_RC.any()
        seen |= set(texts.tolist())
    assert seen == set(np.flatnonzero(image_T >= 0).tolist())


LISTS = ("loss.terms={ dcd = 1.0 }", "batch.random_negatives=3", "batch.hard_negatives=2")


@pytest.mark.parametrize("has_candidates", [False, True])
def test_lists_have_the_picked_images_as_positives_and_never_as_negatives(corpus, true_C, has_candidates):
    image_T = half_moved(corpus, true_C)
    scores: Any = scores_of(true_C)
    if has_candidates:  # each caption with the eight images that follow its own, and each image with all other captions
        images = [sorted((int(own) + step) % NUM_IMAGES for step in range(1, 9)) for own in corpus.caption_image]
        texts = [np.flatnonzero(corpus.caption_image != image).tolist() for image in range(NUM_IMAGES)]
        scores = WithCandidates(scores.matrix, lists=Candidates(ragged(texts), ragged(images), {}))
    pairs = pairs_of(corpus, "lists", scores, image_T, *LISTS, 'batch.directions=["text", "image"]')
    assert isinstance(pairs, CandidateLists)
    seen = set()
    for step in range(60):
        found = pairs.of_step(step)
        assert np.array_equal(found.image_RC[:, 0], image_T[found.text_RC[:, 0]])
        assert (found.image_RC[:, 1:] != image_T[found.text_RC[:, 1:]]).all()
        assert np.array_equal(found.teacher_RC, scores.matrix[found.image_RC, found.text_RC])
        seen |= set(found.text_RC[:, 0].tolist())
    assert seen == set(np.flatnonzero(image_T >= 0).tolist())


class WithCandidates(ScoreTable):
    """A table of which only some pairs are candidates."""

    def __init__(self, matrix: Any, lists: Candidates) -> None:
        super().__init__(matrix)
        self.lists = lists

    @property
    def candidates(self) -> Candidates:
        return self.lists


def ragged(lists: list[list[int]]) -> Any:
    from dcdctl.core.data import RaggedArray

    rows = np.repeat(np.arange(len(lists)), [len(each) for each in lists])
    return RaggedArray.from_sorted(rows, np.concatenate(lists).astype(np.int64), len(lists))


def test_a_cache_says_which_captions_count_and_run_json_and_the_log_have_it(refs, true_C, tmp_path):
    with_all = cached(refs, tmp_path / "cache", "candidates.per_query=19")
    said: list[str] = []
    run = train(with_all, tmp_path / "run", say=said.append)
    facts = run.facts()["captions"]
    assert (facts["doubted"], facts["picks"], facts["limit"]) == (NUM_WRONG, NUM_WRONG, 2.5)
    assert len(facts["examples"]) == 10
    (line,) = [line for line in said if line.startswith("captions are checked")]
    assert "and 30 of 120 score 2.5 or less with their image: the scores have two modes, and at least" in line
    # A run that resumes finds the same, and one that counts every caption is another one.
    assert train(with_all, tmp_path / "run", resume=True).folder == run.folder
    every = train(with_all, tmp_path / "every", "captions.checked=none")
    assert "captions" not in every.facts()
    assert model_contents(every.model_folder) != model_contents(run.model_folder)


def test_captions_that_are_right_are_learned_as_without_a_check(refs, corpus, true_C, tmp_path):
    """The same bytes, by a teacher whose images of captions are those of the corpus."""
    texts = [[corpus.captions[text] for text in np.flatnonzero(true_C == image)] for image in range(NUM_IMAGES)]
    right = make_corpus(tmp_path / "right", texts, has_colors=True)
    clean = cached(replace(refs, data=right.folder), tmp_path / "cache")
    runs = [train(clean, tmp_path / name, *sets) for name, sets in (("auto", []), ("none", ["captions.checked=none"]))]
    assert runs[0].facts()["captions"]["doubted"] == 0
    assert model_contents(runs[0].model_folder) == model_contents(runs[1].model_folder)


def test_a_loss_of_scores_alone_reads_no_captions(refs, tmp_path):
    with_all = cached(refs, tmp_path / "cache")
    run = train(with_all, tmp_path / "run", "loss.terms={ kl = 1.0 }")
    assert "captions" not in run.facts()


def test_a_dual_teacher_checks_captions_too(refs, corpus, tmp_path):
    models.save(make_wide_dual(corpus.captions), tmp_path / "dual")
    said: list[str] = []
    run = train(replace(refs, teachers=[str(tmp_path / "dual")]), tmp_path / "run", say=said.append)
    assert any("captions are checked, and every one counts: by 3," in line for line in said)
    assert run.facts()["captions"]["doubted"] == 0


def test_a_limit_without_scores_is_refused(refs, corpus, tmp_path):
    alone = replace(refs, teachers=())
    with pytest.raises(ConfigError, match=r"captions.checked is 0.5, and no captions have scores of a teacher; leave"):
        train(alone, tmp_path / "run", "loss.terms={ infonce = 1.0 }", "captions.checked=0.5")
    assert not (tmp_path / "run").exists()
    pool = make_pool(tmp_path / "pool", [captions_of(image) for image in range(9)], has_colors=True)
    of_pool = cached(replace(refs, data=pool.folder), tmp_path / "cache")
    with pytest.raises(ConfigError, match="no captions have scores of a teacher"):
        train(of_pool, tmp_path / "run", "loss.terms={ kl = 1.0 }", "captions.checked=0.5", "pool.images=4")


def test_a_limit_above_all_scores_is_refused_and_the_scores_stay(refs, tmp_path):
    """Four scored images of a caption are too few for a pick."""
    few = "candidates.per_query=3"
    with_all = cached(refs, tmp_path / "cache", few)
    message = (
        "captions.checked is 5.0, and captions of two .*: 120 of 120 score no higher with their image; set it lower"
    )
    for sets in ([], LISTS):
        with pytest.raises(ConfigError, match=message):
            train(with_all, tmp_path / "run", few, "captions.checked=5", *sets)
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match=message):
        train(refs, tmp_path / "rounds", *BY_START, few, "captions.checked=5")
    assert read_cache(tmp_path / "rounds-rounds" / "cache-1").num_pairs == 4 * 120


def test_doubted_captions_say_nothing_about_the_picks_of_a_pool(corpus, true_C, tmp_path):
    """All captions' images by the corpus, a fourth of which are wrong, make half of the picks look wrong."""
    pool = make_pool(tmp_path / "pool", [captions_of(image) for image in range(NUM_IMAGES)], has_colors=True)
    of_pool, of_captions = scores_of(np.arange(120) // PER_IMAGE), scores_of(true_C)
    recipe = load_recipe("tiny-student", [*SETS, "pool.pseudo_positive_above=auto"])
    checked = picking.check_of(recipe, corpus, of_captions)
    assert checked is not None
    found = [picking.choose_threshold(recipe, [corpus, pool], [of_captions, of_pool], each) for each in (checked, None)]
    assert found[0] is not None
    assert found[0].value is not None
    assert "and the scores of 90 captions" not in found[0].reason  # too few
    assert found[1] is not None
    assert found[1].value is None


def inspect(*words: Any) -> Any:
    return CliRunner().invoke(app, ["inspect", *map(str, words)], catch_exceptions=False)


def test_inspect_lists_doubted_captions_as_csv_for_a_person_to_mend(refs, corpus, true_C, tmp_path):
    cached(refs, tmp_path / "cache", "candidates.per_query=19")
    data = ("--data", corpus.folder)
    result = inspect(tmp_path / "cache", *data, "--csv")
    assert result.exit_code == 0
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    wrong = np.flatnonzero(true_C != corpus.caption_image)
    expected = {
        (corpus.captions[text], corpus.image_ids[corpus.caption_image[text]], "0.0", corpus.image_ids[true_C[text]])
        for text in wrong
    }
    assert list(rows[0]) == ["caption", "image", "score", "fits_better"]
    assert {tuple(row.values()) for row in rows} == expected
    assert result.stderr.startswith("captions are checked, and 30 of 120 score 2.5 or less with their image: the ")
    # What a person reads, and what a program does.
    line = inspect(tmp_path / "cache", *data).stdout
    assert "captions are checked, and 30 of 120 score 2.5 or less" in line.replace("\n", " ")
    assert json.loads(inspect(tmp_path / "cache", *data, "--json").stdout)["captions"]["doubted"] == 30
    assert "captions" not in json.loads(inspect(tmp_path / "cache", "--json").stdout)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["CACHE", "--csv"], "lists captions, which --data DIR names"),
        (["CACHE", "--csv", "--data", "DATA", "--json"], "and --json are two forms: choose one"),
        (["DATA", "--csv"], "is for a teacher cache, and"),
    ],
)
def test_csv_needs_a_cache_and_its_captions(refs, corpus, tmp_path, words, message):
    cached(refs, tmp_path / "cache")
    places = {"CACHE": tmp_path / "cache", "DATA": corpus.folder}
    result = inspect(*(places.get(word, word) for word in words))
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.replace("│", " ").split())


def test_a_pool_has_no_captions_to_doubt(refs, tmp_path):
    pool = make_pool(tmp_path / "pool", [captions_of(image) for image in range(9)], has_colors=True)
    cached(replace(refs, data=pool.folder), tmp_path / "cache")
    result = inspect(tmp_path / "cache", "--data", pool.folder, "--csv")
    assert result.exit_code == 1
    assert "is a pool, which has no captions to check" in result.stderr
    assert inspect(tmp_path / "cache", "--data", pool.folder).exit_code == 0


BY_START = ["candidates.kind=embedding", "candidates.model=start"]


def test_a_second_round_asks_for_the_images_of_doubted_captions_alone(refs, corpus, true_C, tmp_path):
    said: list[str] = []
    run = train(refs, tmp_path / "run", *BY_START, say=said.append)
    folder = tmp_path / "run-rounds"
    assert sorted(path.name for path in folder.iterdir()) == ["cache-1", "cache-2", "run-0", "run-1"]
    first, second = read_cache(folder / "cache-1"), read_cache(folder / "cache-2")
    assert first.num_pairs == 7 * corpus.num_captions
    has_image_C = first.lookup(true_C, np.arange(120)) == 5
    assert 90 < has_image_C.sum() < 120
    old, new = (set(zip(cache.image_P.tolist(), cache.text_P.tolist(), strict=True)) for cache in (first, second))
    assert {text for _, text in new - old} == set(np.flatnonzero(~has_image_C).tolist())
    # What all captions were asked is shared by these, so each has a score with every image.
    assert len(new - old) == 13 * (~has_image_C).sum()
    facts = run.facts()
    assert (facts["captions"]["doubted"], facts["captions"]["picks"]) == (NUM_WRONG, NUM_WRONG)
    # Ten picks are too few to be sure of any, so after the first round all doubted captions are in need.
    assert [each["texts"] for each in facts["rounds"]] == [120, NUM_WRONG]
    # What the rounds made is no difference that a user should mend.
    assert not any("in the recipe and" in line for line in said)


def test_there_is_no_second_round_where_no_caption_is_doubted_or_none_is_checked(refs, corpus, true_C, tmp_path):
    train(refs, tmp_path / "none", *BY_START, "captions.checked=none")
    assert sorted(path.name for path in (tmp_path / "none-rounds").iterdir()) == ["cache-1", "run-0"]
    texts = [[corpus.captions[text] for text in np.flatnonzero(true_C == image)] for image in range(NUM_IMAGES)]
    right = make_corpus(tmp_path / "right", texts, has_colors=True)
    run = train(replace(refs, data=right.folder), tmp_path / "run", *BY_START)
    assert sorted(path.name for path in (tmp_path / "run-rounds").iterdir()) == ["cache-1", "run-0"]
    assert run.facts()["captions"]["doubted"] == 0


def interrupt(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("last", ["cache-1", "run-1", "cache-2", "run"])
def test_a_killed_check_resumes_to_the_same_bytes(refs, tmp_path, monkeypatch, last):
    """Each step is killed before its last file."""
    train(refs, tmp_path / "run", *BY_START)
    (tmp_path / "whole").mkdir()
    for name in ("run", "run-rounds"):
        (tmp_path / name).rename(tmp_path / "whole" / name)

    def ends(step: Any) -> Any:
        def run_step(job: Any, *arguments: Any, **more: Any) -> Any:
            if job.out.name != last:
                return step(job, *arguments, **more)
            with pytest.MonkeyPatch.context() as inner:
                inner.setattr(build, "seal", interrupt)
                inner.setattr("dcdctl.core.training.train.finish", interrupt)
                return step(job, *arguments, **more)

        return run_step

    with monkeypatch.context() as patch:
        patch.setattr(rounds, "train_model", ends(train_model))
        patch.setattr(rounds, "cache_scores", ends(cache_scores))
        with pytest.raises(KeyboardInterrupt):
            train(refs, tmp_path / "run", *BY_START)
    train(refs, tmp_path / "run", *BY_START, resume=True)
    for name in ("run-rounds/cache-1", "run-rounds/cache-2"):
        assert contents(tmp_path / name) == contents(tmp_path / "whole" / name)
    for name in ("run", "run-rounds/run-0", "run-rounds/run-1"):
        model, whole = (model_contents(root / name / "model") for root in (tmp_path, tmp_path / "whole"))
        assert model == whole
