"""Times and speed-ups by hand: fake models move a fake clock by a known cost."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from dcdctl.core.benchmark import BenchConfig, compare
from dcdctl.core.errors import ConfigError
from dcdctl.core.models.protocols import ImageBatch, States, TextBatch
from dcdctl.core.timing import Timer


class Clock:
    """Seconds that pass only when a model works."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def spend(self, milliseconds: float) -> None:
        self.now += milliseconds / 1000


class Preprocess:
    def images(self, images) -> ImageBatch:
        return ImageBatch(torch.tensor([float(image) for image in images])[:, None, None, None])

    def texts(self, texts) -> TextBatch:
        ids = torch.tensor([[len(text)] for text in texts])
        return TextBatch(ids, torch.ones_like(ids))


@dataclass(frozen=True)
class Costs:
    """Milliseconds for one image, one caption, one pair."""

    image: float
    text: float
    pair: float = 0.0


class FakeFusion(nn.Module):
    def __init__(self, clock: Clock, costs: Costs) -> None:
        super().__init__()
        self.preprocess, self.clock, self.costs = Preprocess(), clock, costs
        self.weight = nn.Parameter(torch.zeros(7))

    def encode_images(self, images: ImageBatch) -> States:
        # An image costs its own number times the price, so that images can differ.
        self.clock.spend(self.costs.image * float(images.pixel_values.sum()))
        return States(images.pixel_values[:, :, 0], torch.ones(len(images), 1, dtype=torch.bool))

    def encode_texts(self, texts: TextBatch) -> States:
        self.clock.spend(self.costs.text * len(texts))
        return States(texts.input_ids[:, :, None].float(), torch.ones(len(texts), 1, dtype=torch.bool))

    def score_pairs(self, images, texts, image_ix_P, text_ix_P):
        assert int(image_ix_P.max()) < len(images)
        assert int(text_ix_P.max()) < len(texts)
        self.clock.spend(self.costs.pair * len(image_ix_P))
        return images.tokens[image_ix_P, 0, 0] + texts.tokens[text_ix_P, 0, 0]


class FakeDual(nn.Module):
    def __init__(self, clock: Clock, costs: Costs) -> None:
        super().__init__()
        self.preprocess, self.clock, self.costs = Preprocess(), clock, costs
        self.weight = nn.Parameter(torch.zeros(5))

    def embed_images(self, images: ImageBatch):
        self.clock.spend(self.costs.image * float(images.pixel_values.sum()))
        return torch.ones(len(images), 4) / 2

    def embed_texts(self, texts: TextBatch):
        self.clock.spend(self.costs.text * len(texts))
        return torch.ones(len(texts), 4) / 2


class FakeCorpus:
    """Images of cost 1 (or as given), captions unevenly spread: the first image has one, the others two."""

    split = "test"

    def __init__(self, costs: list[int]) -> None:
        self.costs = costs
        self.num_images, self.num_captions = len(costs), 2 * len(costs) - 1
        self.captions = [f"caption {i}" for i in range(self.num_captions)]

    def images(self, image_ix):
        return [self.costs[i] for i in image_ix]

    def captions_of(self, image_ix: int) -> range:
        return range(0, 1) if image_ix == 0 else range(2 * image_ix - 1, 2 * image_ix + 1)


def bench(*, budget_s: float = 1e6, corpus: FakeCorpus | None = None, student: type[nn.Module] = FakeDual, **settings):
    clock = Clock()
    config = BenchConfig(num_images=4, batch_size=8, num_repeats=3, budget_s=budget_s, **settings)
    teacher = FakeFusion(clock, Costs(image=10, text=2, pair=1))
    return compare(teacher, student(clock, Costs(image=5, text=1, pair=0.5)), corpus or FakeCorpus([1, 1, 1, 1]), config, clock=clock)


