"""What the comparisons with other libraries share: rounds in turns, ratios, and the line on machine, versions and
commit.

Ways are measured in turn within each round, and a ratio is the median over rounds, so that other work of the machine
slows all of them. Processor seconds are those of all threads of the process, and grow less with other work than seconds
by the clock.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from prepare import commit, processor


@dataclass(frozen=True)
class Spent:
    """Seconds of one piece of work."""

    wall: float
    processor: float


def spent(work: Callable[[], object]) -> Spent:
    """Do the work, and return its time."""
    wall, processor_s = time.perf_counter(), time.process_time()
    work()
    return Spent(time.perf_counter() - wall, time.process_time() - processor_s)


def in_turns(ways: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[Spent]]:
    """The times of each way; each round begins with the next way."""
    rounds: dict[str, list[Spent]] = {name: [] for name in ways}
    names = list(ways)
    for repeat in range(repeats):
        first = repeat % len(names)
        for name in names[first:] + names[:first]:
            rounds[name].append(spent(ways[name]))
            say(f"{name}: {rounds[name][-1].wall:.2f} s, {rounds[name][-1].processor:.2f} s of processors")
    return rounds


def median_processor(rounds: Sequence[Spent]) -> float:
    """The median of the processor seconds."""
    return statistics.median(each.processor for each in rounds)


def ratios(rounds: Mapping[str, Sequence[Spent]], ours: str) -> dict[str, Spent]:
    """How many times as long each way takes as ours, by both clocks; a median over rounds."""
    return {
        name: Spent(
            statistics.median(theirs.wall / mine.wall for theirs, mine in zip(each, rounds[ours], strict=True)),
            statistics.median(
                theirs.processor / mine.processor for theirs, mine in zip(each, rounds[ours], strict=True)
            ),
        )
        for name, each in rounds.items()
    }


def facts(*packages: str) -> dict[str, object]:
    """The machine, its load, threads, commit, and the versions of packages."""
    return {
        "machine": processor(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "commit": commit(),
        "versions": {name: version(name) for name in ("torch", *packages)},
    }


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [columns, ["---"] * len(columns), *rows])


def say(line: str) -> None:
    """Write progress to stderr."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
