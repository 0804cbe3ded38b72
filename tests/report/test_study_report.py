"""The rows of a study, read from evaluations."""

from __future__ import annotations

import pytest
from made_runs import scores_of, write_evaluation

from dcdctl.core.report.study_report import read_rows


@pytest.mark.parametrize("by_agreement", [True, False])
def test_without_an_evaluation_of_a_pool_or_a_use_for_it_the_labels_are_read(split, tmp_path, by_agreement):
    folder = write_evaluation(tmp_path / "run", split, scores_of(split, 1))
    if not by_agreement:
        # That of another study, which is not even opened.
        (folder / "pool.json").write_text("{")
    row = read_rows({"distilled": [folder]}, {}, by_agreement=by_agreement)["distilled"]
    assert [result.split for result in row.results] == ["test"]
    assert row.totals == [row.results[0].rsum]
