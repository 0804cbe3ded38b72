"""Times of the single steps of a search, with the models in turn, and of a query over N images."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from dcdctl.core.bench.steps import BenchModel
from dcdctl.core.bench.timer import Repeats, Timer, Work
from dcdctl.core.progress import Track

BLOCK_IMAGES = 1000
"""Images of a block when a dual model scores a test set."""
STEPS = {"pair": BenchModel.score_single, "image": BenchModel.encode_image, "caption": BenchModel.encode_caption}
"""One pair, encoded and scored; one image and one caption alone."""
BATCH_STEPS = {
    "pairs": BenchModel.score_batch,
    "images": BenchModel.encode_image_batch,
    "captions": BenchModel.encode_caption_batch,
}
"""A batch of pairs, encoded and scored; a batch of images and one of captions."""
ENCODED_STEPS = ("rank", "block")
"""A batch of encoded images ranked for a caption; a block of a test set, everything encoded."""


def measure(models: Mapping[str, BenchModel], timer: Timer, track: Track) -> None:
    """Fill in all times of every model, each step with the models in turn."""
    config = timer.config
    sizes = config.all_batch_sizes
    num_steps = len(STEPS) + len(ENCODED_STEPS) + len(BATCH_STEPS) * len(sizes)
    num_measurements = num_steps + 2 * len(config.gallery_sizes)
    with track("bench", total=num_measurements, unit="measurements") as advance:

        def time(works: Mapping[str, Work]) -> dict[str, Repeats]:
            repeats = timer.time_in_turn(works) if works else {}
            advance(1)
            return repeats

        # The order is part of the seeded result: it decides which random order of the models a step gets.
        for step, method in STEPS.items():
            for name, repeats in time({name: partial(method, model) for name, model in models.items()}).items():
                models[name].step_times[step] = repeats
        for size in sizes:
            for step, of_batch in BATCH_STEPS.items():
                works: dict[str, Work] = {name: partial(of_batch, model, size) for name, model in models.items()}
                for name, repeats in time(works).items():
                    models[name].batch_times.setdefault(size, {})[step] = repeats
        # What is encoded is encoded outside the timed work: only the scores count.
        works = {}
        for name, model in models.items():
            works[name] = partial(model.rank, model.gallery(model.batch_size), model.encode_caption(0))
        for name, repeats in time(works).items():
            models[name].step_times["rank"] = repeats
        works = {}
        for name, model in models.items():
            gallery = model.gallery(BLOCK_IMAGES)
            works[name] = partial(model.score_block, gallery)
            model.num_block_pairs = model.steps.block(gallery, model.encoded_texts).numel()
        for name, repeats in time(works).items():
            models[name].step_times["block"] = repeats
        # Queries come last, because the steps before give their expected time.
        for is_cached in (True, False):
            # Ascending, because a size that is too large is extrapolated from the smaller ones.
            for count in sorted(config.gallery_sizes):
                works = {}
                for name, model in models.items():
                    if model.is_feasible(count, config, is_cached=is_cached):
                        works[name] = partial(model.find, model.gallery(count), count, is_cached)
                for name, repeats in time(works).items():
                    models[name].query_times[is_cached][count] = repeats
