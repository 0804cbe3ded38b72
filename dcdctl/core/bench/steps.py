"""The timed steps of both kinds of model, and the images and captions that they run on."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from dcdctl.core.bench.config import BenchConfig
from dcdctl.core.bench.timer import Quantity, Repeats
from dcdctl.core.data import Corpus
from dcdctl.core.models import DualEncoder, ImageBatch, Model, OnnxTowers, Scorer, States, TextBatch

FIRST = 10
"""A query ends when its first ten images are known."""
FLOAT32_BYTES = 4
MiB = 2**20


Encoded = Any
"""What a step returns and the next one takes, whichever kind of model it is: states of a fusion scorer, vectors of a
dual encoder, or a gallery of either."""


class TimedFusion:
    """The steps of a scorer of pairs, in batches. The gallery of a cross-encoder, what it stores for many encoded
    images, repeats indices, not states: every pair passes through the fusion layers. Late interaction computes a pair
    once however often it is asked for, so its gallery repeats the states."""

    def __init__(self, model: Scorer, batch_size: int, towers: OnnxTowers | None = None) -> None:
        self._model, self._towers = model, towers or model
        # States that are kept are compared all at once, as a search compares them.
        self._size = model.pairs_per_batch if model.keeps_states else batch_size
        self.kind = model.kind

    def encode_images(self, batch: ImageBatch) -> Encoded:
        return self._towers.encode_images(batch)

    def encode_texts(self, batch: TextBatch) -> Encoded:
        return self._towers.encode_texts(batch)

    def score_matching(self, images: States, texts: States) -> Tensor:
        """The score of each image k with caption k."""
        index = torch.arange(len(texts))
        return self._model.score_pairs(images, texts, index, index)

    def gallery(self, images: States, count: int) -> Encoded:
        """A gallery of `count` encoded images: the given ones, repeated."""
        # On the CPU, as in `scoring`: reading positions from a GPU would wait for it.
        index = torch.arange(count)
        if self._model.keeps_states:
            return images.take(index % len(images)), index
        return images, index % len(images)

    def gallery_bytes(self, images: States, count: int) -> int:
        """Bytes of such a gallery in this benchmark."""
        kept = images.tokens[0].numel() * images.tokens.element_size() if self._model.keeps_states else 0
        return (torch.int64.itemsize + kept) * count

    def index_floats(self, images: States) -> float:
        """Mean count of numbers that an index stores per image."""
        of_tokens = float(images.mask.sum()) / len(images) * images.tokens.shape[2]
        # Late interaction without `model.pooled` compares tokens alone, and an index stores no more.
        if images.vectors is None or getattr(self._model, "vectors_scale", 1) is None:
            return of_tokens
        return of_tokens + images.vectors.shape[1]

    def rank(self, gallery: tuple[States, Tensor], text: States) -> Tensor:
        """Scores of one encoded caption with every image of a gallery."""
        images, image_ix_N = gallery
        chunks = image_ix_N.split(self._size)
        return torch.cat([self._model.score_pairs(images, text, chunk, torch.zeros_like(chunk)) for chunk in chunks])

    def block(self, gallery: tuple[States, Tensor], texts: States) -> Tensor:
        """Scores of a block of pairs, grouped by image, as a whole test set is scored."""
        index = torch.arange(len(texts))
        return self._model.score_pairs(gallery[0], texts, torch.zeros_like(index), index)


class TimedDual:
    """The steps of a dual encoder: a vector per image, a vector per caption, and a matrix product in float32, as
    evaluation and search compute it."""

    kind = "dual"

    def __init__(self, model: DualEncoder | OnnxTowers) -> None:
        self._model = model

    def encode_images(self, batch: ImageBatch) -> Encoded:
        return self._model.embed_images(batch).float()

    def encode_texts(self, batch: TextBatch) -> Encoded:
        return self._model.embed_texts(batch).float()

    def score_matching(self, images: Tensor, texts: Tensor) -> Tensor:
        return (images * texts).sum(dim=-1)

    def gallery(self, images: Tensor, count: int) -> Encoded:
        return images[torch.arange(count, device=images.device) % len(images)]

    def gallery_bytes(self, images: Tensor, count: int) -> int:
        return images.itemsize * images.shape[1] * count

    def index_floats(self, images: Tensor) -> float:
        return images.shape[1]

    def rank(self, gallery: Tensor, text: Tensor) -> Tensor:
        with _in_float32(gallery):
            return gallery @ text[0]

    def block(self, gallery: Tensor, texts: Tensor) -> Tensor:
        with _in_float32(gallery):
            return gallery @ texts.T


TimedModel = TimedFusion | TimedDual


def _in_float32(vectors: Tensor) -> torch.autocast:
    """Without the autocast of the benchmark, which would round the vectors of a product."""
    return torch.autocast(vectors.device.type, enabled=False)


@dataclass(kw_only=True)
class BenchModel:
    """A model of a benchmark and its times, with the same images and captions as every other one: through its own
    preprocessing, on its device. `rates.measure` fills in the times."""

    steps: TimedModel
    singles: list[tuple[ImageBatch, TextBatch]]
    """Batches of one image and one caption."""
    images: dict[int, ImageBatch]
    """Batches of images by size: the configured sizes, and the remainders of the galleries."""
    texts: dict[int, TextBatch]
    """Batches of captions by size; caption k belongs to image k of the batch of that size."""
    batch_size: int
    """For galleries."""
    # Not arguments, so that a copy with other steps starts without times.
    step_times: dict[str, Repeats] = field(default_factory=dict, init=False)
    """By the names of `rates.STEPS`; a different pair of the corpus in each round."""
    batch_times: dict[int, dict[str, Repeats]] = field(default_factory=dict, init=False)
    """By batch size, and by the names of `rates.BATCH_STEPS`."""
    query_times: dict[bool, dict[int, Repeats]] = field(default_factory=lambda: {True: {}, False: {}}, init=False)
    """By whether the images were encoded before, and by gallery size; without the galleries that were not timed."""
    num_block_pairs: int = field(default=0, init=False)
    """Pairs that the step "block" scores."""

    def single(self, number: int) -> tuple[ImageBatch, TextBatch]:
        """The image and the caption of a round."""
        return self.singles[number % len(self.singles)]

    # What is timed: the work of a round, given its number. Another pair in each, because captions differ in length.
    def encode_image(self, number: int) -> Encoded:
        return self.steps.encode_images(self.single(number)[0])

    def encode_caption(self, number: int) -> Encoded:
        return self.steps.encode_texts(self.single(number)[1])

    def score_single(self, number: int) -> Tensor:
        """One pair, encoded and scored."""
        return self.steps.score_matching(self.encode_image(number), self.encode_caption(number))

    def encode_image_batch(self, size: int, number: int) -> Encoded:
        return self.steps.encode_images(self.images[size])

    def encode_caption_batch(self, size: int, number: int) -> Encoded:
        return self.steps.encode_texts(self.texts[size])

    def score_batch(self, size: int, number: int) -> Tensor:
        """The pairs of a batch, encoded and scored."""
        images, texts = self.encode_image_batch(size, number), self.encode_caption_batch(size, number)
        return self.steps.score_matching(images, texts)

    def rank(self, gallery: Encoded, text: Encoded, number: int) -> Tensor:
        return self.steps.rank(gallery, text)

    def score_block(self, gallery: Encoded, number: int) -> Tensor:
        """A block of a test set, everything encoded."""
        return self.steps.block(gallery, self.encoded_texts)

    def find(self, gallery: Encoded, count: int, is_cached: bool, number: int) -> Tensor:
        """The first images of a gallery of `count`, for another caption in each round."""
        if not is_cached:
            # The outputs are dropped, because the gallery already holds the same images.
            full, rest = divmod(count, self.batch_size)
            for _ in range(full):
                self.steps.encode_images(self.images[self.batch_size])
            if rest:
                self.steps.encode_images(self.images[rest])
        scores_N = self.steps.rank(gallery, self.encode_caption(number))
        return scores_N.topk(min(FIRST, count)).indices

    @cached_property
    def encoded_images(self) -> Encoded:
        """An encoded batch of images."""
        return self.steps.encode_images(self.images[self.batch_size])

    @cached_property
    def encoded_texts(self) -> Encoded:
        """An encoded batch of captions."""
        return self.steps.encode_texts(self.texts[self.batch_size])

    def gallery(self, count: int) -> Encoded:
        """A gallery of `count` encoded images."""
        return self.steps.gallery(self.encoded_images, count)

    def in_batch(self, kind: str) -> Quantity:
        """Seconds for one of the images or captions of a batch."""
        return self.batch_times[self.batch_size][kind].median / self.batch_size

    def test_set_s(self, num_images: int, num_captions: int) -> Quantity:
        """All pairs of a test set, everything encoded once."""
        pair_s = self.step_times["block"].median / self.num_block_pairs
        return self.in_batch("images") * num_images + (self.in_batch("captions") + pair_s * num_images) * num_captions

    def query_s(self, count: int, *, is_cached: bool) -> Quantity:
        """The time of a query. If it was not timed, it is extrapolated from the largest timed gallery after subtracting
        the caption, or from the single steps if there is none."""
        timed, caption_s = self.query_times[is_cached], self.step_times["caption"].median
        if count in timed:
            return timed[count].median
        if timed:
            largest = max(timed)
            return caption_s + timed[largest].median.excess_over(caption_s) * (count / largest)
        rank_s = self.step_times["rank"].median / self.batch_size
        return caption_s + (rank_s if is_cached else rank_s + self.in_batch("images")) * count

    def is_feasible(self, count: int, config: BenchConfig, *, is_cached: bool) -> bool:
        """Whether budget and memory allow to time the query as a whole."""
        if self.query_s(count, is_cached=is_cached).value > config.budget_s:
            return False
        return self.steps.gallery_bytes(self.encoded_images, count) <= config.max_gallery_mib * MiB


def timed_model(model: Model, batch_size: int, towers: OnnxTowers | None = None) -> TimedModel:
    """The steps of a model, encoding by `towers` if given; a cross-encoder scores pairs in batches of `batch_size`."""
    if model.has_one_vector:
        return TimedDual(towers or model)
    return TimedFusion(model, batch_size, towers)


def device_of(model: Model) -> torch.device:
    """The device of the first parameter; the CPU for a model without any, such as a Python function, whose own device
    is not known."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def prepare_model(model: Model, corpus: Corpus, config: BenchConfig) -> BenchModel:
    """A model in evaluation mode, without gradients, with the first images of a corpus and their captions (of a pool,
    its first texts), preprocessed: singly, in batches, and the remainders of the galleries."""
    # In inference mode a view of a parameter that requires a gradient has no history, and torch's counter fails on it.
    model.eval().requires_grad_(False)
    preprocess, device, batch_size = model.preprocess, device_of(model), config.batch_size
    images = corpus.images(range(min(config.num_images, corpus.num_images)))

    def caption(k: int) -> str:
        """The caption of the k-th pair: the images in turn, each time with another one of their captions."""
        if corpus.is_pool:
            return corpus.captions[k % corpus.num_captions]
        turn, image = divmod(k, len(images))
        captions = corpus.captions_of(image)
        return corpus.captions[captions[turn % len(captions)]]

    sizes = config.all_batch_sizes
    remainders = {count % batch_size for count in config.gallery_sizes} - {0}
    singles = []
    for k, image in enumerate(images):
        singles.append((preprocess.images([image]).to(device), preprocess.texts([caption(k)]).to(device)))
    image_batches, text_batches = {}, {}
    for size in {*sizes, *remainders}:
        batch = [images[k % len(images)] for k in range(size)]
        image_batches[size] = preprocess.images(batch).to(device)
    for size in sizes:
        captions = [caption(k) for k in range(size)]
        text_batches[size] = preprocess.texts(captions).to(device)
    return BenchModel(
        steps=timed_model(model, batch_size),
        singles=singles,
        images=image_batches,
        texts=text_batches,
        batch_size=batch_size,
    )
