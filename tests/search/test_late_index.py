"""An index of a late-interaction model: token vectors, candidates by centroids, and exact MaxSim."""

from __future__ import annotations

import re
import tracemalloc

import command_line
import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from families import FAMILIES, late, with_noise
from image_files import png, put
from made_index import build_of, killed_before, ragged, searcher_of, update, write_late
from PIL import Image
from starlette.testclient import TestClient
from tiny import contents

from dcdctl.core import models
from dcdctl.core.export.export import export_model
from dcdctl.core.export.target import ExportJob
from dcdctl.core.search import (
    FolderIndex,
    IndexJob,
    StoredTokens,
    build_index,
    parse_where,
    part_files,
)
from dcdctl.core.search.centroids import Centroids
from dcdctl.core.search.exact import decoded, encoded, maxsims, token_type
from dcdctl.core.serve import ServiceConfig, app

pytestmark = pytest.mark.usefixtures("_duals_read_once")
CAPTIONS = ["a red circle left of a blue square", "a small green triangle", "two dogs"]
ALL = ("flat_up_to=0", "segment_rows=4")
"""Centroids that propose all images."""


@pytest.fixture(scope="module")
def late_ref(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    model = late(FAMILIES["dual"](CAPTIONS, folder), is_pooled=False, position_norm=0.7)
    models.save(with_noise(model), folder / "late")
    return folder / "late"


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch):
    monkeypatch.setattr(part_files, "ROWS_PER_PART", 3)
    monkeypatch.setattr(part_files, "ROWS_PER_GROUP", 2)


@pytest.fixture
def pictures(tmp_path):
    return put(tmp_path / "pictures", {f"{seed}.png": png(seed) for seed in range(7)})


def plain_maxsims(query_LD, tokens_ND, counts):
    """One image and one token after another."""
    images = np.split(tokens_ND, np.cumsum(counts)[:-1])
    return np.array([sum(max(float(t @ q) for t in image) for q in query_LD) for image in images])


def test_maxsims_are_those_of_a_loop():
    counts, query = [2, 5, 1, 3], ragged([4], seed=1)
    tokens = ragged(counts)
    for is_precise in (False, True):
        found = maxsims(query, tokens, np.array(counts), is_precise=is_precise)
        np.testing.assert_allclose(found, plain_maxsims(query, tokens, counts), atol=1e-6)
    # Of one length, and a query with padding.
    padded = np.concatenate([query, np.zeros((3, 6), np.float32)])
    np.testing.assert_allclose(
        maxsims(padded, tokens[:10], np.array([5, 5])), plain_maxsims(query, tokens[:10], [5, 5]), atol=1e-6
    )


@pytest.mark.parametrize("numbers", [1, 200, 1 << 20])
@pytest.mark.parametrize("counts", [[4, 4, 4, 4], [1, 9, 2, 7, 30, 1]])
def test_precise_maxsims_do_not_depend_on_what_is_computed_together(counts, numbers, monkeypatch):
    monkeypatch.setattr("dcdctl.core.search.exact.AT_ONCE", numbers)
    query, tokens = ragged([5], width=67, seed=1), ragged(counts, width=67)
    # Equal tokens, and tokens that differ by one rounding.
    tokens[1], tokens[2] = tokens[0], np.nextafter(tokens[0], 1)
    products_NL = (tokens.astype(np.float64)[:, None] * query).sum(axis=2)
    largest_RL = np.maximum.reduceat(products_NL, np.cumsum(counts) - counts, axis=0)
    found = maxsims(query, tokens, np.array(counts), is_precise=True)
    assert found.tolist() == largest_RL.sum(axis=1).astype(np.float32).tolist()


# A page of ColPali has 1,030 tokens of 128 numbers; all products at once took 420 MB and 4.3 GB.
@pytest.mark.parametrize(("hits", "length"), [(20, 20), (4, 1030)])
def test_exact_scores_of_a_thousand_tokens_take_little_memory(hits, length):
    tokens, query = ragged([1030] * hits, width=128).astype(np.float16), ragged([length], width=128, seed=1)
    stored = StoredTokens(tokens, np.full(hits, 1030))
    tracemalloc.start()
    scores = stored.score(query, stored.propose(query, hits))
    largest = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(scores) == hits
    assert largest < 50e6


def test_blocks_of_images_with_many_tokens_hold_fewer_images(tmp_path, monkeypatch):
    counts, rows = [2, 50, 3, 50, 1, 4], np.arange(6)
    index, _ = write_late(tmp_path / "index", counts)
    # As many numbers as two images of the most tokens have.
    monkeypatch.setattr("dcdctl.core.search.readers.BLOCK_NUMBERS", 2 * 50 * 6)
    monkeypatch.setattr("dcdctl.core.search.readers.COMPARED", 50 * 6)
    assert [len(block) for block in index.reader.blocks(range(6))] == [2, 2, 2]
    query = ragged([4], seed=2)
    (proposed,) = index.reader.propose(query[None], 6, rows)
    assert proposed.tolist() == rows.tolist()


