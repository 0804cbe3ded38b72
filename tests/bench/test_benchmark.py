"""Benchmark times and speed-ups, worked out by hand: fake models advance a fake clock by known costs."""

from __future__ import annotations

import json
import threading
import time

import numpy as np
import pytest
import torch
from bench_fakes import QUICK, FakeCorpus, FakeFusion, bench
from families import FAMILIES, late

from dcdctl.core import models
from dcdctl.core.bench import BenchConfig
from dcdctl.core.bench import compare as bench_compare
from dcdctl.core.bench.steps import BenchModel, prepare_model
from dcdctl.core.bench.timer import Repeats
from dcdctl.core.errors import ConfigError
from dcdctl.core.models import ImageBatch


def test_the_three_speed_ups_follow_from_the_known_costs():
    pair, query, test_set = (item.ratio for item in bench().speed_ups)
    assert pair == pytest.approx((10 + 2 + 1) / (5 + 1))
    assert query == pytest.approx((2 + 100 * 1) / 1)
    # 4 images, 7 captions, 28 pairs
    assert test_set == pytest.approx((4 * 10 + 7 * 2 + 28 * 1) / (4 * 5 + 7 * 1))


def test_a_fusion_student_has_a_cost_per_pair():
    pair, query, test_set = (item.ratio for item in bench(student=FakeFusion).speed_ups)
    assert (pair, query, test_set) == pytest.approx((2, 2, 2))


def test_each_step_of_a_model_is_timed():
    times = bench().teacher
    (rate,) = [each for each in times.throughput if each.batch_size == 8]
    assert (rate.images_per_s, rate.captions_per_s) == pytest.approx((1000 / 10, 1000 / 2))
    assert rate.pairs_per_s == pytest.approx(1000 / 13)
    assert (times.kind, times.footprint.num_parameters, times.dtype) == ("fusion", 7, "float32")
    assert times.runtime == f"torch {torch.__version__}"


def test_a_query_without_cached_images_encodes_exactly_its_gallery():
    result = bench(gallery_sizes=(3, 100, 1000), reference_gallery=100)
    for count in (3, 100, 1000):  # 3 is less than a batch, 100 is 12 batches and 4 images
        assert result.teacher.query(count, is_cached=False).seconds == pytest.approx((2 + 11 * count) / 1000)
        assert result.student.query(count, is_cached=False).seconds == pytest.approx((1 + 5 * count) / 1000)
        assert result.student.query(count, is_cached=True).seconds == pytest.approx(1 / 1000)


def test_a_gallery_beyond_the_budget_is_extrapolated_and_marked():
    result = bench(budget_s=0.15, gallery_sizes=(20, 100, 1000))
    assert not result.teacher.query(100, is_cached=True).extrapolated
    beyond = result.teacher.query(1000, is_cached=True)
    assert beyond.extrapolated
    assert beyond.num_repeats == 0
    assert beyond.seconds == pytest.approx((2 + 1000) / 1000)
    assert [item.extrapolated for item in result.speed_ups] == [False, False, True]
    assert [item.extrapolated for item in bench(budget_s=0.05).speed_ups] == [False, True, True]


def test_without_a_timed_gallery_a_query_is_extrapolated_from_single_steps():
    beyond = bench(budget_s=0.01).teacher.query(100, is_cached=False)
    assert (beyond.seconds, beyond.extrapolated) == (pytest.approx((2 + 100 * 11) / 1000), True)


def test_extrapolation_starts_from_the_largest_timed_gallery():
    """The single steps would give another result: 1,000 images cost 6 ms in addition to the caption, but one image
    costs 1 ms."""
    draws = np.zeros((1, 1), dtype=np.int64)
    model = BenchModel(steps=None, singles=[], images={}, texts={}, batch_size=1)
    model.step_times = {name: Repeats(np.array([[s]]), draws) for name, s in (("caption", 0.002), ("rank", 0.001))}
    model.query_times[True] = {count: Repeats(np.array([[s]]), draws) for count, s in ((100, 0.1), (1000, 0.008))}
    assert model.query_s(10_000, is_cached=True).value == pytest.approx(0.002 + 10 * 0.006)


