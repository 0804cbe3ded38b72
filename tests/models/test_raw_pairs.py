"""Scorers that read whole images and captions: what they are given back, and what they refuse."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from dcdctl.core import models
from dcdctl.core.errors import ModelError
from dcdctl.core.models import RawPairScorer, RawPreprocess, States

CAPTIONS = ["a café in the snow", "日本の猫", "", "x" * 300]
CAPTIONS_OF_WORDS = ["a large red circle is left of a small blue square", "a"]


class Recorder(RawPairScorer):
    """The logit is 1000 x the red of the last pixel + the number of characters; keeps what it was given."""

    settings: ClassVar[dict[str, object]] = {}

    def __init__(self, network):
        super().__init__(network)
        self.noun = "a recorder"

    def _score(self, images, texts, image_ix, text_ix):
        self.seen = images, texts
        numbers = [
            1000 * images[i].getpixel((images[i].width - 1, images[i].height - 1))[0] + len(texts[t])
            for i, t in zip(image_ix, text_ix, strict=True)
        ]
        return torch.tensor(numbers, dtype=torch.float32)


@pytest.fixture
def recorder():
    return Recorder(nn.Module())


def encoded(scorer, images, texts):
    return scorer.encode_images(scorer.preprocess.images(images)), scorer.encode_texts(scorer.preprocess.texts(texts))


def test_images_and_captions_come_back_as_they_were(recorder, make_image):
    images = [make_image(*size, seed) for seed, size in enumerate([(5, 9), (31, 2), (1, 1), (300, 70)])]
    pixels, texts = encoded(recorder, images, CAPTIONS)
    joined = States.cat([recorder.encode_images(recorder.preprocess.images(images[:2])), pixels])
    recorder.score_pairs(
        joined.take(torch.tensor([1, 2, 3, 4, 5])), texts, torch.tensor([0, 1, 2, 3, 4]), torch.tensor([0, 1, 2, 3, 0])
    )
    given, captions = recorder.seen
    for image, original in zip(given, [images[1], *images], strict=True):
        assert np.array_equal(np.asarray(image), np.asarray(original))
    assert captions == CAPTIONS


def test_an_image_of_another_mode_is_given_as_rgb(recorder, make_image):
    grey = make_image(7, 3, 0, "L")
    recorder.score_pairs(*encoded(recorder, [grey], ["a"]), torch.tensor([0]), torch.tensor([0]))
    assert np.array_equal(np.asarray(recorder.seen[0][0]), np.asarray(grey.convert("RGB")))


def test_logits_belong_to_their_pairs_and_unused_inputs_are_not_unpacked(recorder, make_image):
    images = [make_image(4 + k, 6, k) for k in range(3)]
    reds = [image.getpixel((image.width - 1, 5))[0] for image in images]
    image_ix, text_ix = torch.tensor([2, 0, 2]), torch.tensor([3, 1, 1])
    logits = recorder.score_pairs(*encoded(recorder, images, CAPTIONS), image_ix, text_ix)
    assert logits.tolist() == [1000 * reds[2] + 300, 1000 * reds[0] + 4, 1000 * reds[2] + 4]
    assert [len(given) for given in recorder.seen] == [2, 2]


def test_captions_are_cut_to_characters_or_tokens_only_on_request(tokenizer):
    assert [int(mask.sum()) for mask in RawPreprocess().texts(["x" * 300, "é"]).attention_mask] == [300, 2]
    assert bytes(RawPreprocess(max_text_len=4).texts(["a léé"]).input_ids[0].tolist()).decode() == "a lé"
    by_tokens = RawPreprocess(max_text_len=3, tokenizer=tokenizer)
    whole, short = CAPTIONS_OF_WORDS
    (cut_L, short_L), mask_TL = (
        by_tokens.texts([whole, short]).input_ids,
        by_tokens.texts([whole, short]).attention_mask.bool(),
    )
    assert tokenizer.tokenize(bytes(cut_L[mask_TL[0]].tolist()).decode()) == tokenizer.tokenize(whole)[:3]
    assert bytes(short_L[mask_TL[1]].tolist()).decode() == short


@pytest.mark.parametrize(
    "refused",
    [lambda s, _: s.student([0]), lambda s, _: s.set_dropout(0.1), lambda s, _: s.checkpoint_activations(),
     lambda s, _: s.export_copy(), lambda s, folder: models.save(s, folder / "model")],
)  # fmt: skip
def test_what_such_a_scorer_cannot_do_is_refused_with_advice(recorder, tmp_path, refused):
    with pytest.raises(ModelError, match="a recorder") as error:
        refused(recorder, tmp_path)
    assert error.value.hint
    assert not (tmp_path / "model").exists()
