"""Processes that tests start: a time limit that allows for a busy machine, and an environment without the settings of its user."""

from __future__ import annotations

import subprocess
from collections.abc import MutableMapping, Sequence
from typing import Any

TIMEOUT_S = 600
"""How long tests wait for a process or a server. Generous, because a test that passes does not wait for it."""
USER_SETTINGS = ("HF_", "HUGGING", "TRANSFORMERS_", "WANDB_", "DCDCTL_", "TORCHELASTIC_")
"""Beginnings of the names of environment variables that change what dcdctl and its libraries do; HF_DATASETS_* is one of the first."""
LAUNCHER_SETTINGS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def clear_user_settings(environment: MutableMapping[str, str]) -> None:
    """Remove the settings of the user who runs the tests; each test sets those that it is about."""
    for name in list(environment):
        if name.startswith(USER_SETTINGS) or name in LAUNCHER_SETTINGS:
            del environment[name]


def run(command: Sequence[object], **options: Any) -> subprocess.CompletedProcess[Any]:
    """`subprocess.run` with the time limit."""
    return subprocess.run(list(map(str, command)), timeout=TIMEOUT_S, **options)
