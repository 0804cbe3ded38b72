"""Reading ahead by threads: order, errors, limits, and ends."""

from __future__ import annotations

import threading
import time
import warnings

import pytest
from processes import TIMEOUT_S

from dcdctl.core.data import ImageError, decode_image
from dcdctl.core.data.images.opened import ignore_pillow_warnings
from dcdctl.core.errors import CorpusError
from dcdctl.core.machine import read_in_threads


@pytest.mark.parametrize("readers", [0, 1, 3])
def test_results_come_in_order_whatever_takes_longest(readers):
    def read(number: int) -> int:
        time.sleep(0.02 if number % 3 == 0 else 0)
        return number**2

    assert list(read_in_threads(read, range(20), readers)) == [number**2 for number in range(20)]


@pytest.mark.parametrize("readers", [0, 1, 3])
def test_an_error_comes_where_its_key_stands(readers):
    def read(number: int) -> int:
        if number == 4:
            raise CorpusError("image 'x' cannot be decoded", hint="prepare again")
        return number

    reading = read_in_threads(read, range(9), readers)
    assert [next(reading) for _ in range(4)] == [0, 1, 2, 3]
    with pytest.raises(CorpusError, match="image 'x' cannot be decoded; prepare again"):
        next(reading)


@pytest.mark.parametrize("ahead", [1, 7])
def test_a_slow_consumer_bounds_what_is_in_memory(ahead):
    """Whatever is read and not yet consumed."""
    begun: list[int] = []
    for consumed, _ in enumerate(
        read_in_threads(lambda number: begun.append(number) or number, iter(range(30)), 3, ahead=ahead)
    ):
        time.sleep(0.005)
        assert len(begun) - consumed <= ahead


@pytest.mark.parametrize("raised", [KeyboardInterrupt, CorpusError])
def test_an_interrupted_consumer_ends_the_threads_and_reads_no_more(raised):
    begun: list[int] = []

    def read(number: int) -> int:
        begun.append(number)
        time.sleep(0.02)
        return number

    def consume() -> None:
        for number in read_in_threads(read, range(10_000), 2, ahead=50):
            if number == 3:
                raise raised("stopped")

    started = time.perf_counter()
    with pytest.raises(raised):
        consume()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("reader")]
    assert len(begun) < 40, "what was planned and not begun is dropped"
    assert time.perf_counter() - started < TIMEOUT_S


def test_threads_decode_at_the_same_time():
    met = threading.Barrier(2, timeout=TIMEOUT_S)
    assert len(list(read_in_threads(lambda _: met.wait(), range(2), 2))) == 2


def test_decoding_threads_do_not_change_the_filters_of_warnings():
    ignore_pillow_warnings()
    before = list(warnings.filters)

    def read(_: int) -> str:
        with pytest.raises(ImageError) as raised:
            decode_image(b"GIF89a no image")
        return str(raised.value)

    assert len(set(read_in_threads(read, range(200), 4))) == 1
    assert warnings.filters == before
