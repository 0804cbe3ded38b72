"""An index whose texts a query encoder embeds: searched without the model that embedded its images."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from command_line import document_of, run
from families import FAMILIES, late, with_noise
from made_index import build_of, killed_before, searcher_of, update
from made_store import URLS
from noise_index import CAPTIONS, NAMES
from tiny import run_script

import dcdctl
from dcdctl.core import models
from dcdctl.core.errors import MissingError, ModelError, StaleError
from dcdctl.core.search import Changes, FolderIndex, IndexJob, IndexSearcher, StoredTokens, build_index, change_index
from dcdctl.core.stores import StoreIndex, open_store, upload_index

pytestmark = pytest.mark.usefixtures("_duals_read_once")
ROWS = np.arange(len(NAMES))


def save_query(ref, folder, seed=0):
    """A static query encoder of a teacher; of a late-interaction model it reads the teacher's tokens."""
    teacher = models.load_searchable(ref)
    text = "" if teacher.kind == "dual" else "teacher"
    size = models.QuerySize(text=text, hidden_size=16, num_layers=0)
    tokenizer = models.word_piece(CAPTIONS, 60)
    space = models.QuerySpace.of(teacher)
    models.save(models.new_query(space, size, tokenizer=tokenizer, teacher=teacher, seed=seed), folder)
    return str(folder)


@pytest.fixture(scope="module")
def late_ref(tmp_path_factory):
    folder = tmp_path_factory.mktemp("late")
    models.save(with_noise(late(FAMILIES["dual"](CAPTIONS, folder), is_pooled=False)), folder / "late")
    return folder / "late"


@pytest.fixture(scope="module", params=["dual", "late"])
def made(request, noise_index, late_ref, tmp_path_factory):
    """A teacher, an index of its own, one with a query encoder, and that."""
    folder = tmp_path_factory.mktemp("made")
    ref = noise_index.parent / "dual" if request.param == "dual" else late_ref
    sets = ("keywords=true",) if request.param == "dual" else ("flat_up_to=0", "keywords=true")
    own = build_of(ref, noise_index.parent / "images", folder / "own", *sets)
    query = save_query(ref, folder / "query")
    shutil.copytree(own.folder, folder / "index")
    return ref, own, update(folder / "index", query_model=query), query


def scores_of(ref, query, index):
    """Captions x rows: cosines, or MaxSims, of the joined model's texts with the stored vectors."""
    model = models.with_queries(models.load_searchable(ref), query)
    with torch.no_grad():
        vectors = model.embed_texts(model.preprocess.texts(CAPTIONS)).numpy()
    stored = index.stored(ROWS)
    if model.kind == "dual":
        images = stored.data.astype(np.float32)
        return vectors @ (images / np.linalg.norm(images, axis=1, keepdims=True)).T
    images = np.split(stored.tokens_ND, np.cumsum(stored.counts_R)[:-1])
    return np.array([[(text @ image.T).max(axis=1).sum() for image in images] for text in vectors])


def found_by(searcher, **options):
    """The same, as a search gives them."""
    answers = searcher.by_texts(CAPTIONS, len(ROWS), **options)
    return np.array([[hit.score for hit in sorted(answer.hits, key=lambda hit: hit.row)] for answer in answers])


def test_texts_are_the_query_models_and_images_the_large_models(made, noise_index):
    ref, own, index, query = made
    assert (index.parts, index.segments) == (own.parts, own.segments)
    expected, before = scores_of(ref, query, index), searcher_of(own.folder)
    assert np.abs(found_by(before) - expected).max() > 0.01
    # A GPU is not touched for a text.
    searcher = searcher_of(index.folder, device="cuda")
    for options in ({}, {"hybrid": True}):
        np.testing.assert_allclose(found_by(searcher, **options), expected, atol=2e-3)
    assert not searcher.encoder.is_loaded
    reranked = searcher_of(index.folder, rerank=str(ref), depth=3).by_text(CAPTIONS[0], 3)
    assert {hit.row for hit in reranked.hits} == {hit.row for hit in searcher.by_text(CAPTIONS[0], 3).hits}
    image = noise_index.parent / "images" / "plain.png"
    assert searcher_of(index.folder).ask(image, 12).hits == before.ask(image, 12).hits
    in_python = dcdctl.Searcher(index.folder).search(CAPTIONS[0], 3)
    assert in_python.hits == searcher.by_text(CAPTIONS[0], 3).hits


def test_a_new_index_takes_the_query_models_texts_alone(made, noise_index, tmp_path):
    ref, _, index, query = made
    images = noise_index.parent / "images"
    new = build_index(IndexJob(model=str(ref), images=images, out=tmp_path / "index", query_model=query)).index
    assert new.query_model == index.query_model
    assert [path.parent.name for path in new.folder.glob("*/text.json")] == [new.document.text.folder]
    np.testing.assert_allclose(found_by(searcher_of(new.folder)), found_by(searcher_of(index.folder)), atol=1e-6)
    # Another one takes its place, also after images were removed.
    update(new.folder, remove=("plain.png",))
    other = save_query(ref, tmp_path / "other", seed=1)
    changed = dcdctl.Index.open(new.folder).set_query_model(other).index
    assert changed.query_model == models.load(other, kind="query").digest != new.query_model
    assert sorted(path.parent.name for path in new.folder.glob("*/text.json")) == [changed.document.text.folder]


