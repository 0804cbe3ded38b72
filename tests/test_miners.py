"""Who is near whom: BM25, vectors and chance, each against a plain oracle; what must not be paired is left out."""

from __future__ import annotations

import collections
import math
import sys

import numpy as np
import pytest
import torch
from encoders import SIDE, save_text, save_vision
from tiny import make_corpus
from transformers import AutoModel, CLIPConfig, CLIPImageProcessorPil

from dcdctl.core import candidates, miners, models, vectors
from dcdctl.core.candidates import CandidateConfig
from dcdctl.core.errors import ConfigError, MissingError, ModelError
from dcdctl.core.pictures import difference_hash

CPU = torch.device("cpu")
TEXTS = [
    ["a red dog runs on grass", "the dog is red"],
    ["a red cat sleeps", "A red cat sleeps!"],
    ["two birds fly over the sea", "birds above water"],
    ["a dog and a cat play on grass", "the dog plays"],
    ["a boat on the sea", "the dog is  RED."],
]


@pytest.fixture
def corpus(tmp_path):
    return make_corpus(tmp_path / "corpus", TEXTS)


def bm25(query: list[str], documents: list[list[str]]) -> list[float]:
    """Lucene's BM25, k1 1.5 and b 0.75."""
    mean = sum(map(len, documents)) / len(documents)
    frequency = collections.Counter(word for document in documents for word in set(document))
    scores = []
    for document in documents:
        counts = collections.Counter(document)
        score = 0.0
        for word in query:
            idf = math.log(1 + (len(documents) - frequency[word] + 0.5) / (frequency[word] + 0.5))
            score += idf * counts[word] / (counts[word] + 1.5 * (0.25 + 0.75 * len(document) / mean))
        scores.append(score)
    return scores


def words(text: str) -> list[str]:
    return "".join(letter if letter.isalnum() else " " for letter in text.lower()).split()


def test_lexical_candidates_are_the_best_by_bm25(corpus):
    drawn = candidates.draw(corpus, CandidateConfig(kind="lexical", per_query=3))
    of_image = [[word for text in texts for word in words(text)] for texts in TEXTS]
    of_text = [words(text) for text in corpus.captions]
    is_true = candidates.Positives(candidates.text_classes(corpus.captions), corpus.caption_image)
    for direction, lists, queries, documents in (
        ("text", drawn.texts_of_image, of_image, of_text),
        ("image", drawn.images_of_text, of_text, of_image),
    ):
        for query, tokens in enumerate(queries):
            scores = np.array(bm25([word for word in tokens if any(word in document for document in documents)], documents))
            index = np.arange(len(documents))
            pairs = (np.full_like(index, query), index) if direction == "text" else (index, np.full_like(index, query))
            scores[is_true(*pairs)] = -np.inf
            kept = lists[query]
            assert len(kept) == 3
            # Ties may fall either way: the worst that is kept scores no less than the best that is not.
            assert scores[kept].min() >= np.delete(scores, kept).max() - 1e-6


def test_equal_texts_are_no_negatives_whatever_their_case_spacing_and_punctuation(corpus):
    classes = candidates.text_classes(corpus.captions)
    assert classes[2] == classes[3]
    assert classes[1] == classes[9]
    for kind in ("random", "lexical"):
        drawn = candidates.draw(corpus, CandidateConfig(kind=kind, per_query=9))
        assert 9 not in drawn.texts_of_image[0]
        assert 1 not in drawn.texts_of_image[4]
        assert 0 not in drawn.images_of_text[9]


@pytest.fixture(params=["dual", "clip", "text"])
def embedder(request, corpus, tmp_path):
    """A reference to each kind of model that gives vectors."""
    if request.param == "dual":
        size = models.DualSize(hidden_size=16, num_attention_heads=2, intermediate_size=16, image_size=32)
        models.save(models.dual_student(size, corpus.captions), tmp_path / "dual")
        return str(tmp_path / "dual")
    text = save_text("bert", corpus.captions, tmp_path / "text")
    if request.param == "text":
        return text
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    of_text = {**small, "vocab_size": 200, "bos_token_id": 0, "eos_token_id": 3, "pad_token_id": 1, "max_position_embeddings": 48}
    config = CLIPConfig(vision_config={**small, "image_size": SIDE, "patch_size": 8}, text_config=of_text, projection_dim=8)
    AutoModel.from_config(config).save_pretrained(text)
    CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}).save_pretrained(text)
    return text


def test_embedding_candidates_are_the_best_by_inner_product(corpus, embedder):
    drawn = candidates.draw(corpus, CandidateConfig(kind="embedding", per_query=4, model=embedder))
    found = vectors.embed(vectors.load(embedder, CPU), corpus)
    scores_IT = (found.images_ID @ found.texts_TD.T).numpy()
    index_IT = np.indices(scores_IT.shape)
    is_true_IT = candidates.Positives(candidates.text_classes(corpus.captions), corpus.caption_image)(*index_IT)
    scores_IT = np.where(is_true_IT, -np.inf, scores_IT)
    for image in range(corpus.num_images):
        assert drawn.texts_of_image[image].tolist() == sorted(np.argsort(-scores_IT[image], kind="stable")[:4].tolist())
    for text in range(corpus.num_captions):
        allowed = int((~is_true_IT[:, text]).sum())
        assert drawn.images_of_text[text].tolist() == sorted(np.argsort(-scores_IT[:, text], kind="stable")[: min(4, allowed)].tolist())


