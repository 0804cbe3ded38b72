"""Every family through the commands, from a folder that its own library saved: cache, student, evaluation, re-ranking,
index, search, service, benchmark; a dual encoder also as the start of a student, as its teacher in memory, and as the
model of hard candidates.

All numbers are compared with those that the library computes from the same folder (tests/support/origins.py).
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache as memoized
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import QUICK_BENCH, document_of, error_of, run
from huggingface_hub import constants
from numpy.typing import NDArray
from open_clips import save_open_clip
from origins import ORIGINS, OWN_MODULE, OWN_SOURCE, Origin, OwnVectors
from starlette.testclient import TestClient
from tiny import make_corpus, make_splits
from torch.nn import functional

from dcdctl.core import models
from dcdctl.core.data import Corpus
from dcdctl.core.errors import ModelError
from dcdctl.core.search import FolderIndex, IndexSearcher
from dcdctl.core.search.torch_models import Reranker
from dcdctl.core.serve import ServiceConfig
from dcdctl.core.serve import app as service
from dcdctl.core.teacher import read_cache
from dcdctl.core.training import runs

SENTENCE = (
    "a large red circle is left of small blue square the tiny green star sits above big pink heart there moon "
    "below brown arrow"
)
WORDS = SENTENCE.split()
CAPTIONS = [[" ".join(WORDS[i : i + 4]), " ".join(WORDS[i + 3 : i + 6 + 2 * (i % 3)])] for i in range(8)]
"""All different, of 3, 4, 5 and 7 words."""
DEPTH = 3
RECIPE = """
[candidates]
kind = "random"
per_query = 4
[model]
kind = "dual"
start = "new"
hidden_size = 16
num_heads = 2
num_layers = 1
num_text_layers = 1
projection_dim = 8
image_size = 32
vocab_size = 120
[loss]
terms = { kl = 1.0 }
[batch]
size = 4
random_negatives = 3
hard_negatives = 2
[optimizer]
lr = 1e-3
steps = 1
"""
FEWER_LAYERS = (
    "--set model.kind=fusion --set model.start=teacher --set batch.size=4 --set batch.random_negatives=3 "
    "--set batch.hard_negatives=2 --set optimizer.steps=2 --set model.num_text_layers=2 --set model.projection_dim=256"
)
QUERY = CAPTIONS[3][1]
CPU = torch.device("cpu")
IN_HALF = 5e-4
"""An index stores vectors as float16, which rounds each number by up to 2^-11 of itself."""


@dataclass(frozen=True)
class Made:
    """A family's model in a folder, and what its library computes."""

    origin: Origin
    ref: str
    folder: Path
    corpus: Corpus

    @cached_property
    def vectors(self) -> OwnVectors:
        """The vectors of the library for all images and captions of the corpus, by a dual encoder."""
        assert self.origin.vectors is not None
        return self.origin.vectors(self.ref, self.corpus.images(range(len(CAPTIONS))), self.corpus.captions)

    @cached_property
    def logits_IT(self) -> NDArray[np.float32]:
        """The logits of the library for all images and captions of the corpus."""
        if self.origin.logits is None:
            return self.vectors.logits_IT.float().numpy()
        return (
            self.origin.logits(self.ref, self.corpus.images(range(len(CAPTIONS))), self.corpus.captions).float().numpy()
        )

    @property
    def recipe(self) -> Path:
        return self.folder / "recipe.toml"

    @property
    def on_data(self) -> str:
        """Options of commands that read the corpus."""
        return f"--data {self.corpus.folder} --device cpu"

    @property
    def scored(self) -> str:
        """The command that makes a cache, but for the teacher and the output."""
        return f"cache-teacher --recipe {self.recipe} {self.on_data}"

    def evaluate(self, line: str) -> dict[str, Any]:
        return document_of(f"eval {line} --split train {self.on_data}")

    def search(self, index: Path, options: str = "") -> list[dict[str, Any]]:
        """The hits of the query."""
        return document_of(f"search {index} '{QUERY}' {options} -k {len(CAPTIONS)} --device cpu")["hits"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Corpus:
    """Eight images of 32 px with two captions each."""
    return make_corpus(tmp_path_factory.mktemp("data") / "corpus", CAPTIONS, has_colors=True)


@pytest.fixture(scope="module", params=ORIGINS)
def made(request, corpus, tmp_path_factory) -> Iterator[Made]:
    origin, folder = ORIGINS[request.param], tmp_path_factory.mktemp("family")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        patch.syspath_prepend(folder / "saved")  # where a user's own scorer is
        made = Made(origin, origin.save(corpus.captions, folder / "saved"), folder, corpus)
        if origin.settings is not None:
            run(f"convert {made.ref} --out {folder}/converted", *origin.settings(corpus.captions, folder))
            made = replace(made, ref=str(folder / "converted"))
        made.recipe.write_text(RECIPE)
        yield made
        sys.modules.pop(OWN_MODULE, None)


@pytest.fixture(scope="module")
def cache(made) -> Path:
    """The cache of the family's scores."""
    run(f"{made.scored} --teacher {made.ref} --out {made.folder}/cache")
    return made.folder / "cache"


@pytest.fixture(scope="module")
def student(made, cache) -> Path:
    """A dual student trained on the cache."""
    run(f"distill {made.recipe} --cache {cache} --out {made.folder}/run {made.on_data}")
    return made.folder / "run"


@dataclass(frozen=True)
class Index:
    """An index, and the dual encoder whose vectors it has."""

    folder: Path
    model: Path


@pytest.fixture(scope="module")
def indexes() -> dict[str, Index]:
    """An index for the fusion scorers, which the first of them makes with its student."""
    return {}


@pytest.fixture(scope="module")
def index(made, student, indexes) -> Index:
    """An index by the family's dual encoder; for a fusion scorer, which does not decide its vectors, by the student of
    any."""
    name = "scorers" if made.origin.kind != "dual" else made.ref
    if name not in indexes:
        made_index = Index(made.folder / "index", student if made.origin.kind != "dual" else Path(made.ref))
        images = f"--images {made.corpus.folder} --split train --workers 0 --device cpu"
        run(f"index {made_index.model} {images} --out {made_index.folder}")
        indexes[name] = made_index
    return indexes[name]


@pytest.fixture(scope="module")
def splits(tmp_path_factory) -> Corpus:
    """The images of `corpus` with one caption each to train on, and with both to validate on."""
    folder = tmp_path_factory.mktemp("data") / "splits"
    return make_splits(folder, {"train": [texts[:1] for texts in CAPTIONS], "val": CAPTIONS}, has_colors=True)


def save_vit(captions: list[str], folder: Path) -> str:
    return str(save_open_clip("open_clip ViT", captions, folder, num_layers=1))


@pytest.fixture(scope="module")
def guide(corpus, tmp_path_factory) -> Made:
    """A ViT of open_clip on the other side of a training: as the teacher of a start, and as the start under a
    teacher."""
    folder, origin = tmp_path_factory.mktemp("guide"), replace(ORIGINS["open_clip"], model_type="guide", save=save_vit)
    return Made(origin, origin.save(corpus.captions, folder / "saved"), folder, corpus)


@memoized
def cosines(model: Path, corpus: Corpus) -> NDArray[np.float32]:
    """Cosines of a dual student's vectors, I x T."""
    dual = models.load_dual(model)
    with torch.no_grad():
        images_ID = dual.embed_images(dual.preprocess.images(corpus.images(range(len(CAPTIONS)))))
        return (images_ID @ dual.embed_texts(dual.preprocess.texts(corpus.captions)).T).numpy()


def recalls(
    first_QG: NDArray[np.float32], second_QG: NDArray[np.float32], is_own_QG: NDArray[np.bool_]
) -> dict[str, float]:
    """Recalls of one score that puts the first `DEPTH` above the rest, by the second model within and by the first
    below."""
    scores_QG, top_QK = first_QG.copy(), np.argsort(-first_QG, axis=1)[:, :DEPTH]
    np.put_along_axis(scores_QG, top_QK, 1000 + np.take_along_axis(second_QG, top_QK, axis=1), axis=1)
    best_Q1 = np.where(is_own_QG, scores_QG, -np.inf).max(axis=1, keepdims=True)
    rank_Q = 1 + (~is_own_QG & (scores_QG >= best_Q1)).sum(axis=1)
    return {"mean_rank": float(rank_Q.mean()), **{f"R@{k}": 100 * float((rank_Q <= k).mean()) for k in (1, 5, 10)}}


def check_recalls(
    document: dict[str, Any], first_IT: NDArray[np.float32], second_IT: NDArray[np.float32], corpus: Corpus
) -> None:
    is_own_IT = corpus.caption_image == np.arange(len(CAPTIONS))[:, None]
    expected = {
        "text_retrieval": recalls(first_IT, second_IT, is_own_IT),
        "image_retrieval": recalls(first_IT.T, second_IT.T, is_own_IT.T),
    }
    for key, measures in expected.items():
        assert {name: document[key][name] for name in measures} == pytest.approx(measures), key


def test_a_cache_holds_the_logits_of_the_library(made, cache):
    scored = read_cache(cache, corpus=made.corpus)
    assert min(made.logits_IT.std(axis=axis).min() for axis in (0, 1)) > 0.01
    np.testing.assert_allclose(scored.score_P, made.logits_IT[scored.image_P, scored.text_P], rtol=1e-4, atol=1e-4)
    verified = run(f"verify {cache} --scores 5 --data {made.corpus.folder} --teacher {made.ref} --device cpu").stdout
    assert float(re.search(r"5 pairs computed again, the largest difference is (\S+)", verified)[1]) < 1e-4


def test_eval_ranks_by_the_logits_of_the_library(made, student):
    assert runs.Run(student).metrics()[-1]["kl"] > 0
    document = made.evaluate(f"{student} --rerank {made.ref} --depth {DEPTH}")
    check_recalls(document, cosines(student, made.corpus), made.logits_IT, made.corpus)
    assert document["reranker"] == made.ref
    if made.origin.kind == "dual":
        check_recalls(made.evaluate(made.ref), made.logits_IT, made.logits_IT, made.corpus)


def test_search_ranks_by_the_logits_of_the_library(made, index):
    text = made.corpus.captions.index(QUERY)
    logits_I = made.logits_IT[:, text]
    if made.origin.kind == "dual":
        hits, own_I = made.search(index.folder), (made.vectors.images_ID @ made.vectors.texts_TD[text]).numpy()
        assert [hit["row"] for hit in hits] == np.argsort(-logits_I).tolist()
        np.testing.assert_allclose([hit["score"] for hit in hits], np.sort(own_I)[::-1], atol=IN_HALF)
        return
    hits = made.search(index.folder, f"--rerank {made.ref} --depth {DEPTH}")
    found = np.argsort(-cosines(index.model, made.corpus)[:, text])
    expected = sorted(found[:DEPTH], key=lambda image: -logits_I[image])
    assert [hit["row"] for hit in hits] == [*expected, *found[DEPTH:]]
    np.testing.assert_allclose([hit["reranked"] for hit in hits[:DEPTH]], logits_I[expected], rtol=1e-4, atol=1e-4)


def test_the_service_answers_with_the_scores_of_the_library(made, index):
    searcher, text, everything = (
        IndexSearcher.for_index(FolderIndex.open(index.folder), device=CPU),
        made.corpus.captions.index(QUERY),
        {"k": len(CAPTIONS)},
    )
    if made.origin.kind != "dual":
        reranker = Reranker.open(made.ref, depth=DEPTH, device=CPU)
        client = TestClient(
            service.build(replace(searcher, reranker=reranker), ServiceConfig()), base_url="http://localhost"
        )
        found = client.get("/search", params={"text": QUERY, **everything}).json()["results"]
        logits = {hit["row"]: hit["reranked"] for hit in found[:DEPTH]}
        assert logits == pytest.approx({row: made.logits_IT[row, text] for row in logits}, rel=1e-4, abs=1e-4)
        assert list(logits.values()) == sorted(logits.values(), reverse=True)
        return
    client = TestClient(service.build(searcher, ServiceConfig()), base_url="http://localhost")
    images_ID = made.vectors.images_ID
    for params, own_I in (
        ({"text": QUERY}, images_ID @ made.vectors.texts_TD[text]),
        ({"row": 3}, images_ID @ images_ID[3]),
    ):
        found = client.get("/search", params={**params, **everything}).json()["results"]
        assert [hit["row"] for hit in found] == own_I.argsort(descending=True).tolist()
        np.testing.assert_allclose([hit["score"] for hit in found], own_I.sort(descending=True).values, atol=IN_HALF)


def test_a_benchmark_runs_the_family_and_counts_its_vectors(made, student):
    timed = made.ref if made.origin.kind == "dual" else student
    found = document_of(f"bench {timed} --teacher {made.ref} --split train {made.on_data} {QUICK_BENCH}")
    assert (found["teacher"]["kind"], found["student"]["kind"]) == (made.origin.kind, "dual")
    assert all(found[side]["throughput"][0]["pairs_per_s"] > 0 for side in ("teacher", "student"))
    if made.origin.kind == "dual":
        for side in ("teacher", "student"):
            per_million = found[side]["footprint"]["index_bytes_per_million_images"]
            assert per_million["float32"] == 4_000_000 * made.vectors.images_ID.shape[1]


def kl(teacher_QG: NDArray[np.float32], student_QG: NDArray[np.float32]) -> float:
    """The divergence of two matrices of logits, mean of rows and of columns, by torch."""
    pairs = (
        (torch.tensor(teacher_QG), torch.tensor(student_QG)),
        (torch.tensor(teacher_QG.T), torch.tensor(student_QG.T)),
    )
    options = {"reduction": "batchmean", "log_target": True}
    return float(sum(functional.kl_div(of.log_softmax(1), p.log_softmax(1), **options) for p, of in pairs) / 2)


def first_step(made: Made, splits: Corpus, start: Made, teacher: Made) -> dict[str, float]:
    """The metrics of one step over all images, each with its first caption; those of the validation come before the
    step."""
    name = f"{start.origin.model_type} by {teacher.origin.model_type}"
    settings = (
        f"--set model.start={start.ref} --set batch.size={len(CAPTIONS)} --set optimizer.steps=1 "
        "--set validation.every=1 --set validation.at_start=true"
    )
    if start.origin.has_dropout:
        settings += " --set model.dropout=0"
    if start.origin.model_type == "dcdctl-encoder-dual":
        # Its text encoder, if trained, has dropout of its own.
        settings += " --set model.trained=projections"
    words = f"--teacher {teacher.ref} --data {splits.folder} --device cpu {settings}"
    run(f"distill {made.recipe} {words} --out '{made.folder / name}'")
    return runs.Run(made.folder / name).metrics()[0]


def test_a_student_starts_as_the_encoder_of_the_library(made, splits, guide):
    if made.origin.kind != "dual":
        return
    if made.origin.model_type == "SentenceTransformer":
        line = f"distill {made.recipe} --teacher {guide.ref} --set model.start={made.ref} {made.on_data}"
        assert "sentence-transformers" in error_of(f"{line} --out {made.folder}/none")
        return
    first = first_step(made, splits, made, guide)
    is_own_IT = made.corpus.caption_image == np.arange(len(CAPTIONS))[:, None]
    sides = {"text": (made.logits_IT, is_own_IT), "image": (made.logits_IT.T, is_own_IT.T)}
    for direction, (scores_QG, is_own_QG) in sides.items():
        own = recalls(scores_QG, scores_QG, is_own_QG)
        assert {k: first[f"start_{direction}_r{k}"] for k in (1, 5, 10)} == pytest.approx(
            {k: own[f"R@{k}"] for k in (1, 5, 10)}
        )
    assert first["kl"] == pytest.approx(kl(guide.logits_IT[:, ::2], made.logits_IT[:, ::2]), rel=1e-3)


def test_a_dual_encoder_teaches_without_a_cache_the_logits_of_its_library(made, splits, guide):
    if made.origin.kind == "dual":
        found = first_step(made, splits, guide, made)["kl"]
        assert found == pytest.approx(kl(made.logits_IT[:, ::2], guide.logits_IT[:, ::2]), rel=1e-3)


def test_hard_candidates_are_the_nearest_by_the_vectors_of_the_library(made):
    if made.origin.kind != "dual":
        return
    with pytest.MonkeyPatch.context() as patch:
        (made.folder / f"{OWN_MODULE}.py").write_text(OWN_SOURCE)
        patch.syspath_prepend(made.folder)
        sets = f"--set candidates.kind=embedding --set candidates.model={made.ref}"
        run(f"{made.scored} --teacher {OWN_MODULE}:score --out {made.folder}/hard {sets}")
    candidates = read_cache(made.folder / "hard", corpus=made.corpus).candidates
    is_own_IT = made.corpus.caption_image == np.arange(len(CAPTIONS))[:, None]
    scores_IT = np.where(is_own_IT, -np.inf, made.logits_IT)
    for lists, scores_QG in ((candidates.texts_of_image, scores_IT), (candidates.images_of_text, scores_IT.T)):
        for query, nearest in enumerate(np.argsort(-scores_QG, axis=1)[:, :4].tolist()):
            assert sorted(lists[query].tolist()) == sorted(nearest)


def test_a_fusion_scorer_has_a_student_of_fewer_layers(made, cache):
    if made.origin.kind == "dual":
        return
    line = (
        f"distill {made.origin.recipe or made.recipe} --teacher {made.ref} --cache {cache} --out {made.folder}/other "
        f"{made.on_data} {FEWER_LAYERS} --set 'model.layers={list(made.origin.layers)}'"
    )
    if made.origin.kind != "fusion":
        assert "has no fusion layers" in error_of(line)
        return
    before = student_or_refusal(models.load(made.ref), made.origin.layers)
    if isinstance(before, str):
        assert before in error_of(line)
        return
    run(line)
    after = models.load(made.folder / "other").state_dict()
    trained = {name for name, parameter in before.named_parameters() if parameter.requires_grad}
    assert {name for name, weight in before.state_dict().items() if not weight.equal(after[name])} == trained


def student_or_refusal(model: models.FusionScorer, layers: Sequence[int]) -> models.FusionScorer | str:
    """A student of some layers, or the reason why there is none."""
    try:
        return model.student(layers)
    except ModelError as error:
        return str(error)


@pytest.mark.parametrize("made", ["CrossEncoder"], indirect=True)
def test_settings_reach_the_teacher_of_a_cache_and_the_re_ranker(made, student, index):
    scorer = models.load_scorer(made.ref, {"order": "text-first"})
    image_P, text_P = (torch.from_numpy(index.flatten()) for index in np.indices(made.logits_IT.shape))
    states = scorer.encode_images(scorer.preprocess.images(made.corpus.images(range(len(CAPTIONS)))))
    with torch.no_grad():
        scores_P = scorer.score_pairs(
            states, scorer.encode_texts(scorer.preprocess.texts(made.corpus.captions)), image_P, text_P
        )
    other_IT = scores_P.view(made.logits_IT.shape).numpy()
    assert np.abs(other_IT - made.logits_IT).max() > 0.01

    run(f"{made.scored} --teacher {made.ref} --model-set order=text-first --out {made.folder}/text-first")
    scores = read_cache(made.folder / "text-first")
    np.testing.assert_allclose(scores.score_P, other_IT[scores.image_P, scores.text_P], rtol=1e-4, atol=1e-4)

    reranked = f"--rerank {made.ref} --rerank-set order=text-first --depth {DEPTH}"
    check_recalls(
        made.evaluate(f"{student} {reranked} --out {made.folder}/cascade"),
        cosines(student, made.corpus),
        other_IT,
        made.corpus,
    )
    logits = {hit["row"]: hit["reranked"] for hit in made.search(index.folder, reranked) if hit["reranked"] is not None}
    text = made.corpus.captions.index(QUERY)
    assert logits == pytest.approx({row: other_IT[row, text] for row in logits}, rel=1e-4, abs=1e-4)
    assert len(logits) == DEPTH