@pytest.mark.parametrize(("codes", "error"), [("float16", 5e-4), ("int8", 5e-3)])
def test_stored_tokens_are_near_the_tokens(codes, error):
    tokens = 3 * ragged([200])
    records = encoded(tokens, codes)
    assert records.dtype == token_type(6, codes) or records.shape == (200, 6)
    np.testing.assert_allclose(decoded(records), tokens, atol=3 * error)


@pytest.mark.parametrize("codes", ["float16", "int8"])
@pytest.mark.parametrize("settings", [{}, {"flat_up_to": 0, "segment_rows": 5}])
def test_images_of_any_number_of_tokens_are_ranked_by_maxsim(tmp_path, codes, settings):
    counts = [4, 1, 7, 3, 3, 5, 2, 6]
    index, tokens = write_late(tmp_path / "index", counts, codes, **settings)
    found = index.stored(np.arange(8))
    stored = found.tokens_ND
    assert found.counts_R.tolist() == counts
    np.testing.assert_allclose(stored, tokens, atol=5e-3)
    queries = ragged([5, 5], seed=2).reshape(2, 5, 6)
    queries[1, 3:] = 0
    scores, rows = index.nearest(queries, 8)
    for query, score, row in zip(queries, scores, rows, strict=True):
        expected = plain_maxsims(query, stored, counts)
        assert row.tolist() == np.argsort(-expected).tolist()
        np.testing.assert_allclose(score, np.sort(expected)[::-1], atol=1e-5)


def test_tokens_outside_the_segments_are_read_once_if_they_fit_into_memory(tmp_path, monkeypatch):
    index, _ = write_late(tmp_path / "index", [3] * 20)
    queries = ragged([4] * 3, seed=3).reshape(3, 4, 6)

    def searched(num_bytes):
        """The answers, and how many rows were read for them."""
        fresh, num_read = FolderIndex.open(index.folder), []
        monkeypatch.setattr("dcdctl.core.search.readers.FLOAT_BYTES", num_bytes)
        stored = fresh.reader.stored
        monkeypatch.setattr(fresh.reader, "stored", lambda rows: num_read.append(len(rows)) or stored(rows))
        return [fresh.nearest(query[None], 2)[part].tolist() for query in queries for part in (0, 1)], sum(num_read)

    answers, num_read = searched(4 * 6 * 60)
    too_large = searched(4 * 6 * 60 - 1)
    assert answers == too_large[0]
    # The best are read once more, to be scored exactly.
    assert num_read < 2 * 20 < too_large[1]


# 180 tokens: a centroid each, and few. Ten of sixty images at random would have 17 of the 100 best.
@pytest.mark.parametrize(("centroids", "least", "most"), [(180, 98, 100), (40, 50, 90)])
def test_centroids_are_good_candidates_and_all_can_be_compared(tmp_path, monkeypatch, centroids, least, most):
    monkeypatch.setattr("dcdctl.core.search.centroids.CANDIDATES", 10)
    counts = [3] * 60
    settings = {"flat_up_to": 0, "tokens": {"centroids": centroids}}
    index, _ = write_late(tmp_path / "index", counts, **settings)
    queries = ragged([4] * 20, seed=3).reshape(20, 4, 6)
    scores, rows = index.nearest(queries, 5)
    index.compares_all = True
    all_scores, all_rows = index.nearest(queries, 5)
    found = [len({*some} & {*every}) for some, every in zip(rows.tolist(), all_rows.tolist(), strict=True)]
    assert least <= sum(found) <= most
    assert (scores[:, 0] <= all_scores[:, 0]).all()


