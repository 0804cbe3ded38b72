"""The view of a training."""

from __future__ import annotations

import io
import sys

import pytest

from dcdctl.cli.views import terminal
from dcdctl.cli.views import training as training_view


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch):
    """The clock of the view; set `.now`."""

    class Clock:
        now = 0.0

    monkeypatch.setattr(training_view.time, "monotonic", lambda: Clock.now)
    return Clock


def test_in_a_pipe_a_line_every_ten_seconds_shows_loss_speed_and_time_left(clock, capsys):
    with training_view.view(total=8, done=2, unit="pairs", per_step=100) as on_step:
        for step in range(3, 9):
            clock.now += 4.0
            measured = {"val_rsum": 310.25, "val_best_rsum": 320.5} if step >= 6 else {}
            on_step(step, {"loss": 1 / step, "dcd": 1 / step, "lr": 1e-4, **measured})
    captured = capsys.readouterr()
    assert captured.out == ""
    # Of the 2 steps that were done before, nothing is known: 100 pairs in 4 s are those of this run.
    assert captured.err.splitlines() == [
        "train: 5/8 steps, loss 0.2000, 25 pairs/s, 0:12 left",
        "train: 8/8 steps, loss 0.1250, val RSUM 310.2, best 320.5, 25 pairs/s",
        "train: 8/8 steps, loss 0.1250, val RSUM 310.2, best 320.5, 25 pairs/s, 0:24 in all",
    ]


def test_on_a_terminal_a_line_moves_and_does_not_touch_stdout(clock, monkeypatch, capsys):
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    with training_view.view(total=1000, done=0, unit="images", per_step=64) as on_step:
        clock.now = 8.0
        on_step(4, {"loss": 1.5, "infonce": 1.25, "[red]": 0.25, "lr": 2.5e-5, "seconds": 2.0, "val_text_r1": 3.0})
        clock.now = 8.1
        on_step(5, {"loss": 7.75})
        clock.now = 16.0
        on_step(8, {"val_ndcg": 80.0, "val_best_ndcg": 81.0, "other/val_ndcg": 70.0})
        terminal.show("a result")
    shown = screen.getvalue()
    assert "train: 4/1,000 steps, loss 1.5000, 32 images/s, 33:12 left" in shown
    assert "val nDCG@10 80.0, best 81.0, other 70.0" in shown
    # Not redrawn so soon after the last frame.
    assert "5/1,000" not in shown
    assert capsys.readouterr().out == "a result\n"
