"""Query times read from bench.json."""

from __future__ import annotations

import pytest
from evaluations import change_json
from made_runs import write_bench

from dcdctl.core.bench import read_times
from dcdctl.core.errors import InputError


def test_times_are_those_of_the_reference_gallery_with_cached_images(tmp_path):
    write_bench(tmp_path, "scenes-vilt", student_ms=2.0, teacher_ms=100.0)
    student, teacher = (read_times(tmp_path / "bench.json", side) for side in ("student", "teacher"))
    assert (student.query_ms, student.num_images, student.speed_up) == pytest.approx((2.0, 1000, 50.0))
    assert (teacher.query_ms, teacher.is_extrapolated, teacher.speed_up) == (100.0, True, None)
    assert (student.num_parameters, teacher.num_parameters) == (1_500_000, 4_000_000)
    assert student.machine == "Made-up CPU, 2 threads, torch 2.6"


def test_a_missing_benchmark_reads_as_none(tmp_path):
    assert read_times(tmp_path / "bench.json", "student") is None


def test_a_benchmark_without_its_reference_gallery_is_refused(tmp_path):
    write_bench(tmp_path, "scenes-vilt")
    path = tmp_path / "bench.json"
    change_json(path, settings={"reference_gallery": 12345})
    with pytest.raises(InputError, match=r"bench\.json is not as this dcdctl writes it: .* gallery sizes"):
        read_times(path, "student")
