"""What a model costs that no clock shows: parameters, bytes and floating-point operations.

Operations are counted by torch (`FlopCounterMode`), two for a multiply-add, of the very passes that are timed. Torch counts products of
matrices, convolutions and attention; not softmax, norms, activations, additions, look-ups, interpolation or the search for the highest
scores, which are few beside them in a transformer and take their time all the same. Two things it leaves out are added here: attention as
CPUs run it, and products of a matrix and a vector, such as a query's with all vectors of an index.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from dcdctl.core.bench.steps import FLOAT32_BYTES, Contestant
from dcdctl.core.models import DualEncoder, FusionScorer

NUM_COUNTED = 4
"""Pairs that operations are counted on; captions differ in length."""
MILLION = 1_000_000
NOT_COUNTED = "softmax, norms, activations, additions, look-ups, interpolation, sorting"
Shape = Sequence[int]


@dataclass(frozen=True, kw_only=True)
class Flops:
    """Floating-point operations, two for a multiply-add; the mean of some pairs."""

    per_image: float
    """Encoding it."""
    per_caption: float
    """Encoding it, unpadded."""
    per_pair: float
    """Both encoded, and their score."""
    per_ranked_image: float
    """One encoded image more for an encoded caption."""
    not_counted: str = NOT_COUNTED


@dataclass(frozen=True, kw_only=True)
class Footprint:
    num_parameters: int
    weight_bytes: int
    """Parameters and buffers as they are in memory."""
    flops: Flops
    index_bytes_per_million_images: dict[str, int]
    """A dual model's vectors, a fusion model's encoded images, by type of number."""


def _attention(query: Shape, key: Shape, value: Shape, *rest: Any, **named: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def _matrix_by_vector(matrix: Shape, vector: Shape, *rest: Any, **named: Any) -> int:
    return 2 * math.prod(matrix)


_MISSING_IN_TORCH: dict[Any, Callable[..., int]] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten.mv: _matrix_by_vector,
}


def count_flops(work: Callable[[], object]) -> int:
    """Floating-point operations of the work, two for a multiply-add; what is counted is in the module's docstring.

    >>> count_flops(lambda: torch.ones(2, 3) @ torch.ones(3, 5))
    60
    """
    counter: Any = FlopCounterMode(display=False, custom_mapping=_MISSING_IN_TORCH)
    with torch.no_grad(), counter:
        work()
    return int(counter.get_total_flops())


def of_model(model: FusionScorer | DualEncoder, contestant: Contestant) -> Footprint:
    """The footprint of a model, measured on its inputs."""
    kept = contestant.side.index_floats(contestant.images)
    return Footprint(
        num_parameters=num_parameters(model.named_parameters()),
        weight_bytes=sum(tensor.numel() * tensor.element_size() for name, tensor in model.state_dict().items() if _is_kept(name)),
        flops=_flops(contestant),
        index_bytes_per_million_images={name: round(MILLION * kept * size) for name, size in _SIZES.items()},
    )


def num_parameters(named: Any) -> int:
    """Numbers that a saved model has."""
    return sum(parameter.numel() for name, parameter in named if _is_kept(name))


_SIZES: Mapping[str, int] = {"float32": FLOAT32_BYTES, "float16": FLOAT32_BYTES // 2}


def _is_kept(name: str) -> bool:
    """A dual model's calibration serves training alone, and no saved model has one."""
    return not name.startswith("calibration.")


def _flops(contestant: Contestant) -> Flops:
    side, inputs = contestant.side, contestant.inputs
    counted = inputs.singles[:NUM_COUNTED]
    many = contestant.gallery(inputs.batch_size)
    one_text = side.encode_texts(inputs.singles[0][1])

    def mean(work: Callable[[Any, Any], object]) -> float:
        return sum(count_flops(lambda pair=pair: work(*pair)) for pair in counted) / len(counted)  # type: ignore[misc]

    return Flops(
        per_image=mean(lambda image, text: side.encode_images(image)),
        per_caption=mean(lambda image, text: side.encode_texts(text)),
        per_pair=mean(lambda image, text: side.score_own(side.encode_images(image), side.encode_texts(text))),
        per_ranked_image=count_flops(lambda: side.rank(many, one_text)) / inputs.batch_size,
    )
