"""Hard-negative miners: BM25, embeddings and random, each against a plain oracle; false negatives are excluded."""

from __future__ import annotations

import collections
import io
import math

import numpy as np
import pytest
import torch
from encoders import SIDE, save_text, save_vision
from PIL import Image
from tiny import make_corpus, run_script
from transformers import AutoModel, CLIPConfig, CLIPImageProcessorPil, SiglipConfig, SiglipImageProcessorPil, T5Config

from dcdctl.core import models
from dcdctl.core.data import Corpus, difference_hash
from dcdctl.core.errors import ModelError
from dcdctl.core.scoring import embed
from dcdctl.core.teacher import CandidateConfig, candidates, false_negatives, miners

pytestmark = pytest.mark.usefixtures("_duals_read_once")

CPU = torch.device("cpu")
TEXTS = [
    ["a red dog runs on grass", "the dog is red"],
    ["a red cat sleeps", "A red cat sleeps!"],
    ["two birds fly over the sea", "birds above water"],
    ["a dog and a cat play on grass", "the dog plays"],
    ["a boat on the sea", "the dog is  RED."],
]


# Twenty captions of the first image and nineteen of the second have equal texts: few captions of this corpus are
# negatives for either.
REPEATED = [[f"same thing {k}" for k in range(20)], [*(f"SAME thing {k}!" for k in range(19)), "x"]]
REPEATED += [[f"other {image} {k}" for k in range(3)] for image in range(10)]


@pytest.fixture
def corpus(tmp_path):
    return make_corpus(tmp_path / "corpus", TEXTS)


@pytest.fixture(scope="module")
def repeated(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("repeated") / "corpus", REPEATED)


def true_pairs(corpus: Corpus) -> np.ndarray:
    """Images x captions: whether the caption belongs to the image, or has the words of a caption that does."""
    normalized = [" ".join(words(text)) for text in corpus.captions]
    own = [{normalized[text] for text in corpus.captions_of(image)} for image in range(corpus.num_images)]
    return np.array([[text in texts for text in normalized] for texts in own])


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
    drawn = candidates.draw_candidates(corpus, CandidateConfig(kind="lexical", per_query=3))
    of_image = [[word for text in texts for word in words(text)] for texts in TEXTS]
    of_text = [words(text) for text in corpus.captions]
    is_true_IT = true_pairs(corpus)
    for direction, lists, queries, documents in (
        ("text", drawn.texts_of_image, of_image, of_text),
        ("image", drawn.images_of_text, of_text, of_image),
    ):
        for query, tokens in enumerate(queries):
            scores = np.array(
                bm25([word for word in tokens if any(word in document for document in documents)], documents)
            )
            scores[is_true_IT[query] if direction == "text" else is_true_IT[:, query]] = -np.inf
            kept = lists[query]
            assert len(kept) == 3
            # Ties may go either way: the lowest score that is kept is no lower than the highest that is not.
            assert scores[kept].min() >= np.delete(scores, kept).max() - 1e-6


def test_equal_texts_are_no_negatives_whatever_their_case_spacing_and_punctuation(corpus):
    classes = false_negatives.text_classes(corpus.captions)
    assert classes[2] == classes[3]
    assert classes[1] == classes[9]
    for kind in ("random", "lexical"):
        drawn = candidates.draw_candidates(corpus, CandidateConfig(kind=kind, per_query=9))
        assert 9 not in drawn.texts_of_image[0]
        assert 1 not in drawn.texts_of_image[4]
        assert 0 not in drawn.images_of_text[9]


def test_equal_bm25_scores_keep_the_order_of_the_corpus():
    documents = ["sea", "a dog", "a cat", "a dog", "boat", "a dog", "a dog runs"]
    miner = miners.lexical_miner(["dog", "nothing of it", "!?"], documents)
    # Three documents tie for the two ranks, and the last of them is left out.
    assert miner(np.array([0]), 2).tolist() == [[1, 3]]
    assert miner(np.array([0]), 7).tolist() == [[1, 3, 5, 6, 0, 2, 4]]
    assert miner(np.array([1, 2]), 3).tolist() == [[0, 1, 2], [0, 1, 2]]


def test_captions_without_words_have_lexical_candidates(tmp_path):
    corpus = make_corpus(tmp_path / "corpus", [["!", "..."], ["?"], ["a dog"]])
    drawn = candidates.draw_candidates(corpus, CandidateConfig(kind="lexical"))
    # Texts of punctuation alone are different texts, so they are negatives of each other.
    assert [drawn.texts_of_image[image].tolist() for image in range(3)] == [[2, 3], [0, 1, 3], [0, 1, 2]]
    assert miners.lexical_miner(["?"], ["!", "..."])(np.array([0]), 2).tolist() == [[0, 1]]


