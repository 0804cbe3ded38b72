"""Fake models that move a fake clock by a known cost, and a benchmark of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from dcdctl.core.bench import Bench, BenchConfig
from dcdctl.core.bench.compare import compare
from dcdctl.core.models import ImageBatch, States, TextBatch

QUICK = BenchConfig(
    num_images=2,
    batch_size=2,
    batch_sizes=(2,),
    num_warmup=1,
    num_repeats=2,
    min_rounds=1,
    budget_s=0.01,
    gallery_sizes=(2,),
    reference_gallery=2,
    is_onnx_timed=False,
)
"""The shortest benchmark of real models."""


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


class FakeModel(nn.Module):
    """It spends time where a model of its kind would."""

    num_weights: int

    def __init__(self, clock: Clock, costs: Costs) -> None:
        super().__init__()
        self.preprocess, self.clock, self.costs = Preprocess(), clock, costs
        self.weight = nn.Parameter(torch.zeros(self.num_weights))


class FakeFusion(FakeModel):
    kind, num_weights, has_one_vector, keeps_states, as_dual = "fusion", 7, False, False, None

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


class FakeDual(FakeModel):
    kind, num_weights, has_one_vector = "dual", 5, True

    def embed_images(self, images: ImageBatch):
        self.clock.spend(self.costs.image * float(images.pixel_values.sum()))
        return torch.ones(len(images), 4) / 2

    def embed_texts(self, texts: TextBatch):
        self.clock.spend(self.costs.text * len(texts))
        return torch.ones(len(texts), 4) / 2


class FakeCorpus:
    """Images of cost 1 (or as given), captions unevenly spread: the first image has one, the others two."""

    is_pool = False
    split = "test"

    def __init__(self, costs: list[int]) -> None:
        self.costs = costs
        self.num_images, self.num_captions = len(costs), 2 * len(costs) - 1
        self.captions = [f"caption {i}" for i in range(self.num_captions)]

    def images(self, image_ix):
        return [self.costs[i] for i in image_ix]

    def captions_of(self, image_ix: int) -> range:
        return range(0, 1) if image_ix == 0 else range(2 * image_ix - 1, 2 * image_ix + 1)


def bench(
    *,
    budget_s: float = 1e6,
    clock_name: str = "wall",
    corpus: FakeCorpus | None = None,
    student: type[nn.Module] = FakeDual,
    clock: Clock | None = None,
    **settings,
) -> Bench:
    """A benchmark of a fake teacher and a fake student that costs half of it."""
    clock = Clock() if clock is None else clock
    given = {
        "num_images": 4,
        "batch_size": 8,
        "batch_sizes": (1, 8),
        "num_repeats": 3,
        "gallery_sizes": (20, 100),
        "reference_gallery": 100,
        "is_onnx_timed": False,
        "budget_s": budget_s,
        "clock": clock_name,
        **settings,
    }
    teacher = FakeFusion(clock, Costs(image=10, text=2, pair=1))
    pupil = student(clock, Costs(image=5, text=1, pair=0.5))
    in_torch = {"teacher": teacher, "student": pupil}
    return compare(in_torch, corpus or FakeCorpus([1, 1, 1, 1]), BenchConfig(**given), clock=clock)
