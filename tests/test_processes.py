"""What tests start: with a time limit, and without the settings of the user who runs the tests."""

from __future__ import annotations

import os
import re
import sys

import pytest
from paths import ROOT
from processes import TIMEOUT_S, clear_user_settings, run

SOURCES = [path for path in sorted((ROOT / "tests").rglob("*.py")) if path.name != "processes.py"]
WITHOUT_LIMIT = re.compile(r"(?<![\w'\"])subprocess\.(run|call|check_call|check_output)\(|\bcommunicate\((?!.*TIMEOUT_S)|timeout=[\d.]+")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_every_wait_for_a_process_has_the_one_time_limit(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [line.strip() for line in lines if WITHOUT_LIMIT.search(line) and "WITHOUT_LIMIT" not in line] == []
    assert TIMEOUT_S >= 600


def test_settings_of_the_user_reach_no_test_and_no_process():
    settings = {
        "HF_HOME": "/nowhere",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "WANDB_MODE": "x",
        "DCDCTL_CACHE": "/",
        "RANK": "7",
    }
    environment = {**settings, "PATH": "/bin", "HOME": "/root"}
    clear_user_settings(environment)
    assert environment == {"PATH": "/bin", "HOME": "/root"}
    printed = run([sys.executable, "-c", "import os; print(*os.environ)"], capture_output=True, text=True, check=True).stdout
    assert not set(settings) & (set(printed.split()) | set(os.environ))