@pytest.mark.slow
def test_lexical_candidates_are_the_same_in_every_process(repeated, monkeypatch):
    script = """
import sys
from pathlib import Path
from dcdctl.core import data, teacher
drawn = teacher.draw_candidates(data.Corpus.open(Path(sys.argv[1]), "train"),
teacher.CandidateConfig(kind="lexical", per_query=5))
print(drawn.texts_of_image.values.tolist(), drawn.images_of_text.values.tolist())
"""
    outputs = []
    for hash_seed in ("1", "2"):
        # The vocabulary is numbered in the order of a set, which depends on the hash seed.
        monkeypatch.setenv("PYTHONHASHSEED", hash_seed)
        outputs.append(run_script(script, repeated.folder))
    assert outputs[0] == outputs[1]


@pytest.fixture(params=["dual", "clip", "siglip", "text"])
def embedder(request, corpus, tmp_path):
    """A reference to a model of each kind that embeds images and captions."""
    if request.param == "dual":
        size = models.DualSize(hidden_size=16, num_attention_heads=2, intermediate_size=16, image_size=32)
        models.save(models.new_dual(size, models.word_piece(corpus.captions)), tmp_path / "dual")
        return str(tmp_path / "dual")
    text = save_text("bert", corpus.captions, tmp_path / "text")
    if request.param == "text":
        return text
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    vision_size = {**size, "image_size": SIDE, "patch_size": 8}
    text_size = {
        **size,
        "vocab_size": 200,
        "bos_token_id": 0,
        "eos_token_id": 3,
        "pad_token_id": 1,
        "max_position_embeddings": 48,
    }
    if request.param == "clip":
        config = CLIPConfig(vision_config=vision_size, text_config=text_size, projection_dim=8)
        CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}).save_pretrained(
            text
        )
    else:
        config = SiglipConfig(vision_config=vision_size, text_config={**text_size, "projection_size": 16})
        SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE}).save_pretrained(text)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        AutoModel.from_config(config).save_pretrained(text)
    return text


def test_embedding_candidates_are_the_best_by_inner_product(corpus, embedder):
    drawn = candidates.draw_candidates(corpus, CandidateConfig(kind="embedding", per_query=4, model=embedder))
    embeddings = embed.embed_corpus(embed.load_embedder(embedder, CPU), corpus)
    scores_IT = (embeddings.images_ID @ embeddings.texts_TD.T).numpy()
    is_true_IT = true_pairs(corpus)
    scores_IT = np.where(is_true_IT, -np.inf, scores_IT)
    for image in range(corpus.num_images):
        assert drawn.texts_of_image[image].tolist() == sorted(np.argsort(-scores_IT[image], kind="stable")[:4].tolist())
    for text in range(corpus.num_captions):
        allowed = int((~is_true_IT[:, text]).sum())
        assert drawn.images_of_text[text].tolist() == sorted(
            np.argsort(-scores_IT[:, text], kind="stable")[: min(4, allowed)].tolist()
        )


@pytest.mark.parametrize("kind", ["vit", "t5"])
def test_a_model_that_does_not_embed_captions_is_refused(tmp_path, kind):
    if kind == "vit":
        save_vision("tokens", tmp_path)
    else:
        AutoModel.from_config(
            T5Config(vocab_size=99, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
        ).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=f"is a {kind} model, whose vectors are not known here; name a dual encoder"):
        embed.load_embedder(str(tmp_path), CPU)


def test_repeats_and_false_negatives_are_replaced_by_the_next_candidates():
    def excluded(query, item):
        return np.isin(item, [0, 1]).astype(np.uint8)

    def ranked(queries, width):
        return np.array([[0, 5, 5, 1, 9, 6, 7, 8]])

    found, rank, num_dropped = miners.mine(ranked, 1, 10, 4, excluded)
    assert found.tolist() == [5, 6, 7, 9]
    assert rank.tolist() == [0, 2, 3, 1]
    assert num_dropped[:3].tolist() == [0, 2, 0]


@pytest.mark.parametrize("kind", ["random", "lexical", "embedding"])
@pytest.mark.parametrize("per_query", [1, 3, 20, 30])
def test_a_query_has_the_set_number_of_candidates_or_all_its_negatives(repeated, kind, per_query):
    config = CandidateConfig(kind=kind, per_query=per_query, model="given" if kind == "embedding" else "")
    generator = torch.Generator().manual_seed(0)
    given = embed.Vectors(torch.randn(12, 4, generator=generator), torch.randn(70, 4, generator=generator))
    drawn, is_true_IT = candidates.mine_candidates(repeated, config, given), true_pairs(repeated)
    for lists, is_true in ((drawn.texts_of_image, is_true_IT), (drawn.images_of_text, is_true_IT.T)):
        assert np.diff(lists.offsets).tolist() == np.minimum(per_query, (~is_true).sum(axis=1)).tolist()
        for query in range(len(lists)):
            assert len(set(lists[query].tolist())) == len(lists[query])
            assert not is_true[query, lists[query]].any()


