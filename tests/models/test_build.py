"""A fusion student is a part of its teacher, and apart from it."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from dcdctl.core import models
from dcdctl.core.errors import ModelError
from dcdctl.core.models import DualSize


@torch.no_grad()
def _scores(scorer, pictures, captions):
    batch = scorer.preprocess.images(pictures), scorer.preprocess.texts(captions[:3])
    return scorer(*batch, torch.arange(3), torch.arange(3))


def test_a_student_with_all_layers_equals_its_teacher(vilt, pictures, captions):
    student = vilt.student(range(4))
    assert_close(_scores(student, pictures, captions), _scores(vilt, pictures, captions), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("layers", [[0], [3], [0, 2], [1, 2, 3]])
def test_a_student_holds_the_layers_asked_for(vilt, pictures, captions, layers):
    student = vilt.student(layers)
    assert len(student.layers) == student.network.config.num_hidden_layers == len(layers)
    for own, index in zip(student.layers, layers, strict=True):
        assert torch.equal(own.intermediate.dense.weight, vilt.layers[index].intermediate.dense.weight)
    assert (_scores(student, pictures, captions) - _scores(vilt, pictures, captions)).abs().max() > 1e-3


def test_a_student_shares_no_storage_and_trains_whatever_its_teacher_does(vilt):
    vilt.requires_grad_(False)
    student = vilt.student([0, 3])
    own = {parameter.untyped_storage().data_ptr() for parameter in student.parameters()}
    assert own.isdisjoint(parameter.untyped_storage().data_ptr() for parameter in vilt.parameters())
    assert all(parameter.requires_grad for parameter in student.parameters())
    assert not any(parameter.requires_grad for parameter in vilt.parameters())
    assert vilt.network.config.num_hidden_layers == 4


def test_a_student_is_saved_as_what_it_is(vilt, pictures, captions, tmp_path):
    student = vilt.student([0, 3])
    models.save(student, tmp_path / "student")
    again = models.load_fusion(tmp_path / "student")
    assert_close(_scores(again, pictures, captions), _scores(student, pictures, captions), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([], r"at least one layer; the teacher has layers 0 to 3"),
        ([0, 4], r"has no layer 4; it has layers 0 to 3"),
        ([-1], r"has no layer -1"),
        ([2, 1], r"ascend without repeats, got \[2, 1\]"),
        ([1, 1], r"ascend without repeats"),
    ],
)
def test_layers_that_make_no_student_are_refused(vilt, layers, message):
    with pytest.raises(ModelError, match=message):
        vilt.student(layers)


@pytest.mark.parametrize(("count", "expected"), [(1, [0]), (2, [0]), (4, [0, 3]), (6, [0, 3, 5]), (12, [0, 2, 4, 7, 9, 11])])
def test_every_other_layer_is_what_dcd_and_distilbert_take(count, expected):
    assert models.every_other(count) == expected


def test_a_dual_student_knows_the_words_of_its_captions(captions):
    student = models.dual_student(DualSize(hidden_size=16, intermediate_size=16, num_vision_layers=1, num_text_layers=1), captions)
    assert not (student.preprocess.texts(captions).input_ids == student.preprocess.tokenizer.unk_token_id).any()
