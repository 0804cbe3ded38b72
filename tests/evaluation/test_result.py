"""result.json, cascade.json and bench.json read back."""

from __future__ import annotations

import json

import pytest
from made_runs import cascade_changes, scores_of, write_bench, write_evaluation

from dcdctl.core.errors import InputError
from dcdctl.core.evaluation import result
from dcdctl.core.evaluation.significance import Interval


@pytest.fixture
def folder(corpus, tmp_path):
    return write_evaluation(tmp_path / "run", corpus, scores_of(corpus, 2))


def change(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_recalls_come_with_their_intervals(folder):
    path = folder / "result.json"
    written, found = json.loads(path.read_text()), result.read_result(path)
    for way in ("text", "image"):
        for name in ("R@1", "R@5", "R@10"):
            figure = found.retrieval[way].recalls[name]
            assert figure.value == written[f"{way}_retrieval"][name]
            assert figure.interval == Interval(*written["intervals"][f"{way}_retrieval"][name])
    assert found.rsum == result.Figure(written["rsum"], Interval(*written["intervals"]["rsum"]))
    assert found.retrieval["image"].median_rank == written["image_retrieval"]["median_rank"]


def test_a_document_of_before_has_neither_intervals_nor_map(folder):
    path = folder / "result.json"
    document = json.loads(path.read_text())
    del document["intervals"], document["protocol"]["name"], document["data"]
    del document["text_retrieval"]["mAP@R"]
    path.write_text(json.dumps(document))
    found = result.read_result(path)
    assert (found.rsum.interval, found.protocol, found.data, found.retrieval["text"].map_at_r) == (None,) * 4


def test_depths_of_a_cascade_come_in_their_order_and_without_that_of_no_cascade(corpus, tmp_path):
    changes = cascade_changes("runs/fusion", {20: (400.0, 30.0), 0: (250.0, 1.0), 5: (300.0, 9.0)})
    write_evaluation(tmp_path, corpus, scores_of(corpus, 2), prefix="cascade-", **changes)
    found = result.read_result(tmp_path / "cascade.json")
    assert [(one.depth, one.rsum, one.query_ms) for one in found.depths] == [(5, 300.0, 9.0), (20, 400.0, 30.0)]
    assert found.reranker == "runs/fusion"


def test_times_are_those_of_the_headline_gallery_with_images_encoded_before(tmp_path):
    write_bench(tmp_path, "scenes-vilt", student_ms=2.0, teacher_ms=100.0)
    student, teacher = (result.read_times(tmp_path / "bench.json", side) for side in ("student", "teacher"))
    assert (student.query_ms, student.num_images, student.speed_up) == pytest.approx((2.0, 1000, 50.0))
    assert (teacher.query_ms, teacher.is_extrapolated, teacher.speed_up) == (100.0, True, None)
    assert (student.num_parameters, teacher.num_parameters) == (1_500_000, 4_000_000)
    assert student.machine == "Made-up CPU, 2 threads, torch 2.6"


def test_absent_documents_are_none(tmp_path):
    assert result.read_result(tmp_path / "result.json") is None
    assert result.read_times(tmp_path / "bench.json", "student") is None


@pytest.mark.parametrize("text", ["{", "[1]", '"rsum"'])
def test_what_is_no_document_is_refused_by_name(tmp_path, text):
    path = tmp_path / "result.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"result\.json (is not JSON|holds no JSON object).*dcdctl eval"):
        result.read_result(path)


def test_a_document_that_lacks_a_number_is_refused_with_the_command_that_writes_it(folder):
    path = folder / "result.json"
    document = json.loads(path.read_text())
    del document["image_retrieval"]["R@5"]
    path.write_text(json.dumps(document))
    with pytest.raises(InputError, match=r"result\.json is not as `dcdctl eval` writes it .*R@5"):
        result.read_result(path)


def test_a_benchmark_without_its_headline_gallery_is_refused(tmp_path):
    write_bench(tmp_path, "scenes-vilt")
    change(tmp_path / "bench.json", settings={"headline_size": 12345})
    with pytest.raises(InputError, match=r"bench\.json is not as `dcdctl bench` writes it"):
        result.read_times(tmp_path / "bench.json", "student")
