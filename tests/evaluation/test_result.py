"""result.json and cascade.json read back."""

from __future__ import annotations

import json

import pytest
from evaluations import change_json, write_json
from made_runs import cascade_changes, scores_of, write_evaluation

from dcdctl.core.data import Direction
from dcdctl.core.errors import InputError
from dcdctl.core.evaluation import result
from dcdctl.core.evaluation.significance import Interval


@pytest.fixture
def folder(corpus, tmp_path):
    return write_evaluation(tmp_path / "run", corpus, scores_of(corpus, 2))


def test_recalls_come_with_their_intervals(folder):
    path = folder / "result.json"
    written, summary = json.loads(path.read_text()), result.read_summary(path)
    for direction in Direction:
        for name in ("R@1", "R@5", "R@10"):
            figure = summary.retrieval[direction].recalls[name]
            assert figure.value == written[direction.key][name]
            assert figure.interval == Interval(*written["intervals"][direction.key][name])
    assert summary.rsum == result.Figure(written["rsum"], Interval(*written["intervals"]["rsum"]))
    assert summary.retrieval["image"].median_rank == written["image_retrieval"]["median_rank"]


def test_a_document_of_before_has_neither_intervals_nor_map(folder):
    path = folder / "result.json"
    document = json.loads(path.read_text())
    del document["intervals"], document["protocol"]["name"], document["data"]
    del document["text_retrieval"]["mAP@R"]
    write_json(path, document)
    summary = result.read_summary(path)
    assert (summary.rsum.interval, summary.protocol, summary.data, summary.retrieval["text"].map_at_r) == (None,) * 4


def test_depths_of_a_cascade_come_in_their_order_and_without_that_of_no_cascade(corpus, tmp_path):
    changes = cascade_changes("runs/fusion", {20: (400.0, 30.0), 0: (250.0, 1.0), 5: (300.0, 9.0)})
    write_evaluation(tmp_path, corpus, scores_of(corpus, 2), prefix="cascade-", **changes)
    summary = result.read_summary(tmp_path / "cascade.json")
    assert [(depth.depth, depth.rsum, depth.query_ms) for depth in summary.depths] == [
        (5, 300.0, 9.0),
        (20, 400.0, 30.0),
    ]
    assert summary.reranker == "runs/fusion"


def test_absent_documents_are_none(tmp_path):
    assert result.read_summary(tmp_path / "result.json") is None


@pytest.mark.parametrize("text", ["{", "[1]", '"rsum"'])
def test_what_is_no_document_is_refused_by_name(tmp_path, text):
    path = tmp_path / "result.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"result\.json (is not JSON|holds no JSON object).*dcdctl eval"):
        result.read_summary(path)


def test_a_document_that_lacks_a_number_is_refused_with_the_command_that_writes_it(folder):
    path = folder / "result.json"
    document = json.loads(path.read_text())
    del document["image_retrieval"]["R@5"]
    write_json(path, document)
    with pytest.raises(
        InputError, match=r"result\.json is not as `dcdctl eval` writes it: it has no 'R@5'; `dcdctl eval "
    ):
        result.read_summary(path)


@pytest.mark.parametrize(
    ("changes", "message"), [({"rsum": "."}, "rsum.value must be float"), ({"split": 1e308}, "split must be str")]
)
def test_a_document_of_a_stranger_with_an_entry_of_another_type_is_refused_by_name(folder, changes, message):
    change_json(folder / "result.json", **changes)
    with pytest.raises(InputError, match=rf"result\.json is not as this dcdctl writes it: {message}"):
        result.read_summary(folder / "result.json")
