"""Cold start: fresh processes that load a model and answer a query."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest
import torch

from dcdctl.core import models
from dcdctl.core.bench import BenchConfig, ModelPair, cold_start
from dcdctl.core.bench.result import ColdStartTimes
from dcdctl.core.config import to_table
from dcdctl.core.errors import ModelError

DEVICE = torch.device("cpu")
CONFIG = BenchConfig(num_images=20, batch_size=8, num_threads=1, num_fresh_processes=2)


@pytest.fixture(scope="module")
def pair(scenes_corpus_dir, teacher, tmp_path_factory):
    folder = tmp_path_factory.mktemp("first") / "teacher"
    models.save(teacher, folder)
    return ModelPair(teacher=str(folder), student=str(folder), overrides={}, data=scenes_corpus_dir, split="test")


@pytest.fixture(scope="module")
def times(pair):
    return cold_start.run("teacher", pair, CONFIG, DEVICE)


def test_the_total_is_no_less_than_the_work_of_one_thread(times):
    assert 0 < times.processor_s < 2 * times.total_s  # some of the work runs on two threads


def test_memory_is_that_of_the_process_on_a_cpu(times):
    assert times.rss_peak_mib > 20
    assert times.cuda_peak_mib is None


def test_peak_memory_is_that_of_the_process_and_not_of_its_parent(times):
    """The parent holds more memory than the child reports."""
    ballast = torch.ones(2**28)  # 1 GiB
    assert ballast.sum() > 0
    assert cold_start.peak_rss_mib() > 1024
    assert times.rss_peak_mib < 1024


def test_the_median_is_taken_per_field():
    first = ColdStartTimes(**{field.name: 1.0 for field in dataclasses.fields(ColdStartTimes)})
    second = dataclasses.replace(first, processor_s=3.0, cuda_peak_mib=None)
    third = dataclasses.replace(first, processor_s=2.0, total_s=9.0)
    median = cold_start._median([first, second, third])
    assert (median.processor_s, median.total_s, median.cuda_peak_mib) == (2.0, 1.0, None)


def test_a_process_that_fails_is_an_error_with_its_last_message(pair, monkeypatch):
    monkeypatch.setattr(cold_start, "_SCRIPT", "import sys; sys.exit('no room for the model')")
    with pytest.raises(ModelError, match="could not answer: no room for the model; --set num_fresh_processes=0 leaves"):
        cold_start.run("teacher", pair, CONFIG, DEVICE)


def test_models_are_measured_alternately(pair, monkeypatch):
    names = []
    times = ColdStartTimes(**{field.name: 1.0 for field in dataclasses.fields(ColdStartTimes)})
    monkeypatch.setattr(cold_start, "run", lambda name, *arguments: names.append(name) or times)
    measured = cold_start.measure(pair, CONFIG, DEVICE)
    assert names == ["teacher", "student", "teacher", "student"]
    assert (measured["student"].num_images, len(measured["student"].processes)) == (20, 2)


def test_a_fresh_process_gets_the_models_and_the_settings_of_the_benchmark(tmp_path, monkeypatch):
    monkeypatch.setattr(cold_start, "_SCRIPT", "import sys; sys.exit(sys.argv[1])")
    pair = ModelPair(teacher="t", student="s", overrides={"image_size": 32}, data=tmp_path, split="val")
    config = BenchConfig(num_images=7, batch_size=3, precision="bfloat16", num_threads=2)
    with pytest.raises(ModelError, match="loads s could not answer") as raised:
        cold_start.run("student", pair, config, torch.device("cuda:1"))
    request = json.loads(re.search(r"\[.*\]", raised.value.args[0])[0])
    assert request[1:] == ["student", to_table(pair), to_table(config), "cuda:1"]
