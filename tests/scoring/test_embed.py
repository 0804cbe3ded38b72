"""One loop embeds a corpus, whatever the batch size and the order."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from tables import OWNER, Numbers, make_dual
from torch import nn
from torch.testing import assert_close

from dcdctl.core.devices import CPU
from dcdctl.core.engines import Compute
from dcdctl.core.models import TextBatch
from dcdctl.core.scoring import CorpusSource, Source, dual_embedder, embed_all, embed_batch
from dcdctl.core.scoring.embed import Embedder


@pytest.fixture
def source() -> Source:
    return CorpusSource(Numbers(OWNER), make_dual().preprocess)


@pytest.mark.parametrize("batch_size", [1, 5, 100])
@pytest.mark.parametrize("by_length", [False, True])
def test_vectors_stand_in_the_order_of_the_corpus(source, batch_size, by_length):
    dual, counted = make_dual(), []

    @contextmanager
    def track(label, *, total, unit):
        yield counted.append

    vectors = embed_all(
        dual_embedder(dual, CPU), source, Compute(batch_size=batch_size), by_length=by_length, track=track
    )
    assert_close(vectors.texts_TD, dual.text_TD)
    assert_close(vectors.images_ID, dual.image_ID)
    assert sum(counted) == len(OWNER) + len(dual.image_ID)


def test_a_model_in_the_middle_of_its_training_embeds_in_eval_mode():
    dual = make_dual().train()
    dual_embedder(dual, CPU)
    assert not dual.training


def test_without_an_image_encoder_an_image_is_the_mean_of_its_captions(source):
    dual = make_dual()
    embedder = Embedder(
        preprocess=source.preprocess, network=nn.Identity(), texts=dual.embed_texts, images=None, device=CPU
    )
    vectors = embed_all(embedder, source, Compute(batch_size=7))
    for image in range(10):
        mean_D = vectors.texts_TD[[text for text, owner in enumerate(OWNER) if owner == image]].mean(dim=0)
        assert_close(vectors.images_ID[image], mean_D / mean_D.norm())


@pytest.mark.parametrize(("options", "length"), [({}, 1.0), ({"normalize": True}, 1.0), ({"normalize": False}, 3.0)])
def test_vectors_are_normalized_unless_asked_otherwise(source, options, length):
    dual = make_dual()
    dual.text_TD = 3 * dual.text_TD
    vectors = embed_all(dual_embedder(dual, CPU), source, Compute(), **options)
    assert_close(vectors.texts_TD.norm(dim=1), torch.full((len(OWNER),), length))


def test_a_batch_is_embedded_in_the_precision_and_comes_back_in_float32():
    seen = []

    def embed(batch: TextBatch) -> torch.Tensor:
        product = torch.ones(1, 2) @ torch.ones(2, 2)
        seen.append(product.dtype)
        return product

    batch = TextBatch(torch.ones(1, 1), torch.ones(1, 1))
    assert embed_batch(embed, batch, Compute(precision="bfloat16")).dtype == torch.float32
    assert seen == [torch.bfloat16]


def test_a_batch_of_images_or_captions_that_does_not_fit_is_embedded_in_halves(source):
    dual, tried = make_dual(), []

    def limited(embed):
        def work(batch):
            tried.append(len(batch))
            if len(batch) > 3:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return embed(batch)

        return work

    embedder = Embedder(
        preprocess=source.preprocess,
        network=nn.Identity(),
        texts=limited(dual.embed_texts),
        images=limited(dual.embed_images),
        device=CPU,
    )
    vectors = embed_all(embedder, source, Compute(batch_size=8))
    assert_close(vectors.texts_TD, dual.text_TD)
    assert_close(vectors.images_ID, dual.image_ID)
    # Once for the captions and once for the images, not once per batch.
    assert [count for count in tried if count > 3] == [8, 4, 8, 4]


def test_some_rows_of_a_batch_keep_their_mask():
    batch = TextBatch(torch.arange(6).view(3, 2), torch.tensor([[1, 1], [1, 0], [1, 1]]))
    assert batch.mask_on_cpu.shape == (3, 2)
    part = batch[1:3]
    assert part.input_ids.tolist() == [[2, 3], [4, 5]]
    assert part.mask_on_cpu.tolist() == [[1, 0], [1, 1]]
