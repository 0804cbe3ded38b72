"""Times of the single steps of a search, with the models in turn, and of a query over N images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from dcdctl.core.bench.config import BenchConfig
from dcdctl.core.bench.result import QueryTiming
from dcdctl.core.bench.steps import FIRST, BenchModel, MiB
from dcdctl.core.bench.timer import Quantity, Repeats, Timer, Work
from dcdctl.core.progress import Track

BLOCK_IMAGES = 1000
"""Images of a block when a dual model scores a test set."""


@dataclass
class Timings:
    """All times of one model, filled in by `measure`."""

    model: BenchModel
    steps: dict[str, Repeats] = field(default_factory=dict)
    """By the names of `STEPS`; a different pair of the corpus in each round."""
    batches: dict[int, dict[str, Repeats]] = field(default_factory=dict)
    """By batch size, and by the names of `BATCH_STEPS`."""
    queries: dict[bool, dict[int, QueryTiming]] = field(default_factory=lambda: {True: {}, False: {}})
    """By whether the images were encoded before, and by gallery size."""
    num_block_pairs: int = 0
    """Pairs that the step "block" scores."""

    def in_batch(self, kind: str) -> Quantity:
        """Seconds for one of the images or captions of a batch."""
        return self.batches[self.model.batch_size][kind].median / self.model.batch_size

    @property
    def rank_s(self) -> Quantity:
        """One more encoded image for an encoded caption."""
        return self.steps["rank"].median / self.model.batch_size

    def test_set_s(self, num_images: int, num_captions: int) -> Quantity:
        """All pairs of a test set, everything encoded once."""
        pair_s = self.steps["block"].median / self.num_block_pairs
        return self.in_batch("images") * num_images + (self.in_batch("captions") + pair_s * num_images) * num_captions

    def expected(self, count: int, *, is_cached: bool) -> Quantity:
        """The time of a query, extrapolated from the largest timed gallery after subtracting the caption; from the
        single steps if none was timed."""
        caption_s, by_size = self.steps["caption"].median, self.queries[is_cached]
        largest = max((size for size, timing in by_size.items() if timing.repeats is not None), default=0)
        if largest:
            return caption_s + by_size[largest].seconds.excess_over(caption_s) * (count / largest)
        per_image_s = self.rank_s if is_cached else self.rank_s + self.in_batch("images")
        return caption_s + per_image_s * count

    def is_feasible(self, count: int, config: BenchConfig, *, is_cached: bool) -> bool:
        """Whether budget and memory allow to time the query as a whole."""
        if self.expected(count, is_cached=is_cached).value > config.budget_s:
            return False
        return self.model.steps.gallery_bytes(self.model.encoded_images, count) <= config.max_gallery_mib * MiB


def _pair(model: BenchModel) -> Work:
    def work(number: int) -> Tensor:
        image, text = model.single(number)
        return model.steps.score_matching(model.steps.encode_images(image), model.steps.encode_texts(text))

    return work


def _rank(model: BenchModel) -> Work:
    # Encoded outside the timed work: only the ranking counts.
    gallery, text = model.gallery(model.batch_size), model.steps.encode_texts(model.single(0)[1])
    return lambda number: model.steps.rank(gallery, text)


def _block(model: BenchModel) -> Work:
    gallery, texts = model.gallery(BLOCK_IMAGES), model.encoded_texts
    return lambda number: model.steps.block(gallery, texts)


STEPS: dict[str, Callable[[BenchModel], Work]] = {
    "pair": _pair,
    "image": lambda model: lambda number: model.steps.encode_images(model.single(number)[0]),
    "caption": lambda model: lambda number: model.steps.encode_texts(model.single(number)[1]),
    "rank": _rank,
    "block": _block,
}
"""One pair, encoded and scored; one image and one caption alone; a batch of encoded images ranked for a caption; a
block of a test set, everything encoded."""


def _pairs(model: BenchModel, size: int) -> Work:
    steps, images, texts = model.steps, model.images[size], model.texts[size]
    return lambda number: steps.score_matching(steps.encode_images(images), steps.encode_texts(texts))


BATCH_STEPS: dict[str, Callable[[BenchModel, int], Work]] = {
    "pairs": _pairs,
    "images": lambda model, size: lambda number: model.steps.encode_images(model.images[size]),
    "captions": lambda model, size: lambda number: model.steps.encode_texts(model.texts[size]),
}


def _query(model: BenchModel, count: int, *, is_cached: bool) -> Work:
    """Finds the first images of a gallery, for another caption in each round."""
    gallery = model.gallery(count)

    def work(number: int) -> Tensor:
        if not is_cached:
            # The outputs are dropped, because the gallery already holds the same images.
            for chunk in model.chunks(count):
                model.steps.encode_images(chunk)
        scores_N = model.steps.rank(gallery, model.steps.encode_texts(model.single(number)[1]))
        return scores_N.topk(min(FIRST, count)).indices

    return work


def measure(models: Mapping[str, BenchModel], config: BenchConfig, timer: Timer, track: Track) -> dict[str, Timings]:
    """All times of every model, each step with the models in turn."""
    timings = {name: Timings(model) for name, model in models.items()}
    sizes = config.all_batch_sizes
    num_measurements = len(STEPS) + len(BATCH_STEPS) * len(sizes) + 2 * len(config.gallery_sizes)
    with track("bench", total=num_measurements, unit="measurements") as advance:

        def time(works: Mapping[str, Work]) -> dict[str, Repeats]:
            repeats = timer.time_in_turn(works) if works else {}
            advance(1)
            return repeats

        def time_step(step: str) -> None:
            for name, repeats in time({name: STEPS[step](model) for name, model in models.items()}).items():
                timings[name].steps[step] = repeats

        for step in ("pair", "image", "caption"):
            time_step(step)
        for size in sizes:
            for kind, work in BATCH_STEPS.items():
                for name, repeats in time({name: work(model, size) for name, model in models.items()}).items():
                    timings[name].batches.setdefault(size, {})[kind] = repeats
        for step in ("rank", "block"):
            time_step(step)
        for each in timings.values():
            scores = each.model.steps.block(each.model.gallery(BLOCK_IMAGES), each.model.encoded_texts)
            each.num_block_pairs = scores.numel()
        # Queries come last, because the steps before give their expected time.
        for is_cached in (True, False):
            # Ascending, because a size that is too large is extrapolated from the smaller ones.
            for count in sorted(config.gallery_sizes):
                works = {
                    name: _query(each.model, count, is_cached=is_cached)
                    for name, each in timings.items()
                    if each.is_feasible(count, config, is_cached=is_cached)
                }
                timed = time(works)
                for name, each in timings.items():
                    query = timed.get(name)
                    seconds = each.expected(count, is_cached=is_cached) if query is None else query.median
                    each.queries[is_cached][count] = QueryTiming(seconds, query)
    return timings
