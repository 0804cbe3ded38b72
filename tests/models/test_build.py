"""Students: fusion students made of layers of their teacher, and dual students."""

from __future__ import annotations


def test_a_student_shares_no_storage_and_is_trainable_although_its_teacher_is_frozen(vilt):
    vilt.requires_grad_(False)
    student = vilt.student([0, 3])
    storages = {parameter.untyped_storage().data_ptr() for parameter in student.parameters()}
    assert storages.isdisjoint(parameter.untyped_storage().data_ptr() for parameter in vilt.parameters())
    assert all(parameter.requires_grad for parameter in student.parameters())
    assert not any(parameter.requires_grad for parameter in vilt.parameters())
    assert vilt.network.config.num_hidden_layers == 4
