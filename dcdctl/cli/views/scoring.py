"""What scores will cost, on stderr, before the model starts to score: pairs and time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dcdctl.cli.views.terminal import amount, clock, note
from dcdctl.core.progress import counted

if TYPE_CHECKING:
    from dcdctl.core.scoring import Workload
    from dcdctl.core.teacher import CacheCost


def show_estimate(estimate: CacheCost) -> None:
    """The cost of a teacher cache; of one that is only counted, the time at a round rate."""
    most, rate = "", "nothing to do"
    if estimate.is_most:
        most = "at most "
        rate = f"{clock(estimate.num_to_score / 100)} at 100 pairs/s (--teacher and a prepared corpus measure the rate)"
    elif estimate.pairs_per_s is None or estimate.seconds is None:
        rate = "no trial, since the workers of the engine score them"
    elif estimate.num_to_score:
        rate = f"{estimate.pairs_per_s:,.0f} pairs/s in a trial, about {clock(estimate.seconds)}"
    left_out = f" ({estimate.num_left_out:,} more exceed --max-pairs)" if estimate.num_left_out else ""
    note(
        f"{most}{counted(estimate.num_pairs, 'pairs')}, {estimate.num_to_score:,} to score{left_out}: {rate}; at most "
        f"{amount(estimate.disk_bytes, 'bytes')} on disk"
    )


def show_workload(workload: Workload) -> None:
    """The cost of an evaluation that scores pairs."""
    rate = f"{workload.pairs_per_s:,.0f}" if workload.pairs_per_s >= 10 else f"{workload.pairs_per_s:.2g}"
    note(f"{counted(workload.num_pairs, 'pairs')} to score: {rate} pairs/s in a trial, about {clock(workload.seconds)}")