def test_vectors_have_length_1_and_stand_in_the_order_of_the_corpus(corpus, embedder):
    found = vectors.embed(vectors.load(embedder, CPU), corpus)
    torch.testing.assert_close(found.images_ID.norm(dim=1), torch.ones(5))
    one = vectors.load(embedder, CPU)
    with torch.no_grad():
        for text in (0, 7):
            alone = torch.nn.functional.normalize(one.texts([corpus.captions[text]]).float(), dim=-1)[0]
            torch.testing.assert_close(found.texts_TD[text], alone, rtol=1e-4, atol=1e-5)


def test_a_model_without_vectors_of_captions_is_refused(tmp_path):
    with pytest.raises(ModelError, match="is a vit model, which gives captions no vectors"):
        vectors.load(save_vision("tokens", tmp_path / "vision"), CPU)


def test_mixed_candidates_have_their_shares(corpus):
    rows = {"even": np.array([[0, 2, 4, 6, 8]]), "odd": np.array([[1, 3, 5, 7, 9]])}
    mixed = miners.mixed_miner(
        [(lambda queries: rows["even"], 3), (lambda queries: rows["odd"], 1)], lambda query, item: np.isin(item, [0, 1])
    )
    assert miners.first_distinct(mixed, 1, 10, 4, lambda query, item: np.isin(item, [0, 1]))[1].tolist() == [2, 3, 4, 6]
    config = CandidateConfig(kind="mixed", per_query=4, shares={"lexical": 1.0, "random": 1.0})
    drawn = candidates.draw(corpus, config)
    best = candidates.draw(corpus, CandidateConfig(kind="lexical", per_query=2))
    for image in range(corpus.num_images):
        assert len(drawn.texts_of_image[image]) == 4
        assert set(best.texts_of_image[image].tolist()) <= set(drawn.texts_of_image[image].tolist())


@pytest.mark.parametrize("kind", ["random", "lexical", "blocks"])
def test_only_the_directions_asked_for_are_mined(corpus, kind):
    drawn = candidates.draw(corpus, CandidateConfig(kind=kind, per_query=2, block_size=3, directions=("text",)))
    assert len(drawn.texts_of_image.values) > 0
    assert len(drawn.images_of_text.values) == 0
    assert len(drawn.images_of_text) == 10


def test_pictures_that_look_alike_are_no_negatives_for_each_other(corpus, monkeypatch):
    pictures = corpus.images(range(5))
    alike = [pictures[0], pictures[1], pictures[0].resize((64, 64)), pictures[3], pictures[4]]
    monkeypatch.setattr(type(corpus), "images", lambda self, image_ix: [alike[int(image)] for image in image_ix])
    assert (difference_hash(alike[0]) ^ difference_hash(alike[2])).bit_count() <= 10
    drawn = candidates.draw(corpus, CandidateConfig(per_query=9, duplicate_bits=10))
    assert {4, 5}.isdisjoint(drawn.texts_of_image[0].tolist())
    assert {0, 1}.isdisjoint(drawn.texts_of_image[2].tolist())
    assert 2 not in drawn.images_of_text[0]
    # Two captions each way, and two images each way.
    assert drawn.dropped == {"near-duplicate pictures": 8}


def test_draws_are_different_and_a_function_of_the_seed(corpus):
    drawn = [candidates.draw(corpus, CandidateConfig(per_query=3, seed=seed)).texts_of_image.values.tolist() for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_chunks_do_not_change_who_is_excluded(monkeypatch):
    monkeypatch.setattr(miners, "CHUNK", 7)
    miner = miners.random_miner([3], 50, 1000, 20)
    queries, items = miners.first_distinct(miner, 50, 1000, 20, lambda query, item: item % 2 == 0)
    assert (items % 2 == 1).all()
    assert len(set(zip(queries.tolist(), items.tolist(), strict=True))) == len(queries)
    assert np.bincount(queries).max() == 20
    assert np.bincount(queries).min() >= 15


def test_without_bm25s_the_error_says_how_to_install_it(corpus, monkeypatch):
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with pytest.raises(MissingError, match=r"needs bm25s, which is not installed; pip install 'dcdctl\[mine\]'"):
        candidates.draw(corpus, CandidateConfig(kind="lexical"))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"kind": "embedding"}, r"needs candidates\.model"),
        ({"kind": "mixed"}, r"candidates\.shares is for candidates\.kind mixed"),
        ({"shares": {"random": 1.0}}, r"candidates\.shares is for candidates\.kind mixed"),
        ({"kind": "mixed", "shares": {"blocks": 1.0}}, r"candidates\.shares has blocks = 1\.0; known: random, lexical, embedding"),
        ({"directions": ()}, r"candidates\.directions must name text, image or both, got \[\]"),
        ({"duplicate_bits": 64}, r"candidates\.duplicate_bits must lie in \[0, 64\), got 64"),
        ({"relative_margin": 1.0}, r"candidates\.relative_margin must lie in \[0, 1\), got 1\.0"),
    ],
)
def test_settings_that_do_not_go_together_are_named(wrong, message):
    with pytest.raises(ConfigError, match=message):
        CandidateConfig(**wrong)
