"""Search by texts and images, with and without a re-ranker."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from html_page import Page
from made_index import searcher_of
from noise_index import CAPTIONS, NAMES, make_index
from PIL import Image
from plain_scores import plain_score
from tiny import make_models

from dcdctl.core import models
from dcdctl.core.data import images as data_images
from dcdctl.core.report import write_search_page
from dcdctl.core.search import WEAK, SearchAnswer, answer_document, as_text

pytestmark = pytest.mark.usefixtures("_duals_read_once")

CPU = torch.device("cpu")
TEXT = CAPTIONS[0]


def told(answer: SearchAnswer) -> list[str]:
    """The notes but that on a weak match, which most texts are for a model with random weights."""
    return [note for note in answer.notes if note != WEAK]


@pytest.fixture(scope="module")
def index(noise_index) -> Path:
    return noise_index


@pytest.fixture(scope="module")
def searcher(index):
    return searcher_of(index)


@pytest.fixture(scope="module")
def reranking(index):
    return searcher_of(index, rerank=str(index.parent / "fusion"), depth=5)


def picture_at(index: Path, name: str) -> Image.Image:
    return data_images.decode_image((index.parent / "images" / name).read_bytes())


@torch.no_grad()
def cosines_by_name(index: Path, text: str) -> dict[str, float]:
    """The oracle: every image embedded by the model, its vector rounded as in an index."""
    model = models.load_dual(index / "model")
    names = sorted(str(path.relative_to(index.parent / "images")) for path in (index.parent / "images").rglob("*.png"))
    images = model.embed_images(model.preprocess.images([picture_at(index, name) for name in names])).half().double()
    query = model.embed_texts(model.preprocess.texts([text]))[0].double()
    return dict(zip(names, torch.nn.functional.cosine_similarity(images, query[None]).tolist(), strict=True))


def test_a_text_finds_the_images_of_the_highest_cosines(index, searcher):
    wanted = cosines_by_name(index, TEXT)
    answer = searcher.by_text(TEXT, 5)
    assert [hit.name for hit in answer.hits] == sorted(wanted, key=lambda name: -wanted[name])[:5]
    np.testing.assert_allclose([hit.score for hit in answer.hits], sorted(wanted.values(), reverse=True)[:5], atol=1e-5)
    assert {hit.reranked for hit in answer.hits} == {None}
    assert told(answer) == []


@pytest.mark.parametrize("batch", [64, 2])
def test_texts_searched_together_have_the_answers_of_each_alone(searcher, batch, monkeypatch):
    monkeypatch.setattr("dcdctl.core.search.searcher.TEXT_BATCH", batch)
    texts = [*CAPTIONS, "red"]
    together = searcher.by_texts(texts, 12)
    for text, answer in zip(texts, together, strict=True):
        alone = {hit.row: hit.score for hit in searcher.by_text(text, 12).hits}
        assert {hit.row: hit.score for hit in answer.hits} == pytest.approx(alone, abs=1e-5)
    assert together[0].hits[0].score != together[1].hits[0].score


@pytest.mark.parametrize("name", ["plain.png", "sub/d\u00e9j\u00e0.png"])
def test_an_image_of_the_index_is_found_first(index, searcher, name):
    first = searcher.by_image(picture_at(index, name), 3).hits[0]
    assert first.name == name
    assert first.score == pytest.approx(1, abs=1e-3)
    assert searcher.ask(index.parent / "images" / name, 1).hits == (first,)


def test_a_k_beyond_the_index_finds_every_image_once(searcher):
    hits = searcher.by_text(TEXT, 10**9).hits
    assert len({hit.row for hit in hits}) == len(hits) == len(NAMES)


def test_unread_parts_of_a_text_are_noted(searcher):
    most = searcher.model.preprocess.max_text_len
    (note,) = told(searcher.by_text("red " * 40, 1))
    assert note == f"the text has 42 tokens, and the model reads the first {most}"
    exact = searcher.by_text("red " * (most - 2), 1)
    assert told(exact) == []
    assert "the hits are random" in searcher.by_text("\u72ac \U0001f436", 1).notes[-1]
    assert told(searcher.by_text("red \u72ac", 1)) == []


def test_threads_get_the_answers_of_their_texts(searcher):
    # A text that is too long is tokenized twice, with other settings.
    texts = [" ".join(CAPTIONS[0].split() * 8)[: 10 + 30 * (i % 8)] for i in range(96)]
    wanted = {text: [hit.row for hit in searcher.by_text(text, 4).hits] for text in set(texts)}
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda text: [hit.row for hit in searcher.by_text(text, 4).hits], texts))
    assert found == [wanted[text] for text in texts]


@torch.no_grad()
def logits_by_name(index: Path, names: list[str], text: str) -> dict[str, float]:
    """The oracle: each pair scored alone."""
    scorer = models.load_fusion(index.parent / "fusion")
    words = scorer.preprocess.texts([text])
    images = [scorer.preprocess.images([picture_at(index, name)]) for name in names]
    return {
        name: plain_score(scorer, image.pixel_values, words.input_ids, words.attention_mask, image.pixel_mask).item()
        for name, image in zip(names, images, strict=True)
    }


@pytest.mark.parametrize("batch", [16, 3])
def test_a_reranker_orders_the_first_answers_only(index, searcher, reranking, batch, monkeypatch):
    # Five candidates: the last batch of three is not full.
    monkeypatch.setattr("dcdctl.core.search.torch_models.IMAGE_BATCH", batch)
    first = [hit.name for hit in searcher.by_text(TEXT, 7).hits]
    logits = logits_by_name(index, first[:5], TEXT)
    hits = reranking.by_text(TEXT, 7).hits
    assert [hit.name for hit in hits] == [*sorted(first[:5], key=lambda name: -logits[name]), *first[5:]]
    assert {hit.name: hit.reranked for hit in hits[:5]} == pytest.approx(logits, abs=1e-4)
    assert [hit.reranked for hit in hits[5:]] == [None, None]
    assert [hit.name for hit in hits[:5]] != first[:5]
    assert told(reranking.by_text(TEXT, 7)) == []
    assert reranking.by_text(TEXT, 2).hits == hits[:2]


def test_images_that_are_gone_rank_below_reranked_images(index, tmp_path):
    searcher = searcher_of(make_index(tmp_path / "gone"), rerank=str(index.parent / "fusion"), depth=5)
    before = searcher.by_text(TEXT, 5).hits
    for hit in (before[0], before[3]):
        (tmp_path / "gone" / "images" / hit.name).unlink()
    (tmp_path / "gone" / "images" / before[1].name).write_bytes(b"no picture")
    answer = searcher.by_text(TEXT, 6)
    assert [hit.name for hit in answer.hits[:2]] == [before[2].name, before[4].name]
    assert {hit.name for hit in answer.hits[2:5]} == {before[i].name for i in (0, 1, 3)}
    assert told(answer) == ["3 of 5 candidates are not re-ranked: their images are gone or damaged"]
    write_search_page(tmp_path / "sheet.html", searcher.index, TEXT, answer)
    text = (tmp_path / "sheet.html").read_text()
    assert text.count("the image is gone") == 3
    assert len(Page(text).all("img")) == 3


@torch.no_grad()
def test_a_dual_encoder_reranks_by_its_scaled_cosines(index, searcher, tmp_path):
    other = make_models(CAPTIONS)[1]
    for parameter in other.parameters():
        parameter.data.mul_(-5 if parameter.ndim > 1 else 1)
    models.save(other, tmp_path / "other")
    first = [hit.name for hit in searcher.by_text(TEXT, 7).hits]
    images_ID = other.embed_images(other.preprocess.images([picture_at(index, name) for name in first[:5]]))
    text_D = other.embed_texts(other.preprocess.texts([TEXT]))[0]
    logits = dict(zip(first[:5], (other.logit_scale * images_ID @ text_D).tolist(), strict=True))
    hits = searcher_of(index, rerank=str(tmp_path / "other"), depth=5).by_text(TEXT, 7).hits
    assert [hit.name for hit in hits] == [*sorted(first[:5], key=lambda name: -logits[name]), *first[5:]]
    assert {hit.name: hit.reranked for hit in hits[:5]} == pytest.approx(logits, abs=1e-5)
    assert [hit.name for hit in hits[:5]] != first[:5]


def test_a_document_has_every_number_and_is_text(searcher):
    answer = searcher.by_text(TEXT, 2)
    document = answer_document(TEXT, answer, searcher.index)
    assert document["query"] == {"text": TEXT}
    assert document["index"]["images"] == len(NAMES)
    assert [hit["place"] for hit in document["hits"]] == [1, 2]
    assert [hit["score"] for hit in document["hits"]] == [hit.score for hit in answer.hits]
    assert set(document["seconds"]) == {"encode", "find", "rerank"}
    assert answer_document(Path("caf\udce9.png"), answer, searcher.index)["query"] == {"image": "caf\ufffd.png"}
    assert as_text("caf\u00e9") == "caf\u00e9"


def test_the_page_embeds_its_images_and_escapes_names_and_texts(index, searcher, tmp_path):
    question = "<script>alert(1)</script> red"
    write_search_page(tmp_path / "sheet.html", searcher.index, question, searcher.by_text(question, 12))
    text = (tmp_path / "sheet.html").read_text()
    page = Page(text)
    images = page.all("img")
    assert len(images) == len(NAMES)
    assert all((image["src"] or "").startswith("data:image/webp;base64,") for image in images)
    # Control characters and changes of direction are shown as escapes.
    shown = {name.replace("\x1b", r"\u001b").replace("\u202e", r"\u202e") for name in NAMES}
    assert {image["alt"] for image in images} == {name if name.endswith(".png") else f"{name}.png" for name in shown}
    assert page.all("script") == []
    assert "http" not in text


def test_the_page_of_an_image_query_shows_the_image(index, searcher, tmp_path):
    question = index.parent / "images" / "plain.png"
    write_search_page(tmp_path / "sheet.html", searcher.index, question, searcher.ask(question, 2))
    alts = [image["alt"] for image in Page((tmp_path / "sheet.html").read_text()).all("img")]
    assert alts[:2] == ["the query image", "plain.png"]
