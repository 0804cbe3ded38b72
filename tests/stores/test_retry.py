"""Calls that are repeated while a store does not answer."""

from __future__ import annotations

import pytest

from dcdctl.core.stores import retry


class Store:
    """Does not answer the first calls."""

    def __init__(self, num_failures: int, kind: type[Exception] = retry.UnavailableError) -> None:
        self.num_failures, self.kind, self.num_calls = num_failures, kind, 0

    def ask(self, word: str) -> str:
        self.num_calls += 1
        if self.num_calls <= self.num_failures:
            raise self.kind(f"call {self.num_calls}")
        return word


def test_a_call_is_repeated_until_it_is_answered(waits):
    store = Store(2)
    assert retry.repeated(store.ask, (1, 2, 4), "word") == "word"
    assert store.num_calls == 3
    assert 0.5 <= waits[0] <= 1 <= waits[1] <= 2


@pytest.mark.parametrize(
    ("waits_s", "least", "most"),
    [(retry.FOR_A_BATCH, 85, 95), (retry.FOR_A_QUESTION, 0.5, 1)],
    ids=["batch", "question"],
)
def test_a_batch_waits_for_a_server_that_is_started_again_and_a_question_for_less_than_a_second(
    waits, monkeypatch, waits_s, least, most
):
    monkeypatch.setattr(retry.random, "random", lambda: 1.0)
    store = Store(100)
    with pytest.raises(retry.UnavailableError, match=f"call {len(waits_s) + 1}$"):
        retry.repeated(store.ask, waits_s, "word")
    assert waits == sorted(waits)
    assert least < sum(waits) < most


def test_another_error_is_raised_at_once(waits):
    with pytest.raises(ValueError, match="call 1"):
        retry.repeated(Store(1, ValueError).ask, retry.FOR_A_BATCH, "word")
    assert waits == []
