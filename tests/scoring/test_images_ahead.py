"""Images that threads read ahead: the same bytes as without threads, and the same errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from encoders import make_pair
from tiny import make_models

from dcdctl.core import data
from dcdctl.core.engines import Compute
from dcdctl.core.errors import CorpusError
from dcdctl.core.scoring import (
    CorpusSource,
    PairScorer,
    dual_embedder,
    embed_all,
    feature_build,
    features,
    open_or_build,
)
from dcdctl.core.scoring import pairs as scoring_pairs


@pytest.fixture(scope="module")
def pair(corpus, tmp_path_factory):
    return make_pair(corpus.captions, tmp_path_factory.mktemp("pair"))


@pytest.mark.parametrize("workers", [1, 3])
def test_features_have_the_same_bytes(corpus, pair, tmp_path, monkeypatch, workers):
    monkeypatch.setattr(features, "IMAGES_PER_FILE", 12)
    monkeypatch.setattr(feature_build, "IMAGE_CHUNK", 5)
    alone, helped = (
        open_or_build(tmp_path / str(count), corpus, pair, Compute(workers=count)) for count in (0, workers)
    )
    assert alone.parts == helped.parts  # with the SHA-256 of each file
    assert len(alone.parts) > 4


@pytest.mark.parametrize("workers", [1, 3])
def test_scores_have_the_same_bits(corpus, teacher, monkeypatch, workers):
    monkeypatch.setattr(scoring_pairs, "IMAGE_CHUNK", 5)
    rng = np.random.default_rng(0)
    image_P, text_P = rng.integers(0, 32, 40), rng.integers(0, 160, 40)
    source = CorpusSource(corpus, teacher.preprocess)

    def scored(count: int) -> list[np.ndarray]:
        compute = Compute(batch_size=3, workers=count)
        fold = PairScorer(scorer=teacher, source=source, images=range(32), texts=range(160), compute=compute)
        return [
            scoring_pairs.score_pairs(teacher, source, image_P, text_P, compute=compute),
            fold.score(image_P, text_P),
        ]

    for alone, helped in zip(scored(0), scored(workers), strict=True):
        np.testing.assert_array_equal(alone, helped)


@pytest.mark.parametrize("workers", [1, 3])
def test_vectors_have_the_same_bits_and_a_damaged_image_the_same_message(corpus, monkeypatch, workers):
    _, dual_model = make_models(corpus.captions)
    embedder, source = dual_embedder(dual_model, torch.device("cpu")), CorpusSource(corpus, dual_model.preprocess)
    alone, helped = (embed_all(embedder, source, Compute(batch_size=3, workers=count)) for count in (0, workers))
    assert torch.equal(alone.images_ID, helped.images_ID)
    damaged = {corpus.image_bytes(image) for image in (8, 9, 20)}
    decode = data.decode_image
    monkeypatch.setattr(
        "dcdctl.core.data.images.decode_image", lambda file: decode(file[: len(file) // (2 if file in damaged else 1)])
    )
    messages = []
    for count in (0, workers):
        with pytest.raises(CorpusError, match="cannot be decoded") as raised:
            embed_all(embedder, source, Compute(batch_size=3, workers=count))
        messages.append(str(raised.value))
    assert messages[0] == messages[1]
    assert corpus.image_ids[8] in messages[0]
