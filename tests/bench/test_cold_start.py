"""Cold start: fresh processes that load a model and answer a query."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from dcdctl.core import models
from dcdctl.core.bench import BenchConfig, bench, cold_start
from dcdctl.core.bench.cold_start import ColdStartRequest
from dcdctl.core.bench.result import ColdStartTimes
from dcdctl.core.errors import ModelError


@pytest.fixture(scope="module")
def request_of(scenes_corpus_dir, teacher, tmp_path_factory):
    folder = tmp_path_factory.mktemp("first") / "teacher"
    models.save(teacher, folder)
    return ColdStartRequest(
        ref=str(folder), data=str(scenes_corpus_dir), split="test", num_images=20, batch_size=8, num_threads=1
    )


@pytest.fixture(scope="module")
def measured(request_of):
    return cold_start.measure({"teacher": request_of}, 1)["teacher"]


def test_the_total_is_start_import_load_and_first_answer(measured):
    assert len(measured.processes) == 1
    assert measured.num_images == 20
    for times in measured.processes:
        parts = (times.start_s, times.import_s, times.load_s, times.first_answer_s)
        assert times.total_s == pytest.approx(sum(parts), abs=0.01)
        assert 0 < times.processor_s < 2 * times.total_s  # some of the work runs on two threads
        assert min(*parts, times.encode_s, times.second_answer_s) > 0


def test_memory_grows_from_stage_to_stage(measured):
    for times in measured.processes:
        assert 20 < times.rss_imported_mib <= times.rss_loaded_mib <= times.rss_peak_mib
        assert times.cuda_peak_mib is None


def test_peak_memory_is_that_of_the_process_and_not_of_its_parent(measured):
    """The parent holds more memory than the child reports."""
    ballast = torch.ones(2**28)  # 1 GiB
    assert ballast.sum() > 0
    assert cold_start.peak_rss_mib() > 1024
    assert measured.median.rss_peak_mib < 1024


def test_the_median_is_taken_per_field():
    first = ColdStartTimes(**{field.name: 1.0 for field in dataclasses.fields(ColdStartTimes)})
    second = dataclasses.replace(first, load_s=3.0, cuda_peak_mib=None)
    third = dataclasses.replace(first, load_s=2.0, total_s=9.0)
    median = cold_start._median([first, second, third])
    assert (median.load_s, median.total_s, median.cuda_peak_mib) == (2.0, 1.0, None)


def test_a_process_that_fails_is_an_error_with_its_last_message(request_of, monkeypatch):
    monkeypatch.setattr(cold_start, "_SCRIPT", "import sys; sys.exit('no room for the model')")
    with pytest.raises(ModelError, match="could not answer: no room for the model; --fresh-processes 0 leaves"):
        cold_start.measure({"teacher": request_of}, 1)


def test_models_are_measured_alternately(request_of, monkeypatch):
    splits = []
    times = ColdStartTimes(**{field.name: 1.0 for field in dataclasses.fields(ColdStartTimes)})
    monkeypatch.setattr(cold_start, "_run", lambda request: splits.append(request.split) or times)
    cold_start.measure({"teacher": request_of, "student": dataclasses.replace(request_of, split="val")}, 2)
    assert splits == ["test", "val", "test", "val"]


def test_the_requests_of_both_models_have_the_settings_of_the_benchmark(tmp_path):
    pair = bench.ModelPair(teacher="t", student="s", overrides={"image_size": 32}, data=tmp_path, split="val")
    config = BenchConfig(num_images=7, batch_size=3, precision="bfloat16", num_threads=2)
    requests = pair.requests(config, torch.device("cuda:1"))
    assert requests["teacher"] == ColdStartRequest(
        ref="t", data=str(tmp_path), split="val", overrides={"image_size": 32}, num_images=7, batch_size=3,
        device="cuda:1", precision="bfloat16", num_threads=2,
    )  # fmt: skip
    assert requests["student"] == dataclasses.replace(requests["teacher"], ref="s", overrides={})
