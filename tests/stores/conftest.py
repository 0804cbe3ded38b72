"""What the tests of stores share."""

from __future__ import annotations

import pytest

from dcdctl.core.stores import retry


@pytest.fixture(autouse=True)
def waits(monkeypatch):
    """The waits between repeated calls, which do not happen."""
    waited: list[float] = []
    monkeypatch.setattr(retry.time, "sleep", waited.append)
    return waited
