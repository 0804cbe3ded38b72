"""Fresh processes that load and answer."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from dcdctl.core import models
from dcdctl.core.bench import BenchConfig, bench, cold_start
from dcdctl.core.bench.cold_start import ColdStartRequest, ColdStartTimes
from dcdctl.core.errors import ModelError


@pytest.fixture(scope="module")
def request_of(scenes_corpus_dir, teacher, tmp_path_factory):
    folder = tmp_path_factory.mktemp("first") / "teacher"
    models.save(teacher, folder)
    return ColdStartRequest(ref=str(folder), data=str(scenes_corpus_dir), split="test", num_images=20, batch_size=8, num_threads=1)


@pytest.fixture(scope="module")
def found(request_of):
    return cold_start.measure({"teacher": request_of}, 1)["teacher"]


def test_the_total_is_start_import_load_and_first_answer(found):
    assert len(found.processes) == 1
    assert found.num_images == 20
    for one in found.processes:
        parts = (one.start_s, one.import_s, one.load_s, one.first_answer_s)
        assert one.total_s == pytest.approx(sum(parts), abs=0.01)
        assert 0 < one.processor_s < 2 * one.total_s  # two threads at times
        assert min(*parts, one.encode_s, one.second_answer_s) > 0


def test_memory_grows_from_stage_to_stage(found):
    for one in found.processes:
        assert 20 < one.rss_imported_mib <= one.rss_loaded_mib <= one.rss_peak_mib
        assert one.cuda_peak_mib is None


def test_the_peak_is_of_the_process_and_not_of_its_parent(found):
    """A parent that holds more: what its child reports is less."""
    held = torch.ones(2**28)  # 1 GiB
    assert held.sum() > 0
    assert cold_start.peak_rss_mib() > 1024
    assert found.median.rss_peak_mib < 1024


def test_the_median_is_taken_part_by_part():
    one = ColdStartTimes(**{field.name: 1.0 for field in dataclasses.fields(ColdStartTimes)})
    three = dataclasses.replace(one, load_s=3.0, cuda_peak_mib=None)
    five = dataclasses.replace(one, load_s=2.0, total_s=9.0)
    median = cold_start._median([one, three, five])
    assert (median.load_s, median.total_s, median.cuda_peak_mib) == (2.0, 1.0, None)


def test_a_process_that_cannot_answer_is_an_error_with_its_last_words(request_of, monkeypatch):
    monkeypatch.setattr(cold_start, "_SCRIPT", "import sys; sys.exit('no room for the model')")
    with pytest.raises(ModelError, match="could not answer: no room for the model; --fresh-processes 0 leaves"):
        cold_start.measure({"teacher": request_of}, 1)


def test_contestants_take_turns(request_of, monkeypatch):
    asked = []
    one = ColdStartTimes(**{field.name: 1.0 for field in dataclasses.fields(ColdStartTimes)})
    monkeypatch.setattr(cold_start, "_run", lambda request: asked.append(request.split) or one)
    cold_start.measure({"teacher": request_of, "student": dataclasses.replace(request_of, split="val")}, 2)
    assert asked == ["test", "val", "test", "val"]


def test_both_models_are_asked_for_in_the_setting_of_the_benchmark(tmp_path):
    pair = bench.ModelPair(teacher="t", student="s", overrides={"image_size": 32}, data=tmp_path, split="val")
    config = BenchConfig(num_images=7, batch_size=3, precision="bfloat16", num_threads=2)
    asked = pair.requests(config, torch.device("cuda:1"))
    assert asked["teacher"] == ColdStartRequest(
        ref="t", data=str(tmp_path), split="val", overrides={"image_size": 32}, num_images=7, batch_size=3,
        device="cuda:1", precision="bfloat16", num_threads=2,
    )  # fmt: skip
    assert asked["student"] == dataclasses.replace(asked["teacher"], ref="s", overrides={})