def test_a_gallery_above_the_memory_limit_is_extrapolated():
    result = bench(gallery_sizes=(100, 100_000), max_gallery_mib=1, budget_s=0.3)  # 16 bytes per image
    assert [result.student.query(count, is_cached=True).extrapolated for count in (100, 100_000)] == [False, True]
    assert (
        not bench(gallery_sizes=(100, 50_000), max_gallery_mib=1, budget_s=0.3)
        .student.query(50_000, is_cached=True)
        .extrapolated
    )


def test_latency_percentiles_are_of_single_pairs():
    pair = bench(corpus=FakeCorpus([1, 3])).teacher.latencies["pair"]  # repeats alternate: 13, 33, 13 ms
    assert pair.p50.ms == pytest.approx(13)
    assert pair.p95.ms == pytest.approx(13 + 0.9 * 20)
    assert pair.p99.ms == pytest.approx(13 + 0.98 * 20)


def test_teacher_and_student_are_timed_on_the_same_pairs():
    """The slow teacher is timed on two of the four pairs, and the student repeats these two."""
    result = bench(corpus=FakeCorpus([1, 1, 9, 9]), budget_s=0.029, num_repeats=40, min_rounds=2)
    assert result.teacher.latencies["pair"].num_repeats == 2
    student = result.student.latencies["pair"]
    assert student.num_repeats > 2
    assert student.p99.ms == pytest.approx(6)


def test_a_percentile_of_too_few_repeats_is_marked_unresolved():
    few, many = (bench(num_repeats=count).teacher.latencies["pair"] for count in (20, 100))
    assert (few.num_repeats, few.p50.is_resolved, few.p95.is_resolved, few.p99.is_resolved) == (20, True, True, False)
    assert many.p99.is_resolved


def test_throughput_is_measured_for_every_batch_size():
    corpus = FakeCorpus([1, 3])
    rates = bench(corpus=corpus, batch_sizes=(1, 2, 4)).student.throughput
    assert [rate.batch_size for rate in rates] == [1, 2, 4, 8]
    # The first image costs 5 ms and the second 15. A batch of one holds the first; an even batch costs 10 ms per image
    # on average.
    assert [rate.images_per_s for rate in rates] == pytest.approx([200, 100, 100, 100])
    assert [rate.pairs_per_s for rate in rates] == pytest.approx([1000 / 6, *[1000 / 11] * 3])
    assert [rate.captions_per_s for rate in rates] == pytest.approx([1000] * 4)


def test_constant_times_have_intervals_of_zero_width():
    result = bench()
    for item in result.speed_ups:
        assert item.interval == pytest.approx((item.ratio, item.ratio))


def test_varying_times_have_an_interval_around_the_median():
    """The teacher's pairs take 13 or 33 ms, so the median of a resample lies anywhere between."""
    result = bench(corpus=FakeCorpus([1, 3]), num_repeats=11)
    low, high = result.teacher.latencies["pair"].p50.interval_ms
    assert (low, high) == pytest.approx((13, 33))
    assert result.teacher.latencies["pair"].p50.ms == pytest.approx(13)


def test_a_slow_round_of_both_models_does_not_change_their_ratio():
    """In each round, both models are fast or both are slow, and resampling draws entire rounds."""
    result = bench(student=FakeFusion, corpus=FakeCorpus([1, 7, 1, 7]), num_repeats=12)
    pair = result.speed_ups[0]
    assert pair.interval == pytest.approx((2, 2))
    low, high = result.teacher.latencies["pair"].p50.interval_ms
    assert high > 2 * low


