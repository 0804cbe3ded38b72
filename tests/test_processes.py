"""What tests start: with a time limit, and without the settings of the user who runs the tests."""

from __future__ import annotations

import re

import pytest
from paths import ROOT
from processes import TIMEOUT_S

SOURCES = [path for path in sorted((ROOT / "tests").rglob("*.py")) if path.name != "processes.py"]
WITHOUT_LIMIT = re.compile(
    r"(?<![\w'\"])subprocess\.(run|call|check_call|check_output)\(|\bcommunicate\((?!.*TIMEOUT_S)|timeout=[\d.]+"
)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_every_wait_for_a_process_has_the_one_time_limit(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [line.strip() for line in lines if WITHOUT_LIMIT.search(line) and "WITHOUT_LIMIT" not in line] == []
    assert TIMEOUT_S >= 600
