"""Students: fusion students made of layers of their teacher, and dual students."""

from __future__ import annotations

import re

import pytest

from dcdctl.core.errors import ModelError


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