def test_centroids_are_those_of_k_means_and_padding_has_none(tmp_path):
    rng = np.random.default_rng(0)
    counts_R = rng.integers(1, 9, 400)
    # Clusters of other lengths, one after another, so that the first tokens are no sample.
    centers_KD = rng.normal(size=(24, 8))
    centers_KD *= rng.uniform(0.3, 2, (24, 1)) / np.linalg.norm(centers_KD, axis=1, keepdims=True)
    cluster_N = np.sort(rng.integers(0, 24, counts_R.sum()))
    tokens_ND = (centers_KD[cluster_N] + 0.12 * rng.normal(size=(len(cluster_N), 8))).astype(np.float32)
    tokens_ND[:300] = tokens_ND[0]  # equal tokens, of which only one centroid gets any
    ends = np.cumsum([0, *counts_R])

    def blocks():
        for first in range(0, 400, 100):
            rows = slice(first, first + 100)
            yield StoredTokens(tokens_ND[ends[first] : ends[first + 100]], counts_R[rows])

    index, _ = write_late(tmp_path / "index", [1], tokens={"centroids": 24})
    path = tmp_path / "centroids"
    Centroids.build(path, blocks, 8, index.config, lambda _: None)
    with path.open("rb") as file:
        found_KD, codes_NR = np.load(file).astype(np.float64), np.load(file)
    is_token_RN = np.arange(len(codes_NR)) < counts_R[:, None]
    assert (codes_NR.T[~is_token_RN] == len(found_KD)).all()
    code_N = codes_NR.T[is_token_RN]
    distances_NK = np.square(tokens_ND[:, None] - found_KD).sum(axis=2)
    assert distances_NK[np.arange(len(code_N)), code_N] == pytest.approx(distances_NK.min(axis=1), abs=1e-4)
    # A centroid without tokens stays where it was drawn.
    assert np.linalg.norm(found_KD, axis=1).min() > 0.2
    # The sum of squares is 0.59 of that of the centers; 1.55 of a sample as it is drawn, 1.01 after one round.
    assert distances_NK.min(axis=1).sum() < 0.65 * np.square(tokens_ND - centers_KD[cluster_N]).sum()


@pytest.mark.parametrize("sets", [("tokens.codes=int8",), ALL])
def test_an_index_of_a_late_model_answers_by_the_scores_of_the_model(late_ref, pictures, tmp_path, sets):
    index = build_of(late_ref, pictures, tmp_path / "index", *sets)
    searcher, model = searcher_of(index.folder), models.load(late_ref)
    batch = model.preprocess.images([Image.open(pictures / index.name(row)) for row in range(7)])
    with torch.no_grad():
        images, texts = model.encode_images(batch), model.encode_texts(model.preprocess.texts(CAPTIONS))
        by_image = model.embed_images(batch[:1])
    for text, answer in enumerate(searcher.by_texts(CAPTIONS, 7)):
        expected = model.score_pairs(images, texts, torch.arange(7), torch.full((7,), text)) / model.logit_scale
        assert [hit.score for hit in answer.hits] == pytest.approx(expected.sort(descending=True)[0].tolist(), abs=5e-3)
        assert answer.hits[0].row == expected.argmax()
    # By an image: its tokens in place of a text's.
    answer = searcher.ask(pictures / index.name(0), 7)
    assert answer.hits[0].row == 0
    assert answer.hits[0].score == pytest.approx(float((by_image.norm(dim=-1)).sum()), abs=5e-3)


@pytest.mark.parametrize("kind", ["late", "dual"])
def test_a_score_has_one_name_in_the_terminal_and_in_the_report(late_ref, dual, pictures, tmp_path, kind):
    index = build_of(late_ref if kind == "late" else dual, pictures, tmp_path / "index")
    name, other = ("MaxSim", "cosine") if kind == "late" else ("cosine", "MaxSim")
    shown = command_line.run("search", index.folder, "two dogs", "--html", tmp_path / "page.html").stdout
    page = (tmp_path / "page.html").read_text()
    assert name in shown.splitlines()[0].split()
    assert re.search(rf"{name} -?\d\.\d{{4}}", page)
    assert other not in shown + page


def test_a_late_model_its_export_and_its_query_student_are_searched_by_their_own_scores(late_ref, pictures, tmp_path):
    model = models.load(late_ref)
    export_model(ExportJob(model=str(late_ref), out=tmp_path / "exported", to="sentence-transformers"))
    student = models.new_query(models.QuerySpace.of(model), models.QuerySize(text="teacher"), teacher=model)
    models.save(student, tmp_path / "query")
    query = tmp_path / "query"
    pairs = torch.arange(7), torch.zeros(7, dtype=torch.long)
    for ref, query_model, scorer in (
        (late_ref, None, model),
        (tmp_path / "exported", None, model),
        (late_ref, str(query), models.with_queries(model, query)),
    ):
        out = tmp_path / f"{scorer.digest}-{ref.name}"
        job = IndexJob(model=str(ref), images=pictures, out=out, query_model=query_model)
        index = build_index(job).index
        hits = searcher_of(index.folder).by_text(CAPTIONS[0], 7).hits
        images = [Image.open(pictures / hit.name) for hit in hits]
        with torch.no_grad():
            states = model.encode_images(model.preprocess.images(images))
            texts = scorer.encode_texts(scorer.preprocess.texts(CAPTIONS[:1]))
            expected = model.score_pairs(states, texts, *pairs) / model.logit_scale
        assert [hit.score for hit in hits] == pytest.approx(expected.tolist(), abs=2e-3)
        assert expected.std() > 0.01


