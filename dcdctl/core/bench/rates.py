"""Times of the single steps of a search, with the models in turn, and of a query over N images."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from dcdctl.core.bench.steps import FIRST, BenchModel
from dcdctl.core.bench.timer import Repeats, Timer, Work
from dcdctl.core.progress import Track

BLOCK_IMAGES = 1000
"""Images of a block when a dual model scores a test set."""


def _pair(model: BenchModel) -> Work:
    def work(number: int) -> Tensor:
        # Another pair in each round, because captions differ in length.
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


def measure(models: Mapping[str, BenchModel], timer: Timer, track: Track) -> None:
    """Fill in all times of every model, each step with the models in turn."""
    config = timer.config
    sizes = config.all_batch_sizes
    num_measurements = len(STEPS) + len(BATCH_STEPS) * len(sizes) + 2 * len(config.gallery_sizes)
    with track("bench", total=num_measurements, unit="measurements") as advance:

        def time(works: Mapping[str, Work]) -> dict[str, Repeats]:
            repeats = timer.time_in_turn(works) if works else {}
            advance(1)
            return repeats

        def time_steps(*steps: str) -> None:
            for step in steps:
                for name, repeats in time({name: STEPS[step](model) for name, model in models.items()}).items():
                    models[name].step_times[step] = repeats

        # The order is part of the seeded result: it decides which random order of the models a step gets.
        time_steps("pair", "image", "caption")
        for size in sizes:
            for kind, work in BATCH_STEPS.items():
                for name, repeats in time({name: work(model, size) for name, model in models.items()}).items():
                    models[name].batch_times.setdefault(size, {})[kind] = repeats
        time_steps("rank", "block")
        for model in models.values():
            model.num_block_pairs = model.steps.block(model.gallery(BLOCK_IMAGES), model.encoded_texts).numel()
        # Queries come last, because the steps before give their expected time.
        for is_cached in (True, False):
            # Ascending, because a size that is too large is extrapolated from the smaller ones.
            for count in sorted(config.gallery_sizes):
                works = {
                    name: _query(model, count, is_cached=is_cached)
                    for name, model in models.items()
                    if model.is_feasible(count, config, is_cached=is_cached)
                }
                for name, repeats in time(works).items():
                    models[name].query_times[is_cached][count] = repeats