def test_the_curve_has_a_speed_up_for_every_gallery_with_and_without_cached_images():
    result = bench(budget_s=0.15)
    points = {(point.num_images, point.is_cached): point.speed_up for point in result.curve}
    assert set(points) == {(count, is_cached) for count in (20, 100) for is_cached in (True, False)}
    assert points[100, True].ratio == pytest.approx(102 / 1)
    assert points[20, False].ratio == pytest.approx((2 + 11 * 20) / (1 + 5 * 20))
    assert [points[100, is_cached].extrapolated for is_cached in (True, False)] == [False, True]
    assert points[100, False].ratio == pytest.approx((2 + 11 * 100) / (1 + 5 * 100))


def test_the_result_is_json_and_records_machine_and_settings():
    table = json.loads(json.dumps(bench().to_json(), allow_nan=False))
    assert {"cpu", "device", "threads", "cores", "torch", "transformers"} <= set(table["machine"])
    assert table["machine"]["threads"] == torch.get_num_threads()
    assert table["settings"]["batch_size"] == 8
    assert table["settings"]["precision"] == "float32"
    assert table["teacher"]["test_set"]["extrapolated"] is True
    assert table["paper_speed_up"] == 129


def test_a_missing_onnx_column_gives_the_reason():
    assert bench().onnx.note == "not asked for"
    fusion = bench(is_onnx_timed=True, student=FakeFusion).onnx
    assert fusion.times is None
    assert "this fusion model does not export to ONNX: its shapes depend on the data" in fusion.note


class Towers:
    """The towers of a late-interaction model, which count what they encode."""

    def __init__(self, model):
        self.model, self.num_encoded = model, 0

    def encode(self, batch):
        self.num_encoded += len(batch)
        is_image = isinstance(batch, ImageBatch)
        return self.model.encode_images(batch) if is_image else self.model.encode_texts(batch)

    encode_images = encode_texts = encode

    def outputs(self, batch):
        states = self.encode(batch)
        return states.tokens + 1e-5, states.mask


def test_a_late_student_is_timed_with_the_towers_of_onnx_runtime_and_its_own_maxsim(corpus, tmp_path, monkeypatch):
    model = late(FAMILIES["dual"](corpus.captions, tmp_path), is_pooled=False)
    towers = Towers(model)
    monkeypatch.setattr(models, "export_onnx", lambda model, folder: None)
    monkeypatch.setattr(models, "OnnxTowers", lambda folder, device: towers)
    in_torch = prepare_model(model, corpus, QUICK)
    timed, onnx = bench_compare.onnx_student(model, in_torch, tmp_path, is_timed=True)
    assert (onnx.note, onnx.largest_difference) == ("", pytest.approx(1e-5, rel=0.01))
    assert towers.num_encoded == 2 + 2
    for name in ("rank", "block"):
        scores = [getattr(each.steps, name)(each.gallery(3), each.encoded_texts[:1]) for each in (timed, in_torch)]
        torch.testing.assert_close(*scores)
    assert towers.num_encoded == 2 + 2 + 2 + 2
    assert timed.steps.kind == "late"


class AutocastRecorder(FakeFusion):
    """Records the dtypes of autocast under which it ran."""

    def encode_texts(self, texts):
        self.types = {
            *getattr(self, "types", set()),
            torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None,
        }
        return super().encode_texts(texts)


@pytest.mark.parametrize(("precision", "expected"), [("float32", None), ("bfloat16", torch.bfloat16)])
def test_the_student_runs_in_the_requested_precision(precision, expected):
    students = []

    def student(clock, costs):
        students.append(AutocastRecorder(clock, costs))
        return students[0]

    bench(student=student, precision=precision)
    assert students[0].types == {expected}


def test_the_processor_clock_does_not_advance_while_the_process_sleeps():
    clock = bench_compare._clock(BenchConfig(clock="processor"), torch.device("cpu"))
    started = clock()
    threading.Event().wait(0.2)
    assert clock() - started < 0.1
    assert bench_compare._clock(BenchConfig(), torch.device("cpu")) is time.perf_counter


def test_the_processor_clock_is_refused_for_a_gpu():
    with pytest.raises(ConfigError, match=r"say nothing of work on cuda; use --set clock=wall"):
        bench_compare._clock(BenchConfig(clock="processor"), torch.device("cuda"))