def test_a_killed_change_of_the_query_model_keeps_the_former_one(made, tmp_path, monkeypatch):
    _, own, index, query = made
    expected = {None: found_by(searcher_of(own.folder)), index.query_model: found_by(searcher_of(index.folder))}
    number = 0
    while True:
        folder = tmp_path / f"{number}"
        shutil.copytree(own.folder, folder)
        if not killed_before(monkeypatch, number, lambda: update(folder, query_model=query)):  # noqa: B023
            break
        # Searched as before, or as after.
        opened = FolderIndex.open(folder)
        np.testing.assert_array_equal(found_by(searcher_of(folder)), expected[opened.query_model])
        resumed = update(folder, query_model=query)
        np.testing.assert_array_equal(found_by(searcher_of(folder)), expected[resumed.query_model])
        resumed.check()
        number += 2
    assert number > 5


def test_a_query_model_of_another_teacher_is_refused_before_an_image_is_read(
    made, noise_index, late_ref, tmp_path, monkeypatch
):
    ref, own, _, query = made
    other = late_ref if ref != late_ref else noise_index.parent / "dual"
    wrong = save_query(other, tmp_path / "wrong")
    new = IndexJob(model=str(ref), images=noise_index.parent / "images", out=tmp_path / "index", batch_size=2)
    for give in (
        lambda query_model: change_index(str(own.folder), Changes(query_model=query_model)),
        lambda query_model: build_index(replace(new, query_model=query_model)),
    ):
        with pytest.raises(StaleError, match="wrong"):
            give(wrong)
        with pytest.raises(ModelError, match="query"):
            give(str(ref))
    assert not (tmp_path / "index" / "vectors").exists()
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "onnxruntime", None)
        with pytest.raises(MissingError, match="--query-model"):
            update(own.folder, query_model=query)


# With a dual encoder, test_text_side.py runs such a process.
@pytest.mark.parametrize("made", ["late"], indirect=True)
def test_a_command_attaches_it_and_a_cold_search_reads_neither_torch_nor_the_large_model(made, tmp_path):
    _, own, index, query = made
    folder = tmp_path / "index"
    shutil.copytree(own.folder, folder)
    name = f"{query} ({index.query_model[:8]})"
    assert f"texts by {name}" in run("change", folder, "--query-model", query).stdout.replace("\n", "")
    assert document_of("inspect", folder)["query_model"] == index.query_model
    assert name in run("inspect", folder).stdout.replace("\n", "")
    (folder / "model" / "model.safetensors").unlink()
    script = """
import sys
from dcdctl.cli.app import app
try:
    app(["search", sys.argv[1], sys.argv[2], "--json"])
finally:
    assert not {"torch", "transformers"} & set(sys.modules)
"""
    hits = json.loads(run_script(script, folder, CAPTIONS[0]))["hits"]
    assert [hit["row"] for hit in hits] == [hit.row for hit in searcher_of(index.folder).by_text(CAPTIONS[0]).hits]


def test_a_damaged_text_side_is_mended_by_the_command_that_made_it(made, tmp_path):
    _, _, index, query = made
    shutil.copytree(index.folder, tmp_path / "index")
    graph = tmp_path / "index" / index.document.text.folder / "model.onnx"
    data = graph.read_bytes()
    graph.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    mended = update(tmp_path / "index", query_model=query)
    np.testing.assert_array_equal(found_by(searcher_of(mended.folder)), found_by(searcher_of(index.folder)))


def test_without_the_packages_an_index_with_a_query_model_is_not_searched_by_the_large_model(made, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingError, match="onnxruntime"):
        searcher_of(made[2].folder)


def test_a_store_is_searched_by_the_query_model_of_its_index(made, tmp_path, request):
    _, own, index, query = made
    # PostgreSQL takes one vector per image.
    kind = "lancedb" if index.stored_type is StoredTokens else "postgresql"
    folder = tmp_path / "index"
    shutil.copytree(own.folder, folder)
    store = open_store(URLS[kind](request, tmp_path))
    upload_index(FolderIndex.open(folder), store)
    assert StoreIndex.open(store).query_model is None
    changed = update(folder, query_model=query)
    # Until the next upload, which sends no image again.
    assert StoreIndex.open(store).text_side is None
    assert upload_index(changed, store).sent == 0
    opened = StoreIndex.open(store)
    searcher = IndexSearcher.for_index(opened, device="cuda")
    np.testing.assert_allclose(found_by(searcher), found_by(searcher_of(index.folder)), atol=2e-3)
    assert not searcher.encoder.is_loaded
    # Never by the model in its place.
    shutil.rmtree(opened.text_side)
    with pytest.raises(MissingError, match=f"text side of the query model {index.query_model[:8]} is not beside"):
        IndexSearcher.for_index(opened, device="cpu")
    store.close()
