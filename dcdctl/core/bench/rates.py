"""Times of the single steps of a search, with the models in turn, and of a query over N images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from dcdctl.core.bench.config import BenchConfig
from dcdctl.core.bench.result import QueryTiming
from dcdctl.core.bench.steps import FIRST, BenchModel, MiB
from dcdctl.core.bench.timer import Quantity, Sample, Timer, Work
from dcdctl.core.progress import Advance

BLOCK_IMAGES = 1000
"""Images of a block when a dual model scores a test set."""
# Calls of `RateMeasurement.time` in `rates`, and in `_batch_times` for each batch size.
NUM_SINGLE_STEPS = 5
STEPS_OF_A_BATCH = 3


@dataclass(frozen=True, kw_only=True)
class BatchTimes:
    """Seconds for one batch."""

    pairs: Sample
    """Encoding included."""
    images: Sample
    texts: Sample


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Seconds for the single steps of one model."""

    pair: Sample
    """One pair, encoding included; a different pair in each round."""
    image: Sample
    """One image alone."""
    text: Sample
    """One caption alone, like a query."""
    batches: Mapping[int, BatchTimes]
    """By batch size."""
    rank_s: Quantity
    """One more encoded image for an encoded caption."""
    block_s: Quantity
    """One more pair of a test set, both encoded."""
    batch_size: int

    @property
    def image_s(self) -> Quantity:
        """One image in a batch."""
        return self.batches[self.batch_size].images.median / self.batch_size

    @property
    def text_s(self) -> Quantity:
        """One caption in a batch."""
        return self.batches[self.batch_size].texts.median / self.batch_size


@dataclass(frozen=True)
class RateMeasurement:
    """The models whose steps are timed, and how."""

    models: Mapping[str, BenchModel]
    config: BenchConfig
    timer: Timer
    advance: Advance

    def time(self, work_of: Callable[[BenchModel], Work]) -> dict[str, Sample]:
        """The times of a step for each model, in turn."""
        samples = self.timer.time_in_turn({name: work_of(model) for name, model in self.models.items()})
        self.advance(1)
        return samples


def num_measurements(config: BenchConfig) -> int:
    """How often `rates` and `queries` call `advance`."""
    return NUM_SINGLE_STEPS + STEPS_OF_A_BATCH * len(config.all_batch_sizes) + 2 * len(config.gallery_sizes)


def rates(measurement: RateMeasurement) -> dict[str, Rates]:
    """The seconds of each step, by model."""
    pair, image, text = (measurement.time(work) for work in (_pair, _image, _text))
    batches = {size: _batch_times(measurement, size) for size in measurement.config.all_batch_sizes}
    rank, block = measurement.time(_rank), measurement.time(_block)
    return {
        name: Rates(
            pair=pair[name],
            image=image[name],
            text=text[name],
            batches={size: times[name] for size, times in batches.items()},
            rank_s=rank[name].median / measurement.config.batch_size,
            block_s=block[name].median / _num_block_pairs(model),
            batch_size=measurement.config.batch_size,
        )
        for name, model in measurement.models.items()
    }


def _pair(model: BenchModel) -> Work:
    def work(number: int) -> Tensor:
        image, text = model.inputs.singles[number % len(model.inputs.singles)]
        return model.steps.score_matching(model.steps.encode_images(image), model.steps.encode_texts(text))

    return work


def _image(model: BenchModel) -> Work:
    return lambda number: model.steps.encode_images(model.inputs.singles[number % len(model.inputs.singles)][0])


def _text(model: BenchModel) -> Work:
    return lambda number: model.steps.encode_texts(model.inputs.singles[number % len(model.inputs.singles)][1])


def _batch_times(measurement: RateMeasurement, size: int) -> dict[str, BatchTimes]:
    def pairs(model: BenchModel) -> Work:
        steps, images, texts = model.steps, model.inputs.images[size], model.inputs.texts[size]
        return lambda number: steps.score_matching(steps.encode_images(images), steps.encode_texts(texts))

    of_pairs = measurement.time(pairs)
    of_images = measurement.time(lambda model: lambda number: model.steps.encode_images(model.inputs.images[size]))
    of_texts = measurement.time(lambda model: lambda number: model.steps.encode_texts(model.inputs.texts[size]))
    return {
        name: BatchTimes(pairs=of_pairs[name], images=of_images[name], texts=of_texts[name])
        for name in measurement.models
    }


def _rank(model: BenchModel) -> Work:
    # Encoded outside the timed work: only the ranking counts.
    gallery, text = model.gallery(model.inputs.batch_size), model.steps.encode_texts(model.inputs.singles[0][1])
    return lambda number: model.steps.rank(gallery, text)


def _block(model: BenchModel) -> Work:
    gallery, texts = model.gallery(BLOCK_IMAGES), model.texts
    return lambda number: model.steps.block(gallery, texts)


def _num_block_pairs(model: BenchModel) -> int:
    return model.steps.block(model.gallery(BLOCK_IMAGES), model.texts).numel()


@dataclass
class QueryCurve:
    """Query times of one model over galleries of growing size."""

    model: BenchModel
    rates: Rates
    is_cached: bool
    """Whether the images are encoded before the query; else with it."""
    by_size: dict[int, QueryTiming] = field(default_factory=dict)

    def expected(self, count: int) -> Quantity:
        """The time extrapolated from the largest timed gallery, after subtracting the caption; by the single steps if
        none was timed."""
        text_s = self.rates.text.median
        largest = max((size for size, timing in self.by_size.items() if timing.sample is not None), default=0)
        if largest:
            return text_s + self.by_size[largest].seconds.excess_over(text_s) * (count / largest)
        per_image_s = self.rates.rank_s if self.is_cached else self.rates.rank_s + self.rates.image_s
        return text_s + per_image_s * count

    def is_feasible(self, count: int, config: BenchConfig) -> bool:
        """Whether budget and memory allow to time the query as a whole."""
        if self.expected(count).value > config.budget_s:
            return False
        return self.model.steps.gallery_bytes(self.model.images, count) <= config.max_gallery_mib * MiB

    def query(self, count: int) -> Work:
        """Finds the first images of a gallery, for another caption in each round."""
        steps, inputs, gallery = self.model.steps, self.model.inputs, self.model.gallery(count)

        def work(number: int) -> Tensor:
            if not self.is_cached:
                # The outputs are dropped, because the gallery already holds the same images.
                for chunk in inputs.chunks(count):
                    steps.encode_images(chunk)
            scores_N = steps.rank(gallery, steps.encode_texts(inputs.singles[number % len(inputs.singles)][1]))
            return scores_N.topk(min(FIRST, count)).indices

        return work


def queries(
    measurement: RateMeasurement, by_model: Mapping[str, Rates], *, is_cached: bool
) -> dict[str, dict[int, QueryTiming]]:
    """Query times by model and gallery size; extrapolated where timing would take too long."""
    config = measurement.config
    curves = {name: QueryCurve(model, by_model[name], is_cached) for name, model in measurement.models.items()}
    # Ascending, because a size that is too large is extrapolated from the smaller ones.
    for count in sorted(config.gallery_sizes):
        works = {name: curve.query(count) for name, curve in curves.items() if curve.is_feasible(count, config)}
        samples = measurement.timer.time_in_turn(works) if works else {}
        measurement.advance(1)
        for name, curve in curves.items():
            sample = samples.get(name)
            curve.by_size[count] = QueryTiming(curve.expected(count) if sample is None else sample.median, sample)
    return {name: curve.by_size for name, curve in curves.items()}
