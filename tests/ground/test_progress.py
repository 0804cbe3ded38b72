"""Numbers in words, and what a line of a log has."""

from __future__ import annotations

from contextlib import contextmanager

import pytest

from dcdctl.core.progress import byte_size, chosen_by, counted, digits, step_bar


@pytest.mark.parametrize(
    ("write", "number", "expected"),
    [
        (byte_size, 0, "0 B"),
        (byte_size, 999, "999 B"),
        (byte_size, 1000, "1.0 KB"),
        (byte_size, 999_000, "999.0 KB"),
        (byte_size, 10**6, "1.0 MB"),
        (byte_size, 10**9, "1.00 GB"),
        (byte_size, 1234 * 10**9, "1,234.00 GB"),
        (digits, 0.01234, "0.0123"),
        (digits, 99.94, "99.9"),
        (digits, 99.95, "100"),
        (digits, 12345.6, "12,346"),
        (lambda number: counted(number, "images"), 0, "0 images"),
        (lambda number: counted(number, "images"), 1, "1 image"),
        (lambda number: counted(number, "images"), 1200, "1,200 images"),
    ],
)
def test_a_number_is_written_with_the_unit_and_the_digits_that_fit(write, number, expected):
    assert write(number) == expected


@pytest.mark.parametrize(
    ("values", "when", "expected"),
    [
        ({"loss": 1.0, "val_rsum": 400.0}, "val", "rsum"),
        ({"val_ndcg": 91.5}, "val", "ndcg"),
        ({"val_cosine": 0.9}, "val", "cosine"),
        ({"loss": 1.0}, "val", ""),
        ({"val_rsum": 1.0, "best_cosine": 0.9}, "best", "cosine"),
    ],
)
def test_a_line_of_a_log_tells_by_what_weights_are_chosen(values, when, expected):
    assert chosen_by(values, when) == expected


def test_a_bar_of_steps_begins_where_a_resumed_run_stands():
    heard = []

    @contextmanager
    def track(label, *, total, unit):
        heard.append((label, total, unit))
        yield heard.append

    with step_bar(track)(total=9, done=4, unit="pairs", per_step=448) as on_step:
        on_step(5, {"loss": 0.5})
    assert heard == [("train", 9, "steps"), 4, 1]
