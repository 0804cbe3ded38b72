"""What benchmarks print and measure alike: the machine, the commit and the versions, peak memory, a Markdown table,
and progress."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def processor() -> str:
    """The name of the processor."""
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return names[0].partition(":")[2].strip() if names else platform.processor()


def commit() -> str:
    """The measured commit, with a + if files differ from it."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+", "--exclude=*"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


def facts(*packages: str) -> dict[str, object]:
    """The machine, its load, threads, commit, and the versions of packages."""
    import torch

    return {
        "machine": processor(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "commit": commit(),
        "versions": {name: version(name) for name in ("torch", *packages)},
    }


def reset_peak(device: torch.device) -> None:
    """Restart the measurement of peak memory, if the system supports it."""
    import torch

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif (file := Path("/proc/self/clear_refs")).exists():
        file.write_text("5", encoding="ascii")


def peak_mib(device: torch.device) -> float:
    """Peak memory since the last reset: allocated on the GPU, or resident in this process; since its start if the peak
    cannot be reset."""
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    # Not `getrusage`, which includes the memory of the parent process.
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:"))


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [columns, ["---"] * len(columns), *rows])


def say(line: str) -> None:
    """Write progress to stderr."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