def test_a_late_index_is_filtered_joined_with_words_reranked_and_served(late_ref, pictures, tmp_path):
    table = tmp_path / "years.csv"
    table.write_text("\n".join(["image,year", *(f"{n}.png,{2018 + n % 3}" for n in range(7))]))
    sets = ("flat_up_to=0", "keywords=true")
    job = IndexJob(model=str(late_ref), images=pictures, out=tmp_path / "index", sets=sets, metadata=table)
    index = build_index(job).index
    searcher, where = searcher_of(index.folder), parse_where("year = 2019", index.columns)
    assert isinstance(searcher.texts, models.TextTower)
    every = searcher_of(index.folder, rerank=None)
    every.index.compares_all = True
    ranked = every.by_text("two dogs", 7).hits
    assert searcher.by_text("two dogs", 7, where).hits == tuple(hit for hit in ranked if hit.columns["year"] == 2019)
    assert searcher.by_text("two dogs", 7, parse_where("year = 1", index.columns)).hits == ()
    # Two answers of three candidates.
    assert {hit.row for hit in searcher.by_text("two dogs", 2).hits} <= {hit.row for hit in ranked}
    hybrid = searcher.by_text("two dogs 4", 7, hybrid=True).hits
    assert hybrid[0].name == "4.png"
    assert {hit.row: hit.score for hit in hybrid} == {hit.row: hit.score for hit in every.by_text("two dogs 4", 7).hits}
    reranked = searcher_of(index.folder, rerank=str(late_ref), depth=4).by_text("two dogs", 7).hits
    assert [hit.row for hit in reranked[:3]] == [hit.row for hit in every.by_text("two dogs", 3).hits]
    with TestClient(app.build(searcher, ServiceConfig()), base_url="http://localhost") as client:
        for query in ({"text": "two dogs", "where": "year = 2019"}, {"row": 3}):
            answer = client.get("/search", params=query).json()
            assert answer["results"][0]["row"] == (
                3 if "row" in query else searcher.by_text("two dogs", 1, where).hits[0].row
            )
            assert all(0 <= bar <= 1 for bar in answer["bars"])
        assert "Scores are MaxSims." in client.get("/").text


def test_tokens_are_pooled_by_the_factor_of_the_model_or_of_the_index(late_ref, pictures, tmp_path):
    model = models.load(late_ref)
    model.token_pooling = 4
    models.save(model, tmp_path / "late")
    assert models.load(tmp_path / "late").token_pooling == 4
    assert models.load(tmp_path / "late").digest != models.load(late_ref).digest
    with torch.no_grad():
        num_tokens = model.encode_images(model.preprocess.images([Image.new("RGB", (8, 8))])).tokens.shape[1]
    for sets, factor in (((), 4), (("tokens.pooling=2",), 2), (("tokens.pooling=1",), 1)):
        index = build_of(tmp_path / "late", pictures, tmp_path / f"{factor}", *sets)
        assert index.stored(np.arange(7)).counts_R.tolist() == [num_tokens // factor] * 7


def test_a_late_index_grows_shrinks_and_resumes(late_ref, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(models, "exports_text_towers", lambda: False)
    whole, number = build_of(late_ref, pictures, tmp_path / "whole", *ALL), 0
    while killed_before(
        monkeypatch,
        number,
        lambda: build_of(late_ref, pictures, tmp_path / f"{number}", *ALL),  # noqa: B023
    ):
        build_of(late_ref, pictures, tmp_path / f"{number}", *ALL)
        assert contents(tmp_path / f"{number}") == contents(whole.folder), number
        number += 5
    more = put(tmp_path / "more", {"new.png": png(30)})
    update(whole.folder, add=more, remove=("0.png",))
    for sets in ((), ("flat_up_to=99",)):
        grown = searcher_of(update(whole.folder, sets=sets).folder)
        assert grown.index.kind == ("flat" if sets else "centroids")
        assert grown.ask(more / "new.png", 1).hits[0].name == "new.png"
        found = {hit.name for hit in grown.by_text("two dogs", 10).hits}
        assert found == {"new.png", *(f"{n}.png" for n in range(1, 7))}


def test_queries_without_an_axis_of_tokens_are_a_wrong_call(tmp_path):
    index, _ = write_late(tmp_path / "made", [2, 2])
    with pytest.raises(ValueError, match="queries have 2 axes, expected 3"):
        index.nearest(np.ones((1, 6)), 1)


def test_tokens_in_the_file_are_those_that_were_given(tmp_path):
    index, tokens = write_late(tmp_path / "index", [4, 1, 7])
    table = pq.read_table(index.folder / "vectors" / index.parts[0].file)
    assert table.column_names == ["image_id", "path", "corpus_row", "num_tokens", "tokens"]
    found = np.frombuffer(b"".join(pc.list_flatten(table["tokens"]).to_pylist()), "<f2")
    np.testing.assert_array_equal(found.reshape(-1, 6), tokens.astype(np.float16))
