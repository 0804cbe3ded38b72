"""A served index, which tests only read."""

from __future__ import annotations

import pytest
import served

from dcdctl.core.search import IndexSearcher


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> served.Made:
    return served.make(tmp_path_factory.mktemp("served") / "all")


@pytest.fixture(scope="session")
def searcher(made) -> IndexSearcher:
    return made.searcher