def test_the_three_speed_ups_are_those_of_the_known_costs():
    pair, query, whole = (item.ratio for item in bench().speed_ups)
    assert pair == pytest.approx((10 + 2 + 1) / (5 + 1))
    assert query == pytest.approx((2 + 1000 * 1) / 1)
    # 4 images, 7 captions, 28 pairs
    assert whole == pytest.approx((4 * 10 + 7 * 2 + 28 * 1) / (4 * 5 + 7 * 1))


def test_a_fusion_student_pays_for_every_pair_too():
    pair, query, whole = (item.ratio for item in bench(student=FakeFusion).speed_ups)
    assert (pair, query, whole) == pytest.approx((2, 2, 2))


def test_the_steps_of_a_model_are_timed_one_by_one():
    times = bench().teacher
    assert (times.image_encode_ms, times.text_encode_ms) == pytest.approx((10, 2))
    assert times.pairs_per_s == pytest.approx(1000 / 13)
    assert (times.kind, times.num_parameters, times.dtype) == ("fusion", 7, "float32")


def test_a_query_without_cached_images_encodes_exactly_its_gallery():
    result = bench(gallery_sizes=(3, 100, 1000), headline_size=100)
    for count in (3, 100, 1000):  # 3 is less than a batch, 100 is 12 batches and 4 images
        assert result.teacher.query(count, is_cached=False).seconds == pytest.approx((2 + 11 * count) / 1000)
        assert result.student.query(count, is_cached=False).seconds == pytest.approx((1 + 5 * count) / 1000)
        assert result.student.query(count, is_cached=True).seconds == pytest.approx(1 / 1000)


def test_what_the_budget_does_not_cover_is_rate_times_count_and_says_so():
    result = bench(budget_s=1.5)
    assert not result.teacher.query(1000, is_cached=True).extrapolated
    beyond = result.teacher.query(10000, is_cached=True)
    assert beyond.extrapolated
    assert beyond.seconds == pytest.approx((2 + 10000) / 1000)
    assert [item.extrapolated for item in result.speed_ups] == [False, False, True]
    assert [item.extrapolated for item in bench(budget_s=0.5).speed_ups] == [False, True, True]


def test_the_latency_percentiles_are_over_single_pairs():
    times = bench(corpus=FakeCorpus([1, 3])).teacher  # repeats alternate: 13, 33, 13 ms
    assert times.pair_p50_ms == pytest.approx(13)
    assert times.pair_p95_ms == pytest.approx(13 + 0.9 * 20)


def test_the_timer_drops_the_warm_up_and_keeps_to_the_budget():
    clock = Clock()
    costs = iter([900, 100, *([100] * 50)])
    timer = Timer(num_warmup=2, num_repeats=30, budget_s=10, clock=clock)
    assert timer.repeats(lambda: clock.spend(next(costs))) == pytest.approx([0.1] * 30)
    slow = Timer(num_warmup=2, num_repeats=30, budget_s=1, clock=clock)
    assert slow.repeats(lambda: clock.spend(400)) == pytest.approx([0.4, 0.4])


def test_the_timer_waits_for_the_device_before_it_looks_at_the_clock():
    events: list[str] = []

    def clock() -> float:
        events.append("clock")
        return 0.0

    timer = Timer(num_warmup=1, num_repeats=1, budget_s=1, clock=clock, synchronize=lambda: events.append("wait"))
    timer.once(lambda: events.append("work"))
    assert events == ["wait", "clock", "work", "wait", "clock"]


def test_the_bench_says_on_what_it_was_made_and_is_json():
    threads = torch.get_num_threads()
    table = json.loads(json.dumps(bench(num_threads=1).to_json(), allow_nan=False))
    assert {"cpu", "device", "threads", "torch", "transformers"} <= set(table["machine"])
    assert table["machine"]["threads"] == 1
    assert table["settings"]["batch_size"] == 8
    assert table["teacher"]["test_set"]["extrapolated"] is True
    assert torch.get_num_threads() == threads


def test_a_headline_that_is_not_timed_is_an_error():
    with pytest.raises(ConfigError, match="headline_size"):
        BenchConfig(gallery_sizes=(10,), headline_size=20)
