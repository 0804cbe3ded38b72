"""The report of a demo, which tests only read."""

from __future__ import annotations

import pytest
from made_runs import write_demo

from dcdctl.core.data import Corpus
from dcdctl.core.report import report


@pytest.fixture(scope="session")
def split(scenes_corpus_dir):
    return Corpus.open(scenes_corpus_dir, "test")


@pytest.fixture(scope="session")
def found(split, tmp_path_factory):
    teacher, *runs, baseline = write_demo(tmp_path_factory.mktemp("report") / "demo", split)
    return report.read_report(runs, teacher=teacher, baseline=baseline)
