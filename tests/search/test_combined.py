"""Queries of several parts: a text, an image, texts that are added, and texts that count against an image.

The oracle is plain NumPy over the vectors that the model gives for each part by itself, and over all images.
"""

from __future__ import annotations

import numpy as np
import pytest
from families import FAMILIES, late, with_noise
from made_index import build, build_of, searcher_of, update
from made_store import URLS
from noise_index import CAPTIONS, NAMES

from dcdctl.core import models
from dcdctl.core.data import images as data_images
from dcdctl.core.errors import ConfigError, InputError
from dcdctl.core.search import CombinedQuery, IndexSearcher, parse_where, question_of
from dcdctl.core.stores import StoreIndex, open_store, upload_index

pytestmark = pytest.mark.usefixtures("_duals_read_once")

TEXTS = ["a red circle", "a blue square", "small green", "triangle"]
KINDS = ("flat", "late")


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


def scores_of_part(searcher: IndexSearcher, part: object) -> np.ndarray:
    """The score of every image for one part: its cosine, or its MaxSim divided by the number of its tokens."""
    if isinstance(part, str):
        (query,) = searcher.texts.vectors(searcher.texts.tokenize([part])[0]).astype(np.float64)
    else:
        (query,) = searcher.encoder.load().of_image(data_images.decode_image(part.read_bytes())).astype(np.float64)
    stored = searcher.index.stored(np.arange(len(NAMES)))
    if query.ndim == 1:
        images = stored.data.astype(np.float64)
        return (images @ query) / np.linalg.norm(images, axis=1) / np.linalg.norm(query)
    words, scores, start = query[query.any(axis=1)], [], 0
    for count in stored.counts_R:
        scores.append((stored.tokens_ND[start : start + count].astype(np.float64) @ words.T).max(axis=0).mean())
        start += count
    return np.array(scores)


def unit_vector(searcher: IndexSearcher, part: object) -> np.ndarray:
    if isinstance(part, str):
        (vector,) = searcher.texts.vectors(searcher.texts.tokenize([part])[0]).astype(np.float64)
    else:
        (vector,) = searcher.encoder.load().of_image(data_images.decode_image(part.read_bytes())).astype(np.float64)
    return vector / np.linalg.norm(vector)


def expected_scores(searcher: IndexSearcher, wanted: list, unwanted: list) -> np.ndarray:
    """The formula of docs/search.md: the weight of a text is 1, and that of an image 0.5."""
    weights = np.array([1.0 if isinstance(part, str) else 0.5 for part in wanted])
    weights /= weights.sum()
    factors = [*weights, *(-0.5 / len(unwanted) for _ in unwanted)]
    parts = [*wanted, *unwanted]
    total = sum(factor * scores_of_part(searcher, part) for factor, part in zip(factors, parts, strict=True))
    if searcher.index.stored_type.query_axes == 2:
        # The cosine of the sum of vectors.
        vector = sum(factor * unit_vector(searcher, part) for factor, part in zip(factors, parts, strict=True))
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
        query = CombinedQuery(TEXTS[0], also=(TEXTS[3],), without=(TEXTS[1],))
        assert theirs.ask(query, 5).hits == searcher.ask(query, 5).hits
        opened.close()


def test_a_single_part_is_the_plain_query(photo):
    assert question_of("a dog") == "a dog"
    assert question_of(None, photo) == photo
    assert question_of("a dog", photo) == CombinedQuery("a dog", photo)
    assert question_of("a dog", without=["a cat"]) == CombinedQuery("a dog", without=("a cat",))


@pytest.mark.parametrize(
    ("parts", "error", "message"),
    [
        (dict(also=("x",)), ConfigError, "finds nothing; add a text or an image"),
        (dict(without=("x",)), ConfigError, "finds nothing"),
        (dict(text="a dog", without=(" A Dog ",)), InputError, "' A Dog ' is both searched for and excluded"),
        (dict(text="a", also=("b",), without=("b",)), InputError, "'b' is both"),
        (dict(text="a", also=tuple("bcdefghi")), InputError, "has 9 texts, at most 8"),
    ],
)
def test_a_query_that_contradicts_itself_is_refused(parts, error, message):
    with pytest.raises(error, match=message):
        CombinedQuery(**parts)


@pytest.mark.parametrize("wrong", ["", " ", "\u200b", "caf\udce9", "x" * 10_001])
def test_every_text_must_be_one(searchers, wrong):
    for query in (CombinedQuery("red", also=(wrong,)), CombinedQuery("red", without=(wrong,))):
        with pytest.raises(InputError):
            searchers["flat"].ask(query)


def test_notes_name_the_text_that_they_are_about(searchers):
    answer = searchers["flat"].ask(CombinedQuery("red", also=("\u72ac",), without=("red " * 40,)))
    assert answer.notes[0] == "'\u72ac': the model knows none of these words: the hits are random"
    assert answer.notes[1].startswith(
        f"'{('red ' * 40).strip()}': the text has 42 tokens, and the model reads the first"
    )


def test_parts_that_cancel_each_other_are_an_error(searchers, monkeypatch):
    searcher = searchers["flat"]
    vector = np.ones((1, searcher.index.dim), np.float32)
    monkeypatch.setattr(searcher.texts, "vectors", lambda batch: np.concatenate([vector, -vector]))
    with pytest.raises(InputError, match="cancel each other out"):
        searcher.ask(CombinedQuery("red", also=("blue",)))


def test_what_compares_one_text_refuses_several_parts(noise_index, searchers):
    query = CombinedQuery("red", also=("blue",))
    with pytest.raises(ConfigError, match="compares the words of one text, and this query is an image or has several"):
        searchers["flat"].ask(query, hybrid=True)
    reranking = searcher_of(noise_index, rerank=str(noise_index.parent / "fusion"))
    with pytest.raises(ConfigError, match="cannot re-rank images by several parts"):
        reranking.ask(query)


def test_an_index_without_images_gives_an_empty_answer(noise_index, searchers, tmp_path):
    index = build(noise_index.parent / "dual", noise_index.parent / "images", tmp_path / "index")
    update(index.folder, remove=("*",))
    assert searcher_of(index.folder).ask(CombinedQuery("red", without=("blue",))).hits == ()