@pytest.mark.parametrize(("chunk", "cells"), [(5, 1 << 22), (4096, 60)])
def test_lexical_candidates_do_not_depend_on_chunk_sizes(repeated, monkeypatch, chunk, cells):
    config = CandidateConfig(kind="lexical", per_query=6)
    expected = candidates.draw_candidates(repeated, config)
    monkeypatch.setattr(miners, "QUERIES_PER_CHUNK", chunk)
    monkeypatch.setattr(miners, "MAX_MATRIX_ENTRIES", cells)
    chunked = candidates.draw_candidates(repeated, config)
    assert chunked.texts_of_image.values.tolist() == expected.texts_of_image.values.tolist()
    assert chunked.images_of_text.values.tolist() == expected.images_of_text.values.tolist()
    assert chunked.dropped == expected.dropped


def test_every_chunk_of_queries_has_random_candidates_of_its_own():
    miner = miners.random_miner([3, 1], 12_000, 500)
    first, second = (miner(np.arange(start, start + 4096), 5) for start in (0, 4096))
    assert (first != second).mean() > 0.9
    assert np.array_equal(first, miner(np.arange(4096), 5))


def test_dropped_false_negatives_are_counted_by_reason(tmp_path):
    corpus = make_corpus(tmp_path / "corpus", [["a dog", "grass"], ["A dog!"], ["sea"]])
    # In each direction, four pairs of an image and its own caption, and two of equal text: image 0 with caption 2,
    # image 1 with caption 0.
    drawn = candidates.draw_candidates(corpus, CandidateConfig(per_query=9))
    assert drawn.dropped == {"same image": 8, "equal text": 4}
    blocks = candidates.draw_candidates(
        corpus, CandidateConfig(kind="blocks", block_size=3, group_size=1, directions=("text",))
    )
    assert blocks.dropped == {"same image": 4, "equal text": 2}
    both = candidates.draw_candidates(corpus, CandidateConfig(kind="blocks", block_size=3, group_size=1))
    assert both.dropped == {"same image": 8, "equal text": 4}
    # For image 0, its own two captions and the equal text rank first; the best candidate left is the sea.
    best = candidates.draw_candidates(corpus, CandidateConfig(kind="lexical", per_query=1, directions=("text",)))
    assert [best.texts_of_image[image].tolist() for image in range(3)] == [[3], [1], [0]]
    assert best.dropped == {"same image": 4, "equal text": 2}


def test_blocks_group_images_by_the_embeddings_of_a_model(embedder, tmp_path):
    six = make_corpus(tmp_path / "six", [*TEXTS, ["a bird", "some birds fly"]])
    images_ID = embed.embed_corpus(embed.load_embedder(embedder, CPU), six).images_ID
    scores_I = (images_ID @ images_ID[0]).numpy()
    scores_I[0] = np.inf
    near = set(np.argsort(-scores_I)[:3].tolist())
    drawn = candidates.draw_candidates(six, CandidateConfig(kind="blocks", block_size=3, group_size=3, model=embedder))
    # The first image is grouped with its two nearest images, and the remaining images form the other block.
    for image in range(6):
        others = {int(six.caption_image[text]) for text in drawn.texts_of_image[image]}
        assert others | {image} == (near if image in near else set(range(6)) - near)


@pytest.mark.parametrize("kind", ["random", "lexical", "blocks"])
def test_only_the_requested_directions_are_mined(corpus, kind):
    drawn = candidates.draw_candidates(
        corpus, CandidateConfig(kind=kind, per_query=2, block_size=3, directions=("text",))
    )
    assert len(drawn.texts_of_image.values) > 0
    assert len(drawn.images_of_text.values) == 0
    assert len(drawn.images_of_text) == 10


def resaved(image: Image.Image) -> Image.Image:
    """The image, resized and compressed as a JPEG."""
    stream = io.BytesIO()
    image.resize((48, 48), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=70)
    return Image.open(stream)


@pytest.mark.parametrize("kind", ["random", "lexical", "blocks"])
def test_near_duplicate_images_are_excluded_as_negatives(corpus, monkeypatch, kind):
    images = corpus.images(range(5))
    images[2] = resaved(images[0])
    monkeypatch.setattr(type(corpus), "images", lambda self, image_ix: [images[int(image)] for image in image_ix])
    assert 0 < (difference_hash(images[0]) ^ difference_hash(images[2])).bit_count() <= 10
    drawn = candidates.draw_candidates(corpus, CandidateConfig(kind=kind, per_query=9, block_size=5, duplicate_bits=10))
    assert {4, 5}.isdisjoint(drawn.texts_of_image[0].tolist())
    assert {0, 1}.isdisjoint(drawn.texts_of_image[2].tolist())
    assert 2 not in drawn.images_of_text[0]
    # Images 0 and 2 each drop the two captions of the other, and their four captions drop one image each.
    assert drawn.dropped["near-duplicate images"] == 8
