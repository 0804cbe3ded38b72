"""Students: fusion students made of layers of their teacher, and dual students."""

from __future__ import annotations

import re

import pytest
import torch

from dcdctl.core.errors import ModelError


@torch.no_grad()
def _scores(scorer, pil_images, captions):
    batch = scorer.preprocess.images(pil_images), scorer.preprocess.texts(captions[:3])
    return scorer(*batch, torch.arange(3), torch.arange(3))


@pytest.mark.parametrize("layers", [[0], [3], [0, 2], [1, 2, 3]])
def test_a_student_has_the_requested_layers(vilt, pil_images, captions, layers):
    student = vilt.student(layers)
    assert len(student.layers) == student.network.config.num_hidden_layers == len(layers)
    for layer, index in zip(student.layers, layers, strict=True):
        assert torch.equal(layer.intermediate.dense.weight, vilt.layers[index].intermediate.dense.weight)
    assert (_scores(student, pil_images, captions) - _scores(vilt, pil_images, captions)).abs().max() > 1e-3


def test_a_student_shares_no_storage_and_is_trainable_although_its_teacher_is_frozen(vilt):
    vilt.requires_grad_(False)
    student = vilt.student([0, 3])
    storages = {parameter.untyped_storage().data_ptr() for parameter in student.parameters()}
    assert storages.isdisjoint(parameter.untyped_storage().data_ptr() for parameter in vilt.parameters())
    assert all(parameter.requires_grad for parameter in student.parameters())
    assert not any(parameter.requires_grad for parameter in vilt.parameters())
    assert vilt.network.config.num_hidden_layers == 4


@pytest.mark.parametrize("layers", [[], [0, 4], [-1], [2, 1], [1, 1]])
def test_invalid_layers_of_a_student_are_refused(vilt, layers):
    message = f"layers of a student are {layers}, expected some of 0 to 3, ascending and each once"
    with pytest.raises(ModelError, match=re.escape(message)):
        vilt.student(layers)
