"""The steps of a search, timed with the contestants in turns, and what a query over N images takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from dcdctl.core.bench.config import BenchConfig
from dcdctl.core.bench.steps import FIRST, Contestant, MiB
from dcdctl.core.bench.timer import Quantity, Sample, Timer, Work
from dcdctl.core.progress import Advance

BLOCK_IMAGES = 1000
"""Images of a block, of those a dual model scores a test set by."""
NUM_SINGLE_STEPS = 5
STEPS_OF_A_BATCH = 3


@dataclass(frozen=True, kw_only=True)
class BatchTimes:
    """Seconds of one batch."""

    pairs: Sample
    """Everything encoded."""
    images: Sample
    texts: Sample


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Seconds of the single steps of one contestant."""

    pair: Sample
    """One pair, everything encoded; the pairs in turn."""
    image: Sample
    """One image alone."""
    text: Sample
    """One caption alone, as a query comes."""
    batches: Mapping[int, BatchTimes]
    """By batch size."""
    rank_s: Quantity
    """One encoded image more for an encoded caption."""
    block_s: Quantity
    """One pair more of a test set, both encoded."""
    batch_size: int

    @property
    def image_s(self) -> Quantity:
        """One image, in a batch."""
        return self.batches[self.batch_size].images.median / self.batch_size

    @property
    def text_s(self) -> Quantity:
        """One caption, in a batch."""
        return self.batches[self.batch_size].texts.median / self.batch_size


@dataclass(frozen=True)
class Query:
    """The time to find the first images of a gallery for one caption."""

    seconds: Quantity
    sample: Sample | None
    """The repeats; None where it was extrapolated."""


@dataclass(frozen=True)
class Course:
    """Whose steps are timed, and how."""

    contestants: Mapping[str, Contestant]
    config: BenchConfig
    timer: Timer
    advance: Advance

    def turns(self, work_of: Callable[[Contestant], Work]) -> dict[str, Sample]:
        samples = self.timer.turns({name: work_of(one) for name, one in self.contestants.items()})
        self.advance(1)
        return samples


def num_measurements(config: BenchConfig) -> int:
    """How often `rates` and `queries` advance."""
    return NUM_SINGLE_STEPS + STEPS_OF_A_BATCH * len(config.all_batch_sizes) + 2 * len(config.gallery_sizes)


def rates(course: Course) -> dict[str, Rates]:
    """The seconds of each step for each contestant."""
    pair, image, text = (course.turns(work) for work in (_pair, _image, _text))
    batches = {size: _batch_times(course, size) for size in course.config.all_batch_sizes}
    rank, block = course.turns(_rank), course.turns(_block)
    return {
        name: Rates(
            pair=pair[name],
            image=image[name],
            text=text[name],
            batches={size: times[name] for size, times in batches.items()},
            rank_s=rank[name].median / course.config.batch_size,
            block_s=block[name].median / _num_block_pairs(one),
            batch_size=course.config.batch_size,
        )
        for name, one in course.contestants.items()
    }


def _pair(one: Contestant) -> Work:
    def work(number: int) -> Tensor:
        image, text = one.inputs.singles[number % len(one.inputs.singles)]
        return one.side.score_own(one.side.encode_images(image), one.side.encode_texts(text))

    return work


def _image(one: Contestant) -> Work:
    return lambda number: one.side.encode_images(one.inputs.singles[number % len(one.inputs.singles)][0])


def _text(one: Contestant) -> Work:
    return lambda number: one.side.encode_texts(one.inputs.singles[number % len(one.inputs.singles)][1])


def _batch_times(course: Course, size: int) -> dict[str, BatchTimes]:
    def pairs(one: Contestant) -> Work:
        side, images, texts = one.side, one.inputs.images[size], one.inputs.texts[size]
        return lambda number: side.score_own(side.encode_images(images), side.encode_texts(texts))

    timed = (
        course.turns(pairs),
        course.turns(lambda one: lambda number: one.side.encode_images(one.inputs.images[size])),
        course.turns(lambda one: lambda number: one.side.encode_texts(one.inputs.texts[size])),
    )
    return {name: BatchTimes(pairs=timed[0][name], images=timed[1][name], texts=timed[2][name]) for name in course.contestants}


def _rank(one: Contestant) -> Work:
    gallery, text = one.gallery(one.inputs.batch_size), one.side.encode_texts(one.inputs.singles[0][1])
    return lambda number: one.side.rank(gallery, text)


def _block(one: Contestant) -> Work:
    gallery, texts = one.gallery(BLOCK_IMAGES), one.texts
    return lambda number: one.side.block(gallery, texts)


def _num_block_pairs(one: Contestant) -> int:
    return one.side.block(one.gallery(BLOCK_IMAGES), one.texts).numel()


@dataclass
class Curve:
    """The queries of one contestant over galleries of growing size, its images encoded before or with the query."""

    contestant: Contestant
    rates: Rates
    is_cached: bool
    found: dict[int, Query] = field(default_factory=dict)

    def expected(self, count: int) -> Quantity:
        """By the largest gallery that was timed, what the caption takes aside; by the rates of the single steps where none was."""
        alone_s = self.rates.text.median
        largest = max((size for size, query in self.found.items() if query.sample is not None), default=0)
        if largest:
            return alone_s + self.found[largest].seconds.above(alone_s) * (count / largest)
        per_image_s = self.rates.rank_s if self.is_cached else self.rates.rank_s + self.rates.image_s
        return alone_s + per_image_s * count

    def is_feasible(self, count: int, config: BenchConfig) -> bool:
        """Whether time and memory allow to time it as a whole."""
        if self.expected(count).value > config.budget_s:
            return False
        return self.contestant.side.gallery_bytes(self.contestant.images, count) <= config.max_gallery_mib * MiB

    def answer(self, count: int) -> Work:
        """Finds the first images of a gallery, for each caption in turn."""
        side, inputs, gallery = self.contestant.side, self.contestant.inputs, self.contestant.gallery(count)

        def work(number: int) -> Tensor:
            if not self.is_cached:
                for chunk in inputs.chunks(count):
                    side.encode_images(chunk)
            scores_N = side.rank(gallery, side.encode_texts(inputs.singles[number % len(inputs.singles)][1]))
            return scores_N.topk(min(FIRST, count)).indices

        return work


def queries(course: Course, found: Mapping[str, Rates], *, is_cached: bool) -> dict[str, dict[int, Query]]:
    """By contestant and size of the gallery: timed, or extrapolated where that would take too long."""
    curves = {name: Curve(one, found[name], is_cached) for name, one in course.contestants.items()}
    for count in sorted(course.config.gallery_sizes):
        feasible = {name: curve for name, curve in curves.items() if curve.is_feasible(count, course.config)}
        samples = course.timer.turns({name: curve.answer(count) for name, curve in feasible.items()}) if feasible else {}
        course.advance(1)
        for name, curve in curves.items():
            sample = samples.get(name)
            curve.found[count] = Query(curve.expected(count) if sample is None else sample.median, sample)
    return {name: curve.found for name, curve in curves.items()}
