"""Batch sizes: halved where memory runs out, kept, and grown into free memory."""

from __future__ import annotations

import pytest

from dcdctl.core.memory import Fitting, in_fitting_parts


def test_parts_shrink_where_memory_runs_out_and_stay_small():
    tried = []

    def work(part):
        tried.append(len(part))
        if len(part) > 3:
            raise MemoryError
        return sum(part)

    assert list(in_fitting_parts(range(10), 8, work)) == [
        *((range(0, 2), 1), (range(2, 4), 5), (range(4, 6), 9), (range(6, 8), 13), (range(8, 10), 17))
    ]
    assert tried == [8, 4, 2, 2, 2, 2, 2]


def test_another_error_is_raised_at_once():
    tried = []

    def work(part):
        tried.append(len(part))
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        list(in_fitting_parts(range(10), 8, work))
    assert tried == [8]


def test_what_did_not_fit_is_not_tried_again_by_the_next_call():
    fitting, tried = Fitting(), []

    def work(part):
        tried.append(len(part))
        if len(part) > 3:
            raise MemoryError

    for _ in range(2):
        list(in_fitting_parts(range(4), 8, work, fitting))
    assert tried == [4, 2, 2, 2, 2]


class FakeMemory:
    """A device of 100 bytes, of which an item takes one, with 10 taken by the model."""

    def __init__(self) -> None:
        self.now = 0

    def begin(self) -> None:
        self.now = 0

    def taken(self) -> int:
        return self.now

    def free(self) -> int:
        return 90


def sizes_of(asked: int, count: int, fitting: Fitting, memory: FakeMemory) -> list[int]:
    """The sizes of the parts of `count` items."""

    def work(part):
        memory.now = len(part)

    return [len(part) for part, _ in in_fitting_parts(range(count), asked, work, fitting)]


def test_a_batch_size_doubles_while_three_times_the_batch_is_free():
    memory = FakeMemory()
    fitting = Fitting(memory)
    # 16 and the free 90 allow 32, 3 * 32 = 96 bytes are not free.
    assert sizes_of(8, 100, fitting, memory) == [8, 16, 32, 32, 12]
    assert sizes_of(8, 70, fitting, memory) == [32, 32, 6]


def test_a_batch_size_grows_to_eight_times_at_most():
    memory = FakeMemory()
    assert sizes_of(1, 31, Fitting(memory), memory) == [1, 2, 4, 8, 8, 8]


def test_a_batch_size_that_did_not_fit_does_not_grow_again():
    memory = FakeMemory()
    fitting = Fitting(memory)

    def work(part):
        memory.now = len(part)
        if len(part) > 10:
            raise MemoryError

    assert [len(part) for part, _ in in_fitting_parts(range(40), 8, work, fitting)] == [8, 8, 8, 8, 8]
    assert fitting.size(8) == 8
