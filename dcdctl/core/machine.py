"""What times depend on besides what is timed."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import torch

from dcdctl.core.devices import versions


def describe(device: torch.device) -> dict[str, Any]:
    """Processor, device, threads, cores, how float32 is multiplied, and versions."""
    return {
        "cpu": cpu_name(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "tf32": bool(device.type == "cuda" and torch.backends.cuda.matmul.allow_tf32),
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        **versions(),
    }


def load_average() -> float | None:
    """Processes that wanted a core in the last minute, in the mean; None where the system does not tell."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):  # not a POSIX system
        return None


def cpu_name() -> str:
    """The model name where Linux tells it, else what Python knows."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
