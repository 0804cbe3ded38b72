"""result.json and cascade.json read back."""

from __future__ import annotations

import json
import os

import pytest
from evaluations import change_json
from made_runs import cascade_changes, scores_of, write_evaluation

from dcdctl.core.data import Direction
from dcdctl.core.errors import InputError, StaleError
from dcdctl.core.evaluation import CASCADE_FILES, Estimate, SavedEvaluation, check_comparable
from dcdctl.core.evaluation.estimates import Interval


@pytest.fixture
def folder(corpus, tmp_path):
    return write_evaluation(tmp_path / "run", corpus, scores_of(corpus, 2))


def read(folder, *names):
    return SavedEvaluation.load(folder, *names).evaluation


def test_recalls_come_with_their_intervals(folder):
    written, evaluation = json.loads((folder / "result.json").read_text()), read(folder)
    for direction in Direction:
        for name in ("R@1", "R@5", "R@10"):
            interval = Interval(*written["intervals"][direction.key][name])
            assert evaluation.recall(direction, name) == Estimate(written[direction.key][name], interval)
    assert evaluation.rsum_estimate == Estimate(written["rsum"], Interval(*written["intervals"]["rsum"]))


def test_a_document_that_is_read_is_the_document_that_was_written(folder):
    written = json.loads((folder / "result.json").read_text())
    of_the_file = {name: written[name] for name in ("files", "checksum")}
    assert read(folder).document | of_the_file == written
    assert os.fspath(read(folder)) == str(folder)


def test_depths_of_a_cascade_come_in_their_order_and_without_that_of_no_cascade(corpus, tmp_path):
    changes = cascade_changes("runs/fusion", {20: (400.0, 30.0), 0: (250.0, 1.0), 5: (300.0, 9.0)})
    write_evaluation(tmp_path, corpus, scores_of(corpus, 2), prefix="cascade-", **changes)
    cascade = read(tmp_path, CASCADE_FILES)
    reranked = [(depth.depth, depth.rsum, depth.ms_per_query) for depth in cascade.reranked]
    assert reranked == [(5, 300.0, 9.0), (20, 400.0, 30.0)]
    assert (cascade.reranker, cascade.dual_query_ms) == ("runs/fusion", 1.0)


def test_absent_documents_are_none(tmp_path):
    assert SavedEvaluation.find(tmp_path) is None


def test_two_results_on_other_splits_are_not_comparable(corpus, folder, tmp_path):
    other = read(write_evaluation(tmp_path / "other", corpus, scores_of(corpus, 2), split="val"))
    check_comparable([("one", read(folder)), ("again", read(folder))], "report them apart")
    message = r"other was evaluated on split val of .*, one on split train of .*, or report them apart"
    with pytest.raises(StaleError, match=message):
        check_comparable([("one", read(folder)), ("other", other)], "report them apart")


@pytest.mark.parametrize(
    ("changes", "message"), [({"rsum": "."}, "rsum must be float"), ({"split": 1e308}, "split must be str")]
)
def test_a_document_of_a_stranger_with_an_entry_of_another_type_is_refused_by_name(folder, changes, message):
    change_json(folder / "result.json", **changes)
    with pytest.raises(InputError, match=rf"result\.json is not as this dcdctl writes it: {message}"):
        read(folder)
