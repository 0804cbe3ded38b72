"""Queries of several parts: a text, an image, texts that are added, and texts that count against an image.

The oracle is plain NumPy over the vectors that the model gives for each part by itself, and over all images. For token
vectors these are the states of the model, which no number of tokens divides.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import FAMILIES, late, with_noise
from made_index import build, build_of, searcher_of, update
from made_store import URLS
from noise_index import CAPTIONS, NAMES
from numpy.typing import NDArray
from sentence_transformers import MultiVectorEncoder
from starlette.testclient import TestClient
from vlm import save_colpali

import dcdctl
from dcdctl.core import models
from dcdctl.core.data import images as data_images
from dcdctl.core.export.export import export_model
from dcdctl.core.export.target import ExportJob
from dcdctl.core.search import (
    CombinedQuery,
    IndexJob,
    IndexSearcher,
    StoredTokens,
    build_index,
    parse_where,
    question_of,
)
from dcdctl.core.serve import ServiceConfig, app
from dcdctl.core.stores import StoreIndex, open_store, upload_index

pytestmark = pytest.mark.usefixtures("_duals_read_once")

TEXTS = ["a red circle", "a blue square", "small green", "triangle"]
KINDS = ("flat", "late")
MEANS = ("late", "exported", "query student")
"""Models whose MaxSim is a mean over the tokens."""
SUMS = ("ColPali", "multi-vector without unit vectors")
Floats = NDArray[np.float64]


@pytest.fixture(scope="module")
def photo(noise_index):
    return noise_index.parent / "images" / "plain.png"


@pytest.fixture(scope="module")
def searchers(noise_index, tmp_path_factory):
    folder = tmp_path_factory.mktemp("late")
    model = with_noise(late(FAMILIES["dual"](CAPTIONS, folder), is_pooled=False))
    models.save(model, folder / "late")
    build_of(folder / "late", noise_index.parent / "images", folder / "index")
    return {"flat": searcher_of(noise_index), "late": searcher_of(folder / "index")}


@pytest.fixture(scope="module")
def late_searchers(noise_index, searchers, tmp_path_factory):
    """Of every kind of late model, the searcher and the model that reads its texts."""
    folder = tmp_path_factory.mktemp("kinds")
    place, images = folder / "late with positions", noise_index.parent / "images"
    model = with_noise(late(FAMILIES["dual"](CAPTIONS, folder), is_pooled=False, position_norm=0.7))
    models.save(model, place)
    export_model(ExportJob(model=str(place), out=folder / "exported", to="sentence-transformers"))
    save_colpali(folder / "ColPali", CAPTIONS)
    encoder = MultiVectorEncoder(str(folder / "exported"), device="cpu", similarity_fn_name="maxsim")
    # So that a text may have one token.
    encoder[2].skiplist_words = ["[CLS]", "[SEP]"]
    del encoder[3]
    encoder.save_pretrained(str(folder / "multi-vector without unit vectors"), create_model_card=False)
    student = models.new_query(models.QuerySpace.of(model), models.QuerySize(text="teacher"), teacher=model)
    models.save(with_noise(student), folder / "query")
    found = {"late": (searchers["late"], searchers["late"].model)}
    for kind in ("exported", *SUMS):
        build_of(folder / kind, images, folder / f"{kind}.index")
        searcher = searcher_of(folder / f"{kind}.index")
        found[kind] = searcher, searcher.model
    build_index(IndexJob(model=str(place), images=images, out=folder / "student.index", query_model=f"{folder}/query"))
    found["query student"] = searcher_of(folder / "student.index"), models.with_queries(model, folder / "query")
    return found


def vector_of(searcher: IndexSearcher, part: str | Path) -> Floats:
    """The unit vector of a part, by a model that gives one."""
    if isinstance(part, str):
        (vector,) = searcher.texts.vectors(searcher.texts.tokenize([part])[0]).astype(np.float64)
    else:
        (vector,) = searcher.encoder.load().of_image(data_images.decode_image(part.read_bytes())).astype(np.float64)
    return vector / np.linalg.norm(vector)


@torch.no_grad()
def tokens_of(searcher: IndexSearcher, part: str | Path, reads_texts: Any = None) -> Floats:
    """The token vectors of a part, L x D, as the model encodes it."""
    if isinstance(part, str):
        model = reads_texts or searcher.model
        states = model.encode_texts(model.preprocess.texts([part]))
    else:
        image = data_images.decode_image(part.read_bytes())
        states = searcher.model.encode_images(searcher.model.preprocess.images([image]))
    return states.tokens[0][states.mask[0].bool()].double().numpy()


def scores_of_part(searcher: IndexSearcher, part: str | Path, reads_texts: Any = None) -> Floats:
    """The score of every image for one part: its cosine, or its MaxSim divided by the lengths of its tokens."""
    stored = searcher.index.stored(np.arange(len(NAMES)))
    if searcher.index.stored_type.query_axes == 2:
        images = stored.data.astype(np.float64)
        return (images @ vector_of(searcher, part)) / np.linalg.norm(images, axis=1)
    words_LD = tokens_of(searcher, part, reads_texts)
    items = np.split(stored.tokens_ND.astype(np.float64), np.cumsum(stored.counts_R)[:-1])
    sums_R = np.array([(item_ND @ words_LD.T).max(axis=0).sum() for item_ND in items])
    return sums_R / np.linalg.norm(words_LD, axis=1).sum()


def expected_scores(searcher: IndexSearcher, wanted: list, unwanted: list, reads_texts: Any = None) -> Floats:
    """The formula of docs/search.md: the weight of a text is 1, and that of an image 0.5."""
    weights = np.array([1.0 if isinstance(part, str) else 0.5 for part in wanted])
    weights /= weights.sum()
    factors = [*weights, *(-0.5 / len(unwanted) for _ in unwanted)]
    parts = [*wanted, *unwanted]
    total = sum(
        factor * scores_of_part(searcher, part, reads_texts) for factor, part in zip(factors, parts, strict=True)
    )
    if searcher.index.stored_type.query_axes == 2:
        # The cosine of the sum of vectors.
        vector = sum(factor * vector_of(searcher, part) for factor, part in zip(factors, parts, strict=True))
        total = total / np.linalg.norm(vector)
    return total


CASES = [
    dict(text=TEXTS[0], also=(TEXTS[1],)),
    dict(text=TEXTS[0], also=(TEXTS[1], TEXTS[2])),
    dict(text=TEXTS[0], without=(TEXTS[1],)),
    dict(text=TEXTS[0], also=(TEXTS[3],), without=(TEXTS[1], TEXTS[2])),
    dict(text=TEXTS[0], with_image=True),
    dict(with_image=True, without=(TEXTS[2],)),
    dict(with_image=True, also=(TEXTS[2],)),
    dict(text=TEXTS[0], with_image=True, also=(TEXTS[1],), without=(TEXTS[2],)),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("parts", CASES)
def test_the_score_is_the_weighted_sum_of_the_parts(searchers, photo, kind, parts):
    searcher, given = searchers[kind], dict(parts)
    image = photo if given.pop("with_image", False) else None
    query = CombinedQuery(image=image, **given)
    wanted, unwanted = [*query.wanted, *([photo] if image else [])], list(query.without)
    expected = expected_scores(searcher, wanted, unwanted)
    answer = searcher.ask(query, len(NAMES))
    found = {hit.row: hit.score for hit in answer.hits}
    assert found == pytest.approx(dict(enumerate(expected.tolist())), abs=2e-5)
    assert [hit.score for hit in answer.hits] == sorted(found.values(), reverse=True)
    # Its scores are on another scale than those of single texts.
    assert answer.background is None
    assert searcher.ask(query, 3).hits == answer.hits[:3]


@pytest.mark.parametrize("kind", [*MEANS, *SUMS])
def test_a_part_counts_the_same_whatever_its_number_of_tokens(late_searchers, photo, kind):
    searcher, reads_texts = late_searchers[kind]
    words, counts = ["a", "red", "circle", "left", "of", "a", "blue", "square"], set()
    texts = [" ".join(words[place % 8] for place in range(count)) for count in range(1, 41)]
    # Each query has a short, a middle and a long text; every second an image too.
    for first in (0, 3, 6, 9):
        wanted, unwanted = texts[first::20], [texts[first + 10], texts[39 - first]]
        query = CombinedQuery(wanted[0], photo if first % 2 else None, tuple(wanted[1:]), tuple(unwanted))
        expected = expected_scores(searcher, [*query.wanted, *([photo] if first % 2 else [])], unwanted, reads_texts)
        hits = searcher.ask(query, len(NAMES)).hits
        assert {hit.row: hit.score for hit in hits} == pytest.approx(dict(enumerate(expected.tolist())), abs=2e-5)
        assert np.std(expected) > 1e-3
        counts |= {len(tokens_of(searcher, text, reads_texts)) for text in query.texts}
    assert max(counts) >= min(counts) + 30
    lengths_L = np.linalg.norm(tokens_of(searcher, texts[5], reads_texts), axis=1)
    # The documented formula: of a model with unit vectors, the sum of lengths is the number of tokens.
    assert (lengths_L == pytest.approx(1, abs=1e-5)) == (kind != SUMS[1])
    assert reads_texts.is_mean == (kind in MEANS)


@pytest.mark.parametrize("is_mean", [True, False])
def test_tokens_are_joined_by_the_same_share_for_1_to_40_of_them(is_mean):
    rng = np.random.default_rng(0)
    for count in range(1, 41):
        parts = []
        for length in (count, 41 - count, 7):
            tokens_LD = rng.normal(size=(length, 6))
            tokens_LD /= np.linalg.norm(tokens_LD, axis=1, keepdims=True) * (length if is_mean else 1)
            # Padding, as in a batch.
            parts.append(np.concatenate([tokens_LD, np.zeros((3, 6))]).astype(np.float32))
        joined_LD = StoredTokens.join(parts, [0.5, 0.3, 0.2])
        assert joined_LD.dtype == np.float32
        lengths = np.split(np.linalg.norm(joined_LD, axis=1), [count, 41])
        assert [sum(part) for part in lengths] == pytest.approx([0.5, 0.3, 0.2])
        assert lengths[0] == pytest.approx(0.5 / count)


def test_a_service_and_python_answer_a_late_index_by_the_same_formula(searchers, photo, noise_index):
    searcher = searchers["late"]
    also, without = "a red circle left of a blue square " * 2, "green"
    expected = expected_scores(searcher, ["triangle", also, photo], [without])
    by_python = dcdctl.Searcher(searcher.index.folder).search(
        "triangle", image=photo, also=also, without=without, k=len(NAMES)
    )
    with TestClient(app.build(searcher, ServiceConfig()), base_url="http://localhost") as client:
        params = {"text": "triangle", "also": also, "not": without, "k": len(NAMES)}
        answer = client.post("/search", files={"image": ("a.png", photo.read_bytes())}, params=params).json()
    for found in (
        {hit.row: hit.score for hit in by_python},
        {one["row"]: one["score"] for one in answer["results"]},
    ):
        assert found == pytest.approx(dict(enumerate(expected.tolist())), abs=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_condition_and_a_lower_number_of_candidates_keep_the_scores(searchers, kind, monkeypatch):
    searcher = searchers[kind]
    query = CombinedQuery(TEXTS[0], also=(TEXTS[3],), without=(TEXTS[1],))
    every = {hit.row: hit.score for hit in searcher.ask(query, 99).hits}
    where = parse_where("path > 'h'", searcher.index.columns)
    met = searcher.ask(query, 99, where).hits
    assert {hit.row: hit.score for hit in met} == {row: every[row] for row in (hit.row for hit in met)}
    assert 0 < len(met) < len(every)
    monkeypatch.setattr("dcdctl.core.search.searcher.DEPTH", 4)
    if kind == "late":
        # The best by the other parts are subtracted from: at least twice as many as are asked for.
        plus = [hit.row for hit in searcher.ask(CombinedQuery(TEXTS[0], also=(TEXTS[3],)), 4).hits]
        expected = sorted(plus, key=lambda row: -every[row])[:2]
        assert [hit.row for hit in searcher.ask(query, 2).hits] == expected
        monkeypatch.setattr(searcher.index, "compares_all", True)
    assert [hit.row for hit in searcher.ask(query, 2).hits] == sorted(every, key=lambda row: -every[row])[:2]


@pytest.mark.parametrize("name", URLS)
def test_a_store_answers_as_its_index(searchers, name, request, tmp_path):
    for kind in KINDS:
        if (name, kind) == ("postgresql", "late"):
            continue  # it takes one vector per image
        searcher = searchers[kind]
        opened = open_store(URLS[name](request, tmp_path / kind))
        upload_index(searcher.index, opened)
        theirs = IndexSearcher.for_index(StoreIndex.open(opened, searcher.index.model), device="cpu")
        query = CombinedQuery(TEXTS[3], also=(f"{TEXTS[0]} {TEXTS[1]} " * 3,), without=(TEXTS[2],))
        assert theirs.ask(query, 5).hits == searcher.ask(query, 5).hits
        every = expected_scores(theirs, list(query.wanted), list(query.without))
        found = {hit.row: hit.score for hit in theirs.ask(query, len(NAMES)).hits}
        assert found == pytest.approx(dict(enumerate(every.tolist())), abs=2e-5)
        opened.close()


def test_a_single_part_is_the_plain_query(photo):
    assert question_of("a dog") == "a dog"
    assert question_of(None, photo) == photo
    assert question_of("a dog", photo) == CombinedQuery("a dog", photo)
    assert question_of("a dog", without=["a cat"]) == CombinedQuery("a dog", without=("a cat",))


def test_notes_name_the_text_that_they_are_about(searchers):
    answer = searchers["flat"].ask(CombinedQuery("red", also=("\u72ac",), without=("red " * 40,)))
    assert answer.notes[0] == "'\u72ac': the model knows none of these words: the hits are random"
    assert answer.notes[1].startswith(
        f"'{('red ' * 40).strip()}': the text has 42 tokens, and the model reads the first"
    )


def test_an_index_without_images_gives_an_empty_answer(noise_index, searchers, tmp_path):
    index = build(noise_index.parent / "dual", noise_index.parent / "images", tmp_path / "index")
    update(index.folder, remove=("*",))
    assert searcher_of(index.folder).ask(CombinedQuery("red", without=("blue",))).hits == ()
