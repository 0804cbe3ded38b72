"""Pools: images without captions and texts without images, as a corpus."""

from __future__ import annotations

import numpy as np
import pytest
from encoders import make_pair
from tiny import make_corpus, make_pool, write_pool

from dcdctl.core.artifacts import read_document, write_document
from dcdctl.core.data import Corpus
from dcdctl.core.errors import CorpusError
from dcdctl.core.integrity import verify
from dcdctl.core.progress import silent
from dcdctl.core.scoring import CorpusSource, features, open_or_build

CAPTIONS = [[f"a {word} of image {image}" for word in ("view", "photo")[: 1 + image % 2]] for image in range(9)]
FLAT = [text for texts in CAPTIONS for text in texts]


@pytest.fixture
def pool(tmp_path):
    return make_pool(tmp_path / "pool", CAPTIONS)


def test_a_pool_has_images_and_texts_that_belong_to_no_image(pool, tmp_path):
    captioned = make_corpus(tmp_path / "captioned", CAPTIONS)
    assert (pool.is_pool, captioned.is_pool) == (True, False)
    assert (pool.num_images, pool.num_captions) == (9, len(FLAT))
    assert sorted(pool.captions) == sorted(FLAT)
    assert pool.captions != FLAT
    assert [FLAT[number] for number in pool.caption_ids] == pool.captions
    assert pool.caption_image.tolist() == [-1] * len(FLAT)
    assert [list(pool.captions_of(image)) for image in range(9)] == [[]] * 9
    assert pool.image_bytes(4) == captioned.image_bytes(4)
    assert pool.fingerprint != captioned.fingerprint


def test_the_first_images_of_a_pool_keep_all_texts(pool):
    first = pool.subset(4)
    assert (first.is_pool, first.num_images, first.captions) == (True, 4, pool.captions)
    assert first.fingerprint != pool.fingerprint


def test_a_pool_may_have_only_one_side(tmp_path):
    images = make_pool(tmp_path / "images", [[] for _ in range(3)])
    assert (images.is_pool, images.num_images, images.captions) == (True, 3, [])
    (tmp_path / "texts").mkdir()
    entry = write_pool(tmp_path / "texts", "train", [["a", "b"]], np.random.default_rng(0))
    entry |= {"images": 0, "shards": []}
    write_document(tmp_path / "texts" / "corpus.json", {"format": 2, "name": "made", "splits": {"train": entry}})
    texts = Corpus.open(tmp_path / "texts", "train")
    assert (texts.is_pool, texts.num_images, texts.image_ids, sorted(texts.captions)) == (True, 0, [], ["a", "b"])


def test_verify_reads_the_texts_of_a_pool(pool):
    assert list(verify(pool.folder).problems) == []
    path = pool.folder / "texts-train.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert "texts-train.parquet" in "".join(verify(pool.folder).problems)
    with pytest.raises(CorpusError, match=r"texts-train\.parquet"):
        _ = Corpus.open(pool.folder, "train").captions


def test_a_pool_and_captioned_images_are_not_read_as_one(tmp_path):
    corpus = make_corpus(tmp_path / "made", CAPTIONS)
    document = read_document(corpus.folder / "corpus.json", hint="")
    document["splits"]["pool"] = write_pool(corpus.folder, "pool", CAPTIONS, np.random.default_rng(0))
    write_document(corpus.folder / "corpus.json", document)
    assert Corpus.open(corpus.folder, "pool").is_pool
    with pytest.raises(CorpusError, match=r"pool of .* is a pool and train has captions"):
        Corpus.open(corpus.folder, "train+pool")


def test_features_of_a_pool_are_those_of_its_images_and_texts(pool, tmp_path, monkeypatch):
    monkeypatch.setattr(features, "IMAGES_PER_FILE", 4)
    monkeypatch.setattr(features, "TEXTS_PER_FILE", 5)
    dual = make_pair(pool.captions, tmp_path / "pair")
    stored = open_or_build(tmp_path / "features", pool, dual)
    source = CorpusSource(pool, dual.preprocess)
    order = [12, 0, 5, 4, 9]
    expected = dual.encoders.text_features(source.texts(order))
    actual = stored.texts(order)
    np.testing.assert_allclose(actual.tokens.float()[actual.mask], expected.tokens[expected.mask].detach(), atol=2e-3)
    assert actual.mask.tolist() == expected.mask.tolist()
    # A subset has all of its pool's texts and takes their files.
    part = open_or_build(tmp_path / "other", pool.subset(4), dual, track=silent)
    np.testing.assert_array_equal(part.texts(order).tokens, actual.tokens)
