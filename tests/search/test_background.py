"""The background of an index against a plain computation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import served
import torch
from made_index import build, searcher_of, update
from PIL import Image

from dcdctl.core.search import WEAK, FolderIndex, IndexSearcher, background
from dcdctl.core.search.index_config import IndexConfig
from dcdctl.core.search.torch_models import DualVectors

pytestmark = pytest.mark.usefixtures("_duals_read_once")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return served.make(tmp_path_factory.mktemp("background"))


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def by_hand(searcher: IndexSearcher) -> list[float]:
    index = searcher.index
    rows = [row for row in range(index.num_rows) if not index.is_removed[row]]
    images = unit(index.stored(np.array(rows)).data.astype(np.float64))
    model = searcher.model
    with torch.inference_mode():
        probes = model.embed_texts(model.preprocess.texts(background.probe_texts())).double().numpy()
    probes = unit(probes[:, : index.dim])
    best = [max(probe @ image for image in images) for probe in probes]
    return [float(np.median(probes @ images.T)), float(np.quantile(best, 0.95))]


def test_the_background_is_that_of_all_probes_and_images(made):
    found = replace(made.searcher).background
    assert [found.typical, found.limit] == pytest.approx(by_hand(made.searcher), abs=2e-3)


def test_the_background_of_short_vectors_is_that_of_their_first_numbers(made, tmp_path):
    build(made.run, made.photos, tmp_path / "short", IndexConfig(dims=3))
    searcher = searcher_of(tmp_path / "short")
    assert searcher.texts.probes.shape == (64, 8)
    found = searcher.background
    assert [found.typical, found.limit] == pytest.approx(by_hand(searcher), abs=2e-3)
    assert searcher.by_text(background.probe_texts()[0], 1).background == found


def test_a_text_is_weak_up_to_the_limit_and_the_page_and_python_say_so(made):
    searcher = made.searcher
    limit = by_hand(searcher)[1]
    texts = [*background.probe_texts(), *served.CAPTIONS, "red"]
    answers = searcher.by_texts(texts, 1)
    for answer in answers:
        assert (WEAK in answer.notes) == (answer.hits[0].score <= limit + 2e-3)
        assert answer.background == searcher.background
    assert len({WEAK in answer.notes for answer in answers}) == 2
    image = searcher.by_image(Image.new("RGB", (8, 8)), 1)
    assert (image.notes, image.background) == ((), None)


def test_removed_images_are_no_background(made, tmp_path):
    searcher = made.searcher
    name = searcher.by_text(background.probe_texts()[0], 1).hits[0].name
    update(made.index, remove=(name,))
    after = replace(made.searcher).background
    assert FolderIndex.open(made.index).num_images == len(served.NAMES) - 1
    assert [after.typical, after.limit] == pytest.approx(by_hand(made.searcher), abs=2e-3)


def test_the_probes_are_64_different_texts_of_two_to_six_words():
    assert len(set(background.probe_texts())) == 64
    assert {len(text.split()) for text in background.probe_texts()} == {2, 3, 4, 5, 6}


def test_a_text_side_holds_the_vectors_of_the_probes(made):
    searcher = made.searcher
    batch, _ = searcher.texts.tokenize(background.probe_texts())
    stored = searcher.texts.probes
    assert np.array_equal(stored, searcher.texts.vectors(batch))
    texts = DualVectors(searcher.model, torch.device("cpu"))
    found = replace(searcher, texts=texts).background
    assert found.limit == pytest.approx(searcher.background.limit, abs=1e-5)
